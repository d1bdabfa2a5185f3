# SPDX-License-Identifier: Apache-2.0
"""What a PSN fit gives: the denoised responses, and the noise that was taken out.

The denoiser is kept as axes B and numbers of dimensions K, never as an n x n matrix:

    global:  x -> B_K B_K' (x - m) + m             unit u:  x_u -> B[u, :K_u] B[:, :K_u]' (x - m) + m_u
    wiener:  x -> cSb (cSb + cNb / T)^-1 (x - m) + m
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.psn.covariance import GSNResult
from conform_app.psn.dense import CPU, Dense, row_blocks


@dataclass(frozen=True, eq=False)
class Blend:
    """A weighted mean of the population's cut, the units' cuts and the Wiener filter.

    Attributes
    ----------
    weights : ndarray, (3,)
        They add up to one; of a single candidate where only one is not zero.
    population : int
    units : ndarray, (n_valid,) int
    """

    weights: np.ndarray
    population: int
    units: np.ndarray

    def options(self) -> dict[str, str]:
        """Criterion and level that this amounts to."""
        if (self.weights > 0).sum() > 1:
            return {"criterion": "blend", "level": "unit"}
        kind = int(self.weights.argmax())
        return {"criterion": "wiener" if kind == 2 else "cv", "level": "unit" if kind == 1 else "global"}

    def apply(
        self, axes: np.ndarray, gsn: GSNResult, n_trials: float, z: np.ndarray, dense: Dense = CPU
    ) -> np.ndarray:
        """Centred responses (n_valid, m) through the weighted mean."""
        out = np.zeros_like(z)
        for weight, cut in zip(self.weights, (self.population, self.units, None), strict=True):
            if weight > 0:
                part = (
                    wiener(gsn.signal_cov, gsn.noise_cov, n_trials, z, dense)
                    if cut is None
                    else truncate(axes, cut, z)
                )
                part *= weight
                out += part
        return out

    def rows(
        self, axes: np.ndarray, gsn: GSNResult, n_trials: float, dense: Dense = CPU
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The n x n matrix of the same, in which row u makes unit u, as blocks of rows."""
        filters = self.weights[2] > 0
        solve = dense.solver(wiener_matrix_of(gsn.signal_cov, gsn.noise_cov, n_trials)) if filters else None
        cuts = self.population if self.weights[0] > 0 else 0, self.units if self.weights[1] > 0 else 0
        most = int(max(np.max(cut, initial=0) for cut in cuts))
        order = np.arange(most)
        for rows in dense.parts(len(axes)):
            # A and cSb are symmetric: rows of cSb A^-1 are columns of A^-1 cSb.
            part = np.zeros((len(axes[rows]), most))
            for weight, cut in zip(self.weights, cuts, strict=False):
                part += weight * (order < np.broadcast_to(cut, len(axes))[rows, None])
            part *= axes[rows, :most]
            out = dense.product(part, axes[:, :most].T)
            if solve is not None:
                out += self.weights[2] * solve(gsn.signal_cov[:, rows]).T
            yield rows, out

    def operator(
        self, axes: np.ndarray, gsn: GSNResult, n_trials: float, dtype: type = np.float64
    ) -> np.ndarray:
        """The n x n matrix as a whole."""
        out = np.empty((len(axes), len(axes)), dtype)
        for rows, part in self.rows(axes, gsn, n_trials):
            out[rows] = part
        return out


WIENER = Blend(np.array([0.0, 0.0, 1.0]), 0, np.empty(0, dtype=int))
"""The Wiener filter alone."""


