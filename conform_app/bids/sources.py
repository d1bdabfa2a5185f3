# SPDX-License-Identifier: Apache-2.0
"""Where a run's files are looked for: the preprocessed datasets and the datasets that hold events.

Two ways to point at the data: a raw dataset with derivatives (named, or found in ``derivatives/``), or a
derivative by itself, whose raw data are then sought through its own description.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from conform_app.bids.layout import is_derivative, read_description
from conform_app.errors import NoInputError

RAW_NAME = "raw"
OWN_NAME = "conform"  # results of earlier runs hold no BOLD
# Folders users pass along that hold no BOLD and cost much to walk.
_NOT_BOLD = frozenset({"freesurfer", "templateflow", RAW_NAME})


@dataclass(frozen=True)
class Sources:
    """Places to look, in order.

    Attributes
    ----------
    preprocessed : tuple of (str, Path)
        Datasets that may hold preprocessed BOLD.
    raw : tuple of (str, Path)
        Datasets that may hold events and raw sidecars.
    warnings : tuple of str
    """

    preprocessed: tuple[tuple[str, Path], ...]
    raw: tuple[tuple[str, Path], ...]
    warnings: tuple[str, ...] = ()


def locate_sources(bids_dir: Path, derivatives: Mapping[str, Path | str] | None = None) -> Sources:
    """Find out where BOLD and events are.

    Parameters
    ----------
    bids_dir : Path
        A raw dataset or a derivative.
    derivatives : mapping of str to Path, optional
        Datasets by name, in the user's order; ``raw`` is the place of events, the others of BOLD.

    Raises
    ------
    NoInputError
        A folder does not exist, or there is no derivative at all.
    """
    bids_dir = Path(bids_dir)
    if not bids_dir.is_dir():
        raise NoInputError(f"{bids_dir} is not a folder.", "Check BIDS_DIR.")
    given = {name: Path(path) for name, path in (derivatives or {}).items()}
    for name, path in given.items():
        if not path.is_dir():
            raise NoInputError(f"the derivative {name}={path} is not a folder.", "Check -d.")
    warnings: list[str] = []
    named = [(name, path) for name, path in given.items() if name.lower() not in _NOT_BOLD]
    description = read_description(bids_dir)
    if is_derivative(description):
        preprocessed = [(_pipeline(description), bids_dir), *named]
        raw = [("bids", bids_dir), *_linked(bids_dir, description)]
        listed = ", ".join(str(path) for _, path in raw[1:]) or "no raw dataset that it links to"
        warnings.append(f"{bids_dir} is a derivative: events are sought in it, then in {listed}.")
    else:
        if description is None:
            warnings.append(f"{bids_dir} has no dataset_description.json; taken for a raw dataset.")
        preprocessed = named
        raw = [(RAW_NAME, bids_dir)]
        if not named:
            preprocessed = _found(bids_dir)
            taken = ", ".join(f"{name}={path}" for name, path in preprocessed)
            if taken:
                warnings.append(f"No preprocessed data were named (-d); found and took {taken}.")
    if RAW_NAME in given:
        raw.append((RAW_NAME, given[RAW_NAME]))
    if not preprocessed:
        raise NoInputError(
            f"no preprocessed data for {bids_dir}: looked in {bids_dir / 'derivatives'}/* for a "
            "dataset_description.json with DatasetType derivative.",
            "Name them with -d fmriprep=PATH.",
        )
    return Sources(tuple(_once(preprocessed)), tuple(_once(raw)), tuple(warnings))


def _found(bids_dir: Path) -> list[tuple[str, Path]]:
    """Derivatives below ``derivatives/``, the one of fMRIPrep first."""
    folder = bids_dir / "derivatives"
    if not folder.is_dir():
        return []
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))]
    found = [
        (p.name, p)
        for p in places
        if p.name not in _NOT_BOLD
        and is_derivative(description := read_description(p))
        and _pipeline(description) != OWN_NAME
    ]
    return sorted(found, key=lambda item: (item[0].lower() != "fmriprep", "fmriprep" not in item[0].lower()))


def _pipeline(description: Mapping[str, Any] | None) -> str:
    """A short name for a derivative, from the program that made it."""
    generated = (description or {}).get("GeneratedBy")
    first = generated[0] if isinstance(generated, list) and generated else None
    name = str(first.get("Name", "")) if isinstance(first, dict) else ""
    kept = "".join(c for c in name.lower() if c.isalnum() or c in "-_")
    return kept or "preprocessed"


def _linked(root: Path, description: Mapping[str, Any] | None) -> Iterator[tuple[str, Path]]:
    """Raw datasets on this machine that a derivative's description, or its place, points to."""
    description = description or {}
    targets: list[Any] = []
    listed = description.get("SourceDatasets")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict):
            targets += [entry.get("URL"), entry.get("Path")]
    links = description.get("DatasetLinks")
    if isinstance(links, dict):
        targets += [links.get(RAW_NAME), *(v for k, v in links.items() if k != RAW_NAME)]
    if root.resolve().parent.name == "derivatives":
        targets.append(str(root.resolve().parent.parent))
    for target in targets:
        path = _local(root, target)
        # Only a described raw dataset: a link may point to templates or to another derivative.
        if path is not None and path.is_dir():
            linked = read_description(path)
            if linked is not None and not is_derivative(linked):
                yield RAW_NAME, path


def _local(root: Path, target: Any) -> Path | None:
    """The path that a link names, if it is one on this machine."""
    if not isinstance(target, str) or not target:
        return None
    url = urlparse(target)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return None if url.scheme else root / target


def _once(items: list[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """Each place once, whatever its spelling."""
    seen: set[Path] = set()
    for name, path in items:
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield name, path
