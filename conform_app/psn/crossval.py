# SPDX-License-Identifier: Apache-2.0
"""Cross-validated number of dimensions: what do the other trials, denoised, say about the one left out?

For each fold the averages of the training trials minus unit means, ``Z`` (n x C), are projected on the
first k axes of an orthonormal basis B and compared with the left-out trials ``Y`` (n x C), centred on the
same means:

    E(k) = sum_u E_u(k),    E_u(k) = sum_c w_c (R_k - Y)_uc^2,    R_k = B_k B_k' Z,    P = B' Z.

All k at once, without an n x n projector (weights w folded into Z and Y):

* population:  E(k) = |Y|^2 + sum_{d <= k} (|P_d|^2 - 2 P_d . (B'Y)_d);
* one unit:    E_u(k) - E_u(k-1) = B_uk^2 G_kk + 2 B_uk sum_{d < k} B_ud G_dk - 2 B_uk (Y P')_uk,   G = P P',

so the curves of all units cost one n x D x D product.  `w_c` is the number of left-out trials behind ``Y_c``.
Errors are divided by the number of trials and units: mean squared errors in the squared unit of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conform_app.psn.dense import CPU, Dense, row_blocks
from conform_app.psn.shrinkage import split_order


@dataclass(frozen=True, eq=False)
class Fold:
    """Trials of one fold, each (n_conditions, n_trials) bool.

    Attributes
    ----------
    train : trials that are averaged and denoised
    test : left-out trials that they are compared with
    basis : trials from which the axes and the unit means may be estimated
    """

    train: np.ndarray
    test: np.ndarray
    basis: np.ndarray


def leave_one_trial_out(there: np.ndarray, max_folds: int | None = None) -> list[Fold]:
    """Folds over repeats: the j-th existing trial of every condition that has at least two.

    With more repeats than `max_folds` each fold leaves out several: every max_folds-th.
    """
    counts = there.sum(axis=1)
    rank = np.where(there, np.cumsum(there, axis=1) - 1, -1)
    most = int(counts.max(initial=0))
    n_folds = most if max_folds is None else min(most, max_folds)
    folds = []
    for j in range(n_folds):
        test = (rank >= 0) & (rank % n_folds == j) & (counts[:, None] > 1)
        train = there & ~test
        # A condition needs something to be predicted from.
        lost = ~train.any(axis=1)
        train[lost] = there[lost]
        test[lost] = False
        if test.any():
            folds.append(Fold(train, test, train))
    return folds


def leave_conditions_out(there: np.ndarray, n_groups: int, max_folds: int | None = None) -> list[Fold]:
    """Folds for data with too few repeats to spare one: the axes come from the other conditions.

    The conditions are dealt to `n_groups` groups; within a group each trial in turn is left out as in
    `leave_one_trial_out`, and the axes are those of all trials of the other groups.
    """
    n_conditions = there.shape[0]
    group = np.empty(n_conditions, dtype=int)
    group[split_order(n_conditions)] = np.arange(n_conditions) % n_groups
    folds = []
    for g in range(n_groups):
        inside = (group == g)[:, None]
        outside = there & ~inside
        folds += [
            Fold(fold.train & inside, fold.test & inside, outside)
            for fold in leave_one_trial_out(there, max_folds)
            if (fold.test & inside).any()
        ]
    return folds


def averages(x: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Mean over the chosen trials, (n_units, n_conditions); 0 for conditions without any."""
    counts = trials.sum(axis=1)
    if trials.all():
        return x.mean(axis=2)
    out = np.zeros(x.shape[:2])
    for j in range(x.shape[2]):
        chosen = trials[:, j]
        out[:, chosen] += x[:, chosen, j]
    return out / np.maximum(counts, 1)


@dataclass(frozen=True, eq=False)
class CVCurves:
    """Mean squared error of predicting a left-out trial, for k = 0..D dimensions.

    Attributes
    ----------
    population : ndarray, (D + 1,)
        Mean over units.
    units : ndarray, (n_units, D + 1), or None
        Each unit's own.
    n_folds : int
    """

    population: np.ndarray
    units: np.ndarray | None
    n_folds: int


