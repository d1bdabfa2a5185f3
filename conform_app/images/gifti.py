# SPDX-License-Identifier: Apache-2.0
"""GIFTI hemispheres: one XML file each for left and right, one data array a volume or map.

Data arrays are decoded one at a time while the XML streams by, and written the same way, so that a run or a
set of betas is held once.  Some programs store a run as one array of (n_vertices, n_volumes): read as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import DataError
from conform_app.images.files import reading, require, truncated, writing
from conform_app.images.grid import Grid

MAPS_AT_ONCE = 16
STRUCTURES = ("CortexLeft", "CortexRight")
_GEOMETRY = {"NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE", "NIFTI_INTENT_NODE_INDEX"}
_DTYPES = {"map": np.float32, "label": np.int32, "mask": np.int32}  # the standard has no int16


class _Head:
    """What the XML says before any array is decoded: sizes, intents, the file's own metadata."""

    def __init__(self, path: Path) -> None:
        from xml.parsers import expat

        self.arrays: list[dict[str, str]] = []
        self.meta: dict[str, str] = {}
        self._stack: list[str] = []
        self._pair = ["", ""]
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        with reading(require(path)), path.open("rb") as file:
            self._parser.ParseFile(file)

    def _start(self, name: str, attrs: dict[str, str]) -> None:
        self._stack.append(name)
        if name == "DataArray":
            self.arrays.append(attrs)
        elif name in ("Name", "Value"):
            self._pair["NV".index(name[0])] = ""
            self._parser.CharacterDataHandler = self._text

    def _text(self, data: str) -> None:
        self._pair["NV".index(self._stack[-1][0])] += data

    def _end(self, name: str) -> None:
        self._stack.pop()
        self._parser.CharacterDataHandler = None
        # metadata of the file, or of an array where only that names the structure
        if name == "MD":
            self.meta.setdefault(self._pair[0].strip(), self._pair[1].strip())


def open_pair(paths: tuple[Path, ...]) -> tuple[Grid, tuple[Path, ...], int, float | None]:
    """Read what the XML of one or two hemispheres says, decoding nothing.

    Returns
    -------
    grid : Grid
    paths : tuple of Path
        Left before right.
    n_maps : int
    tr : float or None
        In s, from the ``TimeStep`` metadata; 50 and more are taken as ms (FreeSurfer).
    """
    read = [(path, _Head(path)) for path in paths]
    heads = sorted(((_structure(path, head), path, head) for path, head in read), key=lambda item: item[0])
    structures = tuple(item[0] for item in heads)
    if len(set(structures)) != len(structures) or len(structures) > 2:
        raise DataError(
            f"{' and '.join(str(p) for p in paths)} are not one left and one right hemisphere.",
            "Give one file of each.",
        )
    sizes = [_size(path, head) for _, path, head in heads]
    if len({n_maps for _, n_maps in sizes}) > 1:
        raise DataError(
            f"{heads[0][1]} holds {sizes[0][1]} volumes, {heads[1][1]} {sizes[1][1]}.",
            "Preprocess this run again: both hemispheres come from one run.",
        )
    grid = Grid("gifti", tuple(n for n, _ in sizes), structures=structures)
    return grid, tuple(path for _, path, _ in heads), sizes[0][1], _time_step(heads[0][2])


def structure_of(path: str | Path) -> str | None:
    """Which hemisphere a file says of itself that it is: one of `STRUCTURES`; None where it is silent."""
    path = Path(path)
    if not path.name.endswith(".gii"):
        return None
    structure = _Head(path).meta.get("AnatomicalStructurePrimary")
    return structure if structure in STRUCTURES else None


def _structure(path: Path, head: _Head) -> str:
    """Find the hemisphere: by its metadata, else by ``hemi-`` (or FreeSurfer's ``lh.``) in the name."""
    structure = head.meta.get("AnatomicalStructurePrimary", "")
    if structure in STRUCTURES:
        return structure
    match = re.search(r"hemi-([LR])|(?:^|[._-])([lr])h[._-]", path.name)
    if match is None:
        raise DataError(f"{path} does not say which hemisphere it is.", "Put hemi-L or hemi-R into its name.")
    return STRUCTURES["LR".index((match[1] or match[2]).upper())]


def _size(path: Path, head: _Head) -> tuple[int, int]:
    """Return (n_vertices, n_maps)."""
    dims = [_dims(attrs) for attrs in head.arrays]
    if not dims or any(attrs.get("Intent") in _GEOMETRY for attrs in head.arrays):
        raise DataError(f"{path} holds no values at every vertex.", "Give a functional or label GIFTI file.")
    if len({d[0] for d in dims}) > 1:
        raise DataError(f"{path} holds arrays of different numbers of vertices.", "Write it again.")
    return dims[0][0], sum(d[1] for d in dims)


def _dims(attrs: dict[str, str]) -> tuple[int, int]:
    n = int(attrs.get("Dimensionality", 1))
    sizes = [int(attrs.get(f"Dim{k}", 1)) for k in range(n)]
    return sizes[0], int(np.prod(sizes[1:], dtype=int))


