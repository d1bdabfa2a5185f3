# SPDX-License-Identifier: Apache-2.0
"""GSN and PSN written down plainly: the yardstick of `benchmarks/psn.py`.

This is our own writing of the steps that GSN 1.2 and PSN 0.2 take for the preset "standard" with
``skip_split_half``, on data without missing trials.  It is not the published code.  Every step is done as the
method describes it, an array for each quantity that has a name, without shortcuts and without deliberate
waste:

* 51 shrinkage levels each for noise and data, every candidate formed, factored and held against the points
  left out;
* covariances of trials as a sum of outer products (`numpy.einsum`, as the published "fast" path);
* positive parts by Cholesky, and by eigenvectors where that fails; Pearson's r between rounds;
* the axes by another eigendecomposition, variances along them, the cut, an n x n denoiser, residuals, and
  the split-half curve over numbers of dimensions that the published code computes in every run.

The tests hold it to what the published code gives.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.linalg import solve_triangular

LEVELS = np.linspace(0, 1, 51)
MAX_ROUNDS = 100
MOST_SIZES = 257
"""Numbers of dimensions at which the split-half curve is evaluated, at most."""
LARGEST_FILTER = 1000
"""Units up to which the split-half score of the Wiener filter is computed as well."""


def plain_gsn(data: np.ndarray) -> dict:
    """Covariances of signal and noise of data (n_units, n_conditions, n_trials), by published names."""
    n_conditions, t = data.shape[1:]
    average = data.mean(axis=2)
    order = np.argsort(np.random.RandomState(42).random(n_conditions))
    n_held = round(n_conditions / 5)
    held, train = order[:n_held], order[n_held:]

    residuals = data - average[:, :, None]
    train_cov = noise_covariance(residuals[:, train])
    level_n = best_level(train_cov, residuals[:, held].reshape(len(data), -1))
    c_n = shrunk(noise_covariance(residuals), level_n)

    train_mean = average[:, train].mean(axis=1, keepdims=True)
    train_cov = np.cov(average[:, train])
    level_d = best_level(train_cov, average[:, held] - train_mean)
    c_d = shrunk(np.cov(average), level_d)

    c_s = c_d - c_n / t
    signal_sd = np.sqrt(np.maximum(np.diag(c_s), 0))
    noise_sd = np.sqrt(np.maximum(np.diag(c_n), 0))
    c_sb, c_nb, n_rounds = biconvex(c_n, c_d, c_s, n_conditions, t)
    return {
        "cN": c_n, "cS": c_s, "cNb": c_nb, "cSb": c_sb, "ncsnr": signal_sd / noise_sd,
        "shrinklevelN": level_n, "shrinklevelD": level_d, "numiters": n_rounds,
    }  # fmt: skip


def noise_covariance(residuals: np.ndarray) -> np.ndarray:
    """Mean over conditions of the unbiased covariance over trials."""
    _, n_conditions, t = residuals.shape
    return np.einsum("ict,jct->ij", residuals, residuals) / ((t - 1) * n_conditions)


def shrunk(c: np.ndarray, level: float) -> np.ndarray:
    """The off-diagonal part times the level."""
    out = level * c
    np.fill_diagonal(out, np.diag(c))
    return out


def best_level(c: np.ndarray, points: np.ndarray) -> float:
    """The level under which points (n_units, n_points) are most likely."""
    costs = np.full(LEVELS.size, np.nan)
    for i, level in enumerate(LEVELS):
        try:
            lower = np.linalg.cholesky(shrunk(c, level))
        except np.linalg.LinAlgError:
            continue
        white = solve_triangular(lower, points, lower=True)
        half_log_det = np.log(np.diag(lower)).sum()
        costs[i] = np.mean((white**2).sum(axis=0) / 2 + half_log_det + len(c) / 2 * np.log(2 * np.pi))
    return float(LEVELS[0] if np.isnan(costs).all() else LEVELS[np.nanargmin(costs)])


def biconvex(c_n, c_d, c_s, n_conditions: int, t: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Positive semi-definite covariances of signal and noise, and the rounds beyond the first."""
    den = n_conditions * t**2 * (t - 1) + n_conditions - 1
    a, b = n_conditions * (t - 1) * t**2 / den, (n_conditions - 1) * t / den
    old_s, old_n, noise, n_rounds = c_s, c_n, c_n, 0
    for _ in range(MAX_ROUNDS):
        signal = positive_part(c_d - noise / t)
        noise = positive_part(a * c_n + b * (c_d - signal))
        if min(similarity(old_s, signal), similarity(old_n, noise)) > 0.999:
            break
        n_rounds += 1
        old_s, old_n = signal, noise
    return signal, noise, n_rounds


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of all entries."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def is_positive(m: np.ndarray) -> bool:
    """Whether a matrix has a Cholesky factor."""
    try:
        np.linalg.cholesky(m)
    except np.linalg.LinAlgError:
        return False
    return True


def positive_part(m: np.ndarray) -> np.ndarray:
    """The nearest positive semi-definite matrix."""
    m = (m + m.T) / 2
    if is_positive(m):
        return m
    w, v = np.linalg.eigh(m)
    m = (v * np.maximum(w, 0)) @ v.T
    m = (m + m.T) / 2
    return m if is_positive(m) else m + 1e-10 * np.eye(len(m))


