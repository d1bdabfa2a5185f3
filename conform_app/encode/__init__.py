# SPDX-License-Identifier: Apache-2.0
"""From a sealed collection to encoding models: what is learned from whom, the arrays, the files.

Between the rooms that know files (`bids`, `images`, `mosaic`) and `braincorl`, which takes and gives arrays.
"""
