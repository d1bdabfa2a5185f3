# SPDX-License-Identifier: Apache-2.0
"""One participant into a collection: checked, scaled, written, measured, and only then put in place.

Betas pass by in blocks of 32 trials, so that memory does not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import CannotCreateError, DataError, FileFaultError
from conform_app.mosaic import layout
from conform_app.mosaic.averages import Averages, write_averages
from conform_app.mosaic.ceilings import STRIP_BYTES, phase_ceilings
from conform_app.mosaic.normalise import FitUnit, unit_statistics
from conform_app.mosaic.shards import CHUNK_TRIALS, Grain, ShardReader, ShardWriter
from conform_app.mosaic.split import PHASES
from conform_app.mosaic.tables import write_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Submission:
    """Everything about one participant, before it is written."""

    dataset: str
    participant: str
    trials: pd.DataFrame
    units: Sequence[FitUnit]
    normalise: bool = True
    averages: Averages | None = None
    ceilings: bool = True
    attributes: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[str] = ()
    dataset_id: str = ""

    @property
    def key(self) -> str:
        """Name in the collection."""
        return layout.participant_key(self.dataset, self.participant)


def check_submission(given: Submission, n_vertices: int) -> pd.DataFrame:
    """Check trials against betas; return the table of trials as it will be written.

    Raises
    ------
    DataError
        If the table is missing, lacks a column or has another length than the betas, or betas have another
        number of vertices than the collection.
    """
    from conform_app.reliability import repeat_numbers

    key, trials = given.key, given.trials
    if trials is None or not len(trials):
        raise DataError(f"{key} has no table of trials.", "Betas without it cannot enter a collection.")
    for column in ("stimulus", "phase"):
        if column not in trials.columns:
            raise DataError(f"The trials of {key} lack the column {column!r}.", "Add it.")
        if trials[column].isna().any() or (trials[column].astype(str).isin(["", "n/a"])).any():
            raise DataError(f"Some trials of {key} have no {column}.", "Fill it in or drop these trials.")
    unknown = sorted(set(trials["phase"].astype(str)) - set(PHASES))
    if unknown:
        raise DataError(
            f"{key} has the phase {unknown[0]!r}.",
            f"Phases are {', '.join(PHASES)}; own_split makes them for a dataset that has none.",
        )
    if not isinstance(given.units, Sequence) or not all(isinstance(u, FitUnit) for u in given.units):
        raise DataError(
            f"The betas of {key} are no sequence of FitUnit.", "Give units=[FitUnit(name, betas), ...]."
        )
    sizes = []
    for unit in given.units:
        shape = tuple(getattr(unit.betas, "shape", ()))
        if len(shape) != 2 or shape[1] != n_vertices:
            raise DataError(
                f"Betas of {key} {unit.name} have shape {shape}; needed is (trials, {n_vertices}).",
                "All participants of a collection share one space.",
            )
        sizes.append(shape[0])
    if len({unit.name for unit in given.units}) < len(sizes):
        raise DataError(f"Two fits of {key} have one name.", "Name each FitUnit differently.")
    if sum(sizes) != len(trials):
        raise DataError(
            f"{key} has {sum(sizes)} betas and {len(trials)} rows in its table of trials.",
            "They belong to different runs of the analysis: make both again.",
        )
    table = trials.reset_index(drop=True).rename(columns={"stimulus": "name"})
    table["name"] = table["name"].astype(str)
    table["phase"] = table["phase"].astype(str)
    drop = [c for c in ("index", "unit", "repetition", "split", "stimulus") if c in table.columns]
    table = table.drop(columns=drop)
    table.insert(0, "index", np.arange(len(table)))
    table.insert(1, "unit", np.repeat([unit.name for unit in given.units], sizes).astype(str))
    code = np.unique(table["name"].to_numpy(str), return_inverse=True)[1]
    table.insert(4, "repetition", repeat_numbers(code))
    return table


def write_participant(
    root: Path, given: Submission, n_vertices: int, dtype: str, replace: bool
) -> dict[str, Any]:
    """Write a participant and put it in place; return its record.

    Raises
    ------
    DataError
        From the checks, or if betas hold no finite value at all.
    CannotCreateError
        If the participant is there already, or the disk has no room for it.
    FileFaultError
        If betas cannot be read, or the disk fills up on the way.
    """
    key = given.key
    place = root / layout.PARTICIPANTS / key
    if place.exists() and not replace:
        raise CannotCreateError(
            f"{key} is in the collection already.",
            "If this is another dataset of the same name, rename it; to write it again, pass replace=True.",
        )
    trials = check_submission(given, n_vertices)
    grain = Grain(len(trials), n_vertices, dtype)
    _check_room(root, grain, key)
    with layout.incoming(root, key) as folder, layout.writing(place):
        record = _fill(folder, given, trials, grain)
        layout.sync_tree(folder)
        (folder / layout.LOCK).unlink()
        _put(folder, place)
    return record


def _check_room(root: Path, grain: Grain, key: str) -> None:
    free = shutil.disk_usage(root).free
    if free < grain.n_bytes:
        raise CannotCreateError(
            f"{key} takes {grain.n_bytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB left.",
            "Free some space, or write the collection as float16.",
        )


def _put(folder: Path, place: Path) -> None:
    """Rename into place; an earlier version of the participant steps aside first and goes last."""
    aside = place.with_name(layout.REPLACED + place.name)
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(place, aside)
    os.rename(folder, place)
    layout.sync_folder(place.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _fill(folder: Path, given: Submission, trials: pd.DataFrame, grain: Grain) -> dict[str, Any]:
    import zarr

    attributes = {"dataset": given.dataset, "participant": given.participant}
    zarr.create_group(folder, zarr_format=3, attributes=attributes, overwrite=False)
    scale = _statistics(given, trials, grain.n_vertices) if given.normalise else None
    writer = ShardWriter(folder / "betas", grain)
    found = _Finite(grain.n_vertices)
    try:
        for block in _scaled(given, scale, grain.n_vertices):
            writer.put(found.add(block))
        shards = writer.close()
    finally:
        writer.abandon()
    found.check(given.key)
    _small(folder / "finite", found.vertices, "bool")
    if scale is not None:
        _small(folder / "mean", scale[0], "float32", units=[u.name for u in given.units])
        _small(folder / "sd", scale[1], "float32", units=[u.name for u in given.units])
    ceilings = _write_ceilings(folder, trials, grain) if given.ceilings else []
    if given.averages is not None:
        names = [unit.name for unit in given.units]
        write_averages(folder, given.averages, given.key, trials, names, grain.n_vertices, scale)
    write_table(folder, "trials", trials)
    record = _record(given, trials, grain, found, ceilings)
    record["files"] = _checksums(folder, {f"betas/{name}": value for name, value in shards.items()})
    (folder / layout.RECORD).write_bytes(layout.to_json(record))
    return record


def _blocks(unit: FitUnit, key: str, step: int = CHUNK_TRIALS) -> Iterator[tuple[slice, np.ndarray]]:
    """Betas of a fit in blocks of trials, float32."""
    n = unit.betas.shape[0]
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        try:
            block = np.asarray(unit.betas[rows])
        except (OSError, EOFError) as error:
            raise FileFaultError(
                f"Betas of {key} {unit.name} cannot be read: {error}.", "Run its participant level again."
            ) from error
        yield rows, block.astype(np.float32, copy=False)


def _statistics(given: Submission, trials: pd.DataFrame, n_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of each unit, (n_units, n_vertices)."""
    train = (trials["phase"] == "train").to_numpy()
    start, means, sds = 0, [], []
    for unit in given.units:
        its = train[start : start + unit.betas.shape[0]]
        start += len(its)
        try:
            mean, sd = unit_statistics(unit, its, _blocks(unit, given.key), n_vertices)
        except DataError as error:
            raise DataError(f"{given.key}: {error.message}", error.remedy) from error
        means.append(mean)
        sds.append(sd)
    return np.stack(means), np.stack(sds)


