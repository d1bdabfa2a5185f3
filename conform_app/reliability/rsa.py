# SPDX-License-Identifier: Apache-2.0
"""How well could a perfect model predict a measured representational dissimilarity matrix (RDM)?

Signals are drawn from N(mnS, scale cSb), noise of averages over t trials from N(0, cNb / t), as estimated by
GSN; the ceiling is the median, over simulations, of the Pearson correlation between the RDM of the signals
and the RDM of the measurements.  RDM: 1 - Pearson correlation across units of two conditions.  Three scales
are possible: one; that of the variances before cSb was made positive semi-definite; and the one with which
RDMs of halves of simulated trials agree as those of the data do (`conform_app.reliability.rsascale`).

Kay et al. (2025), "Disentangling signal and noise in neural responses through generative modeling".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.reliability.rsascale import matching_scale, split_half_rdm

_NO_RDM = "An RDM needs covariances of two units or more, and three conditions."
_REMEDY = "Give matrices (n_units, n_units) of one fit."


@dataclass(frozen=True)
class RSACeiling:
    """Noise ceiling of an RDM.

    Attributes
    ----------
    ceiling : float
        Correlation, median over simulations.
    simulated : ndarray, (n_simulations,)
    scale : float
        Factor on the signal covariance.
    split_half : float
        Correlation of the RDMs of two halves of the data's trials, median over splits; NaN without data.
    """

    ceiling: float
    simulated: np.ndarray
    scale: float
    split_half: float = float("nan")


def rsa_noise_ceiling(
    signal_cov: np.ndarray,
    noise_cov: np.ndarray,
    n_conditions: int,
    n_trials: float,
    *,
    signal_mean: np.ndarray | None = None,
    raw_signal_cov: np.ndarray | None = None,
    data: np.ndarray | None = None,
    n_simulations: int = 200,
    seed: int = 0,
) -> RSACeiling:
    """Noise ceiling for comparing a model's RDM with that of measured averages.

    Parameters
    ----------
    signal_cov, noise_cov : ndarray, (n_units, n_units)
        Positive semi-definite covariances of :func:`conform_app.psn.fit_gsn`.  Units without any variance, as
        those that were left out there, are left out of the RDMs, too.
    n_conditions : int
    n_trials : float
        Trials averaged per condition.
    signal_mean : ndarray, (n_units,), optional
        Mean response (default 0).
    raw_signal_cov : ndarray, optional
        The estimate before it was made positive semi-definite: signal variances are then scaled so that
        their mean is that of this one.
    data : ndarray, (n_units, n_conditions, n_trials), optional
        The data themselves: signal variances are then scaled (by 0 to 2) so that simulated halves of trials
        agree as well as halves of the data do.  NaN marks a missing trial.
    n_simulations : int
    seed : int

    Returns
    -------
    RSACeiling

    Raises
    ------
    DataError
        If shapes do not agree, or there are fewer than two units with variance, or three conditions.
    UsageError
        If a number is not positive, or two scales are asked for.
    """
    n = len(signal_cov)
    signal_cov, noise_cov = np.asarray(signal_cov), np.asarray(noise_cov)
    if signal_cov.shape != (n, n) or noise_cov.shape != (n, n) or n_conditions < 3:
        raise DataError(_NO_RDM, _REMEDY)
    if not (n_trials > 0 and n_simulations > 0):
        raise UsageError("Numbers of trials and simulations must be positive.", "Give positive numbers.")
    if raw_signal_cov is not None and data is not None:
        raise UsageError("There is one scale, from raw_signal_cov or from data.", "Give one of them.")
    used = signal_cov.diagonal() + noise_cov.diagonal() > 0
    if used.sum() < 2:
        raise DataError(_NO_RDM, _REMEDY)
    rows = np.ix_(used, used)
    signal_cov, noise_cov = signal_cov[rows], noise_cov[rows]
    mean = 0.0 if signal_mean is None else np.asarray(signal_mean)[used, None]
    scale, split_half = 1.0, float("nan")
    if raw_signal_cov is not None:
        scale = float(np.trace(np.asarray(raw_signal_cov)[rows]) / np.trace(signal_cov))
        if not scale > 0:
            raise DataError(
                "The estimated signal variance is not positive.", "There is no signal to compare."
            )
    if data is not None:
        data = _of_units(data, n)[used]
        split_half, per_half = split_half_rdm(data, _agreement, n_splits=n_simulations, seed=seed)
        scale = matching_scale(
            split_half, per_half, _root(signal_cov), _root(noise_cov), mean, _agreement,
            n_simulations=n_simulations, seed=seed,
        )  # fmt: skip
    if scale == 0:
        return RSACeiling(0.0, np.zeros(n_simulations), scale, split_half)
    simulated = _simulated(
        _root(signal_cov * scale), _root(noise_cov / n_trials), mean, n_conditions, n_simulations, seed
    )
    return RSACeiling(float(np.nanmedian(simulated)), simulated, scale, split_half)


def _simulated(
    signal_root: np.ndarray,
    noise_root: np.ndarray,
    mean: np.ndarray | float,
    n_conditions: int,
    n_simulations: int,
    seed: int,
) -> np.ndarray:
    """Agreement of the RDMs of signals and of measurements, drawn so often."""
    rng = np.random.default_rng(seed)
    n, out = len(signal_root), np.empty(n_simulations)
    for i in range(n_simulations):
        signal = mean + signal_root @ rng.standard_normal((n, n_conditions))
        measured = signal + noise_root @ rng.standard_normal((n, n_conditions))
        out[i] = _agreement(signal, measured)
    return out


def _of_units(data: np.ndarray, n: int) -> np.ndarray:
    """Data as float64, once it is known that they have so many units."""
    data = np.asarray(data, dtype=np.float64)
    if data.ndim != 3 or len(data) != n:
        raise DataError(
            f"Data of shape {data.shape} do not go with covariances of {n} units.",
            "Give (n_units, n_conditions, n_trials).",
        )
    return data


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the RDMs of two sets of responses."""
    return float(np.corrcoef(rdm(a), rdm(b))[0, 1])


def rdm(responses: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation across units, for each pair of conditions.

    Parameters
    ----------
    responses : ndarray, (n_units, n_conditions)

    Returns
    -------
    ndarray, (n_pairs,)
        The lower triangle.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(np.asarray(responses).T)
    return 1 - r[np.tril_indices(len(r), -1)]


def _root(cov: np.ndarray) -> np.ndarray:
    """A matrix whose product with its transpose is the covariance."""
    w, v = np.linalg.eigh((cov + np.transpose(cov)) / 2)
    return v * np.sqrt(np.maximum(w, 0.0))