@dataclass(frozen=True, eq=False)
class PSNResult:
    """Denoised responses with the partition of signal and noise behind them.

    Attributes
    ----------
    denoised : ndarray, (n_units, n_conditions) float64
        Denoised trial averages, in the unit of the data.  Units left out hold their trial averages.
    averages : ndarray, (n_units, n_conditions) float64
        Trial averages before denoising.
    unit_means : ndarray, (n_units,) float64
        Mean over conditions, which is not touched.
    threshold : int or ndarray, (n_units,) int, or float
        Dimensions kept: of the population, of each unit (0 for units left out), or effective (Wiener).
    axes : ndarray, (n_valid, D) float64
        Orthonormal axes of the valid units, best first.
    eigenvalues : ndarray, (D,), or None
    signal_var, noise_var : ndarray, (D,) float64
        Signal and single-trial noise variance along the axes.
    cv_error : ndarray, (K + 1,), or None
        Mean squared error of predicting left-out trials with 0..K dimensions, mean over units.  K is D; for
        the difference basis, the number of axes that are expected to hold more signal than noise.
    kept_signal, removed_signal, kept_noise, removed_noise : ndarray, (n_units,) float64
        Variance over conditions of signal and of noise (of an average over T trials) that each unit has after
        denoising, and what it had more before: below 0 where it takes over that of others; NaN for units left
        out.
    n_trials : float
        T, trials per condition that an average stands for.
    valid : ndarray, (n_units,) bool
        False for units that could not be modelled (constant, not finite, partly missing, without noise).
    mode, basis_name, criterion, level, cv_scheme : str
        What was done; level is "global" or "unit", cv_scheme "trials", "conditions", "shared" or "".
    gsn : GSNResult
        Covariances of the valid units.
    account : tuple of str
        The same in sentences.
    blend : Blend or None
        Weights, where mode "auto" found a weighted mean to be better than any single choice.
    candidate_errors : dict of str to float
        Mode "auto": cross-validated mean squared error of each candidate.
    data : ndarray, (n_units, n_conditions, n_trials)
        As given, for the noise of each trial.
    """

    denoised: np.ndarray
    averages: np.ndarray
    unit_means: np.ndarray
    threshold: int | float | np.ndarray
    axes: np.ndarray
    eigenvalues: np.ndarray | None
    signal_var: np.ndarray
    noise_var: np.ndarray
    cv_error: np.ndarray | None
    kept_signal: np.ndarray
    removed_signal: np.ndarray
    kept_noise: np.ndarray
    removed_noise: np.ndarray
    n_trials: float
    valid: np.ndarray
    mode: str
    basis_name: str
    criterion: str
    level: str
    cv_scheme: str
    gsn: GSNResult
    account: tuple[str, ...]
    data: np.ndarray = field(repr=False)
    blend: Blend | None = None
    candidate_errors: dict[str, float] = field(default_factory=dict)

    @property
    def n_dims(self) -> int | float:
        """Dimensions kept: of the population, or the median over valid units."""
        if isinstance(self.threshold, np.ndarray):
            return float(np.median(self.threshold[self.valid]))
        return self.threshold

    @property
    def basis(self) -> np.ndarray:
        """Axes of all units, (n_units, D), zero for units left out."""
        return self._whole(self.axes)

    @property
    def signal_subspace(self) -> np.ndarray:
        """Axes that at least one unit keeps, (n_units, K)."""
        return self._whole(self.axes[:, : self._most()])

    @property
    def noise_subspace(self) -> np.ndarray:
        """Axes that no unit keeps, (n_units, D - K)."""
        return self._whole(self.axes[:, self._most() :])

    def noise(self) -> np.ndarray:
        """Estimate of the noise of every trial: data minus the denoised response of its condition.

        Returns
        -------
        ndarray, (n_units, n_conditions, n_trials)
            In the dtype of the data, NaN where a trial is missing.
        """
        dtype = self.data.dtype if np.issubdtype(self.data.dtype, np.floating) else np.float64
        return np.subtract(self.data, self.denoised[:, :, None].astype(dtype), dtype=dtype)

    def apply(self, responses: np.ndarray, *, n_trials: float | None = None) -> np.ndarray:
        """Denoise other responses of the same units, such as left-out trials or other conditions.

        Parameters
        ----------
        responses : array_like, (n_units,) or (n_units, ...)
            Trials or averages in the unit of the training data.
        n_trials : float, optional
            Trials that each response is the average of; used by the Wiener filter (default: T of the training
            data).

        Returns
        -------
        ndarray of the shape of `responses`, float64
            Units left out of the fit are returned unchanged.

        Raises
        ------
        DataError
            If the number of units differs.
        UsageError
            If n_trials is not positive.
        """
        responses = as_responses_of(self.valid.size, responses)
        out = responses.reshape(len(responses), -1).copy()
        m = self.unit_means[self.valid, None]
        z = out[self.valid] - m
        t = self.n_trials if n_trials is None else float(n_trials)
        if not t > 0:
            raise UsageError(f"n_trials = {n_trials} is not positive.", "Give the number of trials averaged.")
        if self.criterion == "wiener":
            out[self.valid] = wiener(self.gsn.signal_cov, self.gsn.noise_cov, t, z) + m
        elif self.blend is not None:
            out[self.valid] = self.blend.apply(self.axes, self.gsn, t, z) + m
        else:
            k = self.threshold[self.valid] if isinstance(self.threshold, np.ndarray) else self.threshold
            out[self.valid] = truncate(self.axes, k, z) + m
        return out.reshape(responses.shape)

    def operator(self, dtype: type = np.float64) -> np.ndarray:
        """The denoiser of the valid units as a matrix, in which row u makes unit u.

        Parameters
        ----------
        dtype : type

        Returns
        -------
        ndarray, (n_valid, n_valid)
        """
        blend = WIENER if self.criterion == "wiener" else self.blend
        if blend is not None:
            return blend.operator(self.axes, self.gsn, self.n_trials, dtype)
        k = self.threshold[self.valid] if isinstance(self.threshold, np.ndarray) else self.threshold
        return truncate(self.axes, k, np.eye(len(self.axes))).astype(dtype, copy=False)

    def _most(self) -> int:
        if self.criterion in ("wiener", "blend"):
            return self.axes.shape[1]
        return int(np.max(self.threshold))

    def _whole(self, axes: np.ndarray) -> np.ndarray:
        if self.valid.all():
            return axes
        out = np.zeros((self.valid.size, axes.shape[1]))
        out[self.valid] = axes
        return out


