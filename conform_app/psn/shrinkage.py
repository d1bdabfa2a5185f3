# SPDX-License-Identifier: Apache-2.0
"""How far to shrink a covariance towards its diagonal: all levels from one eigendecomposition.

For ``c = F F'`` (F: n x r) and ``d = diag(c)`` the candidates are ``S(s) = s c + (1 - s) diag(d)``.
Whitened by the diagonal, ``W = d^-1/2 F``, they share their eigenvectors: ``d^-1/2 S(s) d^-1/2 = (1 - s) I
+ s W W'`` has the eigenvalues ``(1 - s) + s lam_j`` on the span of W and ``1 - s`` on the rest.  So with
the squared coordinates of the held-out points in that basis, the Gaussian negative log-likelihood of every
level costs O(n).

    nll(s) = 1/2 mean_p [p' S(s)^-1 p] + 1/2 log det S(s) + n/2 log 2 pi

r < n: eigenvectors of the r x r Gram matrix W'W;  r >= n: of the n x n correlation matrix.  All in float64.
"""

from __future__ import annotations

import warnings

import numpy as np

from conform_app.psn.dense import CPU, Dense

DEFAULT_LEVELS = np.linspace(0.0, 1.0, 51)
_HELD_OUT = 5  # one in five conditions is held out


def split_order(m: int) -> np.ndarray:
    """The fixed (published) permutation of m things by which held-out data are chosen.

    It depends on m alone and leaves the global random state alone.
    """
    return np.argsort(np.random.RandomState(42).random(m))


def held_out_mask(n_conditions: int) -> np.ndarray:
    """True for the held-out fifth of the conditions."""
    mask = np.zeros(n_conditions, dtype=bool)
    mask[split_order(n_conditions)[: int(np.round(n_conditions / _HELD_OUT))]] = True
    return mask


def nll_of_levels(
    factor: np.ndarray, points: np.ndarray, n_points: int, levels: np.ndarray, dense: Dense = CPU
) -> np.ndarray:
    """Mean negative log-likelihood of held-out points for each shrinkage level.

    Parameters
    ----------
    factor : ndarray, (n_units, r) float64
        F with ``F F'`` the training covariance.
    points : ndarray, (n_units, m) float64
        Held-out deviations, or fewer vectors with the same sum of outer products.
    n_points : int
        Number of held-out points that `points` stands for.
    levels : ndarray, (n_levels,) float64
    dense : Dense
        Where to compute.

    Returns
    -------
    ndarray, (n_levels,) float64
        NaN where the covariance is singular.
    """
    n, r = factor.shape
    out = np.full(len(levels), np.nan)
    d = np.einsum("ij,ij->i", factor, factor)
    if n_points == 0 or r == 0 or not np.all(d > 0):
        return out
    white = factor / np.sqrt(d)[:, None]
    z = points / np.sqrt(d)[:, None]
    if r < n:
        lam, q = dense.eigh(dense.gram(white.T))
        keep = lam > max(lam[0], 0.0) * n * np.finfo(float).eps
        lam, q = lam[keep], q[:, keep]
        coordinates = q.T @ dense.product(white.T, z)
        power = np.einsum("ij,ij->i", coordinates, coordinates) / (lam * n_points)
        rest = max(np.einsum("ij,ij->", z, z) / n_points - power.sum(), 0.0)
    else:
        lam, q = dense.eigh(dense.gram(white))
        coordinates = q.T @ z
        power = np.einsum("ij,ij->i", coordinates, coordinates) / n_points
        rest = 0.0
    nullity = n - lam.size
    tiny = n * np.finfo(float).eps
    constant = np.log(d).sum() + n * np.log(2 * np.pi)
    for i, s in enumerate(levels):
        e = (1 - s) + s * lam
        if e.min() <= tiny * e.max() or (nullity and 1 - s <= tiny):
            continue
        quadratic, logdet = (power / e).sum(), np.log(e).sum()
        if nullity:
            quadratic += rest / (1 - s)
            logdet += nullity * np.log(1 - s)
        out[i] = 0.5 * (quadratic + logdet + constant)
    return out


def nll_of_scales(variance: float, mean_square: float, levels: np.ndarray) -> np.ndarray:
    """The same for a single unit in the published sense, where the level scales the variance itself."""
    out = np.full(len(levels), np.nan)
    scaled = np.asarray(levels, dtype=float) * variance
    ok = scaled > 0
    out[ok] = 0.5 * (mean_square / scaled[ok] + np.log(scaled[ok]) + np.log(2 * np.pi))
    return out


def best_level(nll: np.ndarray, levels: np.ndarray, what: str) -> float:
    """The level with the lowest finite likelihood cost (the smallest on ties).

    Warns and falls back on the first level if no candidate is regular.
    """
    if len(levels) == 1:
        return float(levels[0])
    if np.isnan(nll).all():
        warnings.warn(
            f"No shrinkage level gives a regular {what} covariance; level {levels[0]:g} is used.",
            RuntimeWarning,
            stacklevel=3,
        )
        return float(levels[0])
    return float(levels[np.nanargmin(nll)])


def shrunk(c: np.ndarray, level: float, *, reference: bool = False) -> np.ndarray:
    """Scale the off-diagonal part of c by the level, in place.

    One unit alone has no off-diagonal part; with ``reference=True`` its variance is scaled, as published.
    """
    if c.shape[0] == 1:
        if reference:
            c *= level
        return c
    diagonal = c.diagonal().copy()
    c *= level
    np.fill_diagonal(c, diagonal)
    return c
