# SPDX-License-Identifier: Apache-2.0
"""Orthonormal axes across units, in which signal and noise are told apart by truncation.

``signal``: eigenvectors of cSb; ``difference``: of ``cSb - cNb / T``; ``noise``: of cNb; ``pca``: of the
covariance of the trial averages; ``random``: an orthonormal matrix from a fixed seed; or the columns of a
given matrix. Columns descend by eigenvalue; the entry of largest magnitude of each is positive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from conform_app.errors import UsageError
from conform_app.psn.dense import Dense, row_blocks

BASES = ("signal", "difference", "noise", "pca", "random")
ORDERINGS = ("eigenvalues", "signalvariance", "prediction", "measured")


@dataclass(frozen=True, eq=False)
class Basis:
    """Axes and what they carry.

    Attributes
    ----------
    axes : ndarray, (n_units, D) float64
        Orthonormal columns.
    eigenvalues : ndarray, (D,) or None
        None for axes that are no eigenvectors.
    signal_var, noise_var : ndarray, (D,)
        Signal and single-trial noise variance along each axis.
    """

    axes: np.ndarray
    eigenvalues: np.ndarray | None
    signal_var: np.ndarray
    noise_var: np.ndarray

    def ordered(self, order: np.ndarray) -> Basis:
        """The same axes in another order."""
        return Basis(
            self.axes[:, order],
            None if self.eigenvalues is None else self.eigenvalues[order],
            self.signal_var[order],
            self.noise_var[order],
        )

    def signed(self) -> Basis:
        """The same axes with the entry of largest magnitude positive."""
        return replace(self, axes=fix_signs(self.axes))


def make_basis(
    kind: str | np.ndarray,
    signal_cov: np.ndarray,
    noise_cov: np.ndarray,
    averages: np.ndarray,
    n_trials: float,
    *,
    eigenvalues: np.ndarray | None = None,
    signal_eig: tuple[np.ndarray, np.ndarray] | None = None,
    dense: Dense | None = None,
) -> Basis:
    """Build axes and the variances along them, in descending order of eigenvalue.

    Parameters
    ----------
    kind : str or ndarray, (n_units, D)
        One of `BASES`, or columns to be made orthonormal.
    signal_cov, noise_cov : ndarray, (n_units, n_units)
    averages : ndarray, (n_units, n_conditions)
        Trial averages (only for "pca").
    n_trials : float
        Trials per average (T).
    eigenvalues : ndarray, (D,), optional
        Of a given matrix.
    signal_eig : tuple, optional
        Eigenvalues (descending, unclipped) and eigenvectors whose positive part is signal_cov; spares an
        eigendecomposition and orders its null space.  Signs of the eigenvectors change in place.
    dense : Dense, optional
        Where to compute, by the shortest way.  By default in the published order of arithmetic.
    """
    axes, values = make_axes(
        kind, signal_cov, noise_cov, averages, n_trials,
        eigenvalues=eigenvalues, signal_eig=signal_eig, dense=dense,
    )  # fmt: skip
    if dense is None:
        signal, noise = variance_along(axes, signal_cov), variance_along(axes, noise_cov)
    else:
        noise = dense.variance_along(axes, noise_cov)
        if kind_of(kind) == "signal":
            signal = values
        elif kind_of(kind) == "difference":
            signal = values + noise / n_trials  # cSb b = lambda b + cNb b / T
        else:
            signal = dense.variance_along(axes, signal_cov)
    return Basis(axes, values, np.maximum(signal, 0.0), np.maximum(noise, 0.0))


def kind_of(kind: str | np.ndarray) -> str:
    """Name of a basis, "custom" for a matrix."""
    return kind if isinstance(kind, str) else "custom"


def make_axes(
    kind: str | np.ndarray,
    signal_cov: np.ndarray,
    noise_cov: np.ndarray,
    averages: np.ndarray,
    n_trials: float,
    *,
    eigenvalues: np.ndarray | None = None,
    signal_eig: tuple[np.ndarray, np.ndarray] | None = None,
    dense: Dense | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Axes and eigenvalues alone, descending; parameters as in `make_basis`."""
    if not isinstance(kind, str):
        axes = orthonormal_columns(kind)
        values = None if eigenvalues is None else np.asarray(eigenvalues, dtype=float)
    elif kind == "random":
        n = len(signal_cov)
        axes, values = np.linalg.qr(np.random.RandomState(42).randn(n, n))[0], None
    elif kind == "signal" and signal_eig is not None:
        values, axes = np.maximum(signal_eig[0], 0.0), fix_signs(signal_eig[1], overwrite=True)
    elif dense is None:
        values, axes = eigenpairs(_matrix_of(kind, signal_cov, noise_cov, averages, n_trials))
    else:
        m = _matrix_of(kind, signal_cov, noise_cov, averages, n_trials)
        values, axes = dense.eigh(m.copy() if m is signal_cov or m is noise_cov else m)
        axes = fix_signs(axes, overwrite=True)
    return axes, values


