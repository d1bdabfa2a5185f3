# SPDX-License-Identifier: Apache-2.0
"""GSN when single units miss single trials: every pair of units over what the two share.

With ``M_c`` (units x trials, 0/1) the mask of condition c and ``X_c`` the responses with zeros where
missing, the sums over shared trials of all pairs are products: ``n = M M'``, ``S = X X'``, ``a = X M'``
(sum of unit i over the trials shared with j), so the unbiased covariance over shared trials is ``(S - a *
a' / n) / (n - 1)``.

``cN``: its mean over conditions where the pair shares two trials or more.  ``cD``: the same formula over
conditions of the units' own means.  ``bias_ij``: mean over conditions of ``n_ij / (n_i n_j)``, the share of
cN in cD. Conditions without gaps, usually most, need no masks.
"""

from __future__ import annotations

import warnings

import numpy as np

from conform_app.errors import DataError
from conform_app.psn.covariance import (
    Biconvex,
    GSNResult,
    _data_level,
    _noise_level,
    biconvex,
    contrasts_and_means,
    ncsnr_of,
)
from conform_app.psn.dense import CPU, Dense
from conform_app.psn.intake import Usable
from conform_app.psn.shrinkage import shrunk

_MIN_COMPLETE = 5  # complete conditions needed to choose a level on them


def gsn_pairwise(
    usable: Usable,
    levels: np.ndarray,
    data_levels: np.ndarray | None = None,
    *,
    reference: bool = False,
    raw: bool = False,
    dense: Dense = CPU,
) -> GSNResult:
    """GSN with missing entries for single units; see the module's text.

    Levels of the data covariance are those of the noise covariance unless given; a single one is taken as it
    is.  ``raw``: leave out the alternation, signal and noise covariances are the raw ones.
    """
    data_levels = levels if data_levels is None else data_levels
    x = usable.x
    n_conditions = x.shape[1]
    mask = ~np.isnan(x)
    counts = mask.sum(axis=2)  # units x conditions
    if (counts.max(axis=1) < 2).any() or (counts.sum(axis=1) == 0).any():
        raise DataError("A unit has no condition with two trials.", "Leave such units out.")
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(mask, x, 0.0).sum(axis=2) / counts  # NaN where a unit lacks the condition
    origin = np.nanmean(means, axis=1)
    given = [None if reference or grid.size > 1 else float(grid[0]) for grid in (levels, data_levels)]
    s_n, s_d = given
    if s_n is None:
        s_n = _noise_level_of_complete(usable, levels, reference, dense)
    if s_d is None:
        s_d = _data_level_of_complete(means, data_levels, reference, dense)
    if not reference and (s_n is None or s_d is None):
        s_n, s_d = _levels_of_filled(usable, means, origin, s_n, s_d, levels, data_levels, dense)
    s_n, s_d = _or_one("noise", s_n), _or_one("data", s_d)
    c_n, bias = _noise_and_bias(x - origin[:, None, None], mask, dense)
    c_n = shrunk(c_n, s_n, reference=reference)
    c_d = shrunk(_masked_cov(means - origin[:, None], counts > 0, dense), s_d, reference=reference)
    c_s = c_d - c_n * bias
    t_mean = max(float(counts[counts > 0].mean()), 1.0)
    if raw:
        fit = Biconvex(c_s, c_n, 0, None)
    else:
        fit = biconvex(c_n, c_s, c_d, 1.0 / bias, t_mean, n_conditions, reference=reference, dense=dense)
    if reference:  # trials that all units have
        there = mask.all(axis=0).sum(axis=1)
        n_trials = there[there > 1].sum() / n_conditions
    else:
        n_trials = np.where(counts > 1, counts, 0).sum(axis=1).mean() / n_conditions
    return GSNResult(
        signal_cov=fit.signal,
        noise_cov=fit.noise,
        signal_cov_raw=c_s,
        noise_cov_raw=c_n,
        noise_var=c_n.diagonal().copy(),
        signal_mean=origin,
        ncsnr=ncsnr_of(c_s, c_n),
        shrink_noise=s_n,
        shrink_data=s_d,
        n_iter=fit.n_iter,
        n_trials=max(float(n_trials), 1.0),
        n_trials_data=t_mean,
        valid=usable.valid,
        signal_eig=fit.signal_eig,
    )


