# SPDX-License-Identifier: Apache-2.0
"""The published interface: `perform_gsn` and `psn` with the keys, defaults and errors of GSN 1.2 and PSN 0.2.

Scripts written for those packages run on ours unchanged.  Errors are therefore of the built-in types.  What
this does not copy: printing, figures, and the split-half diagnostics (``recovery_tradeoff``).  New code
uses `conform_app.psn.fit_gsn` and `conform_app.psn.fit_psn`, whose defaults are better: here one constant
unit turns off shrinkage for all, the cut is analytic, and n x n denoisers are built.  The rules of the
releases before December 2025, whose cut was cross-validated, are in `conform_app.psn.legacy`.
"""

from __future__ import annotations

import time
import warnings

import numpy as np

from conform_app.errors import DataError
from conform_app.psn.basis import Basis, eigenpairs, make_basis, order_of
from conform_app.psn.compat_options import check_choices, check_data, merge_arguments
from conform_app.psn.covariance import GSNResult, fit_gsn
from conform_app.psn.dense import row_blocks
from conform_app.psn.options import PUBLISHED, PSNOptions
from conform_app.psn.result import wiener_matrix_of
from conform_app.psn.selection import choose_analytic, compare_scores, population_curves
from conform_app.psn.threshold import curves, pick_alpha

_RETURNS = (
    "cN",
    "cNb",
    "cS",
    "cSb",
    "eigvals_difference",
    "eigvals_signal",
    "eigvecs_difference",
    "eigvecs_signal",
)


def perform_gsn(data: np.ndarray, opt: dict | None = None) -> dict:
    """Signal and noise covariances under the published names.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        NaN marks a missing trial.
    opt : dict, optional
        wantshrinkage, shrinklevels, returns, uneven; backend, device, eigh_device and wantverbose are
        accepted.

    Returns
    -------
    dict
        mnN, mnS (1, n_units), ncsnr (n_units,), shrinklevelN, shrinklevelD, numiters, and what `returns`
        names.

    Raises
    ------
    ValueError, AssertionError
        As the published code does.
    """
    opt = {} if opt is None else dict(opt)
    data = np.asarray(data)
    if data.ndim != 3:
        raise ValueError("data must be voxels x conditions x trials (3D)")
    if data.shape[2] < 2:
        raise ValueError("Number of trials must be at least 2.")
    returns = _check_gsn_options(opt)
    uneven = opt.get("uneven", "fast")
    has_gaps = bool(np.isnan(data).any())
    if has_gaps and uneven not in ("fast", "reference", "missing"):
        raise ValueError(f"opt['uneven'] must be 'fast', 'reference', or 'missing'; got {uneven!r}")
    if np.isinf(data).any() or data.shape[1] < 2:
        raise ValueError("array must not contain infs or NaNs")
    fit = _gsn(data, opt, uneven if has_gaps else "fast")
    return _gsn_dict(fit, returns, _trials_of_difference(data, uneven))


def _gsn(data: np.ndarray, opt: dict, uneven: str) -> GSNResult:
    counts = (~np.isnan(data).any(axis=0)).sum(axis=1)
    if uneven != "missing":
        if (counts == 0).any():
            raise AssertionError("all conditions must have at least 1 valid trial")
        if counts.max() < 2:
            raise AssertionError("no condition with at least two valid observations")
    try:
        return fit_gsn(
            data,
            shrink=bool(opt.get("wantshrinkage", True)),
            shrink_levels=opt.get("shrinklevels"),
            uneven=uneven,
            reference=True,
        )
    except DataError as error:
        raise ValueError(str(error)) from error


def _check_gsn_options(opt: dict) -> tuple[str, ...]:
    returns = opt.get("returns")
    returns = ("cN", "cS", "cNb", "cSb") if returns is None else tuple(returns)
    unknown = sorted(set(returns) - set(_RETURNS))
    if unknown:
        raise ValueError(
            f"opt['returns'] contains unknown items {unknown}; valid names are {sorted(_RETURNS)}"
        )
    backend = opt.get("backend", "auto")
    if backend not in ("numpy", "torch", "auto"):
        raise ValueError(f"opt['backend'] must be 'numpy', 'torch', or 'auto'; got {backend!r}")
    if backend == "numpy" and opt.get("device", "cpu") != "cpu":
        raise ValueError("opt['device'] must be 'cpu' with backend='numpy'")
    eigh_device = opt.get("eigh_device", "host")
    if eigh_device not in ("host", "device"):
        raise ValueError(f"opt['eigh_device'] must be 'host' or 'device'; got {eigh_device!r}")
    return returns


