# SPDX-License-Identifier: Apache-2.0
"""Ribbon weights against the definition (is each piece centre inside the polyhedron?) and against volumes."""

import itertools
import tracemalloc

import numpy as np
import pytest
from surface_cases import icosphere

from conform_app.errors import DataError
from conform_app.surface import ribbon
from conform_app.surface.ribbon import ribbon_weights

SHAPE = (14, 13, 15)
MIDDLE = np.array([6.37, 6.11, 7.23])


def shell(inner: float = 3.1, outer: float = 5.3, levels: int = 1, seed: int = 0, twist: float = 0.0):
    """A bumpy hollow ball in voxels: inner and outer coordinates and triangles."""
    x, t = icosphere(levels)
    rng = np.random.default_rng(seed)
    factor = 1 + 0.05 * rng.standard_normal((2, len(x), 1))
    turn = np.array([[np.cos(twist), -np.sin(twist), 0], [np.sin(twist), np.cos(twist), 0], [0, 0, 1]])
    return MIDDLE + inner * factor[0] * x, MIDDLE + outer * factor[1] * x @ turn.T, t


def crosses(point: np.ndarray, direction: np.ndarray, corners: np.ndarray) -> int:
    """Triangles (n, 3, 3) that the ray from the point meets, by solving for where it meets their planes."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    system = np.stack([b - a, c - a, np.broadcast_to(-direction, a.shape)], axis=2)
    u, v, t = np.linalg.solve(system, (point - a)[:, :, None])[:, :, 0].T
    return int(((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)).sum())


def column(inner, outer, triangles, vertex: int, state: int) -> np.ndarray:
    """Faces of the polyhedron of a vertex: caps, and walls split along diagonal 0 or 1, going round it."""
    faces = []
    for t in triangles[(triangles == vertex).any(1)]:
        a, b = np.roll(t, -int(np.flatnonzero(t == vertex)[0]))[1:]
        faces += [inner[t], outer[t]]
        if state == 0:
            faces += [(inner[a], inner[b], outer[b]), (inner[a], outer[b], outer[a])]
        else:
            faces += [(inner[a], inner[b], outer[a]), (inner[b], outer[b], outer[a])]
    return np.array(faces)


def walls_of(inner, outer, triangles, vertex: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each wall of the polyhedron of a vertex, split along one diagonal and along the other."""
    walls = []
    for t in triangles[(triangles == vertex).any(1)]:
        a, b = np.roll(t, -int(np.flatnonzero(t == vertex)[0]))[1:]
        first = [(inner[a], inner[b], outer[b]), (inner[a], outer[b], outer[a])]
        second = [(inner[a], inner[b], outer[a]), (inner[b], outer[b], outer[a])]
        walls.append((np.array(first), np.array(second)))
    return walls


@pytest.mark.parametrize(("subdivisions", "twist"), [(1, 0.0), (2, 0.0), (3, 0.0), (3, 1.2)])
def test_weights_are_the_definition(subdivisions, twist):
    """Inside counts 1, between the two splits of any wall 1/2; twisted walls have points in two such gaps."""
    inner, outer, triangles = shell(twist=twist)
    got = ribbon_weights(inner, outer, triangles, SHAPE, subdivisions).toarray()
    offsets = (np.arange(subdivisions) + 0.5) / subdivisions - 0.5
    ray = np.array([0.311, -0.577, 0.755])  # not along any axis: independent of how lines are scanned
    in_two = 0
    for vertex in (0, 5, 17, 40) if twist == 0 else (1, 40):
        want = np.zeros(SHAPE)
        polyhedron, walls = (
            column(inner, outer, triangles, vertex, 0),
            walls_of(inner, outer, triangles, vertex),
        )
        low = np.floor(polyhedron.reshape(-1, 3).min(0)).astype(int)
        high = np.ceil(polyhedron.reshape(-1, 3).max(0)).astype(int) + 1
        boxes = (range(max(a, 0), min(b, n)) for a, b, n in zip(low, high, SHAPE, strict=True))
        for voxel in itertools.product(*boxes):
            for offset in itertools.product(offsets, repeat=3):
                centre = np.array(voxel) + offset
                gaps = sum((crosses(centre, ray, a) + crosses(centre, ray, b)) % 2 for a, b in walls)
                want[voxel] += 0.5 if gaps else crosses(centre, ray, polyhedron) % 2
                in_two += gaps > 1
        np.testing.assert_allclose(got[vertex], want.ravel() / subdivisions**3, atol=1e-12)
    assert (in_two > 0) == (twist > 0)


def volume_of(coordinates, triangles) -> float:
    a, b, c = (coordinates[triangles[:, k]] for k in range(3))
    return float(np.einsum("nk,nk->n", a, np.cross(b, c)).sum() / 6)


