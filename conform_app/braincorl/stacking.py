# SPDX-License-Identifier: Apache-2.0
r"""Which estimator for which voxel: shares by cross-validation within the context, never below the best one.

Shares ``a`` lie on a grid over the simplex of estimators.  With ``e_mvi`` the error of estimator m for voxel
v at the held-out image i, ``L_i(a)`` is the mean over voxels of ``(sum_m a_m e_mvi)^2 / u_v`` and m* the
reference: the prior, one of whose components is ridge regression, or else the estimator that is best alone.
The unit u is the geometric mean of the voxel's variance and its estimated signal variance: what is explained
counts as a share of what can be, but voxels of noise alone do not decide.  All voxels see the same images, so
that it is images that are sampled::

    U(a) = D(a) + 4 SE(a),   D, SE: mean and standard error over images of L_i(a) - L_i(m*)

Anything else has to be better than the reference by four standard errors before it counts as better: with 20
images much of what looks like a gain is theirs alone, or lies in the offset.  A voxel's shares are the mean
over the grid under its own likelihood of the held-out errors times ``exp(-TRIALS / 2 . U / L)``: what is best
for the participant counts as much as so many trials of the voxel: it decides at 20 images, and yields to
thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np

from conform_app.braincorl.prior import with_ones
from conform_app.braincorl.ridge import folds_of

STEPS = 8  # grid: shares in eighths
TRIALS = 2000
CAUTION = 4.0  # standard errors
LEAST_SIGNAL = 0.02  # share of a voxel's variance
TINY = np.finfo(float).tiny
Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]


def predict_held_out(
    features: np.ndarray,
    y: np.ndarray,
    estimators: Mapping[str, Estimator],
    wanted: Sequence[str],
    n_folds: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Every estimator's predictions of images it was not fitted to.

    Parameters
    ----------
    features : ndarray (S, E)
    y : ndarray (n_voxels, S)
    estimators : mapping of str to callable (features, y) -> weights (n_voxels, E + 1)
    wanted : sequence of str
    n_folds, seed : int

    Returns
    -------
    dict of str to ndarray (n_voxels, S)
    """
    out = {m: np.empty_like(y) for m in wanted}
    for test in folds_of(len(features), n_folds, seed + 1):
        keep = np.setdiff1d(np.arange(len(features)), test)
        fitted = y[:, keep]
        varies = np.ptp(fitted, axis=1) > 0
        for m in wanted:
            out[m][:, test] = fitted.mean(axis=1, keepdims=True)
            if varies.any():
                weights = estimators[m](features[keep], fitted[varies])
                out[m][np.ix_(varies, test)] = weights @ with_ones(features[test]).T
    return out


def choose_shares(
    held_out: Mapping[str, np.ndarray],
    y: np.ndarray,
    signal: np.ndarray | None = None,
    reference: str | None = None,
) -> dict[str, np.ndarray]:
    """Shares of the estimators for every voxel.

    Parameters
    ----------
    held_out : mapping of str to ndarray (n_voxels, S)
        Held-out predictions.
    y : ndarray (n_voxels, S)
    signal : ndarray (n_voxels,), optional
        Signal variance of each voxel, as estimated; default: the variance of the betas.
    reference : str, optional
        The estimator that others have to beat; default: the one that is best alone.

    Returns
    -------
    dict of str to ndarray (n_voxels,)
        Sums to 1.
    """
    names = list(held_out)
    grid = np.array([g for g in product(range(STEPS + 1), repeat=len(names)) if sum(g) == STEPS]) / STEPS
    errors = np.stack([held_out[m] - y for m in names], axis=1)  # (n_voxels, n_methods, S)
    total = np.maximum(y.var(axis=1), TINY)
    signal = total if signal is None else np.clip(signal, LEAST_SIGNAL * total, total)
    start = None if reference is None else int(grid[:, names.index(reference)].argmax())
    cautious, level = _all_voxels(errors, np.sqrt(signal * total), grid, start)
    best = cautious.argmin()
    gram = errors @ errors.transpose(0, 2, 1)
    loss = np.einsum("gm,vmn,gn->vg", grid, gram, grid, optimize=True)
    # Noise of a voxel: its smallest loss, so that one that is unlike the others is not taken for noisy.
    own = -0.5 * y.shape[1] * loss / np.maximum(loss.min(axis=1, keepdims=True), TINY)
    share = own - 0.5 * TRIALS * cautious / max(level[best], TINY)
    share = np.exp(share - share.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return dict(zip(names, (share @ grid).T, strict=True))


def _all_voxels(
    errors: np.ndarray, unit: np.ndarray, grid: np.ndarray, start: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """U and mean L of every grid point; `start` is the reference's, or that of the best estimator alone."""
    scaled = errors / np.sqrt(unit)[:, None, None]
    by_image = scaled.transpose(2, 1, 0) @ scaled.transpose(2, 0, 1) / len(unit)  # (S, n_methods, n_methods)
    loss = np.einsum("gm,smn,gn->gs", grid, by_image, grid, optimize=True)
    level = loss.mean(axis=1)
    if start is None:
        alone = np.flatnonzero(grid.max(axis=1) == 1)
        start = int(alone[level[alone].argmin()])
    more = loss - loss[start]
    deviation = more.std(axis=1, ddof=1) / np.sqrt(errors.shape[2])
    return more.mean(axis=1) + CAUTION * deviation, level
