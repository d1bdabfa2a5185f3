# SPDX-License-Identifier: Apache-2.0
"""GIFTI pairs against nibabel and nilearn, CIFTI against nibabel."""

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, ScalarAxis, SeriesAxis
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiMetaData

from conform_app.errors import DataError, FileFaultError
from conform_app.images import (
    check_complete,
    grid_difference,
    open_run,
    read_maps,
    read_mask,
    same_grid,
    write_maps,
)

N_LEFT, N_RIGHT, N_VOLUMES = 30, 42, 17


def save_gifti(path, data, structure=None, single=False, step="2000.000000", where="file"):
    arrays = [data] if single else list(data.T)
    images = [GiftiDataArray(np.ascontiguousarray(a, np.float32), intent="time series") for a in arrays]
    meta = {"TimeStep": step}
    if structure:
        meta["AnatomicalStructurePrimary"] = structure
    image = GiftiImage(darrays=images, meta=GiftiMetaData(meta if where == "file" else {}))
    if where == "array":
        image.darrays[0].meta = GiftiMetaData(meta)
    nibabel.save(image, path)
    return path


@pytest.fixture
def pair(tmp_path):
    data = np.random.default_rng(0).normal(size=(N_LEFT + N_RIGHT, N_VOLUMES)).astype(np.float32)
    left = save_gifti(tmp_path / "sub-01_hemi-L_space-fsaverage5_bold.func.gii", data[:N_LEFT], "CortexLeft")
    right = save_gifti(
        tmp_path / "sub-01_hemi-R_space-fsaverage5_bold.func.gii", data[N_LEFT:], "CortexRight"
    )
    return (left, right), data


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("structure", [("CortexLeft", "CortexRight"), (None, None)])
@pytest.mark.parametrize("where", ["file", "array"])
def test_gifti_run(pair, tmp_path, single, structure, where):
    (_, _), data = pair
    names = ("x_hemi-L_bold.func.gii", "x_hemi-R_bold.func.gii")
    halves = (data[:N_LEFT], data[N_LEFT:])
    paths = tuple(
        save_gifti(tmp_path / n, d, s, single, where=where)
        for n, d, s in zip(names, halves, structure, strict=True)
    )
    for given in (paths, paths[::-1]):  # the order of the files does not matter
        run = open_run(given)
        assert run.paths == paths
        assert run.grid.shape == (N_LEFT, N_RIGHT)
        assert (run.grid.kind, run.n_volumes, run.tr_header) == ("gifti", N_VOLUMES, 2.0)
    np.testing.assert_array_equal(run.load(), data)
    points = np.random.default_rng(1).random(72) < 0.5
    got = run.load(points)
    np.testing.assert_array_equal(got, data[points])
    assert got.flags.c_contiguous
    assert got.dtype == np.float32
    points[:N_LEFT] = False  # nothing of one hemisphere
    np.testing.assert_array_equal(run.load(points), data[points])


def test_gifti_tr_in_seconds_and_one_hemisphere(tmp_path):
    data = np.ones((5, 3), np.float32)
    run = open_run(save_gifti(tmp_path / "lh.bold.func.gii", data, step="1.5"))
    assert (run.tr_header, run.grid.structures) == (1.5, ("CortexLeft",))
    assert open_run(save_gifti(tmp_path / "a_hemi-R.func.gii", data, step="")).tr_header is None
    with pytest.raises(DataError, match="which hemisphere"):
        open_run(save_gifti(tmp_path / "a.func.gii", data))


def test_gifti_pairs_that_do_not_fit(pair, tmp_path):
    (left, right), data = pair
    with pytest.raises(DataError, match="one left and one right"):
        open_run((left, left))
    short = save_gifti(tmp_path / "short_hemi-R_bold.func.gii", data[N_LEFT:, :-1], "CortexRight")
    with pytest.raises(DataError, match=r"17 volumes.* 16"):
        open_run((left, short))
    surface = GiftiImage(
        darrays=[GiftiDataArray(np.zeros((9, 3), np.float32), intent="pointset")],
        meta=GiftiMetaData({"AnatomicalStructurePrimary": "CortexLeft"}),
    )
    nibabel.save(surface, tmp_path / "a.surf.gii")
    with pytest.raises(DataError, match="no values at every vertex"):
        open_run(tmp_path / "a.surf.gii")
    other = save_gifti(tmp_path / "o_hemi-R_bold.func.gii", data[N_LEFT:-1], "CortexRight")
    grids = [open_run(p).grid for p in ((left, right), (left, other), (left,))]
    assert grid_difference(grids[0], grids[1]) == "30 + 42 against 30 + 41 vertices"
    assert not same_grid(grids[0], grids[2])
    assert same_grid(grids[0], grids[0].with_mask(np.arange(72) > 3))


