# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals: how much would a reliability change with other conditions?

Conditions are the sampling unit: they are drawn with replacement, with all their repeats, and the statistic
is computed anew.  Resampling repeats would put copies of one trial on both sides of a comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.reliability.repeats import as_repeats


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    betas: np.ndarray,
    *,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic over resampled conditions.

    Parameters
    ----------
    statistic : callable
        Takes betas (n_voxels, n_conditions, n_repeats) and gives (n_voxels,) or a number, for example
        :func:`conform_app.reliability.noise_ceiling`.
    betas : array_like, (n_voxels, n_conditions, n_repeats)
    level : float, default 0.95
        Coverage.
    n_boot : int, default 1000
    seed : int, default 0
        The same resamples serve all voxels.

    Returns
    -------
    low, high : ndarray, (n_voxels,) or ()
        NaN where the statistic is never finite.  Draws that the statistic refuses, such as those without any
        repeated condition, do not count.

    Raises
    ------
    DataError
        If betas are not 3-D, or the statistic refuses them as they are.
    UsageError
        If the level is not between 0 and 1 or n_boot is not positive.
    """
    if not 0 < level < 1 or n_boot < 1:
        raise UsageError(
            f"A level of {level} with {n_boot} resamples is not possible.", "Give 0 < level < 1, n_boot > 0."
        )
    betas = as_repeats(betas)
    rng = np.random.default_rng(seed)
    n = betas.shape[1]
    refused = np.full(np.shape(statistic(betas)), np.nan)

    def of(conditions: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(statistic(betas[:, conditions]))
        except DataError:
            return refused

    values = np.stack([of(rng.integers(0, n, n)) for _ in range(n_boot)])
    values = np.where(np.isfinite(values), values, np.nan)
    tail = (1 - level) / 2
    found = np.isfinite(values).any(axis=0)
    low, high = np.full(found.shape, np.nan), np.full(found.shape, np.nan)
    low[found], high[found] = np.nanquantile(values[:, found], (tail, 1 - tail), axis=0)
    return low, high
