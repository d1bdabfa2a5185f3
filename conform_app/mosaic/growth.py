# SPDX-License-Identifier: Apache-2.0
"""How a collection comes to be and grows: created, participants added and removed, versions sealed.

A version is a manifest: the participants with the SHA-256 of their records (which hold the checksum of every
file), the tables with theirs, and the history of versions before it.  Sealing twice without a change gives
the same version.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import CannotCreateError, DataError, FileFaultError, NoInputError, UsageError
from conform_app.mosaic import layout
from conform_app.mosaic.identity import Identity, resolve_duplicates, stimulus_embeddings
from conform_app.mosaic.place import Place
from conform_app.mosaic.similarity import THRESHOLD_ORIGIN
from conform_app.mosaic.split import Split, split_stimuli
from conform_app.mosaic.tables import parse, write_array, write_table
from conform_app.mosaic.writer import Submission, write_participant

if TYPE_CHECKING:
    import pandas as pd

_GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}


def load_json(place: Place, name: str) -> dict[str, Any]:
    """Read a JSON file of a collection, of a schema that is known.

    Raises
    ------
    NoInputError, FileFaultError
    """
    return parse_json(place, name, place.read(name))


def parse_json(place: Place, name: str, content: bytes) -> dict[str, Any]:
    """Parse what was read of a JSON file; see `load_json`."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise FileFaultError(
            f"{place.root}/{name} is damaged: {error}.", "Seal or write it again."
        ) from error
    if value.get("schema", layout.SCHEMA) > layout.SCHEMA:
        raise FileFaultError(f"{place.root}/{name} was written by a newer version.", "Update this program.")
    return value


def create(
    root: Path, space: str, n_vertices: int, dtype: str, configuration: dict[str, Any], exist_ok: bool
) -> None:
    """Write what all participants share; see `Collection.create`."""
    if dtype not in ("float32", "float16"):
        raise UsageError(f"Betas cannot be stored as {dtype}.", "Choose float32 or float16.")
    if n_vertices < 1:
        raise UsageError(f"{n_vertices} is no number of vertices.", "Give a positive number.")
    common = {
        "schema": layout.SCHEMA,
        "space": space,
        "n_vertices": int(n_vertices),
        "dtype": dtype,
        "configuration": configuration,
    }
    there = root / layout.COLLECTION
    if there.exists():
        _agree(load_json(Place(root), layout.COLLECTION), common, root, exist_ok)
        return
    if root.exists() and any(not entry.name.startswith(".") for entry in root.iterdir()) and not exist_ok:
        raise CannotCreateError(f"{root} is not empty and not a collection.", "Choose an empty folder.")
    with layout.writing(root):
        (root / layout.PARTICIPANTS).mkdir(parents=True, exist_ok=True)
        for folder in (root, root / layout.PARTICIPANTS):
            layout.write_atomic(folder / "zarr.json", layout.to_json(_GROUP))
        # Two processes may create one collection at the same time: the first one's file counts
        part = root / f".{layout.COLLECTION}.{uuid.uuid4().hex[:8]}"
        part.write_bytes(layout.to_json(common))
        try:
            os.link(part, there)
        except FileExistsError:
            _agree(load_json(Place(root), layout.COLLECTION), common, root, exist_ok)
        finally:
            part.unlink()
        layout.sync_folder(root)


def _agree(there: Mapping[str, Any], wanted: Mapping[str, Any], root: Path, exist_ok: bool) -> None:
    if not exist_ok:
        raise CannotCreateError(f"{root} is a collection already.", "Open it, or choose another folder.")
    for key in ("space", "n_vertices", "dtype", "configuration"):
        if there[key] != wanted[key]:
            raise CannotCreateError(
                f"The collection in {root} has {key} {there[key]!r} instead of {wanted[key]!r}.",
                "Write to another folder: one collection holds one space and one configuration.",
            )


