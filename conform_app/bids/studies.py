# SPDX-License-Identifier: Apache-2.0
"""What studies do with their events, each its own way: names, one-back repeats, and their own test set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from conform_app.bids.events import EventRows
from conform_app.errors import UsageError
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


def own_split(
    table: TrialTable, task: str, settings: EventSettings, events: Sequence[pd.DataFrame] = ()
) -> TrialTable:
    """Fill the column `split` of a trial table from the queries that tell the dataset's own split.

    Parameters
    ----------
    table : TrialTable
    task : str
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
            split[_matches(table, task, query, label, events)] = label
    return replace(table, split=tuple(split))


def _matches(
    table: TrialTable, task: str, query: str, label: str, events: Sequence[pd.DataFrame]
) -> np.ndarray:
    import pandas as pd

    frame = table.to_frame()
    rows = pd.concat(events, ignore_index=True) if len(events) else pd.DataFrame(index=frame.index)
    own = [name for name in rows.columns if name not in frame]
    frame[own] = rows[own].astype(object)
    frame["session"] = [table.session_labels[s] if table.session_labels else "n/a" for s in table.session]
    frame["task"] = task
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
