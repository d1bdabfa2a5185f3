# SPDX-License-Identifier: Apache-2.0
"""One sparse matrix from the voxels of a run to the points of a surface space.

    y = C R V x

V samples the volume between white and pial surface, R takes the mesh to the target by the registered spheres,
C takes out the medial wall.  Vertices that no voxel reaches, and those outside the cortex of the
participant's own mask, take no part: the rows of R are scaled to sum 1 without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from conform_app.bids.surfaceplan import HemiPlan
from conform_app.errors import DataError
from conform_app.images.grid import Grid
from conform_app.images.surfaces import Surface, first_vertices, read_surface, read_vertices
from conform_app.images.templates import SphereFile
from conform_app.surface import SphereResampler, VolumeToSurface
from conform_app.surface import midthickness as between

_SPHERE_RADIUS = 100.0
PointMap = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Hemisphere:
    """A hemisphere, opened.

    Attributes
    ----------
    half : HemiPlan
    white, pial, middle : (coordinates mm, triangles)
    own_cortex : ndarray of bool, shape (n_source,)
    resampler : SphereResampler or None
        From the participant's mesh to the target's; None where they are the same.
    target : (coordinates mm, triangles)
        The participant's middle surface on the target mesh.
    cortex : ndarray of bool, shape (n_target,)
        The target without medial wall, as far as a template or mask says.
    """

    half: HemiPlan
    white: Surface
    pial: Surface
    middle: Surface
    own_cortex: np.ndarray
    resampler: SphereResampler | None
    target: Surface
    cortex: np.ndarray

    def to_target(self, values: np.ndarray) -> np.ndarray:
        """Carry values of vertices, (n_source,) to (n_target,)."""
        return values if self.resampler is None else self.resampler.apply(values, dtype=np.float64)


def open_hemisphere(half: HemiPlan) -> Hemisphere:
    """Read the files of a hemisphere and build its way to the target mesh."""
    white, pial = read_surface(half.white), read_surface(half.pial)
    middle = read_surface(half.midthickness) if half.midthickness else tuple(between(white, pial))
    n_source = len(white[0])
    own = read_vertices(half.cortex, n_source) if half.cortex else np.ones(n_source, dtype=bool)
    if half.target is None:
        return Hemisphere(half, white, pial, middle, own, None, middle, own)
    source_sphere, target_sphere = read_surface(half.sphere), open_sphere(half.target)
    try:
        plain = SphereResampler(source_sphere, target_sphere, method="barycentric")
        target = (plain.matrix @ middle[0], target_sphere[1])
        resampler = SphereResampler(source_sphere, target_sphere, source_area=middle, target_area=target)
    except DataError as error:
        raise DataError(f"{half.sphere}: {error.message}", error.remedy) from error
    return Hemisphere(half, white, pial, middle, own, resampler, target, _wall(half, target_sphere))


def open_sphere(recipe: SphereFile) -> Surface:
    """Read a sphere in the coordinates wanted (see `SphereFile`)."""
    sphere = first_vertices(read_surface(recipe.path), recipe.n_vertices)
    if len(sphere[0]) != recipe.n_vertices:
        raise DataError(
            f"{recipe.path} has {len(sphere[0])} vertices, not {recipe.n_vertices}.",
            "Remove the file and fetch the template again.",
        )
    if not recipe.through:
        return sphere
    here, there = (read_surface(path) for path in recipe.through)
    points = SphereResampler(here, sphere, method="barycentric").matrix @ there[0]
    return points * (_SPHERE_RADIUS / np.linalg.norm(points, axis=1, keepdims=True)), sphere[1]


def _wall(half: HemiPlan, target_sphere: Surface) -> np.ndarray:
    """The target's cortex: the template's mask, brought over from the mesh it lies on."""
    if half.wall is None or half.wall_sphere is None:
        return np.ones(half.n_target, dtype=bool)
    sphere = open_sphere(half.wall_sphere)
    mask = read_vertices(half.wall, len(sphere[0]))
    if half.wall_sphere == half.target:
        return mask
    carried = SphereResampler(sphere, target_sphere, method="nearest")
    return carried.apply(mask.astype(np.float64), dtype=np.float64) > 0.5


def sample_volume(
    side: Hemisphere, grid: Grid, mask: np.ndarray, to_volume: PointMap, name: str
) -> VolumeToSurface:
    """Build V for one grid: the ribbon of the cortex, with the voxel at the middle surface where it has gaps.

    The polyhedra of a dense mesh can slip between the pieces that voxels are cut into, though the vertex lies
    amid data.

    Parameters
    ----------
    side : Hemisphere
    grid : Grid
        Of the volume.
    mask : ndarray of bool, shape (n_points,)
        Voxels that may contribute.
    to_volume : callable
        From the surfaces' coordinates to the volume's, points (n, 3) in mm.
    name : str
        The volume's file, for messages.
    """
    white, pial, middle = ((to_volume(xyz), faces) for xyz, faces in (side.white, side.pial, side.middle))
    try:
        return VolumeToSurface(
            white,
            pial,
            grid.shape,
            grid.affine,
            mask=np.asarray(mask, dtype=np.uint8).reshape(grid.shape),
            midthickness=middle[0],
            fill_gaps=True,
            vertex_mask=side.own_cortex,
        )
    except DataError as error:
        raise DataError(
            f"{Path(name).name} on {side.half.white} and {Path(side.half.pial).name}: {error.message}",
            error.remedy,
        ) from error


def volume_matrix(side: Hemisphere, sampling: VolumeToSurface) -> sparse.csr_matrix:
    """Build C R V for one grid: (n_target, n_points), rows of sum 1, or empty."""
    matrix = sampling.matrix
    if side.resampler is not None:
        matrix = side.resampler.masked(sampling.valid).matrix @ matrix
    matrix = (sparse.diags(side.cortex.astype(np.float64)) @ matrix).tocsr()
    matrix.eliminate_zeros()
    return matrix
