# SPDX-License-Identifier: Apache-2.0
"""Runs that stay on disk: rows of voxels, read when they are asked for.

A CIFTI series is stored point after point, so any block of grayordinates is one read.  Volumes and GIFTI
files are stored image after image and mostly compressed: they are rewritten once, point after point, into a
scratch file of float32.  Plain reads, not memory maps: what was read and dropped does not count as memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conform_app.errors import FileFaultError
from conform_app.images.files import truncated


class RowsOnDisk:
    """Values of shape (n_voxels, n_volumes) in a file; ``rows[lo:hi]`` reads those voxels as float32.

    Parameters
    ----------
    path : Path
    n_volumes : int
    rows : (n_voxels,) int array
        Place of each voxel in the file, ascending.
    dtype : numpy dtype
        Of the file.
    offset : int
        Bytes before the first row.
    slope, inter : float
        Scaling of the stored values.
    """

    ndim = 2

    def __init__(
        self,
        path: Path,
        n_volumes: int,
        rows: np.ndarray,
        *,
        dtype=np.float32,
        offset=0,
        slope=1.0,
        inter=0.0,
    ) -> None:
        self.path, self.shape = Path(path), (int(rows.size), int(n_volumes))
        self._rows, self._dtype, self._offset = rows, np.dtype(dtype), int(offset)
        self._scale = None if (slope, inter) == (1.0, 0.0) else (float(slope), float(inter))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice) -> np.ndarray:
        wanted = self._rows[key]
        if wanted.size == 0:
            return np.empty((0, self.shape[1]), np.float32)
        first, n = int(wanted[0]), int(wanted[-1] - wanted[0]) + 1
        length = self.shape[1] * self._dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(self._offset + first * length)
            raw = file.read(n * length)
        if len(raw) < n * length:
            raise truncated(self.path, f"{n * length - len(raw)} bytes missing")
        block = np.frombuffer(raw, self._dtype).reshape(n, self.shape[1])[wanted - first]
        if self._scale is not None:
            block = block * self._scale[0] + self._scale[1]
        return block.astype(np.float32)


def scratch_array(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A float32 array in a new scratch file of its full size.

    Raises
    ------
    FileFaultError
        The file cannot be made, for instance for want of space.
    """
    try:
        return np.memmap(path, np.float32, "w+", shape=shape)
    except OSError as error:
        gib = 4 * shape[0] * shape[1] / 2**30
        raise FileFaultError(
            f"{path} cannot be written: {error}.", f"The work folder needs {gib:.1f} GiB per run."
        ) from error
