# SPDX-License-Identifier: Apache-2.0
"""Averaged responses of one participant on disk, and what it gives to others: weights of ridge regression.

Betas are read strip by strip of vertices and averaged over the repeats of a stimulus, so that memory holds
one strip; what comes of it are memory maps ``(n_vertices, n_images)`` in a folder that appears whole.  Only
vertices that have a value in every trial (and the noise ceiling asked for) are in it.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conform_app.braincorl import fit_ridge, from_collection
from conform_app.encode.given import digest
from conform_app.encode.job import EncodeJob, EncodePlan, Person
from conform_app.encode.usable import usable_vertices
from conform_app.errors import DataError, NoInputError

STRIP_BYTES = 256 << 20
BLOCK = 4096
"""Vertices that are fitted together; they share what is estimated from many, such as the noise level."""


@dataclass(frozen=True)
class Prepared:
    """Averaged responses of one participant.

    Attributes
    ----------
    key : str
    vertices : ndarray (n,) of int
        Vertices of the collection that the rows are.
    train, test : ndarray (n, n_images), float32
        Memory maps; columns as in `Person.train` and `Person.test`.
    ridge : ndarray (n, E + 1), float32
        Ridge weights from all train images.
    """

    key: str
    vertices: np.ndarray
    train: np.ndarray
    test: np.ndarray
    ridge: np.ndarray


def blocks(n: int) -> list[np.ndarray]:
    """Rows of each block: every k-th, so that each block is a sample of the whole cortex."""
    n_blocks = -(-n // BLOCK)
    return [np.arange(first, n, n_blocks) for first in range(n_blocks)]


def prepared_folder(job: EncodeJob, plan: EncodePlan, key: str) -> Path:
    """Folder of a participant's averaged responses; its name says what they were made from."""
    person, settings = plan.people[key], job.settings
    chosen = [settings.encode_betas, settings.encode_min_ceiling, person.record, person.train, person.test]
    return Path(job.scratch) / f"{key}-{digest(chosen, plan.rows(person.train))}"


def prepare(job: EncodeJob, plan: EncodePlan, key: str) -> Path:
    """Write the averaged responses of one participant, unless they are there.

    Returns
    -------
    Path
        Their folder.

    Raises
    ------
    DataError
        No vertex is left; denoised averages were asked for, and there are none.
    """
    from conform_app.mosaic.collection import Collection

    folder = prepared_folder(job, plan, key)
    if (folder / "done.json").is_file():
        return folder
    collection, person = Collection.open(job.store), plan.people[key]
    vertices = usable_vertices(collection, key, job.settings.encode_min_ceiling)
    part = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    part.mkdir(parents=True)
    try:
        np.save(part / "vertices.npy", vertices)
        for side in ("train", "test"):
            _average(collection, plan, person, side, vertices, part)
        if job.settings.encode_betas == "psn":
            _denoised(collection, person, vertices, part)
        _ridge(plan.rows(person.train), part)
        (part / "done.json").write_text(json.dumps({"participant": key}), encoding="utf-8")
        try:
            os.rename(part, folder)
        except OSError:  # another process was faster
            if not (folder / "done.json").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def open_prepared(folder: Path, key: str) -> Prepared:
    """Open what :func:`prepare` wrote."""
    names = ("vertices", "train", "test", "ridge")
    try:
        found = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in names]
    except OSError as error:
        raise NoInputError(f"{folder} is gone: {error}.", "Run the same command again.") from error
    return Prepared(key, np.asarray(found[0]), *found[1:])


def _average(
    collection, plan: EncodePlan, person: Person, side: str, vertices: np.ndarray, folder: Path
) -> None:
    """Mean over repeats, strip by strip."""
    names = getattr(person, side)
    out = np.lib.format.open_memmap(
        folder / f"{side}.npy", mode="w+", dtype=np.float32, shape=(len(vertices), len(names))
    )
    if not names:
        return
    features = plan.rows(names)
    n_trials = sum(person.n_trials[name] for name in names)
    step = max(1, STRIP_BYTES // (8 * (2 * len(names) + min(n_trials, BLOCK))))
    for start in range(0, len(vertices), step):
        strip = vertices[start : start + step]
        found = from_collection(
            collection, names, features, split=side, participants=[person.key], vertices=strip
        )
        out[start : start + step] = found[person.key][1]
    out.flush()


def _denoised(collection, person: Person, vertices: np.ndarray, folder: Path) -> None:
    """Put denoised averages, in units of the z scores, in the place of the means of train stimuli."""
    try:
        names, values = collection.averages(person.key)
        _, mean, sd = collection.statistics(person.key)
    except NoInputError as error:
        raise DataError(
            f"{person.key} has no denoised averages in the collection.",
            "Run the participant level with PSN, or leave out --encode-betas psn.",
        ) from error
    place = {name: row for row, name in enumerate(names)}
    missing = [name for name in person.train if name not in place]
    if missing:
        raise DataError(
            f"{person.key} has no denoised average of {missing[0]} ({len(missing)} stimuli).",
            "Leave out --encode-betas psn.",
        )
    out = np.lib.format.open_memmap(folder / "train.npy", mode="r+")
    rows = [place[name] for name in person.train]
    if str(collection.record(person.key).get("averages_units", "")).startswith("z scores"):
        middle, spread = np.zeros(mean.shape[1]), np.ones(mean.shape[1])
    else:
        middle, spread = mean.mean(axis=0), sd.mean(axis=0)
    for block in blocks(len(vertices)):
        its = vertices[block]
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = (values[np.ix_(rows, its)] - middle[its]) / spread[its]
        out[block] = scaled.T
    out.flush()


def _ridge(features: np.ndarray, folder: Path) -> None:
    """Ridge weights of every vertex, for the mean over participants."""
    betas = np.load(folder / "train.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(
        folder / "ridge.npy", mode="w+", dtype=np.float32, shape=(len(betas), features.shape[1] + 1)
    )
    for rows in blocks(len(betas)):
        y = betas[rows]
        varies = np.isfinite(y).all(axis=1) & (np.ptp(y, axis=1) > 0)
        weights = np.full((len(rows), features.shape[1] + 1), np.nan, np.float32)
        if varies.any():
            weights[varies] = fit_ridge(features, y[varies])[0]
        out[rows] = weights
    out.flush()
