# SPDX-License-Identifier: Apache-2.0
"""VolumeToSurface: against scipy and nilearn, masks, the way back, storage, and wrong input."""

import h5py
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from surface_cases import OBLIQUE, SHAPE, fsaverage5, middle_of, waves

from conform_app.errors import DataError, FileFaultError, NoInputError, UsageError
from conform_app.surface import (
    SphereResampler,
    VolumeToSurface,
    check_hemisphere,
    load_transform,
    midthickness,
)

METHODS = ("ribbon", "trilinear", "cubic", "nearest", "line", "depth", "ball")


@pytest.fixture(scope="module")
def cortex():
    return fsaverage5("L", "white"), fsaverage5("L", "pial")


@pytest.fixture(scope="module")
def volume():
    return waves()


@pytest.fixture(scope="module")
def ribbon(cortex):
    return VolumeToSurface(*cortex, SHAPE, OBLIQUE)


def voxels_of(points):
    inverse = np.linalg.inv(OBLIQUE)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def test_interpolation_is_scipys(cortex, volume):
    middle = (cortex[0][0].astype(float) + cortex[1][0]) / 2
    at = voxels_of(middle)
    inside = ((at > 0.01) & (at < np.array(SHAPE) - 1.01)).all(1)
    assert 0.3 < inside.mean() < 1
    for method, order in (("nearest", 0), ("trilinear", 1), ("cubic", 3)):
        sample = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method=method)
        want = map_coordinates(volume.astype(float), at.T, order=order, mode="reflect")
        got = sample.apply(volume, dtype=np.float64)
        np.testing.assert_allclose(got[inside], want[inside], rtol=1e-9)
        outside = ((at < -0.51) | (at > np.array(SHAPE) - 0.49)).any(1)
        assert np.isnan(got[outside]).all()
        assert not sample.valid[outside].any()
        assert sample.valid[inside].all()


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("method", ["line", "depth", "ball"])
def test_line_depth_and_ball_are_nilearns(cortex, volume, method):
    import nibabel as nib
    from nilearn.surface import InMemoryMesh, vol_to_surf
    from nilearn.surface.surface import _load_uniform_ball_cloud

    white, pial = cortex
    image = nib.Nifti1Image(volume, OBLIQUE)
    at = InMemoryMesh(*(pial if method == "depth" else midthickness(white, pial)))
    inner = InMemoryMesh(*white) if method == "depth" else None
    want = vol_to_surf(image, at, kind=method, radius=2.5, inner_mesh=inner, interpolation="linear")
    cloud = _load_uniform_ball_cloud(20) if method == "ball" else None
    sample = VolumeToSurface(white, pial, SHAPE, OBLIQUE, method=method, radius=2.5, samples=cloud)
    got = sample.apply(volume)
    # At the faces of the volume nilearn extrapolates: compare where all samples are well inside.
    middle = voxels_of((white[0].astype(float) + pial[0]) / 2)
    deep = ((middle > 3) & (middle < np.array(SHAPE) - 4)).all(1)
    assert deep.mean() > 0.3
    np.testing.assert_allclose(got[deep], want[deep], rtol=2e-6)


def test_our_ball_is_even():
    from conform_app.surface.sampling import even_ball

    points = even_ball(2000)
    radius = np.linalg.norm(points, axis=1)
    assert radius.max() < 1
    np.testing.assert_allclose(points.mean(0), 0, atol=0.01)
    # A uniform ball has second moments 1/5 along each axis and none across.
    np.testing.assert_allclose(points.T @ points / len(points), np.eye(3) / 5, atol=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_stays_constant(cortex, method):
    sample = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method=method)
    got = sample.apply(np.full(SHAPE, 7.25, np.float32), fill=-1)
    np.testing.assert_allclose(got[sample.valid], 7.25, rtol=2e-6)
    assert (got[~sample.valid] == -1).all()
    assert 0.3 < sample.valid.mean() < 1


def test_a_linear_field_is_read_exactly_by_trilinear_and_cubic(cortex):
    i, j, k = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    at = voxels_of((cortex[0][0].astype(float) + cortex[1][0]) / 2)
    field = 2.0 * i - 0.7 * j + 0.3 * k
    deep = ((at > 12) & (at < np.array(SHAPE) - 13)).all(1)  # reflection bends the field at the faces
    for method in ("trilinear", "cubic"):
        got = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method=method).apply(field, dtype=np.float64)
        np.testing.assert_allclose(got[deep], (at @ [2.0, -0.7, 0.3])[deep], atol=1e-5)


