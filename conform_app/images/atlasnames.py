# SPDX-License-Identifier: Apache-2.0
"""Names of an atlas's labels: from the table in GIFTI and CIFTI files, from the TSV beside a volume.

Numbers are those of `atlas.read_labels`, which counts on from the left hemisphere to the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conform_app.images.files import reading, require
from conform_app.images.runs import as_paths, kind_of

NAMELESS = ("", "???", "unknown")


def label_names(paths: str | Path | Sequence[str | Path]) -> dict[int, str]:
    """Read what the labels of an atlas are called.

    Parameters
    ----------
    paths : path, or the paths of both hemispheres
        ``.dlabel.nii``, ``.label.gii`` or a volume, whose names are in a ``.tsv`` of the same name with the
        columns index and name (BIDS ``_dseg.tsv``).

    Returns
    -------
    dict of int to str
        Labels without a name are left out; of two hemispheres each name starts with ``L`` or ``R``.

    Raises
    ------
    NoInputError, FileFaultError
        A file is missing, truncated or corrupt.
    """
    import nibabel

    files = as_paths(paths)
    kind = kind_of(files)
    if kind == "volume":
        return _beside(files[0])
    found: dict[int, str] = {}
    if kind == "cifti":
        with reading(require(files[0])):
            axis = nibabel.load(files[0]).header.get_axis(0)
        table = axis.label[0] if isinstance(axis, nibabel.cifti2.LabelAxis) else {}
        found = {int(number): str(its[0]) for number, its in table.items()}
    start = 0
    for side, path in zip("LR" if len(files) == 2 else " ", files if kind == "gifti" else (), strict=False):
        with reading(require(path)):
            image = nibabel.load(path)
            highest = int(np.max(image.darrays[0].data, initial=0))
            table = image.labeltable.get_labels_as_dict()
        for number, name in table.items():
            if number > 0 and str(name).lower() not in NAMELESS:
                found[start + int(number)] = f"{side} {name}".strip()
        start += highest
    return {n: name for n, name in found.items() if n > 0 and name.lower() not in NAMELESS}


def _beside(path: Path) -> dict[int, str]:
    """Names from the table beside a volume; none where there is no such table."""
    table = path.with_name(path.name.split(".")[0] + ".tsv")
    if not table.is_file():
        return {}
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    head = lines[0] if lines else []
    if not {"index", "name"} <= set(head):
        return {}
    index, name = head.index("index"), head.index("name")
    rows = [row for row in lines[1:] if len(row) == len(head) and row[index].strip().isdigit()]
    return {int(row[index]): row[name].strip() for row in rows}
