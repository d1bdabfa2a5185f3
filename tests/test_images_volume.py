# SPDX-License-Identifier: Apache-2.0
"""NIfTI runs and maps against nibabel."""

import gzip
import pickle
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conform_app.errors import CannotCreateError, DataError, FileFaultError, NoInputError
from conform_app.images import (
    check_complete,
    finite_varying,
    grid_difference,
    open_run,
    read_maps,
    read_mask,
    same_grid,
    write_maps,
)

SHAPE = (7, 5, 4)
AFFINE = np.array([[-2.0, 0.1, 0, 30], [0, 2.5, 0.2, -40], [0, 0, 3, -10], [0, 0, 0, 1]])


def save(path, data, affine=AFFINE, tr=2.5, units=("mm", "sec"), cls=nibabel.Nifti1Image, **scale):
    image = cls(data, affine)
    image.header.set_xyzt_units(*units)
    image.set_sform(affine, 4)
    image.set_qform(affine, 2, strip_shears=True)
    if data.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    image.header["descrip"] = b"secret"
    if scale:
        image.header.set_slope_inter(scale["slope"], scale["inter"])
    nibabel.save(image, path)
    return path


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.normal(100, 10, (*SHAPE, 11)).astype(np.float32)
    return save(tmp_path / "sub-01_task-a_space-func_desc-preproc_bold.nii.gz", data), data