def test_series_layouts_and_blocks_give_the_same(ribbon, volume, monkeypatch):
    series = np.stack([volume, volume**2, -volume], axis=3)
    alone = np.stack([ribbon.apply(series[..., k]) for k in range(3)], 1)
    assert alone.dtype == np.float32
    monkeypatch.setattr("conform_app.surface.linear._BLOCK_BYTES", 1)
    for layout in (np.ascontiguousarray(series), np.asfortranarray(series), series[::-1][::-1]):
        np.testing.assert_array_equal(ribbon.apply(layout), alone)
    exact = ribbon.matrix @ series.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(alone[ribbon.valid], exact[ribbon.valid], rtol=1e-5)


def test_torch_gives_the_same(ribbon, volume):
    series = np.stack([volume, volume[::-1]], axis=3)
    # "cpu:0" is a torch device that is there everywhere: the path that "cuda" takes.
    np.testing.assert_allclose(ribbon.apply(series, device="cpu:0"), ribbon.apply(series), rtol=1e-5)


def test_cuda_gives_the_same(ribbon, volume):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="No CUDA device"):
            ribbon.apply(volume, device="cuda")
        return
    np.testing.assert_allclose(ribbon.apply(volume, device="cuda"), ribbon.apply(volume), rtol=1e-5)


@pytest.mark.parametrize("method", ["ribbon", "trilinear", "nearest", "depth"])
def test_masked_voxels_reach_nothing(cortex, volume, method):
    mask = volume > 95
    poisoned = np.where(mask, volume, np.nan)
    sample = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method=method, mask=mask)
    assert np.isfinite(sample.apply(poisoned)[sample.valid]).all()
    whole = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method=method)
    weight = whole.matrix @ mask.ravel().astype(float)
    np.testing.assert_array_equal(sample.valid, weight > 0)
    want = (whole.matrix @ np.where(mask, volume, 0).ravel())[sample.valid] / weight[sample.valid]
    np.testing.assert_allclose(sample.apply(poisoned)[sample.valid], want, rtol=1e-5)


def test_cubic_with_a_mask_drops_vertices_and_refuses_nan(cortex, volume):
    mask = np.zeros(SHAPE)
    mask[20:] = 1
    sample = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method="cubic", mask=mask)
    whole = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method="cubic")
    assert 0 < sample.valid.sum() < whole.valid.sum()
    np.testing.assert_allclose(sample.apply(volume)[sample.valid], whole.apply(volume)[sample.valid])
    with pytest.raises(DataError, match="not finite"):
        whole.apply(np.where(mask, volume, np.nan))
    with pytest.raises(UsageError, match="no way back"):
        whole.to_volume(np.ones(len(whole.valid)))


def test_the_way_back(ribbon, cortex):
    x = cortex[0][0][:, 0].astype(float)
    x[5] = np.nan
    back = ribbon.to_volume(np.stack([x, np.ones_like(x)], 1), fill=-1)
    reached = back[..., 1] >= 0
    np.testing.assert_allclose(back[..., 1][reached], 1, rtol=1e-6)
    want = np.asarray((ribbon.matrix > 0).sum(axis=0)).ravel() > 0
    assert (reached.ravel() == want).mean() > 0.9999  # voxels of vertex 5 alone
    raw = ribbon.matrix.multiply(ribbon.reach[:, None]).tocsc()
    voxel = int(np.argmax(np.diff(raw.indptr)))
    part = raw[:, voxel].tocoo()
    known = np.isfinite(x[part.row])
    mean = np.average(x[part.row][known], weights=part.data[known])
    assert back[..., 0].ravel()[voxel] == pytest.approx(mean, rel=1e-6)
    assert ribbon.to_volume(x).shape == SHAPE


