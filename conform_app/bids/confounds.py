# SPDX-License-Identifier: Apache-2.0
"""Confounds of a run, chosen by name.

==================  ==================================================================================
``none``            nothing
``motion6``         trans_x, trans_y, trans_z, rot_x, rot_y, rot_z
``motion12``        and their first differences (``_derivative1``)
``motion24``        and the squares of these twelve (``_power2``, ``_derivative1_power2``)
``a_comp_cor:5``    the first five of the numbered columns ``a_comp_cor_00`` ...
``cosine*``         all columns that match the pattern
``csf``             a column
==================  ==================================================================================

A pattern or a number of columns must find some in one run of a fit at least; there are none in others where
preprocessing saw no reason for them (``motion_outlier*``).

Differences and squares that the file lacks are computed.  Columns come out mean-centred.  fMRIPrep writes
``n/a`` in the first row of what has no value there (differences, framewise displacement): it becomes the mean
of the other rows, 0 after centring, which pulls the fit neither way.

Friston KJ et al. (1996) Magn. Reson. Med. 35:346 (the 24 motion regressors).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conform_app.bids.layout import natural
from conform_app.errors import DataError, FileFaultError, UsageError

if TYPE_CHECKING:
    import pandas as pd

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
UNSTEADY = "non_steady_state_outlier"
"""Columns with which fMRIPrep marks the first volumes where the signal is not in its steady state."""
SHOWN = 40
"""Columns that an error lists; preprocessing may write hundreds."""
_DERIVED = re.compile(r"^(?P<base>(?:trans|rot)_[xyz])(?P<diff>_derivative1)?(?P<square>_power2)?$")


@dataclass(frozen=True)
class Confounds:
    """Confounds of one run.

    Attributes
    ----------
    names : tuple of str
    values : ndarray of shape (n_volumes, n_confounds), float64
        Mean-centred, in the columns' own units.
    warnings : tuple of str
    """

    names: tuple[str, ...]
    values: np.ndarray
    warnings: tuple[str, ...] = ()


def select_confounds(path: Path, spec: str | Iterable[str], n_volumes: int) -> tuple[np.ndarray, list[str]]:
    """Values and warnings of :func:`read_confounds`."""
    found = read_confounds(path, spec, n_volumes)
    return found.values, list(found.warnings)


def select_of_runs(
    paths: Sequence[Path], spec: str | Iterable[str], n_volumes: Sequence[int]
) -> tuple[list[np.ndarray], list[str]]:
    """Values of :func:`read_confounds` for each run of a fit, and warnings.

    What several columns may match need not be in every run, but in one.
    """
    asked = [spec] if isinstance(spec, str) else list(spec)
    tables = [_read(Path(path)) for path in paths]
    optional, warnings = set(), []
    for item in filter(_many, asked):
        without = sum(not _matching(item, table) for table in tables)
        if 0 < without < len(tables):
            optional.add(item)
            warnings.append(f"--confounds {item}: {without} of {len(tables)} runs have no such column.")
    found = [
        _select(table, Path(path), asked, n, optional)
        for table, path, n in zip(tables, paths, n_volumes, strict=True)
    ]
    warnings += [text for run in found for text in run.warnings]
    return [run.values for run in found], warnings


def unsteady_volumes(path: Path) -> int:
    """Number of volumes before the steady state, as the columns' names tell; 0 where they cannot be read."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            names = file.readline().rstrip("\r\n").split("\t")
    except (OSError, UnicodeDecodeError):
        return 0
    return sum(name.startswith(UNSTEADY) for name in names)


def read_confounds(path: Path, spec: str | Iterable[str], n_volumes: int) -> Confounds:
    """Read the confounds asked for.

    Parameters
    ----------
    path : Path
        ``desc-confounds_timeseries.tsv``.
    spec : str or iterable of str
        See the module's docstring.
    n_volumes : int
        Length of the run.

    Returns
    -------
    Confounds
        Columns in the order asked for, each once; constant ones are dropped with a warning.

    Raises
    ------
    UsageError
        A name or pattern that no column has.
    DataError
        Another number of rows than volumes, or a value that is missing after row 1 or is no number.
    FileFaultError
        The file cannot be read.
    """
    asked = [spec] if isinstance(spec, str) else list(spec)
    if not any(item != "none" for item in asked):
        return Confounds((), np.empty((n_volumes, 0)))
    return _select(_read(Path(path)), Path(path), asked, n_volumes)


