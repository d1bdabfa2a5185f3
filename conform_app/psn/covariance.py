# SPDX-License-Identifier: Apache-2.0
"""Generative modelling of signal and noise (GSN): covariances of the signal and of the noise across units.

The response of n units to condition c in trial j is ``x_cj = s_c + e_cj`` with ``s ~ (mnS, cS)`` and
``e ~ (0, cN)``.  With t trials per condition the trial averages have covariance ``cD = cS + cN / t``.

* ``cN``: mean over conditions of the unbiased covariance over trials, shrunk towards its diagonal.  Trials
  enter through orthonormal contrasts ``h`` (t - 1 of them, rows of Helmert's matrix): ``F_N = X h'`` has
  the same outer product as the residuals ``X - mean`` in fewer columns.
* ``cD``: covariance over conditions of the averages, shrunk as well; ``cS = cD - cN / t``.
* ``cSb, cNb``: both positive semi-definite and consistent with the data, by turns
  (`conform_app.psn.alternation`).

Kay, Prince, Gebhart, Tuckute, Zhou, Naselaris, Schutt (2025), "Disentangling signal and noise in neural
responses through generative modeling".  All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import helmert

from conform_app.errors import UsageError
from conform_app.psn import alternation, published
from conform_app.psn.alternation import Biconvex, biconvex
from conform_app.psn.dense import CPU, Dense, add_scaled, dense_on, release, row_blocks
from conform_app.psn.intake import Usable, usable_data
from conform_app.psn.shrinkage import (
    DEFAULT_LEVELS,
    best_level,
    held_out_mask,
    nll_of_levels,
    nll_of_scales,
    shrunk,
    split_order,
)


@dataclass(frozen=True, eq=False)
class GSNResult:
    """Signal and noise covariances of n units.

    Attributes
    ----------
    signal_cov, noise_cov : ndarray, (n_units, n_units) float64
        Positive semi-definite estimates (cSb, cNb); rows of units left out are zero.
    signal_cov_raw, noise_cov_raw : ndarray, (n_units, n_units) float64, or None
        Before the alternation (cS, cN).  None in a fit of PSN, which makes no use of them.
    noise_var : ndarray, (n_units,) float64
        Variance of the noise of a single trial, the diagonal of cN.
    signal_mean : ndarray, (n_units,) float64
        Mean over conditions.
    ncsnr : ndarray, (n_units,) float64
        Signal sd over noise sd of a single trial.
    shrink_noise, shrink_data : float
        Shrinkage levels of cN and cD, 1 = not shrunk.
    n_iter : int
        Rounds of the alternation beyond the first.
    n_trials : float
        Trials per condition that an average stands for (T in PSN).
    n_trials_data : float
        Trials averaged for cD (the smallest number when trials are uneven).
    valid : ndarray, (n_units,) bool
        False for units left out: constant, not finite, without noise, or partly missing.
    signal_eig : (ndarray, ndarray) or None
        Eigenvalues (descending, not clipped) and eigenvectors behind signal_cov, where they were needed.
    """

    signal_cov: np.ndarray
    noise_cov: np.ndarray
    signal_cov_raw: np.ndarray | None
    noise_cov_raw: np.ndarray | None
    noise_var: np.ndarray
    signal_mean: np.ndarray
    ncsnr: np.ndarray
    shrink_noise: float
    shrink_data: float
    n_iter: int
    n_trials: float
    n_trials_data: float
    valid: np.ndarray
    signal_eig: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)


def fit_gsn(
    data: np.ndarray,
    *,
    shrink: bool = True,
    shrink_levels: np.ndarray | None = None,
    uneven: str = "fast",
    reference: bool = False,
    device: str = "cpu",
) -> GSNResult:
    """Estimate signal and noise covariances from repeated trials.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        Responses in any one unit of measurement; NaN marks a missing trial.
    shrink : bool, default True
        Choose shrinkage towards the diagonal on held-out conditions; False: none.
    shrink_levels : array_like, optional
        Levels to choose from, instead of 0, 0.02, ..., 1.
    uneven : {"fast", "missing"}, default "fast"
        What to do when trials are missing.  "fast": a trial counts only where all units have it.  "missing":
        pairwise over the trials that two units share (costly: a few n x n products a condition).
    reference : bool, default False
        Reproduce the published code to rounding: no unit is left out (one constant unit then turns off
        shrinkage for all), 1e-10 is added to singular matrices, a single unit's variance is scaled by the
        level.
    device : {"cpu", "cuda", "auto"}, default "cpu"
        Where to compute; "auto": on a GPU if there is one.

    Returns
    -------
    GSNResult

    Raises
    ------
    DataError
        If data are not 3-D, have no repeats, or a condition has no valid trial.
    UsageError
        If an option is out of range, or there is no such device.
    """
    if uneven not in ("fast", "reference", "missing"):
        raise UsageError(f"uneven = {uneven!r} is not known.", 'Choose "fast" or "missing".')
    levels, dense = level_grid(shrink, shrink_levels), dense_on(device)
    usable = usable_data(data, keep_partial=uneven == "missing", keep_all=reference)
    if reference and np.asarray(data).dtype == np.float32:
        usable = replace(usable, x=np.asarray(data))
    if uneven == "missing" and np.isnan(usable.x).any():
        from conform_app.psn.pairwise import gsn_pairwise

        return embed(gsn_pairwise(usable, levels, reference=reference, dense=dense), usable.valid)
    return embed(gsn_complete(usable, levels, levels, reference=reference, dense=dense), usable.valid)


def level_grid(shrink: bool, shrink_levels: np.ndarray | None) -> np.ndarray:
    """The shrinkage levels to choose from."""
    if shrink_levels is None:
        return DEFAULT_LEVELS if shrink else np.ones(1)
    levels = np.atleast_1d(np.asarray(shrink_levels, dtype=float)).ravel()
    if levels.size == 0 or not np.all((levels >= 0) & (levels <= 1)):
        raise UsageError(f"Shrinkage levels {shrink_levels} are not in 0..1.", "Give numbers from 0 to 1.")
    return levels


def gsn_complete(
    usable: Usable,
    noise_levels: np.ndarray,
    data_levels: np.ndarray,
    *,
    reference: bool = False,
    dense: Dense = CPU,
    keep_eig: bool = True,
    keep_raw: bool = True,
    dtype: type = np.float64,
) -> GSNResult:
    """GSN where a trial is either there for all units or for none.

    Grids of a single level fix the shrinkage, which saves the two eigendecompositions of the choice.  Without
    ``keep_eig`` there is no ``signal_eig``, which may save another; without ``keep_raw`` there are no raw
    covariances.  ``dtype``: of the matrices; single precision is for given levels and `alternation.LARGE`
    populations.
    """
    n_conditions = usable.there.shape[0]
    factors = factors_of(usable)
    t_min, t_mean, mean = factors.t_min, factors.t_mean, factors.means.mean(axis=1)
    s_n, s_d = _levels(factors, n_conditions, noise_levels, data_levels, reference, dense)
    release()
    if reference:
        c_n, c_d = published.raw_covariances(usable, factors.means, s_n, s_d)
        c_s = c_d - c_n / t_min
    else:
        c_n = shrunk(dense.gram(factors.noise_root().astype(dtype, copy=False)), s_n)
        c_d = shrunk(dense.gram(factors.data_root().astype(dtype, copy=False)), s_d)
        del factors
        if len(c_d) < alternation.LARGE:
            c_s = c_d - c_n / t_min
        else:  # in place, and cD again where it is needed
            add_scaled(c_d, -1 / t_min, c_n)
            c_s, c_d = c_d, None
    fit: Biconvex = biconvex(
        c_n, c_s, c_d, t_min, t_mean, n_conditions, reference=reference, dense=dense, keep_eig=keep_eig
    )
    return GSNResult(
        signal_cov=fit.signal,
        noise_cov=fit.noise,
        signal_cov_raw=c_s if keep_raw else None,
        noise_cov_raw=c_n if keep_raw else None,
        noise_var=c_n.diagonal().copy(),
        signal_mean=mean,
        ncsnr=ncsnr_of(c_s, c_n),
        shrink_noise=s_n,
        shrink_data=s_d,
        n_iter=fit.n_iter,
        n_trials=float(t_mean),
        n_trials_data=float(t_min),
        valid=usable.valid,
        signal_eig=fit.signal_eig,
    )


def shrinkage_of(usable: Usable, levels: np.ndarray, dense: Dense = CPU) -> tuple[float, float]:
    """The levels of noise and data covariance that `gsn_complete` would choose, without the rest."""
    if levels.size == 1:
        return float(levels[0]), float(levels[0])
    return _levels(factors_of(usable), usable.there.shape[0], levels, levels, False, dense)


@dataclass(frozen=True, eq=False)
class Factors:
    """What the covariances are made of.

    Attributes
    ----------
    noise : ndarray, (n_units, q)
        Contrasts within conditions.
    condition, dof : ndarray, (q,)
        Condition of each contrast and its number of trials minus one.
    means : ndarray, (n_units, n_conditions)
        Averages over `t_min` trials.
    t_min, t_mean : int, float
        Trials averaged, and trials per condition (T).
    n_repeated : int
        Conditions with two trials or more.
    """

    noise: np.ndarray
    condition: np.ndarray
    dof: np.ndarray
    means: np.ndarray
    t_min: int
    t_mean: float
    n_repeated: int

    def noise_root(self) -> np.ndarray:
        """F with ``F F' = cN`` (not shrunk); the contrasts are overwritten."""
        root = self.noise
        root /= np.sqrt(self.dof * self.n_repeated)
        return root

    def data_root(self) -> np.ndarray:
        """F with ``F F' = cD`` (not shrunk); the averages are overwritten."""
        root = self.means
        root -= root.mean(axis=1, keepdims=True)
        root /= np.sqrt(self.means.shape[1] - 1)
        return root