def _scaled(
    given: Submission, scale: tuple[np.ndarray, np.ndarray] | None, n_vertices: int
) -> Iterator[np.ndarray]:
    """Chunk rows of scaled betas; a chunk row may hold the end of one fit and the start of the next."""
    held = np.empty((CHUNK_TRIALS, n_vertices), np.float32)
    filled = 0
    for i, unit in enumerate(given.units):
        if scale is not None:
            shift, factor = scale[0][i].astype(np.float32), (1.0 / scale[1][i]).astype(np.float32)
        for _, block in _blocks(unit, given.key):
            if scale is not None:
                with np.errstate(invalid="ignore"):
                    block = (block - shift) * factor
            if filled == 0 and len(block) == CHUNK_TRIALS:
                yield block
                continue
            taken = 0
            while taken < len(block):
                n = min(CHUNK_TRIALS - filled, len(block) - taken)
                held[filled : filled + n] = block[taken : taken + n]
                filled, taken = filled + n, taken + n
                if filled == CHUNK_TRIALS:
                    yield held
                    filled = 0
    if filled:
        yield held[:filled]


class _Finite:
    """What is missing among the betas that pass by."""

    def __init__(self, n_vertices: int) -> None:
        self.vertices = np.ones(n_vertices, bool)
        self.never = np.ones(n_vertices, bool)
        self.empty_trials: list[int] = []
        self.n_trials = 0
        self.n_missing = 0

    def add(self, block: np.ndarray) -> np.ndarray:
        """Take note of a block; return it with NaN for everything that is not finite."""
        with np.errstate(all="ignore"):
            clean = np.isfinite(block.sum())  # one pass without memory of its own
        if clean:
            self.never[:] = False
        else:
            there = np.isfinite(block)
            block = np.where(there, block, np.float32("nan"))
            self.vertices &= there.all(axis=0)
            self.never &= ~there.any(axis=0)
            self.n_missing += int(there.size - there.sum())
            self.empty_trials += (self.n_trials + np.flatnonzero(~there.any(axis=1))).tolist()
        self.n_trials += len(block)
        return block

    def check(self, key: str) -> None:
        if self.never.all():
            raise DataError(f"No beta of {key} is finite.", "Run its participant level again.")


