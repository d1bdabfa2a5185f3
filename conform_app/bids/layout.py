# SPDX-License-Identifier: Apache-2.0
"""Datasets as lists of named files.

pybids walks and caches; it is told to look only where task fMRI can be (the requested subjects, no
``anat``, ``figures`` or ``sourcedata``) and not to read sidecars, so that one subject of a thousand costs a
fraction of a second.  The entities are read here from each file's own name: pybids matches them against
the absolute path, so that a dataset kept under, say, ``/data/task-x/`` would have every file mislabelled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conform_app.errors import CannotCreateError, DataError, FileFaultError, NoInputError

# Short name in file names -> the long name that pybids and filter files use.
ENTITIES = {
    "sub": "subject", "ses": "session", "sample": "sample", "task": "task", "tracksys": "tracksys",
    "acq": "acquisition", "ce": "ceagent", "trc": "tracer", "rec": "reconstruction", "dir": "direction",
    "run": "run", "mod": "modality", "echo": "echo", "flip": "flip", "inv": "inv", "mt": "mt", "part": "part",
    "proc": "proc", "hemi": "hemi", "space": "space", "split": "split", "recording": "recording",
    "chunk": "chunk", "cohort": "cohort", "atlas": "atlas", "seg": "segmentation", "res": "res", "den": "den",
    "label": "label", "desc": "desc",
}  # fmt: skip
INDEX_ENTITIES = frozenset({"run", "echo", "flip", "inv", "split", "chunk"})

NOT_FETCHED = "is a link to a file that is not here."
FETCH = "Fetch it, e.g. with datalad get."

_PART = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+]+)")
_SKIPPED = (
    r"^/(?:derivatives|sourcedata|code|stimuli|models|logs?|work)(?:/|$)",
    r"/\.",
    r"/(?:anat|dwi|fmap|perf|meg|eeg|ieeg|beh|pet|micr|nirs|motion|mrs|figures|log|surf|mri|xfm)(?:/|$)",
)


@dataclass(frozen=True)
class BidsFile:
    """A file with the entities of its name (long names), suffix and extension (with the dot)."""

    path: Path
    entities: dict[str, str]
    suffix: str
    extension: str


@dataclass(frozen=True)
class Dataset:
    """An indexed dataset.

    Attributes
    ----------
    name : str
        Short name used in messages and in ``DatasetLinks``.
    root : Path
    files : tuple of BidsFile
        Functional files and inheritable files, sorted by path.
    """

    name: str
    root: Path
    files: tuple[BidsFile, ...] = field(repr=False)

    @cached_property
    def _by_subject(self) -> dict[str | None, list[BidsFile]]:
        table: dict[str | None, list[BidsFile]] = {}
        for file in self.files:
            table.setdefault(file.entities.get("subject"), []).append(file)
        return table

    def of_subject(self, subject: str) -> Iterator[BidsFile]:
        """Files of a subject, then those above all subjects."""
        yield from self._by_subject.get(subject, ())
        yield from self._by_subject.get(None, ())


def parse_name(path: Path) -> BidsFile:
    """Read entities, suffix and extension from a file's name; the folders above it play no part."""
    stem, dot, extension = path.name.partition(".")
    *parts, suffix = stem.split("_")
    entities: dict[str, str] = {}
    for part in parts:
        match = _PART.fullmatch(part)
        if match:
            entities.setdefault(ENTITIES.get(match[1], match[1]), match[2])
    return BidsFile(path, entities, suffix, dot + extension)


def same_label(entity: str, a: str, b: str) -> bool:
    """Whether two labels are equal; indices such as run compare as numbers (``1`` is ``01``)."""
    if entity in INDEX_ENTITIES and a.isdecimal() and b.isdecimal():
        return int(a) == int(b)
    return a == b


def natural(text: str | None) -> tuple:
    """Sort key that counts: ``run-2`` before ``run-10``, None first."""
    if text is None:
        return ()
    pieces = re.split(r"(\d+)", text)
    return tuple((1, int(p), p) if p.isdecimal() else (0, 0, p) for p in pieces if p)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    DataError
        It is not a JSON object.
    FileFaultError, NoInputError
        It cannot be read, or is a link to content that was not fetched.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}.", "Correct or remove the file.") from error
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise NoInputError(f"{path} {NOT_FETCHED}", FETCH) from error
        raise FileFaultError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object.", "Correct or remove the file.")
    return content


