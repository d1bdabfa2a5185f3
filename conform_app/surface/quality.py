# SPDX-License-Identifier: Apache-2.0
"""How good is a registration, and how much of the cortex did the volume see?

* Areal distortion at vertex v: ``log2(A'_v / A_v)``; 0 is none, 1 is twice the area.
* Edge distortion: mean over the edges at v of ``|log2(l / l')|``, which counts shear too.
* Coverage: share of the points between white and pial at v that lie in voxels of the mask, and its mean over
  the cortex weighed by area.

The distortions equal ``wb_command -surface-distortion`` without and with ``-edge-method``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conform_app.errors import DataError
from conform_app.surface import sampling
from conform_app.surface.mesh import Surface, as_surface, vertex_areas
from conform_app.surface.space import cortex as checked_cortex
from conform_app.surface.space import volume_space, voxel_mask

_DEPTHS = 5


@dataclass(frozen=True, eq=False)
class Coverage:
    """What a volume sees of one hemisphere's cortex.

    Attributes
    ----------
    share : ndarray, (n_vertices,) float64
        Of each vertex's column, from 0 (outside) to 1.
    fraction : float
        Mean of share over the cortex, weighed by vertex area.
    full, none : float
        Fraction of the cortical area seen whole, and not at all.
    """

    share: np.ndarray
    fraction: float
    full: float
    none: float


def areal_distortion(reference, distorted) -> np.ndarray:
    """Base-2 logarithm of the ratio of vertex areas.

    Parameters
    ----------
    reference, distorted : pair of array_like
        Surfaces with the same mesh, mm: for a registration the subject's sphere before and after.

    Returns
    -------
    ndarray, (n_vertices,) float64
        NaN where an area is 0.

    Raises
    ------
    DataError
        Different numbers of vertices.
    """
    reference, distorted = _pair(reference, distorted)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.log2(vertex_areas(distorted) / vertex_areas(reference))
    return np.where(np.isfinite(out), out, np.nan)


def edge_distortion(reference, distorted) -> np.ndarray:
    """Mean absolute base-2 logarithm of the ratio of the lengths of the edges at each vertex.

    Parameters
    ----------
    reference, distorted : pair of array_like
        Surfaces with the same mesh, mm.

    Returns
    -------
    ndarray, (n_vertices,) float64
        NaN where an edge has no length.

    Raises
    ------
    DataError
        Different numbers of vertices.
    """
    reference, distorted = _pair(reference, distorted)
    n = len(reference.coordinates)
    ends = np.sort(np.concatenate([reference.triangles[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1)
    low, high = np.divmod(np.unique(ends[:, 0] * n + ends[:, 1]), n)
    before, after = (
        np.linalg.norm(s.coordinates[low] - s.coordinates[high], axis=1) for s in (reference, distorted)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.abs(np.log2(before / after))
        total, count = (
            np.bincount(low, w, minlength=n) + np.bincount(high, w, minlength=n)
            for w in (change, np.ones(len(low)))
        )
        out = total / count
    return np.where(np.isfinite(out), out, np.nan)


def volume_coverage(white, pial, volume_shape, affine, *, mask=None, cortex=None) -> Coverage:
    """How much of the cortex lies in the volume, or in its mask.

    Parameters
    ----------
    white, pial : pair of array_like
        Surfaces, mm.
    volume_shape : tuple of int
        (X, Y, Z).
    affine : array_like, (4, 4)
        Voxel indices to mm.
    mask : array_like, (X, Y, Z), optional
        Voxels with data: those above 0.
    cortex : array_like, (n_vertices,) bool, optional
        Vertices to count: without the medial wall.

    Returns
    -------
    Coverage
        Share of each vertex and fractions of area.

    Raises
    ------
    DataError
        As `VolumeToSurface`; but no overlap gives coverage 0.
    """
    inner, outer, middle = checked_cortex(white, pial, None, None)
    shape, _, to_voxels = volume_space(volume_shape, affine)
    allowed = voxel_mask(mask, shape)
    n = len(inner.coordinates)
    counted = np.ones(n, bool) if cortex is None else np.asarray(cortex) > 0
    if counted.shape != (n,) or not counted.any():
        raise DataError(
            f"The cortex mask has shape {counted.shape}, {int(counted.sum())} above 0; the surface has {n}.",
            "Give (n_vertices,) with cortex above 0.",
        )
    points = to_voxels(sampling.depth_points(inner.coordinates, outer.coordinates, _DEPTHS)).reshape(-1, 3)
    home, inside = sampling.point_weights(points, shape, "nearest")
    seen = inside if allowed is None else home @ allowed > 0
    share = seen.reshape(n, _DEPTHS).mean(1)
    areas = np.where(counted, vertex_areas(middle), 0.0)
    areas /= areas.sum()
    return Coverage(share, float(areas @ share), float(areas @ (share == 1)), float(areas @ (share == 0)))


def _pair(reference, distorted) -> tuple[Surface, Surface]:
    reference, distorted = as_surface(reference, "reference"), as_surface(distorted, "distorted")
    n, m = len(reference.coordinates), len(distorted.coordinates)
    if n != m:
        raise DataError(
            f"The reference surface has {n} vertices, the distorted one {m}.", "Use two surfaces of one mesh."
        )
    return reference, distorted
