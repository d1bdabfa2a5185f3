# SPDX-License-Identifier: Apache-2.0
"""Choosing the cut where single units miss single trials.

As in `conform_app.psn.honest`, but each unit has folds of its own: left out is the j-th trial that *it* has
of a condition (if it has two), and the axes are fitted to what is left of all units, pairwise
(`conform_app.psn.pairwise`).  With ``w_uc`` left-out trials of unit u in condition c,

    E_u(k) = sum_c w_uc (R_k - Y)_uc^2,        R_k = B_k B_k' Z,        R_k = R_(k-1) + b_k (b_k' Z),

where Z holds the averages of the other trials, so the weights cannot be folded into Z, and the curves are
running sums: O(n C D) a fold.  Without gaps folds, axes and curves are those of `honest`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from conform_app.errors import DataError
from conform_app.psn.basis import Basis
from conform_app.psn.covariance import GSNResult
from conform_app.psn.crossval import leave_conditions_out
from conform_app.psn.dense import CPU, Dense
from conform_app.psn.honest import Choice, _weigh, pick_population, pick_units, positive_axes
from conform_app.psn.intake import Usable
from conform_app.psn.options import PSNOptions
from conform_app.psn.pairwise import gsn_pairwise
from conform_app.psn.result import truncate, wiener
from conform_app.psn.selection import ordered_basis

_MIN_CONDITIONS, _CONDITION_GROUPS = 4, 5  # for axes from other conditions
_LEAST_DOF = 0.25  # share of the within-condition degrees of freedom that the axes must keep


@dataclass(frozen=True, eq=False)
class _Fold:
    """Trials of one fold, each (n_units, n_conditions, n_trials) bool; see `crossval.Fold`."""

    train: np.ndarray
    test: np.ndarray
    basis: np.ndarray


@dataclass(frozen=True, eq=False)
class _Part:
    """Centred averages of the two sides of a fold (n, C), weights, axes and covariances."""

    z: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    axes: np.ndarray
    gsn: GSNResult
    n_trials: float


def choose_cut(
    usable: Usable,
    gsn: GSNResult,
    axes: Basis,
    options: PSNOptions,
    groups: np.ndarray | None,
    dense: Dense = CPU,
) -> Choice:
    """The cut with the smallest error on left-out trials; `honest.choose_cut` with gaps."""
    parts, scheme = _parts(usable, gsn, axes, options, dense, means_of_all=True)
    curves = _summed([_curves(part) for part in parts])
    weight = sum(part.weight.sum(axis=1) for part in parts)
    own = curves / np.maximum(weight, 1)[:, None]
    whole = curves.sum(axis=0) / weight.sum()
    single = options.level == "unit"
    units = pick_units(own, options, groups) if single else None
    return Choice(pick_population(whole, options), units, whole, scheme, np.eye(3)[1 if single else 0], {})


def choose_blend(
    usable: Usable,
    gsn: GSNResult,
    axes: Basis,
    options: PSNOptions,
    groups: np.ndarray | None,
    dense: Dense = CPU,
) -> Choice:
    """Population cut, unit cut, Wiener filter, or a weighted mean; `honest.choose_blend` with gaps."""
    parts, scheme = _parts(usable, gsn, axes, options, dense)
    curves = [_curves(part) for part in parts]
    total = _summed(curves)
    n_conditions, length = len(usable.there), total.shape[1]
    gram, cross, power = np.zeros((n_conditions, 3, 3)), np.zeros((n_conditions, 3)), 0.0
    for part, curve in zip(parts, curves, strict=True):
        others = total - curve[:, :length] if len(parts) > 1 else total
        cuts = pick_population(others.mean(axis=0), options), pick_units(others, options, groups)
        filtered = wiener(part.gsn.signal_cov, part.gsn.noise_cov, part.n_trials, part.z, dense)
        guesses = np.stack([*(truncate(part.axes, k, part.z) for k in cuts), filtered])
        gram += np.einsum("uc,iuc,juc->cij", part.weight, guesses, guesses, optimize=True)
        cross += np.einsum("iuc,uc->ci", guesses, part.weight * part.y)
        power += np.einsum("uc,uc,uc->", part.weight, part.y, part.y)
    weight = sum(part.weight.sum(axis=1) for part in parts)
    noise = float(weight @ gsn.noise_var)  # of the left-out trials themselves
    weights, totals = _weigh(gram, cross, noise - power)
    errors = {name: float(power + value) / float(weight.sum()) for name, value in totals.items()}
    population, units = pick_population(total.mean(axis=0), options), pick_units(total, options, groups)
    return Choice(population, units, total.sum(axis=0) / weight.sum(), scheme, weights, errors)


def _summed(curves: list[np.ndarray]) -> np.ndarray:
    """Sum over folds, as far as all of them go."""
    length = min(curve.shape[1] for curve in curves)
    return sum(curve[:, :length] for curve in curves)


def _curves(part: _Part) -> np.ndarray:
    """Squared error summed over conditions for k = 0..D, (n_units, D + 1)."""
    coordinates = part.axes.T @ part.z
    rebuilt = np.zeros_like(part.z)
    out = np.empty((len(part.z), part.axes.shape[1] + 1))
    out[:, 0] = (part.weight * part.y**2).sum(axis=1)
    for d, row in enumerate(coordinates):
        rebuilt += part.axes[:, d, None] * row
        out[:, d + 1] = (part.weight * (rebuilt - part.y) ** 2).sum(axis=1)
    return out


def _parts(
    usable: Usable,
    gsn: GSNResult,
    axes: Basis,
    options: PSNOptions,
    dense: Dense,
    *,
    means_of_all: bool = False,
) -> tuple[list[_Part], str]:
    """What each fold is compared with and denoised by, and where its axes come from.

    With axes of all trials, the published shortcut (`means_of_all`) also subtracts their unit means.
    """
    there = ~np.isnan(usable.x)
    folds, scheme = _plan(there, options)
    if scheme != "shared":
        try:
            return _fitted(usable, folds, gsn, options, dense), scheme
        except DataError:
            warnings.warn(
                "Without the left-out trials some units share too few; the axes are those of all trials.",
                RuntimeWarning,
                stacklevel=4,
            )
            folds = list(_leave_trials_out(there, options.max_folds))
    means = _averages(usable.x, there).mean(axis=1, keepdims=True) if means_of_all else None
    return [_part(usable, fold, axes.axes, gsn, means) for fold in folds], "shared"


def _fitted(
    usable: Usable, folds: list[_Fold], gsn: GSNResult, options: PSNOptions, dense: Dense
) -> list[_Part]:
    """Parts with axes that the left-out trials have not touched; folds of equal basis follow each other."""
    parts, basis = [], None
    for fold in folds:
        if fold.basis is not basis:
            basis, model = fold.basis, _refitted(usable, fold, gsn, options, dense)
        parts.append(_part(usable, fold, *model))
    return parts


def _part(
    usable: Usable, fold: _Fold, axes: np.ndarray, gsn: GSNResult, m: np.ndarray | None = None
) -> _Part:
    shown = fold.train.any(axis=2)
    train, test = _averages(usable.x, fold.train), _averages(usable.x, fold.test)
    if m is None:
        source = train if fold.basis is fold.train else _averages(usable.x, fold.basis)
        known = fold.basis.any(axis=2)
        m = np.where(known, source, 0.0).sum(axis=1, keepdims=True) / known.sum(axis=1, keepdims=True)
    weight = fold.test.sum(axis=2).astype(float)
    tested = weight.any(axis=0)
    n_trials = float(fold.train[:, tested].sum(axis=2).mean())
    return _Part(np.where(shown, train - m, 0.0), test - m, weight, axes, gsn, n_trials)


def _averages(x: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Mean over the chosen trials of each unit, (n_units, n_conditions); 0 where there is none."""
    return np.where(trials, x, 0.0).sum(axis=2) / np.maximum(trials.sum(axis=2), 1)


