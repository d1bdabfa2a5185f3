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

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.psn import crossval, gaps, honest
from conform_app.psn.account import account_of
from conform_app.psn.basis import Basis
from conform_app.psn.covariance import GSNResult, gsn_complete, level_grid, shrinkage_of
from conform_app.psn.dense import Dense, dense_on
from conform_app.psn.honest import AllTrials
from conform_app.psn.intake import Usable, as_responses, usable_data
from conform_app.psn.options import PSNOptions, check_options
from conform_app.psn.pairwise import gsn_pairwise
from conform_app.psn.result import WIENER, Blend, PSNResult, between, kept_variance, truncate
from conform_app.psn.selection import choose_analytic, compare_bases, ordered_basis


def fit_psn(
    data: np.ndarray,
    *,
    mode: str = "cv",
    threshold: str | None = None,
    basis: str | np.ndarray | None = None,
    criterion: str | None = None,
    ordering: str = "eigenvalues",
    cv_basis: str = "refit",
    max_folds: int = 12,
    pooling: float | None = None,
    variance_threshold: float = 0.99,
    alpha: float | None = None,
    allowable_thresholds: np.ndarray | None = None,
    unit_groups: np.ndarray | None = None,
    gsn: GSNResult | None = None,
    shrink: bool = True,
    shrink_levels: np.ndarray | None = None,
    uneven: str = "fast",
    device: str = "cpu",
) -> PSNResult:
    """Denoise the trial averages of a population of units.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        Single-trial responses in one unit of measurement; NaN marks a missing trial.  Conditions with a
        single trial are denoised like the others.
    mode : {"cv", "auto", "standard", "conservative", "aggressive", "compare", "wiener"}, default "cv"
        Sets basis and criterion; the arguments below override it.  "auto" takes the Wiener filter, unless a
        population cut, unit cuts or a weighted mean of the three are clearly better in cross-validation; its
        filter of a condition is that for the condition's own number of trials.
    threshold : {"global", "unit"}, optional
        One cut for the population (multi-voxel level) or one for each unit (single-voxel level).  By default
        units with cross-validation, the population with analytic criteria; "auto" chooses it itself.
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
    pooling : float, optional
        Cross-validated cuts of units: how much the population's error curve counts besides a unit's own.
        Default 0.3; 0 with ``cv_basis="all"``, as published.
    variance_threshold : float, default 0.99
        Share of signal variance to keep (criterion "variance").
    alpha : float, optional
        0..1, between the prediction criterion and keeping all signal variance; overrides an analytic
        criterion and goes with no other.
    allowable_thresholds : array_like of int, optional
        Numbers of dimensions to choose from; a single one forces it.
    unit_groups : array_like of int, (n_units,), optional
        With threshold "unit": units of one group share a cut.
    gsn : GSNResult, optional
        Result of `fit_gsn` on the same data, to save time.
    shrink, shrink_levels, uneven
        As in `fit_gsn`.
    device : {"cpu", "cuda", "auto"}, default "cpu"
        Where to compute; "auto": on a GPU if there is one.

    Returns
    -------
    PSNResult

    Raises
    ------
    DataError
        If data are not 3-D, have no repeats, fewer than two conditions or no usable unit.
    UsageError
        If options are unknown, out of range or do not go together, or there is no such device.
    """
    data = as_responses(data)
    options = check_options(
        len(data), mode, threshold, basis, criterion, ordering, cv_basis, max_folds,
        variance_threshold, alpha, allowable_thresholds, unit_groups, pooling,
    )  # fmt: skip
    if uneven not in ("fast", "missing"):
        raise UsageError(f"uneven = {uneven!r} is not known.", 'Choose "fast" or "missing".')
    dense = dense_on(device)
    usable = usable_data(data, keep_partial=uneven == "missing")
    pairwise = bool(np.isnan(usable.x[:, usable.there]).any() or (uneven == "missing" and _has_gaps(usable)))
    levels = level_grid(shrink, shrink_levels)
    if gsn is not None or pairwise or options.forced or options.criterion not in ("auto", "cv"):
        estimate = AllTrials.of(_gsn(usable, gsn, levels, pairwise, options, dense))
    else:  # the folds need the levels alone
        shrinkage = shrinkage_of(usable, levels, dense)
        grids = [np.array([level]) for level in shrinkage]
        keep = options.basis_name in ("signal", "compare")
        estimate = AllTrials(
            *shrinkage,
            functools.cache(lambda: gsn_complete(usable, *grids, dense=dense, keep_eig=keep, keep_raw=False)),
        )
    mean, whole = _averages(data, usable, pairwise)
    return _fit(data, usable, estimate, mean, whole, options, pairwise, dense)


