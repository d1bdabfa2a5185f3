# SPDX-License-Identifier: Apache-2.0
"""Vertices of a hemisphere of the template meshes, by the label of their density."""

FSAVERAGE_VERTICES = {"3k": 2562, "10k": 10242, "41k": 40962, "164k": 163842}
FSLR_VERTICES = {"32k": 32492, "59k": 59292, "164k": 163842}
