# SPDX-License-Identifier: Apache-2.0
"""Does denoising help on repeats that it has not seen?

The repeats are split into two halves (odd and even).  PSN is fitted on one half, and its denoised averages
are held against the raw averages of the other half; the raw averages of the first half are the measure to
beat.  No trial counts twice, so neither figure flatters PSN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from conform_app.psn.estimator import fit_psn


@dataclass(frozen=True)
class HeldOut:
    """How denoised averages of one half of the repeats agree with raw averages of the other half.

    Attributes
    ----------
    reliability : ndarray of shape (n_voxels,), float32
        Correlation over conditions.
    error_before, error_after : float
        Mean squared difference, of raw and of denoised averages, in units of z-scored responses.
    """

    reliability: np.ndarray
    error_before: float
    error_after: float

    def account(self) -> list[str]:
        """Say it in a sentence."""
        if not np.isfinite(self.error_before):
            return ["There are too few repeats to test PSN on repeats that it has not seen."]
        change = 100 * (1 - self.error_after / self.error_before)
        change = f"{'fell' if change >= 0 else 'rose'} by {abs(change):.0f} %"
        return [
            "Tested on repeats that PSN had not seen (fitted to one half of the repeats, compared with the "
            f"raw averages of the other half), the squared error of the averages {change}."
        ]


def held_out(repeats: np.ndarray, parcel: np.ndarray, options: dict[str, Any]) -> HeldOut:
    """Hold averages denoised from one half of the repeats against the raw averages of the other half.

    Parameters
    ----------
    repeats : ndarray of shape (n_voxels, n_conditions, n_repeats)
    parcel : ndarray of shape (n_voxels,)
        Block of each voxel, from 0; blocks are denoised by themselves.
    options : dict
        Of :func:`conform_app.psn.fit_psn`.

    Returns
    -------
    HeldOut
        Averages over the two directions, or over the one that has trials enough; NaN if none has.
    """
    halves = [repeats[:, :, 0::2], repeats[:, :, 1::2]]
    found = []
    for fitted, other in (halves, halves[::-1]):
        present = np.isfinite(fitted[0]).sum(axis=1)
        both = (present > 0) & np.isfinite(other[0]).any(axis=1)
        if both.sum() < 3 or present.max() < 2:
            continue
        before, target = (np.nanmean(half[:, both], axis=2) for half in (fitted, other))
        after = np.empty_like(before)
        for number in range(parcel.max() + 1):
            here = parcel == number
            after[here] = fit_psn(fitted[here][:, both], **options).denoised
        errors = [float(np.mean((x - target) ** 2)) for x in (before, after)]
        found.append((correlation(after, target), *errors))
    if not found:
        return HeldOut(np.full(len(repeats), np.nan, np.float32), float("nan"), float("nan"))
    reliability, before, after = (np.mean(values, axis=0) for values in zip(*found, strict=True))
    return HeldOut(reliability.astype(np.float32), float(before), float(after))


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlate rows; NaN where a row does not vary."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.full(len(a), np.nan), where=scale > 0)