def _small(path: Path, values: np.ndarray, dtype: str, **attributes: Any) -> None:
    """Write a small Zarr array, vertices last."""
    import zarr

    chunks = (1,) * (values.ndim - 1) + (values.shape[-1],)
    array = zarr.create_array(
        path,
        shape=values.shape,
        chunks=chunks,
        dtype=dtype,
        attributes=attributes,
        dimension_names=("row", "vertex")[-values.ndim :],
        zarr_format=3,
    )
    with np.errstate(over="ignore"):
        array[...] = values.astype(dtype)


def _write_ceilings(folder: Path, trials: pd.DataFrame, grain: Grain) -> list[dict[str, str]]:
    stimulus, phase = trials["name"].to_numpy(str), trials["phase"].to_numpy(str)
    strips = ShardReader(folder / "betas", grain).strips(STRIP_BYTES)
    maps = phase_ceilings(strips, stimulus, phase, grain.n_vertices)
    if not maps:
        return []
    rows = [{"phase": phase, "n": n} for phase, n in maps]
    _small(folder / "noiseceiling", np.stack(list(maps.values())), "float32", maps=rows, units="percent")
    return rows


def _record(
    given: Submission, trials: pd.DataFrame, grain: Grain, found: _Finite, ceilings: list[dict[str, str]]
) -> dict[str, Any]:
    said = []
    n_holes = int((~found.vertices).sum())
    if n_holes:
        said.append(f"{n_holes} of {grain.n_vertices} vertices have no value in one trial or more.")
    if found.empty_trials:
        said.append(f"{len(found.empty_trials)} trials have no value at any vertex.")
    if not ceilings and given.ceilings:
        said.append("No stimulus is repeated within a phase, so there is no noise ceiling.")
    own = [unit.name for unit in given.units if unit.own_statistics]
    if own and given.normalise:
        said.append(f"{', '.join(own)}: scaled by all its own trials, so not on the scale of train trials.")
    return {
        "schema": layout.SCHEMA,
        "key": given.key,
        "dataset": given.dataset,
        "dataset_id": given.dataset_id,
        "participant": given.participant,
        "n_trials": grain.n_trials,
        "n_vertices": grain.n_vertices,
        "dtype": grain.dtype,
        "normalised": given.normalise,
        "units": [
            {"name": u.name, "n_trials": int(u.betas.shape[0]), "own_statistics": u.own_statistics}
            for u in given.units
        ],
        "phases": {phase: int((trials["phase"] == phase).sum()) for phase in PHASES},
        "n_stimuli": int(trials["name"].nunique()),
        "missing": {
            "vertices": n_holes,
            "vertices_always": int(found.never.sum()),
            "values": found.n_missing,
            "trials": found.empty_trials,
        },
        "noise_ceilings": ceilings,
        "averages": None if given.averages is None else given.averages.method,
        "averages_units": None if given.averages is None else given.averages.stored_units(given.normalise),
        "attributes": dict(given.attributes),
        "configuration": dict(given.configuration),
        "sources": list(given.sources),
        "account": said,
    }


def _checksums(folder: Path, known: Mapping[str, tuple[int, str]]) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file below a participant's folder."""
    files: dict[str, list[Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != layout.LOCK):
        name = path.relative_to(folder).as_posix()
        if name in known:
            files[name] = list(known[name])
        else:
            content = path.read_bytes()
            files[name] = [len(content), f"sha256:{hashlib.sha256(content).hexdigest()}"]
    return files
