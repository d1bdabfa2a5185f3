# SPDX-License-Identifier: Apache-2.0
"""One participant into the collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.collect.plans import ParticipantPlan
from conform_app.errors import CannotCreateError, DataError
from conform_app.images import MapRows, Shelf, grid_difference

if TYPE_CHECKING:
    from conform_app.mosaic.writer import Averages


def merge_participant(plan: ParticipantPlan, scratch: Path) -> str:
    """Write one participant, unless it is there already from the same inputs.

    Parameters
    ----------
    plan : ParticipantPlan
    scratch : Path
        Folder for denoised averages that are pooled over fits.

    Returns
    -------
    str
        ``added``, ``replaced`` or ``unchanged``.

    Raises
    ------
    CannotCreateError
        It is there from other inputs and may not be replaced; or the collection cannot be written.
    DataError, FileFaultError
        Betas that contradict the trials, or files that cannot be read.
    """
    import pandas as pd

    from conform_app.mosaic.collection import Collection
    from conform_app.mosaic.normalise import FitUnit

    there = _there(plan)
    if there is not None and there == plan.inputs:
        return "unchanged"
    if there is not None and not plan.replace:
        raise CannotCreateError(
            f"{plan.key} is in the collection already, made from other files or with another split.",
            "Add --overwrite to replace it, or give the collection a folder of its own.",
        )
    shelf = Shelf()
    rows = [MapRows(unit.betas, shelf) for unit in plan.units]
    for other in rows[1:]:
        difference = grid_difference(rows[0].grid, other.grid)
        if difference:
            raise DataError(
                f"{plan.key}: fits on different grids ({difference}).", "Run the participant level again."
            )
    trials = pd.read_csv(plan.trials_file, sep="\t", dtype=str, keep_default_na=False)
    for name in ("onset", "duration"):
        trials[name] = pd.to_numeric(trials[name], errors="coerce")
    n_maps = sum(row.shape[0] for row in rows)
    if n_maps != len(trials):
        raise DataError(
            f"{plan.key}: {n_maps} maps of betas but {len(trials)} rows in the trial tables.",
            "Run the participant level again.",
        )
    collection = Collection.create(exist_ok=True, **plan.store)
    collection.add_participant(
        plan.dataset,
        f"sub-{plan.label}",
        trials,
        [FitUnit(u.name, r, u.own_statistics) for u, r in zip(plan.units, rows, strict=True)],
        averages=pooled_averages(plan, scratch, rows[0].shape[1]),
        attributes={**plan.attributes, "inputs": plan.inputs},
        configuration=plan.configuration,
        sources=plan.sources,
        dataset_id=plan.dataset_id,
        replace=there is not None,
    )
    return "added" if there is None else "replaced"


def _there(plan: ParticipantPlan) -> str | None:
    """Hash of the inputs of the participant that is there; None when there is none."""
    from conform_app.mosaic.collection import Collection

    if not (Path(plan.store["path"]) / "collection.json").is_file():
        return None
    collection = Collection.open(plan.store["path"])
    if plan.key not in collection.keys and plan.key not in collection.pending:
        return None
    return str(collection.record(plan.key)["attributes"].get("inputs", ""))


def pooled_averages(plan: ParticipantPlan, scratch: Path, n_vertices: int) -> Averages | None:
    """Average the denoised responses to each stimulus over fits, each fit weighted by its trials.

    Parameters
    ----------
    plan : ParticipantPlan
    scratch : Path
        Sums are kept there on disk, so that memory holds one fit at a time.
    n_vertices : int

    Returns
    -------
    Averages or None
        None when a fit has none: then they would stand for part of the trials only.
    """
    from conform_app.mosaic.writer import Averages

    if not all(unit.psn for unit in plan.units):
        return None
    names = list(dict.fromkeys(name for unit in plan.units for name in unit.conditions))
    place = {name: i for i, name in enumerate(names)}
    sums = np.lib.format.open_memmap(
        scratch / f"{plan.key}_averages.npy", mode="w+", dtype=np.float32, shape=(len(names), n_vertices)
    )
    weights = np.zeros(len(names))
    for unit in plan.units:
        np.add.at(weights, [place[name] for name in unit.conditions], unit.n_repeats)
    for unit in plan.units:
        values = MapRows(unit.psn)
        if values.shape != (len(unit.conditions), n_vertices):
            raise DataError(
                f"{plan.key} {unit.name}: denoised averages of shape {values.shape} for "
                f"{len(unit.conditions)} stimuli and {n_vertices} vertices.",
                "Run the participant level again.",
            )
        for row, (name, count) in enumerate(zip(unit.conditions, unit.n_repeats, strict=True)):
            sums[place[name]] += values[row] * np.float32(count / weights[place[name]])
    sums.flush()
    several = len(plan.units) > 1
    return Averages(names, sums, method="PSN, mean over fits weighted by trials" if several else "PSN")


def summary(plan: ParticipantPlan, state: str, error: Exception | None = None) -> dict[str, Any]:
    """What the sealing step and the command line need to know of how it went."""
    out: dict[str, Any] = {"key": plan.key, "state": state}
    if error is not None:
        out |= {
            "exit_code": getattr(error, "exit_code", 1),
            "message": getattr(error, "message", str(error) or type(error).__name__),
            "remedy": getattr(error, "remedy", ""),
        }
    return out
