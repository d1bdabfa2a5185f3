# SPDX-License-Identifier: Apache-2.0
"""Choosing the cut, or the kind of denoiser, on trials that the axes have not seen.

Fold by fold, axes are fitted without the left-out trials.  For the difference basis these are the leading
eigenvectors of ``cS - cN / T``, the raw covariances: an axis whose eigenvalue is not positive is expected to
add more noise than signal, so the curves end at the last positive one.

* population: the k with the smallest error, for all units;
* unit: ``argmin_k  e_u(k) + pooling mean_v e_v(k)``,  ``e_u(k) = E_u(k) / E_u(0)``.  One unit's curve is
  noisy; a share of the population's keeps units without much signal of their own near the common cut.

`choose_blend` weighs population cut, unit cut and Wiener filter by their error in the same folds (cuts chosen
on the other folds).  The Wiener filter, which has no cut to choose and leaves no unit without signal, gives
way to the weighted mean of the three with the least error (which may be a cut alone) where that lowers the
error of the denoised averages (noise of the left-out trials subtracted) by more than two standard errors over
conditions, and by a tenth.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from conform_app.psn import crossval
from conform_app.psn.basis import Basis, fix_signs, make_axes
from conform_app.psn.covariance import GSNResult, gsn_complete, shrunk_covariances
from conform_app.psn.intake import Usable
from conform_app.psn.options import PSNOptions
from conform_app.psn.result import truncate, wiener
from conform_app.psn.selection import ordered_basis

_MIN_CONDITIONS = 4  # for axes from other conditions
_CONDITION_GROUPS = 5
_SINGLE = 512  # units beyond which axes of folds are computed in single precision
_STANDARD_ERRORS = 2.0
_WORTH = 0.1  # least gain, as a share of the Wiener filter's error, for which it is left
CANDIDATES = ("population", "unit", "wiener")


@dataclass(frozen=True, eq=False)
class Choice:
    """What cross-validation found.

    Attributes
    ----------
    population : int
    units : ndarray, (n_units,) int, or None
    curve : ndarray, (K + 1,)
        Mean squared error of predicting left-out trials, 0..K dimensions.
    scheme : str
        Where the axes of the folds come from: "trials", "conditions" or "shared".
    weights : ndarray, (3,)
        Of population cut, unit cut and Wiener filter.
    errors : dict of str to float
        Mean squared error of each candidate and of the weighted mean (mode "auto" only).
    """

    population: int
    units: np.ndarray | None
    curve: np.ndarray
    scheme: str
    weights: np.ndarray
    errors: dict[str, float]


def choose_cut(
    usable: Usable, gsn: GSNResult, axes: Basis, options: PSNOptions, groups: np.ndarray | None
) -> Choice:
    """The cut with the smallest error on left-out trials."""
    folds, scheme = plan_folds(usable.there, options)
    axes_of = _remembered(lambda fold: _axes_from(usable, fold.basis, gsn, options), scheme, axes.axes)
    # The published shortcut subtracts the unit means of all trials; refitted folds their own.
    means = crossval.averages(usable.x, usable.there).mean(axis=1) if scheme == "shared" else None
    single = options.level == "unit"
    curves = crossval.cv_curves(usable.x, folds, axes_of, per_unit=single, means=means)
    population = pick_population(curves.population, options)
    units = pick_units(curves.units, options, groups) if single else None
    return Choice(population, units, curves.population, scheme, np.eye(3)[1 if single else 0], {})


def choose_blend(
    usable: Usable, gsn: GSNResult, axes: Basis, options: PSNOptions, groups: np.ndarray | None
) -> Choice:
    """Population cut, unit cut, Wiener filter, or a weighted mean of them."""
    folds, scheme = plan_folds(usable.there, options)
    model_of = _remembered(lambda fold: _model_from(usable, fold.basis, gsn), scheme, (axes.axes, gsn))
    kept = []
    for fold in folds:
        z, y, w = crossval.fold_data(usable.x, fold)
        b, fit = model_of(fold)
        trials = float(fold.train[fold.test.any(axis=1)].sum(axis=1).mean())
        filtered = wiener(fit.signal_cov, fit.noise_cov, trials, z)
        kept.append((b, z, y, w.sum(), crossval.unit_curves(b, z, y), filtered))
    length = min(fold[4].shape[1] for fold in kept)
    total = sum(fold[4][:, :length] for fold in kept)
    weight = sum(fold[3] for fold in kept)
    n_conditions = len(usable.there)
    gram, cross, power = np.zeros((n_conditions, 3, 3)), np.zeros((n_conditions, 3)), 0.0
    for fold, (b, z, y, _, curve, filtered) in zip(folds, kept, strict=True):
        others = total - curve[:, :length] if len(kept) > 1 else total
        cuts = pick_population(others.mean(axis=0), options), pick_units(others, options, groups)
        guesses = np.stack([*(truncate(b, k, z) for k in cuts), filtered])
        tested = fold.test.any(axis=1)
        gram[tested] += np.einsum("iuc,juc->cij", guesses, guesses)
        cross[tested] += np.einsum("iuc,uc->ci", guesses, y)
        power += np.einsum("uc,uc->", y, y)
    scale = weight * len(usable.x)
    noise = scale * float(gsn.noise_cov_raw.diagonal().mean())  # of the left-out trials themselves
    weights, totals = _weigh(gram, cross, noise - power)
    errors = {name: float(power + value) / scale for name, value in totals.items()}
    population, units = pick_population(total.mean(axis=0), options), pick_units(total, options, groups)
    return Choice(population, units, total.sum(axis=0) / scale, scheme, weights, errors)


def _weigh(gram: np.ndarray, cross: np.ndarray, floor: float) -> tuple[np.ndarray, dict[str, float]]:
    """Weights of the candidates from sums over units (and folds) per condition, (m, 3, 3) and (m, 3).

    ``floor`` is what the loss of a perfect estimate would be, summed over conditions.
    """
    grid = np.array([(a, b, 20 - a - b) for a in range(21) for b in range(21 - a)]) / 20
    loss = np.einsum("gi,mij,gj->gm", grid, gram, grid, optimize=True) - 2 * grid @ cross.T
    sums = loss.sum(axis=1)
    single = {name: int(np.flatnonzero(grid[:, i] == 1)[0]) for i, name in enumerate(CANDIDATES)}
    start, best = single["wiener"], int(sums.argmin())
    worth = sums[start] - sums[best] > _WORTH * (sums[start] - floor)
    totals = {name: float(sums[g]) for name, g in single.items()} | {"blend": float(sums[best])}
    return grid[best if worth and _clearly_less(loss[best], loss[start]) else start], totals


def _clearly_less(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the sum of a is below that of b by more than two standard errors over conditions."""
    gain = b - a
    return bool(gain.sum() > _STANDARD_ERRORS * np.sqrt(gain.size) * gain.std(ddof=1))


