# SPDX-License-Identifier: Apache-2.0
"""How much of each voxel lies in the piece of cortex that belongs to a vertex.

The piece of vertex v is a polyhedron: the triangles around v on the inner surface, the same on the outer
surface, and a side wall over each edge opposite v.  A wall's four corners lie in no plane; it is split along
one diagonal or along the other.  Both splits of all walls at once give two polyhedra A and B; a point between
the two splits of any wall (in the wall's tetrahedron) counts half.  With ``thin`` columns only the third of
each triangle next to v is used (edge midpoints and centroids), so that pieces of neighbours do not overlap.

Each voxel is split into s x s x s pieces, and the weight of a voxel is the mean over its piece centres:

    w(v, voxel) = sum over centres c of m(c) / s^3,   m = 1/2 in a tetrahedron, else in_A = in_B.

In one tetrahedron (or three), in_A and in_B differ, so their mean is m; in two they agree, and m is set.

Inside is found by scan conversion.  In coordinates where the centres are the integers, every face is drawn
into the (i, j) plane once, with the height k at which the line of each integer (i, j) meets it.  The meetings
of one polyhedron with one line, in order of height, are by turns an entrance and an exit (parity), and the
integers between are its centres.  The work grows with the number of meetings, not with vertices x voxels.

Method: the ribbon mapping of Connectome Workbench (Glasser et al. 2013, NeuroImage 80:105), written from its
documentation.  Everything here is float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from conform_app.errors import DataError

_BLOCK = 4_000_000  # grid points of bounding boxes that are looked at in one step
_USED = 4_000_000  # the same of all faces of all polyhedra that are cut in one go: about 0.3 GB


@dataclass(frozen=True, eq=False)
class _Walls:
    """Faces of all polyhedra: corners of triangles, and which polyhedra each bounds, in which state.

    Attributes
    ----------
    corners : ndarray, (n_faces, 3, 3) float64
        Triangles in piece coordinates (piece centres are the integers).
    face, owner : ndarray, (n_uses,) int64
        Face ``face[u]`` bounds the polyhedron of vertex ``owner[u]``.
    state : ndarray, (n_uses,) int8
        0: in A alone, 1: in B alone, 2: in both.
    wall : ndarray, (n_faces,) int64
        Number of the wall (tetrahedron) that a face belongs to, -1 for caps.
    """

    corners: np.ndarray
    face: np.ndarray
    owner: np.ndarray
    state: np.ndarray
    wall: np.ndarray


def ribbon_weights(
    inner: np.ndarray,
    outer: np.ndarray,
    triangles: np.ndarray,
    shape: tuple[int, int, int],
    subdivisions: int = 3,
    thin: bool = False,
) -> sparse.csr_matrix:
    """Fraction of each voxel inside the polyhedron of each vertex.

    Parameters
    ----------
    inner, outer : ndarray, (n_vertices, 3)
        White and pial coordinates in voxels (voxel centres are the integers).
    triangles : ndarray, (n_triangles, 3)
        Vertices of each triangle, the same for both surfaces.
    shape : tuple of int
        Voxels along each axis.
    subdivisions : int
        Pieces along each edge of a voxel.
    thin : bool
        Polyhedra that do not overlap.

    Returns
    -------
    csr_matrix, (n_vertices, n_voxels) float64
        Voxels in C order; not normalised.
    """
    s = subdivisions
    fine_in, fine_out = (s * (x + 0.5) - 0.5 for x in (inner, outer))
    walls = _thin_walls(fine_in, fine_out, triangles) if thin else _thick_walls(fine_in, fine_out, triangles)
    size = len(inner), int(np.prod(shape))
    parts = []
    for vertices in _blocks(walls, fine_in, (s * shape[0], s * shape[1])):
        vertex, voxel, weight = _cut(_only(walls, vertices), shape, s)
        parts.append(sparse.csr_matrix((weight, (vertex, voxel)), size).tocoo())
    row, column, weight = (np.concatenate([getattr(p, of) for p in parts]) for of in ("row", "col", "data"))
    return sparse.csr_matrix((weight, (row, column)), size)


def _blocks(walls: _Walls, points: np.ndarray, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Vertices side by side, as many at a time as memory allows: masks (n_vertices,) bool."""
    _, _, n_i, n_j = _boxes(walls.corners, shape)
    cost = np.bincount(walls.owner, (n_i * n_j)[walls.face], minlength=len(points))
    order = np.argsort(points[:, np.ptp(points, axis=0).argmax()], kind="stable")
    number = np.empty(len(points), np.int64)
    number[order] = np.cumsum(cost[order]) // _USED
    for block in np.unique(number[walls.owner]):
        yield number == block


