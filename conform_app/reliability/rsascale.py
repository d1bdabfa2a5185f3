# SPDX-License-Identifier: Apache-2.0
"""Scale of the signal with which a model's RDMs repeat as well as the data's.

The data: trials of each condition are dealt at random to two halves of equal size, the RDMs of the halves'
averages are correlated, and the median over such splits taken.  The model: signal from N(mean, s cS) plus,
for each half, noise from N(0, cN / trials in the half).  The scale s is where the model's median meets that
of the data.  The same random draws serve all scales, so that the model's median is a smooth function of s.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conform_app.errors import DataError

LARGEST = 2.0
STEP = 0.1


def split_half_rdm(
    data: np.ndarray, correlate: Callable[[np.ndarray, np.ndarray], float], *, n_splits: int, seed: int
) -> tuple[float, np.ndarray]:
    """How well the RDMs of two halves of the trials agree.

    Parameters
    ----------
    data : ndarray, (n_units, n_conditions, n_trials)
        NaN marks a missing trial; one that a unit misses is left out for all.
    correlate : callable
        Correlation of the RDMs of two sets of averages (n_units, m).
    n_splits, seed : int

    Returns
    -------
    r : float
        Median over splits.
    per_half : ndarray, (m,) int
        Trials of each half, for conditions with at least two.

    Raises
    ------
    DataError
        If fewer than three conditions are repeated.
    """
    there = np.isfinite(data).all(axis=0)
    counts = there.sum(axis=1)
    used = np.flatnonzero(counts > 1)
    if used.size < 3:
        raise DataError("Fewer than three conditions are repeated.", "Leave data out; the scale is then one.")
    per_half = counts[used] // 2
    rng = np.random.default_rng(seed)
    found = np.empty(n_splits)
    for i in range(n_splits):
        halves = np.empty((2, len(data), used.size))
        for column, (condition, n) in enumerate(zip(used, per_half, strict=True)):
            order = rng.permutation(np.flatnonzero(there[condition]))
            halves[0, :, column] = data[:, condition, order[:n]].mean(axis=1)
            halves[1, :, column] = data[:, condition, order[n : 2 * n]].mean(axis=1)
        found[i] = correlate(*halves)
    return float(np.nanmedian(found)), per_half


def matching_scale(
    target: float,
    per_half: np.ndarray,
    signal_root: np.ndarray,
    noise_root: np.ndarray,
    mean: np.ndarray | float,
    correlate: Callable[[np.ndarray, np.ndarray], float],
    *,
    n_simulations: int,
    seed: int,
) -> float:
    """The scale of the signal covariance at which the model's halves agree as the data's do.

    Parameters
    ----------
    target : float
        Of `split_half_rdm`.
    per_half : ndarray, (m,) int
    signal_root, noise_root : ndarray, (n_units, n_units)
        Roots of the covariances of the signal and of one trial's noise.
    mean : ndarray, (n_units, 1), or 0.0
    correlate : callable
    n_simulations, seed : int

    Returns
    -------
    float
        Between 0 (the data repeat no better than noise) and `LARGEST`.
    """
    rng = np.random.default_rng(seed)
    n, m = len(signal_root), per_half.size
    draws = [
        (
            signal_root @ rng.standard_normal((n, m)),
            *(noise_root @ rng.standard_normal((n, m)) / np.sqrt(per_half) for _ in range(2)),
        )
        for _ in range(n_simulations)
    ]
    scales = np.arange(0.0, LARGEST + STEP / 2, STEP)
    agreement = np.array(
        [
            np.nanmedian(
                [correlate(mean + np.sqrt(s) * x + a, mean + np.sqrt(s) * x + b) for x, a, b in draws]
            )
            for s in scales
        ]
    )
    agreement = np.maximum.accumulate(agreement)  # more signal repeats better
    above = np.flatnonzero(agreement >= target)
    if not above.size:
        return LARGEST
    k = int(above[0])
    if k == 0:
        return 0.0
    low, high = agreement[k - 1], agreement[k]
    return float(scales[k - 1] + STEP * (target - low) / (high - low))
