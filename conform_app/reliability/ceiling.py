# SPDX-License-Identifier: Apache-2.0
"""Noise ceilings as in the Natural Scenes Dataset, for uneven numbers of repeats.

Per voxel, with ``r_c`` repeats of condition ``c``:

    noise_var  = sum_{r_c > 1} (r_c - 1) var_c / sum_{r_c > 1} (r_c - 1)       var_c over repeats, ddof 1
    total_var  = variance over all trials pooled, ddof 1
    signal_var = max(total_var - noise_var, 0)
    ncsnr      = sqrt(signal_var / noise_var)
    NC         = 100 ncsnr^2 / (ncsnr^2 + w)       w = 1/n, or for "avg" the mean of 1/r_c over conditions

The ceiling is the share of variance, in per cent, that a perfect model of the signal could explain in the
mean of n repeats.  Conditions with one repeat enter the total variance and the mean of 1/r_c.
Allen et al. (2022), Nat. Neurosci. 25:116.  Sums are float64, in blocks of voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.reliability.repeats import as_repeats

_BLOCK_VALUES = 1 << 23  # values of a block held in float64 at once (64 MiB)


def blocks(n_voxels: int, per_voxel: int) -> Iterator[slice]:
    """Slices over voxels such that a block holds a bounded number of values."""
    size = max(1, _BLOCK_VALUES // max(1, per_voxel))
    for start in range(0, n_voxels, size):
        yield slice(start, min(start + size, n_voxels))


def variance_components(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signal and noise variance of each voxel.

    Parameters
    ----------
    betas : array_like, (n_voxels, n_conditions, n_repeats)
        Single-trial betas; NaN marks a missing repeat, for all voxels or for one.

    Returns
    -------
    signal_var, noise_var : ndarray, (n_voxels,) float64
        Both in the squared unit of the betas; NaN for voxels without any condition repeated.

    Raises
    ------
    DataError
        If betas are not 3-D, or no condition is repeated in any voxel.
    """
    betas = as_repeats(betas)
    n_voxels, n_conditions, n_repeats = betas.shape
    signal, noise = np.full(n_voxels, np.nan), np.full(n_voxels, np.nan)
    any_repeats = n_voxels == 0
    for rows in blocks(n_voxels, n_conditions * n_repeats):
        y = betas[rows].astype(np.float64)
        there = ~np.isnan(y)
        count = there.sum(axis=2)
        n_trials, dof = count.sum(axis=1), np.maximum(count - 1, 0).sum(axis=1)
        ok = dof > 0
        any_repeats |= bool(ok.any())
        # Centring on one of the voxel's own values first keeps a constant voxel at exactly zero variance.
        first = np.take_along_axis(
            y.reshape(len(y), -1), there.reshape(len(y), -1).argmax(axis=1)[:, None], axis=1
        )
        y = np.where(there, y - first[:, :, None], 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = y.sum(axis=2) / count
            within = np.where(there, y - mean[:, :, None], 0.0)
            noise[rows] = np.where(ok, np.einsum("vcr,vcr->v", within, within) / dof, np.nan)
            grand = y.sum(axis=(1, 2)) / n_trials
            spread = np.where(there, y - grand[:, None, None], 0.0)
            total = np.einsum("vcr,vcr->v", spread, spread) / (n_trials - 1)
        signal[rows] = np.where(ok, np.maximum(total - noise[rows], 0.0), np.nan)
    if not any_repeats:
        raise DataError(
            "No condition is repeated, so noise cannot be told from signal.",
            "Noise ceilings need at least two trials of some condition.",
        )
    return signal, noise


def ncsnr(betas: np.ndarray) -> np.ndarray:
    """Noise-ceiling signal-to-noise ratio: signal sd over noise sd of a single trial.

    Parameters
    ----------
    betas : array_like, (n_voxels, n_conditions, n_repeats)
        Single-trial betas; NaN marks a missing repeat.

    Returns
    -------
    ndarray, (n_voxels,) float64
        NaN for voxels without variance or without repeats, infinite for voxels without noise.

    Raises
    ------
    DataError
        If betas are not 3-D or nothing is repeated.
    """
    return _ratio(*variance_components(betas))


def noise_ceiling(betas: np.ndarray, *, n: int | Literal["avg"] = 1) -> np.ndarray:
    """Noise ceiling in per cent of the variance of the mean of n repeats.

    Parameters
    ----------
    betas : array_like, (n_voxels, n_conditions, n_repeats)
        Single-trial betas; NaN marks a missing repeat.
    n : int or "avg", default 1
        Number of repeats averaged before a model is compared with the data; "avg" stands for averaging all
        repeats that each condition has.

    Returns
    -------
    ndarray, (n_voxels,) float64
        0 to 100; NaN for voxels without variance or without repeats.

    Raises
    ------
    DataError
        If betas are not 3-D or nothing is repeated.
    UsageError
        If n is neither a positive integer nor "avg".
    """
    if not (n == "avg" or (isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 1)):
        raise UsageError(f"n = {n!r} is not a number of repeats.", 'Give a positive integer or "avg".')
    betas = as_repeats(betas)
    snr2 = _ratio(*variance_components(betas)) ** 2
    weight = np.full(len(betas), 1.0 / n) if n != "avg" else _mean_inverse_count(betas)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(snr2), 100.0, np.minimum(100.0 * snr2 / (snr2 + weight), 100.0))


def _ratio(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(signal) / np.sqrt(noise)


def _mean_inverse_count(betas: np.ndarray) -> np.ndarray:
    """Mean of 1/r_c over the conditions that a voxel has."""
    out = np.empty(len(betas))
    for rows in blocks(len(betas), betas.shape[1] * betas.shape[2]):
        count = (~np.isnan(betas[rows])).sum(axis=2)
        inverse = np.divide(1.0, count, out=np.zeros(count.shape), where=count > 0)
        shown = (count > 0).sum(axis=1)
        out[rows] = np.divide(inverse.sum(axis=1), shown, out=np.full(len(count), np.nan), where=shown > 0)
    return out
