# SPDX-License-Identifier: Apache-2.0
"""Participants of the collection whose outputs a call has not named: what the collection keeps of them.

A collection grows call by call.  Tables are about everybody in it, so that trials, facts of the methodology
and status of those merged earlier are read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from conform_app.collect.plans import Gathered
from conform_app.errors import NoInputError

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.mosaic.collection import Collection

REASON = "merged by an earlier call; not among the participants of this one"
_NOT_GATHERED = ("index", "stimulus", "split", "repetition")


def with_earlier(gathered: Gathered, collection: Collection, keys: Sequence[str]) -> Gathered:
    """Trials of this call, and of these participants as they are in the collection.

    Parameters
    ----------
    gathered : Gathered
    collection : Collection
    keys : sequence of str
        Participants of the collection.
    """
    frames = dict(gathered.frames)
    for key in keys:
        table = collection.trials(key).drop(columns=list(_NOT_GATHERED), errors="ignore")
        frames[key] = table.rename(columns={"name": "stimulus"})
    return replace(gathered, frames=frames)


def earlier_methodology(collection: Collection, keys: Sequence[str], now: pd.DataFrame) -> pd.DataFrame:
    """The methodology table of this call with the rows that an earlier one wrote of these participants.

    Parameters
    ----------
    collection : Collection
    keys : sequence of str
    now : DataFrame
        Of this call; what an earlier table has not got is ``n/a``.
    """
    import pandas as pd

    then = _table(collection, "methodology")
    if then is None or not (kept := then["participant"].isin(list(keys))).any():
        return now
    rows = then[kept].reindex(columns=now.columns)
    return pd.concat([now, rows.fillna("n/a")], ignore_index=True)


def earlier_rows(
    collection: Collection, keys: Sequence[str], frames: Mapping[str, pd.DataFrame]
) -> list[dict[str, object]]:
    """Rows of the table of participants of these participants.

    Parameters
    ----------
    collection : Collection
    keys : sequence of str
    frames : mapping of participant to DataFrame
        Everybody's trials.
    """
    then = _table(collection, "gathered")
    known = {} if then is None else {row["participant"]: row for row in then.to_dict("records")}
    rows = []
    for key in keys:
        row = {"dataset": key.rpartition("_")[2], "status": "compatible", **known.get(key, {})}
        row |= {"participant": key, "merged": True, "reason": REASON, "n_trials": len(frames[key])}
        rows.append(row)
    return rows


def _table(collection: Collection, name: str) -> pd.DataFrame | None:
    try:
        return collection.table(name)
    except NoInputError:
        return None
