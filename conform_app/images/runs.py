# SPDX-License-Identifier: Apache-2.0
"""One run of BOLD data: its header now, its values when asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conform_app.errors import DataError
from conform_app.images.cifti import open_cifti, read_cifti, rows_of_cifti
from conform_app.images.gifti import open_pair, read_pair
from conform_app.images.grid import Grid
from conform_app.images.ondisk import RowsOnDisk, scratch_array
from conform_app.images.volume import open_volume, read_volume

_CIFTI = (".dtseries.nii", ".dscalar.nii", ".dlabel.nii")


@dataclass(frozen=True)
class BoldRun:
    """A run on disk.

    Attributes
    ----------
    paths : tuple of Path
        One file, or left and right hemisphere.
    grid : Grid
    n_volumes : int
    tr_header : float or None
        Repetition time in s as the image header says, None where it says nothing. Metadata come first.
    """

    paths: tuple[Path, ...]
    grid: Grid
    n_volumes: int
    tr_header: float | None

    def load(self, points: np.ndarray | None = None) -> np.ndarray:
        """Read the run.

        Parameters
        ----------
        points : array of bool, shape (n_points,), optional
            Which points to keep; by default all.

        Returns
        -------
        ndarray of float32, shape (n_voxels, n_volumes), C-contiguous
            In the units of the file. Beside it only a block of some 32 MiB is held.

        Raises
        ------
        FileFaultError
            A file is truncated or corrupt.
        DataError
            `points` has another number of points than the run.
        """
        points = self._checked(points)
        if self.grid.kind == "volume":
            return read_volume(self.paths[0], points)
        if self.grid.kind == "cifti":
            return read_cifti(self.paths[0], points)
        return read_pair(self.paths, self.grid, self.n_volumes, points)

    def leave_on_disk(self, points: np.ndarray | None, scratch: Path) -> RowsOnDisk:
        """The run without reading it into memory: voxels are read when they are asked for.

        Parameters
        ----------
        points : array of bool, shape (n_points,), or None for all
        scratch : Path
            A file that is written, point after point, unless the format has that order already (CIFTI).

        Returns
        -------
        RowsOnDisk
            ``rows[lo:hi]`` gives what ``load(points)[lo:hi]`` gives.

        Raises
        ------
        FileFaultError, DataError
            As `load`; also where the scratch file cannot be written.
        """
        points = self._checked(points)
        if self.grid.kind == "cifti":
            return rows_of_cifti(self.paths[0], points)
        n_voxels = self.grid.n_points if points is None else int(points.sum())
        out = scratch_array(scratch, (n_voxels, self.n_volumes))
        if self.grid.kind == "volume":
            read_volume(self.paths[0], points, out)
        else:
            read_pair(self.paths, self.grid, self.n_volumes, points, out)
        out.flush()
        return RowsOnDisk(scratch, self.n_volumes, np.arange(n_voxels))

    def _checked(self, points: np.ndarray | None) -> np.ndarray | None:
        if points is None:
            return None
        if np.size(points) != self.grid.n_points:
            raise DataError(
                f"The mask has {np.size(points)} points, {self.paths[0]} has {self.grid.n_points}.",
                "Use a mask on the grid of the BOLD images.",
            )
        return np.asarray(points, dtype=bool).ravel()


def open_run(paths: str | Path | tuple[str | Path, ...]) -> BoldRun:
    """Open a run of BOLD data, reading headers only.

    Parameters
    ----------
    paths : path or tuple of paths
        A 4-D ``.nii[.gz]``, a ``.dtseries.nii``, or the two ``.func.gii`` of a run (either order).

    Returns
    -------
    BoldRun

    Raises
    ------
    NoInputError
        A file does not exist.
    FileFaultError
        A file is truncated or corrupt (as far as its header tells; see also `check_complete`).
    DataError
        The image is no time series.
    """
    files = as_paths(paths)
    kind = kind_of(files)
    if kind == "gifti":
        grid, files, n_volumes, tr = open_pair(files)
    elif kind == "cifti":
        grid, n_volumes, tr, rows = open_cifti(files[0])
        if rows != "SeriesAxis":
            raise DataError(f"{files[0]} is not a time series.", "Give a .dtseries.nii file.")
    else:
        grid, shape, tr = open_volume(files[0])
        if len(shape) != 4:
            raise DataError(f"{files[0]} has {len(shape)} dimensions.", "BOLD data have 4 (x, y, z, time).")
        n_volumes = shape[3]
    return BoldRun(files, grid, n_volumes, tr)


def as_paths(paths: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    """Return a tuple of paths from one path or several."""
    if isinstance(paths, (str, Path)):
        return (Path(paths),)
    return tuple(Path(path) for path in paths)


def kind_of(paths: tuple[Path, ...]) -> str:
    """Tell the kind of grid from file names: "volume", "gifti" or "cifti".

    Raises
    ------
    DataError
        The extension is none of those read here, or several files are given where one belongs.
    """
    names = [path.name for path in paths]
    if names and all(name.endswith(".gii") for name in names):
        return "gifti"
    if len(names) == 1 and names[0].endswith(_CIFTI):
        return "cifti"
    if len(names) == 1 and names[0].endswith((".nii", ".nii.gz")):
        return "volume"
    raise DataError(
        f"{' and '.join(map(str, paths)) or 'An empty list'} is not an image that is read here.",
        "Give one .nii[.gz], one .dtseries.nii, or the .func.gii of both hemispheres.",
    )


def finite_varying(blocks: np.ndarray | Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tell which voxels can enter a fit: all values finite, and not all the same.

    Parameters
    ----------
    blocks : array of shape (n_voxels, n_volumes), or an iterable of such arrays
        The blocks follow each other in time.

    Returns
    -------
    finite : ndarray of bool, shape (n_voxels,)
        No NaN and no infinity.
    varying : ndarray of bool, shape (n_voxels,)
        Two values at least differ. False where nothing finite was seen.
    """
    if isinstance(blocks, np.ndarray):
        blocks = (blocks,)
    low = high = finite = None
    for block in blocks:
        if block.shape[1] == 0:
            continue
        # max and min carry NaN and infinities along, so one pass over each is enough
        top, bottom = block.max(axis=1), block.min(axis=1)
        if low is None:
            low, high, finite = bottom, top, np.isfinite(top) & np.isfinite(bottom)
        else:
            finite &= np.isfinite(top) & np.isfinite(bottom)
            low, high = np.minimum(low, bottom), np.maximum(high, top)
    if low is None:
        raise DataError("A run without volumes.", "Leave it out.")
    return finite, finite & (high > low)
