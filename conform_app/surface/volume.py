# SPDX-License-Identifier: Apache-2.0
"""From voxels to the cortex: one value a vertex from the voxels around its piece of cortex.

``y_v = sum over voxels of W(v, voxel) x(voxel)``, rows of W with sum 1.  How W weighs voxels:

* ribbon: fraction of the voxel inside the polyhedron between white and pial (`ribbon`)
* nearest, trilinear, cubic: at the midthickness vertex (`sampling`)
* line, ball, depth: mean of trilinear samples along the normal, in a ball, or from pial to white, with the
  sample points of nilearn's ``vol_to_surf``

A mask takes voxels out and the weights that are left are normalised anew; in cubic, where weights belong to
spline coefficients, it takes out vertices that lie in a voxel outside the mask.

Glasser et al. (2013) NeuroImage 80:105 (ribbon).  W is float64, and so are coordinates; values are float32
unless asked for.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from conform_app.errors import DataError, UsageError
from conform_app.surface import sampling
from conform_app.surface.linear import LinearMap, as_maps, normalised_rows, pack, unpack
from conform_app.surface.mesh import Surface, vertex_normals
from conform_app.surface.ribbon import ribbon_weights
from conform_app.surface.space import check_overlap, cortex, vertex_mask_of, volume_space, voxel_mask
from conform_app.surface.stored import Stored

METHODS = ("ribbon", "trilinear", "cubic", "nearest", "line", "depth", "ball")
_SAMPLES = {"line": 10, "depth": 10, "ball": 20}  # nilearn's


class VolumeToSurface(Stored):
    """Sampling of volumes on one hemisphere's cortex.

    Parameters
    ----------
    white, pial : pair of array_like
        Surfaces: coordinates (n_vertices, 3) in mm, in the volume's world space, and triangles.
    volume_shape : tuple of int
        (X, Y, Z); more axes are ignored.
    affine : array_like, (4, 4)
        Voxel indices to mm.
    method : {"ribbon", "trilinear", "cubic", "nearest", "line", "depth", "ball"}
        How voxels are weighed.  The first four equal ``wb_command -volume-to-surface-mapping`` with
        ``-ribbon-constrained``, ``-trilinear``, ``-cubic`` and ``-enclosing``.
    mask : array_like, (X, Y, Z), optional
        Voxels that may contribute: those above 0 (``-volume-roi``).
    midthickness : array_like, (n_vertices, 3), optional
        Where the other methods sample, mm; the mean of white and pial unless given.
    subdivisions : int
        Ribbon: pieces along a voxel's edge.
    thin_columns : bool
        Ribbon: polyhedra that do not overlap (``-thin-columns``).
    radius : float
        Line and ball: mm on each side.
    samples : int or array_like, optional
        Line, depth, ball: number of samples (10, 10, 20); ball also takes points (n, 3) of the unit ball.
    hemisphere : {"L", "R"}, optional
        Checked against the x-coordinates.
    fill_gaps : bool
        Ribbon: a vertex whose polyhedron slips between the pieces of voxels takes the voxel at its
        midthickness, if the mask has it.
    vertex_mask : array_like, (n_vertices,), optional
        Vertices that are sampled: those above 0 (the cortex without medial wall); the others have no value.

    Attributes
    ----------
    matrix : csr_matrix, (n_vertices, X*Y*Z) float64
        Weights, voxels in C order; for cubic those of the spline coefficients.
    valid : ndarray, (n_vertices,) bool
        Vertices that have a value.
    reach : ndarray, (n_vertices,) float64
        Sum of each row before it was normalised; ribbon: volume of the polyhedron inside the volume (and
        mask), in voxels; a filled gap counts as one piece.
    method, volume_shape, affine
        As given.

    Raises
    ------
    DataError
        Surfaces that do not belong together, lie in the other hemisphere or outside the volume; coordinates
        that are not finite; units that cannot be mm; a mask that is empty or of another shape.
    UsageError
        An unknown method, numbers out of range.
    """

    kind = "volume_to_surface"

    def __init__(
        self,
        white,
        pial,
        volume_shape,
        affine,
        *,
        method: str = "ribbon",
        mask=None,
        midthickness=None,
        subdivisions: int = 3,
        thin_columns: bool = False,
        radius: float = 3.0,
        samples=None,
        hemisphere: str | None = None,
        fill_gaps: bool = False,
        vertex_mask=None,
    ):
        if method not in METHODS:
            raise UsageError(f"There is no sampling method {method!r}.", f"Choose from {', '.join(METHODS)}.")
        if subdivisions < 1 or not radius > 0:
            raise UsageError(f"subdivisions = {subdivisions}, radius = {radius}.", "Both must be above 0.")
        inner, outer, middle = cortex(white, pial, midthickness, hemisphere)
        shape, affine, to_voxels = volume_space(volume_shape, affine)
        allowed = voxel_mask(mask, shape)
        in_voxels = to_voxels(middle.coordinates)
        check_overlap(middle.coordinates, in_voxels, shape, affine)
        if method == "ribbon":
            ends = (to_voxels(x.coordinates) for x in (inner, outer))
            weights = ribbon_weights(*ends, inner.triangles, shape, int(subdivisions), thin_columns)
        elif method in ("line", "depth", "ball"):
            points = _sample_points(method, inner, outer, middle, radius, samples)
            weights, _ = sampling.mean_weights(to_voxels(points), shape)
        else:
            weights, _ = sampling.point_weights(in_voxels, shape, method)
        if allowed is not None:
            weights = _masked(weights, allowed, in_voxels, shape, method)
        if fill_gaps and method == "ribbon":
            weights = _filled(weights, in_voxels, shape, allowed, subdivisions)
        if vertex_mask is not None:
            wanted = vertex_mask_of(vertex_mask, len(middle.coordinates))
            weights = (sparse.diags(wanted.astype(np.float64)) @ weights).tocsr()
        matrix, reach = normalised_rows(weights)
        self._set(method, shape, affine, matrix, reach)
        if not self.valid.any():
            raise DataError(
                "No vertex of the surface gets a value from the volume"
                + (" within the mask." if mask is not None else "."),
                "Check that surface, volume and mask are in one space, or raise subdivisions.",
            )

    def _set(self, method, shape, affine, matrix, reach) -> None:
        self.method, self.volume_shape, self.affine = method, shape, affine
        self.reach = reach
        self._map = LinearMap(matrix)
        self.matrix, self.valid = matrix, self._map.valid

    def apply(self, data, *, fill: float = np.nan, device: str = "cpu", dtype=np.float32) -> np.ndarray:
        """Values of volumes on the surface.

        Parameters
        ----------
        data : array_like, (X, Y, Z) or (X, Y, Z, T)
            One volume or several.
        fill : float
            Value of vertices without a value.
        device : str
            "cpu" (scipy), "cuda", or "auto": a GPU if there is one.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        ndarray, (n_vertices,) or (n_vertices, T)
            In the data's units.

        Raises
        ------
        DataError
            A volume of another shape; for cubic, values that are not finite.
        UsageError
            No such device, or a dtype other than float32 and float64.
        """
        data = np.asanyarray(data)
        if data.shape[:3] != self.volume_shape or data.ndim not in (3, 4):
            raise DataError(
                f"The volume has shape {data.shape}, the transform was made for {self.volume_shape}.",
                "Make the transform from the header of this volume.",
            )
        single = data.ndim == 3
        stack = data[..., None] if single else data
        out = self._map(self._gather(stack), stack.shape[3], fill=fill, device=device, dtype=dtype)
        return out[:, 0] if single else out

    def _gather(self, stack: np.ndarray):
        if self.method == "cubic":
            return lambda used, start, stop: _coefficients(stack[..., start:stop])[used]
        if stack.flags.c_contiguous:
            flat = stack.reshape(-1, stack.shape[3])
            return lambda used, start, stop: flat[used, start:stop]
        n = stack.shape[3]
        if stack.flags.f_contiguous:
            # NIfTI order: one volume after the other, the first axis fastest.
            flat = stack.reshape(-1, n, order="F")
            at = np.ravel_multi_index(
                np.unravel_index(self._map.used, self.volume_shape), self.volume_shape, order="F"
            )
            return lambda used, start, stop: flat.T[start:stop].take(at, axis=1).T
        i, j, k = np.unravel_index(self._map.used, self.volume_shape)
        return lambda used, start, stop: stack[i, j, k, start:stop]

    def to_volume(self, values, *, fill: float = 0.0) -> np.ndarray:
        """Values of vertices in the volume: each voxel the mean of its vertices, weighed as in `apply`.

        ``x = W' y / W' 1`` with the rows of W as they were before they were normalised, so that a vertex
        counts by how much of it lies in the voxel.

        Parameters
        ----------
        values : array_like, (n_vertices,) or (n_vertices, T)
            NaN counts as no value.
        fill : float
            Voxels that no vertex reaches.

        Returns
        -------
        ndarray, (X, Y, Z) or (X, Y, Z, T) float32
            In the values' units.

        Raises
        ------
        DataError
            Values for another number of vertices.
        UsageError
            The method is cubic, whose weights are not those of voxels.
        """
        if self.method == "cubic":
            raise UsageError("Cubic sampling has no way back to the volume.", "Use ribbon or trilinear.")
        maps, single = as_maps(values, len(self.valid), "a surface")
        back = (sparse.diags(self.reach) @ self.matrix).T.tocsr()
        known = np.isfinite(maps)
        total = back @ np.where(known, maps, 0.0)
        weight = back @ known.astype(np.float64)
        out = np.full(total.shape, fill, np.float32)
        np.divide(total, weight, out=out, where=weight > 0, casting="same_kind")
        return out.reshape(*self.volume_shape, *(() if single else (maps.shape[1],)))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The transform as plain arrays, for storage."""
        return {
            **pack(self.matrix),
            "kind": np.array(self.kind),
            "method": np.array(self.method),
            "volume_shape": np.array(self.volume_shape, np.int64),
            "affine": self.affine,
            "reach": self.reach,
        }

    @classmethod
    def from_arrays(cls, arrays) -> VolumeToSurface:
        """The transform that `to_arrays` took apart.

        Parameters
        ----------
        arrays : mapping of str to ndarray

        Returns
        -------
        VolumeToSurface

        Raises
        ------
        DataError
            Entries are missing or contradict each other.
        """
        matrix = unpack(arrays)
        missing = [k for k in ("method", "volume_shape", "affine", "reach") if k not in arrays]
        if missing:
            raise DataError(f"The stored transform lacks {', '.join(missing)}.", "Make it again.")
        shape = tuple(int(n) for n in np.asarray(arrays["volume_shape"]))
        if int(np.prod(shape)) != matrix.shape[1]:
            raise DataError("The stored transform contradicts itself.", "Make it again.")
        self = cls.__new__(cls)
        self._set(
            str(np.asarray(arrays["method"])),
            shape,
            np.asarray(arrays["affine"]),
            matrix,
            np.asarray(arrays["reach"]),
        )
        return self


