# SPDX-License-Identifier: Apache-2.0
"""Partitioning signal and noise (PSN): denoise condition averages by a low-rank projection.

GSN gives the covariance of the signal, cSb, and of the noise, cNb; a basis B across units is built from
them; the averages are projected on its first K axes.  By default B holds the eigenvectors of ``cSb - cNb /
T``, in which every further axis adds more noise and less signal, and K is chosen by cross-validation: GSN
and B are fitted anew without one trial per condition, and K is the number of axes with which the denoised
average of the other trials comes closest to that trial (`conform_app.psn.crossval`).  With two trials per
condition none can be spared; then B comes from other conditions instead.

Presets of the published method (analytic cuts): standard, conservative, aggressive, compare, wiener.

Prince et al. (2025), "Partitioning signal and noise in neural data" (PSN).  All in float64.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.psn import crossval
from conform_app.psn.basis import Basis, make_axes, make_basis, measured_signal, order_of
from conform_app.psn.covariance import GSNResult, gsn_complete, level_grid
from conform_app.psn.intake import Usable, as_responses, usable_data
from conform_app.psn.options import PSNOptions, check_options
from conform_app.psn.pairwise import gsn_pairwise
from conform_app.psn.result import PSNResult, kept_variance, truncate, wiener, wiener_matrix_of
from conform_app.psn.selection import choose_analytic, compare_bases

_MIN_CONDITIONS = 4  # for axes from other conditions
_CONDITION_GROUPS = 5


def fit_psn(
    data: np.ndarray,
    *,
    mode: str = "cv",
    threshold: str = "global",
    basis: str | np.ndarray | None = None,
    criterion: str | None = None,
    ordering: str = "eigenvalues",
    cv_basis: str = "refit",
    max_folds: int = 12,
    variance_threshold: float = 0.99,
    alpha: float | None = None,
    allowable_thresholds: np.ndarray | None = None,
    unit_groups: np.ndarray | None = None,
    gsn: GSNResult | None = None,
    shrink: bool = True,
    shrink_levels: np.ndarray | None = None,
    uneven: str = "fast",
) -> PSNResult:
    """Denoise the trial averages of a population of units.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        Single-trial responses in one unit of measurement; NaN marks a missing trial.  Conditions with a
        single trial are denoised like the others.
    mode : {"cv", "standard", "conservative", "aggressive", "compare", "wiener"}, default "cv"
        Sets basis and criterion; the arguments below override it.
    threshold : {"global", "unit"}, default "global"
        One cut for the population (multi-voxel level) or one for each unit (single-voxel level).
    basis : {"signal", "difference", "noise", "pca", "random", "compare"} or ndarray (n_units, D), optional
        Axes; "compare" takes signal or difference, whichever makes split halves agree better.
    criterion : {"cv", "prediction", "max-tradeoff", "variance", "variance_eigenvalues", "wiener"}, optional
        How the cut is chosen.
    ordering : {"eigenvalues", "signalvariance", "prediction", "measured"}, default "eigenvalues"
        Order in which axes are kept; "measured" takes the signal variance of the projected data, as releases
        before December 2025 did.
    cv_basis : {"refit", "all"}, default "refit"
        Axes for cross-validation: fitted without the left-out trials, or once from all of them (the published
        shortcut, faster and optimistic).
    max_folds : int, default 12
        With more repeats, several trials are left out together.
    variance_threshold : float, default 0.99
        Share of signal variance to keep (criterion "variance").
    alpha : float, optional
        0..1, between the prediction criterion and keeping all signal variance; overrides an analytic
        criterion.
    allowable_thresholds : array_like of int, optional
        Numbers of dimensions to choose from; a single one forces it.
    unit_groups : array_like of int, (n_units,), optional
        With threshold "unit": units of one group share a cut.
    gsn : GSNResult, optional
        Result of `fit_gsn` on the same data, to save time.
    shrink, shrink_levels, uneven
        As in `fit_gsn`.

    Returns
    -------
    PSNResult

    Raises
    ------
    DataError
        If data are not 3-D, have no repeats, fewer than two conditions or no usable unit.
    UsageError
        If options are unknown, out of range or do not go together.
    """
    data = as_responses(data)
    options = check_options(
        len(data), mode, threshold, basis, criterion, ordering, cv_basis, max_folds,
        variance_threshold, alpha, allowable_thresholds, unit_groups,
    )  # fmt: skip
    if uneven not in ("fast", "missing"):
        raise UsageError(f"uneven = {uneven!r} is not known.", 'Choose "fast" or "missing".')
    usable = usable_data(data, keep_partial=uneven == "missing")
    pairwise = bool(np.isnan(usable.x[:, usable.there]).any() or (uneven == "missing" and _has_gaps(usable)))
    if pairwise and options.criterion == "cv":
        raise UsageError(
            'Cross-validation needs trials that all units have; uneven="missing" does not give them.',
            'Use uneven="fast" or a preset such as mode="wiener".',
        )
    gsn = _gsn(usable, gsn, level_grid(shrink, shrink_levels), pairwise)
    mean, whole = _averages(data, usable, pairwise)
    return _fit(data, usable, gsn, mean, whole, options)


def _fit(
    data: np.ndarray, usable: Usable, gsn: GSNResult, mean: np.ndarray, whole: np.ndarray, options: PSNOptions
) -> PSNResult:
    t = gsn.n_trials
    m = mean.mean(axis=1, keepdims=True)
    cv_error, scheme = None, ""
    if options.basis_name == "compare":
        options = replace(options, basis=compare_bases(usable.x, gsn, mean, t, options))
    axes = ordered_basis(options, gsn, mean, usable)
    if options.allowed is not None and options.allowed.max(initial=0) > axes.axes.shape[1]:
        raise UsageError(
            f"allowable_thresholds exceed the {axes.axes.shape[1]} dimensions of the basis.",
            "Give smaller ones.",
        )
    groups = None if options.groups is None else options.groups[usable.valid]
    if options.criterion == "wiener":
        denoised, k, kept = _wiener(gsn, t, mean - m)
    else:
        if options.criterion == "cv" and not _forced(options):
            k, cv_error, scheme = _cross_validate(usable, gsn, axes, options, groups)
        else:
            k = choose_analytic(axes, t, options, groups)
        denoised = truncate(axes.axes, k, mean - m)
        kept = kept_variance(axes.axes, k, axes.signal_var, axes.noise_var / t)
    if options.criterion == "wiener":
        before = [gsn.signal_cov.diagonal(), gsn.noise_cov.diagonal() / t]
    else:
        before = kept_variance(axes.axes, axes.axes.shape[1], axes.signal_var, axes.noise_var / t)
    valid = usable.valid
    full = whole.copy()
    full[valid] = denoised + m
    return PSNResult(
        denoised=full,
        averages=whole,
        unit_means=whole.mean(axis=1),
        threshold=_fill(k, valid, 0) if isinstance(k, np.ndarray) else k,
        axes=axes.axes,
        eigenvalues=axes.eigenvalues,
        signal_var=axes.signal_var,
        noise_var=axes.noise_var,
        cv_error=cv_error,
        kept_signal=_fill(kept[0], valid),
        removed_signal=_fill(before[0] - kept[0], valid),
        kept_noise=_fill(kept[1], valid),
        removed_noise=_fill(before[1] - kept[1], valid),
        n_trials=t,
        valid=valid,
        mode=options.mode,
        basis_name=options.basis_name,
        criterion=options.criterion,
        level=options.level,
        cv_scheme=scheme,
        gsn=gsn,
        account=_account(usable, options, k, axes.axes.shape[1], scheme),
        data=data,
    )


def ordered_basis(options: PSNOptions, gsn: GSNResult, mean: np.ndarray, usable: Usable) -> Basis:
    """The axes asked for, in the order in which they are kept."""
    kind = options.basis if isinstance(options.basis, str) else options.basis[usable.valid]
    b = make_basis(kind, gsn.signal_cov, gsn.noise_cov, mean, gsn.n_trials, signal_eig=gsn.signal_eig)
    if _descends(options):
        return b
    if options.ordering == "measured":
        order = np.argsort(measured_signal(b.axes, usable.x, usable.there))[::-1]
    else:
        order = order_of(b, options.ordering, gsn.n_trials)
    return b.ordered(order)


def _descends(options: PSNOptions) -> bool:
    """Whether axes come in the order in which they are kept, the null space included."""
    return options.ordering == "eigenvalues" and options.basis_name not in ("random", "custom")


def _cross_validate(
    usable: Usable, gsn: GSNResult, axes: Basis, options: PSNOptions, groups: np.ndarray | None
) -> tuple[int | np.ndarray, np.ndarray, str]:
    """The cut with the smallest error on left-out trials, the error curve, and the scheme used."""
    folds, scheme = plan_folds(usable.there, options)
    last: list[tuple[np.ndarray, np.ndarray]] = []  # folds with the same basis trials follow each other

    def axes_of(fold: crossval.Fold) -> np.ndarray:
        if scheme == "shared":
            return axes.axes
        if not last or not np.array_equal(last[0][0], fold.basis):
            last[:] = [(fold.basis, _axes_from(usable, fold.basis, gsn, options))]
        return last[0][1]

    # The published shortcut subtracts the unit means of all trials; refitted folds their own.
    means = crossval.averages(usable.x, usable.there).mean(axis=1) if scheme == "shared" else None
    curves = crossval.cv_curves(usable.x, folds, axes_of, per_unit=options.level == "unit", means=means)
    choice = np.arange(curves.population.size) if options.allowed is None else options.allowed
    if options.level == "global":
        return int(choice[np.argmin(curves.population[choice])]), curves.population, scheme
    units = curves.units[:, choice]
    if groups is not None:
        _, member = np.unique(groups, return_inverse=True)
        units = np.stack([units[member == g].mean(axis=0) for g in range(member.max() + 1)])[member]
    return choice[np.argmin(units, axis=1)], curves.population, scheme


def _axes_from(usable: Usable, trials: np.ndarray, gsn: GSNResult, options: PSNOptions) -> np.ndarray:
    """Axes that only these trials (n_conditions, n_trials) determine; shrinkage levels stay those of all."""
    shown = trials.any(axis=1)
    x = usable.x if shown.all() else usable.x[:, shown]
    part = Usable(x, trials[shown], usable.valid)
    refit = gsn_complete(part, np.array([gsn.shrink_noise]), np.array([gsn.shrink_data]))
    mean = crossval.averages(part.x, part.there)
    if not _descends(options):
        return ordered_basis(options, refit, mean, part).axes
    covs = refit.signal_cov, refit.noise_cov
    return make_axes(options.basis, *covs, mean, refit.n_trials, signal_eig=refit.signal_eig)[0]


def plan_folds(there: np.ndarray, options: PSNOptions) -> tuple[list[crossval.Fold], str]:
    """Folds, and where their axes come from: "trials", "conditions" or "shared"."""
    trial_folds = crossval.leave_one_trial_out(there, options.max_folds)
    if options.cv_basis == "all" or options.basis_name in ("random", "custom"):
        return trial_folds, "shared"
    full = _noise_dof(there)
    if min(_noise_dof(f.basis) for f in trial_folds) >= full / 4:
        return trial_folds, "trials"
    n_conditions = there.shape[0]
    if n_conditions >= _MIN_CONDITIONS:
        folds = crossval.leave_conditions_out(there, min(_CONDITION_GROUPS, n_conditions), options.max_folds)
        if folds and min(_noise_dof(f.basis) for f in folds) >= full / 4:
            return folds, "conditions"
    warnings.warn(
        "Too few repeats and conditions to fit the axes without the left-out trials; all trials are used.",
        RuntimeWarning,
        stacklevel=2,
    )
    return trial_folds, "shared"


def _noise_dof(there: np.ndarray) -> int:
    return int(np.maximum(there.sum(axis=1) - 1, 0).sum())


def _wiener(gsn: GSNResult, t: float, z: np.ndarray) -> tuple[np.ndarray, float, list[np.ndarray]]:
    """Wiener-filtered averages, effective dimensions, and signal and noise variance kept per unit."""
    denoised = wiener(gsn.signal_cov, gsn.noise_cov, t, z)
    a = wiener_matrix_of(gsn.signal_cov, gsn.noise_cov, t)
    operator = np.linalg.solve(a, gsn.signal_cov).T  # cSb A^-1
    kept = [
        np.einsum("ij,ij->i", operator @ gsn.signal_cov, operator),
        np.einsum("ij,ij->i", operator @ gsn.noise_cov, operator) / t,
    ]
    return denoised, float(np.trace(operator)), kept


def _gsn(usable: Usable, given: GSNResult | None, levels: np.ndarray, pairwise: bool) -> GSNResult:
    if given is None:
        return gsn_pairwise(usable, levels) if pairwise else gsn_complete(usable, levels, levels)
    if given.valid.size != usable.valid.size or (usable.valid & ~given.valid).any():
        raise UsageError("The GSN result was fitted to other units.", "Fit it to the same data.")
    valid = usable.valid
    if len(given.signal_cov) == valid.sum():
        return given
    part = np.ix_(valid, valid)
    return replace(
        given,
        signal_cov=given.signal_cov[part],
        noise_cov=given.noise_cov[part],
        signal_cov_raw=given.signal_cov_raw[part],
        noise_cov_raw=given.noise_cov_raw[part],
        signal_mean=given.signal_mean[valid],
        ncsnr=given.ncsnr[valid],
        signal_eig=None,
    )


def _has_gaps(usable: Usable) -> bool:
    some = ~np.isnan(usable.x).all(axis=0)
    return bool((some & ~usable.there).any())


def _averages(data: np.ndarray, usable: Usable, pairwise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Trial averages of the valid units, and of all units."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # units left out may be empty or infinite
        if pairwise:
            mean = np.nanmean(usable.x, axis=2)
            if np.isnan(mean).any():
                raise DataError(
                    "A unit has no trial of some condition.",
                    "Leave out such units or conditions before denoising.",
                )
        else:
            mean = crossval.averages(usable.x, usable.there)
        if usable.valid.all():
            return mean, mean.copy()
        whole = np.empty(data.shape[:2])
        whole[~usable.valid] = np.nanmean(data[~usable.valid].astype(np.float64), axis=2)
    whole[usable.valid] = mean
    return mean, whole


def _fill(values: np.ndarray, valid: np.ndarray, fill: float = np.nan) -> np.ndarray:
    out = np.full(valid.size, fill, dtype=values.dtype)
    out[valid] = values
    return out


def _forced(options: PSNOptions) -> bool:
    return options.allowed is not None and options.allowed.size == 1


def _account(
    usable: Usable, options: PSNOptions, k: int | float | np.ndarray, n_axes: int, scheme: str
) -> tuple[str, ...]:
    sentences = []
    left_out = int((~usable.valid).sum())
    if left_out:
        sentences.append(
            f"{left_out} of {usable.valid.size} units were constant, not finite or incomplete and left as is."
        )
    if options.criterion == "wiener":
        return (*sentences, f"A Wiener filter with {k:.1f} effective dimensions was applied.")
    kept = f"{k} of {n_axes} dimensions" if np.ndim(k) == 0 else (
        f"a median of {np.median(k):g} of {n_axes} dimensions per unit"
    )  # fmt: skip
    how = {
        "trials": "cross-validation over trials, the axes refitted without the left-out trial",
        "conditions": "cross-validation over trials, the axes fitted to other conditions",
        "shared": "cross-validation over trials with the same axes for all",
        "": f"the {options.criterion} criterion",
    }[scheme]
    level = "the population" if options.level == "global" else "each unit"
    sentences.append(f"PSN kept {kept} of the {options.basis_name} basis, chosen for {level} by {how}.")
    return tuple(sentences)