def read_description(root: Path) -> dict[str, Any] | None:
    """The content of ``dataset_description.json``; None when the folder has none."""
    path = root / "dataset_description.json"
    return read_json(path) if path.is_file() else None


def is_derivative(description: dict[str, Any] | None) -> bool:
    """Whether a description is that of a derivative (old ones name a pipeline only)."""
    if not description:
        return False
    if "DatasetType" in description:
        return description["DatasetType"] == "derivative"
    return "GeneratedBy" in description or "PipelineDescription" in description


def list_subjects(root: Path) -> list[str]:
    """Labels of the ``sub-*`` folders of a dataset, in natural order."""
    try:
        with os.scandir(root) as entries:
            found = [e.name[4:] for e in entries if e.name.startswith("sub-") and e.is_dir()]
    except OSError as error:
        raise FileFaultError(
            f"{root} cannot be listed: {error.strerror}.", "Check its permissions."
        ) from error
    return sorted(found, key=natural)


def open_dataset(
    root: Path, name: str, *, subjects: Iterable[str] | None = None, database_path: Path | None = None
) -> Dataset:
    """Index a dataset.

    Parameters
    ----------
    root : Path
    name : str
    subjects : iterable of str, optional
        Labels without prefix; only their folders are walked.  None: all.
    database_path : Path, optional
        Folder of a pybids cache.  The cache holds all subjects, whoever asked first; a subject that came
        later is indexed afresh.

    Returns
    -------
    Dataset

    Raises
    ------
    NoInputError
        `root` is not a folder.
    FileFaultError, CannotCreateError
        The folder cannot be read; the cache is damaged, or cannot be written.
    """
    root = Path(root)
    if not root.is_dir():
        raise NoInputError(f"{root} is not a folder.", "Check the path.")
    if not os.access(root, os.R_OK | os.X_OK):  # the walk would pass over it in silence
        raise FileFaultError(f"{root} cannot be read.", "Check its permissions.")
    wanted = None if subjects is None else sorted(set(subjects))
    if database_path is not None:
        paths = _cached(root, name, Path(database_path))
        there = {s for s in (wanted or list_subjects(root)) if (root / f"sub-{s}").is_dir()}
        if there <= {parse_name(p).entities.get("subject") for p in paths}:
            return _dataset(name, root, paths)
    return _dataset(name, root, _walk(root, wanted))


def _dataset(name: str, root: Path, paths: Iterable[Path]) -> Dataset:
    return Dataset(name, root, tuple(parse_name(path) for path in sorted(paths)))


def _walk(root: Path, subjects: list[str] | None, database: Path | None = None) -> list[Path]:
    """Paths of the files that pybids finds below `root`."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    ignore = [re.compile(pattern) for pattern in _SKIPPED]
    if subjects is not None:
        labels = "|".join(map(re.escape, subjects))
        ignore.append(re.compile(rf"/sub-(?!(?:{labels})(?:[/_.]|$))"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            layout = BIDSLayout(
                str(root),
                validate=False,
                config=["bids", "derivatives"],
                database_path=None if database is None else str(database),
                indexer=BIDSLayoutIndexer(validate=False, ignore=ignore, index_metadata=False),
            )
        except PermissionError as error:
            where = Path(error.filename or root)
            raise FileFaultError(
                f"{where.parent if where.name == 'layout_config.json' else where} cannot be read.",
                "Check its permissions, or leave it out with --participant-label.",
            ) from error
    return [Path(path) for path in layout.get_files()]


def _cached(root: Path, name: str, folder: Path) -> list[Path]:
    """Load the cache of `root`, making it first; it appears complete or not at all."""
    from sqlalchemy.exc import SQLAlchemyError

    place = folder / f"{name}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]}"
    try:
        if not place.exists():
            draft = _draft_folder(folder)
            _walk(root, None, draft)
            try:
                draft.rename(place)
            except OSError:  # another process was first: its cache serves as well
                shutil.rmtree(draft, ignore_errors=True)
        return _walk(root, None, place)
    except SQLAlchemyError as error:
        raise FileFaultError(f"the index {place} cannot be read.", "Delete it; it is made anew.") from error


def _draft_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    except OSError as error:
        raise CannotCreateError(
            f"the index folder {folder} cannot be written: {error.strerror}.",
            "Choose another --bids-database-dir.",
        ) from error