def factors_of(usable: Usable) -> Factors:
    """Contrasts and averages of the trials that are there."""
    counts = usable.there.sum(axis=1)
    t_mean = max(counts[counts > 1].sum() / counts.size, 1.0)
    noise, condition, dof, means, t_min = contrasts_and_means(usable)
    return Factors(noise, condition, dof, means, t_min, t_mean, int((counts > 1).sum()))


def expected_gain(usable: Usable, s_n: float, s_d: float, dtype: type, dense: Dense = CPU) -> np.ndarray:
    """``cS - cN / T`` of raw covariances shrunk to given levels, (n_units, n_units)."""
    factors = factors_of(usable)
    share = 1 / factors.t_min + 1 / factors.t_mean
    noise = factors.noise_root()
    diagonal = -share * np.einsum("ij,ij->i", noise, noise)
    noise *= np.sqrt(share * s_n)
    data, noise = factors.data_root(), noise.astype(dtype, copy=False)
    del factors
    out = dense.gram(noise)
    del noise
    np.negative(out, out=out)
    diagonal += np.einsum("ij,ij->i", data, data)
    data *= np.sqrt(s_d)
    out += dense.gram(data.astype(dtype, copy=False))
    np.fill_diagonal(out, diagonal)  # shrinkage leaves it as it is
    return out


