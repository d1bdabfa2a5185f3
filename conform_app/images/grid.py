# SPDX-License-Identifier: Apache-2.0
"""Where the points of an array are: the voxels of a volume, the vertices of two surfaces, or grayordinates.

A `Grid` is all that is needed to write a map back in the format and on the points it came from.  Points are
numbered 0 .. n_points - 1: voxels in C order (the last index runs fastest), the left hemisphere's vertices
before the right's, grayordinates in the order of the CIFTI BrainModelAxis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conform_app.errors import DataError

AFFINE_TOLERANCE = 1e-3  # mm; below what rounding to float32 in a header does, far below a voxel


@dataclass(frozen=True, eq=False)
class Grid:
    """The points on which data live.

    Attributes
    ----------
    kind : {"volume", "gifti", "cifti"}
        Format: NIfTI volume, GIFTI hemispheres, CIFTI grayordinates.
    shape : tuple of int
        Volume: (i, j, k). GIFTI: vertices per hemisphere. CIFTI: (n_grayordinates,).
    affine : ndarray of shape (4, 4), optional
        Voxel indices to mm (volume only).
    header : nibabel header, optional
        The volume's NIfTI header: the source of qform, sform, zooms and units of what is written.
    brain_models : nibabel BrainModelAxis, optional
        The grayordinates, exactly as in the file (CIFTI only).
    structures : tuple of str
        ("CortexLeft", "CortexRight") or one of them (GIFTI only).
    mask : ndarray of bool, shape (n_points,), optional
        The points that are analysed; None means all.
    """

    kind: str
    shape: tuple[int, ...]
    affine: np.ndarray | None = None
    header: Any = None
    brain_models: Any = None
    structures: tuple[str, ...] = ()
    mask: np.ndarray | None = None

    @property
    def n_points(self) -> int:
        """Number of points, analysed or not."""
        return int(sum(self.shape)) if self.kind == "gifti" else int(np.prod(self.shape))

    @property
    def mask_points(self) -> np.ndarray:
        """The analysed points: bool, shape (n_points,)."""
        return np.ones(self.n_points, dtype=bool) if self.mask is None else self.mask

    def with_mask(self, mask: np.ndarray | None) -> Grid:
        """Return the same grid with these analysed points.

        Parameters
        ----------
        mask : array of bool, shape (n_points,), or None for all points

        Raises
        ------
        DataError
            The mask has another number of points, or covers none.
        """
        if mask is None:
            return replace(self, mask=None)
        mask = np.array(mask, dtype=bool).ravel()
        if mask.size != self.n_points:
            raise DataError(
                f"The mask has {mask.size} points, the data have {self.n_points}.",
                "Use a mask on the grid of the BOLD images.",
            )
        if not mask.any():
            raise DataError("The mask covers no point.", "Check the brain masks of these runs.")
        mask.setflags(write=False)
        return replace(self, mask=mask)

    def describe(self) -> str:
        """Say in a few words what the grid is, for messages and reports."""
        if self.kind == "volume":
            size = " x ".join(str(n) for n in self.shape)
            zooms = np.sqrt((np.asarray(self.affine)[:3, :3] ** 2).sum(axis=0))
            return f"volume of {size} voxels of {' x '.join(f'{z:.3g}' for z in zooms)} mm"
        if self.kind == "gifti":
            return f"surface of {' + '.join(str(n) for n in self.shape)} vertices"
        return f"CIFTI of {self.shape[0]} grayordinates"


def grid_difference(a: Grid, b: Grid) -> str:
    """Say how two grids differ; empty when they are the same.

    The masks are not compared.  Affines may differ by 0.001 mm, structures and indices not at all.

    Parameters
    ----------
    a, b : Grid

    Returns
    -------
    str
        For example ``"40 x 20 x 1 against 41 x 20 x 1 voxels"``.
    """
    if a.kind != b.kind:
        return f"{a.kind} against {b.kind}"
    if a.kind == "volume":
        return _volume_difference(a, b)
    if a.kind == "gifti":
        if a.structures != b.structures:
            return f"{' + '.join(a.structures)} against {' + '.join(b.structures)}"
        if a.shape != b.shape:
            return f"{' + '.join(map(str, a.shape))} against {' + '.join(map(str, b.shape))} vertices"
        return ""
    return _cifti_difference(a, b)


def same_grid(a: Grid, b: Grid) -> bool:
    """Tell whether two grids have the same points (see `grid_difference`)."""
    return not grid_difference(a, b)


def _volume_difference(a: Grid, b: Grid) -> str:
    if a.shape != b.shape:
        return f"{' x '.join(map(str, a.shape))} against {' x '.join(map(str, b.shape))} voxels"
    gap = float(np.abs(np.asarray(a.affine) - np.asarray(b.affine)).max())
    # `not <=` so that NaN counts as a difference
    if not gap <= AFFINE_TOLERANCE:
        return f"affines that differ by up to {gap:.3g} mm"
    return ""


def _cifti_difference(a: Grid, b: Grid) -> str:
    x, y = a.brain_models, b.brain_models
    if len(x) != len(y):
        return f"{len(x)} against {len(y)} grayordinates"
    if not np.array_equal(x.name, y.name):
        return "other brain structures"
    if not np.array_equal(x.vertex, y.vertex) or dict(x.nvertices) != dict(y.nvertices):
        return "other surface vertices"
    if not np.array_equal(x.voxel, y.voxel) or x.volume_shape != y.volume_shape:
        return "other subcortical voxels"
    if x.affine is not None:
        gap = float(np.abs(x.affine - y.affine).max())
        if not gap <= AFFINE_TOLERANCE:
            return f"subcortical affines that differ by up to {gap:.3g} mm"
    return ""
