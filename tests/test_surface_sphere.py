# SPDX-License-Identifier: Apache-2.0
"""SphereResampler: closed forms and conservation laws, labels, the way back, storage, wrong input."""

import numpy as np
import pytest
from surface_cases import fsaverage5, icosphere, rotation, signal

from conform_app.errors import DataError, UsageError
from conform_app.surface import SphereResampler, load_transform, vertex_areas
from conform_app.surface.locate import barycentric_weights


@pytest.fixture(scope="module")
def fine():
    return icosphere(5, 100.0)


@pytest.fixture(scope="module")
def coarse():
    x, t = icosphere(3, 55.0)
    return x @ rotation().T, t


def on_sphere(surface):
    return 100 * surface[0] / np.linalg.norm(surface[0], axis=1, keepdims=True)


def closest_by_brute_force(point, coordinates, triangles):
    """Distance from a point to a mesh by minimising over each triangle, edge and corner."""
    best = np.linalg.norm(coordinates - point, axis=1).min()
    for t in triangles:
        a, b, c = coordinates[t]
        basis = np.stack([b - a, c - a], 1)
        uv, *_ = np.linalg.lstsq(basis, point - a, rcond=None)
        if (uv >= 0).all() and uv.sum() <= 1:
            best = min(best, np.linalg.norm(a + basis @ uv - point))
        for p, q in ((a, b), (b, c), (c, a)):
            s = np.clip((point - p) @ (q - p) / ((q - p) @ (q - p)), 0, 1)
            best = min(best, np.linalg.norm(p + s * (q - p) - point))
    return best


