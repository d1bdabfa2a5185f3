# SPDX-License-Identifier: Apache-2.0
"""From events to trials.

Each run's rows are filtered by the user's query, rows without a stimulus are dropped, rows of one block are
merged where a block column is given, and what remains is one trial a row: onset and duration in seconds from
the start of the run, and a condition, shared by all trials whose stimulus has the same name.  Onsets need not
lie on the TR grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np

from conform_app.bids.events import (
    EventRows,
    count_text,
    drop_rows,
    lines_text,
    read_events,
    stim_columns,
)
from conform_app.bids.layout import natural
from conform_app.bids.studies import (
    drop_immediate_repeats,
    name_stimuli,
    onset_shifts,
    own_split,
    press_times,
)
from conform_app.errors import DataError, NoInputError, UsageError
from conform_app.settings import EventSettings

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.bids.inputs import Fit

SAME_ONSET = 1e-3  # s; closer trials cannot be told apart
OVERLAP = 0.05  # s; a shorter overlap is timing jitter of the stimulus computer
CLOSE = 2.0  # s; median distance below which single responses can hardly be told apart
TAIL = 8.0  # s; less after the last onset cuts off the peak of its response


@dataclass(frozen=True)
class TrialTable:
    """Trials of a fit, in the order of runs and then of time.

    Attributes
    ----------
    onset, duration : ndarray of shape (n_trials,), float64
        Seconds; onset from the start of the run.
    run : ndarray of shape (n_trials,), int
        Index into the fit's runs.
    session : ndarray of shape (n_trials,), int
        Index into the fit's sessions (0 when the files have none).
    condition : ndarray of shape (n_trials,), int
        Index into `conditions`.
    repeat : ndarray of shape (n_trials,), int
        Which presentation of its condition in the fit, from 1.
    stim_id, trial_type : tuple of str
        Labels as in the events (the stimulus by the pattern asked for); ``n/a`` where there is none.
    split : tuple of str
        ``train``, ``test`` or ``artificial`` as the settings tell the dataset's own split; else ``n/a``.
    conditions : tuple of str
        Stimulus names in natural order.
    stim_column : str
        Column they come from.
    run_labels, task_labels : tuple of str or None
        BIDS labels of each of the fit's runs.
    session_labels : tuple of str
        BIDS labels of the fit's sessions.
    pooled : bool
        Whether several sessions are in the fit.
    presses : tuple of dict of str to tuple of float
        Of each run, times of button presses (s, as onsets) by button; empty when they are not asked for.
    warnings : tuple of str
    """

    onset: np.ndarray
    duration: np.ndarray
    run: np.ndarray
    session: np.ndarray
    condition: np.ndarray
    repeat: np.ndarray
    stim_id: tuple[str, ...]
    trial_type: tuple[str, ...]
    split: tuple[str, ...]
    conditions: tuple[str, ...]
    stim_column: str
    run_labels: tuple[str | None, ...] = field(repr=False)
    task_labels: tuple[str, ...] = field(repr=False)
    session_labels: tuple[str, ...] = field(repr=False)
    pooled: bool = False
    presses: tuple[dict[str, tuple[float, ...]], ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.onset)

    @property
    def n_repeats(self) -> np.ndarray:
        """Trials of each condition, shape (n_conditions,)."""
        return np.bincount(self.condition, minlength=len(self.conditions))

    @property
    def empty_runs(self) -> tuple[int, ...]:
        """Indices of runs without any trial; they add nothing to a fit."""
        return tuple(r for r in range(len(self.run_labels)) if not (self.run == r).any())

    def of_run(self, run: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Onset (s), duration (s) and condition of a run's trials, each of shape (n,)."""
        mine = self.run == run
        return self.onset[mine], self.duration[mine], self.condition[mine]

    def to_frame(self) -> pd.DataFrame:
        """The trial table: index, run, onset, duration, trial_type, stim_id, repeat.

        ``index`` is that of the volume, from 0; ``run`` the BIDS label.  Columns ``session`` and ``task``
        follow when the fit pools several.
        """
        import pandas as pd

        frame = pd.DataFrame(
            {
                "index": np.arange(len(self)),
                "run": [self.run_labels[r] or "n/a" for r in self.run],
                "onset": self.onset,
                "duration": self.duration,
                "trial_type": list(self.trial_type),
                "stim_id": list(self.stim_id),
                "repeat": self.repeat,
            }
        )
        if self.pooled:
            frame["session"] = [self.session_labels[s] for s in self.session]
        if len(set(self.task_labels)) > 1:
            frame["task"] = [self.task_labels[r] for r in self.run]
        return frame

    def conditions_frame(self) -> pd.DataFrame:
        """The condition table: ``index`` (from 0), stim_id, n_trials."""
        import pandas as pd

        index = np.arange(len(self.conditions))
        return pd.DataFrame({"index": index, "stim_id": list(self.conditions), "n_trials": self.n_repeats})