def contrasts_and_means(usable: Usable) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Within-condition contrasts and averages over an equal number of trials.

    Returns
    -------
    factor : ndarray, (n_units, q)
        Contrasts of all conditions with at least two trials.
    condition, dof : ndarray, (q,)
        Condition of each column and its number of trials minus one.
    means : ndarray, (n_units, n_conditions)
        Averages of the first ``t_min`` valid trials in the order of `split_order`.
    t_min : int
        The smallest number of valid trials of a condition.
    """
    x, there = usable.x, usable.there
    counts = there.sum(axis=1)
    t_min = int(counts.min())
    means = np.empty(x.shape[:2])
    factor = np.empty((len(x), int((counts - 1).sum())))
    conditions, dofs, first = [], [], 0
    for k in np.unique(counts):
        rows = np.flatnonzero(counts == k)
        trials = np.argsort(~there[rows], axis=1, kind="stable")[:, :k]  # valid trials in ascending order
        whole = rows.size == there.shape[0] and k == there.shape[1]
        picked = np.sort(split_order(k)[:t_min])
        columns = slice(first, first + rows.size * (k - 1))
        for units in row_blocks(len(x), rows.size * k):
            y = x[units] if whole else x[units][:, rows[:, None], trials]
            means[units, rows] = y.mean(axis=2) if t_min == k else y[:, :, picked].mean(axis=2)
            if k > 1:
                # Contrasts ignore what is common to all trials, so the first trial may serve as the origin:
                # a constant unit then gives exact zeros.
                block = (y[:, :, 1:] - y[:, :, :1]) @ helmert(k)[:, 1:].T
                factor[units, columns] = block.reshape(len(y), -1)
        if k > 1:
            conditions.append(np.repeat(rows, k - 1))
            dofs.append(np.full(rows.size * (k - 1), k - 1.0))
        first = columns.stop
    return factor, np.concatenate(conditions), np.concatenate(dofs), means, t_min


def _levels(
    factors: Factors,
    n_conditions: int,
    noise_levels: np.ndarray,
    data_levels: np.ndarray,
    reference: bool,
    dense: Dense,
) -> tuple[float, float]:
    s_n = _noise_level(
        factors.noise, factors.condition, factors.dof, n_conditions, noise_levels, reference, dense
    )
    return s_n, _data_level(factors.means, data_levels, reference, dense)


def _noise_level(
    factor: np.ndarray,
    condition: np.ndarray,
    dof: np.ndarray,
    n_conditions: int,
    levels: np.ndarray,
    reference: bool,
    dense: Dense = CPU,
) -> float:
    """Level of cN: likelihood of the held-out conditions' residuals."""
    if levels.size == 1:
        return float(levels[0])
    held = held_out_mask(n_conditions)[condition]
    n_train = np.unique(condition[~held]).size
    # k - 1 contrasts stand for k residual vectors.
    n_points = int(np.round(((dof[held] + 1) / dof[held]).sum()))
    train = factor[:, ~held]
    train /= np.sqrt(dof[~held] * n_train)
    return _level(train, factor[:, held], n_points, levels, reference, "noise", dense)


