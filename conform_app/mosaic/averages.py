# SPDX-License-Identifier: Apache-2.0
"""Denoised averages beside the single trials, on their scale.

An average of a stimulus comes from one GLM fit u.  On the scale of the stored betas it is

    z_u = (a_u - m_u) / s_u

with the mean and sd of the train trials of that fit (see `normalise`), so that averages and single trials can
be compared and mixed.  A stimulus that several fits averaged gets sum_u n_u z_u / sum_u n_u over its n_u
trials in each.  The mean of z-scored trials is the z-scored mean, so an average without denoising is exactly
the mean of the stored trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import DataError
from conform_app.mosaic.shards import CHUNK_TRIALS
from conform_app.mosaic.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

Z = "z scores by the train trials of each fit"


@dataclass(frozen=True, eq=False)
class Averages:
    """Denoised averages over the trials of each stimulus, carried beside the single trials.

    Attributes
    ----------
    stimulus : sequence of str
        Names as in the table of trials.
    values : array-like, (n_rows, n_vertices)
        Rows are read in blocks, or one by one.
    method : str
    units : str
        Of the values given.
    fits : sequence of str, optional
        The `FitUnit` that each row comes from.  Rows are then put on the scale of that fit's single trials
        (its mean and sd, as `normalise` has them), and rows of one stimulus averaged.  Without, rows are kept
        as given, one a stimulus.
    n_trials : sequence of int, optional
        Weight of each row in averages over fits.
    scaled : bool
        False: average over fits only, keep the units.
    """

    stimulus: Sequence[str]
    values: Any
    method: str = "PSN"
    units: str = "percent signal change"
    fits: Sequence[str] | None = None
    n_trials: Sequence[int] | None = None
    scaled: bool = True

    def stored_units(self, normalise: bool) -> str:
        """Units in the collection, for betas that are normalised or not.

        Parameters
        ----------
        normalise : bool
            As `Collection.add_participant` is given it.

        Returns
        -------
        str
        """
        return Z if self.fits is not None and self.scaled and normalise else self.units


def write_averages(
    folder: Path,
    averages: Averages,
    key: str,
    trials: pd.DataFrame,
    units: Sequence[str],
    n_vertices: int,
    scale: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """Write the averages of a participant as a Zarr array and a table.

    Parameters
    ----------
    folder : Path
        Of the participant.
    averages : Averages
    key : str
        Of the participant, for messages.
    trials : DataFrame
    units : sequence of str
        Names of the fits, in the order of `scale`.
    n_vertices : int
    scale : (mean, sd) of shape (n_units, n_vertices), or None
        None: betas are not normalised, and averages keep their units.

    Raises
    ------
    DataError
        Averages and trials do not go together.
    """
    import pandas as pd
    import zarr

    names = [str(name) for name in averages.stimulus]
    counts = trials["name"].value_counts()
    _check(averages, names, key, counts, units, n_vertices)
    fits = averages.fits
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name if fits is not None else str(row), []).append(row)
    units_kept = averages.stored_units(scale is not None)
    attributes = {"method": averages.method, "units": units_kept}
    if units_kept == Z:
        attributes["scaling"] = (
            "each row minus the mean, over the sd, of the train trials of its fit (see mean and sd); rows of "
            "one stimulus averaged over fits, weighted by trials"
        )
    array = zarr.create_array(
        folder / "averages",
        shape=(len(rows), n_vertices),
        chunks=(min(CHUNK_TRIALS, len(rows)), n_vertices),
        dtype="float32",
        attributes=attributes,
        dimension_names=("stimulus", "vertex"),
        zarr_format=3,
    )
    groups = list(rows.values())
    scale = scale if units_kept == Z else None
    place = {name: i for i, name in enumerate(units)}
    for start in range(0, len(groups), CHUNK_TRIALS):
        part = groups[start : start + CHUNK_TRIALS]
        if fits is None:
            block = np.asarray(averages.values[start : start + len(part)])
        else:
            block = np.stack([_pooled(averages, its, place, scale) for its in part])
        array[start : start + len(part)] = block
    kept = [names[its[0]] for its in groups]
    table = pd.DataFrame({"name": kept, "n_trials": [int(counts[name]) for name in kept]})
    write_table(folder, "averages", table)


def _check(
    averages: Averages,
    names: Sequence[str],
    key: str,
    counts: pd.Series,
    units: Sequence[str],
    n_vertices: int,
) -> None:
    """Hold averages against trials and fits."""
    shape = tuple(getattr(averages.values, "shape", ()))
    if shape != (len(names), n_vertices):
        raise DataError(
            f"Averages of {key} have shape {shape} for {len(names)} stimuli and {n_vertices} vertices.",
            "Give (n_stimuli, n_vertices) in the collection's space.",
        )
    strange = sorted(set(names) - set(counts.index))
    if strange:
        raise DataError(
            f"{key} has an average for {strange[0]!r}, which none of its trials shows.",
            "Averages and trials belong to different runs of the analysis: make both again.",
        )
    if averages.fits is None:
        return
    unknown = sorted(set(averages.fits) - set(units))
    weights = averages.n_trials
    if unknown or len(averages.fits) != len(names) or (weights is not None and len(weights) != len(names)):
        what = f"of the fit {unknown[0]!r}, which it has not" if unknown else "without fit or trials of each"
        raise DataError(f"{key} has averages {what}.", f"Its fits are {', '.join(units)}.")


def _pooled(
    averages: Averages,
    rows: Sequence[int],
    place: dict[str, int],
    scale: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """One stimulus's average over fits, (n_vertices,) float64."""
    fits: Any = averages.fits
    weights = (
        np.ones(len(rows)) if averages.n_trials is None else np.array([averages.n_trials[r] for r in rows])
    )
    out: Any = 0.0
    for row, weight in zip(rows, weights / weights.sum(), strict=True):
        values = np.asarray(averages.values[row], dtype=np.float64).reshape(-1)
        if scale is not None:
            unit = place[fits[row]]
            with np.errstate(invalid="ignore", divide="ignore"):
                values = (values - scale[0][unit]) / scale[1][unit]
        out = out + weight * values
    return out
