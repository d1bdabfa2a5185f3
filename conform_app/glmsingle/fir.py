# SPDX-License-Identifier: Apache-2.0
"""A look at the data without any assumed HRF: a finite impulse response per run, all trials alike.

One regressor per lag 0, TR, 2 TR, ... marks the volumes at that lag after any onset (onsets between volumes
count for the nearest one).  Its fit says where and when the brain responded at all, before anything is
chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conform_app.glmsingle import checks
from conform_app.glmsingle.blocks import Series, block_length, blocks
from conform_app.glmsingle.design import TrialPlan, plan_trials, polynomials
from conform_app.glmsingle.options import GLMsingleOptions


@dataclass(frozen=True, eq=False)
class FIR:
    """Finite impulse responses.

    Attributes
    ----------
    times : (n_lags,) float64
        s after the onset.
    time_courses : (n_voxels, n_runs, n_lags) float32
        Percent of the run's mean (or the data's unit).
    r2 : (n_voxels, n_runs) float32
        Percent.
    best : (n_voxels,) bool
        Voxels whose mean R2 over runs is above the percentile.
    run_average : (n_runs, n_lags) float64
        Median time course over the best voxels.
    average : (n_lags,) float64
        Mean of these over runs.
    """

    times: np.ndarray
    time_courses: np.ndarray
    r2: np.ndarray
    best: np.ndarray
    run_average: np.ndarray
    average: np.ndarray


def fit_fir(
    data: Sequence,
    design: Sequence,
    tr: float,
    *,
    options: GLMsingleOptions | None = None,
    extra_regressors: Sequence | None = None,
    start_times: float | Sequence[float] = 0.0,
    delay: float = 30.0,
    percentile: float = 99.0,
    max_memory: float | None = None,
) -> FIR:
    """Fit a finite impulse response to each run.

    Parameters
    ----------
    data, design, tr, options, extra_regressors, start_times, max_memory
        As in `fit_glmsingle`; of the options, ``maxpolydeg`` and ``wantpercentbold`` matter.
    delay : float
        Last lag, s.
    percentile : float
        Of the mean R2: voxels above it make the averages.

    Returns
    -------
    FIR
        NaN for voxels with values that are not finite or without variance.

    Raises
    ------
    DataError, UsageError
        As `fit_glmsingle`.
    """
    import torch

    from conform_app.glmsingle import factor, fit

    options = GLMsingleOptions() if options is None else options
    series, notes = Series(data), []
    design = checks.match_lengths(series, design, options, notes)
    plan = plan_trials(design, series.n_volumes, 0.0, checks.repetition_time(tr), start_times)
    degrees = checks.degrees(options, series, plan.tr)
    poly = [polynomials(n, d) for n, d in zip(series.n_volumes, degrees, strict=True)]
    extra = checks.extras(extra_regressors, series, poly, notes)
    n_lags = int(np.floor(delay / plan.tr)) + 1
    courses = np.full((series.n_voxels, plan.n_runs, n_lags), np.nan, np.float32)
    r2 = np.full((series.n_voxels, plan.n_runs), np.nan, np.float32)
    per_voxel = 4 * (3 * max(series.n_volumes) + 2 * n_lags)
    length = block_length(per_voxel, courses.nbytes, series.n_voxels, max_memory, options.chunklen)
    for r in range(plan.n_runs):
        run = fit.to_run(factor.least_squares(lag_design(plan, r, n_lags), poly[r], extra[r]), "cpu")
        drifts = torch.as_tensor(poly[r], dtype=torch.float32)
        for lo, hi in blocks(series.n_voxels, length):
            y = series.read(r, lo, hi)
            rows = np.flatnonzero(np.isfinite(y).all(axis=1) & (np.ptp(y, axis=1) > 0))
            y = y[rows]
            gain = 100 / np.abs(y.mean(axis=1, dtype=np.float64)) if options.wantpercentbold else 1.0
            clean = fit.detrend(y, drifts)
            betas = torch.empty((len(y), n_lags))
            fit.least_squares(clean, run, betas)
            total = fit.energy(clean)
            courses[lo + rows, r] = betas.numpy() * np.reshape(gain, (-1, 1))
            r2[lo + rows, r] = fit.r2(total - fit.explained(clean, run), total).numpy()
    return _averages(courses, r2, percentile, plan.tr)


def lag_design(plan: TrialPlan, run: int, n_lags: int) -> np.ndarray:
    """(n_volumes, n_lags): the number of trials that began so many volumes before."""
    n = plan.n_volumes[run]
    first = np.round((plan.runs[run].onset - plan.start[run]) / plan.tr).astype(int)
    volumes = first[:, None] + np.arange(n_lags)
    out = np.zeros((n, n_lags))
    inside = (volumes >= 0) & (volumes < n)
    np.add.at(out, (volumes[inside], np.broadcast_to(np.arange(n_lags), volumes.shape)[inside]), 1)
    return out


def _averages(courses: np.ndarray, r2: np.ndarray, percentile: float, tr: float) -> FIR:
    mean = r2.mean(axis=1)
    finite = np.isfinite(mean)
    best = np.zeros(mean.size, bool)
    if finite.any():
        best[finite] = mean[finite] > np.percentile(mean[finite], percentile)
        best = best if best.any() else finite & (mean == mean[finite].max())
    by_run = np.full(courses.shape[1:], np.nan)
    if best.any():
        by_run = np.median(courses[best].astype(np.float64), axis=0)
    return FIR(np.arange(courses.shape[2]) * tr, courses, r2, best, by_run, by_run.mean(axis=0))
