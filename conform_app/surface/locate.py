# SPDX-License-Identifier: Apache-2.0
"""Where points lie on a triangle mesh: the closest triangle and the barycentric weights there.

For point p and triangle (a, b, c) the orthogonal projection onto the triangle's plane is
``u a + v b + w c``, ``u + v + w = 1``.  If u, v, w are all positive, that is the closest point; if not, the
closest point lies on an edge and one weight is 0.  Candidates are the triangles around the nearest vertices,
found with a k-d tree; where none of them has p above its inside, more vertices are asked.  A point above an
edge of a sphere, as half of those that a nested mesh adds, is above the inside of neither triangle: from the
second round on, in which both are candidates, a point that is so near to a triangle's inside is settled.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

_NEIGHBOURS = (1, 6, 32, 128)  # nearest vertices whose triangles are tried, in turn
_NEAR_EDGE = 0.01  # of a triangle's height; half the dihedral angle times the sagitta is less
_BLOCK = 1_000_000  # (point, triangle) pairs looked at in one step


def barycentric_weights(
    points: np.ndarray, coordinates: np.ndarray, triangles: np.ndarray
) -> sparse.csr_matrix:
    """Weights of the mesh's vertices at the point of the mesh closest to each point.

    Parameters
    ----------
    points : ndarray, (n_points, 3)
        Where to look.
    coordinates, triangles : ndarray, (n_vertices, 3) and (n_triangles, 3)
        The mesh.

    Returns
    -------
    csr_matrix, (n_points, n_vertices) float64
        At most three weights a row, not negative, with sum 1.
    """
    tree = cKDTree(coordinates)
    around = _triangles_of_vertices(triangles, len(coordinates))
    best = np.full(len(points), np.inf)
    found = np.zeros(len(points), np.int64)
    weights = np.zeros((len(points), 3))
    left = np.arange(len(points))
    for k in _NEIGHBOURS:
        if not len(left):
            break
        near = tree.query(points[left], k=min(k, len(coordinates)))[1].reshape(len(left), -1)
        slack = _NEAR_EDGE if k > 1 else 0.0
        settled = _closest(points, coordinates, triangles, around, left, near, (best, found, weights), slack)
        left = left[~settled]
    corners = triangles[found]
    rows = np.repeat(np.arange(len(points)), 3)
    matrix = sparse.csr_matrix((weights.ravel(), (rows, corners.ravel())), (len(points), len(coordinates)))
    matrix.eliminate_zeros()
    return matrix


def nearest_vertex(points: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Index (n_points,) of the vertex closest to each point."""
    return cKDTree(coordinates).query(points)[1]


def _triangles_of_vertices(triangles: np.ndarray, n_vertices: int) -> sparse.csr_matrix:
    """Incidence matrix (n_vertices, n_triangles)."""
    columns = np.repeat(np.arange(len(triangles)), 3)
    ones = np.ones(triangles.size, np.int8)
    return sparse.csr_matrix((ones, (triangles.ravel(), columns)), (n_vertices, len(triangles)))


def _closest(points, coordinates, triangles, around, left, near, result, slack) -> np.ndarray:
    """Best of the candidate triangles for each point that is left; True where p is above its inside."""
    best, found, weights = result
    degree = np.diff(around.indptr)
    settled = np.zeros(len(left), bool)
    step = max(1, _BLOCK // (near.shape[1] * 7))
    for start in range(0, len(left), step):
        block, vertices = left[start : start + step], near[start : start + step].ravel()
        n = degree[vertices]
        point = np.repeat(np.repeat(block, near.shape[1]), n)
        offset = np.arange(len(point)) - np.repeat(np.cumsum(n) - n, n)
        triangle = around.indices[np.repeat(around.indptr[vertices], n) + offset]
        distance, bary, inside = _project(points[point], coordinates[triangles[triangle]], slack)
        # The first of each point, ordered by distance and then by the triangle's number, is the closest.
        order = np.lexsort((triangle, distance, point))
        first = order[np.unique(point[order], return_index=True)[1]]
        p = point[first]
        settled[start + np.searchsorted(block, p[inside[first]])] = True
        better = distance[first] < best[p]
        p, first = p[better], first[better]
        best[p], found[p], weights[p] = distance[first], triangle[first], bary[first]
    return settled


def _project(
    points: np.ndarray, corners: np.ndarray, slack: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distance to each triangle, weights of the closest point, whether it is (nearly) inside."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (np.einsum("nk,nk->n", x, y) for x, y in ((ab, ab), (ab, ac), (ac, ac)))
    d20, d21 = np.einsum("nk,nk->n", ap, ab), np.einsum("nk,nk->n", ap, ac)
    area = d00 * d11 - d01 * d01
    flat = area <= 1e-14 * d00 * d11
    scale = np.where(flat, 1.0, area)
    v, w = (d11 * d20 - d01 * d21) / scale, (d00 * d21 - d01 * d20) / scale
    bary = np.stack([1 - v - w, v, w], 1)
    inside = (bary >= -slack).all(1) & ~flat
    outside = np.flatnonzero((bary < 0).any(1) | flat)
    bary[outside] = _on_edges(points[outside], corners[outside])
    gap = points - np.einsum("nk,nkd->nd", bary, corners)
    return np.einsum("nk,nk->n", gap, gap), bary, inside


def _on_edges(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric weights of the closest point on the triangle's three edges."""
    best, weights = np.full(len(points), np.inf), np.zeros((len(points), 3))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge, gap = corners[:, j] - corners[:, i], points - corners[:, i]
        length = np.einsum("nk,nk->n", edge, edge)
        along = np.einsum("nk,nk->n", gap, edge) / np.where(length > 0, length, 1.0)
        along = np.clip(along, 0.0, 1.0)
        away = gap - along[:, None] * edge
        distance = np.einsum("nk,nk->n", away, away)
        better = distance < best
        best[better] = distance[better]
        weights[better] = 0.0
        weights[better, i], weights[better, j] = 1 - along[better], along[better]
    return weights
