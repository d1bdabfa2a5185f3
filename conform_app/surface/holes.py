# SPDX-License-Identifier: Apache-2.0
"""Filling holes: vertices without a value take one from vertices near them along the surface.

Distance d is geodesic: the shortest way along edges and along the straight lines that cross one edge between
the two triangles beside it, unfolded into a plane.  A hole at vertex h becomes

* weighted: ``sum_g w_g x_g / sum_g w_g``, ``w_g = A_g / d(h, g)^n`` (A vertex areas, n = 6), over the good
  vertices g with ``d(h, g) <= c d_min``, where ``c = 49^(1 / (n - 2))``: on a plane those hold 98 % of the
  weight.  The reach is at least 1.5 mean edges and at most twice the distance asked for.
* nearest: the value of the closest good vertex.

Holes farther than the distance from any good vertex are filled only if they touch one.

Method: ``wb_command -metric-dilate``, written from its documentation and its results.  All float64.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

from conform_app.errors import DataError, UsageError
from conform_app.surface.linear import as_maps
from conform_app.surface.mesh import Surface, as_surface, vertex_areas

_HELD = 49.0  # the weight within c d_min over the weight beyond: 98 % of all
_BLOCK = 8_000_000  # distances held in one step


def dilate(
    values,
    surface,
    distance: float,
    *,
    bad=None,
    data=None,
    method: str = "weighted",
    exponent: float = 6.0,
    fill: float = np.nan,
) -> np.ndarray:
    """Fill holes in maps on a surface.

    Parameters
    ----------
    values : array_like, (n_vertices,) or (n_vertices, T)
        Maps; labels too, with method "nearest".
    surface : pair of array_like
        Anatomical surface (midthickness), mm.
    distance : float
        How far a value may be carried, mm along the surface.
    bad : array_like, (n_vertices,) bool, optional
        Vertices to fill; unless given, those where a map is not finite.
    data : array_like, (n_vertices,) bool, optional
        Vertices that may give their value (for instance cortex); the others neither give nor change,
        unless they are bad.
    method : {"weighted", "nearest"}
        As ``wb_command -metric-dilate`` without and with ``-nearest``.
    exponent : float
        n, above 2.
    fill : float
        Value of holes that nothing reaches.

    Returns
    -------
    ndarray, shape of values
        The type of values with "nearest", else float32 or float64 as values.

    Raises
    ------
    DataError
        Shapes that do not fit, no good vertex.
    UsageError
        Unknown method, distance or exponent out of range.
    """
    if method not in ("weighted", "nearest"):
        raise UsageError(f"There is no dilation method {method!r}.", "Choose weighted or nearest.")
    if not distance >= 0 or not exponent > 2:
        raise UsageError(f"distance = {distance}, exponent = {exponent}.", "Give 0 mm or more, and above 2.")
    surface = as_surface(surface, "given")
    n = len(surface.coordinates)
    maps, single = as_maps(values, n, "a surface")
    holes = ~np.isfinite(maps).all(1) if bad is None else _flags(bad, n, "bad vertices")
    good = ~holes if data is None else ~holes & _flags(data, n, "vertices with data")
    if not good.any():
        raise DataError("No vertex has a value to fill the holes with.", "Check the masks of the surface.")
    exact = maps.dtype if maps.dtype.kind == "f" and maps.dtype.itemsize >= 4 else np.float32
    out = maps.astype(maps.dtype if method == "nearest" else exact)
    holes = np.flatnonzero(holes)
    if len(holes):
        weights = hole_weights(surface, holes, good, distance, method, exponent)
        used = np.unique(weights.indices)
        filled = np.full((len(holes), maps.shape[1]), fill, np.result_type(out, np.min_scalar_type(fill)))
        some = np.diff(weights.indptr) > 0
        if method == "nearest":
            filled[some] = maps[weights.indices]
        else:
            filled[some] = (weights[:, used] @ maps[used].astype(np.float64))[some]
        out = out.astype(filled.dtype) if not some.all() and method == "nearest" else out
        out[holes] = filled
    return out[:, 0] if single else out


def hole_weights(
    surface: Surface, holes: np.ndarray, good: np.ndarray, distance: float, method: str, exponent: float
) -> sparse.csr_matrix:
    """Weights (n_holes, n_vertices) of good vertices for each hole; rows have sum 1 or are empty.

    Parameters
    ----------
    surface : Surface
        The mesh, mm.
    holes : ndarray, (n_holes,) int
        Vertices to fill.
    good : ndarray, (n_vertices,) bool
        Vertices that may give their value.
    distance, method, exponent
        As in `dilate`.

    Returns
    -------
    csr_matrix, (n_holes, n_vertices) float64
    """
    steps, edges = geodesic_graph(surface)
    from_good = sparse.diags(good.astype(np.float64))
    touching = (edges[holes] @ from_good).tocsr()  # lengths of edges to good vertices
    nearest, _, source = dijkstra(
        steps, directed=False, indices=np.flatnonzero(good), min_only=True, return_predecessors=True
    )
    nearest, source = nearest[holes], source[holes]
    far = nearest > distance
    n = len(surface.coordinates)
    if method == "nearest":
        row, column = _closest_touching(touching, far)
        row = np.concatenate([np.flatnonzero(~far), row])
        column = np.concatenate([source[~far], column])
        return sparse.csr_matrix((np.ones(len(row)), (row, column)), (len(holes), n))
    mean_edge = edges.data.mean()
    reach = np.minimum(
        np.maximum(nearest * _HELD ** (1 / (exponent - 2)), 1.5 * mean_edge), 2 * max(distance, mean_edge)
    )
    reach[far & (np.diff(touching.indptr) == 0)] = 0.0
    row, column, along = _within(steps, holes, good, reach)
    alone = np.setdiff1d(np.flatnonzero(far & (np.diff(touching.indptr) > 0)), row)
    beside = touching[alone].tocoo()
    row = np.concatenate([row, alone[beside.row]])
    column = np.concatenate([column, beside.col])
    along = np.concatenate([along, beside.data])
    # Distances relative to each hole's smallest keep the powers in range.
    least = np.full(len(holes), np.inf)
    np.minimum.at(least, row, along)
    weight = vertex_areas(surface)[column] * (least[row] / along) ** exponent
    total = np.bincount(row, weight, minlength=len(holes))
    return sparse.csr_matrix((weight / total[row], (row, column)), (len(holes), n))


def geodesic_graph(surface: Surface) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Lengths (mm) of edges and of unfolded crossings between vertices, and of edges alone; symmetric."""
    x, t = surface
    n = len(x)
    a, b, c = (np.concatenate([t[:, (k + s) % 3] for k in range(3)]) for s in (1, 2, 0))
    key = np.minimum(a, b) * n + np.maximum(a, b)
    order = np.argsort(key, kind="stable")
    low, high = np.divmod(np.unique(key), n)
    length = np.linalg.norm(x[low] - x[high], axis=1)
    pair = np.flatnonzero(key[order][1:] == key[order][:-1])
    one, other = order[pair], order[pair + 1]
    start, end = x[a[one]], x[b[one]]
    size = np.linalg.norm(end - start, axis=1)
    unit = (end - start) / np.where(size > 0, size, 1.0)[:, None]
    (x1, y1), (x2, y2) = (_beside(x[c[side]] - start, unit) for side in (one, other))
    height = np.where(y1 + y2 > 0, y1 + y2, 1.0)
    crossing = x1 + (x2 - x1) * y1 / height
    straight = (crossing > 0) & (crossing < size) & (y1 + y2 > 0)
    ends = c[one][straight], c[other][straight]
    across = np.hypot(x1 - x2, y1 + y2)[straight]
    edges = _symmetric(low, high, length, n)
    steps = _symmetric(
        np.concatenate([low, np.minimum(*ends)]),
        np.concatenate([high, np.maximum(*ends)]),
        np.concatenate([length, across]),
        n,
    )
    return steps, edges