def plain_psn(data: np.ndarray) -> dict:
    """Preset "standard": signal basis, cut where the trade-off is farthest from a straight line.

    Data (n_units, n_conditions, n_trials); results under the published names.
    """
    data = np.asarray(data, dtype=np.float64)
    t = data.shape[2]
    start = time.process_time()
    gsn = plain_gsn(data)
    gsn_seconds = time.process_time() - start
    average = data.mean(axis=2)
    means = average.mean(axis=1)
    centred = average - means[:, None]

    values, axes = np.linalg.eigh(gsn["cSb"])
    order = np.argsort(values)[::-1]
    values, axes = values[order], axes[:, order]
    peak = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[peak, np.arange(len(values))] < 0, -1, 1)
    signal_var = np.maximum((axes * (gsn["cSb"] @ axes)).sum(axis=0), 0)
    noise_var = np.maximum((axes * (gsn["cNb"] @ axes)).sum(axis=0), 0)

    objective = np.concatenate([[0], np.cumsum(signal_var - noise_var / t)])
    k = tradeoff_cut(objective, np.concatenate([[0], np.cumsum(signal_var)]))

    weights = axes**2
    unit_signal, unit_noise = weights * signal_var, weights * (noise_var / t)
    before = np.stack([unit_signal.sum(axis=1), unit_noise.sum(axis=1)], axis=1)
    after = np.stack([unit_signal[:, :k].sum(axis=1), unit_noise[:, :k].sum(axis=1)], axis=1)

    kept = axes[:, :k]
    denoiser = kept @ kept.T
    denoised = denoiser.T @ centred + means[:, None]
    residuals = data - denoised[:, :, None]
    start = time.process_time()
    tradeoff = recovery_tradeoff(data, axes, means, signal_var, objective, gsn)
    tradeoff_seconds = time.process_time() - start
    return {
        "denoiseddata": denoised, "residuals": residuals, "unit_means": means, "denoiser": denoiser,
        "svnv_before": before, "svnv_after": after, "best_threshold": k, "fullbasis": axes,
        "basis_eigenvalues": values, "signalvar": signal_var, "noisevar": noise_var, "objective": objective,
        "unit_signal_vars": unit_signal, "unit_noise_vars": unit_noise, "signalsubspace": kept,
        "dimreduce": kept.T @ centred, "gsn_result": gsn, "recovery_tradeoff": tradeoff,
        "seconds": {"GSN": gsn_seconds, "split-half curve": tradeoff_seconds},
    }  # fmt: skip


def tradeoff_cut(gain: np.ndarray, signal: np.ndarray) -> int:
    """The k between the best gain and all dimensions that is farthest from the chord."""
    best, last = int(np.argmax(gain)), len(gain) - 1
    if signal[-1] <= 0 or last - best < 2 or gain[best] - gain[-1] <= 1e-12:
        return best
    x = signal[best:] / signal[-1]
    y = (gain[best:] - gain[-1]) / (gain[best] - gain[-1])
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    length = np.hypot(dx, dy)
    if length <= 1e-12:
        return best
    return best + int(np.argmax(np.abs(dx * (y - y[0]) - dy * (x - x[0])) / length))


def recovery_tradeoff(data, axes, means, signal_var, objective, gsn) -> dict:
    """Share of signal kept against agreement of denoised with raw halves, over numbers of dimensions."""
    n_axes, t = axes.shape[1], data.shape[2]
    halves = [data[:, :, first::2].mean(axis=2) - means[:, None] for first in (0, 1)]
    sizes = np.unique(np.round(np.linspace(0, n_axes, min(n_axes + 1, MOST_SIZES))).astype(int))
    projected = [axes.T @ half for half in halves]
    rebuilt = [np.zeros_like(half) for half in halves]
    agreement = np.full(sizes.size, np.nan)
    for i in range(1, sizes.size):
        step = slice(sizes[i - 1], sizes[i])
        for one, coordinates in zip(rebuilt, projected, strict=True):
            one += axes[:, step] @ coordinates[step]
        agreement[i] = both_ways(halves, rebuilt)
    share = np.concatenate([[0], np.cumsum(signal_var)]) / signal_var.sum()
    out = {
        "sizes": sizes,
        "sv_frac": share[sizes],
        "split_half_r": agreement,
        "analytic_sv_frac": share,
        "analytic_recovery": objective,
        "trial_average": np.nanmedian(correlation(*halves)),
    }
    if len(data) <= LARGEST_FILTER:
        total = gsn["cSb"] + gsn["cNb"] / t
        wiener = np.linalg.solve(total, gsn["cSb"]).T
        out["wiener"] = both_ways(halves, [wiener @ half for half in halves])
    return out


def both_ways(halves: list, denoised: list) -> float:
    """Median over units of the correlation of each denoised half with the other, as it is."""
    forth, back = correlation(halves[0], denoised[1]), correlation(denoised[0], halves[1])
    return float(np.nanmedian((forth + back) / 2))


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of rows."""
    a, b = (m - m.mean(axis=1, keepdims=True) for m in (a, b))
    return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
