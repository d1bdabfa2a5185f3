# SPDX-License-Identifier: Apache-2.0
r"""The scale of betas across sites, without the sites' share in it (ComBat).

z-scoring takes the scale of every fit away: how strongly a participant responds is then nowhere in the
betas.  Here it comes back, but for what the site (dataset) has in common.  With s_pv the geometric mean, over
the fits of participant p, of the sd of train trials at vertex v,

    log s'_pv = ComBat(log s_pv, batch = site of p),      betas in that scale:  s'_pv z

ComBat (Johnson, Li and Rabinovic 2007, Biostatistics 8:118) takes a shift and a scale of each site out of
each vertex, estimated with a prior over vertices.  Only the sd of train trials enters, so test data have no
part in it; the betas on disk stay z scores, s' is kept beside them per version: dividing by it leads back.

What a site's participants saw and what its scanner did cannot be told apart by this, or by anything, where
sites share no stimuli.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import DataError, NoInputError

if TYPE_CHECKING:
    import pandas as pd

FEW = 10
"""Participants of a site below which its shift and scale rest on the prior more than on them."""


@dataclass(frozen=True, eq=False)
class Harmonised:
    """Scales with the sites' share taken out.

    Attributes
    ----------
    keys : tuple of str
        Participants, in the order of the rows.
    scale : ndarray, (n_participants, n_vertices) float32
        In the unit of the betas before normalisation; NaN at vertices where any participant has no scale.
    table : DataFrame
        Of each participant: ``site``, ``row`` and the median scale ``before`` and ``after``.
    account : list of str
    """

    keys: tuple[str, ...]
    scale: np.ndarray
    table: pd.DataFrame
    account: list[str]


def check_library() -> None:
    """Raise NoInputError where the library is not installed."""
    if importlib.util.find_spec("combatlearn") is None:
        raise NoInputError(
            "Harmonisation needs the library combatlearn, which is not installed.",
            "Install it (pip install combatlearn), or leave --harmonise out.",
        )


def train_scale(collection: Any, key: str) -> np.ndarray | None:
    """Geometric mean, over fits, of the sd of train trials, (n_vertices,) float64.

    Fits that were scaled by all their own trials (test sessions fitted alone) do not count.  None where a
    participant has no other.
    """
    own = [bool(unit["own_statistics"]) for unit in collection.record(key)["units"]]
    _, _, sd = collection.statistics(key)
    kept = np.asarray(sd, dtype=np.float64)[~np.array(own)]
    if not len(kept):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.exp(np.log(kept).mean(axis=0))


def harmonise_scale(
    scales: Mapping[str, np.ndarray],
    sites: Mapping[str, str],
    shown: Mapping[str, set[str]] | None = None,
) -> Harmonised:
    """Take the sites' share out of the scale of betas.

    Parameters
    ----------
    scales : mapping of participant to ndarray of shape (n_vertices,)
        From `train_scale`.
    sites : mapping of participant to str
        Site (dataset) of each.
    shown : mapping of site to set of str, optional
        Stimuli of each site, to tell where sites cannot be told from stimuli.

    Returns
    -------
    Harmonised

    Raises
    ------
    NoInputError
        The library combatlearn is not installed.
    DataError
        There are fewer than two sites, or a site has one participant only, or no vertex has a scale in all.
    """
    check_library()
    import pandas as pd

    keys = sorted(scales)
    batch = [sites[key] for key in keys]
    members = {site: batch.count(site) for site in dict.fromkeys(batch)}
    lonely = [site for site, n in members.items() if n < 2]
    if len(members) < 2 or lonely:
        what = f"{lonely[0]} has one participant" if lonely and len(members) > 1 else "there is one site"
        raise DataError(
            f"The scale of betas cannot be harmonised over sites: {what}.",
            "ComBat needs two sites or more, and two participants of each.",
        )
    log = np.log(np.stack([scales[key] for key in keys]))
    valid = np.isfinite(log).all(axis=0) & (np.ptp(log, axis=0) > 0)
    if not valid.any():
        raise DataError("No vertex has a scale in every participant.", "Look at the participants' records.")
    out = np.full(log.shape, np.nan, np.float32)
    out[:, valid] = np.exp(_combat(log[:, valid], keys, batch))
    medians = [[float(np.nanmedian(row)) for row in rows] for rows in (np.exp(log), out)]
    table = pd.DataFrame({"participant": keys, "site": batch, "row": range(len(keys))})
    table["before"], table["after"] = medians
    return Harmonised(tuple(keys), out, table, _account(members, int(valid.sum()), log.shape[1], shown))


def _combat(log: np.ndarray, keys: Sequence[str], batch: Sequence[str]) -> np.ndarray:
    import pandas as pd
    from combatlearn import ComBat

    frame = pd.DataFrame(log, index=list(keys))
    model = ComBat(batch=pd.Series(list(batch), index=list(keys)), method="johnson")
    return np.asarray(model.fit(frame).transform(frame), dtype=np.float64)


def _account(
    members: Mapping[str, int], n_valid: int, n_vertices: int, shown: Mapping[str, set[str]] | None
) -> list[str]:
    """What was done, and what it cannot tell."""
    listed = ", ".join(f"{site} ({n})" for site, n in members.items())
    said = [
        f"The scale of betas was harmonised over the sites {listed} by ComBat, at {n_valid} of {n_vertices} "
        "vertices, from the train trials alone."
    ]
    few = [site for site, n in members.items() if n < FEW]
    if few:
        said.append(
            f"{', '.join(few)}: fewer than {FEW} participants, so that what is taken out is as much "
            "of them as of the site."
        )
    for one, other in combinations(members, 2):
        if shown is not None and not shown.get(one, set()) & shown.get(other, set()):
            said.append(
                f"{one} and {other} share no stimulus: differences in scale that their stimuli make are "
                "taken out with those that the sites make."
            )
    return said
