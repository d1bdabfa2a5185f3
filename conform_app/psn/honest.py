# SPDX-License-Identifier: Apache-2.0
"""Choosing the cut, or the kind of denoiser, on trials that the axes have not seen.

Fold by fold, axes are fitted without the left-out trials.  For the difference basis these are the leading
eigenvectors of ``cS - cN / T``, the raw covariances: an axis whose eigenvalue is not positive is expected to
add more noise than signal, so the curves end at the last positive one.

* population: the k with the smallest error, for all units;
* unit: ``argmin_k  e_u(k) + pooling mean_v e_v(k)``,  ``e_u(k) = E_u(k) / E_u(0)``.  One unit's curve is
  noisy; a share of the population's keeps units without much signal of their own near the common cut.

`choose_blend` weighs population cut, unit cut and Wiener filter by their error in the same folds (cuts chosen
on the other folds).  The Wiener filter, which has no cut to choose and flattens a unit only where no signal
is estimated in it, gives way to the weighted mean of the three with the least error (which may be a cut
alone) where that lowers the error of the denoised averages (noise of the left-out trials subtracted) by more
than two standard errors over conditions, and by a tenth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conform_app.psn import crossval
from conform_app.psn.basis import Basis, make_axes
from conform_app.psn.covariance import GSNResult, expected_gain, gsn_complete
from conform_app.psn.dense import CPU, Dense, release, row_blocks
from conform_app.psn.intake import Usable
from conform_app.psn.options import PSNOptions
from conform_app.psn.result import truncate, wiener_by_trials, wiener_matrix_of
from conform_app.psn.selection import ordered_basis

_MIN_CONDITIONS = 4  # for axes from other conditions
_CONDITION_GROUPS = 5
_SINGLE = 512  # units beyond which folds are computed in single precision
_QUIETEST = 1e-3  # least noise variance of a unit, as a share of the largest, for that
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


@dataclass(frozen=True, eq=False)
class AllTrials:
    """What all trials say: shrinkage levels, and, where it is asked for, the rest of GSN.

    Refitting a fold takes the levels alone, so that the matrices of all trials need not be there meanwhile.
    """

    shrink_noise: float
    shrink_data: float
    gsn: Callable[[], GSNResult]

    @classmethod
    def of(cls, gsn: GSNResult) -> AllTrials:
        """A result that is there."""
        return cls(gsn.shrink_noise, gsn.shrink_data, lambda: gsn)


def choose_cut(
    usable: Usable,
    gsn: GSNResult | AllTrials,
    axes: Basis | Callable[[], Basis],
    options: PSNOptions,
    groups: np.ndarray | None,
    dense: Dense = CPU,
) -> Choice:
    """The cut with the smallest error on left-out trials; ``axes``, or what makes them, are of all trials."""
    folds, scheme = plan_folds(usable.there, options)
    estimate = gsn if isinstance(gsn, AllTrials) else AllTrials.of(gsn)
    axes_of = _remembered(
        lambda fold: _axes_from(usable, fold.basis, estimate, options, dense),
        scheme,
        lambda: _made(axes).axes,
    )
    # The published shortcut subtracts the unit means of all trials; refitted folds their own.
    means = crossval.averages(usable.x, usable.there).mean(axis=1) if scheme == "shared" else None
    single = options.level == "unit"
    curves = crossval.cv_curves(usable.x, folds, axes_of, per_unit=single, means=means, dense=dense)
    population = pick_population(curves.population, options)
    units = pick_units(curves.units, options, groups) if single else None
    return Choice(population, units, curves.population, scheme, np.eye(3)[1 if single else 0], {})


def choose_blend(
    usable: Usable,
    gsn: GSNResult | AllTrials,
    axes: Basis | Callable[[], Basis],
    options: PSNOptions,
    groups: np.ndarray | None,
    dense: Dense = CPU,
) -> Choice:
    """Population cut, unit cut, Wiener filter, or a weighted mean of them; ``axes`` as in `choose_cut`."""
    folds, scheme = plan_folds(usable.there, options)
    estimate = gsn if isinstance(gsn, AllTrials) else AllTrials.of(gsn)
    model_of = _remembered(
        lambda fold: _model_from(usable, fold.basis, estimate, dense),
        scheme,
        lambda: (_made(axes).axes, estimate.gsn()),
    )
    kept, total = [], 0.0
    for fold in folds:
        b, fit = model_of(fold)
        z, y, _ = crossval.fold_data(usable.x, fold)
        trials = fold.train[fold.test.any(axis=1)].sum(axis=1)
        filtered = wiener_by_trials(fit.signal_cov, fit.noise_cov, trials, z, dense)
        filtered = filtered.astype(_precision(len(b)), copy=False)
        del fit  # each array before the next step needs the memory
        total = crossval.add_curves(total, crossval.unit_curves(b, z, y, dense))
        del z, y
        if scheme != "shared":  # axes of a fold are of single precision where there are many
            b = b.astype(_precision(len(b)))
        if kept and np.array_equal(kept[-1][0], b):
            b = kept[-1][0]
        kept.append((b, filtered))
        del b, filtered
    model_of = None
    gram, cross = np.zeros((len(usable.there), 3, 3)), np.zeros((len(usable.there), 3))
    weight, power = 0.0, 0.0
    while kept:
        release()
        fold, (b, filtered) = folds[len(folds) - len(kept)], kept.pop(0)
        z, y, w = crossval.fold_data(usable.x, fold)
        weight, power = weight + w.sum(), power + np.einsum("uc,uc->", y, y)
        cuts = _cuts_of_others(b, z, y, total, len(folds), options, groups, dense)
        b = b.astype(np.float64, copy=False)
        guesses = [*(truncate(b, k, z) for k in cuts), filtered]
        del b, filtered, z
        tested = fold.test.any(axis=1)
        for rows in row_blocks(len(y), 3 * y.shape[1]):
            some = np.stack([guess[rows] for guess in guesses])
            gram[tested] += np.einsum("iuc,juc->cij", some, some)
            cross[tested] += np.einsum("iuc,uc->ci", some, y[rows])
        del guesses, y
    population, units = pick_population(total.mean(axis=0), options), pick_units(total, options, groups)
    scale = weight * len(usable.x)
    curve = total.sum(axis=0) / scale
    del total
    noise = scale * float(estimate.gsn().noise_var.mean())  # of the left-out trials themselves
    weights, totals = _weigh(gram, cross, noise - power)
    errors = {name: float(power + value) / scale for name, value in totals.items()}
    return Choice(population, units, curve, scheme, weights, errors)


def _cuts_of_others(
    b: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    total: np.ndarray,
    n_folds: int,
    options: PSNOptions,
    groups: np.ndarray | None,
    dense: Dense,
) -> tuple[int, np.ndarray]:
    """Cuts that the other folds ask for: from the sum of all curves less the fold's own, made again."""
    others = total
    if n_folds > 1:
        z, y = (side.astype(b.dtype, copy=False) for side in (z, y))
        others = crossval.unit_curves(b, z, y, dense)[:, : total.shape[1]]
        np.subtract(total, others, out=others)
    return pick_population(others.mean(axis=0), options), pick_units(others, options, groups)


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
    own = curves if options.allowed is None else curves[:, choice]
    if options.pooling:
        own = own / curves[:, :1]
        own += options.pooling * own.mean(axis=0)
    if groups is not None:
        _, member = np.unique(groups, return_inverse=True)
        own = np.stack([own[member == g].mean(axis=0) for g in range(member.max() + 1)])[member]
    return choice[np.argmin(own, axis=1)]


