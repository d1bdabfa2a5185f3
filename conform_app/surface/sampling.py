# SPDX-License-Identifier: Apache-2.0
"""Weights of voxels at points: nearest voxel, trilinear, cubic B-splines, and means over many points.

At point x (in voxels) a volume is ``sum over voxels i of b(x_1 - i_1) b(x_2 - i_2) b(x_3 - i_3) c_i`` with

* nearest:   b = 1 on [-1/2, 1/2), c = the data
* trilinear: b(t) = 1 - |t| on [-1, 1], c = the data
* cubic:     b = the cubic B-spline, c = coefficients for which the sum passes through the data (a recursive
             filter over the whole volume, reflected at its faces; `spline_coefficients`)

Points outside the box of voxel centres have no value (nearest: outside the voxels); 0.01 voxel is forgiven.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

_EDGE = 0.01  # voxels outside the outermost centres that still count as inside, as in Connectome Workbench
# Powers of the reciprocal of the plastic number: multiples of the two, modulo 1, fill the unit square evenly.
_STEPS = (0.7548776662466927, 0.5698402909980532)


def point_weights(
    points: np.ndarray, shape: tuple[int, int, int], method: str
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Voxel weights at points.

    Parameters
    ----------
    points : ndarray, (n_points, 3)
        In voxels (centres are the integers).
    shape : tuple of int
        Voxels along each axis.
    method : {"nearest", "trilinear", "cubic"}
        Which b.

    Returns
    -------
    weights : csr_matrix, (n_points, n_voxels) float64
        Voxels in C order; rows of points outside are empty.
    inside : ndarray, (n_points,) bool
        Points inside the volume.
    """
    size = np.array(shape)
    if method == "nearest":
        at = np.floor(points + 0.5).astype(np.int64)
        inside = ((at >= 0) & (at < size)).all(1)
        one_axis = [(at[inside][:, k, None], np.ones((int(inside.sum()), 1))) for k in range(3)]
    else:
        inside = ((points >= -_EDGE) & (points <= size - 1 + _EDGE)).all(1)
        x = np.clip(points[inside], 0, size - 1)
        along = _linear if method == "trilinear" else _cubic
        one_axis = [along(x[:, k], shape[k]) for k in range(3)]
    (i, wi), (j, wj), (k, wk) = one_axis
    n = len(i)
    voxel = (i[:, :, None, None] * shape[1] + j[:, None, :, None]) * shape[2] + k[:, None, None, :]
    weight = wi[:, :, None, None] * wj[:, None, :, None] * wk[:, None, None, :]
    row = np.repeat(np.flatnonzero(inside), voxel[0].size if n else 0)
    weights = sparse.csr_matrix((weight.ravel(), (row, voxel.ravel())), (len(points), int(np.prod(shape))))
    weights.eliminate_zeros()
    return weights, inside


def _linear(x: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbours along one axis and their weights, (n_points, 2) each."""
    low = np.clip(np.floor(x).astype(np.int64), 0, max(n - 2, 0))
    t = x - low
    return np.stack([low, np.minimum(low + 1, n - 1)], 1), np.stack([1 - t, t], 1)


def _cubic(x: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Four neighbours along one axis, reflected at the faces, and their B-spline weights."""
    low = np.floor(x).astype(np.int64)
    t = x - low
    weight = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1)
    at = np.mod(low[:, None] + np.arange(-1, 3), 2 * n)
    return np.where(at < n, at, 2 * n - 1 - at), weight / 6


def spline_coefficients(data: np.ndarray) -> np.ndarray:
    """B-spline coefficients (float64) of each volume of data (X, Y, Z, T)."""
    from scipy.ndimage import spline_filter1d

    out = np.asarray(data, np.float64)
    for axis in range(3):
        if out.shape[axis] > 1:
            out = spline_filter1d(out, 3, axis=axis, mode="reflect")
    return out


def mean_weights(points: np.ndarray, shape: tuple[int, int, int]) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Trilinear weights averaged over the points of each vertex that are inside.

    Parameters
    ----------
    points : ndarray, (n_vertices, n_samples, 3)
        In voxels.
    shape : tuple of int
        Voxels along each axis.

    Returns
    -------
    weights : csr_matrix, (n_vertices, n_voxels) float64
        Sums of trilinear weights; not normalised.
    inside : ndarray, (n_vertices,) bool
        Vertices with a point inside the volume.
    """
    n, k = points.shape[:2]
    weights, inside = point_weights(points.reshape(-1, 3), shape, "trilinear")
    gather = sparse.csr_matrix((np.full(n * k, 1 / k), (np.repeat(np.arange(n), k), np.arange(n * k))))
    return (gather @ weights).tocsr(), inside.reshape(n, k).any(1)


def line_points(middle: np.ndarray, normals: np.ndarray, radius: float, n: int) -> np.ndarray:
    """Points (n_vertices, n, 3) mm along each normal, from ``radius`` outside to ``radius`` inside."""
    return middle[:, None] + np.linspace(radius, -radius, n)[:, None] * normals[:, None]


def depth_points(white: np.ndarray, pial: np.ndarray, n: int) -> np.ndarray:
    """Points (n_vertices, n, 3) mm, evenly from pial to white, both included."""
    return pial[:, None] + np.linspace(0, 1, n)[:, None] * (white - pial)[:, None]


def ball_points(middle: np.ndarray, radius: float, cloud: np.ndarray) -> np.ndarray:
    """The cloud (n, 3), points of the unit ball, around each vertex, times radius: (n_vertices, n, 3) mm."""
    return middle[:, None] + radius * cloud[None]


def even_ball(n: int) -> np.ndarray:
    """Points (n, 3) that fill the unit ball evenly, the same ones every time."""
    k = np.arange(n) + 0.5
    height, turn = 2 * np.mod(k * _STEPS[0], 1.0) - 1, 2 * np.pi * np.mod(k * _STEPS[1], 1.0)
    flat = np.sqrt(1 - height**2)
    return np.cbrt(k / n)[:, None] * np.stack([flat * np.cos(turn), flat * np.sin(turn), height], 1)