@dataclass(frozen=True)
class _Trial:
    onset: float
    duration: float
    stim: str
    trial_type: str
    line: int


def build_trials(
    fit: Fit, settings: EventSettings | None = None, run_durations: Sequence[float] | None = None
) -> TrialTable:
    """Make the trial table of a fit.

    Parameters
    ----------
    fit : Fit
    settings : EventSettings, optional
        How rows become trials.  With a block column,
        consecutive rows (in time) of one run that share its value become one trial, from the first onset
        to the last offset; rows without a block are dropped.
    run_durations : sequence of float, optional
        Length of each run, s (number of volumes times TR).  Without it the end is not checked.

    Returns
    -------
    TrialTable

    Raises
    ------
    DataError
        Events that contradict themselves or the run: no rows, an onset that is no number, before the start
        or after the end, a duration that is none (unless ``stim_duration`` is given), two trials at one
        time, two stimuli in one block, no trial left in any run.
    UsageError
        A column or query that does not fit the files, or a negative duration.
    NoInputError
        A run has no events file.
    """
    settings = settings or EventSettings()
    length = settings.stim_duration
    if length is not None and not (math.isfinite(length) and length >= 0):
        raise UsageError(f"--stim-duration {length} is not a duration.", "Give seconds, 0 or more.")
    if run_durations is not None and len(run_durations) != len(fit.runs):
        raise ValueError(f"{len(run_durations)} run durations for {len(fit.runs)} runs")
    for run in fit.runs:
        if run.events is None:
            raise NoInputError(f"{run.label} has no events.", "Add its events.tsv or leave the run out.")
    raw = [read_events(run.events) for run in fit.runs]
    tables = [drop_rows(rows, settings.ignore_trials) for rows in raw]
    columns = stim_columns(tables, settings.stim_column, settings.block_column)
    told = _query_in_vain(settings.ignore_trials, tables)
    shifts = onset_shifts([run.task for run in fit.runs], settings)
    warnings: list[str] = [told] if told else []
    if settings.stim_column is None and settings.block_column is not None:
        warnings.append(
            f"Stimuli are named by {columns[0]}, which is constant within {settings.block_column}."
        )
    per_run = []
    for n, (rows, column) in enumerate(zip(tables, columns, strict=True)):
        kept = _with_stimulus(rows, column, warnings)
        if settings.skip_immediate_repeats:
            kept = drop_immediate_repeats(rows, kept, column)
        end = None if run_durations is None else float(run_durations[n])
        trials = _read_trials(kept, column, settings, shifts[n])
        if settings.block_column is not None:
            trials = _merge_blocks(kept, trials, settings, warnings)
        trials.sort(key=lambda t: (t.onset, t.line))
        _check_times(rows, trials, end, warnings)
        if not trials:
            warnings.append(
                f"{rows.path.name}: none of its {rows.n_read} rows is a trial; the run is left out."
            )
        per_run.append(trials)
    if not any(per_run):
        raise DataError(
            f"{fit.name}: no trial is left in any run, e.g. {tables[0].path}.",
            "Check --ignore-trials and --stim-column.",
        )
    gaps = [b.onset - a.onset for trials in per_run for a, b in pairwise(trials)]
    if gaps and float(np.median(gaps)) < CLOSE:
        hint = (
            "" if settings.block_column else "; if rows are parts of blocks, merge them with --block-column"
        )
        warnings.append(
            f"Trials are {np.median(gaps):.1f} s apart (median), too close to tell apart well{hint}."
        )
    warnings += _decimals({trial.stim for trials in per_run for trial in trials})
    table = _table(fit, per_run, ", ".join(dict.fromkeys(columns)), warnings)
    lines = [[trial.line for trial in trials] for trials in per_run]
    events = [rows.table.loc[own] for rows, own in zip(tables, lines, strict=True)]
    if settings.press_column is not None:
        table = replace(
            table, presses=tuple(map(press_times, raw, [settings.press_column] * len(raw), shifts))
        )
    return own_split(table, settings, events)


