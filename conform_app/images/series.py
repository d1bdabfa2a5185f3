# SPDX-License-Identifier: Apache-2.0
"""Grids and time series made here, for runs that are carried to a surface: GIFTI pairs, CIFTI grayordinates.

Grayordinates are in the order of the HCP: left cortex, right cortex (each without medial wall), then the
structures of the subcortex by name, their voxels of a 2 mm MNI152NLin6Asym grid with the first index (right
to left) running fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import DataError
from conform_app.images.files import reading, require, writing
from conform_app.images.gifti import STRUCTURES
from conform_app.images.grid import Grid

# FreeSurfer's numbers of the structures, in the order of the HCP's files
SUBCORTEX = {
    "ACCUMBENS_LEFT": 26, "ACCUMBENS_RIGHT": 58, "AMYGDALA_LEFT": 18, "AMYGDALA_RIGHT": 54, "BRAIN_STEM": 16,
    "CAUDATE_LEFT": 11, "CAUDATE_RIGHT": 50, "CEREBELLUM_LEFT": 8, "CEREBELLUM_RIGHT": 47,
    "DIENCEPHALON_VENTRAL_LEFT": 28, "DIENCEPHALON_VENTRAL_RIGHT": 60, "HIPPOCAMPUS_LEFT": 17,
    "HIPPOCAMPUS_RIGHT": 53, "PALLIDUM_LEFT": 13, "PALLIDUM_RIGHT": 52, "PUTAMEN_LEFT": 12,
    "PUTAMEN_RIGHT": 51, "THALAMUS_LEFT": 10, "THALAMUS_RIGHT": 49,
}  # fmt: skip
BLOCK_BYTES = 1 << 25


def surface_grid(n_vertices: Sequence[int]) -> Grid:
    """Grid of a left and a right mesh of so many vertices."""
    return Grid("gifti", tuple(int(n) for n in n_vertices), structures=STRUCTURES)


def grayordinate_grid(cortex: Sequence[np.ndarray], labels: str | Path | None) -> Grid:
    """Grid of grayordinates.

    Parameters
    ----------
    cortex : two ndarrays of bool, shape (n_vertices,)
        Left, right: True where not medial wall.
    labels : path, optional
        Segmentation with FreeSurfer's numbers, on the grid whose voxels are the subcortex's grayordinates;
        none: cortex only.

    Returns
    -------
    Grid
        Of kind "cifti".
    """
    from nibabel.cifti2 import BrainModelAxis

    sides = ("CORTEX_LEFT", "CORTEX_RIGHT")
    left, right = (
        BrainModelAxis.from_surface(np.flatnonzero(mask), len(mask), f"CIFTI_STRUCTURE_{side}")
        for mask, side in zip(cortex, sides, strict=True)
    )
    axis = left + right
    if labels is not None:
        axis = axis + _subcortex_axis(require(Path(labels)))
    return Grid("cifti", (len(axis),), brain_models=axis)


def _subcortex_axis(path: Path) -> Any:
    import nibabel
    from nibabel.cifti2 import BrainModelAxis

    with reading(path):
        image = nibabel.load(path)
        to_las = nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("LAS")
        )
        image = image.as_reoriented(to_las)
        numbers = np.asarray(image.dataobj)
    voxels, names = [], []
    for name, number in SUBCORTEX.items():
        found = np.argwhere(numbers == number)
        voxels.append(found[np.lexsort(found.T)])  # the last index is the main key
        names += [f"CIFTI_STRUCTURE_{name}"] * len(found)
    if not names:
        raise DataError(f"{path} holds none of the structures of the subcortex.", "Fetch it again.")
    return BrainModelAxis(
        np.array(names), voxel=np.concatenate(voxels), affine=image.affine, volume_shape=image.shape[:3]
    )


def voxels_of(grid: Grid, volume: Grid) -> np.ndarray:
    """Points of a volume at which the subcortical grayordinates of a grid lie.

    Parameters
    ----------
    grid : Grid
        Of kind "cifti".
    volume : Grid
        Of kind "volume".

    Returns
    -------
    ndarray of int, shape (n_subcortical,)
        In the order of the grayordinates.

    Raises
    ------
    DataError
        The volume has no voxel centred on some of them.
    """
    axis = grid.brain_models
    voxels = axis.voxel[~axis.surface_mask]
    place = np.c_[voxels, np.ones(len(voxels))] @ (np.linalg.inv(volume.affine) @ axis.affine).T
    index = np.rint(place[:, :3]).astype(int)
    off = np.abs(place[:, :3] - index).max(initial=0.0)
    if off > 0.02 or (index < 0).any() or (index >= np.array(volume.shape)).any():
        raise DataError(
            f"a {volume.describe()} does not hold the voxels of the subcortex's grayordinates.",
            "Preprocess to MNI152NLin6Asym:res-2, or leave that space out for the cortex alone.",
        )
    return np.ravel_multi_index(tuple(index.T), volume.shape)


def write_series(grid: Grid, paths: Sequence[Path], values: np.ndarray, tr: float) -> list[Path]:
    """Write a run: GIFTI with an array a volume, or CIFTI.

    Parameters
    ----------
    grid : Grid
    paths : sequence of Path
        Left and right ``.func.gii``, or one ``.dtseries.nii``.
    values : ndarray of float32, shape (n_points, n_volumes)
    tr : float
        Repetition time, s.
    """
    if grid.kind == "cifti":
        _write_dtseries(paths[0], grid, values, tr)
        return list(paths)
    start = 0
    for path, structure, n_vertices in zip(paths, grid.structures, grid.shape, strict=True):
        _write_func(path, structure, values[start : start + n_vertices], tr)
        start += n_vertices
    return list(paths)


def _write_func(path: Path, structure: str, values: np.ndarray, tr: float) -> None:
    from nibabel.gifti import GiftiDataArray, GiftiMetaData

    meta = GiftiMetaData({"AnatomicalStructurePrimary": structure, "TimeStep": repr(float(tr))})
    with writing(path) as file:
        file.write(
            b'<?xml version="1.0" encoding="UTF-8"?>\n'
            b'<!DOCTYPE GIFTI SYSTEM "http://www.nitrc.org/frs/download.php/115/gifti.dtd">\n'
            b'<GIFTI Version="1.0" NumberOfDataArrays="%d">' % values.shape[1]
        )
        file.write(meta.to_xml())
        for column in values.T:
            element = GiftiDataArray(
                np.ascontiguousarray(column, np.float32),
                intent="NIFTI_INTENT_TIME_SERIES",
                encoding="GIFTI_ENCODING_B64BIN",  # read once and forgotten: not worth compressing
            )
            element.coordsys = None
            file.write(element.to_xml())
        file.write(b"</GIFTI>\n")


def _write_dtseries(path: Path, grid: Grid, values: np.ndarray, tr: float) -> None:
    import nibabel
    from nibabel.cifti2 import SeriesAxis
    from nibabel.cifti2.cifti2_axes import to_header
    from nibabel.nifti1 import Nifti1Extension

    n_volumes = values.shape[1]
    header = nibabel.Nifti2Header()
    header.set_data_shape((1, 1, 1, 1, n_volumes, grid.n_points))
    header.set_data_dtype(np.float32)
    header.set_intent("ConnDenseSeries")
    header.set_slope_inter(1, 0)
    axes = [SeriesAxis(0, tr, n_volumes), grid.brain_models]
    header.extensions.append(Nifti1Extension("cifti", to_header(axes).to_xml()))
    step = max(1, BLOCK_BYTES // (4 * n_volumes))
    with writing(path) as file:
        header.write_to(file)
        for start in range(0, grid.n_points, step):
            file.write(np.ascontiguousarray(values[start : start + step], np.float32).tobytes())