def _fit(
    data: np.ndarray,
    usable: Usable,
    estimate: AllTrials,
    mean: np.ndarray,
    whole: np.ndarray,
    options: PSNOptions,
    pairwise: bool,
    dense: Dense,
) -> PSNResult:
    m = mean.mean(axis=1, keepdims=True)
    if options.basis_name == "compare":
        gsn = estimate.gsn()
        options = replace(options, basis=compare_bases(usable.x, gsn, mean, gsn.n_trials, options))
    n_axes = len(mean) if isinstance(options.basis, str) else options.basis.shape[1]
    if options.allowed is not None and options.allowed.max(initial=0) > n_axes:
        raise UsageError(
            f"allowable_thresholds exceed the {n_axes} dimensions of the basis.", "Give smaller ones."
        )
    groups = None if options.groups is None else options.groups[usable.valid]
    # Covariances and axes of all trials, when they are first needed: with the folds gone.
    basis = functools.cache(lambda: ordered_basis(options, estimate.gsn(), mean, usable, dense))
    choice, denoiser = _choose(usable, estimate, basis, options, groups, pairwise, dense), None
    gsn, axes = estimate.gsn(), basis()
    if options.criterion == "auto":
        denoiser = Blend(choice.weights, choice.population, choice.units)
        options = replace(options, **denoiser.options())
    blend = {"wiener": WIENER, "blend": denoiser}.get(options.criterion)
    denoised, k, kept, before = _denoise(mean - m, options, blend, choice, axes, gsn, groups, dense)
    # where trials of single units are missing, the units' numbers differ, and one filter serves all
    if denoiser is not None and denoiser.weights[2] > 0 and not pairwise:
        denoised = _by_trials(denoised, mean - m, usable, denoiser, axes, gsn, dense)
    valid = usable.valid
    denoised += m
    full = denoised
    if not valid.all():
        full = whole.copy()
        full[valid] = denoised
    return PSNResult(
        denoised=full,
        averages=whole,
        unit_means=whole.mean(axis=1),
        threshold=_fill(k, valid, 0) if isinstance(k, np.ndarray) else k,
        axes=axes.axes,
        eigenvalues=axes.eigenvalues,
        signal_var=axes.signal_var,
        noise_var=axes.noise_var,
        cv_error=None if choice is None else choice.curve,
        kept_signal=_fill(kept[0], valid),
        removed_signal=_fill(before[0] - kept[0], valid),
        kept_noise=_fill(kept[1], valid),
        removed_noise=_fill(before[1] - kept[1], valid),
        n_trials=gsn.n_trials,
        valid=valid,
        mode=options.mode,
        basis_name=options.basis_name,
        criterion=options.criterion,
        level=options.level,
        cv_scheme="" if choice is None else choice.scheme,
        gsn=gsn,
        account=account_of(usable, options, k, axes.axes.shape[1], gsn, choice),
        data=data,
        blend=denoiser if options.criterion == "blend" else None,
        candidate_errors={} if choice is None else choice.errors,
    )


def _choose(
    usable: Usable,
    estimate: AllTrials,
    basis: Callable[[], Basis],
    options: PSNOptions,
    groups: np.ndarray | None,
    pairwise: bool,
    dense: Dense,
) -> honest.Choice | None:
    """What cross-validation chooses; None where the choice is analytic or forced."""
    if options.criterion != "auto" and (options.criterion != "cv" or options.forced):
        return None
    name = "choose_blend" if options.criterion == "auto" else "choose_cut"
    if pairwise:
        return getattr(gaps, name)(usable, estimate.gsn(), basis(), options, groups, dense)
    return getattr(honest, name)(usable, estimate, basis, options, groups, dense)


