# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes, read and written a few volumes at a time.

On disk the first voxel index runs fastest and the volume number slowest; in memory a run is
(n_voxels, n_volumes) with voxels in C order.  Blocks of volumes are read from the (gzip) stream in order, the
wanted voxels gathered, scaled in float64 and stored as float32: nothing but the result is held whole.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from conform_app.errors import DataError
from conform_app.images.files import compressed, numeric, reading, require, truncated, writing
from conform_app.images.grid import Grid

BLOCK_BYTES = 1 << 25  # of file content held at a time
_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def open_volume(path: Path) -> tuple[Grid, tuple[int, ...], float | None]:
    """Read a NIfTI header.

    Returns
    -------
    grid : Grid
    shape : tuple of int
        Of the whole image; trailing axes of length 1 beyond the fourth are dropped.
    tr : float or None
        Repetition time in s by the header's own units; None where it gives no time.
    """
    import nibabel

    with reading(require(path)):
        image = nibabel.load(path)
        header, shape, dtype = image.header, tuple(int(n) for n in image.shape), image.get_data_dtype()
        affine = np.asarray(image.affine, dtype=np.float64)
    numeric(path, dtype)
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3 or 0 in shape:
        raise DataError(f"{path} has shape {shape}, not that of a volume.", "Give a 3-D or 4-D image.")
    grid = Grid("volume", shape[:3], affine=affine, header=header)
    return grid, shape, _header_tr(header, shape)


def _header_tr(header: object, shape: tuple[int, ...]) -> float | None:
    if len(shape) < 4:
        return None
    # unknown units: 1.0 is what libraries write when nobody told them, so it is no evidence of a TR
    scale = _SECONDS.get(header.get_xyzt_units()[1])
    tr = float(header.get_zooms()[3]) * scale if scale else 0.0
    return round(tr, 6) if math.isfinite(tr) and tr > 0 else None


@contextmanager
def _content(path: Path) -> Iterator[BinaryIO]:
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
        yield file


def read_volume(path: Path, points: np.ndarray | None, out: np.ndarray | None = None) -> np.ndarray:
    """Read the wanted voxels of all volumes.

    Parameters
    ----------
    path : Path
        3-D or 4-D NIfTI.
    points : array of bool, shape (n_points,), or None for all voxels
    out : ndarray of float32, shape (n_voxels, n_volumes), optional
        Where to put them.

    Returns
    -------
    ndarray of float32, shape (n_voxels, n_volumes), C-contiguous

    Raises
    ------
    FileFaultError
        The file ends early or is corrupt.
    """
    import nibabel

    with reading(require(path)):
        proxy = nibabel.load(path).dataobj
        shape, dtype, offset = proxy.shape, np.dtype(proxy.dtype), int(proxy.offset)
        slope, inter = float(proxy.slope), float(proxy.inter)
    n_points, n_volumes = math.prod(shape[:3]), math.prod(shape[3:])
    # where voxel (i, j, k), counted in C order, lies within a volume on disk
    on_disk = np.arange(n_points).reshape(shape[:3], order="F").ravel()
    if points is not None:
        on_disk = on_disk[points]
    if out is None:
        out = np.empty((on_disk.size, n_volumes), dtype=np.float32)
    step = max(1, BLOCK_BYTES // (n_points * dtype.itemsize))
    with reading(path), _content(path) as file:
        _read_exactly(file, offset, path)
        for first in range(0, n_volumes, step):
            n = min(step, n_volumes - first)
            raw = _read_exactly(file, n * n_points * dtype.itemsize, path)
            block = np.frombuffer(raw, dtype=dtype).reshape(n, n_points)[:, on_disk]
            if (slope, inter) != (1.0, 0.0):
                block = block * slope + inter
            out[:, first : first + n] = block.T
        while file.read(1 << 20):  # at the very end gzip compares its checksum
            pass
    return out


def _read_exactly(file: BinaryIO, n_bytes: int, path: Path) -> bytes:
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise truncated(path, f"{n_bytes - len(data)} bytes missing")
    return data


def write_volume(path: Path, grid: Grid, values: object, dtype: type) -> None:
    """Write maps as a NIfTI volume on a grid, a few maps at a time.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    grid : Grid
        qform, sform, voxel size and spatial unit come from its header.
    values : MapValues
        3-D for one map that is not a series, else 4-D.
    dtype : numpy type to store
    """
    header = _new_header(grid, values.n_maps, values.series, dtype)
    step = max(1, BLOCK_BYTES // (grid.n_points * 4))
    level = 1 if np.dtype(dtype).kind == "f" else 6
    with writing(path) as file, compressed(file, path, level) as content:
        header.write_to(content)
        for first in range(0, values.n_maps, step):
            for volume in values.maps(first, min(first + step, values.n_maps)):
                content.write(volume.reshape(grid.shape).astype(dtype, copy=False).tobytes(order="F"))


def _new_header(grid: Grid, n_maps: int, series: bool, dtype: type) -> object:
    """Build a header with the reference's geometry and nothing else of it (no descrip, no slice timing)."""
    import nibabel

    shape = (*grid.shape, n_maps) if series else grid.shape
    header = (nibabel.Nifti2Header if max(shape) > 32767 else nibabel.Nifti1Header)()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    if grid.header is not None and "qform_code" in grid.header:
        old = grid.header
        for name in _GEOMETRY:
            header[name] = old[name]
        header["pixdim"][:4] = old["pixdim"][:4]
        header.set_xyzt_units(xyz=old.get_xyzt_units()[0])
    else:
        header.set_sform(grid.affine, code="aligned")
        header.set_qform(grid.affine, code="unknown")
        header.set_xyzt_units(xyz="mm")
    if series:
        header["pixdim"][4] = 1.0  # maps are counted, not timed
    header.set_slope_inter(1, 0)
    return header