def present(root: Path) -> list[str]:
    """Participants that are there, whole, in the order of their names."""
    folder = root / layout.PARTICIPANTS
    return sorted(
        p.parent.name for p in folder.glob(f"*/{layout.RECORD}") if not p.parent.name.startswith(".")
    )


def add(root: Path, common: Mapping[str, Any], given: Submission, replace: bool) -> dict[str, Any]:
    """Add a participant; see `Collection.add_participant`."""
    for key, value in common["configuration"].items():
        found = given.configuration.get(key)
        if found != value:
            raise DataError(
                f"{given.key} cannot be pooled: its {key} is {found!r}, the collection's is {value!r}.",
                "Run its participant level again with the collection's settings, or make another collection.",
            )
    _one_dataset(root, given.dataset, given.dataset_id, given.key)
    return write_participant(root, given, common["n_vertices"], common["dtype"], replace)


def _one_dataset(root: Path, dataset: str, dataset_id: str, key: str) -> None:
    for other in present(root):
        if other.rpartition("_")[2] != dataset or other == key:
            continue
        found = load_json(Place(root), f"{layout.PARTICIPANTS}/{other}/{layout.RECORD}")["dataset_id"]
        if found != dataset_id:
            raise DataError(
                f"{key} and {other} belong to different datasets of one name ({dataset_id!r} and {found!r}).",
                "Give one of the datasets another name.",
            )
        return


def remove(root: Path, key: str) -> None:
    """Delete a participant, first from sight and then from disk."""
    place = root / layout.PARTICIPANTS / key
    if not key or key.startswith(".") or "/" in key or not place.is_dir():
        raise NoInputError(f"{root} has no participant {key!r}.", "Look at .participants.")
    gone = place.with_name(f".incoming-{key}-removed")
    with layout.writing(place):
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(place, gone)
        layout.sync_folder(place.parent)
        shutil.rmtree(gone)


def read_trials(place: Place, key: str) -> pd.DataFrame:
    """Table of trials as it was written with the participant."""
    head = f"{layout.PARTICIPANTS}/{key}/trials"
    return parse(place.read(f"{head}.tsv"), place.read(f"{head}.json"), f"{head}.tsv")


def participants_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per participant: counts and scalar attributes."""
    import pandas as pd

    rows = []
    for record in records:
        row = {key: record[key] for key in ("key", "dataset", "participant", "n_trials", "n_stimuli")}
        row |= {f"n_{phase}": n for phase, n in record["phases"].items()}
        row["missing_vertices"] = record["missing"]["vertices"]
        row["normalised"] = record["normalised"]
        scalars = {k: v for k, v in record["attributes"].items() if isinstance(v, str | int | float)}
        rows.append({**scalars, **row})
    front = ["key", "dataset", "participant", "n_trials", "n_stimuli"]
    table = pd.DataFrame(rows, columns=None if rows else front)
    return table[front + [column for column in table.columns if column not in front]]


def read_all(place: Place, records: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Of each participant's trials, the columns that identity and split need."""
    need = ("name", "phase", "alias", "source", "sha256")
    tables = {record["key"]: read_trials(place, record["key"]) for record in records}
    return {key: table[[c for c in need if c in table.columns]] for key, table in tables.items()}


