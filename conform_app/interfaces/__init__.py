# SPDX-License-Identifier: Apache-2.0
"""Nipype shells: load, call, save.  The work itself is in the rooms below."""