def _sample_points(
    method: str, inner: Surface, outer: Surface, middle: Surface, radius: float, samples
) -> np.ndarray:
    """Points (n_vertices, n_samples, 3) in mm."""
    samples = _SAMPLES[method] if samples is None else samples
    if np.ndim(samples) == 0 and (int(samples) != samples or samples < 1):
        raise UsageError(f"samples = {samples}.", "Give a whole number above 0.")
    if method == "ball":
        cloud = sampling.even_ball(int(samples)) if np.ndim(samples) == 0 else np.asarray(samples, np.float64)
        if cloud.ndim != 2 or cloud.shape[1] != 3 or not np.isfinite(cloud).all():
            raise UsageError(f"samples of shape {cloud.shape}.", "Give points (n, 3) of the unit ball.")
        return sampling.ball_points(middle.coordinates, radius, cloud)
    if np.ndim(samples):
        raise UsageError(f'Method "{method}" takes no sample points.', "Give the number of samples.")
    if method == "depth":
        return sampling.depth_points(inner.coordinates, outer.coordinates, int(samples))
    return sampling.line_points(middle.coordinates, vertex_normals(middle), radius, int(samples))


def _masked(weights, allowed: np.ndarray, in_voxels: np.ndarray, shape, method: str) -> sparse.csr_matrix:
    """Weights without the voxels (cubic: the vertices) outside the mask."""
    if method == "cubic":
        home, _ = sampling.point_weights(in_voxels, shape, "nearest")
        return (sparse.diags((home @ allowed > 0).astype(np.float64)) @ weights).tocsr()
    return (weights @ sparse.diags(allowed.astype(np.float64))).tocsr()


def _filled(weights, in_voxels: np.ndarray, shape, allowed, subdivisions: int) -> sparse.csr_matrix:
    """Weights with one piece of the voxel at the midthickness for vertices that have none."""
    near, _ = sampling.point_weights(in_voxels, shape, "nearest")
    if allowed is not None:
        near = _masked(near, allowed, in_voxels, shape, "nearest")
    bare = np.asarray(weights.sum(axis=1)).ravel() == 0
    return (weights + sparse.diags(bare / float(subdivisions) ** 3) @ near).tocsr()


def _coefficients(stack: np.ndarray) -> np.ndarray:
    """Spline coefficients (n_voxels, T) of volumes (X, Y, Z, T)."""
    if not np.isfinite(stack).all():
        raise DataError(
            "The volume holds values that are not finite; cubic splines would carry them everywhere.",
            "Set them to 0, or use trilinear or ribbon sampling.",
        )
    return sampling.spline_coefficients(stack).reshape(-1, stack.shape[3])