def _beside(offset: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and away from an edge."""
    along = np.einsum("nk,nk->n", offset, unit)
    return along, np.linalg.norm(offset - along[:, None] * unit, axis=1)


def _symmetric(low: np.ndarray, high: np.ndarray, length: np.ndarray, n: int) -> sparse.csr_matrix:
    """Graph with the smallest length of each pair of vertices, both ways."""
    order = np.lexsort((length, high, low))
    low, high, length = low[order], high[order], length[order]
    first = np.flatnonzero(np.diff(low * n + high, prepend=-1))
    low, high, length = low[first], high[first], length[first]
    ends = np.concatenate([low, high]), np.concatenate([high, low])
    return sparse.csr_matrix((np.tile(length, 2), ends), (n, n))


def _closest_touching(touching: sparse.csr_matrix, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the wanted holes, those with a good neighbour, and the closest one of each."""
    row = np.repeat(np.arange(len(wanted)), np.diff(touching.indptr))
    order = np.lexsort((touching.indices, touching.data, row))
    holes, first = np.unique(row[order], return_index=True)
    keep = wanted[holes]
    return holes[keep], touching.indices[order[first]][keep]


def _within(
    steps: sparse.csr_matrix, holes: np.ndarray, good: np.ndarray, reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hole (its place in holes), good vertex and distance, for all within each hole's reach."""
    limit = float(reach.max())
    close = np.flatnonzero(
        np.isfinite(dijkstra(steps, directed=False, indices=holes, limit=limit, min_only=True))
    )
    part = steps[close][:, close]
    at, keep = np.searchsorted(close, holes), good[close]
    out = []
    step = max(1, _BLOCK // len(close))
    # Holes of about the same reach go together, so that a search is no wider than it needs to be.
    order = np.argsort(reach, kind="stable")
    for start in range(0, len(holes), step):
        block = order[start : start + step]
        d = dijkstra(part, directed=False, indices=at[block], limit=float(reach[block].max()))
        i, j = np.nonzero((d <= reach[block][:, None]) & keep)
        out.append((block[i], close[j], d[i, j]))
    return tuple(np.concatenate(x) for x in zip(*out, strict=True))


def _flags(flags, n: int, what: str) -> np.ndarray:
    flags = np.asarray(flags)
    if flags.shape != (n,):
        raise DataError(
            f"{what} have shape {flags.shape}; the surface has {n} vertices.", "Give (n_vertices,)."
        )
    return flags > 0
