# SPDX-License-Identifier: Apache-2.0
"""From participants' outputs to a collection.

The room between `bids`, which knows files, and `mosaic`, which knows arrays and tables.
"""
