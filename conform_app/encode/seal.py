# SPDX-License-Identifier: Apache-2.0
"""The group's tables and mean maps, from what is there of each participant; and the steps of the workflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conform_app import __version__
from conform_app.bids.dataset import write_dataset
from conform_app.bids.encoding import (
    METHOD_DESC,
    encode_names,
    encode_products,
    finish_dataset,
    sidecar_of,
    subject_label,
)
from conform_app.bids.naming import sidecar_name
from conform_app.bids.provenance import write_json, write_text
from conform_app.encode.given import open_grid
from conform_app.encode.job import EncodeJob, EncodePlan, methods_of, read_job, settings_hash
from conform_app.encode.model import model_target
from conform_app.encode.prepare import open_prepared, prepare, prepared_folder
from conform_app.encode.write import Writer, write_target
from conform_app.images import read_maps

SUMMARY = "desc-encoding_summary.json"
SHARED = ("metrics", "curve", "needed", "alignment")


def prepare_step(job_file: Path, key: str) -> Path:
    """Step of the workflow: one participant's averaged responses (see `prepare`)."""
    return prepare(*read_job(job_file), key)


def target_step(job_file: Path, key: str, scratch: Path) -> Path:
    """Step of the workflow: one participant's models, unless they are there."""
    from conform_app.mosaic.collection import Collection

    job, plan = read_job(job_file)
    target = next(its for its in plan.targets if its.key == key)
    space = Collection.open(job.store).space
    if not target.done:
        grid = open_grid(job.geometry, Collection.open(job.store).n_vertices)
        people = {
            name: open_prepared(prepared_folder(job, plan, name), name) for name in (key, *target.teachers)
        }
        scratch.mkdir(parents=True, exist_ok=True)
        found = model_target(job, plan, target, people, scratch)
        write_target(job, plan, target, found, space, grid)
        for path in scratch.glob("*.npy"):
            path.unlink()
    return job.root / encode_names("record", key, space)[0]


def describe_dataset(job: EncodeJob, configuration: dict[str, Any], digest: str, overwrite: bool) -> None:
    """Make the folder a dataset of its own; refuses results of other settings unless told otherwise.

    Raises
    ------
    CannotCreateError
        It holds results of other settings, or cannot be written.
    """
    write_dataset(
        job.root,
        version=__version__,
        configuration=configuration,
        configuration_hash=digest,
        inputs={"conform": job.output_dir},
        kind="encoding",
        overwrite=overwrite,
    )
    finish_dataset(job.root, {})


def seal_encoding(job_file: Path, failed: Sequence[str] = ()) -> Path:
    """Write the group's tables, mean maps and summary from the participants that are there.

    Parameters
    ----------
    job_file : Path
    failed : sequence of str
        Participants whose models could not be made in this call.

    Returns
    -------
    Path
        The summary, which the report is made from.
    """
    from conform_app.mosaic.collection import Collection

    job, plan = read_job(job_file)
    collection = Collection.open(job.store)
    sweep(job.root)
    _leave_out_the_gone(job.root, collection.keys)
    records = read_records(job.root, collection.space, collection.keys)
    for key in SHARED:
        its = [name for name, record in records.items() if key in record["Products"]]
        _stack_tables(job.root, key, its, collection.space)
    grid = open_grid(job.geometry, collection.n_vertices)
    _mean_maps(job.root, records, collection.space, grid)
    finish_dataset(
        job.root,
        {
            key: {"n_train": r["NumberOfTrainImages"], "n_test": r["NumberOfTestImages"]}
            for key, r in records.items()
        },
    )
    content = {
        "Description": "What the encoding models were made from, and what a reader must know.",
        "CollectionVersion": collection.version,
        "Space": collection.space,
        "Method": job.settings.encode,
        "Methods": list(dict.fromkeys(m for t in plan.targets for m in methods_of(job, t))),
        "Participants": list(records),
        "Failed": list(failed),
        "Notes": _notes(job, plan, records),
        "Records": {key: {k: v for k, v in r.items() if k != "Products"} for key, r in records.items()},
        "Products": {key: r["Products"] for key, r in records.items()},
    }
    return write_json(job.root / SUMMARY, content)