def pick_population(curve: np.ndarray, options: PSNOptions) -> int:
    """The number of dimensions with the smallest error."""
    choice = _candidates(curve.size, options)
    return int(choice[np.argmin(curve[choice])]) if choice.size else int(options.allowed[0])


def pick_units(curves: np.ndarray, options: PSNOptions, groups: np.ndarray | None) -> np.ndarray:
    """A number of dimensions for each unit, from its own curve and a share of the population's."""
    choice = _candidates(curves.shape[1], options)
    if not choice.size:
        return np.full(len(curves), int(options.allowed[0]))
    own = curves[:, choice]
    if options.pooling:
        own = own / curves[:, :1]
        own += options.pooling * own.mean(axis=0)
    if groups is not None:
        _, member = np.unique(groups, return_inverse=True)
        own = np.stack([own[member == g].mean(axis=0) for g in range(member.max() + 1)])[member]
    return choice[np.argmin(own, axis=1)]


def _candidates(size: int, options: PSNOptions) -> np.ndarray:
    return np.arange(size) if options.allowed is None else options.allowed[options.allowed < size]


def _remembered(make, scheme: str, shared):
    """What `make` gives for a fold; folds with the same basis trials follow each other."""
    last: list = []

    def model_of(fold: crossval.Fold):
        if scheme == "shared":
            return shared
        if not last or not np.array_equal(last[0][0], fold.basis):
            last[:] = [(fold.basis, make(fold))]
        return last[0][1]

    return model_of


def _part(usable: Usable, trials: np.ndarray) -> Usable:
    shown = trials.any(axis=1)
    x = usable.x if shown.all() else usable.x[:, shown]
    return Usable(x, trials[shown], usable.valid)


def _axes_from(usable: Usable, trials: np.ndarray, gsn: GSNResult, options: PSNOptions) -> np.ndarray:
    """Axes that only these trials (n_conditions, n_trials) determine; shrinkage levels stay those of all."""
    part = _part(usable, trials)
    levels = np.array([gsn.shrink_noise]), np.array([gsn.shrink_data])
    if options.basis_name == "difference" and options.ordering == "eigenvalues":
        c_n, c_d, *_, t_min, t_mean = shrunk_covariances(part, *levels)
        c_d -= c_n * (1 / t_min + 1 / t_mean)
        return positive_axes(c_d)
    refit = gsn_complete(part, *levels)
    mean = crossval.averages(part.x, part.there)
    if options.descends:
        covs = refit.signal_cov, refit.noise_cov
        return make_axes(options.basis, *covs, mean, refit.n_trials, signal_eig=refit.signal_eig)[0]
    return ordered_basis(options, refit, mean, part).axes


def _model_from(usable: Usable, trials: np.ndarray, gsn: GSNResult) -> tuple[np.ndarray, GSNResult]:
    levels = np.array([gsn.shrink_noise]), np.array([gsn.shrink_data])
    refit = gsn_complete(_part(usable, trials), *levels)
    return positive_axes(refit.signal_cov - refit.noise_cov / refit.n_trials), refit


def positive_axes(m: np.ndarray) -> np.ndarray:
    """Eigenvectors of a symmetric matrix with positive eigenvalues, descending."""
    if len(m) > _SINGLE:
        m = m.astype(np.float32)
    w, v = eigh(m, driver="evd", check_finite=False, overwrite_a=True)
    return fix_signs(v[:, w > 0][:, ::-1].astype(np.float64))


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