def test_header_and_values(run, monkeypatch):
    path, data = run
    bold = open_run(path)
    assert (bold.grid.kind, bold.grid.shape, bold.grid.n_points) == ("volume", SHAPE, 140)
    assert (bold.n_volumes, bold.tr_header) == (11, 2.5)
    points = np.random.default_rng(1).random(140) < 0.4
    want = data.reshape(-1, 11)[points]
    for block in (1, 140 * 4 * 3, 1 << 25):
        monkeypatch.setattr("conform_app.images.volume.BLOCK_BYTES", block)
        got = bold.load(points)
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(bold.load(), data.reshape(-1, 11))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("cls", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_scaled_integers_as_nibabel(tmp_path, suffix, cls):
    raw = np.random.default_rng(2).integers(-3000, 3000, (*SHAPE, 6)).astype(">i2")
    path = tmp_path / f"a_bold{suffix}"
    image = cls(raw * 0.37 + 12.5, AFFINE)
    image.set_data_dtype(np.int16)  # nibabel picks slope and intercept
    image.header.set_xyzt_units("mm", "msec")
    image.header.set_zooms((*image.header.get_zooms()[:3], 1500))
    nibabel.save(image, path)
    bold = open_run(path)
    assert bold.tr_header == 1.5
    want = np.asanyarray(nibabel.load(path).dataobj).reshape(-1, 6)
    np.testing.assert_allclose(bold.load(), want.astype(np.float32), rtol=1e-6)
    check_complete(path)


@pytest.mark.parametrize(
    ("tr", "units", "want"),
    [(2e6, "usec", 2.0), (1.0, "unknown", None), (0.0, "sec", None), (2.0, "hz", None)],
)
def test_tr_units(tmp_path, tr, units, want):
    path = save(tmp_path / "a.nii.gz", np.zeros((*SHAPE, 3), np.float32), tr=tr, units=("mm", units))
    assert open_run(path).tr_header == want


def test_grids_differ(run, tmp_path):
    a = open_run(run[0]).grid
    data = np.zeros((*SHAPE, 2), np.float32)
    near = open_run(save(tmp_path / "b.nii.gz", data, AFFINE + 4e-4)).grid
    far = open_run(save(tmp_path / "c.nii.gz", data, AFFINE + np.diag([0.01, 0, 0, 0]))).grid
    other = open_run(save(tmp_path / "d.nii.gz", data[:-1])).grid
    assert same_grid(a, near)
    assert "0.01 mm" in grid_difference(a, far)
    assert grid_difference(a, other) == "7 x 5 x 4 against 6 x 5 x 4 voxels"
    assert "7 x 5 x 4 voxels" in a.describe()
    assert same_grid(pickle.loads(pickle.dumps(a)), a)  # noqa: S301


def test_masks(run, tmp_path):
    grid = open_run(run[0]).grid
    values = np.random.default_rng(3).random(SHAPE) < 0.3
    path = save(tmp_path / "mask.nii.gz", values.astype(np.uint8))
    mask = read_mask(path, grid)
    np.testing.assert_array_equal(mask, values.ravel())
    np.testing.assert_array_equal(grid.with_mask(mask).mask_points, mask)
    assert grid.mask_points.all()
    assert read_mask((), grid).all()
    empty = save(tmp_path / "empty_mask.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(DataError, match=r"empty_mask.* covers nothing"):
        read_mask(empty, grid)
    nan = save(tmp_path / "nan_mask.nii.gz", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(DataError, match="covers nothing"):
        read_mask(nan, grid)
    with pytest.raises(DataError, match=r"other_mask.* another grid"):
        read_mask(save(tmp_path / "other_mask.nii.gz", values[:-1].astype(np.uint8)), grid)
    with pytest.raises(DataError, match="covers no point"):
        grid.with_mask(np.zeros(140, bool))
    with pytest.raises(DataError, match="139 points"):
        open_run(run[0]).load(np.ones(139, bool))
    with pytest.raises(DataError, match="11 maps"):
        read_mask(run[0], grid)


def test_written_maps_are_read_by_nibabel(run, tmp_path):
    grid = open_run(run[0]).grid
    mask = np.random.default_rng(4).random(140) < 0.5
    masked = grid.with_mask(mask)
    betas = np.random.default_rng(5).normal(size=(140, 9)).astype(np.float32)
    betas[np.flatnonzero(mask)[0]] = np.nan  # a voxel that was not fitted
    betas[np.flatnonzero(mask)[1], 3] = np.nan  # a missing repeat
    want = betas.copy()
    want[~mask] = 0
    want[np.flatnonzero(mask)[0]] = 0
    for name, values in (("full", betas), ("rows", betas[mask])):
        (path,) = write_maps(masked, tmp_path / f"new/{name}.nii.gz", values)
        image = nibabel.load(path)
        assert image.shape == (*SHAPE, 9)
        assert image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(np.asanyarray(image.dataobj).reshape(-1, 9), want)
        got_grid, got = read_maps(path, masked)
        assert got_grid is masked
        np.testing.assert_array_equal(got, want)
        check_complete(path)
    ref, new = nibabel.load(run[0]), image
    for form in ("get_sform", "get_qform"):
        a, b = getattr(ref, form)(coded=True), getattr(new, form)(coded=True)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1] == b[1]
    assert new.header.get_xyzt_units()[0] == "mm"
    assert new.header.get_zooms()[:3] == ref.header.get_zooms()[:3]
    assert new.header["descrip"] == b""
    assert list(tmp_path.glob("new/.*")) == []


@pytest.mark.parametrize(("intent", "dtype"), [("map", np.float32), ("label", np.int16), ("mask", np.uint8)])
def test_single_maps(run, tmp_path, intent, dtype):
    grid = open_run(run[0]).grid
    values = np.random.default_rng(6).integers(0, 2 if intent == "mask" else 20, 140).astype(float)
    values[3] = np.nan
    path = tmp_path / "m.nii.gz"
    write_maps(grid, path, values, intent=intent)
    image = nibabel.load(path)
    assert image.shape == SHAPE
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(image.get_fdata().ravel(), np.nan_to_num(values))
    assert read_maps(path)[1].shape == (140,)


def test_reruns_are_byte_identical(run, tmp_path, monkeypatch):
    grid = open_run(run[0]).grid
    values = np.random.default_rng(7).normal(size=(140, 30))
    first = write_maps(grid, tmp_path / "a.nii.gz", values)[0].read_bytes()
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr("conform_app.images.volume.BLOCK_BYTES", 1000)
    assert write_maps(grid, tmp_path / "b_other_name.nii.gz", values)[0].read_bytes() == first
    assert first[3] == 0  # no name, no comment in the gzip header
    assert struct.unpack("<I", first[4:8]) == (0,)
    # one map given as a column is a series of one; given flat it is a volume
    write_maps(grid, tmp_path / "one.nii", values[:, :1])
    assert nibabel.load(tmp_path / "one.nii").shape == (*SHAPE, 1)


@pytest.mark.parametrize("keep", [0, 10, 300, 1000, -500, -9, -1])
def test_truncated_gzip(run, tmp_path, keep):
    whole = run[0].read_bytes()
    path = tmp_path / "cut_bold.nii.gz"
    path.write_bytes(whole[:keep])
    with pytest.raises(FileFaultError, match=r"cut_bold.*Copy it again"):
        check_complete(path)
    with pytest.raises(FileFaultError, match=r"cut_bold.*Copy it again"):
        open_run(path).load()


def test_corrupt_and_short(run, tmp_path):
    whole = bytearray(run[0].read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    corrupt = tmp_path / "corrupt_bold.nii.gz"
    corrupt.write_bytes(whole)
    with pytest.raises(FileFaultError, match="corrupt_bold"):
        open_run(corrupt).load()
    plain = gzip.decompress(run[0].read_bytes())
    short = tmp_path / "short_bold.nii"
    short.write_bytes(plain[:-100])
    with pytest.raises(FileFaultError, match="short_bold"):
        check_complete(short)
    with pytest.raises(FileFaultError, match="short_bold"):
        open_run(short).load()
    # a whole gzip stream that holds too little
    inner = tmp_path / "inner_bold.nii.gz"
    inner.write_bytes(gzip.compress(plain[:-100]))
    with pytest.raises(FileFaultError, match=r"inner_bold.* bytes"):
        check_complete(inner)
    text = tmp_path / "text_bold.nii.gz"
    text.write_text("not an image")
    with pytest.raises(FileFaultError, match="text_bold"):
        open_run(text)


def test_several_gzip_members_are_fine(run, tmp_path):
    plain = gzip.decompress(run[0].read_bytes())
    path = tmp_path / "members_bold.nii.gz"
    path.write_bytes(b"".join(gzip.compress(plain[k : k + 2000]) for k in range(0, len(plain), 2000)))
    check_complete(path)
    np.testing.assert_array_equal(open_run(path).load(), run[1].reshape(-1, 11))


def test_not_bold(run, tmp_path):
    with pytest.raises(DataError, match=r"flat.* 3 dimensions"):
        open_run(save(tmp_path / "flat.nii.gz", run[1][..., 0]))
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, AFFINE), tmp_path / "rgb.nii.gz")
    with pytest.raises(DataError, match=r"rgb.* real numbers"):
        open_run(tmp_path / "rgb.nii.gz")
    with pytest.raises(NoInputError, match="does not exist"):
        open_run(tmp_path / "absent.nii.gz")
    (tmp_path / "annexed.nii.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NoInputError, match="datalad get"):
        open_run(tmp_path / "annexed.nii.gz")
    with pytest.raises(DataError, match="not an image"):
        open_run(tmp_path / "events.tsv")


def test_finite_varying():
    data = np.random.default_rng(8).normal(size=(6, 20)).astype(np.float32)
    data[1] = 3
    data[2, 5], data[3, 0], data[4, 19] = np.nan, np.inf, -np.inf
    data[5, :10], data[5, 10:] = 1, 2  # constant within a block, not over the run
    blocks = [data[:, :10], data[:, 10:]]
    for given in (data, blocks, iter(blocks)):
        finite, varying = finite_varying(given)
        np.testing.assert_array_equal(finite, [True, True, False, False, False, True])
        np.testing.assert_array_equal(varying, [True, False, False, False, False, True])


def test_cannot_write(run, tmp_path, monkeypatch):
    grid = open_run(run[0]).grid
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match="file"):
        write_maps(grid, tmp_path / "file/a.nii.gz", np.zeros(140))
    with pytest.raises(DataError, match="10 values for 140 points"):
        write_maps(grid, tmp_path / "a.nii.gz", np.zeros(10))
    with pytest.raises(DataError, match="no name for a volume"):
        write_maps(grid, tmp_path / "a.func.gii", np.zeros(140))
    # /dev/full says that the disk is full at the first write
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda p, *a, **k: open("/dev/full", "wb", 0) if p.suffix == ".tmp" else real(p, *a, **k),
    )
    with pytest.raises(FileFaultError, match="No space left"):
        write_maps(grid, tmp_path / "a.nii", np.zeros(140))
    assert not (tmp_path / "a.nii").exists()


@pytest.mark.parametrize("masked", [False, True])
def test_memory(tmp_path, monkeypatch, masked):
    """Neither reading nor writing holds a second copy."""
    import tracemalloc

    monkeypatch.setattr("conform_app.images.volume.BLOCK_BYTES", 1 << 20)
    shape, n = (40, 40, 20), 120
    mask = np.random.default_rng(9).random(np.prod(shape)) < (0.5 if masked else 1.1)
    grid = open_run(save(tmp_path / "a.nii.gz", np.zeros((*shape, 2), np.float32))).grid.with_mask(mask)
    values = np.random.default_rng(10).normal(size=(int(mask.sum()), n)).astype(np.float32)
    tracemalloc.start()
    write_maps(grid, tmp_path / "b.nii.gz", values)
    assert tracemalloc.get_traced_memory()[1] < 0.6 * values.nbytes  # blocks only
    tracemalloc.reset_peak()
    got = open_run(tmp_path / "b.nii.gz").load(mask)
    assert tracemalloc.get_traced_memory()[1] < 1.6 * got.nbytes
    tracemalloc.stop()
    np.testing.assert_array_equal(got, values)
