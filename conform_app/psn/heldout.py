# SPDX-License-Identifier: Apache-2.0
"""Does denoising help on repeats that it has not seen?

The repeats of each condition are dealt in turn to two halves.  PSN is fitted to one half, and its denoised
averages are held against the raw averages of the other half; the raw averages of the first half are the
measure to beat.  No trial counts twice, so neither figure flatters PSN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from conform_app.errors import DataError
from conform_app.psn.parcels import fit_parcels


@dataclass(frozen=True)
class HeldOut:
    """How averages of one half of the repeats agree with raw averages of the other half.

    Attributes
    ----------
    before, reliability : ndarray of shape (n_voxels,), float32
        Correlation over conditions, of raw and of denoised averages; NaN where they do not vary.
    error_before, error_after : float
        Mean squared difference, of raw and of denoised averages, in the squared unit of the responses.
    """

    before: np.ndarray
    reliability: np.ndarray
    error_before: float
    error_after: float

    def account(self) -> list[str]:
        """Say it in a sentence."""
        if not np.isfinite(self.error_before):
            return ["There are too few repeats to test PSN on repeats that it has not seen."]
        change = 100 * (self.error_after / self.error_before - 1)
        size = f"{abs(change):.0f} %" if abs(change) >= 1 else "less than 1 %"
        change = f"{'rose' if change > 0 else 'fell'} by {size}" if change else "did not change"
        known = np.isfinite(self.before)
        r = ""
        if known.any():
            after = np.nan_to_num(self.reliability[known], nan=0.0)
            medians = np.median(self.before[known]), np.median(after)
            r = " and the median correlation over conditions went from {:.2f} to {:.2f}".format(*medians)
            flat = 100 * np.isnan(self.reliability[known]).mean()
            if flat >= 0.5:
                r += f" ({flat:.0f} % of the voxels were left flat and count as 0)"
        return [
            "Tested on repeats that PSN had not seen (fitted to one half of the repeats, compared with the "
            f"raw averages of the other half), the squared error of the averages {change}{r}."
        ]


def held_out(
    repeats: np.ndarray,
    parcel: np.ndarray,
    options: dict[str, Any] | Callable[[np.ndarray, np.ndarray], Any],
    n_jobs: int = 1,
) -> HeldOut:
    """Hold averages denoised from one half of the repeats against the raw averages of the other half.

    Parameters
    ----------
    repeats : ndarray of shape (n_voxels, n_conditions, n_repeats)
        A repeat counts where at least half of the voxels have it.
    parcel : ndarray of shape (n_voxels,)
        Block of each voxel, from 0; blocks are denoised by themselves.
    options : dict or callable
        Options of :func:`conform_app.psn.fit_psn`, or what makes of repeats and parcels a fit with `averages`
        and `denoised`.
    n_jobs : int
        Blocks at once, where options are given.

    Returns
    -------
    HeldOut
        Averages over the two directions, or over the one that has trials enough; NaN if none has.
    """
    if not callable(options):
        settings = options

        def options(data: np.ndarray, parcel: np.ndarray) -> Any:
            return fit_parcels(data, parcel, n_jobs=n_jobs, keep_models=False, **settings)

    there = 2 * np.isfinite(repeats).sum(axis=0) >= len(repeats)
    rank = np.cumsum(there, axis=1) - 1
    halves = [there & (rank % 2 == side) for side in (0, 1)]
    found = [
        result
        for ours, theirs in (halves, halves[::-1])
        if (result := _one_way(repeats, ours, theirs, parcel, options)) is not None
    ]
    if not found:
        nothing = np.full(len(repeats), np.nan, np.float32)
        return HeldOut(nothing, nothing, float("nan"), float("nan"))
    before, after, *rest = (np.mean(v, axis=0) for v in zip(*found, strict=True))
    return HeldOut(before.astype(np.float32), after.astype(np.float32), *map(float, rest))


def _one_way(
    repeats: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    parcel: np.ndarray,
    denoise: Callable[[np.ndarray, np.ndarray], Any],
) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """Correlations and errors of one direction; None where trials do not suffice."""
    both = ours.any(axis=1) & theirs.any(axis=1)
    if both.sum() < 3 or ours.sum(axis=1).max() < 2:
        return None
    used = repeats[:, both]
    fitted = np.where(ours[both], used, np.nan)
    fitted = fitted[:, :, ours[both].any(axis=0)]
    try:
        fit = denoise(fitted, parcel)
    except DataError:
        return None
    target = _averages(used, theirs[both])
    before, after = fit.averages.astype(np.float64), fit.denoised.astype(np.float64)
    errors = [float(np.nanmean((x - target) ** 2)) for x in (before, after)]
    return correlation(before, target), correlation(after, target), *errors


def _averages(x: np.ndarray, trials: np.ndarray) -> np.ndarray:
    there = trials & np.isfinite(x)
    count = there.sum(axis=2)
    total = np.where(there, x, 0.0).sum(axis=2, dtype=np.float64)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlate rows; NaN where a row does not vary or misses a condition."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.full(len(a), np.nan), where=scale > 0)
