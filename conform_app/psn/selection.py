# SPDX-License-Identifier: Apache-2.0
"""Analytic cuts for a population, for each unit or for groups of units, and the choice between two bases.

A unit's share of a dimension is ``B_ud^2``; its curves G_u and A_u are those of `conform_app.psn.threshold`
with variances weighted by that share.  Units of a group share the cut found on the mean of their curves.
"""

from __future__ import annotations

import numpy as np

from conform_app.psn.basis import Basis, make_basis, measured_signal, order_of, variance_along
from conform_app.psn.covariance import GSNResult
from conform_app.psn.dense import CPU, Dense, release
from conform_app.psn.intake import Usable
from conform_app.psn.options import PUBLISHED, PSNOptions
from conform_app.psn.result import truncate
from conform_app.psn.threshold import (
    cumulative,
    curves,
    pick_alpha,
    pick_prediction,
    pick_tradeoff,
    pick_variance,
)


def choose_analytic(
    basis: Basis, n_trials: float, options: PSNOptions, groups: np.ndarray | None = None
) -> int | np.ndarray:
    """Number of dimensions to keep, one for all or (n_units,)."""
    allowed = options.allowed
    if allowed is not None and allowed.size == 1:
        return int(allowed[0])
    if options.level == "unit":
        return _choose_units(basis, n_trials, options, groups)
    return pick(*population_curves(basis, n_trials, options), options)


def ordered_basis(
    options: PSNOptions, gsn: GSNResult, mean: np.ndarray, usable: Usable, dense: Dense = CPU
) -> Basis:
    """The axes asked for, in the order in which they are kept."""
    kind = options.basis if isinstance(options.basis, str) else options.basis[usable.valid]
    release()
    b = make_basis(
        kind, gsn.signal_cov, gsn.noise_cov, mean, gsn.n_trials, signal_eig=gsn.signal_eig, dense=dense
    )
    if options.descends:
        return b
    if options.ordering == "measured":
        order = np.argsort(measured_signal(b.axes, usable.x, usable.there))[::-1]
    else:
        order = order_of(b, options.ordering, gsn.n_trials)
    return b.ordered(order)


def population_curves(basis: Basis, n_trials: float, options: PSNOptions) -> tuple[np.ndarray, np.ndarray]:
    """G and A for the population, (D + 1,)."""
    gain, kept = curves(basis.signal_var, basis.noise_var, n_trials)
    if options.alpha is None and options.criterion == "prediction" and options.basis_name == "difference":
        gain = cumulative(basis.eigenvalues)
    if options.criterion == "variance_eigenvalues" and options.basis_name != "pca":
        kept = cumulative(np.maximum(basis.eigenvalues, 0.0))
    return gain, kept


def pick(gain: np.ndarray, kept: np.ndarray, options: PSNOptions) -> int:
    """Apply the criterion to one pair of curves."""
    if options.alpha is not None:
        return pick_alpha(gain, kept, options.alpha, options.allowed)[0]
    if options.criterion == "max-tradeoff":
        return pick_tradeoff(gain, kept, options.allowed, published=options.mode == PUBLISHED)
    if options.criterion in ("variance", "variance_eigenvalues"):
        return pick_variance(kept, options.variance_threshold, options.allowed)
    return pick_prediction(gain, options.allowed)


def _choose_units(
    basis: Basis, n_trials: float, options: PSNOptions, groups: np.ndarray | None
) -> np.ndarray:
    n_units = len(basis.axes)
    groups = np.arange(n_units) if groups is None else groups
    out = np.empty(n_units, dtype=np.int64)
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        share = (basis.axes[members] ** 2).mean(axis=0)
        gain, kept = curves(share * basis.signal_var, share * basis.noise_var, n_trials)
        out[members] = pick(gain, kept, options)
    return out


def compare_bases(
    x: np.ndarray, gsn: GSNResult, mean: np.ndarray, n_trials: float, options: PSNOptions
) -> str:
    """Signal or difference: whichever cut makes denoised and plain split halves agree better.

    Both the covariances and the halves come from the same trials, so the score is no held-out one.
    """
    of_signal, of_difference = compare_scores(x, gsn, mean, n_trials, options)[0]
    return "difference" if of_difference > of_signal else "signal"


def compare_scores(
    x: np.ndarray, gsn: GSNResult, mean: np.ndarray, n_trials: float, options: PSNOptions
) -> tuple[list[float], list[int]]:
    """Split-half scores and cuts of the signal and the difference basis."""
    even, odd = _half(x[:, :, 0::2]), _half(x[:, :, 1::2])
    scores, cuts = [], []
    for kind in ("signal", "difference"):
        b = make_basis(kind, gsn.signal_cov, gsn.noise_cov, mean, n_trials, signal_eig=gsn.signal_eig)
        b = b.ordered(order_of(b, options.ordering, n_trials))
        signal, noise = variance_along(b.axes, gsn.signal_cov), variance_along(b.axes, gsn.noise_cov)
        gain, kept = curves(signal, noise, n_trials)
        if options.criterion == "max-tradeoff":
            k = pick_tradeoff(gain, kept, options.allowed, published=options.mode == PUBLISHED)
        else:
            k = pick(gain, kept, options)
        r = (
            _row_correlation(even, truncate(b.axes, k, odd))
            + _row_correlation(truncate(b.axes, k, even), odd)
        ) / 2
        finite = r[np.isfinite(r)]
        scores.append(float(np.median(finite)) if finite.size else -np.inf)
        cuts.append(k)
    return scores, cuts


def _half(x: np.ndarray) -> np.ndarray:
    there = ~np.isnan(x)
    count = there.sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, x, 0.0).sum(axis=2) / count


def _row_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r of rows over the columns where both are finite in all rows."""
    use = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    a = a[:, use] - a[:, use].mean(axis=1, keepdims=True)
    b = b[:, use] - b[:, use].mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("uc,uc->u", a, b) / np.sqrt(
            np.einsum("uc,uc->u", a, a) * np.einsum("uc,uc->u", b, b)
        )
