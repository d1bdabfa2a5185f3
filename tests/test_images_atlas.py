# SPDX-License-Identifier: Apache-2.0
"""Labels of an atlas on volumes, GIFTI hemispheres and grayordinates."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, LabelAxis
from nibabel.gifti import GiftiDataArray, GiftiImage

from conform_app.errors import DataError, NoInputError
from conform_app.images import Grid, write_maps
from conform_app.images.atlas import read_labels

SHAPE = (4, 3, 2)
N = 20  # vertices of a hemisphere


def volume_grid():
    affine = np.diag([3.0, 3, 3, 1])
    return Grid("volume", SHAPE, affine=affine, header=nib.Nifti1Image(np.zeros(SHAPE), affine).header)


def gifti_grid():
    return Grid("gifti", (N, N), structures=("CortexLeft", "CortexRight"))


def axis(left, right, voxels=()):
    parts = [
        BrainModelAxis.from_surface(left, N, "CIFTI_STRUCTURE_CORTEX_LEFT"),
        BrainModelAxis.from_surface(right, N, "CIFTI_STRUCTURE_CORTEX_RIGHT"),
    ]
    if len(voxels):
        volume = np.zeros(SHAPE, bool)
        volume[tuple(np.array(voxels).T)] = True
        parts.append(BrainModelAxis.from_mask(volume, affine=np.diag([2.0, 2, 2, 1]), name="thalamus_left"))
    return sum(parts[1:], parts[0])


def cifti_grid(*parts):
    models = axis(*parts)
    return Grid("cifti", (len(models),), brain_models=models)


def save_pair(folder, left, right):
    paths = []
    for side, values in (("L", left), ("R", right)):
        image = GiftiImage(
            darrays=[GiftiDataArray(np.asarray(values, np.int32), intent="NIFTI_INTENT_LABEL")]
        )
        paths.append(folder / f"hemi-{side}_dseg.label.gii")
        nib.save(image, paths[-1])
    return paths


def save_dlabel(path, values, models):
    table = {int(v): (str(v), (1, 0, 0, 1)) for v in np.unique(values)}
    header = nib.Cifti2Header.from_axes((LabelAxis(["x"], [table]), models))
    nib.save(nib.Cifti2Image(np.asarray(values, np.float32)[None], header), path)
    return path


def test_volume_on_the_grid_only(tmp_path):
    grid, labels = volume_grid(), np.arange(np.prod(SHAPE)) % 5
    path = tmp_path / "dseg.nii.gz"
    write_maps(grid, path, labels, intent="label")
    np.testing.assert_array_equal(read_labels(path, grid), labels)
    other = Grid("volume", SHAPE, affine=np.diag([2.0, 2, 2, 1]), header=grid.header)
    with pytest.raises(DataError, match="another grid"):
        read_labels(path, other)
    with pytest.raises(DataError, match="space of the data"):
        read_labels(path, gifti_grid())
    with pytest.raises(NoInputError):
        read_labels(tmp_path / "none.nii.gz", grid)
    write_maps(grid, tmp_path / "p.nii.gz", labels / 4)
    with pytest.raises(DataError, match="whole numbers"):
        read_labels(tmp_path / "p.nii.gz", grid)
    write_maps(grid, tmp_path / "two.nii.gz", np.stack([labels, labels], 1))
    with pytest.raises(DataError, match="2 maps"):
        read_labels(tmp_path / "two.nii.gz", grid)


def test_hemispheres_with_equal_numbers_are_apart(tmp_path):
    left, right = np.arange(N) % 4, np.arange(N) % 3
    got = read_labels(save_pair(tmp_path, left, right), gifti_grid())
    np.testing.assert_array_equal(got[:N], left)
    np.testing.assert_array_equal(got[N:] == 0, right == 0)
    assert not set(got[:N][left > 0]) & set(got[N:][right > 0])
    with pytest.raises(DataError, match="20 vertices a hemisphere, the data have 25"):
        read_labels(
            save_pair(tmp_path, left, right), Grid("gifti", (25, 25), structures=gifti_grid().structures)
        )


def test_vertices_are_met_whatever_else_the_file_holds(tmp_path):
    left, right, voxels = np.array([1, 4, 7]), np.array([0, 19]), [(1, 1, 1), (2, 0, 0)]
    grid = cifti_grid(left, right, voxels)
    cortex = np.arange(2 * N) + 1  # every vertex, without subcortex
    path = save_dlabel(tmp_path / "all.dlabel.nii", cortex, axis(np.arange(N), np.arange(N)))
    np.testing.assert_array_equal(read_labels(path, grid), [2, 5, 8, 21, 40, 0, 0])
    np.testing.assert_array_equal(read_labels(path, gifti_grid()), cortex)
    pair = save_pair(tmp_path, cortex[:N], cortex[:N])
    np.testing.assert_array_equal(read_labels(pair, grid), [2, 5, 8, 21, 40, 0, 0])
    same = save_dlabel(tmp_path / "same.dlabel.nii", [9, 8, 7, 6, 5, 4, 3], grid.brain_models)
    np.testing.assert_array_equal(read_labels(same, grid), [9, 8, 7, 6, 5, 4, 3])
    part = save_dlabel(tmp_path / "part.dlabel.nii", [9, 8, 5], axis(left[:1], right[:1], voxels[1:]))
    np.testing.assert_array_equal(read_labels(part, grid), [9, 0, 0, 8, 0, 0, 5])
    with pytest.raises(DataError, match="space of the data"):
        read_labels(same, volume_grid())


def test_other_subcortical_volumes_are_refused(tmp_path):
    grid = cifti_grid(np.array([1]), np.array([2]), [(1, 1, 1)])
    volume = np.zeros((5, 5, 5), bool)
    volume[1, 1, 1] = True
    models = axis(np.array([1]), np.array([2])) + BrainModelAxis.from_mask(
        volume, affine=np.diag([2.0, 2, 2, 1]), name="thalamus_left"
    )
    path = save_dlabel(tmp_path / "x.dlabel.nii", [1, 2, 3], models)
    with pytest.raises(DataError, match="on another grid"):
        read_labels(path, grid)
