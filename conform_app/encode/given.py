# SPDX-License-Identifier: Apache-2.0
"""What the user gives: features of stimuli, regions, queries, categories; matched by name, or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.braincorl.checks import UNIT
from conform_app.collect.given import read_given_table
from conform_app.errors import DataError, NoInputError
from conform_app.images import MapRows
from conform_app.images.atlas import read_labels
from conform_app.images.atlasnames import label_names

if TYPE_CHECKING:
    import pandas as pd

NONE = ("", "n/a", "nan", "???")


def match_features(
    stimuli: Sequence[str], names: pd.DataFrame, given: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Features of stimuli, by any of their names.

    Parameters
    ----------
    stimuli : sequence of str
        As the collection calls them.
    names : DataFrame
        The collection's table ``names``: dataset, name, stimulus.
    given : mapping of str to ndarray (E,)
        By the stimulus's name, in the collection or in its dataset, or by ``DATASET/name``.

    Returns
    -------
    ndarray (n_stimuli, E), float32

    Raises
    ------
    DataError
        Stimuli without features; features of several lengths, that are not finite, or not unit vectors.
    """
    wanted = list(dict.fromkeys(stimuli))
    keys: dict[str, list[str]] = {stimulus: [stimulus] for stimulus in wanted}
    owners: dict[str, set[str]] = {}
    for dataset, name, stimulus in zip(names["dataset"], names["name"], names["stimulus"], strict=True):
        owners.setdefault(name, set()).add(stimulus)
        if stimulus in keys:
            keys[stimulus] += [f"{dataset}/{name}", name]
    found, missing = {}, []
    for stimulus, options in keys.items():
        # a bare name that two stimuli share does not say which of them is meant
        its = [key for key in options if key in given and owners.get(key, {stimulus}) == {stimulus}]
        if its:
            found[stimulus] = np.asarray(given[its[0]])
        else:
            missing.append(stimulus)
    if missing:
        raise DataError(
            f"There are no features for {len(missing)} of {len(wanted)} stimuli: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}.",
            "Name the features as the events do, or DATASET/name.",
        )
    return _checked([found[stimulus] for stimulus in stimuli], stimuli)


def _checked(vectors: Sequence[np.ndarray], stimuli: Sequence[str]) -> np.ndarray:
    """Stack unit vectors of one length; the first that is none is named."""
    lengths = {vector.shape for vector in vectors}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise DataError(
            f"Features have several shapes: {sorted(lengths)[:3]}.", "Use one feature extractor for all."
        )
    values = np.stack(vectors).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise DataError(
            f"Features of {stimuli[bad[0]]} are not finite ({bad.size} stimuli).", "Extract them again."
        )
    norm = np.linalg.norm(values.astype(np.float64), axis=1)
    bad = np.flatnonzero(np.abs(norm - 1) > UNIT)
    if bad.size:
        raise DataError(
            f"Features of {stimuli[bad[0]]} have length {norm[bad[0]]:.4g}, not 1 ({bad.size} stimuli).",
            "Divide every vector by its Euclidean norm (conform_app.braincorl.unit_norm does it).",
        )
    return values


def open_grid(geometry: Sequence[Sequence[str]], n_vertices: int) -> Any:
    """Grid of the collection, from the first image on it that is still there.

    Raises
    ------
    NoInputError
        None is.
    """
    for files in geometry:
        paths = [Path(name) for name in files]
        if paths and all(path.is_file() for path in paths):
            grid = MapRows(paths).grid
            if grid.n_points == n_vertices:
                return grid
    raise NoInputError(
        "No participant's output is where it was: maps need one image on the collection's grid.",
        "Name the participants' outputs with -d.",
    )


def read_regions(
    files: Sequence[str], n_vertices: int, geometry: Sequence[Sequence[str]] = ()
) -> dict[str, np.ndarray]:
    """Masks of the regions, in the order of their first vertex; none without a file.

    Parameters
    ----------
    files : sequence of str
        A table, or an atlas.
    n_vertices : int
    geometry : sequence of sequence of str
        Images on the collection's grid, for an atlas.

    Raises
    ------
    NoInputError, FileFaultError
        No such file, or one that cannot be read.
    DataError
        No column ``label``; another number of rows than vertices, another grid; no vertex with a label.
    """
    if not files:
        return {}
    path = files[0]
    if path.endswith((".tsv", ".txt")):
        table = read_given_table(path, "encode-regions", ("label",))
        if len(table) != n_vertices:
            raise DataError(
                f"--encode-regions {path} has {len(table)} rows, the collection {n_vertices} vertices.",
                "Give one row for each vertex, in order (n/a where there is no region).",
            )
        labels = table["label"].to_numpy(str)
    else:
        numbers = read_labels(files, open_grid(geometry, n_vertices))
        names = label_names(files)
        labels = np.array(["n/a" if n == 0 else names.get(int(n), f"label {n}") for n in numbers])
    found = {str(name): labels == name for name in dict.fromkeys(labels) if name.lower() not in NONE}
    if not found or "all" in found:
        what = "has a region named 'all'" if found else "has no label"
        raise DataError(f"--encode-regions {path} {what}.", "Give each region a name of its own.")
    return found


def read_queries(path: str | None, n_features: int) -> dict[str, np.ndarray]:
    """Vectors of queries, (n, E) each; none without a file.

    Raises
    ------
    NoInputError, DataError
        No such file, no such archive, another E, fewer than two.
    """
    if path is None:
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: np.atleast_2d(archive[name]) for name in archive.files}
    except FileNotFoundError as error:
        raise NoInputError(f"--encode-queries: there is no {path}.", "Correct the path.") from error
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"--encode-queries {path} cannot be read: {error}.", "Give .npz.") from error
    for name, values in found.items():
        if values.ndim != 2 or values.shape[1] != n_features or values.dtype.kind not in "fiu":
            raise DataError(
                f"--encode-queries: {name!r} has the shape {values.shape}, features {n_features} numbers.",
                "Give embeddings in the space of the features.",
            )
    if len(found) < 2:
        raise DataError(f"{path} holds {len(found)} queries.", "Give at least two: they are compared.")
    return found


def read_categories(path: str | None, stimuli: Sequence[str]) -> dict[str, str]:
    """Category of each stimulus that has one; none without a file.

    Raises
    ------
    NoInputError, DataError
        No such file or table; fewer than two categories among the stimuli.
    """
    if path is None:
        return {}
    table = read_given_table(path, "encode-categories", ("stimulus", "category"))
    given = dict(zip(table["stimulus"], table["category"], strict=True))
    found = {name: given[name] for name in stimuli if given.get(name, "n/a").lower() not in NONE}
    n_found = len(set(found.values()))
    if n_found < 2:
        raise DataError(
            f"--encode-categories {path} gives the collection's stimuli {n_found} categories.",
            "Name stimuli as the collection does (group/desc-mosaic_stimuli.tsv), in two categories or more.",
        )
    return found


def file_hash(path: str | None) -> str:
    """SHA-256 of a file's content; empty without a file.

    Raises
    ------
    NoInputError
        No such file.
    """
    if path is None:
        return ""
    if not Path(path).is_file():
        raise NoInputError(f"There is no file {path}.", "Correct the path.")
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """Short hash of arrays and of what JSON can hold."""
    import json

    found = hashlib.blake2b(digest_size=10)
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(str(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        else:
            found.update(json.dumps(part, sort_keys=True).encode())
    return found.hexdigest()