@pytest.mark.parametrize("method", METHODS)
def test_storage(tmp_path, cortex, volume, method):
    sample = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method=method)
    np.savez(tmp_path / "xfm.npz", **sample.to_arrays())
    again = VolumeToSurface.from_arrays(np.load(tmp_path / "xfm.npz"))
    np.testing.assert_array_equal(again.apply(volume), sample.apply(volume))
    np.testing.assert_array_equal(again.reach, sample.reach)
    assert (again.method, again.volume_shape) == (method, SHAPE)
    path = sample.save(tmp_path / "sub-01_from-T1w_to-fsnative_mode-image_xfm.h5")
    for loaded in (VolumeToSurface.load(path), load_transform(path)):
        assert isinstance(loaded, VolumeToSurface)
        np.testing.assert_array_equal(loaded.apply(volume), sample.apply(volume))
        if method != "cubic":
            values = sample.apply(volume)
            np.testing.assert_array_equal(loaded.to_volume(values), sample.to_volume(values))
    first = path.read_bytes()
    assert sample.save(path).read_bytes() == first
    with pytest.raises(DataError, match="holds a VolumeToSurface, not a SphereResampler"):
        SphereResampler.load(path)
    for name in ("weights", "shape", "reach", "method"):
        broken = sample.to_arrays()
        del broken[name]
        with pytest.raises(DataError, match="Make it again"):
            VolumeToSurface.from_arrays(broken)
    with pytest.raises(DataError, match="contradicts itself"):
        VolumeToSurface.from_arrays({**sample.to_arrays(), "columns": sample.matrix.indices[:-1]})


def test_files_that_hold_no_transform(tmp_path):
    path = tmp_path / "a_xfm.h5"
    with pytest.raises(NoInputError, match="There is no file"):
        load_transform(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FileFaultError, match="cannot be read"):
        load_transform(path)
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(DataError, match="no transform between voxels and vertices"):
        load_transform(path)


def test_gaps_of_the_ribbon_take_the_voxel_at_the_middle(cortex, volume):
    """Only rows that were empty change, and they change to the value of the nearest method."""
    coarse = {"subdivisions": 1}
    ribbon = VolumeToSurface(*cortex, SHAPE, OBLIQUE, **coarse)
    filled = VolumeToSurface(*cortex, SHAPE, OBLIQUE, fill_gaps=True, **coarse)
    near = VolumeToSurface(*cortex, SHAPE, OBLIQUE, method="nearest")
    gaps = ~ribbon.valid & near.valid
    assert 10 < gaps.sum() < 5000
    np.testing.assert_array_equal(filled.valid, ribbon.valid | near.valid)
    got = filled.apply(volume)
    np.testing.assert_array_equal(got[ribbon.valid], ribbon.apply(volume)[ribbon.valid])
    np.testing.assert_array_equal(got[gaps], near.apply(volume)[gaps])
    np.testing.assert_allclose(filled.reach[gaps], 1.0)  # one piece of one
    mask = volume > 95
    masked = VolumeToSurface(*cortex, SHAPE, OBLIQUE, fill_gaps=True, mask=mask, **coarse)
    assert not masked.matrix[:, ~mask.ravel()].nnz


def test_vertices_left_out_have_no_value(cortex, volume, ribbon):
    keep = np.arange(len(cortex[0][0])) % 3 > 0
    some = VolumeToSurface(*cortex, SHAPE, OBLIQUE, vertex_mask=keep)
    np.testing.assert_array_equal(some.valid, ribbon.valid & keep)
    np.testing.assert_array_equal(some.apply(volume)[some.valid], ribbon.apply(volume)[some.valid])
    for wrong, told in ((keep[:-1], "vertex mask has shape"), (np.zeros(len(keep)), "vertex mask is empty")):
        with pytest.raises(DataError, match=told):
            VolumeToSurface(*cortex, SHAPE, OBLIQUE, vertex_mask=wrong)


def changed(surface, **by):
    coordinates, triangles = surface
    return by.get("coordinates", coordinates), by.get("triangles", triangles)


def nan_at(surface):
    coordinates = surface[0].copy()
    coordinates[3, 1] = np.nan
    return coordinates, surface[1]