def _candidates(size: int, options: PSNOptions) -> np.ndarray:
    return np.arange(size) if options.allowed is None else options.allowed[options.allowed < size]


def _made(axes: Basis | Callable[[], Basis]) -> Basis:
    return axes() if callable(axes) else axes


def _remembered(make: Callable, scheme: str, shared: Callable) -> Callable:
    """What `make` gives for a fold; folds whose axes come from the same conditions follow each other."""
    last: list = []

    def model_of(fold: crossval.Fold):
        if scheme == "shared":
            return shared()
        release()
        if scheme == "trials":  # each of its own, which need not outlast it
            return make(fold)
        if not last or not np.array_equal(last[0][0], fold.basis):
            last.clear()
            last[:] = [(fold.basis, make(fold))]
        return last[0][1]

    return model_of


def _part(usable: Usable, trials: np.ndarray) -> Usable:
    shown = trials.any(axis=1)
    x = usable.x if shown.all() else usable.x[:, shown]
    return Usable(x, trials[shown], usable.valid)


def _axes_from(
    usable: Usable, trials: np.ndarray, levels: AllTrials, options: PSNOptions, dense: Dense
) -> np.ndarray:
    """Axes that only these trials (n_conditions, n_trials) determine; shrinkage levels stay those of all."""
    part = _part(usable, trials)
    if options.basis_name == "difference" and options.ordering == "eigenvalues":
        dtype = _precision(len(part.x))
        return _positive(expected_gain(part, levels.shrink_noise, levels.shrink_data, dtype, dense), dense)
    refit = _refit(part, levels, dense, keep_eig=True)
    mean = crossval.averages(part.x, part.there)
    if options.descends:
        covs = refit.signal_cov, refit.noise_cov
        return make_axes(
            options.basis, *covs, mean, refit.n_trials, signal_eig=refit.signal_eig, dense=dense
        )[0]
    return ordered_basis(options, refit, mean, part, dense).axes


def _model_from(
    usable: Usable, trials: np.ndarray, levels: AllTrials, dense: Dense
) -> tuple[np.ndarray, GSNResult]:
    part = _part(usable, trials)
    dtype = _precision(len(part.x)) if levels.shrink_noise < 1 else np.float64
    refit = _refit(part, levels, dense, keep_eig=False, dtype=dtype)
    if dtype != np.float64 and not _suffices(refit, dense):
        refit = _refit(part, levels, dense, keep_eig=False)
    return positive_axes(refit.signal_cov - refit.noise_cov / refit.n_trials, dense), refit


def _suffices(fit: GSNResult, dense: Dense) -> bool:
    """Whether single precision tells quiet units from rounding, and their Wiener filter has a solution."""
    size = fit.noise_var
    return bool(size.min() > _QUIETEST * size.max()) and dense.is_positive(
        wiener_matrix_of(fit.signal_cov, fit.noise_cov, fit.n_trials)
    )


def _refit(
    part: Usable, levels: AllTrials, dense: Dense, *, keep_eig: bool, dtype: type = np.float64
) -> GSNResult:
    grids = np.array([levels.shrink_noise]), np.array([levels.shrink_data])
    return gsn_complete(part, *grids, dense=dense, keep_eig=keep_eig, keep_raw=False, dtype=dtype)


def _precision(n_units: int) -> type:
    """Of what is only held against left-out trials."""
    return np.float32 if n_units > _SINGLE else np.float64


def positive_axes(m: np.ndarray, dense: Dense = CPU) -> np.ndarray:
    """Eigenvectors of a symmetric matrix with positive eigenvalues, descending."""
    return _positive(m.astype(_precision(len(m))), dense)


def _positive(m: np.ndarray, dense: Dense) -> np.ndarray:
    """The same; m is destroyed."""
    w, v = dense.eigh(m)
    return v[:, : np.count_nonzero(w > 0)].astype(np.float64)


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