def sweep(root: Path) -> None:
    """Remove what interrupted calls left; put back what one was about to replace."""
    for aside in sorted(root.glob(".replaced-sub-*")):
        place = root / aside.name.removeprefix(".replaced-").rpartition("-")[0]
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(place)
    for folder in root.glob(".incoming-sub-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _leave_out_the_gone(root: Path, keys: Sequence[str]) -> None:
    """Remove the models of participants who were taken out of the collection."""
    there = {f"sub-{subject_label(key)}" for key in keys}
    for folder in root.glob("sub-*"):
        if folder.name not in there:
            shutil.rmtree(folder)


def read_records(root: Path, space: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Records of the participants that are there, in the order of the collection."""
    found = {}
    for key in keys:
        path = root / encode_names("record", key, space)[0]
        if path.is_file():
            found[key] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _stack_tables(root: Path, key: str, participants: Sequence[str], space: str) -> None:
    """One table with everybody's rows; it changes when they do."""
    lines: list[str] = []
    for participant in participants:
        text = (root / encode_names(key, participant, space)[0]).read_text(encoding="utf-8").splitlines()
        lines += text if not lines else text[1:]
    (name,) = encode_names(key, None, space)
    if not participants:  # of an earlier call, which asked for it
        _remove(root, [name])
        return
    write_text(root / name, "\n".join(lines) + "\n")
    write_json(root / sidecar_name(name), sidecar_of(key))


def _remove(root: Path, names: Sequence[str]) -> None:
    """Remove files and their sidecars, if they are there."""
    for name in names:
        (root / name).unlink(missing_ok=True)
        (root / sidecar_name(name)).unlink(missing_ok=True)


def _mean_maps(root: Path, records: dict[str, dict[str, Any]], space: str, grid: Any) -> None:
    """Mean accuracy over participants, and how many they are, of every estimator."""
    writer = Writer(root, None, space, grid)
    for metric in ("r", "explained_variance", "ceiling_share"):
        for desc, about in METHOD_DESC.values():
            total, count = np.zeros(grid.n_points), np.zeros(grid.n_points, int)
            for key, record in records.items():
                files = record["Products"].get(f"{metric}_{desc}")
                mask = _mask(root, key, record, space, grid)
                if files:
                    values = read_maps([root / name for name in files], grid)[1]
                    there = mask & np.isfinite(values)
                    total[there] += values[there]
                    count[there] += 1
            if not count.any():  # nobody has this estimator any more
                _remove(root, encode_names(metric, None, space, grid.kind, desc=desc))
            else:
                with np.errstate(invalid="ignore", divide="ignore"):
                    mean = np.where(count > 0, total / count, np.nan)
                text = f"{encode_products()[metric]['description']} Mean over participants."
                writer.maps(
                    metric,
                    mean,
                    desc=desc,
                    Method=about,
                    Description=text,
                    NumberOfParticipants=int(count.max()),
                )


def _mask(root: Path, key: str, record: dict[str, Any], space: str, grid: Any) -> np.ndarray:
    """Vertices of a participant that have a model: volumes hold 0 where there is none."""
    if grid.kind != "volume":
        return np.ones(grid.n_points, bool)
    desc = METHOD_DESC[record["Method"]][0]
    values = read_maps([root / name for name in record["Products"][f"weights_{desc}"]], grid)[1]
    return np.any(values.reshape(grid.n_points, -1) != 0, axis=1)


def _notes(job: EncodeJob, plan: EncodePlan, records: dict[str, dict[str, Any]]) -> list[str]:
    """Sentences for the report."""
    notes = list(plan.notes)
    now = settings_hash(job.settings)
    others = [key for key, record in records.items() if record.get("SettingsHash") != now]
    if others:
        notes.append(
            f"{', '.join(others)}: made by an earlier call with other settings; a call without "
            "--encode-target makes all alike."
        )
    for key, record in records.items():
        if record["Prior"] is None:
            notes.append(
                f"{key}: there is nobody to learn from, so that there is no prior and no group mean; models "
                "are ridge regressions of this participant alone."
            )
        if record["NumberWithoutModel"]:
            without, of = record["NumberWithoutModel"], record["NumberOfVertices"]
            notes.append(
                f"{key}: {without:,} of {of:,} vertices have no model, since their responses do not vary."
            )
    return notes
