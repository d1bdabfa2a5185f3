# SPDX-License-Identifier: Apache-2.0
"""PSN as it was until December 2025: axes of one matrix, and a cut that is always cross-validated.

Axes are those of all trials; only averages are held out.  With ``P = B'(train - m)`` and ``Q = B' test``, the
score of the first k axes for unit u in fold j is minus the mean over conditions of ``(B_k P - test)_u^2``;
unit means m are subtracted from the training side alone, as published, so a unit's constant m_u enters its
scores.  `cv_mode` 0 leaves out one trial, 1 trains on one trial, -1 keeps a share of the magnitude instead.
"""

from __future__ import annotations

import numpy as np

from conform_app.psn.basis import measured_signal, orthonormal_columns
from conform_app.psn.compat import _denoiser, perform_gsn
from conform_app.psn.compat_options import check_data

RANKINGS = ("signal_variance", "eigenvalue", "eigenvalue_asc", "snr", "signal_specificity")
DEFAULTS = {
    "cv_mode": 0,
    "cv_threshold_per": "unit",
    "cv_thresholds": None,
    "ranking": "signal_variance",
    "unit_groups": None,
    "truncate": 0,
    "mag_frac": 0.95,
    "denoisingtype": 0,
    "gsn_args": None,
}


def psn_crossvalidated(data: np.ndarray, V: int | np.ndarray = 0, opt: dict | None = None) -> dict:
    """Denoise by the rules of the cross-validated releases.

    Parameters
    ----------
    data : ndarray, (n_units, n_conditions, n_trials)
        Without missing trials.
    V : int or ndarray, (n_units, D)
        Axes: eigenvectors of 0 the signal covariance, 1 the signal covariance in the metric of the noise
        (pinv(cNb) cSb, symmetrised), 2 the noise covariance, 3 the covariance of the trial averages; 4 random
        ones; or the axes themselves.
    opt : dict, optional
        cv_mode (0, 1, -1), cv_threshold_per ("unit", "population"), cv_thresholds (numbers of axes), ranking
        (one of `RANKINGS`), unit_groups, truncate (leading axes skipped), mag_frac (cv_mode -1),
        denoisingtype (0: averages, 1: every trial), gsn_args.

    Returns
    -------
    dict
        denoiseddata, best_threshold (for cv_mode -1 the axes kept), denoiser, fullbasis, mags, unit_means,
        and with cross-validation cv_thresholds and cv_scores (n_thresholds, n_trials, n_units).

    Raises
    ------
    ValueError
        If data or an option cannot be used.
    """
    data = check_data(data).astype(np.float64)
    if not np.isfinite(data).all():
        raise ValueError("The cross-validated releases know no missing trials.")
    opt = _checked(opt or {}, len(data))
    mean = data.mean(axis=2)
    m = mean.mean(axis=1)
    axes, values = _axes(V, data, mean, opt)
    order, mags = _ranked(axes, values, data, opt["ranking"])
    skip = opt["truncate"]
    axes = axes[:, order]
    out = {"fullbasis": axes, "mags": mags, "unit_means": m}
    used = axes[:, skip:]
    if opt["cv_mode"] == -1:
        k = max(_by_magnitude(mags, opt["mag_frac"]) - skip, 0)
        out["best_threshold"] = np.arange(skip, skip + k)
    else:
        thresholds = _thresholds(opt["cv_thresholds"], axes.shape[1])
        scores = _scores(data, used, m, thresholds, opt["cv_mode"] == 1)
        k = _best(scores, thresholds, opt)
        out |= {"best_threshold": k, "cv_thresholds": thresholds, "cv_scores": scores}
    out["denoiser"] = _denoiser(used, np.minimum(k, used.shape[1]))
    source = mean[:, :, None] if opt["denoisingtype"] == 0 else data
    flat = source.reshape(len(data), -1) - m[:, None]
    clean = (out["denoiser"].T @ flat + m[:, None]).reshape(source.shape)
    out["denoiseddata"] = clean[:, :, 0] if opt["denoisingtype"] == 0 else clean
    return out


def _checked(given: dict, n_units: int) -> dict:
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"Unknown options {unknown}; there are {sorted(DEFAULTS)}.")
    opt = {**DEFAULTS, **given}
    for name, known in (
        ("cv_mode", (0, 1, -1)),
        ("cv_threshold_per", ("unit", "population")),
        ("ranking", RANKINGS),
        ("denoisingtype", (0, 1)),
    ):
        if opt[name] not in known:
            raise ValueError(f"{name} must be one of: {', '.join(map(str, known))}")
    if not (isinstance(opt["truncate"], int | np.integer) and opt["truncate"] >= 0):
        raise ValueError("truncate must be a non-negative integer")
    if not 0 < opt["mag_frac"] <= 1:
        raise ValueError("mag_frac must be above 0 and at most 1")
    if opt["unit_groups"] is not None and np.size(opt["unit_groups"]) != n_units:
        raise ValueError(f"unit_groups must have length equal to nunits ({n_units})")
    return opt


