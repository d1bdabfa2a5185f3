# SPDX-License-Identifier: Apache-2.0
"""Runs left on disk give the rows that reading them gives, whatever the format."""

import nibabel
import numpy as np
import pytest

from conform_app.errors import DataError, FileFaultError
from conform_app.images import open_run

N = 6


def volume(folder, name, scaled):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1000, (5, 4, 3, N)).astype(np.int16)
    image = nibabel.Nifti1Image(data, np.eye(4))
    if scaled:
        image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, folder / name)
    return (folder / name,)


def grayordinates(folder):
    rng = np.random.default_rng(1)
    mask = np.ones(40, bool)
    models = nibabel.cifti2.BrainModelAxis.from_mask(mask, name="cortex_left")
    series = nibabel.cifti2.SeriesAxis(0, 2, N, "SECOND")
    image = nibabel.Cifti2Image(rng.normal(size=(N, 40)).astype(np.float32), (series, models))
    image.to_filename(folder / "run.dtseries.nii")
    return (folder / "run.dtseries.nii",)


def surfaces(folder):
    rng = np.random.default_rng(2)
    paths = []
    for hemi, n in (("L", 25), ("R", 30)):
        arrays = [
            nibabel.gifti.GiftiDataArray(
                rng.normal(size=n).astype(np.float32),
                intent="NIFTI_INTENT_TIME_SERIES",
                datatype="NIFTI_TYPE_FLOAT32",
            )
            for _ in range(N)
        ]
        structure = f"Cortex{'Left' if hemi == 'L' else 'Right'}"
        image = nibabel.GiftiImage(
            darrays=arrays, meta=nibabel.gifti.GiftiMetaData(AnatomicalStructurePrimary=structure)
        )
        path = folder / f"sub-01_task-a_hemi-{hemi}_space-fsaverage_bold.func.gii"
        nibabel.save(image, path)
        paths.append(path)
    return tuple(paths)


MAKERS = {
    "volume": lambda f: volume(f, "run.nii", False),
    "gzipped volume": lambda f: volume(f, "run.nii.gz", False),
    "scaled volume": lambda f: volume(f, "run.nii.gz", True),
    "grayordinates": grayordinates,
    "surfaces": surfaces,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_on_disk_equal_rows_in_memory(kind, masked, tmp_path):
    run = open_run(MAKERS[kind](tmp_path))
    points = np.random.default_rng(3).random(run.grid.n_points) < 0.6 if masked else None
    whole = run.load(points)
    rows = run.leave_on_disk(points, tmp_path / "scratch.f4")
    assert rows.shape == whole.shape
    assert (tmp_path / "scratch.f4").exists() == (kind != "grayordinates")
    for lo in range(0, len(whole), 7):
        block = rows[lo : lo + 7]
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block, whole[lo : lo + 7])
    assert rows[3:3].shape == (0, N)


def test_faults_are_named(tmp_path):
    run = open_run(grayordinates(tmp_path))
    with pytest.raises(DataError, match="points"):
        run.leave_on_disk(np.ones(3, bool), tmp_path / "scratch.f4")
    rows = run.leave_on_disk(None, tmp_path / "scratch.f4")
    path = run.paths[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileFaultError, match=r"run\.dtseries\.nii"):
        rows[0:40]
    other = open_run(volume(tmp_path, "run.nii.gz", False))
    with pytest.raises(FileFaultError, match="cannot be written"):
        other.leave_on_disk(None, tmp_path / "nowhere" / "scratch.f4")