def _only(walls: _Walls, vertices: np.ndarray) -> _Walls:
    """The polyhedra of some vertices (mask)."""
    if vertices.all():
        return walls
    use = vertices[walls.owner]
    kept = np.zeros(len(walls.corners), bool)
    kept[walls.face[use]] = True
    face = (np.cumsum(kept) - 1)[walls.face[use]]
    return _Walls(walls.corners[kept], face, walls.owner[use], walls.state[use], walls.wall[kept])


def _cut(walls: _Walls, shape: tuple[int, int, int], s: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex, voxel and weight of every piece inside a polyhedron; those of one voxel are to be summed."""
    face, line, height = _meetings(walls.corners, (s * shape[0], s * shape[1]))
    depth, lines = s * shape[2], s * s * shape[0] * shape[1]
    halves = _in_two_tetrahedra(walls, face, line, height, lines, depth)
    owner, line, height, state = _uses(walls, face, line, height)
    column = owner * lines + line
    runs = [_inside(column[use], height[use], depth) for use in (state != 1, state != 0)]
    vertex, voxel = (
        np.concatenate(p) for p in zip(*(_voxels(run, lines, shape, s) for run in runs), strict=True)
    )
    extra = _voxels((halves // depth, halves % depth, np.ones_like(halves)), lines, shape, s)
    half = np.where(_among(halves, runs[0], depth), -0.5, 0.5)
    weights = np.concatenate([np.full(len(vertex), 0.5), half]) / s**3
    return np.concatenate([vertex, extra[0]]), np.concatenate([voxel, extra[1]]), weights


def _thick_walls(inner: np.ndarray, outer: np.ndarray, triangles: np.ndarray) -> _Walls:
    """Polyhedra of whole triangles: three vertices share a cap, the two beside an edge its side wall."""
    m = len(triangles)
    edges, which, count = _edges(triangles)
    p, q = edges.T
    corners = np.concatenate(
        [inner[triangles], outer[triangles], *_split(inner[p], inner[q], outer[p], outer[q])]
    )
    # Walls over the edge opposite each corner.  Round v a wall runs from a to b, and A splits every wall from
    # its first inner corner to its second outer one; edges are stored low vertex first, hence the comparison.
    a, b = (np.concatenate([triangles[:, k] for k in order]) for order in ((1, 2, 0), (2, 0, 1)))
    opposite = triangles.T.ravel()
    # At the rim of an open mesh the wall over the rim closes the polyhedra of both its ends.
    rim = np.flatnonzero(count == 1)
    wall = np.concatenate([which, rim, rim])
    owner = np.concatenate([opposite, p[rim], q[rim]])
    flips = np.concatenate([a > b, np.zeros(2 * len(rim), bool)])
    caps = np.tile(np.arange(m), 3)
    face = [caps, m + caps] + [2 * m + wall + k * len(edges) for k in range(4)]
    state = [np.full(6 * m, 2), flips, flips, ~flips, ~flips]
    owners = [opposite, opposite] + [owner] * 4
    number = np.concatenate([np.full(2 * m, -1), np.tile(np.arange(len(edges)), 4)])
    return _Walls(
        corners, np.concatenate(face), np.concatenate(owners), np.concatenate(state).astype(np.int8), number
    )


def _thin_walls(inner: np.ndarray, outer: np.ndarray, triangles: np.ndarray) -> _Walls:
    """Polyhedra of the part of each triangle next to its vertex; walls stand on midpoint-centroid lines."""
    corners: list[np.ndarray] = []
    uses: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    numbers: list[np.ndarray] = []
    total = n_walls = 0

    def add(faces: np.ndarray, *owners: tuple[np.ndarray, int], of_wall: bool = False) -> None:
        nonlocal total
        for of, state in owners:
            uses.append((total + np.arange(len(faces)), of, np.full(len(faces), state)))
        corners.append(faces)
        numbers.append(n_walls + np.arange(len(faces)) if of_wall else np.full(len(faces), -1))
        total += len(faces)

    surfaces = (inner, outer)
    centre = [x[triangles].mean(1) for x in surfaces]
    for k in range(3):
        v, w = triangles[:, k], triangles[:, (k + 1) % 3]
        middle = [(x[v] + x[w]) / 2 for x in surfaces]
        for x, mid, cen in zip(surfaces, middle, centre, strict=True):
            for of in (v, w):
                add(np.stack([x[of], mid, cen], 1), (of, 2))
        # Round v the wall runs from the midpoint to the centroid, round w the other way.
        for side, state in zip(_split(middle[0], centre[0], middle[1], centre[1]), (0, 0, 1, 1), strict=True):
            add(side, (v, state), (w, 1 - state), of_wall=True)
        n_walls += len(v)
    edges, _, count = _edges(triangles)
    p, q = edges[count == 1].T
    for of, to in ((p, q), (q, p)):
        half = [(x[of] + x[to]) / 2 for x in surfaces]
        for side, state in zip(_split(inner[of], half[0], outer[of], half[1]), (0, 0, 1, 1), strict=True):
            add(side, (of, state), of_wall=True)
        n_walls += len(of)
    face, owner, state = (np.concatenate(x) for x in zip(*uses, strict=True))
    return _Walls(np.concatenate(corners), face, owner, state.astype(np.int8), np.concatenate(numbers))


def _split(a_in: np.ndarray, b_in: np.ndarray, a_out: np.ndarray, b_out: np.ndarray) -> list[np.ndarray]:
    """Triangles of walls from a to b: two split from a-in to b-out, then two split from b-in to a-out."""
    triples = ((a_in, b_in, b_out), (a_in, b_out, a_out), (a_in, b_in, a_out), (b_in, b_out, a_out))
    return [np.stack(t, 1) for t in triples]


def _edges(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges (low vertex first), the edge opposite corner 0 of all, then 1, 2, and triangles per edge."""
    a, b = (np.concatenate([triangles[:, k] for k in order]) for order in ((1, 2, 0), (2, 0, 1)))
    n = int(triangles.max()) + 1
    key, which, count = np.unique(
        np.minimum(a, b) * n + np.maximum(a, b), return_inverse=True, return_counts=True
    )
    if count.max() > 2:
        raise DataError(
            f"{int((count > 2).sum())} edges of the surfaces have more than two triangles.",
            "Repair the mesh: each edge of a cortical surface lies between two triangles.",
        )
    return np.stack([key // n, key % n], 1), which.ravel(), count


def _meetings(corners: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the line through each integer (i, j), running along k, meets each face.

    Returns the face, the line (``i * shape[1] + j``) and the height k, (n_meetings,) each, ordered by face.
    """
    i0, j0, n_i, n_j = _boxes(corners, shape)
    count = n_i * n_j
    busy = np.flatnonzero(count)
    ends = np.cumsum(count[busy])
    cuts = np.searchsorted(ends, np.arange(_BLOCK, ends[-1], _BLOCK)) if len(ends) else []
    out = []
    for part in np.split(busy, cuts):
        n = count[part]
        face = np.repeat(part, n)
        within = np.arange(len(face)) - np.repeat(np.cumsum(n) - n, n)
        i = i0[face] + within // n_j[face]
        j = j0[face] + within % n_j[face]
        inside, height = _height(corners, face, i, j)
        out.append((face[inside], i[inside] * shape[1] + j[inside], height))
    return tuple(np.concatenate(x) for x in zip(*out, strict=True))


def _boxes(corners: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """First i and j of the integers that each face's shadow may hold, and how many of either."""
    i0, j0 = (np.maximum(np.ceil(corners[:, :, k].min(1)), 0).astype(np.int64) for k in (0, 1))
    i1, j1 = (
        np.minimum(np.floor(corners[:, :, k].max(1)), n - 1).astype(np.int64)
        for k, n in zip((0, 1), shape, strict=True)
    )
    return i0, j0, np.maximum(i1 - i0 + 1, 0), np.maximum(j1 - j0 + 1, 0)


def _height(
    corners: np.ndarray, face: np.ndarray, i: np.ndarray, j: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which (i, j) lie in the shadow of the face, and the height of the face over those.

    The three products are twice the signed areas of (i, j) with each edge.  A point on an edge counts as
    being on its right-hand side seen along increasing (i, j), whichever face asks: of two faces that share
    an edge exactly one takes it.
    """
    sides = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        ai, aj, bi, bj = corners[face, a, 0], corners[face, a, 1], corners[face, b, 0], corners[face, b, 1]
        # Both directions of an edge must give products that are exactly opposite: order its ends first.
        swap = (ai > bi) | ((ai == bi) & (aj > bj))
        ai, bi, aj, bj = (
            np.where(swap, bi, ai),
            np.where(swap, ai, bi),
            np.where(swap, bj, aj),
            np.where(swap, aj, bj),
        )
        product = (bi - ai) * (j - aj) - (bj - aj) * (i - ai)
        sides.append((product, product > 0, swap))
    left = [positive ^ swap for _, positive, swap in sides]
    inside = (left[0] == left[1]) & (left[1] == left[2])
    keep = face[inside]
    p01, p12, p20 = (np.where(swap, -product, product)[inside] for product, _, swap in sides)
    total = p01 + p12 + p20
    flat = total == 0
    weight = np.stack([p12, p20, p01], 1) / np.where(flat, 1.0, total)[:, None]
    weight[flat] = 1 / 3
    return inside, np.einsum("nk,nk->n", weight, corners[keep, :, 2])


def _uses(
    walls: _Walls, face: np.ndarray, line: np.ndarray, height: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Meetings of the polyhedra: those of every face, repeated for each polyhedron that it bounds."""
    start = np.searchsorted(face, walls.face, "left")
    n = np.searchsorted(face, walls.face, "right") - start
    use = np.repeat(np.arange(len(n)), n)
    at = np.arange(len(use)) - np.repeat(np.cumsum(n) - n, n) + start[use]
    return walls.owner[use], line[at], height[at], walls.state[use]


_Runs = tuple[np.ndarray, np.ndarray, np.ndarray]  # column (polyhedron and line), first k, number of k's


def _inside(column: np.ndarray, height: np.ndarray, depth: int) -> _Runs:
    """Runs of piece centres inside polyhedra, in order, by the parity of the meetings in each column."""
    order = np.lexsort((height, column))
    column = column[order]
    k = np.clip(np.ceil(height[order]), 0, depth).astype(np.int64)
    # A closed polyhedron meets every line an even number of times: each two neighbours are way in, way out.
    first, n = k[0::2], k[1::2] - k[0::2]
    some = n > 0
    return column[0::2][some], first[some], n[some]


def _each(runs: _Runs) -> tuple[np.ndarray, np.ndarray]:
    """Column and k of every piece centre."""
    column, first, n = runs
    k = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n - first, n)
    return np.repeat(column, n), k


def _voxels(runs: _Runs, lines: int, shape: tuple[int, int, int], s: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertex and voxel of every piece centre."""
    column, first, n = runs
    vertex, line = np.divmod(column, lines)
    i, j = np.divmod(line, s * shape[1])
    start, k = _each((((i // s) * shape[1] + j // s) * shape[2], first, n))
    return np.repeat(vertex, n), start + k // s


def _in_two_tetrahedra(
    walls: _Walls, face: np.ndarray, line: np.ndarray, height: np.ndarray, lines: int, depth: int
) -> np.ndarray:
    """Piece centres in an even number, not 0, of the tetrahedra of a vertex's walls: ``column depth + k``."""
    wall = walls.wall[face]
    use = wall >= 0
    column, k = _each(_inside(wall[use] * lines + line[use], height[use], depth))
    wall, line = np.divmod(column, lines)
    busy = np.zeros(int(walls.wall.max()) + 1, bool)
    busy[wall] = True
    of = walls.wall[walls.face]
    owned = np.flatnonzero((of >= 0) & busy[of])
    n_vertices = int(walls.owner.max()) + 1
    # the four faces of a wall bound the same polyhedra
    of, owner = np.divmod(np.unique(of[owned] * n_vertices + walls.owner[owned]), n_vertices)
    start = np.searchsorted(of, wall, "left")
    n = np.searchsorted(of, wall, "right") - start
    at = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n - start, n)
    points = (owner[at] * lines + np.repeat(line, n)) * depth + np.repeat(k, n)
    points, count = np.unique(points, return_counts=True)
    return points[count % 2 == 0]


def _among(points: np.ndarray, runs: _Runs, depth: int) -> np.ndarray:
    """Which points (``column depth + k``) lie in runs, (n_points,) bool."""
    column, first, n = runs
    start = column * depth + first
    at = np.searchsorted(start, points, "right") - 1
    return (at >= 0) & (points < (start + n)[at])