BAD = {
    "white and pial of other counts": (lambda w, p: (w, (p[0][:-1], p[1][:100])), {}, "has 10242 vertices"),
    "other triangles": (lambda w, p: (w, (p[0], p[1][::-1])), {}, "different triangles"),
    "triangles of no vertex": (lambda w, p: ((w[0][:500], w[1]), p), {}, "name vertices outside"),
    "nan": (lambda w, p: (nan_at(w), p), {}, "1 of 10242 vertices of the white surface"),
    "one hemisphere each": (lambda w, p: (w, (p[0] * [-1, 1, 1], p[1])), {}, "mm apart"),
    "swapped": (lambda w, p: (w, p), {"hemisphere": "R"}, "should be the right hemisphere"),
    "metres": (lambda w, p: ((w[0] / 1000, w[1]), (p[0] / 1000, p[1])), {}, "another unit"),
    "micrometres": (lambda w, p: ((w[0] * 1000, w[1]), (p[0] * 1000, p[1])), {}, "apart|another unit"),
    "elsewhere": (lambda w, p: ((w[0] + 500, w[1]), (p[0] + 500, p[1])), {}, "does not overlap"),
    "empty mask": (lambda w, p: (w, p), {"mask": np.zeros(SHAPE)}, "mask of the volume is empty"),
    "other mask": (lambda w, p: (w, p), {"mask": np.ones((3, 4, 5))}, r"mask has shape \(3, 4, 5\)"),
    "other midthickness": (lambda w, p: (w, p), {"midthickness": np.ones((9, 3))}, "midthickness"),
    "not a pair": (lambda w, p: (w[0], p), {}, "not a pair"),
    "float triangles": (lambda w, p: ((w[0], w[1].astype(float)), p), {}, "triangles of the white"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(cortex, case):
    make, options, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        VolumeToSurface(*make(*cortex), SHAPE, OBLIQUE, **options)
    assert caught.value.remedy


def test_affine_in_metres_or_broken(cortex):
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE
    with pytest.raises(DataError, match=r"looks to be in another unit"):
        VolumeToSurface(*cortex, SHAPE, metres)
    flat = OBLIQUE.copy()
    flat[:, 2] = flat[:, 1]
    with pytest.raises(DataError, match="cannot be inverted"):
        VolumeToSurface(*cortex, SHAPE, flat)
    for broken in (np.eye(3), np.full((4, 4), np.nan)):
        with pytest.raises(DataError, match="affine is not"):
            VolumeToSurface(*cortex, SHAPE, broken)
    with pytest.raises(DataError, match="no three axes"):
        VolumeToSurface(*cortex, (4, 5), OBLIQUE)


def test_a_mask_beside_the_cortex_leaves_nothing(cortex):
    mask = np.zeros(SHAPE)
    mask[0, 0, 0] = 1
    with pytest.raises(DataError, match="No vertex of the surface gets a value"):
        VolumeToSurface(*cortex, SHAPE, OBLIQUE, mask=mask)


def test_volumes_of_another_shape_are_refused(ribbon):
    for shape in ((5, 5, 5), (*SHAPE[:2], 7), SHAPE[:2]):
        with pytest.raises(DataError, match="was made for"):
            ribbon.apply(np.zeros(shape))
    with pytest.raises(DataError, match="10242 vertices"):
        ribbon.to_volume(np.zeros(11))


def test_options_out_of_range(cortex, ribbon, volume):
    for options in (
        {"method": "best"},
        {"subdivisions": 0},
        {"radius": 0.0},
        {"method": "line", "samples": 0},
        {"method": "line", "samples": np.ones((4, 3))},
        {"method": "ball", "samples": np.ones((4, 2))},
    ):
        with pytest.raises(UsageError):
            VolumeToSurface(*cortex, SHAPE, OBLIQUE, **options)
    with pytest.raises(UsageError, match="int16"):
        ribbon.apply(volume, dtype=np.int16)


def test_hemispheres(cortex):
    check_hemisphere(cortex[0], "L")
    check_hemisphere(cortex[1][0], "L")
    check_hemisphere(fsaverage5("R", "white"), "R")
    with pytest.raises(DataError, match="left hemisphere but lies on the right"):
        check_hemisphere(fsaverage5("R", "white"), "L", "white")
    with pytest.raises(UsageError):
        check_hemisphere(cortex[0], "left")


def test_midthickness_has_the_triangles_and_the_mean(cortex):
    middle = midthickness(*cortex)
    np.testing.assert_allclose(middle.coordinates, middle_of(*cortex)[0], atol=1e-5)
    np.testing.assert_array_equal(middle.triangles, cortex[0][1])
