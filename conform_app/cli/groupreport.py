# SPDX-License-Identifier: Apache-2.0
"""The group report, from the tables and the collection in the output folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app import __version__
from conform_app.cli.encodereport import read_encoding
from conform_app.cli.session import LOGGER
from conform_app.errors import ConformError, NoInputError

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.mosaic.collection import Collection
    from conform_app.reports.braincorl import EncodingData

TABLES = ("participants", "trials", "stimuli", "near", "audit", "methodology", "missing", "variance")
NUMBERS = {"similarity", "max_similarity", "share", "adjusted", "p"}


def write_report(output_dir: Path, notes: Sequence[dict[str, Any]], run_uuid: str) -> Path:
    """Write ``group.html``.

    Raises
    ------
    NoInputError
        The group level has not been run in this folder.
    CannotCreateError
        The page cannot be written.
    """
    from conform_app.bids.methodology import FIELDS
    from conform_app.bids.naming import group_name
    from conform_app.mosaic.collection import Collection
    from conform_app.reports.group import GroupData, build_group_report

    path = output_dir / group_name("summary")
    if not path.is_file():
        raise NoInputError(
            f"{output_dir} holds no group results.", "Run the group level without --reports-only."
        )
    summary = json.loads(path.read_text(encoding="utf-8"))
    tables = {name: _read(output_dir / group_name(name)) for name in TABLES}
    store = None if summary.get("store") is None else output_dir / summary["store"]
    collection = Collection.open(store) if store is not None and store.is_dir() else None
    encoding = read_encoding(output_dir, collection)
    older = older_models(encoding, summary)
    for text in older:
        LOGGER.warning("%s", text)
    summary = {**summary, "warnings": [*summary.get("warnings", ()), *older]}
    data = GroupData(
        tables=tables,
        summary=summary,
        required={field.name for field in FIELDS if field.required},
        ceilings={} if collection is None else mean_ceilings(collection),
        brain=None if collection is None else _brain(collection, summary),
        sizes=_sizes(output_dir, store),
        encoding=encoding,
    )
    info = {"version": __version__, "run uuid": run_uuid}
    return build_group_report(output_dir, data, errors=list(notes), run_info=info)


def older_models(encoding: EncodingData | None, summary: dict[str, Any]) -> list[str]:
    """Say so where encoding models were made from another version of the collection than the page shows."""
    if encoding is None:
        return []
    made, now = encoding.summary.get("CollectionVersion"), summary.get("version")
    if made == now:
        return []
    return [
        f"The encoding models on this page were made from version {made} of the collection, which is now at "
        f"version {now}: its participants, stimuli and split may be others. Run the group level with "
        "--encode again."
    ]


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for name in table.columns:
        if name in NUMBERS:
            table[name] = pd.to_numeric(table[name], errors="coerce")
        elif set(table[name]) <= {"true", "false"} and len(table):
            table[name] = table[name] == "true"
    return table


def mean_ceilings(collection: Collection) -> dict[str, np.ndarray]:
    """Return the mean noise ceiling of each dataset's participants, (n_vertices,), percent.

    Of single trials, see :func:`conform_app.collect.seal.single_trial_ceiling`.
    """
    from conform_app.collect.seal import single_trial_ceiling

    sums: dict[str, list[np.ndarray]] = {}
    for key in collection.keys:
        values = single_trial_ceiling(collection, key)
        if values is not None:
            sums.setdefault(key.rpartition("_")[2], []).append(values)
    means = {}
    for dataset, values in sums.items():
        stack = np.stack(values).astype(np.float64)
        known = np.isfinite(stack).sum(axis=0)
        means[dataset] = np.where(known > 0, np.nansum(stack, axis=0) / np.maximum(known, 1), np.nan)
    return means


def _brain(collection: Collection, summary: dict[str, Any]) -> Any:
    """Geometry from the analysis mask of a participant that is still where it was."""
    from conform_app.reports.maps import open_brain

    valid = np.zeros(collection.n_vertices, bool)
    valid[collection.valid_vertices()] = True
    masks = summary.get("geometry") or []
    for files, middle in zip(masks, summary.get("surfaces") or [[]] * len(masks), strict=False):
        paths = [Path(name) for name in files]
        own = [path for path in map(Path, middle) if path.is_file()]
        if all(path.is_file() for path in paths):
            try:
                brain = open_brain(paths, space=collection.space.partition("_")[0], mask=valid, own=own)
            except (ConformError, ValueError):
                continue
            if brain.mask.size == collection.n_vertices:
                return brain
    return None


def _sizes(output_dir: Path, store: Path | None) -> list[tuple[str, int]]:
    """Sizes of the collection, of each participant in it, and of the tables."""
    found = []
    if store is not None and store.is_dir():
        found.append((store.relative_to(output_dir).as_posix(), _size(store)))
        people = sorted((store / "participants").glob("sub-*"))
        found += [(path.relative_to(output_dir).as_posix(), _size(path)) for path in people]
    folder = output_dir / "group"
    if (folder / "encoding").is_dir():
        found.append(("group/encoding", _size(folder / "encoding")))
    files = sorted([*folder.glob("*.tsv"), *folder.glob("*.json"), *folder.glob("hdf5/*.hdf5")])
    return found + [(path.relative_to(output_dir).as_posix(), path.stat().st_size) for path in files]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
