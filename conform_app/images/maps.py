# SPDX-License-Identifier: Apache-2.0
"""Maps on a grid: written whole and byte-identical, read back, and used as masks.

Betas of a large study fill the memory once; they are written block by block, so that scattering them from the
analysed voxels to the grid, filling the rest and compressing never needs a second copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.images.cifti import open_cifti, read_cifti, write_cifti
from conform_app.images.gifti import open_pair, read_pair, write_pair
from conform_app.images.grid import Grid, grid_difference
from conform_app.images.runs import as_paths, kind_of
from conform_app.images.volume import open_volume, read_volume, write_volume

_EXTENSIONS = {"volume": (".nii", ".nii.gz"), "gifti": (".gii",), "cifti": (".dscalar.nii", ".dlabel.nii")}


class MapValues:
    """Values of maps, handed out block by block with the fill value where there are none.

    Parameters
    ----------
    grid : Grid
    values : array of shape (n_points, n_maps) or (n_analysed_points, n_maps)
        The second form has one row for each point of ``grid.mask``.
    fill : float
        Outside the mask, and at points without a finite value in any map.
    series : bool
        Whether the maps form a fourth dimension even when there is only one.
    """

    def __init__(self, grid: Grid, values: np.ndarray, fill: float, series: bool) -> None:
        self._values, self._fill, self.series = values, fill, series
        self.n_points, self.n_maps = grid.n_points, values.shape[1]
        inside = grid.mask_points
        if len(values) == grid.n_points:
            rows = np.arange(grid.n_points)
        elif len(values) == int(inside.sum()):
            rows = np.cumsum(inside) - 1
        else:
            raise DataError(
                f"{len(values)} values for {grid.n_points} points, {int(inside.sum())} of them in the mask.",
                "Give one row for each point of the grid, or of the mask.",
            )
        has_value = _any_finite(values)
        self._keep = inside & has_value[np.where(inside, rows, 0)]
        self._rows = rows

    def maps(self, first: int, last: int) -> np.ndarray:
        """Return maps first..last-1 on all points: (last - first, n_points)."""
        out = np.full((last - first, self.n_points), self._fill, dtype=self._values.dtype)
        out[:, self._keep] = self._values[self._rows[self._keep], first:last].T
        return out

    def points(self, first: int, last: int) -> np.ndarray:
        """Return all maps on points first..last-1: (last - first, n_maps)."""
        out = np.full((last - first, self.n_maps), self._fill, dtype=self._values.dtype)
        keep = self._keep[first:last]
        out[keep] = self._values[self._rows[first:last][keep]]
        return out


def _any_finite(values: np.ndarray) -> np.ndarray:
    """Tell which rows hold a finite value, in blocks."""
    if values.dtype.kind != "f":
        return np.ones(len(values), dtype=bool)
    out = np.empty(len(values), dtype=bool)
    step = max(1, (1 << 24) // max(1, values.shape[1]))
    for first in range(0, len(values), step):
        out[first : first + step] = np.isfinite(values[first : first + step]).any(axis=1)
    return out


def write_maps(
    grid: Grid,
    paths: str | Path | Sequence[str | Path],
    values: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    intent: str = "map",
    fill: float = 0.0,
    labels: Mapping[int, str] | None = None,
) -> list[Path]:
    """Write maps in the format of their grid.

    Files appear under their names when complete, and the same values give the same bytes (with the same
    version of zlib). Volumes keep the qform, sform, voxel size and spatial unit of the grid's header.

    Parameters
    ----------
    grid : Grid
    paths : path, or one path a hemisphere (left, right)
        Volume: ``.nii[.gz]``. GIFTI: ``.func.gii`` or ``.label.gii``. CIFTI: ``.dscalar.nii`` for maps,
        ``.dlabel.nii`` for labels and masks.
    values : array of shape (n_points,) or (n_points, n_maps)
        Or with one row for each point of ``grid.mask``. One-dimensional values make a 3-D volume,
        two-dimensional ones a 4-D volume even with one map.
    names : sequence of str, optional
        One a map, for the formats that store them (GIFTI, CIFTI); by default the file's ``desc`` or a number.
    intent : {"map", "label", "mask"}
        Stored as float32; int16 or int32 (GIFTI: int32); uint8 (GIFTI: int32, CIFTI: int16).
    fill : float
        Written outside ``grid.mask`` and where no map has a finite value; for labels and masks always 0.
    labels : mapping from value to name, optional
        For labels; masks are named "outside" and "inside".

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    DataError
        Values, names or paths do not fit the grid.
    CannotCreateError, FileFaultError
        The folder cannot be written, the disk is full.
    """
    files = as_paths(paths)
    for path in files:
        if not path.name.endswith(_EXTENSIONS[grid.kind]):
            raise DataError(
                f"{path.name} is no name for a {grid.kind} map.", f"Use {_EXTENSIONS[grid.kind][-1]}."
            )
    values = np.asarray(values)
    series = values.ndim == 2
    values = _as_stored(values.reshape(len(values), -1), intent)
    prepared = MapValues(grid, values, fill if intent == "map" else 0, series)
    names = _map_names(names, prepared.n_maps, files[0])
    table = _label_names(values, intent, labels)
    if grid.kind == "gifti":
        write_pair(files, grid, prepared, names, intent, table)
    elif grid.kind == "cifti":
        write_cifti(files[0], grid, prepared, names, intent, table)
    else:
        write_volume(files[0], grid, prepared, values.dtype.type)
    return list(files)


def _as_stored(values: np.ndarray, intent: str) -> np.ndarray:
    """Convert to the stored type: float32, int16 (int32 where needed) or uint8."""
    if intent == "map":
        return values.astype(np.float32, copy=False)
    if intent not in ("label", "mask"):
        raise UsageError(f"Unknown intent {intent!r}.", "Use map, label or mask.")
    whole = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) if values.dtype.kind == "f" else values
    if intent == "mask":
        return (whole > 0.5).astype(np.uint8)
    whole = np.rint(whole)
    fits = whole.size == 0 or (whole.min() >= -(2**15) and whole.max() < 2**15)
    return whole.astype(np.int16 if fits else np.int32)


def _map_names(names: Sequence[str] | None, n_maps: int, path: Path) -> list[str]:
    if names is None:
        return [path.name.split(".")[0]] if n_maps == 1 else [f"{k + 1}" for k in range(n_maps)]
    if len(names) != n_maps:
        raise DataError(f"{len(names)} names for {n_maps} maps of {path.name}.", "Give one name a map.")
    return [str(name) for name in names]


def _label_names(values: np.ndarray, intent: str, labels: Mapping[int, str] | None) -> dict[int, str] | None:
    if intent == "map":
        return None
    if intent == "mask":
        return {0: "outside", 1: "inside"}
    found = {int(v): str(int(v)) for v in np.unique(values)} | {0: "???"}
    return dict(sorted((found | {int(k): str(v) for k, v in (labels or {}).items()}).items()))


def read_maps(paths: str | Path | Iterable[str | Path], grid: Grid | None = None) -> tuple[Grid, np.ndarray]:
    """Read maps back.

    Parameters
    ----------
    paths : path, or the paths of both hemispheres
    grid : Grid, optional
        The grid that the maps must be on; returned as it is, with its mask.

    Returns
    -------
    grid : Grid
    values : ndarray of float32, shape (n_points,) for one map or (n_points, n_maps)

    Raises
    ------
    NoInputError, FileFaultError
        A file is missing, truncated or corrupt.
    DataError
        The maps are on another grid.
    """
    files = as_paths(paths)
    kind = kind_of(files)
    if kind == "gifti":
        found, files, n_maps, _ = open_pair(files)
    elif kind == "cifti":
        found, n_maps, _, _ = open_cifti(files[0])
    else:
        found, shape, _ = open_volume(files[0])
        n_maps = int(np.prod(shape[3:], dtype=int))
    difference = grid_difference(found, grid) if grid is not None else ""
    if difference:
        raise DataError(
            f"{files[0]} is on another grid than the data: {difference}.", "Resample one of the two first."
        )
    if kind == "gifti":
        values = read_pair(files, found, n_maps, None)
    else:
        values = (read_cifti if kind == "cifti" else read_volume)(files[0], None)
    return (grid or found), (values[:, 0].copy() if n_maps == 1 else values)


def read_mask(paths: str | Path | Iterable[str | Path], grid: Grid) -> np.ndarray:
    """Read a mask on the grid of the data.

    Parameters
    ----------
    paths : path, or the paths of both hemispheres; none at all means every point
    grid : Grid
        Of the BOLD data.

    Returns
    -------
    ndarray of bool, shape (n_points,)
        True where the mask is above 0.5.

    Raises
    ------
    DataError
        The mask is on another grid, has several maps, or covers nothing.
    """
    files = as_paths(paths)
    if not files:
        return np.ones(grid.n_points, dtype=bool)
    _, values = read_maps(files, grid)
    if values.ndim != 1:
        raise DataError(f"{files[0]} has {values.shape[1]} maps.", "A mask has one.")
    mask = np.nan_to_num(values, nan=0.0) > 0.5
    if not mask.any():
        raise DataError(f"The mask {files[0]} covers nothing.", "Check it, or preprocess this run again.")
    return mask
