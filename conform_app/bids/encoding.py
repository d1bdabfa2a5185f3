# SPDX-License-Identifier: Apache-2.0
"""Names and sidecars of the encoding models, from the part "encode" of the table of names.

They are a BIDS-derivatives dataset of their own inside the group's folder, since participants of several
datasets stand side by side there: ``sub-01`` of the dataset NSD, ``sub-01_NSD`` in the collection, is
``sub-NSD01``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from conform_app.bids.naming import HEMISPHERES, sidecar_name
from conform_app.bids.provenance import software_versions, write_json, write_text, write_tsv
from conform_app.errors import DataError, UsageError

FOLDER = "group/encoding"
EXTENSIONS = {"model": ".safetensors", "record": ".json"}


@cache
def _table() -> dict[str, Any]:
    return json.loads(files("conform_app").joinpath("data/names.json").read_text(encoding="utf-8"))


def encode_products() -> dict[str, dict[str, Any]]:
    """Return the table's part "encode": form, suffix, description and so on by key."""
    return _table()["encode"]


def subject_label(participant: str) -> str:
    """``sub-01_NSD`` -> ``NSD01``."""
    label, _, dataset = participant.removeprefix("sub-").rpartition("_")
    return f"{dataset}{label}"


def check_labels(participants: Iterable[str]) -> None:
    """Refuse two participants that would have one name here.

    Raises
    ------
    DataError
        As NSD1 + 01 and NSD + 101 would.
    """
    seen: dict[str, str] = {}
    for key in participants:
        other = seen.setdefault(subject_label(key), key)
        if other != key:
            raise DataError(
                f"{other} and {key} would both be named sub-{subject_label(key)}.",
                "Give one of their datasets another name.",
            )


def encode_names(
    key: str, participant: str | None, space: str, kind: str | None = None, *, desc: str = ""
) -> tuple[str, ...]:
    """Names of a product's files, relative to the dataset of encoding models.

    Parameters
    ----------
    key : str
        Of the table.
    participant : str or None
        As in the collection; None for the group.
    space : str
        Of the collection, ``fsLR_den-91k``.
    kind : {"volume", "gifti", "cifti"}, optional
        Of the grid, for maps.
    desc : str
        Estimator, where the table leaves ``desc`` open.

    Returns
    -------
    tuple of str
        Left and right for a surface map, else one.
    """
    row = encode_products()[key]
    on_grid = row["form"] in ("map", "label")
    labels = dict(pair.split("-", 1) for pair in f"space-{space}".split("_"))
    if participant is not None:
        labels["sub"] = subject_label(participant)
    labels |= {
        name: value for name, value in (("stat", row.get("stat")), ("desc", row.get("desc", desc))) if value
    }
    if row["form"] in EXTENSIONS:
        extension = EXTENSIONS[row["form"]]
    else:
        known = _table()["forms"][row["form"]]
        if not isinstance(known, str) and kind not in known:
            raise UsageError(f"{key} on a grid of kind {kind!r}.", "The kinds are volume, gifti and cifti.")
        extension = known if isinstance(known, str) else known[kind]
    folder = f"sub-{labels['sub']}/func/" if participant is not None else ""
    names = []
    for hemi in HEMISPHERES if on_grid and kind == "gifti" else ("",):
        its = labels | ({"hemi": hemi} if hemi else {})
        stem = "_".join(f"{name}-{its[name]}" for name in _table()["entities"] if name in its)
        names.append(f"{folder}{stem}_{row['suffix']}{extension}")
    return tuple(names)


def sidecar_of(key: str, grid: Any = None, **fields: Any) -> dict[str, Any]:
    """Return the JSON that goes beside a product; fields that are None are left out."""
    row = encode_products()[key]
    content: dict[str, Any] = {"Description": row["description"], "Units": row.get("units")}
    if grid is not None:
        content["Density" if grid.kind != "volume" else "Resolution"] = grid.describe()
        content["OutsideMaskValue"] = 0 if row["form"] == "label" or grid.kind == "volume" else "n/a"
    content |= fields
    content["SoftwareVersions"] = ", ".join(f"{name} {v}" for name, v in software_versions().items())
    content = {name: value for name, value in content.items() if value is not None}
    return content | {name: {"Description": text} for name, text in row.get("columns", {}).items()}


def write_encode_table(
    root: Path,
    key: str,
    participant: str | None,
    space: str,
    columns: Mapping[str, Sequence[Any]],
    desc: str = "",
) -> str:
    """Write a table with its sidecar; return its name."""
    (name,) = encode_names(key, participant, space, desc=desc)
    known = encode_products()[key].get("columns", {})
    write_tsv(root / name, columns)
    content = sidecar_of(key)
    content = {k: v for k, v in content.items() if k not in known or k in columns}
    write_json(root / sidecar_name(name), content)
    return name


def finish_dataset(root: Path, participants: Mapping[str, Mapping[str, Any]]) -> None:
    """Add to a dataset's description what is particular to encoding models.

    Parameters
    ----------
    root : Path
        After :func:`conform_app.bids.dataset.write_dataset`.
    participants : mapping of participant to mapping
        Further columns of ``participants.tsv``.
    """
    ignored = {f"*_{row['suffix']}.*" for row in encode_products().values()} | {"*_summary.*"}
    path = root / ".bidsignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    write_text(path, "\n".join([*lines, *sorted(ignored - set(lines))]) + "\n")
    texts = {"desc-queries": "Queries: sentences, or other vectors in the space of the features."}
    texts["desc-categories"] = "Categories of images."
    texts |= {f"desc-{desc}": f"Encoding model: {text}." for desc, text in METHOD_DESC.values()}
    write_tsv(root / "descriptions.tsv", {"desc_id": list(texts), "description": list(texts.values())})
    columns: dict[str, list[Any]] = {"participant_id": [f"sub-{subject_label(key)}" for key in participants]}
    columns["participant"] = list(participants)
    for name in next(iter(participants.values()), {}):
        columns[name] = [row[name] for row in participants.values()]
    write_tsv(root / "participants.tsv", columns)
    write_json(
        root / "participants.json",
        {
            "participant": {"Description": "Name in the collection."},
            "n_train": {"Description": "Train images that could be learned from."},
            "n_test": {"Description": "Test images that accuracy was measured on."},
        },
    )


METHOD_DESC = {
    "stacked": ("stacked", "convex combination of the others, by cross-validation within the context"),
    "transformer": ("transformer", "BraInCoRL network"),
    "prior": ("prior", "closed form under a prior learned from other participants"),
    "aligned ridge": ("alignedridge", "weights of others through functional alignment, ridge regression"),
    "aligned procrustes": ("alignedprocrustes", "weights of others through functional alignment, a rotation"),
    "aligned transport": ("alignedtransport", "weights of others through functional alignment, transport"),
    "ridge": ("ridge", "ridge regression, a penalty for each vertex"),
    "five-fold ridge": ("fivefoldridge", "ridge regression, mean of the fits of five folds"),
    "group mean": ("groupmean", "mean weights of the other participants at the same vertex"),
}
"""Label in file names, and what it is, by estimator."""
