# SPDX-License-Identifier: Apache-2.0
"""Positive semi-definite covariances of signal and noise that together explain the data.

By turns, with the published weights a and b (``a + b / t = 1``) and tau the trials that an average holds:

    cSb = PSD(M),  M = cS + (cN - cNb) / tau          cNb = PSD(a cN + b (cS + cN / tau - cSb))

until both repeat.  PSD clips eigenvalues at 0.  Two things spare most of the eigendecompositions:

* the noise has few negative eigenvalues, if any: `negative_pairs` finds these alone;
* with even repeats (tau = t) and ``M = V W V'`` in the first round, that of the second is ``V W' V' - u u'``,
  where W' shrinks negative eigenvalues by ``1 - b / t`` and u holds the few eigenvectors clipped from the
  noise.  Without any the first round is the last.  Otherwise its positive part is ``(M + |M|) / 2`` with

      |M| = 2/pi int_0^inf [1 - tau Im (M - i tau)^-1] dtau

  and the resolvent of a diagonal matrix less ``u u'`` is known in closed form (`positive_part_change`): the
  change is a matrix of low rank, found to rounding without an eigendecomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, eigh_tridiagonal
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from conform_app.psn import published
from conform_app.psn.dense import CPU, Dense, add_product, lent_triangle, release, row_blocks, symmetrise

_MAX_ROUNDS = 100
_SAME = 0.999  # Pearson r between rounds at which the iteration stops
LARGE = 400
"""Units from which shortcuts pay."""
_FEW = 64  # negative eigenvalues looked for one by one
_STEPS = 400  # of the Lanczos iteration
# Sum over tau: from and to these multiples of the largest eigenvalue, in these steps of log tau.
_LEAST_TAU, _MOST_TAU, _STEP_TAU = 1e-12, 1e10, 0.36
_RANK_PER_VECTOR = 72  # of a Cauchy matrix to rounding

Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Biconvex:
    """Result of the alternation: both covariances, the rounds, the eigenpairs behind the signal's.

    ``signal_eig``: eigenvalues (descending, not clipped) and eigenvectors, None where none were needed.
    """

    signal: np.ndarray
    noise: np.ndarray
    n_iter: int
    signal_eig: Pairs | None


def biconvex(
    c_n: np.ndarray,
    c_s: np.ndarray,
    c_d: np.ndarray | None,
    n_averaged: float | np.ndarray,
    t_mean: float,
    n_conditions: int,
    *,
    reference: bool = False,
    dense: Dense = CPU,
    keep_eig: bool = True,
) -> Biconvex:
    """Positive semi-definite signal and noise covariances that together explain ``c_d`` and ``c_n``.

    The averages hold the noise covariance divided by ``n_averaged`` (trials, or a value per pair of units).
    ``c_d`` is not needed for a `LARGE` population; there ``signal_eig`` is given with ``keep_eig`` only.
    """
    c, t = n_conditions, float(t_mean)
    den = c * t**2 * (t - 1) + c - 1
    a, b = c * (t - 1) * t**2 / den, (c - 1) / den * t  # in the published order of operations
    if reference:
        return _plain(c_n, c_s, c_d, n_averaged, a, b, lambda m: (published.to_psd(m), None))
    if len(c_n) < LARGE:
        return _plain(c_n, c_s, c_d, n_averaged, a, b, nearest_psd)
    even = np.ndim(n_averaged) == 0 and n_averaged == t_mean
    if even and dense.is_positive(c_s):
        return Biconvex(c_s, c_n, 0, None)
    return _rounds(c_n, c_s, n_averaged, t, a, b, even, dense, keep_eig)


def _rounds(c_n, c_s, n_averaged, t, a, b, even, dense, keep_eig) -> Biconvex:
    """Round by round, each name gone before the next arrays need its memory."""
    signal, noise, old_s, old_n = None, c_n, c_s, c_n
    pairs, clipped, n_iter = None, None, 0
    for _ in range(_MAX_ROUNDS):
        shortcut = even and n_iter == 1 and not keep_eig and _shortcut_pays(clipped, len(c_n))
        pairs = pairs if shortcut else None
        if n_iter:
            old_s, old_n = signal.astype(np.float32), noise.astype(np.float32)  # enough for a correlation
            release()
        if shortcut:
            noise = None
            _add_second_signal(signal, pairs, clipped, b, t, dense)
            pairs = None
        else:
            target = _less_noise(c_s, c_n, noise, n_averaged)
            signal = noise = None
            signal, pairs = to_psd(target, dense)
            del target
        same_s, old_s = _settled(signal, old_s), None
        release()
        noise, clipped = to_psd(_rest(c_n, c_s, signal, n_averaged, a, b), dense, few=even)
        if same_s and _settled(noise, old_n):
            break
        n_iter += 1
        if even and n_iter == 1 and clipped is None:  # nothing would change any more
            break
    return Biconvex(signal, noise, n_iter, pairs if keep_eig else None)


def _plain(c_n, c_s, c_d, n_averaged, a, b, psd) -> Biconvex:
    """Round by round as published; each way to clip gives a matrix and, or None, eigenpairs."""
    old_n, old_s, noise, n_iter, pairs = c_n, c_s, c_n, 0, None
    for _ in range(_MAX_ROUNDS):
        signal, pairs = psd(c_d - noise / n_averaged)
        noise, _unused = psd(a * c_n + b * (c_d - signal))
        if _settled(signal, old_s) and _settled(noise, old_n):
            break
        n_iter += 1
        old_s, old_n = signal, noise
    return Biconvex(signal, noise, n_iter, pairs)


def nearest_psd(m: np.ndarray) -> tuple[np.ndarray, Pairs | None]:
    """The nearest positive semi-definite matrix, with the eigenpairs of m if they were needed."""
    m = (m + m.T) / 2
    if published.is_positive(m):
        return m, None
    w, v = np.linalg.eigh(m)
    n_negative = int(np.searchsorted(w, 0.0))
    if n_negative < len(m) // 2:
        bad = v[:, :n_negative]
        out = m - (bad * w[:n_negative]) @ bad.T
    else:
        good = v[:, n_negative:]
        out = (good * w[n_negative:]) @ good.T
    return (out + out.T) / 2, (w[::-1], v[:, ::-1].copy(order="F"))


def _less_noise(c_s, c_n, noise, n_averaged) -> np.ndarray:
    """``cS + (cN - noise) / tau``, in place of the noise where that is not cN itself."""
    if noise is c_n:
        return c_s.copy()
    out = np.subtract(c_n, noise, out=noise)
    out /= n_averaged
    out += c_s
    return out


def _rest(c_n, c_s, signal, n_averaged, a, b) -> np.ndarray:
    """``a cN + b (cS + cN / tau - signal)``."""
    out = np.empty_like(c_n)
    for rows in row_blocks(*out.shape):
        tau = n_averaged if np.ndim(n_averaged) == 0 else n_averaged[rows]
        out[rows] = (a + b / tau) * c_n[rows] + b * (c_s[rows] - signal[rows])
    return out


def to_psd(m: np.ndarray, dense: Dense = CPU, *, few: bool = False) -> tuple[np.ndarray, Pairs | None]:
    """The nearest positive semi-definite matrix, with the eigenpairs of m if they were needed.

    Parameters
    ----------
    m : ndarray, (n, n) float64
        Symmetric; destroyed.
    few : bool, default False
        Look for few negative eigenvalues first; then these alone are given.
    """
    symmetrise(m)
    if dense.is_positive(m):
        return m, None
    pairs = negative_pairs(m) if few and dense.place is None else None
    if pairs is not None:
        w, v = pairs
        add_product(m, v * -w, v)
    else:
        w, v = dense.eigh(m)
        pairs = w, v
        good = v[:, : np.count_nonzero(w > 0)] * np.sqrt(w[w > 0])
        m = dense.gram(good)
        del good
        release()
        if few:
            pairs = (w[w < 0], v[:, w < 0]) if (w < 0).any() else None
    return m, pairs


def negative_pairs(m: np.ndarray) -> Pairs | None:
    """Negative eigenvalues and their eigenvectors, if there are few; None if not, or in doubt.

    Lanczos iteration on ``(m - sigma)^-1``, where sigma is a little below the lowest eigenvalue.  That none
    is missing shows in that m has a Cholesky factor once the eigenvalues found change their sign.  All this
    happens in the place of m, which afterwards is what it was to rounding.
    """
    start = np.random.RandomState(0).standard_normal(len(m)).astype(m.dtype)
    try:
        lowest = eigsh(m, k=1, which="SA", tol=1e-2, v0=start, maxiter=100)[0][0]
    except ArpackNoConvergence:
        return None
    if lowest >= 0:
        return None
    v = None
    for margin in (0.1, 1.0):
        sigma = lowest * (1 + margin)
        with lent_triangle(m):
            m[np.diag_indices_from(m)] -= sigma
            try:
                solve = CPU.solver(m)
            except LinAlgError:
                continue
            v = _lanczos(solve, start, -1 / sigma)
        break
    if v is None:
        return None
    w, rotation = np.linalg.eigh(v.T @ (m @ v))
    v = v @ rotation
    add_product(m, v * (-2 * w), v)
    complete = CPU.is_positive(m)
    add_product(m, v * (2 * w), v)
    return (w, v) if complete and (w < 0).all() else None


def _lanczos(apply, start: np.ndarray, cut: float) -> np.ndarray | None:
    """Eigenvectors with eigenvalues above the cut of a positive definite operator, None beyond `_FEW`."""
    basis = np.empty((_STEPS + 1, len(start)), start.dtype)
    least = 1e-13 if start.dtype == np.float64 else 1e-5
    basis[0] = start / np.linalg.norm(start)
    alpha, beta = np.zeros(_STEPS), np.zeros(_STEPS)
    for k in range(_STEPS):
        new = apply(basis[k])
        alpha[k] = new @ basis[k]
        for _ in range(2):  # against all earlier ones, twice for rounding
            new -= basis[: k + 1].T @ (basis[: k + 1] @ new)
        beta[k] = np.linalg.norm(new)
        if not beta[k] > 0:
            return None
        basis[k + 1] = new / beta[k]
        if k % 10 == 9:
            theta, s = eigh_tridiagonal(alpha[: k + 1], beta[:k])
            error = beta[k] * np.abs(s[-1])
            above = theta > cut
            if np.count_nonzero(above) > _FEW:
                return None
            others = (theta + error)[~above]
            if np.all(error[above] < least * theta[-1]) and others.size and others.max() < cut:
                return (basis[: k + 1].T @ s[:, above]).astype(start.dtype, copy=False)
    return None


def _shortcut_pays(clipped: Pairs, n: int) -> bool:
    return 2 * _RANK_PER_VECTOR * clipped[0].size <= n


def _add_second_signal(
    signal: np.ndarray, pairs: Pairs, clipped: Pairs, b: float, t: float, dense: Dense
) -> None:
    """Turn the signal's covariance of the first round into that of the second, in place."""
    w, v = pairs
    mu, y = clipped
    u, w = ((v.T @ y) * np.sqrt(-mu / t)).astype(np.float64), w.astype(np.float64)
    x, k = positive_part_change(np.where(w < 0, w * (1 - b / t), w), u)
    x, k = dense.product(v, x.astype(v.dtype, copy=False)), k.astype(v.dtype, copy=False)
    add_product(signal, x @ k, x)


