# SPDX-License-Identifier: Apache-2.0
"""Dilation over holes: closed forms on a flat sheet, distances, limits, wrong input."""

import numpy as np
import pytest
from scipy.sparse.csgraph import dijkstra
from surface_cases import icosphere

from conform_app.errors import DataError, UsageError
from conform_app.surface import dilate, medial_wall_mask, vertex_areas
from conform_app.surface.holes import geodesic_graph
from conform_app.surface.mesh import as_surface

SIDE = 21


@pytest.fixture(scope="module")
def sheet():
    """A flat grid of 1 mm, split into triangles; vertex (i, j) is number i * SIDE + j."""
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    corner = (np.arange(SIDE - 1)[:, None] * SIDE + np.arange(SIDE - 1)).ravel()
    quads = np.stack([corner, corner + SIDE, corner + SIDE + 1, corner + 1], 1)
    return np.column_stack([grid, np.zeros(len(grid))]).astype(float), np.concatenate(
        [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
    )


def at(i: int, j: int) -> int:
    return i * SIDE + j


def test_distances_cross_triangles(sheet):
    """Along the sheet's short diagonals, which are no edges, the way is straight."""
    steps, edges = geodesic_graph(as_surface(sheet, "sheet"))
    straight = dijkstra(steps, directed=False, indices=at(10, 0))
    along_edges = dijkstra(edges, directed=False, indices=at(10, 0))
    assert straight[at(5, 5)] == pytest.approx(5 * np.sqrt(2))
    assert along_edges[at(5, 5)] == pytest.approx(10)
    assert (straight <= along_edges + 1e-12).all()
    assert (straight >= np.linalg.norm(sheet[0] - sheet[0][at(10, 0)], axis=1) - 1e-9).all()


def test_distances_on_a_sphere():
    x, t = icosphere(4, 100.0)
    steps, _ = geodesic_graph(as_surface((x, t), "sphere"))
    arc = 100 * np.arccos(np.clip(x @ x[0] / 1e4, -1, 1))
    got = dijkstra(steps, directed=False, indices=0)
    far = arc > 20
    assert np.abs(got[far] / arc[far] - 1).max() < 0.05


def test_one_hole_is_the_weighted_mean(sheet):
    values = np.random.default_rng(0).standard_normal(SIDE**2)
    hole = at(10, 10)
    holed = values.copy()
    holed[hole] = np.nan
    got = dilate(holed, sheet, 5.0)
    steps, _ = geodesic_graph(as_surface(sheet, "sheet"))
    d = dijkstra(steps, directed=False, indices=hole)
    near = (d > 0) & (d <= 49**0.25)
    weight = vertex_areas(sheet)[near] / d[near] ** 6
    assert got[hole] == pytest.approx(np.average(values[near], weights=weight), rel=1e-9)
    untouched = np.arange(SIDE**2) != hole
    np.testing.assert_array_equal(got[untouched], values[untouched])
    assert got.dtype == np.float64


def test_nearest_takes_whole_values_and_keeps_labels(sheet):
    labels = np.where(sheet[0][:, 0] < 10.2, 3, 8).astype(np.int32)
    bad = np.abs(sheet[0][:, 0] - 10.2) < 4
    got = dilate(np.where(bad, 0, labels), sheet, 20, bad=bad, method="nearest")
    np.testing.assert_array_equal(got, labels)
    assert got.dtype == np.int32


def test_the_distance_is_kept(sheet):
    x = sheet[0][:, 0]
    values = np.where(x < 5, 2.0, np.nan)
    for method in ("weighted", "nearest"):
        got = dilate(values, sheet, 4.5, method=method, fill=-1)
        np.testing.assert_allclose(got[x <= 8], 2, rtol=1e-6)
        assert (got[x >= 9] == -1).all()
        assert np.isnan(dilate(values, sheet, 4.5, method=method)[x >= 9]).all()
        # However small the distance, direct neighbours are filled.
        got = dilate(values, sheet, 0.0, method=method)
        np.testing.assert_allclose(got[x == 5], 2, rtol=1e-6)
        assert np.isnan(got[x >= 6]).all()


def test_only_data_gives(sheet):
    x = sheet[0][:, 0]
    values = np.where(x < 10, 1.0, 5.0)
    bad = np.abs(x - 10) < 2.5
    got = dilate(values, sheet, 10, bad=bad, data=x < 15)
    assert (got[x >= 15] == 5).all()
    only_low = dilate(values, sheet, 10, bad=bad, data=x < 10)
    np.testing.assert_allclose(only_low[bad], 1)


def test_several_maps_share_the_weights(sheet):
    values = np.random.default_rng(1).standard_normal((SIDE**2, 3)).astype(np.float32)
    bad = np.linalg.norm(sheet[0] - sheet[0][at(7, 9)], axis=1) < 4
    together = dilate(values, sheet, 10, bad=bad)
    assert together.dtype == np.float32
    for k in range(3):
        np.testing.assert_allclose(together[:, k], dilate(values[:, k], sheet, 10, bad=bad), rtol=1e-5)


def test_no_hole_changes_nothing(sheet):
    values = np.arange(SIDE**2, dtype=float)
    np.testing.assert_array_equal(dilate(values, sheet, 3), values)


def test_bad_input(sheet):
    values = np.ones(SIDE**2)
    with pytest.raises(DataError, match="No vertex has a value"):
        dilate(values * np.nan, sheet, 3)
    with pytest.raises(DataError, match="441 vertices"):
        dilate(values[:-1], sheet, 3)
    with pytest.raises(DataError, match="bad vertices have shape"):
        dilate(values, sheet, 3, bad=[True])
    for options in ({"method": "best"}, {"exponent": 2.0}, {"distance": -1}, {"distance": np.nan}):
        with pytest.raises(UsageError):
            dilate(values, sheet, **{"distance": 3, **options})


def test_medial_wall():
    labels = np.array([0, 3, 3, 7, 42])
    np.testing.assert_array_equal(medial_wall_mask(labels, 42), [True, True, True, True, False])
    np.testing.assert_array_equal(medial_wall_mask(labels, [0, 42]), [False, True, True, True, False])
    with pytest.raises(DataError, match="medial wall"):
        medial_wall_mask([1, 1], 1)
