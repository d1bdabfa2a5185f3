# SPDX-License-Identifier: Apache-2.0
"""The span of the trials: coordinates in which PSN of any number of units fits into a small matrix.

``X`` (n x q): all trials minus the unit means.  With ``X'X = V L V'`` the columns of ``Q = X V L^-1/2`` are
an orthonormal basis of the span (r <= q axes), and ``Y = Q'X = L^1/2 V'`` are the trials in it.  The shrunk
covariances ``s F F' + (1 - s) diag(d)`` become ``s (Q'F)(Q'F)' + (1 - s) Q' diag(d) Q``, where

    Q' diag(d) Q = L^-1/2 V' (X' diag(d) X) V L^-1/2,

so sums over units of q x q products are all that is needed: `measure` takes them in one pass over blocks of
units, O(n q^2), and neither Q nor an n x n matrix is formed.  The likelihood of a shrinkage level
(`conform_app.psn.shrinkage`) needs such products too, of the contrasts whitened by their own variances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from conform_app.errors import DataError
from conform_app.psn.alternation import LARGE
from conform_app.psn.covariance import GSNResult, biconvex, contrasts_and_means
from conform_app.psn.crossval import averages
from conform_app.psn.dense import CPU, Dense, symmetrise
from conform_app.psn.intake import Usable
from conform_app.psn.shrinkage import best_level, held_out_mask

_BLOCK = 1 << 22  # values of a block in double precision
_RANK = 1e-12  # eigenvalues of X'X below this share of the largest are rounding
_TINY = np.finfo(float).eps ** 2  # share of the largest variance below which a unit does not vary
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Held:
    """Products of training and held-out columns, whitened by the units' training variances.

    Attributes
    ----------
    product : ndarray, (p, p)
    train : ndarray, (p,) bool
        Which columns are for training.
    n_points : int
        Held-out points that the other columns stand for.
    n_units, log_var : int, float
        Units that vary in the training part, and the sum of the logarithms of their variances.
    """

    product: np.ndarray
    train: np.ndarray
    n_points: int
    n_units: int
    log_var: float

    def nll(self, levels: np.ndarray) -> np.ndarray:
        """Mean negative log-likelihood of the held-out points, as `shrinkage.nll_of_levels` gives it."""
        out = np.full(len(levels), np.nan)
        n = self.n_units
        if not self.n_points or not self.train.any() or not n:
            return out
        lam, u = np.linalg.eigh(self.product[np.ix_(self.train, self.train)])
        keep = lam > max(lam[-1], 0.0) * n * np.finfo(float).eps
        lam, u = lam[keep], u[:, keep]
        cross = u.T @ self.product[np.ix_(self.train, ~self.train)]
        power = np.einsum("ij,ij->i", cross, cross) / (lam * self.n_points)
        whole = self.product.diagonal()[~self.train].sum() / self.n_points
        rest, nullity = max(whole - power.sum(), 0.0), n - lam.size
        tiny = n * np.finfo(float).eps
        for i, s in enumerate(levels):
            e = (1 - s) + s * lam
            if e.min() <= tiny * e.max() or (nullity and 1 - s <= tiny):
                continue
            out[i] = (power / e).sum() + np.log(e).sum() + self.log_var + n * np.log(2 * np.pi)
            if nullity:
                out[i] += rest / (1 - s) + nullity * np.log(1 - s)
        return out / 2


@dataclass(frozen=True, eq=False)
class Span:
    """What one pass over the data finds.

    Attributes
    ----------
    there : ndarray, (n_conditions, n_trials) bool
    unit_means : ndarray, (n_units,)
    noise_var, data_var : ndarray, (n_units,)
        Diagonals of cN and cD.
    root, vectors : ndarray, (r,) and (q, r)
        L^1/2 and V.
    noise_product, data_product : ndarray, (q, q), or None
        X' diag(d) X for both diagonals; None without shrinkage.
    noise_held, data_held : Held or None
    """

    there: np.ndarray
    unit_means: np.ndarray
    noise_var: np.ndarray
    data_var: np.ndarray
    root: np.ndarray
    vectors: np.ndarray
    noise_product: np.ndarray | None
    data_product: np.ndarray | None
    noise_held: Held | None
    data_held: Held | None

    def coordinates(self) -> np.ndarray:
        """Trials in the basis of the span, (r, n_conditions, n_trials), NaN where missing."""
        y = np.full((self.root.size, *self.there.shape), np.nan)
        y[:, self.there] = self.root[:, None] * self.vectors.T
        return y

    def gsn(self, levels: np.ndarray, dense: Dense = CPU) -> GSNResult:
        """GSN in the basis of the span, its covariances shrunk towards the units' diagonals."""
        there = self.there
        counts, n_conditions = there.sum(axis=1), len(there)
        usable = Usable(self.coordinates(), there, np.ones(self.root.size, dtype=bool))
        factor, _, dof, means, t_min = contrasts_and_means(usable)
        s_n = _choose(self.noise_held, levels, "noise")
        s_d = _choose(self.data_held, levels, "data")
        factor /= np.sqrt(dof * (counts > 1).sum())
        mean = means.mean(axis=1)
        deviations = (means - mean[:, None]) / np.sqrt(n_conditions - 1)
        c_n, c_d = s_n * (factor @ factor.T), s_d * (deviations @ deviations.T)
        del usable, factor, means, deviations
        if self.noise_product is not None:
            into = self.vectors / self.root
            c_n += (1 - s_n) * (into.T @ self.noise_product @ into)
            c_d += (1 - s_d) * (into.T @ self.data_product @ into)
            del into
        symmetrise(c_n)
        symmetrise(c_d)
        t_mean = max(counts[counts > 1].sum() / n_conditions, 1.0)
        c_s = c_d - c_n / t_min
        if len(c_s) >= LARGE:  # where the alternation does without
            c_d = None
        fit = biconvex(c_n, c_s, c_d, t_min, t_mean, n_conditions, dense=dense)
        return GSNResult(
            signal_cov=fit.signal,
            noise_cov=fit.noise,
            signal_cov_raw=None,
            noise_cov_raw=None,
            noise_var=c_n.diagonal().copy(),
            signal_mean=mean,
            ncsnr=np.zeros(self.root.size),
            shrink_noise=s_n,
            shrink_data=s_d,
            n_iter=fit.n_iter,
            n_trials=float(t_mean),
            n_trials_data=float(t_min),
            valid=np.ones(self.root.size, dtype=bool),
            signal_eig=fit.signal_eig,
        )


