# SPDX-License-Identifier: Apache-2.0
"""What the user gives about stimuli: features, names across datasets, a split, the files themselves."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conform_app.errors import DataError, NoInputError, UsageError

if TYPE_CHECKING:
    import pandas as pd

PHASES = ("train", "test", "artificial")


def read_features(path: str | Path) -> dict[str, np.ndarray]:
    """Read features of stimuli.

    Parameters
    ----------
    path : path
        ``.npz`` with an array a stimulus, or with ``names`` (n,) and ``values`` (or ``features``) (n, d); or
        ``.npy`` (n, d) with the names, one a line, in a ``.txt`` of the same name.

    Returns
    -------
    dict of str to ndarray
        By the stimulus's name, or ``DATASET/name``.

    Raises
    ------
    NoInputError
        A file is not there.
    DataError
        It cannot be read, names and values do not go together, or a vector is not of numbers.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            names = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
            return _paired(path, names, values)
        with np.load(path, allow_pickle=False) as archive:
            if "names" in archive.files:
                values = next((archive[name] for name in ("values", "features") if name in archive), None)
                if values is None:
                    raise DataError(f"{path} has names, but no array 'values'.", "Give both, a row a name.")
                return _paired(path, archive["names"].astype(str).tolist(), values)
            return _numbers(path, {name: np.ravel(archive[name]) for name in archive.files})
    except FileNotFoundError as error:
        raise NoInputError(f"There is no {error.filename}.", "Correct --features.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no features: {error}.", "Give .npz or .npy with .txt.") from error


def _paired(path: Path, names: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    if values.ndim != 2 or len(values) != len(names):
        raise DataError(
            f"{path}: {len(names)} names and values of shape {values.shape}.", "Give one row a name."
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"{path}: {twice} is named twice.", "Give each stimulus once.")
    return _numbers(path, dict(zip(names, values, strict=True)))


def _numbers(path: Path, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, vector in found.items():
        if vector.dtype.kind not in "fiu":
            raise DataError(f"{path}: the vector of {name} is of type {vector.dtype}.", "Give numbers.")
    return found


def check_vectors(path: str | Path, found: Mapping[str, np.ndarray]) -> None:
    """Refuse, before anything is merged, features that cannot be compared.

    Raises
    ------
    DataError
        A vector is zero, not finite, or of another length than the first.
    """
    width = len(next(iter(found.values()), ()))
    for name, vector in found.items():
        if len(vector) != width:
            what = f"has {len(vector)} numbers, others {width}"
        elif not np.isfinite(vector).all():
            what = "is not finite"
        elif not vector.any():
            what = "is zero"
        else:
            continue
        raise DataError(
            f"{path}: the vector of {name} {what}.",
            "Compute it again, or leave the stimulus out of the file.",
        )


def read_given_table(path: str | Path, option: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read a TSV of text that an option names and that has these columns.

    Raises
    ------
    NoInputError
        There is no such file.
    DataError
        It is no such table, or lacks a column.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise NoInputError(f"--{option}: there is no {path}.", "Correct the path.") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"--{option} {path} is no tab-separated table: {error}.", "Save it as such."
        ) from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(table.columns)}.",
            f"--{option} needs the columns {', '.join(columns)}.",
        )
    return table


def read_aliases(path: str | Path | None) -> dict[tuple[str, str], str]:
    """Read the names of stimuli across datasets, by (dataset, stim_id).

    Raises
    ------
    NoInputError, DataError
        No such file, no such table, or two names for one stimulus.
    """
    if path is None:
        return {}
    table = read_given_table(path, "aliases", ("dataset", "stim_id", "name"))
    found: dict[tuple[str, str], str] = {}
    for dataset, stim, name in zip(table["dataset"], table["stim_id"], table["name"], strict=True):
        if found.setdefault((dataset, stim), name) != name:
            raise DataError(f"{path} gives {stim} of {dataset} two names.", "Keep one.")
    return found


def read_split(path: str) -> dict[tuple[str, str], str]:
    """Read a split given as a table, by (dataset, stim_id); nothing for ``auto``.

    Raises
    ------
    NoInputError, DataError
        No such file, no such table, a split that is none, or two for one stimulus.
    """
    if path == "auto":
        return {}
    table = read_given_table(path, "split", ("dataset", "stim_id", "split"))
    wrong = sorted(set(table["split"]) - set(PHASES))
    if wrong:
        raise DataError(f"{path} has the split {wrong[0]!r}.", f"It may be {', '.join(PHASES)}.")
    found: dict[tuple[str, str], str] = {}
    for dataset, stim, side in zip(table["dataset"], table["stim_id"], table["split"], strict=True):
        if found.setdefault((dataset, stim), side) != side:
            raise DataError(
                f"{path} has {stim} of {dataset} in {found[dataset, stim]} and {side}.", "Keep one."
            )
    return found


