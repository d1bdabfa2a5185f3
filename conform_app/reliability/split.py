# SPDX-License-Identifier: Apache-2.0
"""Split-half reliability: do two halves of the repeats rank the conditions alike?

The repeats of each condition are dealt in turn to halves A and B (1st, 3rd, ... and 2nd, 4th, ... of those
that exist), averaged, and correlated over conditions per voxel.  With the Spearman-Brown formula
``2r / (1 + r)`` the value speaks of the mean of all repeats instead of half of them.
"""

from __future__ import annotations

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.reliability.ceiling import blocks
from conform_app.reliability.repeats import as_repeats


def split_half(
    betas: np.ndarray, *, n_splits: int | None = None, seed: int = 0, spearman_brown: bool = False
) -> np.ndarray:
    """Correlate the condition means of two halves of the repeats, voxel by voxel.

    Parameters
    ----------
    betas : array_like, (n_voxels, n_conditions, n_repeats)
        Single-trial betas; NaN marks a missing repeat.  Conditions that a voxel has fewer than twice are left
        out for that voxel.
    n_splits : int, optional
        None (default): one deterministic split into odd and even repeats.  An integer: the mean correlation
        over so many random splits, the same ones for all voxels.
    seed : int, default 0
        Seed of the random splits.
    spearman_brown : bool, default False
        Step the correlation up to the reliability of the mean of all repeats.

    Returns
    -------
    ndarray, (n_voxels,) float64
        Pearson correlation over conditions; NaN for voxels whose halves do not vary or that have fewer than
        two repeated conditions.

    Raises
    ------
    DataError
        If betas are not 3-D or no condition is repeated.
    UsageError
        If n_splits is not positive.
    """
    if n_splits is not None and n_splits < 1:
        raise UsageError(
            f"n_splits = {n_splits} is not a number of splits.", "Give a positive integer or None."
        )
    betas = as_repeats(betas)
    n_voxels, n_conditions, n_repeats = betas.shape
    if n_voxels and not ((~np.isnan(betas)).sum(axis=2) > 1).any():
        raise DataError("No condition is repeated.", "Split-half reliability needs at least two repeats.")
    rng = np.random.default_rng(seed)
    orders = (
        [None]
        if n_splits is None
        else [rng.random((n_conditions, n_repeats)).argsort(1) for _ in range(n_splits)]
    )
    out = np.empty(n_voxels)
    for rows in blocks(n_voxels, n_conditions * n_repeats):
        y = betas[rows].astype(np.float64)
        out[rows] = np.mean([_one_split(y, order) for order in orders], axis=0)
    if spearman_brown:
        with np.errstate(divide="ignore", invalid="ignore"):
            out = np.where(out > -1, 2 * out / (1 + out), np.nan)
    return out


def _one_split(y: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    if order is not None:
        y = np.take_along_axis(y, order[None], axis=2)
    there = ~np.isnan(y)
    odd = there & (np.cumsum(there, axis=2) % 2 == 1)
    even = there & ~odd
    y = np.where(there, y, 0.0)
    n_odd, n_even = odd.sum(axis=2), even.sum(axis=2)
    both = n_even > 0
    a = np.where(both, np.where(odd, y, 0.0).sum(axis=2) / np.maximum(n_odd, 1), 0.0)
    b = np.where(both, np.where(even, y, 0.0).sum(axis=2) / np.maximum(n_even, 1), 0.0)
    return _correlate(a, b, both)


def _correlate(a: np.ndarray, b: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Pearson r of rows over the entries in use, NaN where a row does not vary."""
    n = use.sum(axis=1, keepdims=True)
    scale = np.finfo(float).eps * 8
    with np.errstate(invalid="ignore", divide="ignore"):
        size_a, size_b = np.abs(a).max(axis=1, initial=0), np.abs(b).max(axis=1, initial=0)
        a = np.where(use, a - a.sum(axis=1, keepdims=True) / n, 0.0)
        b = np.where(use, b - b.sum(axis=1, keepdims=True) / n, 0.0)
        norm_a, norm_b = np.sqrt(np.einsum("vc,vc->v", a, a)), np.sqrt(np.einsum("vc,vc->v", b, b))
        varies = (norm_a > scale * size_a) & (norm_b > scale * size_b) & (n[:, 0] > 1)
        r = np.einsum("vc,vc->v", a, b) / (norm_a * norm_b)
    return np.where(varies, np.clip(r, -1.0, 1.0), np.nan)
