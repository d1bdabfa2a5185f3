# SPDX-License-Identifier: Apache-2.0
"""Maps of a file as rows of a table (n_maps, n_points): one map is one trial.

The files hold a point's maps together, so that rows cannot be read one by one; a file is read whole when its
first row is asked for, and let go when rows of another file of the same `Shelf` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conform_app.images.cifti import open_cifti
from conform_app.images.gifti import open_pair
from conform_app.images.grid import Grid
from conform_app.images.maps import read_maps
from conform_app.images.runs import as_paths, kind_of
from conform_app.images.volume import open_volume


class Shelf:
    """Room for the values of one file at a time."""

    def __init__(self) -> None:
        self._files: tuple[Path, ...] = ()
        self._rows = np.empty((0, 0), dtype=np.float32)

    def rows(self, files: tuple[Path, ...]) -> np.ndarray:
        """Values of a file (or of the two of a surface), (n_maps, n_points)."""
        if files != self._files:
            self._files, self._rows = (), np.empty((0, 0), dtype=np.float32)  # let go first
            values = read_maps(files)[1]
            self._rows = values.reshape(len(values), -1).T
            self._files = files
        return self._rows


class MapRows:
    """Rows of the maps of a file.

    Parameters
    ----------
    files : sequence of Path
        One file, or left and right hemisphere.
    shelf : Shelf
        Shared by the files of which only one is held at a time.

    Attributes
    ----------
    shape : tuple of int
        (n_maps, n_points), from the header.
    grid : Grid

    Raises
    ------
    NoInputError, FileFaultError, DataError
        A file that is not there, cannot be read, or holds no maps.
    """

    def __init__(self, files: Sequence[str | Path], shelf: Shelf | None = None) -> None:
        self.files = as_paths(tuple(files))
        self.grid, n_maps = _header(self.files)
        self.shape = (n_maps, self.grid.n_points)
        self.dtype = np.dtype(np.float32)
        self._shelf = shelf or Shelf()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray | int) -> np.ndarray:
        return np.asarray(self._shelf.rows(self.files)[rows], dtype=np.float32)


def _header(files: tuple[Path, ...]) -> tuple[Grid, int]:
    """Grid and number of maps."""
    kind = kind_of(files)
    if kind == "gifti":
        grid, _, n_maps, _ = open_pair(files)
    elif kind == "cifti":
        grid, n_maps, _, _ = open_cifti(files[0])
    else:
        grid, shape, _ = open_volume(files[0])
        n_maps = int(np.prod(shape[3:], dtype=int))
    return grid, n_maps
