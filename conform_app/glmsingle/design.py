# SPDX-License-Identifier: Apache-2.0
"""From trials to regressors: one column per trial, read at each volume's own time.

Volume k of a run is at t_k = start + k TR.  The column of trial i is h(t_k - onset_i), with h the response
to its duration (`conform_app.glmsingle.hrf`): exact for any onset, and equal to the convolution of a 0/1
design with the HRF sampled every TR when the onset falls on a volume.

Drifts are polynomials 1, x, x^2, ... on x in [-1, 1], made orthonormal in that order (the columns of P);
projecting them out is Q = I - P P'.  Other nuisance regressors Z are made orthonormal after Q, in their
order.

dtype: regressors float32 (what the HRF gives); bases and projections float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from conform_app.errors import DataError
from conform_app.glmsingle.hrf import Responses

MIN_RESPONSE = 0.05
"""A trial whose response reaches less than this part of its peak within its run cannot be estimated."""


def _from_zero(condition: np.ndarray) -> bool:
    """Whether these are whole numbers, none of them negative."""
    try:
        whole = condition.astype(np.int64)
    except (TypeError, ValueError):
        return False
    return bool(np.array_equal(condition, whole) and whole.min() >= 0)


@dataclass(frozen=True, eq=False)
class RunTrials:
    """One run's trials; seconds count from the start of the run.

    Parameters
    ----------
    onset : (n,) float
        Onset of each trial, s; any value.
    duration : (n,) float
        Duration of each trial, s; 0 counts as 0.1.
    condition : (n,) int
        Index of the condition, shared by all runs.
    """

    onset: np.ndarray
    duration: np.ndarray
    condition: np.ndarray

    def __post_init__(self) -> None:
        onset = np.atleast_1d(np.asarray(self.onset, dtype=np.float64)).ravel()
        duration = np.atleast_1d(np.asarray(self.duration, dtype=np.float64)).ravel()
        condition = np.atleast_1d(np.asarray(self.condition)).ravel()
        if duration.size == 1:
            duration = np.repeat(duration, onset.size)
        if not onset.size == duration.size == condition.size:
            raise DataError(
                f"A run's trials have {onset.size} onsets, {duration.size} durations, {condition.size} "
                "conditions.",
                "Give one of each per trial.",
            )
        if not np.isfinite(onset).all():
            raise DataError("A run's trials have an onset that is not a number.", "Drop these trials.")
        if onset.size and not _from_zero(condition):
            raise DataError(
                "A run's conditions are not whole numbers from 0.",
                "Give indices of conditions; np.unique(names of all runs, return_inverse=True) makes them.",
            )
        object.__setattr__(self, "onset", onset)
        object.__setattr__(self, "duration", duration)
        object.__setattr__(self, "condition", condition.astype(np.int64))

    @property
    def n(self) -> int:
        """Number of trials."""
        return self.onset.size


@dataclass(frozen=True, eq=False)
class TrialPlan:
    """All runs' trials on their time axes.

    Attributes
    ----------
    runs : tuple of RunTrials
        Durations are filled in.
    n_volumes : tuple of int
    tr : float
        s.
    start : tuple of float
        Time of volume 0 of each run, s.
    on_grid : bool
        Made from 0/1 designs.
    """

    runs: tuple[RunTrials, ...]
    n_volumes: tuple[int, ...]
    tr: float
    start: tuple[float, ...]
    on_grid: bool

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def n_trials(self) -> int:
        """Number of trials of all runs."""
        return sum(run.n for run in self.runs)

    @property
    def trial_condition(self) -> np.ndarray:
        """(n_trials,) condition of each trial."""
        return np.concatenate([run.condition for run in self.runs])

    @property
    def trial_run(self) -> np.ndarray:
        """(n_trials,) run of each trial, 0-based."""
        return np.repeat(np.arange(self.n_runs), [run.n for run in self.runs])

    @property
    def durations(self) -> np.ndarray:
        """(n_trials,) s."""
        return np.concatenate([run.duration for run in self.runs])

    def slices(self) -> tuple[slice, ...]:
        """Where each run's trials stand among all."""
        ends = np.cumsum([0] + [run.n for run in self.runs])
        return tuple(slice(int(a), int(b)) for a, b in pairwise(ends))

    def times(self, run: int) -> np.ndarray:
        """(n_volumes,) time of each volume, s."""
        return self.start[run] + np.arange(self.n_volumes[run]) * self.tr

    def end_buffers(self) -> np.ndarray:
        """(n_runs,) seconds from the last onset to the end of the run."""
        ends = [s + n * self.tr for s, n in zip(self.start, self.n_volumes, strict=True)]
        return np.array([end - run.onset.max() for end, run in zip(ends, self.runs, strict=True)])

    def regressors(self, run: int, responses: Responses) -> np.ndarray:
        """(n_volumes, n_trials of the run, n_hrfs) float32."""
        trials, times = self.runs[run], self.times(run)
        out = np.zeros((times.size, trials.n, responses.n_hrfs), np.float32)
        for i in range(trials.n):
            lags = times - trials.onset[i]
            if self.on_grid:  # whole multiples of TR, without the rounding of the subtraction
                lags = np.round(lags / self.tr) * self.tr
            out[:, i] = responses.sample(lags, trials.duration[i])
        return out

    def estimable(self, responses: Responses, *, least: float = MIN_RESPONSE) -> np.ndarray:
        """(n_trials,) bool: enough of the response (of the first HRF) falls within the run."""
        reached = [np.abs(self.regressors(r, responses)[:, :, 0]).max(axis=0) for r in range(self.n_runs)]
        return np.concatenate(reached) > least