def test_weights_belong_to_the_closest_point():
    x, t = icosphere(2, 10.0)
    rng = np.random.default_rng(0)
    points = rng.standard_normal((60, 3))
    points *= rng.uniform(9.5, 11, (60, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    points = np.concatenate([points, x[:5], (x[t[:5, 0]] + x[t[:5, 1]]) / 2])
    weights = barycentric_weights(points, x, t)
    assert weights.data.min() > 0
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    got = np.linalg.norm(weights @ x - points, axis=1)
    want = [closest_by_brute_force(p, x, t) for p in points]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_points_above_edges_are_found_without_looking_far(monkeypatch):
    """The middles of all edges, as a nested mesh adds them: on the edge, from the nearest few vertices."""
    from conform_app.surface import locate

    x, t = icosphere(4, 100.0)
    edges = np.unique(np.sort(np.concatenate([t[:, [0, 1]], t[:, [1, 2]], t[:, [2, 0]]]), axis=1), axis=0)
    points = x[edges].mean(axis=1)
    points = (100 * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    asked = []
    closest = locate._closest

    def counting(*words):
        asked.append(words[5].shape)
        return closest(*words)

    monkeypatch.setattr(locate, "_closest", counting)
    weights = barycentric_weights(points, x, t).toarray()
    assert [n_vertices for _, n_vertices in asked] == [1, 6]
    expected = np.zeros_like(weights)
    np.put_along_axis(expected, edges, 0.5, axis=1)
    np.testing.assert_allclose(weights, expected, atol=2e-6)


def test_irregular_meshes_are_searched_far_enough():
    """Thin triangles whose corners are far from the point: the nearest vertices are not the right ones."""
    from scipy.spatial import ConvexHull

    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 3)) * [1, 1, 0.15]
    x = 100 * x / np.linalg.norm(x, axis=1, keepdims=True)
    t = ConvexHull(x).simplices
    points = rng.standard_normal((40, 3))
    points = 100 * points / np.linalg.norm(points, axis=1, keepdims=True)
    got = np.linalg.norm(barycentric_weights(points, x, t) @ x - points, axis=1)
    np.testing.assert_allclose(got, [closest_by_brute_force(p, x, t) for p in points], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["adaptive", "barycentric", "nearest"])
def test_onto_itself_nothing_changes(fine, method):
    areas = vertex_areas(fine)
    same = SphereResampler(fine, fine, method=method, source_area=areas, target_area=areas)
    values = signal(fine[0])
    np.testing.assert_allclose(same.apply(values), values, rtol=1e-6)


def test_barycentric_is_linear_interpolation(fine, coarse):
    carry = SphereResampler(fine, coarse, method="barycentric")
    assert np.diff(carry.matrix.indptr).max() <= 3
    got = carry.apply(on_sphere(fine), dtype=np.float64)
    # The coordinates themselves are carried to the mesh's faces, just inside the sphere.
    np.testing.assert_allclose(got, on_sphere(coarse), atol=0.1)
    np.testing.assert_allclose(carry.matrix.sum(axis=1), 1)
    values = on_sphere(fine)[:, 0] ** 2
    np.testing.assert_allclose(carry.apply(values), on_sphere(coarse)[:, 0] ** 2, atol=20)


def test_adaptive_uses_every_source_vertex_going_down(fine, coarse):
    areas = vertex_areas(fine), vertex_areas(coarse)
    down = SphereResampler(fine, coarse, source_area=areas[0], target_area=areas[1])
    assert (np.diff(down.matrix.tocsc().indptr) > 0).all()
    skip = SphereResampler(fine, coarse, method="barycentric")
    assert (np.diff(skip.matrix.tocsc().indptr) > 0).mean() < 0.5
    # Noise averages out going down: that is what the method is for.
    noise = np.random.default_rng(0).standard_normal(len(fine[0]))
    assert down.apply(noise).std() < 0.45 * skip.apply(noise).std()


def test_adaptive_going_up_is_barycentric(fine, coarse):
    up = SphereResampler(coarse, fine, source_area=vertex_areas(coarse), target_area=vertex_areas(fine))
    same = SphereResampler(coarse, fine, method="barycentric")
    values = signal(on_sphere(coarse))
    assert np.corrcoef(up.apply(values), same.apply(values))[0, 1] > 0.999


def test_adaptive_weighs_sources_by_their_area(fine, coarse):
    """Rows before they are normalised share out each source vertex's area exactly once."""
    rng = np.random.default_rng(2)
    areas = rng.uniform(0.5, 2, len(fine[0])), rng.uniform(0.5, 2, len(coarse[0]))
    down = SphereResampler(fine, coarse, source_area=areas[0], target_area=areas[1])
    plain = SphereResampler(fine, coarse, source_area=np.ones(len(fine[0])), target_area=areas[1])
    # Doubling one source's area doubles its weight relative to the others of the same row.
    ratio = down.matrix.multiply(plain.matrix.power(-1))
    for row in (0, 100, 300):
        part = ratio[[row]].tocoo()
        relative = part.data / areas[0][part.col]
        np.testing.assert_allclose(relative, relative[0], rtol=1e-9)


def test_area_surfaces_are_their_vertex_areas():
    sphere, white, pial = (fsaverage5("L", name) for name in ("sphere", "white", "pial"))
    turned = sphere[0] @ rotation().T, sphere[1]
    one = SphereResampler(sphere, turned, source_area=white, target_area=pial)
    two = SphereResampler(sphere, turned, source_area=vertex_areas(white), target_area=vertex_areas(pial))
    assert abs(one.matrix - two.matrix).max() == 0


@pytest.mark.parametrize("method", ["adaptive", "barycentric", "nearest"])
def test_masked_vertices_reach_nothing(fine, coarse, method):
    x = on_sphere(fine)[:, 0]
    mask = x < 40
    areas = {"source_area": vertex_areas(fine), "target_area": vertex_areas(coarse)}
    carry = SphereResampler(fine, coarse, method=method, source_mask=mask, **areas)
    got = carry.apply(np.where(mask, 1.0, np.nan))
    np.testing.assert_allclose(got[carry.valid], 1, rtol=1e-6)
    assert np.isnan(got[~carry.valid]).all()
    at = on_sphere(coarse)[:, 0]
    assert carry.valid[at < 33].all()
    assert not carry.valid[at > 60].any()


@pytest.mark.parametrize("method", ["adaptive", "barycentric"])
def test_a_mask_can_come_later(fine, coarse, method):
    options = {"method": method}
    if method == "adaptive":
        options |= {"source_area": vertex_areas(fine), "target_area": vertex_areas(coarse)}
    mask = on_sphere(fine)[:, 2] > -0.3
    want = SphereResampler(fine, coarse, source_mask=mask, **options)
    got = SphereResampler(fine, coarse, **options).masked(mask)
    assert abs(got.matrix - want.matrix).max() < 1e-12
    np.testing.assert_array_equal(got.valid, want.valid)
    assert got.method == method
    with pytest.raises(DataError, match="source mask"):
        got.masked(mask[:-1])


def test_labels_go_to_the_majority(fine, coarse):
    octant = (on_sphere(fine) > 0) @ [1, 2, 4]
    labels = (octant + 10).astype(np.int16)
    labels[np.random.default_rng(0).random(len(labels)) < 0.1] = 99
    areas = {"source_area": vertex_areas(fine), "target_area": vertex_areas(coarse)}
    down = SphereResampler(fine, coarse, **areas)
    at = on_sphere(coarse)
    inside = (np.abs(at) > 10).all(1)
    want = (at > 0) @ [1, 2, 4] + 10
    got = down.apply_labels(labels)
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got[inside], want[inside])
    votes = np.stack([down.apply(labels == name) for name in np.unique(labels)])
    np.testing.assert_array_equal(got, np.unique(labels)[votes.argmax(0)])
    one = down.apply_labels(labels, largest=True)
    strongest = np.asarray(down.matrix.argmax(axis=1)).ravel()
    np.testing.assert_array_equal(one, labels[strongest])
    masked = SphereResampler(fine, coarse, source_mask=on_sphere(fine)[:, 0] < 0, **areas)
    assert (masked.apply_labels(labels, fill=-7)[at[:, 0] > 30] == -7).all()
    with pytest.raises(DataError, match="not integers"):
        down.apply_labels(labels.astype(float))
    with pytest.raises(DataError, match="Give one map"):
        down.apply_labels(labels[:, None])


