# SPDX-License-Identifier: Apache-2.0
"""Names of outputs, all from one table (``data/names.json``).

A name is the entities of the fit in BIDS order, ``stat`` and ``desc`` of the product, its suffix, and the
extension that belongs to the kind of grid.  Everything else that depends on names (descriptions, the list of
what the validator should ignore, the products listed in the documentation) is read from the same table.
BIDS has no rule yet for maps of a general linear model; `stat-<x>_statmap` is what FitLins, nilearn and the
large published releases write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from conform_app.errors import UsageError

HEMISPHERES = ("L", "R")
GLM_TYPES = ("typeA", "typeB", "typeC", "typeD")
RUN_ENTITIES = {"reconstruction": "rec", "direction": "dir", "echo": "echo"}
"""Entities besides session, task and run by which recordings of one fit may differ, and their short names."""
_DEPRECATED = {"fsaverage4": "3k", "fsaverage5": "10k", "fsaverage6": "41k"}
_NOT_A_LABEL = re.compile(r"[^A-Za-z0-9+]")  # "+" joins labels, as in ses-01+02


@dataclass(frozen=True)
class Product:
    """One row of the table, with the GLM type filled in.

    Attributes
    ----------
    key : str
        As in the record of a fit, e.g. ``"betas_typeD"``.
    form : {"map", "label", "mask", "lookup", "table", "store"}
        A lookup is the table that names the labels of an image: it has the image's name and sidecar (on
        surfaces one for both hemispheres, with a sidecar of its own).
    suffix, stat, desc : str
        `stat` and `desc` are empty where the name has none.
    drop : frozenset of str
        Entities of the fit that the name leaves out.
    per_run : bool
        One file a run rather than one a fit.
    rows : str
        Key of the table that says what each map is ("trials", "conditions"), or empty.
    units, description, long_description : str
        For sidecars and documentation.
    mask_type : str
        BIDS `Type` of a mask.
    columns : mapping of str to str or dict
        What the columns of a table are.
    """

    key: str
    form: str
    suffix: str
    stat: str = ""
    desc: str = ""
    drop: frozenset[str] = frozenset()
    per_run: bool = False
    rows: str = ""
    units: str = ""
    description: str = ""
    long_description: str = ""
    mask_type: str = ""
    columns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def on_grid(self) -> bool:
        """Whether the product is an image: one file a hemisphere on surfaces."""
        return self.form in ("map", "label", "mask")


@cache
def _table() -> dict[str, Any]:
    return json.loads(files("conform_app").joinpath("data/names.json").read_text(encoding="utf-8"))


def glm_type_label(glm_type: str) -> str:
    """Return ``"typeD"`` for "D", "typeD" or "typed"."""
    label = f"type{str(glm_type)[-1:].upper()}"
    if label not in GLM_TYPES or str(glm_type).lower() not in (label.lower(), label[-1].lower()):
        raise UsageError(f"Unknown GLM type {glm_type!r}.", "The types are A, B, C and D.")
    return label


@cache
def product(key: str, glm_type: str | None = None) -> Product:
    """Look a product up.

    Parameters
    ----------
    key : str
        A key of the table; those of one map a GLM type take it as ``betas_typeD`` or in `glm_type`.
    glm_type : str, optional
        "A" to "D" or "typeA" to "typeD". Where the table leaves the type open (ncsnr, noise ceiling, ridge
        fraction), the default is D.

    Returns
    -------
    Product

    Raises
    ------
    UsageError
        There is no such product.
    """
    base, _, suffix = key.rpartition("_")
    if suffix in GLM_TYPES and base in _table()["products"]:
        key, glm_type = base, suffix
    try:
        row = _table()["products"][key]
    except KeyError:
        raise UsageError(f"Unknown product {key!r}.", f"Products: {', '.join(product_keys())}.") from None
    words = {}
    if "type" in row:
        if row["type"] == "key" and glm_type is None:
            raise UsageError(f"Product {key!r} needs a GLM type.", f"For instance {key}_typeD.")
        label = glm_type_label("typeD" if glm_type is None else glm_type)
        words = {"type": label, "model": _table()["glm_types"][label]}
    text = {name: row.get(name, "").format(**words) for name in ("desc", "description", "long_description")}
    if words.get("type") == "typeD" and "ridge" in row:
        text["long_description"] += " " + row["ridge"]
    own = f"{key}_{words['type']}" if row.get("type") == "key" else key
    drop = set(row.get("drop", ()))
    if not row.get("per_run"):
        drop.add("run")
    if row["form"] in ("table", "lookup", "store"):
        drop.add("hemi")
    same = ("form", "suffix", "stat", "per_run", "rows", "units", "mask_type")
    return Product(
        key=own,
        drop=frozenset(drop),
        columns=MappingProxyType(row.get("columns", {})),
        **text,
        **{name: row[name] for name in same if name in row},
    )


def product_keys() -> tuple[str, ...]:
    """Return every key, those of one map a GLM type once for each type, in the order of the table."""
    keys: list[str] = []
    for key, row in _table()["products"].items():
        keys.extend([f"{key}_{label}" for label in GLM_TYPES] if row.get("type") == "key" else [key])
    return tuple(keys)


def build_name(
    key: str,
    entities: Mapping[str, Any],
    kind: str | None = None,
    *,
    hemi: str | None = None,
    run: str | None = None,
    session: str | None = None,
    task: str | None = None,
    further: Mapping[str, str] | None = None,
    glm_type: str | None = None,
    extension: str | None = None,
) -> str:
    """Build the name of one file, relative to the output folder.

    Parameters
    ----------
    key : str
        See `product`.
    entities : mapping
        Of the fit: ``sub``, ``ses``, ``task``, ``space`` ... (or pybids' long names); None means absent.
    kind : {"volume", "gifti", "cifti"}
        Of the grid; not needed for tables and stores.
    hemi : {"L", "R"}, optional
        Of a surface map.
    run, session, task : str, optional
        Of a per-run file; `session` and `task` replace those of the fit (which may pool several).
    further : mapping, optional
        More labels of a per-run file, by short name (``dir`` ...).
    glm_type : str, optional
        See `product`.
    extension : str, optional
        In place of the table's, e.g. ``".json"`` for the sidecar.

    Returns
    -------
    str
        ``sub-01[/ses-01]/func/sub-01..._statmap.nii.gz``.

    Raises
    ------
    UsageError
        No such product, or a surface map without its hemisphere.
    """
    item = product(key, glm_type)
    labels = _labels(entities)
    if session is not None:
        labels["ses"] = _clean("ses", session)
    if task is not None:
        labels["task"] = _clean("task", task)
    if run is not None:
        labels["run"] = _clean("run", run)
    labels |= {name: _clean(name, label) for name, label in (further or {}).items()}
    if item.on_grid and kind == "gifti":
        if hemi not in HEMISPHERES:
            raise UsageError(f"{key} on a surface needs a hemisphere.", "L or R.")
        labels["hemi"] = hemi
    labels = {name: label for name, label in labels.items() if label and name not in item.drop}
    labels |= {name: value for name, value in (("stat", item.stat), ("desc", item.desc)) if value}
    ending = extension if extension is not None else _extension(item, kind)
    return f"{_folder(labels)}/func/{_join(labels)}_{item.suffix}{ending}"


def build_names(
    key: str, entities: Mapping[str, Any], kind: str, *, glm_type: str | None = None, **more: Any
) -> tuple[str, ...]:
    """Build the names of a product's files: left and right for a surface map, else one (see `build_name`)."""
    if kind == "gifti" and product(key, glm_type).on_grid:
        return tuple(build_name(key, entities, kind, hemi=h, glm_type=glm_type, **more) for h in HEMISPHERES)
    return (build_name(key, entities, kind, glm_type=glm_type, **more),)


def anat_name(key: str, labels: Mapping[str, Any]) -> str:
    """Build the name of a file of a registration, relative to the output folder.

    Parameters
    ----------
    key : str
        ``sampling`` (volume to mesh, in ``func``), ``resampling`` (mesh to mesh) or ``midthickness``.
    labels : mapping
        ``sub``, ``hemi`` and, where they apply, ``ses``, ``task``, ``acq``, ``run``, ``den``, ``desc``; then
        ``from``, ``to`` and ``mode`` of a sampling, else ``space``.
    """
    row = _table()["anat"][key]
    clean = {name: _clean(name, value) for name, value in labels.items() if value}
    if key == "resampling":
        clean |= {"from": "fsnative", "to": clean.pop("space"), "mode": "points"}
    order = ("sub", "ses", "task", "acq", "run", "hemi", "space", "den", "from", "to", "mode", "desc")
    stem = "_".join(f"{name}-{clean[name]}" for name in order if name in clean)
    return f"{_folder(clean)}/{row.get('folder', 'anat')}/{stem}_{row['suffix']}{row['extension']}"


def figure_name(desc: str, entities: Mapping[str, Any], extension: str = ".svg") -> str:
    """Build the name of a figure of the report: ``sub-01/figures/sub-01..._desc-rsquared_bold.svg``."""
    labels = {name: label for name, label in _labels(entities).items() if label}
    labels["desc"] = _clean("desc", desc)
    return f"sub-{labels['sub']}/figures/{_join(labels)}_bold{extension}"


def group_name(key: str, space: str = "") -> str:
    """Build the name of a file of the group level, relative to the output folder.

    Parameters
    ----------
    key : str
        A key of the table's part "group".
    space : str
        Of the collection, as ``fsLR:den-91k``.
    """
    label = "space-" + str(space).replace(":", "_") if space else "space-none"
    return _table()["group"][key]["name"].format(space=label)


def group_products() -> dict[str, dict[str, Any]]:
    """Return the table's part "group": name, description and columns by key."""
    return _table()["group"]


def sidecar_name(name: str) -> str:
    """Return the JSON beside a file: the name up to its first dot, and ``.json``."""
    folder, slash, base = str(name).rpartition("/")
    return f"{folder}{slash}{base.split('.')[0]}.json"


def parse_name(name: str) -> dict[str, str]:
    """Read a name back into its entities (short names), ``suffix`` and ``extension``."""
    stem, dot, extension = name.rpartition("/")[2].partition(".")
    *pairs, suffix = stem.split("_")
    return dict(pair.split("-", 1) for pair in pairs) | {"suffix": suffix, "extension": dot + extension}


def descriptions() -> list[tuple[str, str]]:
    """Return the rows of ``descriptions.tsv``: (desc_id, description), sorted by id."""
    texts = {label: f"Responses to single trials: {text}." for label, text in _table()["glm_types"].items()}
    texts |= _table()["descriptions"]
    return [(f"desc-{label}", texts[label]) for label in sorted(texts, key=str.lower)]


def bidsignore() -> list[str]:
    """Return the patterns of ``.bidsignore``: what the validator has no rule for.

    Folders come without a trailing slash; with one the validator still reports the folder itself.
    """
    forms = _table()["forms"]
    patterns = set()
    for row in _table()["products"].values():
        status = row.get("validator", "ignored")
        if status == "ignored":
            patterns.add(f"*_{row['suffix']}.*")
        elif isinstance(status, Mapping):
            # surfaces have a hemisphere, grayordinates a density, volumes neither; no underscore before
            # "hemi" and "den", with which the validator (3.0.2) does not match
            patterns |= {f"*{entity}-*_{row['suffix']}.*" for entity in ("hemi", "den")}
    patterns |= {f"*{ext}" for kind, ext in forms["map"].items() if kind != "volume"}
    patterns.add(f"*{forms['store']}")
    return [*_table()["ignore"], *sorted(patterns)]


def _labels(entities: Mapping[str, Any]) -> dict[str, str]:
    """Bring entities to short names and clean labels, and a deprecated space to its new name."""
    known, long_names = _table()["entities"], _table()["long_names"]
    labels = {}
    for name, value in entities.items():
        short = long_names.get(name, name)
        if short in known and value is not None:
            labels[short] = _clean(short, value)
    if not labels.get("sub"):
        raise UsageError("A name needs a subject.", "Give the entities of the fit.")
    if labels.get("space") in _DEPRECATED:
        labels.setdefault("den", _DEPRECATED[labels["space"]])
        labels["space"] = "fsaverage"
    return labels


def _clean(name: str, value: Any) -> str:
    """Keep what BIDS allows in a label; a prefix such as ``sub-`` is not part of it."""
    return _NOT_A_LABEL.sub("", str(value).removeprefix(f"{name}-"))


def _extension(item: Product, kind: str | None) -> str:
    extensions = _table()["forms"][item.form]
    if isinstance(extensions, str):
        return extensions
    if kind not in extensions:
        raise UsageError(f"{item.key} on a grid of kind {kind!r}.", "The kinds are volume, gifti and cifti.")
    return extensions[kind]


def _folder(labels: Mapping[str, str]) -> str:
    session = f"/ses-{labels['ses']}" if "ses" in labels else ""
    return f"sub-{labels['sub']}{session}"


def _join(labels: Mapping[str, str]) -> str:
    return "_".join(f"{name}-{labels[name]}" for name in _table()["entities"] if name in labels)