def as_responses_of(n_units: int, responses: np.ndarray) -> np.ndarray:
    """Responses as float64, once it is known that they have the units of the fit."""
    responses = np.asarray(responses, dtype=np.float64)
    if responses.ndim == 0 or responses.shape[0] != n_units:
        raise DataError(
            f"Responses of shape {responses.shape} do not have the {n_units} units of the fit.",
            "Give (n_units, n_responses) with the units in the same order.",
        )
    return responses


def truncate(axes: np.ndarray, k: int | np.ndarray, z: np.ndarray) -> np.ndarray:
    """Centred responses (n, m) rebuilt from the first k axes, k one number or one per unit."""
    if np.ndim(k) == 0:
        kept = axes[:, : int(k)]
        return kept @ (kept.T @ z)
    most = int(k.max(initial=0))
    coordinates = axes[:, :most].T @ z
    out = np.zeros_like(z)
    for rows in row_blocks(len(axes), max(most, z.shape[1])):
        out[rows] = np.where(np.arange(most) < k[rows, None], axes[rows, :most], 0.0) @ coordinates
    return out


def wiener(
    signal_cov: np.ndarray, noise_cov: np.ndarray, n_trials: float, z: np.ndarray, dense: Dense = CPU
) -> np.ndarray:
    """``cSb A^-1 z`` with ``A = cSb + cNb / T``; see `wiener_matrix_of`."""
    solve = dense.solver(wiener_matrix_of(signal_cov, noise_cov, n_trials))
    return dense.product(signal_cov, solve(z))


def wiener_by_trials(
    signal_cov: np.ndarray, noise_cov: np.ndarray, counts: np.ndarray, z: np.ndarray, dense: Dense = CPU
) -> np.ndarray:
    """`wiener` of averages (n, m) over `counts` (m,) trials each, whose noise differs by that."""
    out = None
    for count in np.unique(counts):
        here = counts == count
        part = wiener(signal_cov, noise_cov, float(count), z if here.all() else z[:, here], dense)
        if here.all():
            return part
        out = np.empty(z.shape, part.dtype) if out is None else out
        out[:, here] = part
    return out


def wiener_matrix_of(signal_cov: np.ndarray, noise_cov: np.ndarray, n_trials: float) -> np.ndarray:
    """A, the covariance of averages over T trials, with 1e-10 of its mean variance added to the diagonal."""
    a = noise_cov / n_trials
    a += signal_cov
    a[np.diag_indices_from(a)] += 1e-10 * np.trace(a) / len(a)
    return a


def between(axes: np.ndarray, cov: np.ndarray, dense: Dense = CPU) -> np.ndarray:
    """``B' cov B``, the covariance between K axes, (K, K)."""
    out = np.empty((axes.shape[1], axes.shape[1]))
    for part in dense.parts(len(out)):
        out[:, part] = dense.product(axes.T, dense.product(cov, axes[:, part]))
    return out


def kept_variance(axes: np.ndarray, k: int | np.ndarray, cov: np.ndarray, dense: Dense = CPU) -> np.ndarray:
    """What each unit keeps of a covariance between the K axes: ``sum_{d, e <= k} B_ud cov_de B_ue``."""
    limit = np.broadcast_to(np.asarray(k), (len(axes),))
    order, out = np.arange(len(cov)), np.empty(len(axes))
    for rows in row_blocks(len(axes), len(cov)):
        part = np.where(order < limit[rows, None], axes[rows], 0.0)
        out[rows] = np.einsum("ud,ud->u", dense.product(part, cov), part)
    return out