@pytest.mark.parametrize("keep", [0, 20, 500, -400, -9])
def test_truncated_gifti(pair, tmp_path, keep):
    path = tmp_path / "cut_hemi-L_bold.func.gii"
    path.write_bytes(pair[0][0].read_bytes()[:keep])
    with pytest.raises(FileFaultError, match=r"cut_hemi-L.*Copy it again"):
        check_complete(path)
    with pytest.raises(FileFaultError, match=r"cut_hemi-L.*Copy it again"):
        open_run(path)


def test_corrupt_gifti(pair, tmp_path):
    text = pair[0][0].read_text()
    middle = text.index("<Data>") + 40
    path = tmp_path / "corrupt_hemi-L_bold.func.gii"
    path.write_text(text[:middle] + "AAAAAAAA" + text[middle + 8 :])
    check_complete(pair[0][0])
    with pytest.raises(FileFaultError, match="corrupt_hemi-L"):
        open_run(path).load()


def test_gifti_maps_are_read_by_nilearn(pair, tmp_path):
    from nilearn.surface import load_surf_data

    grid = open_run(pair[0]).grid.with_mask(np.arange(72) % 7 != 0)
    values = np.random.default_rng(2).normal(size=(72, 20))
    want = np.where(grid.mask_points[:, None], values, np.nan).astype(np.float32)
    paths = (tmp_path / "b_hemi-L_statmap.func.gii", tmp_path / "b_hemi-R_statmap.func.gii")
    assert write_maps(grid, paths, values, names=[f"trial {k}" for k in range(20)], fill=np.nan) == list(
        paths
    )
    for path, part, structure in zip(
        paths, (want[:N_LEFT], want[N_LEFT:]), ("CortexLeft", "CortexRight"), strict=True
    ):
        np.testing.assert_array_equal(load_surf_data(path), part)
        image = nibabel.load(path)
        assert image.meta["AnatomicalStructurePrimary"] == structure
        assert [a.meta["Name"] for a in image.darrays] == [f"trial {k}" for k in range(20)]
        assert b"CoordinateSystem" not in path.read_bytes()
        check_complete(path)
    np.testing.assert_array_equal(read_maps(paths, grid)[1], want)
    first = [p.read_bytes() for p in paths]
    write_maps(grid, paths, values[grid.mask_points], names=[f"trial {k}" for k in range(20)], fill=np.nan)
    assert [p.read_bytes() for p in paths] == first
    # one map, back as a vector
    write_maps(grid, paths, values[:, 0], fill=np.nan)
    np.testing.assert_array_equal(read_maps(paths)[1], want[:, 0])


def test_gifti_labels_and_masks(pair, tmp_path):
    grid = open_run(pair[0]).grid
    labels = np.random.default_rng(3).integers(0, 4, 72)
    paths = (tmp_path / "h_hemi-L_dseg.label.gii", tmp_path / "h_hemi-R_dseg.label.gii")
    write_maps(grid, paths, labels, intent="label", labels={1: "HRF 1"})
    image = nibabel.load(paths[1])
    np.testing.assert_array_equal(image.darrays[0].data, labels[N_LEFT:])
    assert image.darrays[0].data.dtype == np.int32
    table = image.labeltable.get_labels_as_dict()
    assert (table[0], table[1], table[2]) == ("???", "HRF 1", "2")
    write_maps(grid, paths, labels > 1, intent="mask")
    np.testing.assert_array_equal(read_mask(paths, grid), labels > 1)


def brain_models():
    left = BrainModelAxis.from_mask(np.arange(N_LEFT) % 5 != 0, name="CortexLeft")
    right = BrainModelAxis.from_mask(np.arange(N_RIGHT) % 6 != 0, name="CortexRight")
    block = np.zeros((4, 5, 6), bool)
    block[1:3, 1:4, 2:5] = True
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    return left + right + BrainModelAxis.from_mask(block, name="ThalamusLeft", affine=affine)