def plan_trials(
    design: Sequence, n_volumes: Sequence[int], stimdur: float | None, tr: float, start_times
) -> TrialPlan:
    """Check a design, given as 0/1 arrays or `RunTrials`, and put it on its time axis.

    Parameters
    ----------
    design : sequence of (n_volumes, n_conditions) arrays or of RunTrials
    n_volumes : sequence of int
        Length of each run's data.
    stimdur : float or None
        Duration of all trials (0/1 arrays) or of those without one (`RunTrials`), s.
    tr : float
        s.
    start_times : float or sequence of float
        Time of volume 0, s; used with `RunTrials`.

    Raises
    ------
    DataError
        Naming the run (from 1).
    """
    given = [isinstance(d, RunTrials) for d in design]
    if any(given) and not all(given):
        raise DataError(
            "Some runs' designs are arrays and some are trials.", "Give the same kind for every run."
        )
    if stimdur is not None and not (np.ndim(stimdur) == 0 and np.isfinite(stimdur) and stimdur >= 0):
        raise DataError(f"The stimulus duration is {stimdur}.", "Give one number of seconds, 0 or more.")
    if not all(given):
        if stimdur is None:
            raise DataError("No stimulus duration is given.", "0/1 designs need stimdur, in seconds.")
        runs = tuple(
            _from_array(d, n, float(stimdur), tr, r)
            for r, (d, n) in enumerate(zip(design, n_volumes, strict=True), 1)
        )
        return TrialPlan(runs, tuple(n_volumes), float(tr), (0.0,) * len(runs), True)
    start = np.ravel(np.asarray(start_times, dtype=np.float64))
    start = np.repeat(start, len(design)) if start.size == 1 else start
    if start.size != len(design) or not np.isfinite(start).all():
        raise DataError(
            f"There are {start.size} start times for {len(design)} runs.", "Give one, or one per run."
        )
    runs = tuple(
        _from_trials(d, n, stimdur, tr, s, r)
        for r, (d, n, s) in enumerate(zip(design, n_volumes, start, strict=True), 1)
    )
    return TrialPlan(runs, tuple(n_volumes), float(tr), tuple(start.tolist()), False)


def _from_array(design, n_volumes: int, stimdur: float, tr: float, run: int) -> RunTrials:
    if hasattr(design, "toarray"):
        design = design.toarray()
    design = np.asarray(design)
    if design.ndim != 2 or design.shape[0] != n_volumes:
        raise DataError(
            f"Run {run}: the design has shape {design.shape}, the data have {n_volumes} volumes.",
            "Give a design of (volumes, conditions) as long as the data.",
        )
    if not np.isin(design, (0, 1)).all():
        raise DataError(
            f"Run {run}: the design holds values other than 0 and 1.",
            "Mark the onset of each trial with 1; give onsets between volumes as RunTrials.",
        )
    volume, condition = np.nonzero(design)
    if volume.size == 0:
        raise DataError(f"Run {run} has no trial.", "Leave this run out.")
    return RunTrials(volume * tr, np.full(volume.size, stimdur), condition)


def _from_trials(trials: RunTrials, n_volumes: int, stimdur, tr: float, start: float, run: int) -> RunTrials:
    if trials.n == 0:
        raise DataError(f"Run {run} has no trial.", "Leave this run out.")
    duration = trials.duration
    if stimdur is not None:
        duration = np.where(np.isnan(duration), float(stimdur), duration)
    if not np.all(np.isfinite(duration) & (duration >= 0)):
        worst = trials.onset[~(np.isfinite(duration) & (duration >= 0))][0]
        raise DataError(
            f"Run {run}: the trial at {worst:g} s has no duration, or a negative one.",
            "Give durations of 0 s or more, or stimdur for those without.",
        )
    end = start + n_volumes * tr
    late = trials.onset >= end
    if late.any():
        raise DataError(
            f"Run {run}: the trial at {trials.onset[late][0]:g} s starts after the run's end at {end:g} s.",
            "Check that events and data belong together, and the unit of the onsets (seconds).",
        )
    return RunTrials(trials.onset, duration, trials.condition)


def polynomials(n: int, degree: int) -> np.ndarray:
    """Orthonormal polynomials of degree 0 to ``degree`` at ``n`` even points: (n, degree + 1) float64."""
    x = np.linspace(-1.0, 1.0, n)
    raw = np.polynomial.legendre.legvander(x, degree)  # same spans as 1, x, x^2, ..., better conditioned
    q, r = np.linalg.qr(raw)
    return q * np.sign(np.diag(r))


def orthonormal_in_order(columns: np.ndarray, off: np.ndarray, tol: float = 1e-8) -> np.ndarray:
    """Columns made orthonormal one after the other, and to ``off``; dependent ones become zero."""
    out = np.zeros_like(columns, dtype=np.float64)
    for k, column in enumerate(columns.T.astype(np.float64)):
        length, v = np.linalg.norm(column), column
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            v = v - off @ (off.T @ v)
            v = v - out[:, :k] @ (out[:, :k].T @ v)
        if np.linalg.norm(v) > tol * max(length, np.finfo(float).tiny):
            out[:, k] = v / np.linalg.norm(v)
    return out


def off_all(groups: Sequence[np.ndarray], poly: np.ndarray) -> np.ndarray:
    """Nuisance columns of several groups side by side, orthonormal in their order and off ``poly``."""
    return orthonormal_in_order(np.hstack([np.asarray(g, dtype=np.float64) for g in groups]), poly)