def _choose(held: Held | None, levels: np.ndarray, what: str) -> float:
    return float(levels[0]) if held is None else best_level(held.nll(levels), levels, what)


def blocks(n_units: int, per_unit: int) -> Iterator[slice]:
    """Slices over units that hold a bounded number of values."""
    size = max(1, _BLOCK // max(1, per_unit))
    for start in range(0, n_units, size):
        yield slice(start, min(start + size, n_units))


def centred_trials(data: np.ndarray, units: np.ndarray, there: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Trials of the units minus their means, (n, q) float64."""
    return data[units][:, there].astype(np.float64) - means[:, None]


def measure(
    data: np.ndarray,
    units: np.ndarray,
    there: np.ndarray,
    *,
    shrink: bool,
    choose: bool,
    progress: Progress | None = None,
) -> Span:
    """Sums over units of everything that the span needs, in one pass.

    Parameters
    ----------
    data : ndarray, (n_units, n_conditions, n_trials)
    units : ndarray of int
        Units to use; each has the trials in `there`.
    there : ndarray, (n_conditions, n_trials) bool
    shrink, choose : bool
        Take the products that shrinkage needs, and those that choose its levels.
    progress : callable, optional
        Called with ("PSN", units done, units in all).

    Raises
    ------
    DataError
        If the trials do not differ.
    """
    q, n = int(there.sum()), units.size
    means, var_n, var_d = np.empty(n), np.empty(n), np.empty(n)
    gram = np.zeros((q, q))
    products = (np.zeros((q, q)), np.zeros((q, q))) if shrink else (None, None)
    held = _HeldSums(there) if choose else None
    n_repeated = int((there.sum(axis=1) > 1).sum())
    for rows in blocks(n, there.size):
        x = data[units[rows]].astype(np.float64)
        part = Usable(x, there, np.ones(len(x), dtype=bool))
        factor, condition, dof, average, _ = contrasts_and_means(part)
        deviations = average - average.mean(axis=1, keepdims=True)
        means[rows] = averages(x, there).mean(axis=1)
        var_n[rows] = (factor**2 / dof).sum(axis=1) / n_repeated
        var_d[rows] = (deviations**2).sum(axis=1) / (len(there) - 1)
        x = x[:, there] - means[rows, None]
        gram += x.T @ x
        for product, var in zip(products, (var_n, var_d), strict=True):
            if product is not None:
                weighted = x * np.sqrt(var[rows, None])
                product += weighted.T @ weighted
        if held is not None:
            held.add(factor, condition, dof, average)
        if progress is not None:
            progress("PSN", rows.stop, n)
    values, vectors = np.linalg.eigh(gram)
    keep = values > _RANK * max(values[-1], 0.0)
    if not keep.any():
        raise DataError("The trials do not differ.", "Check the mask.")
    found = (None, None) if held is None else held.found()
    return Span(
        there, means, var_n, var_d, np.sqrt(values[keep]), np.ascontiguousarray(vectors[:, keep]),
        *products, *found,
    )  # fmt: skip


class _HeldSums:
    """Gathers, block by block, what the likelihoods of the levels need."""

    def __init__(self, there: np.ndarray) -> None:
        self.conditions = held_out_mask(len(there))
        self.noise: list | None = None
        self.data: list | None = None

    def add(self, factor: np.ndarray, condition: np.ndarray, dof: np.ndarray, average: np.ndarray) -> None:
        """Add a block of units."""
        held = self.conditions[condition]
        n_train = max(np.unique(condition[~held]).size, 1)
        scale = np.where(held, 1.0, 1 / np.sqrt(dof * n_train))
        points = int(np.round(((dof[held] + 1) / dof[held]).sum()))
        self.noise = _added(self.noise, factor * scale, ~held, points)
        held = self.conditions
        about = average - average[:, ~held].mean(axis=1, keepdims=True)
        about[:, ~held] /= np.sqrt(max(int((~held).sum()) - 1, 1))
        self.data = _added(self.data, about, ~held, int(held.sum()))

    def found(self) -> tuple[Held, Held]:
        """Sums of the noise and of the data."""
        return Held(*self.noise), Held(*self.data)


def _added(sums: list | None, columns: np.ndarray, train: np.ndarray, n_points: int) -> list:
    """Sums with a block of units added; units that do not vary in the training part are left out."""
    var = np.einsum("up,up->u", columns[:, train], columns[:, train])
    varies = var > _TINY * var.max(initial=0.0)
    white = columns[varies] / np.sqrt(var[varies, None])
    product, count, log_var = white.T @ white, int(varies.sum()), float(np.log(var[varies]).sum())
    if sums is None:
        return [product, train, n_points, count, log_var]
    sums[0] += product
    return [sums[0], train, n_points, sums[3] + count, sums[4] + log_var]