def save_series(path, data, axis, series=None):
    series = series or SeriesAxis(0, 1.35, len(data[0]))
    image = nibabel.Cifti2Image(data.T.astype(np.float32), (series, axis))
    image.nifti_header.set_intent("ConnDenseSeries")
    nibabel.save(image, path)
    return path


@pytest.fixture
def dense(tmp_path):
    axis = brain_models()
    data = np.random.default_rng(4).normal(size=(len(axis), N_VOLUMES)).astype(np.float32)
    return save_series(tmp_path / "sub-01_space-fsLR_den-91k_bold.dtseries.nii", data, axis), data, axis


def test_cifti_run(dense, monkeypatch):
    path, data, axis = dense
    run = open_run(path)
    assert (run.grid.kind, run.grid.n_points) == ("cifti", len(axis))
    assert (run.n_volumes, run.tr_header) == (N_VOLUMES, 1.35)
    assert run.grid.brain_models == axis
    points = np.random.default_rng(5).random(len(axis)) < 0.6
    for block in (1, 1000, 1 << 25):
        monkeypatch.setattr("conform_app.images.cifti.BLOCK_BYTES", block)
        np.testing.assert_array_equal(run.load(points), data[points])
    assert run.load().flags.c_contiguous
    check_complete(path)
    short = path.with_name("cut_bold.dtseries.nii")
    for keep in (-4, -3000, 700, 0):
        short.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(FileFaultError, match=r"cut_bold.*Copy it again"):
            open_run(short).load()
        with pytest.raises(FileFaultError, match=r"cut_bold.*Copy it again"):
            check_complete(short)


def test_cifti_grids_differ(dense, tmp_path):
    _, data, axis = dense
    n = len(axis)
    grid = open_run(dense[0]).grid

    def other(name, changed):
        rows = np.zeros((len(changed), 2))
        return grid_difference(
            grid, open_run(save_series(tmp_path / f"{name}.dtseries.nii", rows, changed)).grid
        )

    assert other("same", brain_models()) == ""
    assert other("fewer", axis[: n - 1]) == f"{n} against {n - 1} grayordinates"
    moved = brain_models()
    moved.affine = moved.affine + np.array([[0, 0, 0, 1], [0] * 4, [0] * 4, [0] * 4])
    assert "differ by up to 1 mm" in other("moved", moved)
    vertices = brain_models()
    vertices.vertex[0] = 5
    assert "vertices" in other("vertices", vertices)
    scalars = nibabel.Cifti2Image(data[:, :2].T, (ScalarAxis(["a", "b"]), axis))
    nibabel.save(scalars, tmp_path / "a.dscalar.nii")
    with pytest.raises(DataError, match="is not a time series"):
        open_run(tmp_path / "a.dscalar.nii")


def test_cifti_maps(dense, tmp_path):
    grid = open_run(dense[0]).grid
    axis, n = dense[2], grid.n_points
    grid = grid.with_mask(np.arange(n) % 9 != 0)
    values = np.random.default_rng(6).normal(size=(n, 12)).astype(np.float32)
    want = np.where(grid.mask_points[:, None], values, 0)
    path = tmp_path / "b.dscalar.nii"
    write_maps(grid, path, values, names=[f"trial {k}" for k in range(12)])
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Cifti2Image)
    assert image.nifti_header.get_intent()[0] == "ConnDenseScalar"
    assert list(image.header.get_axis(0).name) == [f"trial {k}" for k in range(12)]
    assert image.header.get_axis(1) == axis
    np.testing.assert_array_equal(image.get_fdata(), want.T)
    np.testing.assert_array_equal(read_maps(path, grid)[1], want)
    check_complete(path)
    first = path.read_bytes()
    write_maps(grid, path, values[grid.mask_points], names=[f"trial {k}" for k in range(12)])
    assert path.read_bytes() == first


def test_cifti_labels_and_masks(dense, tmp_path):
    grid = open_run(dense[0]).grid
    labels = np.arange(grid.n_points) % 3
    path = tmp_path / "h.dlabel.nii"
    write_maps(grid, path, labels, intent="label", labels={2: "two"})
    image = nibabel.load(path)
    assert image.header.get_axis(0).label[0][2][0] == "two"
    np.testing.assert_array_equal(image.get_fdata()[0], labels)
    write_maps(grid, path, labels > 0, intent="mask")
    np.testing.assert_array_equal(read_mask(path, grid), labels > 0)
