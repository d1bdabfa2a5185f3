# SPDX-License-Identifier: Apache-2.0
"""Blocks of neighbouring units, for populations too large for one n x n covariance.

PSN costs n^3 time and n^2 memory in the number of units.  A population of N units is cut into the fewest
blocks of at most n_max units by halving it along its longest axis again and again, so that blocks are
compact; PSN is then exact within each block.
"""

from __future__ import annotations

import numpy as np

MAX_UNITS = 1500
"""Units of a block: about a second of eigendecomposition and 18 MB a covariance."""


def bisect(coordinates: np.ndarray, max_units: int = MAX_UNITS) -> np.ndarray:
    """Label units by compact blocks.

    Parameters
    ----------
    coordinates : ndarray of shape (n_units, n_axes)
        Place of each unit, in any unit of length.
    max_units : int
        Largest block.

    Returns
    -------
    ndarray of shape (n_units,), int
        Block of each unit, from 0.  Blocks differ in size by one at most per halving.
    """
    coordinates = np.asarray(coordinates, dtype=float)
    labels = np.zeros(len(coordinates), dtype=int)
    todo, done = [np.arange(len(coordinates))], []
    while todo:
        units = todo.pop()
        if len(units) <= max_units:
            done.append(units)
            continue
        axis = np.ptp(coordinates[units], axis=0).argmax()
        order = units[np.argsort(coordinates[units, axis], kind="stable")]
        todo += [order[len(order) // 2 :], order[: len(order) // 2]]
    for number, units in enumerate(done):
        labels[units] = number
    return labels