def _axes(
    V: int | np.ndarray, data: np.ndarray, mean: np.ndarray, opt: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Axes by descending size of their eigenvalues, columns with a mean that is not negative."""
    if isinstance(V, np.ndarray):
        axes = orthonormal_columns(V)
        return axes, np.ones(axes.shape[1])
    if V == 4:
        n = len(data)
        return np.linalg.qr(np.random.RandomState(42).randn(n, n))[0], np.ones(n)
    if V == 3:
        matrix = np.cov(mean)
    elif V in (0, 1, 2):
        gsn = perform_gsn(data, opt["gsn_args"] or {})
        matrix = gsn["cNb"] if V == 2 else gsn["cSb"]
        if V == 1:
            matrix = np.linalg.pinv(gsn["cNb"]) @ matrix
    else:
        raise ValueError("V must be 0 (signal), 1 (whitened signal), 2 (noise), 3 (pca), 4 (random) or axes")
    w, v = np.linalg.eigh((matrix + matrix.T) / 2)
    order = np.argsort(np.abs(w))[::-1]
    v = v[:, order]
    return v * np.where(v.mean(axis=0) < 0, -1.0, 1.0), np.abs(w[order])


def _ranked(
    axes: np.ndarray, values: np.ndarray, data: np.ndarray, ranking: str
) -> tuple[np.ndarray, np.ndarray]:
    """Order in which axes are kept, and their magnitudes in that order."""
    if ranking in ("eigenvalue", "eigenvalue_asc"):
        order = np.arange(values.size)[:: 1 if ranking == "eigenvalue" else -1]
        return order, values[order]
    there = np.ones(data.shape[1:], dtype=bool)
    signal = measured_signal(axes, data, there)
    if ranking == "signal_variance":
        key = signal
    else:
        projected = np.einsum("ud,uct->dct", axes, data)
        noise = projected.var(axis=2, ddof=1).mean(axis=1)
        if ranking == "snr":
            key = np.sqrt(np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0))
        else:  # shares in percent
            key = 100 * (signal / signal.sum() - noise / noise.sum())
    order = np.argsort(key)[::-1]
    return order, key[order]


def _by_magnitude(mags: np.ndarray, share: float) -> int:
    """The smallest number of axes that hold a share of the magnitude."""
    kept = np.cumsum(mags) / mags.sum()
    return int(np.argmax(kept >= share)) + 1


def _thresholds(given: object, n_dims: int) -> np.ndarray:
    if given is None:
        return np.arange(n_dims + 1)
    found = np.unique(np.asarray(given).astype(int))
    if found.size == 0 or found[0] < 0 or found[-1] > n_dims:
        raise ValueError(f"cv_thresholds must lie between 0 and {n_dims}")
    return found


def _scores(
    data: np.ndarray, axes: np.ndarray, m: np.ndarray, thresholds: np.ndarray, swap: bool
) -> np.ndarray:
    """Scores of all numbers of axes by running sums, (n_thresholds, n_trials, n_units)."""
    n_units, _, n_trials = data.shape
    out = np.empty((thresholds.size, n_trials, n_units))
    total = data.sum(axis=2)
    for j in range(n_trials):
        single, others = data[:, :, j], (total - data[:, :, j]) / (n_trials - 1)
        train, test = (single, others) if swap else (others, single)
        coordinates = axes.T @ (train - m[:, None])
        rebuilt = np.zeros_like(train)
        done = 0
        for i, k in enumerate(thresholds):
            rebuilt += axes[:, done:k] @ coordinates[done:k]
            done = k
            out[i, j] = -((rebuilt - test) ** 2).mean(axis=1)
    return out


def _best(scores: np.ndarray, thresholds: np.ndarray, opt: dict) -> int | np.ndarray:
    by_unit = scores.mean(axis=1)
    if opt["cv_threshold_per"] == "population":
        return int(thresholds[by_unit.mean(axis=1).argmax()])
    if opt["unit_groups"] is not None:
        groups = np.asarray(opt["unit_groups"])
        by_unit = np.stack([by_unit[:, groups == g].mean(axis=1) for g in groups], axis=1)
    return thresholds[by_unit.argmax(axis=0)]
