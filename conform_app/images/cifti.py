# SPDX-License-Identifier: Apache-2.0
"""CIFTI grayordinates: a NIfTI-2 file whose XML extension says what rows and columns are.

On disk the maps (or time points) of one grayordinate lie together, which is the (n_points, n_maps) order used
here: rows are read and written as they come.  The BrainModelAxis is passed on exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import DataError
from conform_app.images.files import numeric, reading, require, truncated, writing
from conform_app.images.gifti import label_colour
from conform_app.images.grid import Grid
from conform_app.images.ondisk import RowsOnDisk

BLOCK_BYTES = 1 << 25
_DTYPES = {"map": np.float32, "label": np.int16, "mask": np.int16}


def open_cifti(path: Path) -> tuple[Grid, int, float | None, str]:
    """Read the header of a dense CIFTI file.

    Returns
    -------
    grid : Grid
    n_maps : int
        Time points of a ``.dtseries.nii``, maps of a ``.dscalar.nii`` or ``.dlabel.nii``.
    tr : float or None
        In s, for a series in seconds.
    rows : {"SeriesAxis", "ScalarAxis", "LabelAxis"}
        What the maps are.
    """
    import nibabel

    with reading(require(path)):
        image = nibabel.load(path)
    if not isinstance(image, nibabel.Cifti2Image):
        raise DataError(
            f"{path} is not a CIFTI-2 file.", "Give a .dtseries.nii, .dscalar.nii or .dlabel.nii."
        )
    with reading(path):
        axes = [image.header.get_axis(k) for k in range(image.ndim)]
    numeric(path, image.get_data_dtype())
    if len(axes) != 2 or not isinstance(axes[1], nibabel.cifti2.BrainModelAxis):
        kinds = " x ".join(type(axis).__name__ for axis in axes)
        raise DataError(f"{path} is {kinds}, not maps of grayordinates.", "Give a dense CIFTI file.")
    series = isinstance(axes[0], nibabel.cifti2.SeriesAxis)
    in_seconds = series and str(axes[0].unit).upper() == "SECOND" and axes[0].step > 0
    tr = round(float(axes[0].step), 6) if in_seconds else None
    grid = Grid("cifti", (len(axes[1]),), brain_models=axes[1])
    return grid, len(axes[0]), tr, type(axes[0]).__name__


def read_cifti(path: Path, points: np.ndarray | None) -> np.ndarray:
    """Read the wanted grayordinates of all maps; float32 (n_voxels, n_maps), C-contiguous."""
    import nibabel

    with reading(require(path)):
        proxy = nibabel.load(path).dataobj
    n_maps, n_points = proxy.shape
    dtype, slope, inter = np.dtype(proxy.dtype), float(proxy.slope), float(proxy.inter)
    wanted = np.ones(n_points, dtype=bool) if points is None else np.asarray(points, dtype=bool)
    out = np.empty((int(wanted.sum()), n_maps), dtype=np.float32)
    step = max(1, BLOCK_BYTES // max(1, n_maps * dtype.itemsize))
    row = 0
    with reading(path), path.open("rb") as file:
        file.seek(int(proxy.offset))
        for first in range(0, n_points, step):
            here = wanted[first : first + step]
            raw = file.read(here.size * n_maps * dtype.itemsize)
            if len(raw) < here.size * n_maps * dtype.itemsize:
                raise truncated(path, f"ends in grayordinate {first + len(raw) // (n_maps * dtype.itemsize)}")
            block = np.frombuffer(raw, dtype=dtype).reshape(here.size, n_maps)[here]
            if (slope, inter) != (1.0, 0.0):
                block = block * slope + inter
            out[row : row + len(block)] = block
            row += len(block)
    return out


def rows_of_cifti(path: Path, points: np.ndarray | None) -> RowsOnDisk:
    """The wanted grayordinates of all maps, left on disk."""
    import nibabel

    with reading(require(path)):
        proxy = nibabel.load(path).dataobj
    n_maps, n_points = proxy.shape
    rows = np.arange(n_points) if points is None else np.flatnonzero(points)
    layout = {"dtype": proxy.dtype, "offset": proxy.offset, "slope": proxy.slope, "inter": proxy.inter}
    return RowsOnDisk(path, n_maps, rows, **layout)


def write_cifti(
    path: Path, grid: Grid, values: Any, names: list[str], intent: str, labels: dict[int, str] | None
) -> None:
    """Write ``.dscalar.nii`` (maps) or ``.dlabel.nii`` (labels, masks), named map by map.

    Parameters
    ----------
    path : Path
    grid : Grid
    values : MapValues
    names : list of str
        One a map.
    intent : {"map", "label", "mask"}
    labels : dict from value to name, for labels and masks
    """
    import nibabel
    from nibabel.cifti2 import LabelAxis, ScalarAxis
    from nibabel.cifti2.cifti2_axes import to_header
    from nibabel.nifti1 import Nifti1Extension

    if intent == "map":
        first, code = ScalarAxis(names), "ConnDenseScalar"
    else:
        table = {value: (name, label_colour(value)) for value, name in (labels or {}).items()}
        first, code = LabelAxis(names, [table] * len(names)), "ConnDenseLabel"
    dtype = _DTYPES[intent]
    header = nibabel.Nifti2Header()
    header.set_data_shape((1, 1, 1, 1, len(names), grid.n_points))
    header.set_data_dtype(dtype)
    header.set_intent(code)
    header.set_slope_inter(1, 0)
    header["pixdim"][:4] = 1  # no qform: nothing to say about space
    header.extensions.append(Nifti1Extension("cifti", to_header([first, grid.brain_models]).to_xml()))
    step = max(1, BLOCK_BYTES // (4 * len(names)))
    with writing(path) as file:
        header.write_to(file)
        for start in range(0, grid.n_points, step):
            block = values.points(start, min(start + step, grid.n_points))
            file.write(block.astype(dtype, copy=False).tobytes())
