# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: sidecars, BIDS URIs, versions; and tables written so that reruns agree.

Text files appear whole under their names, hold no time of writing, and spell numbers the shortest way that
reads back exactly: the same results give the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from conform_app.bids.naming import build_name, glm_type_label, product
from conform_app.errors import DataError

# Templates whose name alone says where a point is; any other space needs a SpatialReference.
_STANDARD_SPACES = ("MNI152", "MNI305", "ICBM", "fsaverage", "fsLR")
_PACKAGES = ("nibabel", "nilearn", "nipype", "numpy", "pybids", "scikit-learn", "scipy", "torch")


def bids_uri(
    path: str | Path,
    roots: Mapping[str, str | Path] | None = None,
    output_dir: str | Path | None = None,
) -> str:
    """Name a file by the dataset it belongs to.

    Parameters
    ----------
    path : path
        Of the file; a path that is not absolute is taken as relative to `output_dir`.
    roots : mapping from dataset name to its folder
        As in ``DatasetLinks``.
    output_dir : path, optional
        The dataset that is being written.

    Returns
    -------
    str
        ``bids:fmriprep:sub-01/func/...`` by the innermost dataset, ``bids::sub-01/...`` for a file of the
        output, ``file:///...`` for one of no known dataset.
    """
    path = Path(path)
    if not path.is_absolute():
        return f"bids::{path.as_posix()}"
    path = Path(os.path.abspath(path))
    places = [
        (name, Path(os.path.abspath(root))) for name, root in (roots or {}).items() if "://" not in str(root)
    ]
    if output_dir is not None:
        places.append(("", Path(os.path.abspath(output_dir))))
    inside = [(name, root) for name, root in places if path.is_relative_to(root)]
    if not inside:
        return path.as_uri()
    name, root = max(inside, key=lambda place: len(place[1].parts))
    return f"bids:{name}:{path.relative_to(root).as_posix()}"


def sidecar(
    key: str,
    entities: Mapping[str, Any],
    *,
    glm_type: str | None = None,
    grid: Any = None,
    sources: Iterable[str | Path] = (),
    roots: Mapping[str, str | Path] | None = None,
    output_dir: str | Path | None = None,
    configuration_hash: str | None = None,
    fill: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Build the JSON that goes beside an output.

    Parameters
    ----------
    key : str
        Product (see `naming.product`): gives Description, LongDescription, Units, Type, and for maps of
        trials or conditions the URI of their table.
    entities : mapping
        Of the fit.
    glm_type : str, optional
        Where the key leaves it open.
    grid : images.Grid, optional
        Says what Resolution or Density are, where the name has ``res`` or ``den``.
    sources : paths
        What the result was computed from; become BIDS URIs.
    roots, output_dir
        See `bids_uri`.
    configuration_hash : str, optional
    fill : float, optional
        OutsideMaskValue; for labels and masks always 0.
    **fields
        Further fields under their BIDS names (RepetitionTime in s, StimulusDuration in s, NumberOfTrials,
        EstimationMethod, RandomSeed ...); None leaves one out.

    Returns
    -------
    dict
        Ready for `write_json`.
    """
    item = product(key, glm_type)
    uris = [bids_uri(source, roots, output_dir) for source in sources]
    content: dict[str, Any] = {
        "Description": item.description,
        "LongDescription": item.long_description or None,
        "TaskName": entities.get("task"),
        "Units": item.units or None,
        "Type": item.mask_type or None,
        "EstimationMethod": _method(item.desc),
        "Sources": sorted(set(uris)) or None,
        "OutsideMaskValue": 0 if item.form in ("label", "lookup", "mask") else fill,
    }
    if item.on_grid or item.form == "lookup":
        content |= _geometry(entities, grid, uris)
    if item.rows:
        field = {"trials": "TrialTable", "conditions": "ConditionTable"}[item.rows]
        content[field] = f"bids::{build_name(item.rows, entities)}"
    content |= fields
    content |= {"ConfigurationHash": configuration_hash, "SoftwareVersions": _versions_text()}
    content = {name: value for name, value in content.items() if value is not None}
    # columns last: they are the long part of a table's sidecar
    return content | {name: _column(text) for name, text in item.columns.items()}


def _method(desc: str) -> str | None:
    if desc.startswith("type"):
        return f"GLMsingle {glm_type_label(desc)}"
    return "PSN" if desc == "psn" else None


def _geometry(entities: Mapping[str, Any], grid: Any, uris: Sequence[str]) -> dict[str, str]:
    """Give the fields that the validator demands with ``res``, with ``den``, and in a space of one's own."""
    short = {"resolution": "res", "density": "den"}
    labels = {short.get(name, name): value for name, value in entities.items() if value is not None}
    what = grid.describe() if grid is not None else "as in the images this comes from"
    found = {}
    if "res" in labels:
        found["Resolution"] = what
    if "den" in labels or str(labels.get("space", "")).startswith("fsaverage"):
        found["Density"] = what
    space = str(labels.get("space", ""))
    if space and uris and not space.startswith(_STANDARD_SPACES):
        found["SpatialReference"] = uris[0]
    return found


def _column(text: Any) -> dict[str, Any]:
    return dict(text) if isinstance(text, Mapping) else {"Description": text}


def _versions_text() -> str:
    # BIDS knows SoftwareVersions as text, so that is what the validator demands
    return ", ".join(f"{name} {version}" for name, version in software_versions().items())


def software_versions() -> dict[str, str]:
    """Return the versions of CONFORM, Python and the libraries that compute, without importing them."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from conform_app import __version__

    found = {"CONFORM": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all.

    Raises
    ------
    CannotCreateError, FileFaultError
        The folder cannot be written, the disk is full.
    """
    from conform_app.images.files import writing

    path = Path(path)
    with writing(path) as file:
        file.write(text.encode())
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON: keys in the order given, numpy values and paths as plain ones, NaN as ``"n/a"``."""
    return write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return a value as JSON knows it (see `write_json`)."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(item) for item in items]
    if isinstance(value, np.generic):
        # float32 spelled as such: 0.1, not 0.10000000149011612
        return plain(float(str(value)) if isinstance(value, np.floating) else value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "n/a"
    return value.as_posix() if isinstance(value, PurePath) else value


def write_tsv(path: str | Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write a BIDS table.

    Parameters
    ----------
    path : path
    columns : mapping from name to values
        All of one length. None, NaN and empty text become ``n/a``; booleans ``true`` and ``false``; tabs and
        line breaks in text become blanks.

    Raises
    ------
    DataError
        Columns of different lengths.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{path}: columns of different lengths {lengths}.", "Every row needs a value in each."
        )
    cells = [[_cell(value) for value in values] for values in columns.values()]
    lines = ["\t".join(columns), *("\t".join(row) for row in zip(*cells, strict=True))]
    return write_text(path, "\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if value is None or (isinstance(value, (float, np.floating)) and not np.isfinite(value)):
        return "n/a"
    if isinstance(value, (float, np.floating)):
        text = np.format_float_positional(value, unique=True, trim="-")
        return text if len(text) <= 20 else repr(value.item() if isinstance(value, np.floating) else value)
    return " ".join(str(value).replace("\t", " ").splitlines()).strip() or "n/a"
