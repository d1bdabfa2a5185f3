# SPDX-License-Identifier: Apache-2.0
"""Labels of an atlas on the points of a grid.

Volumes must be on the grid itself.  On surfaces a label belongs to a vertex of a structure, whatever else the
file holds: a pair of ``.label.gii``, or a ``.dlabel.nii`` with or without medial wall and subcortex, serves
vertices in GIFTI and in CIFTI; subcortical voxels are met by their indices where the volumes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import DataError
from conform_app.images.cifti import open_cifti, read_cifti
from conform_app.images.files import require
from conform_app.images.gifti import open_pair, read_pair
from conform_app.images.grid import AFFINE_TOLERANCE, Grid
from conform_app.images.maps import read_maps
from conform_app.images.runs import as_paths, kind_of

_CIFTI_NAMES = {"CortexLeft": "CIFTI_STRUCTURE_CORTEX_LEFT", "CortexRight": "CIFTI_STRUCTURE_CORTEX_RIGHT"}


@dataclass(frozen=True, eq=False)
class Labels:
    """An atlas as found in its files.

    Attributes
    ----------
    vertices : dict of str to ndarray
        Label of every vertex, by CIFTI name of the structure; 0 where there is none.
    voxels : tuple, or None
        Indices (m, 3), labels (m,), affine and shape of subcortical voxels.
    """

    vertices: dict[str, np.ndarray]
    voxels: tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]] | None = None


def read_labels(paths: str | Path | Sequence[str | Path], grid: Grid) -> np.ndarray:
    """Read an atlas on the points of a grid.

    Parameters
    ----------
    paths : path, or the paths of both hemispheres
        Volume: NIfTI of whole numbers on the grid. Surfaces and grayordinates: ``.label.gii``, one a
        hemisphere (labels of the two hemispheres count as different), or ``.dlabel.nii``.
    grid : Grid
        Of the data.

    Returns
    -------
    ndarray of int64, shape (n_points,)
        0 where there is no label.

    Raises
    ------
    NoInputError, FileFaultError
        A file is missing, truncated or corrupt.
    DataError
        The atlas is on another grid, is of another kind than the data, or holds no whole numbers.
    """
    files = as_paths(paths)
    for path in files:
        require(path)
    kind = kind_of(files)
    if (kind == "volume") != (grid.kind == "volume"):
        raise DataError(
            f"The atlas {files[0]} is a {kind} file, the data are a {grid.describe()}.",
            "Give an atlas in the space of the data.",
        )
    if kind == "volume":
        _, values = read_maps(files, grid)
        return _whole(values, files[0])
    atlas = _from_gifti(files) if kind == "gifti" else _from_cifti(files[0])
    if grid.kind == "gifti":
        names = [_CIFTI_NAMES[s] for s in grid.structures]
        return np.concatenate(
            [_at(atlas, name, np.arange(n), n, files[0]) for name, n in zip(names, grid.shape, strict=True)]
        )
    return _on_grayordinates(atlas, grid.brain_models, files[0])


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    """Labels of one map as integers."""
    if values.ndim != 1:
        raise DataError(f"The atlas {path} has {values.shape[1]} maps.", "Give one map of labels.")
    values = np.nan_to_num(values, nan=0.0)
    whole = np.rint(values)
    if not np.array_equal(whole, values) or (whole < 0).any():
        raise DataError(
            f"The atlas {path} does not hold labels (whole numbers from 0).",
            "Give a segmentation: a number a region, not probabilities.",
        )
    return whole.astype(np.int64)


def _from_gifti(files: tuple[Path, ...]) -> Labels:
    found, files, n_maps, _ = open_pair(files)
    values = read_pair(files, found, n_maps, None)
    values = _whole(values[:, 0] if n_maps == 1 else values, files[0])
    parts = np.split(values, np.cumsum(found.shape)[:-1])
    if len(parts) == 2:  # the same number on both sides is two regions
        parts[1] = np.where(parts[1] > 0, parts[1] + parts[0].max(initial=0), 0)
    return Labels({_CIFTI_NAMES[s]: part for s, part in zip(found.structures, parts, strict=True)})


def _from_cifti(path: Path) -> Labels:
    found, n_maps, _, _ = open_cifti(path)
    values = read_cifti(path, None)
    values = _whole(values[:, 0] if n_maps == 1 else values, path)
    axis, vertices = found.brain_models, {}
    for name, where, part in axis.iter_structures():
        if name in axis.nvertices:
            vertices[name] = np.zeros(axis.nvertices[name], dtype=np.int64)
            vertices[name][part.vertex] = values[where]
    inside = axis.volume_mask
    if not inside.any():
        return Labels(vertices)
    return Labels(vertices, (axis.voxel[inside], values[inside], axis.affine, tuple(axis.volume_shape)))


def _at(atlas: Labels, name: str, vertex: np.ndarray, n_vertices: int, path: Path) -> np.ndarray:
    """Labels of some vertices of a structure; 0 where the atlas does not have the structure."""
    labels = atlas.vertices.get(name)
    if labels is None:
        return np.zeros(vertex.size, dtype=np.int64)
    if labels.size != n_vertices:
        raise DataError(
            f"The atlas {path} has {labels.size} vertices a hemisphere, the data have {n_vertices}.",
            "Give the atlas on the surface of the data.",
        )
    return labels[vertex]


def _on_grayordinates(atlas: Labels, axis: Any, path: Path) -> np.ndarray:
    out = np.zeros(len(axis), dtype=np.int64)
    for name, where, part in axis.iter_structures():
        if name in axis.nvertices:
            out[where] = _at(atlas, name, part.vertex, axis.nvertices[name], path)
    inside = axis.volume_mask
    if atlas.voxels is None or not inside.any():
        return out
    voxel, labels, affine, shape = atlas.voxels
    same = shape == tuple(axis.volume_shape) and np.abs(affine - axis.affine).max() <= AFFINE_TOLERANCE
    if not same:
        raise DataError(
            f"The subcortical voxels of the atlas {path} are on another grid than those of the data.",
            "Give an atlas of the same grayordinates, or of the cortex alone.",
        )
    volume = np.zeros(shape, dtype=np.int64)
    volume[tuple(voxel.T)] = labels
    out[inside] = volume[tuple(axis.voxel[inside].T)]
    return out
