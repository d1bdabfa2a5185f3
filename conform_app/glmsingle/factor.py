# SPDX-License-Identifier: Apache-2.0
"""Factorisations of one run's design, made once per HRF and shared by all voxels with that HRF.

A trial belongs to one run, so the model of all runs is block diagonal and each run is solved by itself.  With
Q = I - P P' (drifts out) and the thin SVD Q X = U S V':

    betas without other nuisance    b0 = V S^-1 U'y
    their fit                       |Q X b0|^2 = |U'y|^2

Nuisance columns z_1, z_2, ... (orthonormal, off P) enter one after the other (Frisch, Waugh, Lovell): let
e_k be the part of z_k off P, X and e_1..e_(k-1), of unit length.  The betas with the first k columns are

    b_k = b0 - sum_(j<=k) a_j (e_j'y)      with a_j fixed vectors,

so that a whole ladder of 0, 1, ..., K noise regressors costs one fit plus K rank-one updates, and its fit
in the space of U is U'y - D (E'y) with D = S V' A, D'D the loss of explained variance.

Ridge needs the SVD with everything projected out, (Q - Z Z') X = U S V'.

dtype: float64.  Singular values below `RANK_TOL` times the largest are taken as zero: the regressors are
float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RANK_TOL = 1e-6
"""Relative size below which a singular value counts as zero."""


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Least squares for one run and HRF; N trials, rank r, k nuisance columns.

    Attributes
    ----------
    U : (n_volumes, r)
    back : (N, r)
        V S^-1: from U'y to betas.
    forth : (r, N)
        S V': from betas to the fit in the space of U.
    E : (n_volumes, k)
    A : (N, k)
        Nuisance ladder, see the module.
    """

    U: np.ndarray
    back: np.ndarray
    forth: np.ndarray
    E: np.ndarray
    A: np.ndarray


@dataclass(frozen=True, eq=False)
class Ridge:
    """Rotation for ridge regression of one run and HRF: U (n_volumes, r), s (r,), V (N, r)."""

    U: np.ndarray
    s: np.ndarray
    V: np.ndarray


def _thin_svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    keep = s > RANK_TOL * s[0] if s.size and s[0] > 0 else np.zeros(s.size, bool)
    return u[:, keep], s[keep], vt[keep].T


def off(basis: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The part of x off an orthonormal basis."""
    return x - basis @ (basis.T @ x)


def least_squares(x: np.ndarray, poly: np.ndarray, z: np.ndarray) -> LeastSquares:
    """Factor one run's design.

    Parameters
    ----------
    x : (n_volumes, N) array
        Regressors of one HRF.
    poly : (n_volumes, p) array
        Orthonormal drifts.
    z : (n_volumes, k) array
        Orthonormal nuisance columns off ``poly``; zero columns have no effect.
    """
    u, s, v = _thin_svd(off(poly, x.astype(np.float64)))
    back = v / s
    e = np.zeros(z.shape)
    a = np.zeros((x.shape[1], z.shape[1]))
    for k in range(z.shape[1]):
        inside = u.T @ z[:, k]
        rest, ak = z[:, k] - u @ inside, back @ inside
        for _ in range(2):
            onto = e[:, :k].T @ rest
            rest, ak = rest - e[:, :k] @ onto, ak - a[:, :k] @ onto
        length = np.linalg.norm(rest)
        if length > RANK_TOL:  # else the trials already explain this column
            e[:, k], a[:, k] = rest / length, ak / length
    return LeastSquares(u, back, s[:, None] * v.T, e, a)


def ridge(x: np.ndarray, poly: np.ndarray, z: np.ndarray) -> Ridge:
    """Factor one run's design with all nuisance projected out (arguments as in `least_squares`)."""
    return Ridge(*_thin_svd(off(z, off(poly, x.astype(np.float64)))))


def separate_weights(x: np.ndarray, poly: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Least-squares-separate: weights (n_volumes, N) whose product with y gives each trial's beta.

    Trial i is fitted beside one regressor o_i for all other trials of the run: its weights are the part of
    x_i off o_i, divided by their product with x_i (Mumford et al. 2012, NeuroImage 59:2636).
    """
    x = off(z, off(poly, x.astype(np.float64)))
    others = x.sum(axis=1, keepdims=True) - x
    energy = np.einsum("tn,tn->n", others, others)
    onto = np.einsum("tn,tn->n", others, x) / np.where(energy > 0, energy, 1.0)
    alone = x - others * onto
    gain = np.einsum("tn,tn->n", alone, x)
    usable = gain > RANK_TOL**2 * np.einsum("tn,tn->n", x, x).max(initial=0.0)
    return np.where(usable, alone / np.where(usable, gain, 1.0), 0.0)