def positive_part_change(w: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How the positive part of ``diag(w)`` changes when ``u u'`` is subtracted.

    Parameters
    ----------
    w : ndarray, (n,)
    u : ndarray, (n, k)

    Returns
    -------
    x, core : ndarray, (n, q) and (q, q)
        ``PSD(diag(w) - u u') - PSD(diag(w)) = x core x'``.

    Notes
    -----
    With ``R = (diag(w) - i tau)^-1`` the change of the resolvent is ``R u (1 - u' R u)^-1 u' R``.  The
    integral over tau is a sum over equidistant log tau, whose error falls off exponentially.  The columns of
    R for all tau, functions of w alone, span few dimensions (rank of a Cauchy matrix).
    """
    n, k = u.shape
    top = np.abs(w).max()
    tau = np.exp(np.arange(np.log(top * _LEAST_TAU), np.log(top * _MOST_TAU), _STEP_TAU))
    r = tau / (w[:, None] - 1j * tau)  # tau R
    inner = np.stack([u.T @ (r[:, j, None] * u) for j in range(tau.size)]) / tau[:, None, None]
    s = np.linalg.inv(np.eye(k) - inner).reshape(tau.size, k * k)
    q, size, right = np.linalg.svd(np.concatenate([r.real, r.imag], axis=1), full_matrices=False)
    keep = size > 1e-15 * size[0]
    q = q[:, keep]
    re, im = np.split(size[keep, None] * right[keep], 2, axis=1)
    rank = len(re)
    even = re[:, None] * re - im[:, None] * im
    odd = re[:, None] * im + im[:, None] * re
    core = even.reshape(-1, tau.size) @ s.imag + odd.reshape(-1, tau.size) @ s.real
    core = core.reshape(rank, rank, k, k).transpose(0, 2, 1, 3).reshape(rank * k, rank * k)
    full = np.zeros((rank * k + k, rank * k + k))
    full[: rank * k, : rank * k] = core * (-_STEP_TAU / np.pi)
    full[rank * k :, rank * k :] = -0.5 * np.eye(k)
    x = np.concatenate([(q[:, :, None] * u[:, None]).reshape(n, rank * k), u], axis=1)
    return x, (full + full.T) / 2


def _settled(new: np.ndarray, old: np.ndarray) -> bool:
    if new.size == 1:
        return bool(abs(new.item() - old.item()) < 1e-5)
    mean_new, mean_old = (m.mean(dtype=np.float64) for m in (new, old))
    cross = _dot(new, old) - new.size * mean_new * mean_old
    power = (_dot(new, new) - new.size * mean_new**2) * (_dot(old, old) - new.size * mean_old**2)
    return bool(power > 0 and cross / np.sqrt(power) > _SAME)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of products, in double precision."""
    if a.dtype == b.dtype == np.float64:
        return np.vdot(a, b)
    return sum(
        np.vdot(a[rows].astype(np.float64), b[rows].astype(np.float64)) for rows in row_blocks(*a.shape)
    )