def _trials_of_difference(data: np.ndarray, uneven: str) -> float | np.ndarray:
    """Number of trials by which cNb is divided in the eigenvectors of the difference."""
    there = ~np.isnan(data)
    if there.all():
        return float(data.shape[2])
    if uneven != "missing":
        return float(there.all(axis=0).sum(axis=1).mean())
    from conform_app.psn.pairwise import noise_share

    return 1.0 / noise_share(there)


def _gsn_dict(fit: GSNResult, returns: tuple[str, ...], t_difference: float | np.ndarray) -> dict:
    everything = {
        "cN": lambda: fit.noise_cov_raw,
        "cS": lambda: fit.signal_cov_raw,
        "cNb": lambda: fit.noise_cov,
        "cSb": lambda: fit.signal_cov,
    }
    out = {
        "mnN": np.zeros((1, fit.signal_mean.size)),
        "mnS": fit.signal_mean[None, :],
        "ncsnr": fit.ncsnr,
        "shrinklevelN": fit.shrink_noise,
        "shrinklevelD": fit.shrink_data,
        "numiters": fit.n_iter,
    }
    out |= {name: make() for name, make in everything.items() if name in returns}
    for kind, matrix in (
        ("signal", lambda: fit.signal_cov),
        ("difference", lambda: fit.signal_cov - fit.noise_cov / t_difference),
    ):
        if f"eigvals_{kind}" in returns or f"eigvecs_{kind}" in returns:
            values, vectors = eigenpairs(matrix())
            pair = {f"eigvals_{kind}": values, f"eigvecs_{kind}": vectors}
            out |= {name: value for name, value in pair.items() if name in returns}
    return out


def psn(
    data: np.ndarray | None = None,
    mode: str | dict | None = None,
    opt: dict | None = None,
    **keywords: object,
) -> dict:
    """Denoise trial averages under the published names.

    Parameters
    ----------
    data : ndarray, (n_units, n_conditions, n_trials)
        NaN marks a missing trial.
    mode : {"standard", "conservative", "aggressive", "compare", "wiener"} or dict, optional
        Preset, or the options themselves.
    opt, **keywords
        Options; keywords win over `opt`, and `opt` over the preset.

    Returns
    -------
    dict
        denoiseddata, residuals, unit_means, denoiser, best_threshold, fullbasis, signalvar, noisevar,
        objective, svnv_before, svnv_after, gsn_result and the rest of the published keys.

    Raises
    ------
    ValueError, FileNotFoundError
        As the published code does.
    """
    start = time.perf_counter()
    if "opt" in keywords or (opt is not None and not isinstance(opt, dict) and mode is None):
        raise ValueError("The 'opt' keyword argument must be a dict of options.")
    if data is None:
        check_data(None)
    merged = merge_arguments(mode, opt, keywords)
    data = check_data(data)
    opt = check_choices(merged, len(data))
    if np.isinf(data).any():
        raise ValueError("array must not contain infs or NaNs")
    x = data.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # units without any trial of a condition
        mean = np.nanmean(data, axis=2)
    means = mean.mean(axis=1).astype(np.float64)
    mean = mean.astype(np.float64)
    t = _trials(data)
    gsn = _gsn_for_psn(data, opt)
    signal_cov, noise_cov = (np.asarray(gsn[key], dtype=np.float64) for key in ("cSb", "cNb"))
    fit = _Fit(x, mean, means, t, signal_cov, noise_cov, opt, gsn)
    out = fit.wiener() if opt["criterion"] == "wiener" else fit.truncated()
    out |= {"unit_means": means, "gsn_result": gsn, "input_data": data, "opt_used": opt}
    out["denoiseddata"] = out["denoiser"].T @ (mean - means[:, None]) + means[:, None]
    out["residuals"] = x - out["denoiseddata"][:, :, None]
    out["runtime"] = time.perf_counter() - start
    return out