def _data_level(means: np.ndarray, levels: np.ndarray, reference: bool, dense: Dense = CPU) -> float:
    """Level of cD: likelihood of the held-out conditions' averages about the training mean."""
    if levels.size == 1:
        return float(levels[0])
    held = held_out_mask(means.shape[1])
    mean = means[:, ~held].mean(axis=1, keepdims=True)
    n_train = int((~held).sum())
    train = (means[:, ~held] - mean) / np.sqrt(max(n_train - 1, 1))
    return _level(train, means[:, held] - mean, int(held.sum()), levels, reference, "data", dense)


def _level(
    train: np.ndarray,
    points: np.ndarray,
    n_points: int,
    levels: np.ndarray,
    reference: bool,
    what: str,
    dense: Dense,
) -> float:
    if reference and len(train) == 1:
        nll = nll_of_scales((train**2).sum(), (points**2).sum() / max(n_points, 1), levels)
        return best_level(nll if n_points else np.full(levels.size, np.nan), levels, what)
    if not reference:
        # A unit that does not vary in the training part must not decide for all others.
        size = np.einsum("ij,ij->i", train, train)
        keep = size > np.finfo(float).eps ** 2 * size.max(initial=0.0)
        if not keep.all():
            train, points = train[keep], points[keep]
    return best_level(nll_of_levels(train, points, n_points, levels, dense), levels, what)


def ncsnr_of(c_s: np.ndarray, c_n: np.ndarray) -> np.ndarray:
    """Signal sd over noise sd from the diagonals; 0 where there is no noise variance."""
    signal, noise = np.sqrt(np.maximum(c_s.diagonal(), 0)), np.sqrt(np.maximum(c_n.diagonal(), 0))
    return np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0)


def embed(fit: GSNResult, valid: np.ndarray) -> GSNResult:
    """Put units that were left out back, with zero covariance."""
    if valid.all():
        return fit
    n = valid.size
    where = np.ix_(valid, valid)

    def square(c: np.ndarray | None) -> np.ndarray | None:
        if c is None:
            return None
        out = np.zeros((n, n))
        out[where] = c
        return out

    def vector(v: np.ndarray, fill: float) -> np.ndarray:
        out = np.full(n, fill)
        out[valid] = v
        return out

    return GSNResult(
        signal_cov=square(fit.signal_cov),
        noise_cov=square(fit.noise_cov),
        signal_cov_raw=square(fit.signal_cov_raw),
        noise_cov_raw=square(fit.noise_cov_raw),
        noise_var=vector(fit.noise_var, 0.0),
        signal_mean=vector(fit.signal_mean, np.nan),
        ncsnr=vector(fit.ncsnr, np.nan),
        shrink_noise=fit.shrink_noise,
        shrink_data=fit.shrink_data,
        n_iter=fit.n_iter,
        n_trials=fit.n_trials,
        n_trials_data=fit.n_trials_data,
        valid=valid,
    )