def unmatched(option: str, given: Mapping[tuple[str, str], str], shown: Mapping[str, set[str]]) -> list[str]:
    """Say which rows of a table by (dataset, stim_id) fit no trial.

    Parameters
    ----------
    option : str
        That named the table.
    given : mapping of (dataset, stim_id) to str
    shown : mapping of dataset to set of str
        What was shown in the datasets of this call, as their events name it.
    """
    by: dict[str, list[str]] = {}
    for dataset, stim in given:
        if stim not in shown.get(dataset, ()):
            by.setdefault(dataset, []).append(stim)
    said = []
    for dataset, stims in by.items():
        n = sum(its == dataset for its, _ in given)
        if dataset not in shown:
            said.append(
                f"--{option} names the dataset {dataset} ({n} stimuli), which is not here: here are "
                f"{', '.join(shown)}."
            )
        else:
            said.append(
                f"--{option} names {n} stimuli of {dataset}; {len(stims)} of them were not shown, for "
                f"instance {stims[0]}."
            )
    return said


def without_features(
    path: str | Path, given: Mapping[str, np.ndarray], shown: Mapping[str, set[tuple[str, str]]]
) -> list[str]:
    """Say which datasets' stimuli have no features, so that near-duplicates of theirs are not found.

    Parameters
    ----------
    path : path
        Of the features.
    given : mapping of str to ndarray
        By stimulus, by the name that the events give it, or ``DATASET/name``.
    shown : mapping of dataset to set of (name in the events, stimulus)
    """
    said = []
    for dataset, pairs in shown.items():
        lacking = sorted(a for a, s in pairs if not {a, s, f"{dataset}/{a}"} & given.keys())
        if lacking:
            said.append(
                f"{len(lacking)} of {len(pairs)} stimuli of {dataset} have no features in {Path(path).name}, "
                f"for instance {lacking[0]}, so that their near-duplicates are not found: features go by the "
                "names in the events, or by DATASET/name."
            )
    return said


@dataclass(frozen=True)
class Contents:
    """What is in the files of a dataset's stimuli.

    Attributes
    ----------
    hashes : dict of str to str
        Content hash of each stimulus that has a file; of a movie given as a folder of frames, that of its
        frames in order.
    frames : dict of str to list of str
        Hash of each frame of the movies.
    unread : int
        Videos known by their files only, since nothing is installed that decodes them.
    """

    hashes: dict[str, str]
    frames: dict[str, list[str]]
    unread: int = 0


def hash_stimuli(folder: str | Path, names: Sequence[str]) -> Contents:
    """Hash the stimuli whose files are in a folder.

    Parameters
    ----------
    folder : path
    names : sequence of str
        As the events name them: paths below the folder, file names, or names without their extension.  A
        movie may be a folder of pictures, its frames, of that name (with or without extension), or a video,
        whose frames are decoded if PyAV is installed.

    Raises
    ------
    UsageError
        Two files of different content answer to one name.
    FileFaultError
        A file cannot be read, or a video not be decoded.
    """
    from conform_app.mosaic import content_hash, frame_hashes, movie_hash
    from conform_app.mosaic.video import can_read_videos, is_video

    root = Path(folder)
    known: dict[str, list[Path]] = {}
    movies: dict[str, Path] = {}
    for path in sorted(p for p in root.rglob("*") if not p.name.startswith(".")):
        for key in (path.relative_to(root).as_posix(), path.name, path.stem):
            if path.is_dir():
                movies.setdefault(key, path)
            else:
                known.setdefault(key, []).append(path)
    hashes: dict[str, str] = {}
    frames: dict[str, list[str]] = {}
    unread = 0
    for name in dict.fromkeys(names):
        files = list(dict.fromkeys(known.get(name) or _elsewhere(root, name, known)))
        found = {content_hash(path) for path in files}
        if len(found) > 1:
            raise UsageError(
                f"In {folder} {len(files)} files of different content answer to the name {name}.",
                "Give a folder in which each stimulus has one file.",
            )
        movie = movies.get(name) or movies.get(Path(name).stem)
        if movie is None and files and is_video(files[0]):
            if can_read_videos():
                frames[name] = _video(files[0], files[0].stat().st_size, files[0].stat().st_mtime_ns)
            else:
                unread += 1
        if movie is not None and (its := frame_hashes(movie)):
            frames[name] = its
            found = found or {movie_hash(its)}
        if found:
            hashes[name] = found.pop()
    return Contents(hashes, frames, unread)


def _elsewhere(root: Path, name: str, known: Mapping[str, list[Path]]) -> list[Path]:
    """Files of a name's last part whose folders, as far as both have any, are those of the name."""
    wanted = Path(name)
    found = []
    for path in known.get(wanted.name, []):
        its, asked = path.relative_to(root).parts[:-1], wanted.parts[:-1]
        n = min(len(its), len(asked))
        if its[len(its) - n :] == asked[len(asked) - n :]:
            found.append(path)
    return found


@functools.cache
def _video(path: Path, size: int, changed: int) -> list[str]:
    """Frame hashes of a video, decoded once in the life of the process."""
    from conform_app.mosaic import frame_hashes

    return frame_hashes(path)


def features_of(dataset: str, names: Sequence[str], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features of a dataset's stimuli by their bare names."""
    keys = {name: f"{dataset}/{name}" if f"{dataset}/{name}" in given else name for name in names}
    return {name: given[key] for name, key in keys.items() if key in given}
