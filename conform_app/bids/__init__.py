# SPDX-License-Identifier: Apache-2.0
"""BIDS: what to fit, which trials, under which names the results are written."""
