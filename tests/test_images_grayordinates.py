# SPDX-License-Identifier: Apache-2.0
"""Grayordinates of fsLR:den-91k against those of the HCP's own file."""

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis

from conform_app.images import Grid, write_maps
from conform_app.images.series import SUBCORTEX, grayordinate_grid, voxels_of, write_series
from conform_app.images.surfaces import read_vertices

DATA = Path(__file__).parent / "data" / "templates"
LABELS = DATA / "Atlas_ROIs.2.nii.gz"


@pytest.fixture(scope="module")
def real():
    """The axis of 91282_Greyordinates.dscalar.nii, see tests/data/templates/LICENSE.md."""
    stored = np.load(DATA / "grayordinates_91282.npz")
    names = np.repeat(stored["structures"], stored["counts"])
    n_left, n_right = len(stored["left"]), len(stored["right"])
    vertices = np.full(names.size, -1)
    vertices[:n_left] = stored["left"].astype(int).cumsum()
    vertices[n_left : n_left + n_right] = stored["right"].astype(int).cumsum()
    voxels = np.full((names.size, 3), -1)
    voxels[n_left + n_right :] = stored["voxels"].astype(int).cumsum(axis=0)
    sides = {f"CIFTI_STRUCTURE_CORTEX_{side}": int(stored["n_vertices"]) for side in ("LEFT", "RIGHT")}
    return BrainModelAxis(
        names,
        voxel=voxels,
        vertex=vertices,
        affine=stored["affine"],
        volume_shape=tuple(map(int, stored["volume_shape"])),
        nvertices=sides,
    )


@pytest.fixture(scope="module")
def ours():
    walls = [read_vertices(DATA / f"{hemi}.atlasroi.32k_fs_LR.shape.gii", 32492) for hemi in "LR"]
    return grayordinate_grid(walls, LABELS)


def the_same(found, real):
    assert len(found) == len(real) == 91282
    assert list(dict.fromkeys(found.name)) == list(dict.fromkeys(real.name))
    np.testing.assert_array_equal(found.name, real.name)
    np.testing.assert_array_equal(found.vertex[found.surface_mask], real.vertex[real.surface_mask])
    np.testing.assert_array_equal(found.voxel[~found.surface_mask], real.voxel[~real.surface_mask])
    np.testing.assert_array_equal(found.affine, real.affine)
    assert found.volume_shape == real.volume_shape == (91, 109, 91)
    assert dict(found.nvertices) == dict(real.nvertices)
    assert found == real


def test_the_grayordinates_are_those_of_the_hcp(ours, real):
    """Structures and their order, vertices, voxels and their order, affine: all equal."""
    the_same(ours.brain_models, real)
    assert {f"CIFTI_STRUCTURE_{name}" for name in SUBCORTEX} == set(real.name[~real.surface_mask])


def test_files_that_are_written_hold_them(ours, real, tmp_path):
    values = np.arange(2 * 91282, dtype=np.float32).reshape(91282, 2)
    write_series(ours, [tmp_path / "a.dtseries.nii"], values, 2.0)
    (written,) = write_maps(ours, [tmp_path / "a.dscalar.nii"], values, names=["a", "b"])
    for path in (tmp_path / "a.dtseries.nii", written):
        image = nib.load(path)
        the_same(image.header.get_axis(1), real)
        np.testing.assert_array_equal(np.asarray(image.dataobj).T, values)


@pytest.mark.skipif(shutil.which("wb_command") is None, reason="wb_command is not installed")
def test_workbench_finds_each_voxel_where_the_segmentation_has_its_structure(ours, tmp_path):
    """Grayordinates that say their structure's number, as a volume: the segmentation again."""
    numbers = {f"CIFTI_STRUCTURE_{name}": number for name, number in SUBCORTEX.items()}
    values = np.array([numbers.get(name, 0) for name in ours.brain_models.name], np.float32)
    path = tmp_path / "a.dscalar.nii"
    write_maps(ours, [path], values[:, None], names=["a"])
    volume = tmp_path / "a.nii.gz"
    words = ["wb_command", "-cifti-separate", path, "COLUMN", "-volume-all", volume]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    image = nib.load(volume)
    found = nib.load(LABELS)
    np.testing.assert_array_equal(np.asarray(image.dataobj).squeeze(), np.asarray(found.dataobj))
    np.testing.assert_allclose(image.affine, found.affine)


def test_values_of_a_volume_on_that_grid_come_in_their_order(ours, real):
    """Runs in the template at 2 mm, stored with either handedness."""
    for first in (-2.0, 2.0):
        affine = np.diag([first, 2.0, 2.0, 1.0])
        affine[:3, 3] = (90.0 if first < 0 else -90.0), -126.0, -72.0
        points = voxels_of(ours, Grid("volume", (91, 109, 91), affine=affine))
        i, j, k = real.voxel[~real.surface_mask].T
        i = i if first < 0 else 90 - i
        np.testing.assert_array_equal(points, (i * 109 + j) * 91 + k)