def _time_step(head: _Head) -> float | None:
    try:
        step = float(head.meta.get("TimeStep", "0").split()[0])
    except (ValueError, IndexError):
        return None
    if not np.isfinite(step) or step <= 0:
        return None
    return round(step / 1000, 6) if step >= 50 else step


def read_pair(
    paths: tuple[Path, ...],
    grid: Grid,
    n_maps: int,
    points: np.ndarray | None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Read the wanted vertices of all maps, into ``out`` if given; float32 (n_voxels, n_maps)."""
    wanted = np.ones(grid.n_points, dtype=bool) if points is None else np.asarray(points, dtype=bool)
    if out is None:
        out = np.empty((int(wanted.sum()), n_maps), dtype=np.float32)
    row = point = 0
    for path, n_vertices in zip(paths, grid.shape, strict=True):
        here = np.flatnonzero(wanted[point : point + n_vertices])
        _fill(path, here, out[row : row + here.size])
        row, point = row + here.size, point + n_vertices
    return out


def _fill(path: Path, vertices: np.ndarray, out: np.ndarray) -> None:
    from nibabel.gifti.parse_gifti_fast import GiftiImageParser

    done = 0

    class Arrays(GiftiImageParser):
        """Hand each array over as soon as it is decoded, and forget it."""

        def EndElementHandler(self, name: str) -> None:
            nonlocal done
            super().EndElementHandler(name)
            if name == "DataArray":
                array, self.img.darrays[-1].data = self.img.darrays[-1].data, None
                array = np.asarray(array).reshape(len(array), -1)
                out[:, done : done + array.shape[1]] = array[vertices]
                done += array.shape[1]

    with reading(path), path.open("rb") as file:
        Arrays().parse(fptr=file)
    if done != out.shape[1]:
        raise truncated(path, f"{done} of {out.shape[1]} arrays")


def write_pair(
    paths: tuple[Path, ...],
    grid: Grid,
    values: Any,
    names: list[str],
    intent: str,
    labels: dict[int, str] | None,
) -> None:
    """Write one GIFTI a hemisphere, one data array a map.

    Parameters
    ----------
    paths : tuple of Path
        One for each of ``grid.structures``.
    grid : Grid
    values : MapValues
    names : list of str
        One a map; stored as the array's ``Name``.
    intent : {"map", "label", "mask"}
    labels : dict from value to name, for labels and masks
    """
    if len(paths) != len(grid.shape):
        raise DataError(f"{len(paths)} file names for {len(grid.shape)} hemispheres.", "Give one each.")
    start = 0
    for path, structure, n_vertices in zip(paths, grid.structures, grid.shape, strict=True):
        _write_one(path, structure, values, slice(start, start + n_vertices), names, intent, labels)
        start += n_vertices


def _write_one(
    path: Path, structure: str, values: Any, here: slice, names: list[str], intent: str, labels: Any
) -> None:
    from nibabel.gifti import GiftiDataArray, GiftiMetaData

    code = "NIFTI_INTENT_NONE" if intent == "map" else "NIFTI_INTENT_LABEL"
    with writing(path) as file:
        file.write(
            b'<?xml version="1.0" encoding="UTF-8"?>\n'
            b'<!DOCTYPE GIFTI SYSTEM "http://www.nitrc.org/frs/download.php/115/gifti.dtd">\n'
            b'<GIFTI Version="1.0" NumberOfDataArrays="%d">' % len(names)
        )
        file.write(GiftiMetaData({"AnatomicalStructurePrimary": structure}).to_xml())
        file.write(_label_table(labels).to_xml())
        for first in range(0, len(names), MAPS_AT_ONCE):
            block = values.maps(first, min(first + MAPS_AT_ONCE, len(names)))[:, here]
            for array, name in zip(block, names[first : first + MAPS_AT_ONCE], strict=True):
                meta = GiftiMetaData({"Name": name})
                element = GiftiDataArray(np.ascontiguousarray(array, _DTYPES[intent]), intent=code, meta=meta)
                element.coordsys = None  # only coordinates have one
                file.write(element.to_xml())
        file.write(b"</GIFTI>\n")


def _label_table(labels: dict[int, str] | None) -> Any:
    from nibabel.gifti import GiftiLabel, GiftiLabelTable

    table = GiftiLabelTable()
    for value, name in (labels or {}).items():
        label = GiftiLabel(value, *label_colour(value))
        label.label = name
        table.labels.append(label)
    return table


def label_colour(value: int) -> tuple[float, float, float, float]:
    """Give a label a fixed colour (red, green, blue, alpha in 0..1); 0 is transparent."""
    import colorsys

    if value == 0:
        return (0.0, 0.0, 0.0, 0.0)
    # steps of the golden ratio around the colour circle keep neighbours apart
    hue = (value * 0.6180339887498949) % 1.0
    return (*(round(c, 4) for c in colorsys.hsv_to_rgb(hue, 0.65, 0.95)), 1.0)
