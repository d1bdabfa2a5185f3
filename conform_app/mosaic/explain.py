# SPDX-License-Identifier: Apache-2.0
"""How much of the difference between participants goes with how they were measured.

Let y be one number a participant (its median noise ceiling, say) and x a fact of its methodology.  The share
of variance

    R² = SS(x) / SS(total)

flatters: with six participants in three datasets, whatever is constant within datasets (field strength, TR)
explains much of what the datasets themselves explain, and its evidence is three points, not six.  So

- a fact that is constant within datasets is tested on the means of datasets: with G datasets and k parameters
  there are G - 1 - k residual degrees of freedom; with none left nothing is tested, and that is said;
- a fact that varies within datasets is tested within them: dataset means are taken out of both sides, leaving
  n - G - k degrees of freedom;
- facts that divide the participants in the same way are listed as aliases: the data cannot tell them apart.

The adjusted share of the tested model is 1 - (1 - R²)(df_model + df_residual)/df_residual, at least 0, times
the share of the variance that lies at its level (between datasets, or within), so that it compares with R².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "outcome", "field", "level", "n", "n_values", "share", "df_model", "df_residual", "adjusted", "p",
    "aliases", "note",
)  # fmt: skip


def explain_variance(
    outcomes: Mapping[str, Sequence[float]], facts: Mapping[str, Sequence[Any]], datasets: Sequence[str]
) -> pd.DataFrame:
    """Relate outcomes to facts, one fact at a time.

    Parameters
    ----------
    outcomes : mapping of name to sequence of float, (n_participants,)
        NaN where an outcome is not known.
    facts : mapping of name to sequence, (n_participants,)
        Texts or numbers; ``n/a`` or None where not known.  A fact is a number if all its known values are.
    datasets : sequence of str, (n_participants,)

    Returns
    -------
    DataFrame
        A row an outcome and fact, the dataset itself first: ``share`` (R² over participants), ``level``
        (``dataset`` or ``participant``: where it was tested), degrees of freedom, ``adjusted`` share
        and ``p`` of the F test at that level, ``aliases``.  Facts with a single value are left out.
    """
    import pandas as pd

    groups = np.asarray([str(name) for name in datasets], dtype=object)
    known = {name: _fact(values) for name, values in facts.items()}
    rows = []
    for outcome, numbers in outcomes.items():
        y = np.asarray(numbers, dtype=np.float64)
        there = np.isfinite(y)
        own = [_dataset_row(y[there], groups[there])] if len(set(groups[there])) > 1 else []
        for name, (x, has) in known.items():
            use = there & has
            row = _row(y[use], x[use], groups[use])
            if row is not None:
                row["field"] = name
                row["aliases"] = ", ".join(_aliases(name, known, use))
                own.append(row)
        rows += [{"outcome": outcome, **row} for row in own]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _fact(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values as numbers where all are, else as texts; and which are known."""
    has = np.array([value is not None and str(value) not in ("", "n/a", "nan") for value in values], bool)
    try:
        numbers = np.array([float(v) if h else np.nan for v, h in zip(values, has, strict=True)])
    except (TypeError, ValueError):
        return np.array([str(value) for value in values], dtype=object), has
    return numbers, has


def _codes(x: np.ndarray) -> np.ndarray:
    return np.unique(x.astype(str), return_inverse=True)[1]


def _design(x: np.ndarray) -> np.ndarray:
    """Columns that span a fact: a number itself, a text's values as 0/1 (all but one)."""
    if x.dtype != object:
        return x[:, None] - x.mean()
    codes = _codes(x)
    return np.eye(codes.max() + 1)[codes][:, 1:]


def _share(y: np.ndarray, design: np.ndarray) -> tuple[float, int]:
    """R² of y on a design (both centred here), and the design's rank."""
    y = y - y.mean()
    design = design - design.mean(axis=0)
    total = float(y @ y)
    rank = int(np.linalg.matrix_rank(design)) if design.size else 0
    if total <= 0 or rank == 0:
        return np.nan, rank
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(fitted @ fitted) / total, rank


def _row(y: np.ndarray, x: np.ndarray, groups: np.ndarray) -> dict[str, Any] | None:
    """One fact; None when it does not vary."""
    n_values = len(np.unique(x.astype(str)))
    if n_values < 2:
        return None
    share, _ = _share(y, _design(x))
    labels = np.unique(groups.astype(str))
    between = _share(y, _design(groups))[0] if len(labels) > 1 else 0.0
    within = [np.flatnonzero(groups == label) for label in labels]
    constant = all(len(np.unique(x[index].astype(str))) == 1 for index in within)
    row: dict[str, Any] = {"n": len(y), "n_values": n_values, "share": share}
    if constant and len(labels) > 1:
        first = np.array([index[0] for index in within])
        means = np.array([y[index].mean() for index in within])
        tested, rank = _share(means, _design(x[first]))
        return row | {"level": "dataset"} | _test(tested, rank, len(labels) - 1 - rank, between)
    y_in, design = y.copy(), _design(x)
    for index in within:
        y_in[index] -= y_in[index].mean()
        design[index] -= design[index].mean(axis=0)
    tested, rank = _share(y_in, design)
    return row | {"level": "participant"} | _test(tested, rank, len(y) - len(labels) - rank, 1 - between)


def _dataset_row(y: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """The datasets themselves, as a one-way layout."""
    share, rank = _share(y, _design(groups))
    row = {"field": "dataset", "level": "participant", "n": len(y), "n_values": rank + 1, "share": share}
    return row | _test(share, rank, len(y) - 1 - rank) | {"aliases": ""}


def _test(share: float, df_model: int, df_residual: int, part: float = 1.0) -> dict[str, Any]:
    """Adjusted share (of the part at this level) and p of the F test, where degrees of freedom are left."""
    from scipy.stats import f

    out: dict[str, Any] = {
        "df_model": df_model,
        "df_residual": max(df_residual, 0),
        "adjusted": np.nan,
        "p": np.nan,
    }
    out["note"] = ""
    if df_model == 0 or not np.isfinite(share):
        out["note"] = "it does not vary where it could be tested"
    elif df_residual < 1:
        out["note"] = "no degree of freedom is left: it cannot be told from the datasets"
    else:
        out["adjusted"] = part * max(0.0, 1 - (1 - share) * (df_model + df_residual) / df_residual)
        rest = max(1 - share, 1e-15)
        out["p"] = float(f.sf(share / df_model / (rest / df_residual), df_model, df_residual))
    return out


def _aliases(name: str, known: Mapping[str, tuple[np.ndarray, np.ndarray]], use: np.ndarray) -> list[str]:
    """Facts that divide these participants in the same way."""
    mine = _codes(known[name][0][use])
    found = []
    for other, (x, has) in known.items():
        if other != name and has[use].all():
            theirs = _codes(x[use])
            pairs = len(set(zip(mine.tolist(), theirs.tolist(), strict=True)))
            if pairs == len(set(mine.tolist())) == len(set(theirs.tolist())):
                found.append(other)
    return found