def test_thin_columns_fill_the_shell_once():
    inner, outer, triangles = shell(1.9, 6.0, levels=2)
    weights = ribbon_weights(inner, outer, triangles, SHAPE, 4, thin=True)
    per_voxel = np.asarray(weights.sum(axis=0)).ravel()
    assert per_voxel.max() <= 1 + 1e-12
    # Well inside the shell every voxel is shared out completely.
    points = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1).reshape(-1, 3)
    radius = np.linalg.norm(points - MIDDLE, axis=1)
    lengths = [np.linalg.norm(x - MIDDLE, axis=1) for x in (inner, outer)]
    between = (radius > lengths[0].max() + 0.9) & (radius < lengths[1].min() - 0.95)
    assert between.sum() > 30
    np.testing.assert_allclose(per_voxel[between], 1, atol=1e-12)


@pytest.mark.parametrize("thin", [False, True])
def test_sum_of_weights_is_the_volume(thin):
    inner, outer, triangles = shell(levels=2)
    size = volume_of(outer - MIDDLE, triangles) - volume_of(inner - MIDDLE, triangles)
    weights = ribbon_weights(inner, outer, triangles, SHAPE, 6, thin=thin)
    # Whole-triangle columns: each triangle belongs to three of them.
    assert weights.sum() == pytest.approx(size * (1 if thin else 3), rel=5e-3)


def test_which_axis_the_lines_run_along_does_not_matter():
    inner, outer, triangles = shell(levels=2, seed=3)
    one = ribbon_weights(inner, outer, triangles, SHAPE).toarray().reshape(-1, *SHAPE)
    turn = [2, 0, 1]
    other = ribbon_weights(inner[:, turn], outer[:, turn], triangles, tuple(SHAPE[k] for k in turn))
    other = other.toarray().reshape(-1, *(SHAPE[k] for k in turn)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("thin", [False, True])
def test_columns_are_cut_in_blocks_and_fine_voxels_take_no_more_memory(monkeypatch, thin):
    """Blocks change no bit; what is held grows with the block, not with the pieces inside the cortex."""
    inner, outer, triangles = shell(36.0, 44.0, levels=4, twist=0.2)
    inner, outer = inner + 44.0, outer + 44.0
    found, peaks = [], []
    for used in (10**12, 200_000):
        monkeypatch.setattr(ribbon, "_USED", used)
        tracemalloc.start()
        found.append(ribbon_weights(inner, outer, triangles, (102, 102, 103), thin=thin))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one, other = found
    one.sort_indices()
    other.sort_indices()
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    assert peaks[1] < 0.4 * peaks[0]


def test_coordinates_on_the_grid_count_once():
    """Corners and edges that lie exactly on piece centres belong to exactly one side."""
    cube = np.array(list(itertools.product((0.0, 6.0), repeat=3))) + 3
    from scipy.spatial import ConvexHull

    faces = ConvexHull(cube).simplices
    weights = ribbon_weights(cube * 0 + 6.0 + (cube - 6.0) / 3, cube, faces, (12, 12, 12), 1, thin=True)
    assert weights.sum() == pytest.approx(6**3 - 2**3)
    assert np.asarray(weights.sum(axis=0)).max() <= 1


@pytest.mark.parametrize("thin", [False, True])
def test_the_rim_of_an_open_mesh_is_closed(thin):
    """A flat sheet: polyhedra at its rim are as good as the others, and thin ones fill the slab."""
    side = 6
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    sheet = np.column_stack([1.03 + 1.6 * grid, np.full(len(grid), 2.21)])
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).ravel()
    quads = np.stack([corner, corner + side, corner + side + 1, corner + 1], 1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    top = sheet + np.array([0.0, 0.0, 3.0])
    weights = ribbon_weights(sheet, top, triangles, (11, 11, 9), 5, thin=thin)
    size = (1.6 * (side - 1)) ** 2 * 3.0
    assert weights.sum() == pytest.approx(size * (1 if thin else 3))


def test_outside_the_volume_there_is_no_weight():
    inner, outer, triangles = shell()
    cut = ribbon_weights(inner - [5, 0, 3], outer - [5, 0, 3], triangles, (4, 13, 6)).toarray()
    whole = ribbon_weights(inner, outer, triangles, SHAPE).toarray().reshape(-1, *SHAPE)
    np.testing.assert_allclose(cut.reshape(-1, 4, 13, 6), whole[:, 5:9, :, 3:9], atol=1e-12)
    assert ribbon_weights(inner + 100, outer + 100, triangles, SHAPE).nnz == 0


def test_an_edge_with_three_triangles_is_refused():
    inner, outer, triangles = shell()
    extra = np.array([[*triangles[0, :2], 30]])
    with pytest.raises(DataError, match="more than two triangles"):
        ribbon_weights(inner, outer, np.concatenate([triangles, extra]), SHAPE)


def test_vertices_without_triangles_may_fill_a_block(monkeypatch):
    monkeypatch.setattr(ribbon, "_USED", 1)
    inner, outer, triangles = shell()
    expected = ribbon_weights(inner, outer, triangles, SHAPE)
    alone = np.full((3, 3), -50.0)
    found = ribbon_weights(np.r_[inner, alone], np.r_[outer, alone], triangles, SHAPE)
    np.testing.assert_array_equal(found.toarray()[: len(inner)], expected.toarray())
    assert found[len(inner) :].nnz == 0