def cv_curves(
    x: np.ndarray,
    folds: list[Fold],
    basis_of: Callable[[Fold], np.ndarray],
    *,
    per_unit: bool = False,
    means: np.ndarray | None = None,
    centre_test: bool = True,
    swap: bool = False,
    dense: Dense = CPU,
) -> CVCurves:
    """Error curves over the number of dimensions.

    Parameters
    ----------
    x : ndarray, (n_units, n_conditions, n_trials) float64
    folds : list of Fold
    basis_of : callable
        Gives the axes (n_units, D) of a fold; those refitted without the left-out trials, or always the same.
        Folds may differ in D; curves go to the smallest.
    per_unit : bool, default False
        Also one curve per unit.
    means : ndarray, (n_units,), optional
        Unit means to subtract; by default those of each fold's training averages.
    centre_test : bool, default True
        Subtract the means from the left-out trials as well; False as in releases before December 2025.
    swap : bool, default False
        Train on the single trials and test on the average of the others.
    dense : Dense
        Where to compute.
    """
    n_units = len(x)
    sum_population, sum_units, weight = 0.0, 0.0, 0.0
    for fold in folds:
        axes = basis_of(fold)
        z, y, w = fold_data(x, fold, means=means, centre_test=centre_test, swap=swap)
        weight += w.sum()
        if per_unit:
            curve = unit_curves(axes, z, y, dense)
            del axes, z, y  # before the sums, and the next fold, need the memory
            sum_population = add_curves(sum_population, curve.sum(axis=0))
            sum_units = add_curves(sum_units, curve)
            del curve
        else:
            sum_population = add_curves(sum_population, population_curve(axes, z, y, dense))
            del axes, z, y
    if per_unit:
        sum_units /= weight
    return CVCurves(sum_population / (weight * n_units), sum_units if per_unit else None, len(folds))


def fold_data(
    x: np.ndarray,
    fold: Fold,
    *,
    means: np.ndarray | None = None,
    centre_test: bool = True,
    swap: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training and left-out averages, centred and times the root of their weight, and the weights.

    Only conditions with left-out trials are there.
    """
    z, y, w = _sides(x, fold, swap)
    m = _unit_means(x, fold, y if swap else z) if means is None else means
    used = w > 0
    root = np.sqrt(w[used])
    z = (z - m[:, None])[:, used] * root
    y = (y - (m[:, None] if centre_test else 0.0))[:, used] * root
    return z, y, w[used]


def add_curves(total: np.ndarray | float, curve: np.ndarray) -> np.ndarray:
    """Sum over the numbers of dimensions that all folds have."""
    if isinstance(total, float):
        return curve
    shared = min(total.shape[-1], curve.shape[-1])
    total = total[..., :shared]
    total += curve[..., :shared]
    return total


def _sides(x: np.ndarray, fold: Fold, swap: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training averages, left-out averages and the weight of each condition."""
    left_out = fold.test.sum(axis=1).astype(float)
    train, test = averages(x, fold.train), averages(x, fold.test)
    return (test, train, (left_out > 0).astype(float)) if swap else (train, test, left_out)


def _unit_means(x: np.ndarray, fold: Fold, train_averages: np.ndarray) -> np.ndarray:
    """Mean over conditions of the averages that the axes come from."""
    source = train_averages if fold.basis is fold.train else averages(x, fold.basis)
    return source[:, fold.basis.any(axis=1)].mean(axis=1)


def population_curve(axes: np.ndarray, z: np.ndarray, y: np.ndarray, dense: Dense = CPU) -> np.ndarray:
    """Squared error summed over units and conditions for k = 0..D."""
    p, q = (dense.product(axes.T, side.astype(axes.dtype, copy=False)) for side in (z, y))
    out = np.empty(axes.shape[1] + 1)
    out[0] = np.einsum("uc,uc->", y, y)
    out[1:] = out[0] + np.cumsum(np.einsum("dc,dc->d", p, p - 2 * q))
    return out


def unit_curves(axes: np.ndarray, z: np.ndarray, y: np.ndarray, dense: Dense = CPU) -> np.ndarray:
    """Squared error summed over conditions, (n_units, D + 1)."""
    p = dense.product(axes.T, z)
    gram = dense.gram(p)
    power = gram.diagonal().copy()
    gram *= 2
    for d in range(1, len(gram)):
        gram[d, :d] = 0.0
    np.fill_diagonal(gram, power)
    n_units, n_axes = axes.shape
    out = np.empty((n_units, n_axes + 1))
    for rows in row_blocks(n_units, n_axes):
        b = axes[rows]
        step = dense.product(b, gram)
        step -= 2 * dense.product(y[rows], p.T)
        step *= b
        out[rows, 0] = np.einsum("uc,uc->u", y[rows], y[rows])
        np.cumsum(step, axis=1, out=out[rows, 1:])
        out[rows, 1:] += out[rows, :1]
    return out
