# SPDX-License-Identifier: Apache-2.0
"""One participant into the collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.collect.plans import ParticipantPlan
from conform_app.errors import CannotCreateError, DataError
from conform_app.images import MapRows, Shelf, grid_difference

if TYPE_CHECKING:
    from conform_app.mosaic import Averages


def merge_participant(plan: ParticipantPlan) -> str:
    """Write one participant, unless it is there already from the same inputs.

    Parameters
    ----------
    plan : ParticipantPlan

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
        averages=averages_of(plan, shelf, rows[0].shape[1]),
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


def averages_of(plan: ParticipantPlan, shelf: Shelf, n_vertices: int) -> Averages | None:
    """Gather the denoised responses to each stimulus in each fit.

    Parameters
    ----------
    plan : ParticipantPlan
    shelf : Shelf
        Holds a few open files for all that are read row by row.
    n_vertices : int

    Returns
    -------
    Averages or None
        None when a fit has none: then they would stand for part of the trials only.
    """
    from conform_app.mosaic import Averages

    if not plan.units or not all(unit.psn for unit in plan.units):
        return None
    maps = [MapRows(unit.psn, shelf) for unit in plan.units]
    for unit, values in zip(plan.units, maps, strict=True):
        if values.shape != (len(unit.conditions), n_vertices):
            raise DataError(
                f"{plan.key} {unit.name}: denoised averages of shape {values.shape} for "
                f"{len(unit.conditions)} stimuli and {n_vertices} vertices.",
                "Run the participant level again.",
            )
    made_of = sorted({unit.psn_type for unit in plan.units if unit.psn_type})
    return Averages(
        stimulus=[name for unit in plan.units for name in unit.conditions],
        values=_Stacked(maps),
        method="PSN" + (f" of betas of type {', '.join(made_of)}" if made_of else ""),
        fits=[unit.name for unit in plan.units for _ in unit.conditions],
        n_trials=[count for unit in plan.units for count in unit.n_repeats],
        scaled=plan.scale_averages,
    )


class _Stacked:
    """Rows of several images, one after the other, read one by one."""

    def __init__(self, parts: Sequence[MapRows]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self.starts[-1]), parts[0].shape[1])

    def __getitem__(self, row: int) -> np.ndarray:
        """One row, of shape (n_vertices,)."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[part][row - int(self.starts[part])]


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
