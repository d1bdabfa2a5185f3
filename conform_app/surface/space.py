# SPDX-License-Identifier: Apache-2.0
"""Do surface and volume belong together?  Checks of shapes, affine, units, overlap and mask.

An affine A maps voxel (i, j, k) to ``A (i, j, k, 1)'`` mm; a surface in metres, or in another subject's
space, is found by where its vertices fall and by how its extent compares with the volume's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conform_app.errors import DataError
from conform_app.surface.mesh import Surface, as_coordinates, as_surface, check_hemisphere, same_mesh

_FAR = 15.0  # mm, median: white and pial of one cortex are nowhere near this far apart
_SIZES = (0.05, 20.0)  # extent of a hemisphere over that of the volume: outside it the units differ


def cortex(white, pial, middle, hemisphere: str | None) -> tuple[Surface, Surface, Surface]:
    """White, pial and midthickness, checked against each other.

    Raises
    ------
    DataError
        Meshes that differ, the other hemisphere, white and pial far apart.
    """
    inner, outer = as_surface(white, "white"), as_surface(pial, "pial")
    same_mesh(inner, outer, ("white", "pial"))
    if hemisphere is not None:
        for surface, name in ((inner, "white"), (outer, "pial")):
            check_hemisphere(surface.coordinates, hemisphere, name)
    apart = float(np.median(np.linalg.norm(outer.coordinates - inner.coordinates, axis=1)))
    if apart > _FAR:
        raise DataError(
            f"White and pial surfaces lie {apart:.0f} mm apart (median over vertices).",
            "They differ in hemisphere, subject or space: use white and pial of one reconstruction.",
        )
    if middle is None:
        return inner, outer, Surface((inner.coordinates + outer.coordinates) / 2, inner.triangles)
    middle = as_coordinates(middle, "midthickness")
    if len(middle) != len(inner.coordinates):
        raise DataError(
            f"The midthickness surface has {len(middle)} vertices, white has {len(inner.coordinates)}.",
            "Use surfaces of the same subject, hemisphere and density.",
        )
    return inner, outer, Surface(middle, inner.triangles)


def volume_space(
    shape, affine
) -> tuple[tuple[int, int, int], np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Shape of three axes, the affine, and the function from mm to voxels.

    Raises
    ------
    DataError
        Fewer than three axes, an affine that is not 4 x 4, not finite or not invertible.
    """
    shape = tuple(int(n) for n in shape)[:3]
    if len(shape) < 3 or min(shape) < 1:
        raise DataError(f"A volume of shape {shape} has no three axes.", "Give (X, Y, Z) of the image.")
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError("The volume's affine is not 4 x 4 finite numbers.", "Repair the image's header.")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
        raise DataError("The volume's affine cannot be inverted.", "Repair the image's header (sform/qform).")
    inverse = np.linalg.inv(affine)
    return shape, affine, lambda points: points @ inverse[:3, :3].T + inverse[:3, 3]


def voxel_mask(mask, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The mask as (n_voxels,) bool in C order, None if there is none.

    Raises
    ------
    DataError
        Another shape, or no voxel above 0.
    """
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise DataError(
            f"The mask has shape {mask.shape}, the volume {shape}.", "Use a mask on the grid of the volume."
        )
    allowed = mask.ravel() > 0
    if not allowed.any():
        raise DataError("The mask of the volume is empty.", "Check the mask: voxels to use must be above 0.")
    return allowed


def vertex_mask_of(mask, n: int, name: str = "vertex") -> np.ndarray:
    """The mask as (n,) bool.

    Raises
    ------
    DataError
        Another number of vertices, or none above 0.
    """
    mask = np.asarray(mask)
    if mask.shape != (n,):
        raise DataError(
            f"The {name} mask has shape {mask.shape}, the mesh {n} vertices.",
            "Use a mask on the same mesh.",
        )
    keep = mask > 0
    if not keep.any():
        raise DataError(f"The {name} mask is empty.", "Check the mask: vertices with data must be above 0.")
    return keep


def check_overlap(
    surface: np.ndarray, in_voxels: np.ndarray, shape: tuple[int, int, int], affine: np.ndarray
) -> None:
    """Check that some vertices lie in the volume, and that both are in mm.

    Parameters
    ----------
    surface, in_voxels : ndarray, (n_vertices, 3)
        Midthickness in mm and in voxels.
    shape : tuple of int
        Voxels along each axis.
    affine : ndarray, (4, 4)
        Voxels to mm.

    Raises
    ------
    DataError
        Extents so different that the units must differ; no vertex in the volume.
    """
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape])).reshape(3, -1).T
    box = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = surface.min(0), surface.max(0)
    spans = (float((high - low).max()), float(np.ptp(box, axis=0).max()))
    where = f"surface {_box(low, high)}, volume {_box(box.min(0), box.max(0))}"
    ratio = spans[0] / spans[1]
    if not _SIZES[0] <= ratio <= _SIZES[1]:
        raise DataError(
            f"The surface is {spans[0]:.4g} wide and the volume {spans[1]:.4g}: {where}.",
            "Both must be in mm; one of them looks to be in another unit (metres, micrometres or voxels).",
        )
    inside = ((in_voxels >= -0.5) & (in_voxels <= np.array(shape) - 0.5)).all(1)
    if not inside.any():
        raise DataError(
            f"The volume does not overlap the cortex: {where}.",
            "Use surfaces in the space of the volume (T1w surfaces with space-T1w BOLD), or the transform.",
        )


def _box(low: np.ndarray, high: np.ndarray) -> str:
    return " x ".join(f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True)) + " mm"