def _select(
    table: pd.DataFrame, path: Path, asked: Iterable[str], n_volumes: int, optional: Collection[str] = ()
) -> Confounds:
    """Columns of one run; items that are `optional` may match none."""
    if len(table) != n_volumes:
        raise DataError(
            f"{path} has {len(table)} rows for {n_volumes} volumes.", "Use the confounds of this very run."
        )
    warnings: list[str] = []
    items = [item for item in asked if item != "none" and (item not in optional or _matching(item, table))]
    names = list(dict.fromkeys(name for item in items for name in _expand(item, table, path, warnings)))
    columns, kept = [], []
    for name in names:
        values = _centred(_column(name, table, path), name, path)
        if values is None:
            warnings.append(f"{path.name}: {name} is constant and is dropped.")
        else:
            columns.append(values)
            kept.append(name)
    matrix = np.column_stack(columns) if columns else np.empty((n_volumes, 0))
    return Confounds(tuple(kept), matrix, tuple(warnings))


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a tab-separated table: {error}.", "Use the one that fMRIPrep wrote."
        ) from error
    except OSError as error:
        raise FileFaultError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from error
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _many(item: str) -> bool:
    """Whether an item may match several columns, by number or by pattern."""
    return ":" in item or any(sign in item for sign in "*?[")


def _matching(item: str, table: pd.DataFrame) -> list[str]:
    """Columns that a pattern, or the prefix of numbered columns, matches, in natural order."""
    if ":" in item:
        numbered = re.compile(rf"{re.escape(item.rpartition(':')[0])}_?\d+")
        return sorted((name for name in table if numbered.fullmatch(name)), key=natural)
    return sorted((name for name in table if fnmatchcase(name, item)), key=natural)


def _expand(item: str, table: pd.DataFrame, path: Path, warnings: list[str]) -> list[str]:
    """Column names that one item of the specification means."""
    if item in ("motion6", "motion12", "motion24"):
        names = list(MOTION)
        if item != "motion6":
            names += [f"{name}_derivative1" for name in MOTION]
        if item == "motion24":
            names += [f"{name}_power2" for name in names]
    elif ":" in item:
        count = item.rpartition(":")[2]
        if not count.isdecimal() or int(count) < 1:
            raise UsageError(
                f"--confounds {item}: {count!r} is not a number of columns.", "For instance a_comp_cor:5."
            )
        names = _matching(item, table)
        if names and len(names) < int(count):
            warnings.append(f"{path.name}: {item} asks for {count} columns, there are {len(names)}.")
        names = names[: int(count)]
    elif _many(item):
        names = _matching(item, table)
    else:
        names = [item]
    unknown = [name for name in names if name not in table and not _base_of(name, table)]
    if unknown or not names:
        raise UsageError(
            f"--confounds {item}: {path} has no {unknown[0] if unknown else 'such column'}.",
            f"Its columns are {', '.join(list(table)[:SHOWN])}"
            + (f" and {len(table.columns) - SHOWN} more." if len(table.columns) > SHOWN else "."),
        )
    return names


def _base_of(name: str, table: pd.DataFrame) -> str | None:
    """The motion parameter from which a missing difference or square can be computed."""
    match = _DERIVED.match(name)
    return match["base"] if match and match["base"] in table else None


def _column(name: str, table: pd.DataFrame, path: Path) -> np.ndarray:
    """Values of a column, NaN where the file has none; shape (n_volumes,)."""
    if name in table:
        values = np.empty(len(table))
        for row, text in enumerate(table[name]):
            text = text.strip()
            try:
                values[row] = np.nan if text in ("n/a", "") else float(text)
            except ValueError as error:
                raise DataError(
                    f"{path}, column {name}, row {row + 1}: {text!r} is not a number.", "Correct the file."
                ) from error
        return values
    # The square is taken last, of the file's own difference if it has that.
    if name.endswith("_power2"):
        return _column(name.removesuffix("_power2"), table, path) ** 2
    values = _column(name.removesuffix("_derivative1"), table, path)
    return np.concatenate([[np.nan], np.diff(values)])


def _centred(values: np.ndarray, name: str, path: Path) -> np.ndarray | None:
    """Mean-centred values, the first row filled if missing; None when constant."""
    missing = ~np.isfinite(values)
    if missing[1:].any() or (len(values) and np.isinf(values[0])):
        row = int(np.flatnonzero(missing & ~np.isnan(values) | (missing & (np.arange(len(values)) > 0)))[0])
        raise DataError(
            f"{path}, column {name}, row {row + 1}: the value is missing or infinite.",
            "Only the first row may lack a value; leave the column out.",
        )
    if missing.all():
        return None
    mean = values[~missing].mean()
    centred = np.where(missing, 0.0, values - mean)
    # Rounding leaves a constant column with a spread of the order of its size times the precision.
    return None if np.abs(centred).max() <= 1e-10 * max(abs(mean), 1e-300) else centred
