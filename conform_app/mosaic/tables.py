# SPDX-License-Identifier: Apache-2.0
"""Tables of a collection: tab-separated with a JSON sidecar that says what each column is and of which type.

The type matters: a stimulus called ``001`` must come back as text.  Missing values are ``n/a``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import DataError, FileFaultError
from conform_app.mosaic.layout import to_json, writing

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTIONS = {
    "index": "Row of the array of betas, from 0",
    "stimulus": "Name of the stimulus in the collection",
    "name": "Name of the stimulus file in its own dataset",
    "alias": "Name that the experiment used",
    "dataset": "Short name of the dataset",
    "participant": "Participant, as sub-<label>",
    "phase": "train, test or artificial, as the dataset itself divides its stimuli",
    "split": "train, test or artificial in the whole collection; excluded: for neither",
    "reason": "Why the stimulus is where it is",
    "repetition": "Presentation of this stimulus to this participant, from 0, in order of time",
    "unit": "GLM fit whose statistics scaled the betas of this trial",
    "n_train": "Trials that the datasets themselves call train",
    "n_test": "Trials that the datasets themselves call test or artificial",
    "nearest_test": "Most similar test stimulus",
    "similarity": "Cosine similarity of the embeddings",
    "sha256": "SHA-256 of the stimulus file",
    "source": "Where the stimulus was taken from",
    "artificial": "Whether the stimulus is artificial (a shape, a letter, noise)",
    "n_datasets": "Datasets that show this stimulus",
    "onset": "Start of the trial in its run, seconds",
    "duration": "Duration of the stimulus, seconds",
}
_FORMATS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}


def to_tsv(table: pd.DataFrame) -> tuple[bytes, bytes]:
    """Text of a table and of its sidecar.

    Raises
    ------
    DataError
        If a value holds a tab or a line break.
    """
    columns, sidecar = {}, {}
    for column in table.columns:
        kind = _FORMATS.get(getattr(table[column].dtype, "kind", "O"), "string")
        entry = {"Format": kind}
        if column in DESCRIPTIONS:
            entry = {"Description": DESCRIPTIONS[column], **entry}
        sidecar[str(column)] = entry
        missing = table[column].isna().to_numpy()
        if kind == "integer" and missing.any():
            entry["Format"] = kind = "number"
        values = zip(table[column].tolist(), missing, strict=True)
        columns[str(column)] = ["n/a" if none else _text(value, kind) for value, none in values]
        bad = next((v for v in columns[str(column)] if any(c in v for c in "\t\n\r")), None)
        if bad is not None:
            raise DataError(f"The value {bad!r} of {column} holds a tab or line break.", "Rename it.")
    lines = ["\t".join(columns)]
    lines += ["\t".join(row) for row in zip(*columns.values(), strict=True)]
    return ("\n".join(lines) + "\n").encode(), to_json(sidecar)


def _text(value: Any, kind: str) -> str:
    if isinstance(value, str) and value == "":
        return "n/a"
    if kind == "boolean":
        return "true" if value else "false"
    return repr(float(value)) if kind == "number" else str(value)


def from_tsv(text: bytes, sidecar: bytes) -> pd.DataFrame:
    """Table of what `to_tsv` made."""
    import pandas as pd

    formats: Mapping[str, Any] = json.loads(sidecar)
    table = pd.read_csv(
        io.BytesIO(text), sep="\t", dtype=str, keep_default_na=False, quoting=3, encoding="utf-8"
    )
    for column in table.columns:
        kind = formats.get(column, {}).get("Format", "string")
        if kind == "number":
            table[column] = np.array([float("nan" if v == "n/a" else v) for v in table[column]], np.float64)
        elif kind == "integer":
            table[column] = np.array([int(v) for v in table[column]], np.int64)
        elif kind == "boolean":
            table[column] = table[column] == "true"
    return table


def write_table(folder: Path, name: str, table: pd.DataFrame) -> dict[str, tuple[int, str]]:
    """Write ``NAME.tsv`` and ``NAME.json``; return size and SHA-256 of each."""
    files = {}
    for suffix, content in zip((".tsv", ".json"), to_tsv(table), strict=True):
        path = folder / f"{name}{suffix}"
        with writing(path):
            path.write_bytes(content)
        files[path.name] = (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")
    return files


def write_array(folder: Path, name: str, values: np.ndarray) -> dict[str, tuple[int, str]]:
    """Write ``NAME.npy``; return its size and SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    content, path = buffer.getvalue(), folder / f"{name}.npy"
    with writing(path):
        path.write_bytes(content)
    return {path.name: (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")}


def parse(text: bytes, sidecar: bytes, name: str) -> pd.DataFrame:
    """Read a table of a collection.

    Raises
    ------
    FileFaultError
        If it is damaged.
    """
    try:
        return from_tsv(text, sidecar)
    except (ValueError, UnicodeDecodeError) as error:
        raise FileFaultError(f"{name} is damaged: {error}.", "Seal the collection again.") from error