def _noise_and_bias(x: np.ndarray, mask: np.ndarray, dense: Dense = CPU) -> tuple[np.ndarray, np.ndarray]:
    n_units, n_conditions, _ = x.shape
    total, bias = np.zeros((n_units, n_units)), np.zeros((n_units, n_units))
    n_noise, n_bias = np.zeros((n_units, n_units)), np.zeros((n_units, n_units))
    for c in range(n_conditions):
        m = mask[:, c].astype(np.float64)
        y = np.where(mask[:, c], x[:, c], 0.0)
        own = m.sum(axis=1)
        both = np.outer(own > 0, own > 0)
        shared, cov, sums = dense.gram(m), dense.gram(y), dense.product(y, m.T)
        enough = shared > 1
        with np.errstate(invalid="ignore", divide="ignore"):
            cov -= sums * sums.T / shared
            cov /= shared - 1
            part = shared / np.outer(own, own)
        total += np.where(enough, cov, 0.0)
        n_noise += enough
        bias += np.where(both, part, 0.0)
        n_bias += both
    if (n_noise == 0).any() or (n_bias == 0).any():
        raise DataError("Two units share no condition with two trials.", 'Use uneven="fast".')
    return total / n_noise, bias / n_bias


def noise_share(mask: np.ndarray) -> np.ndarray:
    """Mean over conditions of ``n_ij / (n_i n_j)`` for a mask (n_units, n_conditions, n_trials)."""
    return _noise_and_bias(np.zeros(mask.shape), mask)[1]


def _masked_cov(d: np.ndarray, mask: np.ndarray, dense: Dense = CPU) -> np.ndarray:
    """Unbiased covariance over columns of the pairs of rows, each over the columns both have."""
    m = mask.astype(np.float64)
    y = np.where(mask, d, 0.0)
    shared, sums = dense.gram(m), dense.product(y, m.T)
    if (shared < 2).any():
        raise DataError("Two units share fewer than two conditions.", 'Use uneven="fast".')
    return (dense.gram(y) - sums * sums.T / shared) / (shared - 1)


def _or_one(what: str, level: float | None) -> float:
    if level is None:
        warnings.warn(
            f"Too few complete trials to choose the shrinkage of the {what} covariance; none is applied.",
            RuntimeWarning,
            stacklevel=3,
        )
        return 1.0
    return level


def _levels_of_filled(
    usable: Usable,
    means: np.ndarray,
    origin: np.ndarray,
    s_n: float | None,
    s_d: float | None,
    levels: np.ndarray,
    data_levels: np.ndarray,
    dense: Dense,
) -> tuple[float | None, float | None]:
    """Levels not found yet, with each unit's missing trials taken to be its mean of the condition.

    That makes units look somewhat less correlated than they are, and the levels somewhat low.
    """
    known = ~np.isnan(usable.x)
    there = 2 * known.sum(axis=0) >= len(known)
    means = np.where(np.isnan(means), origin[:, None], means)
    if s_n is None:
        x = np.where(known, usable.x, np.where(there, means[:, :, None], np.nan))
        filled = Usable(np.where(there, x, np.nan), there, usable.valid)
        s_n = _noise_level_of_complete(filled, levels, False, dense)
    if s_d is None:
        s_d = _data_level_of_complete(means, data_levels, False, dense)
    return s_n, s_d


def _noise_level_of_complete(
    usable: Usable, levels: np.ndarray, reference: bool, dense: Dense
) -> float | None:
    there = ~np.isnan(usable.x).any(axis=0)
    some = there.any(axis=1)
    if not (there.sum(axis=1) > 1).any():
        return None
    # Conditions without a complete trial keep their place in the fixed split but give no columns.
    part = Usable(usable.x[:, some], there[some], usable.valid)
    factor, condition, dof, _, _ = contrasts_and_means(part)
    where = np.flatnonzero(some)[condition]
    return _noise_level(factor, where, dof, there.shape[0], levels, reference, dense)


def _data_level_of_complete(
    means: np.ndarray, levels: np.ndarray, reference: bool, dense: Dense
) -> float | None:
    complete = ~np.isnan(means).any(axis=0)
    if complete.sum() < _MIN_COMPLETE:
        return None
    return _data_level(means[:, complete], levels, reference, dense)