def _trials(data: np.ndarray) -> float:
    """Trials per condition: those of conditions with at least two, over all conditions."""
    counts = (~np.isnan(data).any(axis=0)).sum(axis=1)
    return max(float(counts[counts > 1].sum() / counts.size), 1.0)


def _gsn_for_psn(data: np.ndarray, opt: dict) -> dict:
    if opt["gsn_result"] is not None:
        return opt["gsn_result"]
    return perform_gsn(data, {"wantshrinkage": True, **(opt["gsn_args"] or {})})


class _Fit:
    """One call of `psn` after its arguments are checked: the published steps on shared arrays."""

    def __init__(
        self,
        x: np.ndarray,
        mean: np.ndarray,
        means: np.ndarray,
        t: float,
        signal_cov: np.ndarray,
        noise_cov: np.ndarray,
        opt: dict,
        gsn: dict,
    ) -> None:
        self.x, self.mean, self.means, self.t = x, mean, means, t
        self.signal_cov, self.noise_cov, self.opt, self.gsn = signal_cov, noise_cov, opt, gsn

    def basis(self, kind: str | np.ndarray, eigenvalues: np.ndarray | None = None) -> Basis:
        if isinstance(kind, str) and f"eigvecs_{kind}" in self.gsn:
            eigenvalues = np.asarray(self.gsn[f"eigvals_{kind}"], dtype=float)
            kind = np.asarray(self.gsn[f"eigvecs_{kind}"], dtype=float)
        return make_basis(kind, self.signal_cov, self.noise_cov, self.mean, self.t, eigenvalues=eigenvalues)

    def options(self, basis: str | np.ndarray) -> PSNOptions:
        o, allowed = self.opt, self.opt["allowable_thresholds"]
        forced = allowed is not None and allowed.size == 1
        return PSNOptions(
            mode=PUBLISHED,
            basis=basis,
            criterion=o["criterion"],
            level="unit" if o["threshold_method"] == "hybrid" and not forced else "global",
            ordering=o["basis_ordering"],
            cv_basis="all",
            max_folds=2,
            variance_threshold=float(o["variance_threshold"]),
            alpha=o["alpha"],
            allowed=allowed,
            groups=o["unit_groups"],
        )

    def truncated(self) -> dict:
        opt, extra = self.opt, {}
        kind = opt["basis"]
        if isinstance(kind, str) and kind == "compare":
            viz, extra = self.compared()
            options = self.options(viz.axes)
        else:
            viz = self.basis(kind, opt["basis_eigenvalues"])
            options = self.options(kind)
        b = viz.ordered(order_of(viz, opt["basis_ordering"], self.t))
        k = choose_analytic(b, self.t, options, options.groups)
        n_dims = b.axes.shape[1]
        noise = b.noise_var / self.t
        out = {
            "best_threshold": k,
            "denoiser": _denoiser(b.axes, k),
            "svnv_before": _shares(b.axes, n_dims, b.signal_var, noise),
            "svnv_after": _shares(b.axes, k, b.signal_var, noise),
            "objective": self.objective(b, options),
            "alpha_info": self.alpha_info(b),
            "wiener_matrix": None,
            "threshold_selection": None,
            "diagnostics": {},
            "recovery_tradeoff": None,
        }
        kept = k if np.ndim(k) == 0 and k > 0 else None
        out["signalsubspace"] = None if kept is None else b.axes[:, :kept]
        out["dimreduce"] = None if kept is None else b.axes[:, :kept].T @ (self.mean - self.means[:, None])
        if extra:
            extra["threshold_selection"]["best_threshold"] = k
        return out | _basis_keys(b, viz) | self.unit_lists(b, options) | extra

    def compared(self) -> tuple[Basis, dict]:
        """The better of signal and difference, as a basis of its own, and the record of the choice."""
        fit = GSNResult(
            self.signal_cov, self.noise_cov, None, None, self.noise_cov.diagonal(), self.means, self.means,
            1.0, 1.0, 0, self.t, self.t, np.ones(self.means.size, dtype=bool),
        )  # fmt: skip
        scores, cuts = compare_scores(self.x, fit, self.mean, self.t, self.options("compare"))
        winner = "difference" if scores[1] > scores[0] else "signal"
        chosen = self.basis(winner)
        chosen = self.basis(chosen.axes, chosen.eigenvalues)
        candidates = [
            {"basis": name, "best_threshold": k, "recovery": score}
            for name, k, score in zip(("signal", "difference"), cuts, scores, strict=True)
        ]
        record = {
            "mode": "compare",
            "basis": winner,
            "criterion": self.opt["criterion"],
            "recovery": max(scores) if winner == "difference" else scores[0],
        }
        return chosen, {"threshold_selection": record, "diagnostics": {"candidates": candidates}}

    def objective(self, b: Basis, options: PSNOptions) -> np.ndarray:
        gain, kept = population_curves(b, self.t, options)
        by_variance = options.criterion in ("variance", "variance_eigenvalues") and options.alpha is None
        return kept if by_variance and options.level == "global" else gain

    def alpha_info(self, b: Basis) -> dict | None:
        if self.opt["alpha"] is None:
            return None
        gain, kept = curves(b.signal_var, b.noise_var, self.t)
        _, k_pred, k_var = pick_alpha(gain, kept, self.opt["alpha"])
        return {"k_pred": k_pred, "k_var": k_var, "alpha": self.opt["alpha"]}

    def unit_lists(self, b: Basis, options: PSNOptions) -> dict:
        if options.level != "unit":
            return {"unit_signal_vars": None, "unit_noise_vars": None, "unit_objectives": None}
        share = b.axes**2
        signal, noise = share * b.signal_var, share * b.noise_var
        gain, kept = curves(signal, noise, self.t)
        use = kept if options.criterion == "variance" and options.alpha is None else gain
        return {
            "unit_signal_vars": list(signal),
            "unit_noise_vars": list(noise),
            "unit_objectives": list(use),
        }

    def wiener(self) -> dict:
        a = wiener_matrix_of(self.signal_cov, self.noise_cov, self.t)
        denoiser = np.linalg.solve(a, self.signal_cov)
        effective = float(np.trace(denoiser))
        viz = self.basis("signal")
        b = viz.ordered(order_of(viz, "eigenvalues", self.t))
        noise = self.noise_cov / self.t
        after = [np.einsum("ij,ij->i", denoiser.T @ c, denoiser.T) for c in (self.signal_cov, noise)]
        out = {
            "best_threshold": effective,
            "denoiser": denoiser,
            "wiener_matrix": denoiser,
            "svnv_before": np.stack([self.signal_cov.diagonal(), noise.diagonal()], axis=1),
            "svnv_after": np.stack(after, axis=1),
            "objective": None,
            "alpha_info": None,
            "signalsubspace": None,
            "dimreduce": None,
            "diagnostics": {},
            "recovery_tradeoff": None,
            "unit_signal_vars": None,
            "unit_noise_vars": None,
            "unit_objectives": None,
            "threshold_selection": {
                "mode": "wiener",
                "basis": None,
                "criterion": "wiener",
                "best_threshold": effective,
            },
        }
        return out | _basis_keys(b, viz)