def names(tables: Mapping[str, pd.DataFrame], records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Stimulus names of these participants, one row each, for `resolve_duplicates`."""
    import pandas as pd

    parts = [pd.DataFrame({"dataset": [], "name": []}, dtype=str)]
    for record in records:
        trials = tables[record["key"]]
        columns = [c for c in ("alias", "source", "sha256") if c in trials.columns]
        part = trials[["name", *columns]].astype(str)
        part.insert(0, "dataset", record["dataset"])
        part["artificial"] = (trials["phase"] == "artificial").to_numpy()
        parts.append(part.drop_duplicates())
    table = pd.concat(parts, ignore_index=True)
    for column in ("alias", "source", "sha256"):
        if column in table.columns:
            table[column] = table[column].fillna("n/a")
    table["artificial"] = table["artificial"].astype(bool) if len(records) else False
    return table.drop_duplicates(ignore_index=True)


def presentations(
    tables: Mapping[str, pd.DataFrame], records: Sequence[Mapping[str, Any]], identity: Identity | None
) -> pd.DataFrame:
    """Trials per stimulus, dataset, participant and phase, for `split_stimuli`."""
    import pandas as pd

    parts = [pd.DataFrame({c: [] for c in ("stimulus", "dataset", "participant", "phase")}, dtype=str)]
    for record in records:
        trials = tables[record["key"]]
        stimulus = trials["name"] if identity is None else identity.of(record["dataset"], trials["name"])
        part = pd.DataFrame({"stimulus": stimulus, "phase": trials["phase"]})
        part = part.groupby(["stimulus", "phase"], sort=False).size().rename("n_trials").reset_index()
        part["dataset"], part["participant"] = record["dataset"], record["participant"]
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table["n_trials"] = table["n_trials"].astype(int) if len(records) else 0
    return table


def seal(
    place: Place,
    identity: Identity | None,
    split: Split | None,
    options: Mapping[str, Any],
    tables: dict[str, pd.DataFrame],
    note: str,
) -> dict[str, Any]:
    """Make the next version; see `Collection.seal`."""
    root = Path(place.root)
    with layout.sealing(root):
        swept = layout.sweep(root)
        old = load_json(place, layout.MANIFEST) if place.exists(layout.MANIFEST) else {}
        keys = present(root)
        if not keys:
            raise DataError(f"{root} has no participants.", "Add some before sealing.")
        records = [load_json(place, f"{layout.PARTICIPANTS}/{key}/{layout.RECORD}") for key in keys]
        _whole(root, records)
        trials = read_all(place, records)
        if identity is None:
            identity = resolve_duplicates(
                names(trials, records),
                embeddings=options["embeddings"],
                threshold=options["threshold"],
                same_name=options["same_name"],
                device=options["device"],
            )
        shown = presentations(trials, records, identity)
        if split is None:
            vectors = stimulus_embeddings(identity.stimuli["stimulus"], identity.names, options["embeddings"])
            artificial = identity.stimuli.loc[identity.stimuli["artificial"], "stimulus"]
            split = split_stimuli(
                shown,
                embeddings=vectors,
                threshold=options["threshold"],
                artificial=set(artificial),
                device=options["device"],
            )
        split.of_trials(shown)  # raises if a stimulus has no place in it
        every = _tables(identity, split, records) | tables
        return _commit(root, old, records, every, split, identity, note, swept)


def _whole(root: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Check that every file of every participant has its size, and that a name means one dataset."""
    meant: dict[str, tuple[str, str]] = {}
    for record in records:
        folder = root / layout.PARTICIPANTS / record["key"]
        for name, (size, _) in record["files"].items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else -1
            if found != size:
                raise FileFaultError(
                    f"{path} has {max(found, 0)} bytes instead of {size}.",
                    f"Remove {record['key']} and add it again.",
                )
        first = meant.setdefault(record["dataset"], (record["dataset_id"], record["key"]))
        if first[0] != record["dataset_id"]:
            raise DataError(
                f"{record['key']} and {first[1]} belong to different datasets of one name.",
                "Remove one of them and add it under another dataset name.",
            )


def _tables(
    identity: Identity, split: Split, records: Sequence[Mapping[str, Any]]
) -> dict[str, pd.DataFrame]:
    known = identity.stimuli.set_index("stimulus")
    stimuli = split.stimuli[split.stimuli["stimulus"].isin(known.index)]
    stimuli = stimuli.join(known, on="stimulus")
    return {
        "participants": participants_table(records),
        "stimuli": stimuli,
        "names": identity.names,
        "near": identity.near,
        "excluded": split.near,
        "audit_datasets": split.audit.table(),
    }


def _commit(
    root: Path,
    old: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    split: Split,
    identity: Identity,
    note: str,
    swept: Sequence[str],
) -> dict[str, Any]:
    version = int(old.get("version", 0)) + 1
    folder = root / layout.TABLES / f"v{version:04d}"
    with layout.writing(folder):
        shutil.rmtree(folder, ignore_errors=True)  # of a seal that was cut short
        folder.mkdir(parents=True)
    files: dict[str, tuple[int, str]] = {}
    for name, table in tables.items():
        write = write_array if isinstance(table, np.ndarray) else write_table
        files |= write(folder, name, table)
    audit = {
        "schema": layout.SCHEMA,
        **split.audit.as_dict(),
        "threshold_origin": THRESHOLD_ORIGIN,
        "split": split.account,
        "identity": identity.account,
        "counts": split.counts,
    }
    content = layout.to_json(audit)
    with layout.writing(folder):
        (folder / "audit.json").write_bytes(content)
    files["audit.json"] = (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")
    participants = {
        record["key"]: {
            "record": _sha(root / layout.PARTICIPANTS / record["key"] / layout.RECORD),
            "n_trials": record["n_trials"],
            "bytes": sum(size for size, _ in record["files"].values()),
        }
        for record in records
    }
    digest = layout.digest_of([participants, {name: sha for name, (_, sha) in sorted(files.items())}])
    if digest == old.get("digest"):
        shutil.rmtree(folder)
        return dict(old)
    layout.sync_tree(folder)
    before = old.get("participants", {})
    step = {
        "version": version,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "note": note,
        "digest": digest,
        "added": [key for key in participants if key not in before],
        "removed": [key for key in before if key not in participants],
        "replaced": [k for k in participants if k in before and before[k] != participants[k]],
        "leftovers_removed": list(swept),
    }
    manifest = {
        "schema": layout.SCHEMA,
        "version": version,
        "digest": digest,
        "collection": _sha(root / layout.COLLECTION),
        "participants": participants,
        "tables": {f"{layout.TABLES}/v{version:04d}/{name}": list(value) for name, value in files.items()},
        "history": [*old.get("history", []), step],
    }
    layout.write_atomic(root / layout.MANIFEST, layout.to_json(manifest))
    return manifest


def verify(place: Place, manifest: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Compare every file with its checksum; see `Collection.verify`."""
    wrong = []
    for key, entry in manifest.get("participants", {}).items():
        if key not in keys:
            wrong.append(f"{key} is no longer there.")
            continue
        head = f"{layout.PARTICIPANTS}/{key}"
        content = place.read(f"{head}/{layout.RECORD}")
        if hashlib.sha256(content).hexdigest() != entry["record"]:
            wrong.append(f"{head}/{layout.RECORD} has changed since the last seal.")
        wrong += _differing(place, head, json.loads(content)["files"])
    if not manifest:
        for key in keys:
            head = f"{layout.PARTICIPANTS}/{key}"
            wrong += _differing(place, head, load_json(place, f"{head}/{layout.RECORD}")["files"])
    return wrong + _differing(place, "", manifest.get("tables", {}))


def _differing(place: Place, head: str, files: Mapping[str, Sequence[Any]]) -> list[str]:
    wrong = []
    for name, (_, expected) in files.items():
        path = f"{head}/{name}" if head else name
        try:
            found = _checksum(place, path, expected.partition(":")[0])
        except (NoInputError, OSError):
            wrong.append(f"{path} cannot be read.")
            continue
        if found != expected:
            wrong.append(f"{path} differs from what was written.")
    return wrong


def _checksum(place: Place, path: str, kind: str) -> str:
    """Checksum of a file, with its kind in front; local files block by block."""
    digest, crc = hashlib.sha256(), 0
    with contextlib.ExitStack() as stack:
        if place.fs is None:
            file = stack.enter_context((Path(place.root) / path).open("rb"))
            blocks = iter(lambda: file.read(1 << 22), b"")
        else:
            blocks = iter([place.read(path)])
        for block in blocks:
            if kind == "crc32":
                crc = zlib.crc32(block, crc)
            else:
                digest.update(block)
    return f"crc32:{crc:08x}" if kind == "crc32" else f"sha256:{digest.hexdigest()}"


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