def _table(fit: Fit, per_run: Sequence[Sequence[_Trial]], column: str, warnings: Sequence[str]) -> TrialTable:
    flat = [(r, trial) for r, trials in enumerate(per_run) for trial in trials]
    conditions = tuple(sorted({trial.stim for _, trial in flat}, key=natural))
    place = {stim: n for n, stim in enumerate(conditions)}
    condition = np.array([place[trial.stim] for _, trial in flat], dtype=int)
    run = np.array([r for r, _ in flat], dtype=int)
    of_session = [fit.sessions.index(r.session) if r.session in fit.sessions else 0 for r in fit.runs]
    seen = [0] * len(conditions)
    repeat = np.empty(len(flat), dtype=int)
    for n, c in enumerate(condition):
        seen[c] += 1
        repeat[n] = seen[c]
    return TrialTable(
        onset=np.array([trial.onset for _, trial in flat], dtype=float),
        duration=np.array([trial.duration for _, trial in flat], dtype=float),
        run=run,
        session=np.array(of_session, dtype=int)[run],
        condition=condition,
        repeat=repeat,
        stim_id=tuple(trial.stim for _, trial in flat),
        trial_type=tuple(trial.trial_type for _, trial in flat),
        split=("n/a",) * len(flat),
        conditions=conditions,
        stim_column=column,
        run_labels=tuple(r.run for r in fit.runs),
        task_labels=tuple(r.task for r in fit.runs),
        session_labels=tuple(fit.sessions),
        pooled=len(fit.sessions) > 1,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _query_in_vain(query: str | None, tables: Sequence[EventRows]) -> str:
    """What to say of a query that drops nothing: mostly a label spelled otherwise, or a number in quotes."""
    if not query or any(len(rows.table) < rows.n_read for rows in tables):
        return ""
    return (
        f"--ignore-trials {query!r} drops no row of any run; a column of numbers is compared with a number "
        "without quotes."
    )


def _decimals(stimuli: set[str]) -> list[str]:
    """Say when one number is written in two ways, as tables with missing values are (``12`` and ``12.0``)."""
    twice = sorted((s for s in stimuli if s.endswith(".0") and s.removesuffix(".0") in stimuli), key=natural)
    if not twice:
        return []
    return [
        f"{count_text(len(twice), 'name', 'is', 'are')} written with and without '.0' (first "
        f"{twice[0].removesuffix('.0')} and {twice[0]}) and taken for different stimuli; --stim-pattern "
        "'^([0-9]+)' takes the whole number."
    ]


def _with_stimulus(rows: EventRows, column: str, warnings: list[str]) -> EventRows:
    """Drop rows whose stimulus is missing."""
    known = np.array([label != "n/a" for label in rows.labels(column)], dtype=bool)
    n_lost = int((~known).sum())
    if n_lost:
        lost = count_text(n_lost, "row", "has", "have")
        warnings.append(f"{rows.path.name}: {lost} no {column}; dropped.")
    return EventRows(rows.path, rows.table[known], rows.n_read)


def _read_trials(rows: EventRows, column: str, settings: EventSettings, shift: float) -> list[_Trial]:
    """One trial a row, with onset and duration checked to be numbers."""
    onset, duration = rows.numbers("onset"), rows.numbers("duration")
    onset = [value + shift for value in onset]
    lines = [int(line) for line in rows.table.index]
    bad = [line for line, value in zip(lines, onset, strict=True) if not math.isfinite(value)]
    if bad:
        raise DataError(
            f"{rows.path}, {lines_text(bad)}: the onset is not a number.",
            'Correct it, or drop the rows with --ignore-trials "onset.isna()".',
        )
    early = [line for line, value in zip(lines, onset, strict=True) if value < 0]
    if early:
        raise DataError(
            f"{rows.path}, {lines_text(early)}: the onset"
            + (f" with its shift of {shift:g} s" if shift else "")
            + " is before the start of the run.",
            f'Correct it, or drop the rows with --ignore-trials "onset < {0.0 - shift:g}".',
        )
    if settings.stim_duration is not None and settings.block_column is None:
        duration = [settings.stim_duration] * len(lines)
    elif settings.stim_duration is not None:  # a block's own length is then not read from its rows
        duration = [0.0] * len(lines)
    bad = [
        line for line, value in zip(lines, duration, strict=True) if not (math.isfinite(value) and value >= 0)
    ]
    if bad:
        raise DataError(
            f"{rows.path}, {lines_text(bad)}: the duration is not a number of seconds, 0 or more.",
            "Correct it, or set one for all trials with --stim-duration.",
        )
    stim, kind = name_stimuli(rows.labels(column), settings.stim_pattern), rows.labels("trial_type")
    return [_Trial(*values) for values in zip(onset, duration, stim, kind, lines, strict=True)]


def _merge_blocks(
    rows: EventRows, trials: Sequence[_Trial], settings: EventSettings, warnings: list[str]
) -> list[_Trial]:
    """Merge consecutive rows that share the block column's value into one trial."""
    column = settings.block_column
    blocks = rows.labels(column)
    pairs = sorted(zip(blocks, trials, strict=True), key=lambda p: (p[1].onset, p[1].line))
    outside = sum(block == "n/a" for block, _ in pairs)
    if outside:
        warnings.append(
            f"{rows.path.name}: {count_text(outside, 'row', 'has', 'have')} no {column}; dropped."
        )
    merged, seen = [], set()
    for block, members in groupby((p for p in pairs if p[0] != "n/a"), key=lambda p: p[0]):
        inside = [trial for _, trial in members]
        lines = [trial.line for trial in inside]
        stimuli = list(dict.fromkeys(trial.stim for trial in inside))
        if len(stimuli) > 1:
            raise DataError(
                f"{rows.path}, {lines_text(lines)}: {column} {block} holds several stimuli "
                f"({', '.join(stimuli[:3])}).",
                "Choose a --stim-column that is constant within a block.",
            )
        if block in seen:
            warnings.append(
                f"{rows.path.name}: {column} {block} comes back after others; taken as a new block."
            )
        seen.add(block)
        kinds = {trial.trial_type for trial in inside}
        start = inside[0].onset
        length = settings.stim_duration
        if length is None:
            length = max(trial.onset + trial.duration for trial in inside) - start
        merged.append(_Trial(start, length, stimuli[0], kinds.pop() if len(kinds) == 1 else "n/a", lines[0]))
    return merged


def _check_times(rows: EventRows, trials: Sequence[_Trial], end: float | None, warnings: list[str]) -> None:
    """Trials against each other and against the end of the run; `trials` sorted by onset."""
    for a, b in pairwise(trials):
        if b.onset - a.onset <= SAME_ONSET:
            raise DataError(
                f"{rows.path}, {lines_text(sorted((a.line, b.line)))}: two trials start at {a.onset:g} s.",
                "Drop the rows that are no stimulus with --ignore-trials, or merge them with --block-column.",
            )
    late = [a for a, b in pairwise(trials) if a.onset + a.duration > b.onset + OVERLAP]
    if late:
        warnings.append(
            f"{rows.path.name}: {len(late)} of {len(trials)} trials overlap the next one, first at "
            f"{lines_text([late[0].line])}."
        )
    if end is None or not trials:
        return
    beyond = [trial for trial in trials if trial.onset >= end]
    if beyond:
        raise DataError(
            f"{rows.path}, {lines_text([t.line for t in beyond])}: the onset {beyond[0].onset:g} s is beyond "
            f"the end of the run ({end:g} s).",
            "Are the onsets in milliseconds? Events are in seconds, and belong to this run.",
        )
    last = trials[-1]
    if end - last.onset < TAIL:
        warnings.append(
            f"{rows.path.name}: the run ends {end - last.onset:.1f} s after its last onset, before that "
            "response's peak has passed."
        )
    elif last.onset + last.duration > end + OVERLAP:
        warnings.append(f"{rows.path.name}: the last trial goes on after the end of the run.")