def test_the_way_back(fine, coarse):
    areas = {"source_area": vertex_areas(fine), "target_area": vertex_areas(coarse)}
    down = SphereResampler(fine, coarse, **areas)
    up = down.inverse()
    want = SphereResampler(coarse, fine, source_area=areas["target_area"], target_area=areas["source_area"])
    assert up.matrix.shape == down.matrix.shape[::-1]
    assert abs(up.matrix - want.matrix).max() < 1e-12
    smooth = on_sphere(coarse)[:, 2]
    assert np.corrcoef(down.apply(up.apply(smooth)), smooth)[0, 1] > 0.999


def test_storage(tmp_path, fine, coarse):
    areas = {"source_area": vertex_areas(fine), "target_area": vertex_areas(coarse)}
    down = SphereResampler(fine, coarse, **areas)
    np.savez(tmp_path / "xfm.npz", **down.to_arrays())
    again = SphereResampler.from_arrays(np.load(tmp_path / "xfm.npz"))
    values = signal(fine[0])
    np.testing.assert_array_equal(again.apply(values), down.apply(values))
    assert abs(again.inverse().matrix - down.inverse().matrix).max() == 0
    path = down.save(tmp_path / "sub-01_hemi-L_from-fsnative_to-fsLR_mode-points_xfm.h5")
    for loaded in (SphereResampler.load(path), load_transform(path)):
        np.testing.assert_array_equal(loaded.apply(values), down.apply(values))
        assert abs(loaded.inverse().matrix - down.inverse().matrix).max() == 0
    plain = SphereResampler(fine, coarse, method="nearest")
    assert SphereResampler.from_arrays(plain.to_arrays()).method == "nearest"
    for name in ("columns", "source_sphere", "method"):
        broken = down.to_arrays()
        del broken[name]
        with pytest.raises(DataError, match="Make it again"):
            SphereResampler.from_arrays(broken)
    with pytest.raises(DataError, match="contradicts itself"):
        SphereResampler.from_arrays({**down.to_arrays(), "target_sphere": coarse[0][:-1]})


def test_many_maps_and_torch(fine, coarse):
    carry = SphereResampler(fine, coarse, method="barycentric")
    maps = np.stack([signal(fine[0]), signal(fine[0][:, [1, 2, 0]])], 1)
    got = carry.apply(maps)
    assert got.shape == (len(coarse[0]), 2)
    np.testing.assert_array_equal(got[:, 1], carry.apply(maps[:, 1]))
    np.testing.assert_allclose(carry.apply(maps, device="cpu:0"), got, rtol=1e-5)


def test_bad_input(fine, coarse):
    areas = vertex_areas(fine), vertex_areas(coarse)
    ok = {"source_area": areas[0], "target_area": areas[1]}
    holed = fine[0].copy()
    holed[7] = np.nan
    white = {side: fsaverage5(side, "white") for side in "LR"}
    sphere = fsaverage5("L", "sphere")
    cases = [
        ((white["L"], coarse), ok, "source sphere is no sphere"),
        ((fine, (coarse[0] + 20, coarse[1])), ok, "target sphere is no sphere"),
        (((holed, fine[1]), coarse), ok, "1 of 10242 vertices of the source sphere"),
        (((fine[0][:-9], fine[1]), coarse), ok, "name vertices outside"),
        ((fine, coarse), {**ok, "source_area": areas[1]}, "source area surface has 642 vertices"),
        ((fine, coarse), {**ok, "target_area": white["L"]}, "target area surface has 10242 vertices"),
        ((fine, coarse), {**ok, "source_area": -areas[0]}, "not all finite and positive"),
        ((sphere, sphere), {"source_area": white["L"], "target_area": white["R"]}, "different hemispheres"),
        ((fine, coarse), {**ok, "source_mask": np.zeros(len(fine[0]))}, "source mask is empty"),
        ((fine, coarse), {**ok, "source_mask": np.ones(3)}, "source mask has shape"),
    ]
    for spheres, options, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            SphereResampler(*spheres, **options)
        assert caught.value.remedy
    carry = SphereResampler(fine, coarse, **ok)
    with pytest.raises(DataError, match="source sphere of 10242 vertices"):
        carry.apply(np.zeros(642))
    with pytest.raises(DataError, match="not real numbers"):
        carry.apply(np.zeros(10242, complex))
    with pytest.raises(UsageError, match="needs the vertex areas"):
        SphereResampler(fine, coarse)
    with pytest.raises(UsageError, match="no resampling method"):
        SphereResampler(fine, coarse, method="cubic", **ok)


def test_cuda_gives_the_same(fine, coarse):
    torch = pytest.importorskip("torch")
    carry = SphereResampler(fine, coarse, method="barycentric")
    maps = np.stack([signal(fine[0]), signal(fine[0][:, [1, 2, 0]])], 1)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="No CUDA device"):
            carry.apply(maps, device="cuda")
        pytest.skip("no CUDA device here")
    np.testing.assert_allclose(carry.apply(maps, device="cuda"), carry.apply(maps), rtol=1e-5)