def _denoise(
    z: np.ndarray,
    options: PSNOptions,
    blend: Blend | None,
    choice: honest.Choice | None,
    axes: Basis,
    gsn: GSNResult,
    groups: np.ndarray | None,
    dense: Dense,
) -> tuple[np.ndarray, int | float | np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Centred averages denoised, dimensions, and signal and noise variance per unit, kept and before."""
    t = gsn.n_trials
    before = [gsn.signal_cov.diagonal(), gsn.noise_cov.diagonal() / t]
    if blend is not None:
        return *_through(blend, axes, gsn, z, dense), before
    if choice is None:
        k = choose_analytic(axes, t, options, groups)
    else:
        k = choice.units if options.level == "unit" else choice.population
    return truncate(axes.axes, k, z), k, _kept_by_units(axes, k, options.basis_name, gsn, dense), before


def _kept_by_units(
    axes: Basis, k: int | np.ndarray, basis_name: str, gsn: GSNResult, dense: Dense
) -> list[np.ndarray]:
    """Variance of signal and noise that each unit keeps with its first k axes.

    Axes that are eigenvectors of one covariance are none of the other: its products between axes count too.
    """
    b, t = axes.axes[:, : int(np.max(k, initial=0))], gsn.n_trials
    noise = between(b, gsn.noise_cov, dense)
    noise /= t
    kept_noise = kept_variance(b, k, noise, dense)
    if basis_name == "signal":
        signal = np.diag(axes.eigenvalues[: len(noise)])
    elif basis_name == "difference":  # cSb b = lambda b + cNb b / T
        signal = noise
        signal[np.diag_indices_from(signal)] += axes.eigenvalues[: len(noise)]
    else:
        signal = between(b, gsn.signal_cov, dense)
    return [kept_variance(b, k, signal, dense), kept_noise]


def _through(
    blend: Blend, axes: Basis, gsn: GSNResult, z: np.ndarray, dense: Dense
) -> tuple[np.ndarray, float, list[np.ndarray]]:
    """Averages through the weighted mean, effective dimensions, signal and noise variance kept per unit."""
    t = gsn.n_trials
    denoised, trace, kept = np.empty_like(z), 0.0, [np.empty(len(z)) for _ in range(2)]
    for rows, part in blend.rows(axes.axes, gsn, t, dense):
        denoised[rows] = dense.product(part, z)
        trace += float(np.trace(part, offset=rows.start))
        for out, cov in zip(kept, (gsn.signal_cov, gsn.noise_cov), strict=True):
            out[rows] = dense.variance_along(part.T, cov)
    return denoised, trace, [kept[0], kept[1] / t]


def _by_trials(
    denoised: np.ndarray,
    z: np.ndarray,
    usable: Usable,
    denoiser: Blend,
    axes: Basis,
    gsn: GSNResult,
    dense: Dense,
) -> np.ndarray:
    """Averages (n, C) of uneven repeats anew, each through the filter for its own number of trials."""
    counts = usable.there.sum(axis=1)
    for count in np.unique(counts[counts != gsn.n_trials]):
        here = counts == count
        denoised[:, here] = denoiser.apply(axes.axes, gsn, float(count), z[:, here], dense)
    return denoised


def _gsn(
    usable: Usable,
    given: GSNResult | None,
    levels: np.ndarray,
    pairwise: bool,
    options: PSNOptions,
    dense: Dense,
) -> GSNResult:
    if given is None:
        if pairwise:
            return gsn_pairwise(usable, levels, dense=dense)
        keep = options.basis_name in ("signal", "compare")
        return gsn_complete(usable, levels, levels, dense=dense, keep_eig=keep, keep_raw=False)
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
        signal_cov_raw=None,
        noise_cov_raw=None,
        noise_var=given.noise_var[valid],
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
            return mean, mean
        whole = np.empty(data.shape[:2])
        whole[~usable.valid] = np.nanmean(data[~usable.valid].astype(np.float64), axis=2)
    whole[usable.valid] = mean
    return mean, whole


def _fill(values: np.ndarray, valid: np.ndarray, fill: float = np.nan) -> np.ndarray:
    out = np.full(valid.size, fill, dtype=values.dtype)
    out[valid] = values
    return out
