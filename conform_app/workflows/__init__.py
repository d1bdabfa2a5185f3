# SPDX-License-Identifier: Apache-2.0
"""Nipype workflows: which step follows which.  Factories take explicit keyword arguments, no globals."""
