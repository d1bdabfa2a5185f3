# SPDX-License-Identifier: Apache-2.0
"""Baselines that learn from the new participant alone, or not at all.

`fit_ridge`: ``min ||y - X w - b||^2 + a_v ||w||^2`` with a penalty of its own for every voxel, chosen by
shuffled five-fold cross-validation (himalaya, Dupré la Tour et al. 2022).

`fit_five_fold_ridge`: the published baseline of BraInCoRL as it is: contiguous folds, a penalised column of
ones, one of nine penalties per voxel by held-out explained variance, and the *mean of the five fold fits* as
the answer, without a fit to all images.  Kept for comparison with published numbers.

`group_mean`: the average of other participants' weights at the same place.

All in float64 inside, weights ``(n_voxels, E + 1)`` with the bias last.
"""

from __future__ import annotations

import numpy as np

from conform_app.errors import DataError

PENALTIES = np.logspace(-4, 5, 19)
FIVE_FOLD_PENALTIES = np.logspace(-3, 5, 9)


def folds_of(n_images: int, n_folds: int, seed: int) -> list[np.ndarray]:
    """Shuffled folds: arrays of held-out image numbers, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(n_images)
    return [np.sort(fold) for fold in np.array_split(order, min(n_folds, n_images))]


def fit_ridge(
    features: np.ndarray, betas: np.ndarray, *, penalties=PENALTIES, n_folds: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with a penalty per voxel.

    Parameters
    ----------
    features : ndarray (n_images, E)
    betas : ndarray (n_voxels, n_images)
    penalties : sequence of float
        Candidates.
    n_folds, seed : int
        Folds of the cross-validation that chooses.

    Returns
    -------
    weights : ndarray (n_voxels, E + 1), float64
        Bias last; the bias is not penalised.
    chosen : ndarray (n_voxels,)
        Penalty of each voxel.

    References
    ----------
    Dupré la Tour et al. 2022, NeuroImage 264:119728.
    """
    from himalaya.ridge import RidgeCV

    x, y = np.asarray(features, np.float64), np.asarray(betas, np.float64)
    # Two images leave one to fit: the folds are then the same for all penalties, and the largest wins.
    held_out = folds_of(len(x), n_folds, seed)
    splits = [(np.setdiff1d(np.arange(len(x)), test), test) for test in held_out]
    model = RidgeCV(
        alphas=np.asarray(penalties, np.float64),
        fit_intercept=True,
        cv=splits,
        solver_params={"warn": False, "n_targets_batch": 5000},
    ).fit(x, y.T)
    return np.column_stack([model.coef_.T, model.intercept_]), np.asarray(model.best_alphas_)


def fit_five_fold_ridge(
    features: np.ndarray, betas: np.ndarray, *, penalties=FIVE_FOLD_PENALTIES, n_folds: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """The published ridge baseline: the mean of the folds' fits at the best penalty.

    ``n_images // n_folds`` contiguous images per fold are held out, what remains is always fitted.  Ties go
    to the smallest penalty.

    Parameters
    ----------
    features : array (n_images, E)
    betas : array (n_voxels, n_images)
    penalties : sequence of float
    n_folds : int

    Returns
    -------
    As `fit_ridge`.

    Raises
    ------
    DataError
        Fewer than two images a fold.
    """
    x = np.column_stack([np.asarray(features, np.float64), np.ones(len(features))])
    y = np.asarray(betas, np.float64)
    size = len(x) // n_folds
    if size < 2:
        raise DataError(
            f"{len(x)} images are too few for {n_folds} folds of two.", "Give more context images."
        )
    penalties = np.asarray(penalties, np.float64)
    score = np.zeros((len(penalties), len(y)))
    fits = np.zeros((len(penalties), len(y), x.shape[1]))
    for fold in range(n_folds):
        test = slice(fold * size, (fold + 1) * size)
        keep = np.delete(np.arange(len(x)), test)
        u, s, vt = np.linalg.svd(x[keep], full_matrices=False)
        rotated = y[:, keep] @ u
        left = y[:, test]
        for i, penalty in enumerate(penalties):
            weights = (rotated * (s / (s**2 + penalty))) @ vt
            fits[i] += weights / n_folds
            with np.errstate(invalid="ignore", divide="ignore"):
                score[i] += 1 - (left - weights @ x[test].T).var(axis=1) / left.var(axis=1)
    best = np.argmax(score, axis=0)
    return fits[best, np.arange(len(y))], penalties[best]


def group_mean(weights) -> np.ndarray:
    """Mean over participants of weights on one grid, NaN (no data at that vertex) left out.

    Parameters
    ----------
    weights : sequence of ndarray (n_voxels, E + 1)
        One per participant, voxel for voxel at the same place.

    Returns
    -------
    ndarray (n_voxels, E + 1)
        NaN where nobody has data.

    Raises
    ------
    DataError
        Weights of different shapes.
    """
    shapes = {np.shape(w) for w in weights}
    if len(shapes) != 1:
        raise DataError(
            f"Participants' weights have shapes {sorted(shapes)}.",
            "Bring all participants to one space first; the group mean is taken place by place.",
        )
    stack = np.stack([np.asarray(w, np.float64) for w in weights])
    there = np.isfinite(stack)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, np.where(there, stack, 0).sum(axis=0) / count, np.nan)
