# SPDX-License-Identifier: Apache-2.0
"""What studies do with their events, each its own way: names, clocks, repeats, buttons, own test sets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from conform_app.bids.events import EventRows
from conform_app.errors import DataError, UsageError
from conform_app.settings import EventSettings

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.bids.trials import TrialTable


def name_stimuli(labels: Sequence[str], pattern: str | None) -> list[str]:
    """Return each label's first group of a regular expression (or its match), else the label itself.

    Raises
    ------
    UsageError
        The pattern is no regular expression.
    """
    if pattern is None:
        return list(labels)
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UsageError(
            f"--stim-pattern {pattern!r} is no regular expression: {error}.", 'For instance "([^/]+)$".'
        ) from error
    names = []
    for label in labels:
        found = search(label)
        part = None if found is None else found.group(1 if found.re.groups else 0)
        names.append(part or label)
    return names


def drop_immediate_repeats(rows: EventRows, kept: EventRows, column: str) -> EventRows:
    """Drop a row that shows the stimulus of the row before it.

    Parameters
    ----------
    rows : EventRows
        All rows of the run: one without a stimulus (a rest) between two makes the second no repeat.
    kept : EventRows
        Those with a stimulus.
    column : str
        Names the stimulus.
    """
    labels = dict(zip(rows.table.index, rows.labels(column), strict=True))
    before = dict(zip(rows.table.index[1:], rows.labels(column), strict=False))
    new = np.array([before.get(line) != labels[line] for line in kept.table.index], dtype=bool)
    return EventRows(kept.path, kept.table[new], kept.n_read)


def onset_shifts(tasks: Sequence[str], settings: EventSettings) -> list[float]:
    """Return the seconds to add to the onsets of each run, by its task.

    Raises
    ------
    UsageError
        A shift of a task is not of the form ``TASK=SECONDS``.
    """
    own = {}
    for text in settings.task_onset_shift:
        task, equals, seconds = text.partition("=")
        try:
            own[task.strip().removeprefix("task-")] = float(seconds)
        except ValueError:
            equals = ""
        if not equals or not task.strip() or not math.isfinite(own[task.strip().removeprefix("task-")]):
            raise UsageError(
                f"--task-onset-shift {text!r} is not of the form TASK=SECONDS.", "For instance coco=16."
            )
    return [own.get(task, settings.onset_shift) for task in tasks]


def press_times(rows: EventRows, column: str, shift: float) -> dict[str, tuple[float, ...]]:
    """Return when each button was pressed: onset and ``response_time`` of the rows, added up.

    Parameters
    ----------
    rows : EventRows
        All rows of the run, those without a stimulus included.
    column : str
        Which button it was; 0 and missing values are none.  A run without the column has no presses.
    shift : float
        Seconds added to onsets.

    Returns
    -------
    dict of str to tuple of float
        Times in s, sorted, by button.

    Raises
    ------
    DataError
        There are presses, but no time of them.
    """
    found: dict[str, list[float]] = {}
    onsets = rows.numbers("onset")
    delays = rows.numbers("response_time") if "response_time" in rows.table else [math.nan] * len(onsets)
    for button, onset, delay in zip(rows.labels(column), onsets, delays, strict=True):
        if button == "n/a" or button in ("0", "0.0"):
            continue
        if math.isfinite(onset) and math.isfinite(delay):
            found.setdefault(button.removesuffix(".0"), []).append(onset + delay + shift)
        else:
            found.setdefault("", [])
    if set(found) == {""}:
        raise DataError(
            f"{rows.path} has presses in {column} but no time of them in response_time.",
            "Leave --press-column out, or add the column (seconds from the row's onset).",
        )
    return {button: tuple(sorted(found[button])) for button in sorted(found) if button}


def own_split(table: TrialTable, settings: EventSettings, events: Sequence[pd.DataFrame] = ()) -> TrialTable:
    """Fill the column `split` of a trial table from the queries that tell the dataset's own split.

    Parameters
    ----------
    table : TrialTable
    settings : EventSettings
        ``test_trials`` and ``artificial_trials``; with neither the table is returned as it is.
    events : sequence of DataFrame, optional
        Each run's rows of the events files, a row a trial: queries may use their columns too.

    Raises
    ------
    UsageError
        A query cannot be evaluated.
    """
    if settings.test_trials is None and settings.artificial_trials is None:
        return table
    split = np.full(len(table), "train", dtype=object)
    for label, query in (("test", settings.test_trials), ("artificial", settings.artificial_trials)):
        if query is not None:
            hit = _matches(table, query, label, events)
            split[hit] = label
            if not hit.any():
                told = (
                    f"--{label}-trials {query!r} is true of no trial; a column of numbers is compared with "
                )
                told += "a number without quotes."
                table = replace(table, warnings=(*table.warnings, told))
    return replace(table, split=tuple(split))


def _matches(table: TrialTable, query: str, label: str, events: Sequence[pd.DataFrame]) -> np.ndarray:
    import pandas as pd

    frame = table.to_frame()
    rows = pd.concat(events, ignore_index=True) if len(events) else pd.DataFrame(index=frame.index)
    own = [name for name in rows.columns if name not in frame]
    frame[own] = rows[own].astype(object)
    frame["session"] = [table.session_labels[s] if table.session_labels else "n/a" for s in table.session]
    frame["task"] = [table.task_labels[r] for r in table.run]
    frame["n_trials"] = table.n_repeats[table.condition]
    for name in ("run", "session", "trial_type", "stim_id", *own):
        numbers = pd.to_numeric(frame[name], errors="coerce")
        frame[name] = numbers if numbers.notna().all() else frame[name].astype(object)
    where = f"--{label}-trials {query!r}"
    remedy = f"Its columns are {', '.join(frame.columns)}. For instance \"trial_type == 'test'\"."
    if "@" in query:
        raise UsageError(f"{where}: '@' has no meaning here.", remedy)
    try:
        hit = frame.eval(query, engine="python")
    except (NameError, SyntaxError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{where}: {error}.", remedy) from error
    if getattr(hit, "shape", None) != (len(frame),):
        raise UsageError(f"{where} is not a condition on trials.", remedy)
    verdicts = [bool(value) if value == value and value is not None else False for value in hit.tolist()]
    if not all(isinstance(value, (bool, np.bool_, float)) or value is None for value in hit.tolist()):
        raise UsageError(f"{where} is not a condition on trials.", remedy)
    return np.array(verdicts, dtype=bool)
