# SPDX-License-Identifier: Apache-2.0
"""Single-participant HDF5 files in the layout that MOSAIC publishes and the ``mosaic-dataset`` package reads.

One dataset of all grayordinates per trial, ``betas/sub-01_NSD_stimulus-STEM_phase-train_rep-0``, created in
the order test, train, artificial; noise ceilings beside them; the CRC-32 of the file in its name.  Artificial
stimuli carry phase ``test``, as in the published files.  Bytes depend on the data alone.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import UsageError
from conform_app.mosaic import layout
from conform_app.mosaic.split import stem

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.mosaic.reading import CollectionReader

LONG_NAMES = {
    "NSD": "NaturalScenesDataset",
    "BMD": "BOLDMomentsDataset",
    "BOLD5000": "BOLD5000",
    "deeprecon": "deeprecon",
    "GOD": "GenericObjectDecoding",
    "HAD": "HumanActionsDataset",
    "NOD": "NaturalObjectDataset",
    "THINGS": "THINGS",
}
"""Short to long names that the ``mosaic-dataset`` package knows; other datasets keep the name they have."""

ROOT_ATTRIBUTES = {
    "visual_angle": float("nan"),
    "sex": "n/a",
    "age": "n/a",
    "publication_url": "n/a",
    "github_url": "n/a",
    "owner_name": "n/a",
    "owner_email": "n/a",
    "preprocessing_pipeline": "n/a",
    "beta_pipeline": "n/a",
}

_READ_AT_ONCE = 32


def export(collection: CollectionReader, key: str, folder: Path, dtype: str, checksum_name: bool) -> Path:
    """Write one participant; see `Collection.export_hdf5`.

    Raises
    ------
    UsageError
        If dtype is neither float64 nor float32.
    CannotCreateError, FileFaultError
        If the file cannot be written.
    """
    import h5py

    if dtype not in ("float64", "float32"):
        raise UsageError(f"HDF5 files are not written as {dtype}.", "Choose float64 or float32.")
    record = collection.record(key)
    subject, dataset = key.split("_", 1)
    part = folder / f".{key}.{uuid.uuid4().hex[:8]}.hdf5"
    with layout.writing(folder / key):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with h5py.File(part, "w") as file:
                file.attrs.update(_root_attributes(record, subject, dataset))
                betas = file.create_group("betas", track_order=True)
                holes = _write_trials(collection, key, betas, dtype)
                _write_ceilings(collection, key, file)
                file.create_dataset("nan_indices_all", data=holes)
            crc = f"_crc32-{_crc32(part):08x}" if checksum_name else ""
            done = folder / f"{key}{crc}.hdf5"
            part.replace(done)
        finally:
            part.unlink(missing_ok=True)
    return done


def _root_attributes(record: dict[str, Any], subject: str, dataset: str) -> dict[str, Any]:
    given = record["attributes"]
    attributes = {name: given.get(name, default) for name, default in ROOT_ATTRIBUTES.items()}
    long_name = given.get("long_name", LONG_NAMES.get(dataset, dataset))
    return {**attributes, "dataset_name": long_name, "subjectID": subject}


def trial_names(key: str, trials: pd.DataFrame) -> list[tuple[int, str, str]]:
    """Row, name in the file and phase of each trial, in the order of the file.

    Parameters
    ----------
    key : str
        ``sub-01_NSD``.
    trials : DataFrame
        ``name``, ``phase``, ``repetition``.

    Returns
    -------
    list of (int, str, str)
        Two stimuli that differ in their extension only keep it in their names.
    """
    owners: dict[str, set[str]] = {}
    for name in trials["name"]:
        owners.setdefault(stem(name), set()).add(name)
    rank = {"test": 0, "train": 1, "artificial": 2}
    rows = zip(trials["phase"], trials["name"], trials["repetition"], trials["index"], strict=True)
    out = []
    for phase, name, repetition, row in sorted(rows, key=lambda r: (rank[r[0]], *r[1:])):
        short = stem(name) if len(owners[stem(name)]) == 1 else name
        # A slash would make a group of the name
        short = short.replace("/", "_")
        shown = "train" if phase == "train" else "test"
        out.append((int(row), f"{key}_stimulus-{short}_phase-{shown}_rep-{repetition}", shown))
    return out


def _write_trials(collection: CollectionReader, key: str, group: Any, dtype: str) -> np.ndarray:
    """Write one dataset per trial; return the vertices that are missing in any."""
    trials = collection.trials(key)
    missing = np.zeros(collection.n_vertices, bool)
    names = trials["name"].tolist()
    repetitions = trials["repetition"].tolist()
    for rows, block in _in_blocks(collection, key, trial_names(key, trials)):
        for (row, name, phase), values in zip(rows, block, strict=True):
            holes = np.flatnonzero(~np.isfinite(values))
            missing[holes] = True
            trial = group.create_dataset(name, data=values.astype(dtype))
            trial.attrs["nan_indices"] = holes
            trial.attrs["phase"] = phase
            trial.attrs["repetition"] = repetitions[row]
            trial.attrs["presented_stimulus_filename"] = names[row]
    return np.flatnonzero(missing)


def _in_blocks(
    collection: CollectionReader, key: str, order: list[tuple[int, str, str]]
) -> Iterator[tuple[list[tuple[int, str, str]], np.ndarray]]:
    for start in range(0, len(order), _READ_AT_ONCE):
        rows = order[start : start + _READ_AT_ONCE]
        yield rows, collection.betas(key, np.array([row for row, _, _ in rows]))


def _write_ceilings(collection: CollectionReader, key: str, file: Any) -> None:
    maps = collection.noise_ceilings(key)
    if not maps:
        return
    group = file.create_group("noiseceilings", track_order=True)
    for (phase, n), values in maps.items():
        one = group.create_dataset(f"{key}_phase-{phase}_n-{n}_noiseceiling", data=values.astype(np.float64))
        one.attrs["nan_indices"] = np.flatnonzero(~np.isfinite(values))
        one.attrs["n"] = n
        one.attrs["phase"] = "test" if phase == "artificial" else phase


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