def _refitted(
    usable: Usable, fold: _Fold, gsn: GSNResult, options: PSNOptions, dense: Dense
) -> tuple[np.ndarray, GSNResult]:
    """Axes and covariances that only the fold's trials determine; shrinkage stays that of all trials."""
    shown = fold.basis.any(axis=(0, 2))
    x = np.where(fold.basis, usable.x, np.nan)[:, shown]
    part = Usable(x, fold.basis[:, shown].all(axis=0), usable.valid)
    levels = np.array([gsn.shrink_noise]), np.array([gsn.shrink_data])
    plain = options.basis_name == "difference" and options.ordering == "eigenvalues"
    refit = gsn_pairwise(part, *levels, raw=plain and options.criterion != "auto", dense=dense)
    if plain:
        return positive_axes(refit.signal_cov - refit.noise_cov / refit.n_trials, dense), refit
    return ordered_basis(options, refit, _averages(x, ~np.isnan(x)), part, dense).axes, refit


def _plan(there: np.ndarray, options: PSNOptions) -> tuple[list[_Fold], str]:
    """Folds, and where their axes come from; as `honest.plan_folds`."""
    trials = list(_leave_trials_out(there, options.max_folds))
    if (
        options.cv_basis == "all"
        or options.basis_name in ("random", "custom")
        or options.ordering == "measured"
    ):
        return trials, "shared"
    full = _dof(there)
    if min(_dof(fold.basis) for fold in trials) >= _LEAST_DOF * full:
        return trials, "trials"
    n_conditions = there.shape[1]
    if n_conditions >= _MIN_CONDITIONS:
        folds = _leave_conditions_out(there, min(_CONDITION_GROUPS, n_conditions), options.max_folds)
        if folds and min(_dof(fold.basis) for fold in folds) >= _LEAST_DOF * full:
            return folds, "conditions"
    return trials, "shared"


def _dof(there: np.ndarray) -> float:
    """Degrees of freedom within conditions, mean over units."""
    return float(np.maximum(there.sum(axis=2) - 1, 0).sum(axis=1).mean())


def _leave_trials_out(there: np.ndarray, max_folds: int) -> Iterator[_Fold]:
    """The j-th trial that each unit has of each condition (every max_folds-th of many)."""
    counts = there.sum(axis=2, keepdims=True)
    rank = np.cumsum(there, axis=2) - 1
    n_folds = min(int(counts.max(initial=0)), max_folds)
    for j in range(n_folds):
        test = there & (rank % n_folds == j) & (counts > 1)
        train = there & ~test
        lost = ~train.any(axis=2) & there.any(axis=2)  # a condition needs something to be predicted from
        train[lost], test[lost] = there[lost], False
        if test.any():
            yield _Fold(train, test, train)


def _leave_conditions_out(there: np.ndarray, n_groups: int, max_folds: int) -> list[_Fold]:
    """For data with too few repeats to spare one: the axes come from the other conditions."""
    # the groups are those of data without gaps
    whole = np.ones((there.shape[1], 2), dtype=bool)
    groups = list(
        dict.fromkeys(fold.basis.any(axis=1).tobytes() for fold in leave_conditions_out(whole, n_groups))
    )
    folds = []
    for outside in (np.frombuffer(group, dtype=bool) for group in groups):
        basis = there & outside[None, :, None]
        inside = _leave_trials_out(there & ~outside[None, :, None], max_folds)
        folds += [_Fold(fold.train, fold.test, basis) for fold in inside]
    return folds
