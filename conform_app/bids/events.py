# SPDX-License-Identifier: Apache-2.0
"""Events files: reading, dropping rows by a query, choosing the column that names the stimulus.

Labels are kept as written (``001`` stays ``001``); only the query sees numbers as numbers.  Messages count
lines as an editor does, the header being line 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from conform_app.errors import DataError, FileFaultError, UsageError

if TYPE_CHECKING:
    import pandas as pd

STIM_COLUMNS = ("stim_id", "stim_file", "trial_type")
MISSING = frozenset({"", "n/a", "N/A", "nan", "NaN"})


@dataclass(frozen=True)
class EventRows:
    """Rows of one events file.

    Attributes
    ----------
    path : Path
    table : DataFrame
        Texts as written, indexed by line number.
    n_read : int
        Rows before any was dropped.
    """

    path: Path
    table: pd.DataFrame = field(repr=False)
    n_read: int

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.columns)

    def labels(self, column: str) -> list[str]:
        """Values of a column as written, ``n/a`` where missing or where there is no such column."""
        if column not in self.table:
            return ["n/a"] * len(self.table)
        return ["n/a" if value in MISSING else value for value in self.table[column]]

    def numbers(self, column: str) -> list[float]:
        """Values of a column as numbers, NaN where they are none."""
        return [_number(value) for value in self.table[column]]


def read_events(path: Path) -> EventRows:
    """Read an events file.

    Parameters
    ----------
    path : Path
        Tab-separated, UTF-8, with the columns ``onset`` and ``duration``.

    Returns
    -------
    EventRows

    Raises
    ------
    DataError
        It is not such a table, or has no row.
    FileFaultError
        It cannot be read.
    """
    import csv
    import warnings

    import pandas as pd

    try:
        with warnings.catch_warnings():  # a tab at the end of rows is a column without a name
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig",
                skip_blank_lines=False, quoting=csv.QUOTE_MINIMAL, index_col=False,
            )  # fmt: skip
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path} is empty.", "Fill it or leave the run out.") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a tab-separated UTF-8 table: {error}.", "Save it as such.") from error
    except OSError as error:
        raise FileFaultError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    table = table.fillna("")
    table.columns = [str(name).strip() for name in table.columns]
    table = table.apply(lambda column: column.str.strip())
    table.index = range(2, len(table) + 2)
    table = table[(table != "").any(axis=1)]
    for column in ("onset", "duration"):
        if column not in table:
            raise DataError(
                f"{path} has no column {column!r}; its columns are {', '.join(table.columns)}.",
                "Events need onset and duration, separated by tabs.",
            )
    if table.empty:
        raise DataError(f"{path} has no rows.", "Fill it or leave the run out.")
    return EventRows(Path(path), table, len(table))


def drop_rows(rows: EventRows, query: str | None) -> EventRows:
    """Drop the rows for which a pandas query is true.

    Parameters
    ----------
    rows : EventRows
    query : str or None
        For instance ``"trial_type == 'blank' or response_time < 0.2"``.  In it, columns of numbers are
        numbers and ``n/a`` is missing: it equals nothing and is neither less nor more.

    Raises
    ------
    UsageError
        The query cannot be evaluated on this file.
    """
    if not query:
        return rows
    remedy = f"Columns of this file: {', '.join(rows.columns)}. For instance \"trial_type == 'blank'\"."
    where = f"--ignore-trials {query!r} on {rows.path}"
    if "@" in query:
        raise UsageError(f"{where}: '@' has no meaning here.", remedy)
    typed = _typed(rows.table)
    try:
        hit = typed.eval(query, engine="python")
    except (
        NameError,
        SyntaxError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise UsageError(f"{where}: {error}.", remedy) from error
    if getattr(hit, "shape", None) != (len(typed),):
        raise UsageError(f"{where} is not a condition on rows.", remedy)
    verdicts = [False if verdict is None or verdict != verdict else verdict for verdict in hit.tolist()]
    if not all(isinstance(verdict, bool) for verdict in verdicts):
        raise UsageError(f"{where} is not a condition on rows.", remedy)
    return EventRows(rows.path, rows.table[[not verdict for verdict in verdicts]], rows.n_read)


def choose_stim_column(runs: Sequence[EventRows], asked: str | None, block_column: str | None = None) -> str:
    """The column that names the stimulus, the same for all runs.

    Parameters
    ----------
    runs : sequence of EventRows
    asked : str or None
        The user's choice; None: the first of ``stim_id``, ``stim_file``, ``trial_type`` that all runs have
        with some value and, where there are blocks, that is one and the same within every block.
    block_column : str, optional

    Raises
    ------
    UsageError
        A column asked for is missing from a run.
    DataError
        There is none to choose.
    """
    for option, name in (("--stim-column", asked), ("--block-column", block_column)):
        for rows in runs:
            if name is not None and name not in rows.table:
                raise UsageError(
                    f"{rows.path} has no column {name!r} ({option}).",
                    f"Its columns are {', '.join(rows.columns)}.",
                )
    if asked is not None:
        return asked
    for name in STIM_COLUMNS:
        found = {label for rows in runs for label in rows.labels(name)}
        if not all(name in rows.table for rows in runs) or found == {"n/a"}:
            continue
        if block_column is None or all(_constant_in_blocks(rows, name, block_column) for rows in runs):
            return name
    first = runs[0]
    inside = f" constant within each {block_column!r}" if block_column else ""
    raise DataError(
        f"{first.path}: none of {', '.join(STIM_COLUMNS)} is in every run{inside}; the columns are "
        f"{', '.join(first.columns)}.",
        "Name the column that identifies the stimulus with --stim-column.",
    )


def stim_columns(runs: Sequence[EventRows], asked: str | None, block_column: str | None = None) -> list[str]:
    """The column that names the stimulus, of each run.

    Parameters
    ----------
    runs : sequence of EventRows
    asked : str or None
        One name, the same for all runs; or several with commas between, of which each run takes the first
        that it has with some value (tasks of one study may name their stimuli differently).
    block_column : str, optional

    Raises
    ------
    UsageError, DataError
        See :func:`choose_stim_column`.
    """
    if asked is None or "," not in asked:
        return [choose_stim_column(runs, asked, block_column)] * len(runs)
    names = [name.strip() for name in asked.split(",") if name.strip()]
    chosen = []
    for rows in runs:
        found = next((name for name in names if set(rows.labels(name)) != {"n/a"}), None)
        if found is None:
            raise UsageError(
                f"{rows.path} has none of the columns {', '.join(names)} (--stim-column), or no value there.",
                f"Its columns are {', '.join(rows.columns)}.",
            )
        chosen.append(choose_stim_column([rows], found, block_column))
    return chosen


def lines_text(lines: Sequence[int]) -> str:
    """``line 4`` or ``lines 4, 7, 9 ...``."""
    shown = ", ".join(str(line) for line in lines[:5]) + (" ..." if len(lines) > 5 else "")
    return f"line{'s' * (len(lines) > 1)} {shown}"


def count_text(n: int, noun: str, verb: str, verbs: str) -> str:
    """``1 row is`` or ``3 rows are``."""
    return f"1 {noun} {verb}" if n == 1 else f"{n} {noun}s {verbs}"


def _constant_in_blocks(rows: EventRows, name: str, block_column: str) -> bool:
    found: dict[str, str] = {}
    pairs = zip(rows.labels(block_column), rows.labels(name), strict=True)
    return all(
        found.setdefault(block, label) == label for block, label in pairs if block != "n/a" and label != "n/a"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with missing values missing and columns of numbers as numbers."""
    import pandas as pd

    typed = table.astype(object).where(~table.isin(MISSING), None)
    for name in typed:
        given = typed[name].notna()
        numbers = pd.to_numeric(typed[name], errors="coerce")
        if given.any() and numbers.notna().equals(given):
            typed[name] = numbers
    return typed