def _matrix_of(
    kind: str, signal_cov: np.ndarray, noise_cov: np.ndarray, averages: np.ndarray, n_trials: float
) -> np.ndarray:
    if kind == "signal":
        return signal_cov
    if kind == "difference":
        out = noise_cov / n_trials
        return np.subtract(signal_cov, out, out=out)
    if kind == "noise":
        return noise_cov
    if kind == "pca":
        centred = averages - averages.mean(axis=1, keepdims=True)
        return centred @ centred.T / (averages.shape[1] - 1)
    raise UsageError(f"Basis {kind!r} is not known.", f"Choose one of {', '.join(BASES)}, or give a matrix.")


def eigenpairs(m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and -vectors of a symmetric matrix, descending, with fixed signs."""
    w, v = np.linalg.eigh((m + m.T) / 2)
    order = np.argsort(w)[::-1]
    return w[order], fix_signs(v[:, order])


def fix_signs(axes: np.ndarray, *, overwrite: bool = False) -> np.ndarray:
    """Flip columns so that the entry of largest magnitude is positive."""
    if axes.size == 0:
        return axes
    axes = axes if overwrite else axes.copy(order="K")
    for columns in row_blocks(axes.shape[1], len(axes)):
        block = axes[:, columns]
        peak = block[np.abs(block).argmax(axis=0), np.arange(block.shape[1])]
        block *= np.where(peak < 0, -1, 1)
    return axes


def orthonormal_columns(columns: np.ndarray) -> np.ndarray:
    """Columns of unit length, made orthogonal by QR where they are not."""
    axes = np.real(np.asarray(columns)).astype(np.float64)
    norm = np.linalg.norm(axes, axis=0)
    axes = axes / np.where(norm > 0, norm, 1.0)
    gram = axes.T @ axes
    if np.abs(gram - np.eye(len(gram))).max(initial=0.0) > 1e-10:
        axes = np.linalg.qr(axes)[0]
    return axes


def variance_along(axes: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """``b' cov b`` of each column."""
    return np.einsum("ud,ud->d", axes, cov @ axes)


def order_of(basis: Basis, ordering: str, n_trials: float) -> np.ndarray:
    """Indices that put the axes into the order in which they are kept, best first."""
    if ordering == "eigenvalues" and basis.eigenvalues is not None:
        key = basis.eigenvalues
    elif ordering in ("eigenvalues", "signalvariance"):  # axes that are no eigenvectors go by signal variance
        key = basis.signal_var
    elif ordering == "prediction":
        key = basis.signal_var - basis.noise_var / n_trials
    else:
        raise UsageError(f"Ordering {ordering!r} is not known.", f"Choose one of {', '.join(ORDERINGS)}.")
    return np.argsort(key)[::-1]


def measured_signal(axes: np.ndarray, x: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Signal variance along each axis taken from the projected data rather than from a covariance.

    Variance over conditions of the trial averages minus the mean trial variance over the number of trials,
    both unbiased, clipped at 0; ``x`` (n_units, n_conditions, n_trials), ``there`` its valid trials.  Where a
    condition has none that all units have, averages are those of the trials that each unit has.
    """
    known = there[None] if there.any(axis=1).all() else ~np.isnan(x)
    counts = known.sum(axis=2)
    means = axes.T @ (np.where(known, x, 0.0).sum(axis=2) / counts)
    within = np.zeros(axes.shape[1])
    repeated = np.flatnonzero(there.sum(axis=1) > 1)
    for c in repeated:
        y = axes.T @ x[:, c, there[c]]
        within += y.var(axis=1, ddof=1)
    noise = within / max(repeated.size, 1)
    return np.maximum(means.var(axis=1, ddof=1) - noise * np.mean(1.0 / counts), 0.0)