def _basis_keys(b: Basis, viz: Basis) -> dict:
    return {
        "fullbasis": b.axes,
        "basis_eigenvalues": b.eigenvalues,
        "signalvar": b.signal_var,
        "noisevar": b.noise_var,
        "basis_viz": viz.axes,
        "signal_proj_viz": viz.signal_var,
        "noise_proj_viz": viz.noise_var,
        "basis_eigenvalues_viz": viz.eigenvalues,
    }


def _shares(axes: np.ndarray, k: int | np.ndarray, *variances: np.ndarray) -> np.ndarray:
    """Published variances of units, ``sum_{d <= k} B_ud^2 var_d``: products between axes are left out."""
    limit = np.broadcast_to(np.asarray(k), (len(axes),))
    out = np.empty((len(axes), len(variances)))
    for rows in row_blocks(len(axes), axes.shape[1]):
        weights = np.where(np.arange(axes.shape[1]) < limit[rows, None], axes[rows] ** 2, 0.0)
        out[rows] = weights @ np.stack(variances, axis=1)
    return out


def _denoiser(axes: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """Column u maps centred responses to unit u: the projection on its first k_u axes."""
    limit = np.broadcast_to(np.asarray(k), (len(axes),))
    most = int(limit.max(initial=0))
    kept = axes[:, :most]
    return kept @ np.where(np.arange(most) < limit[:, None], kept, 0.0).T
