# SPDX-License-Identifier: Apache-2.0
"""Transforms of points against ITK itself: a composite written by ITK with the points as ITK carries them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from conform_app.errors import DataError, FileFaultError, NoInputError
from conform_app.images.transforms import Affine, PointMap, read_points

SAVED = Path(__file__).parent / "data" / "surface"
FLIP = np.array([-1.0, -1.0, 1.0])
NAME = "sub-01_from-MNI152NLin6Asym_to-T1w_mode-image_xfm.h5"
ENDS = {"source": "T1w", "target": "MNI152NLin6Asym"}


@pytest.fixture
def composite(tmp_path):
    path = tmp_path / NAME
    path.write_bytes((SAVED / "itk_composite.h5").read_bytes())
    return path


def test_a_composite_carries_points_as_itk_does(composite):
    """Affine, displacement field on an oblique grid, Euler angles; points inside and outside the field."""
    saved = np.load(SAVED / "itk_points.npz")
    carry = read_points(composite, **ENDS)
    assert [type(step).__name__ for step in carry.steps] == ["Affine", "Displacement", "Affine"]
    assert carry.matrix is None
    np.testing.assert_allclose(carry(saved["points"] * FLIP) * FLIP, saved["out"], atol=1e-10)


def test_names_of_old_itk_and_single_precision(composite):
    saved = np.load(SAVED / "itk_points.npz")
    with h5py.File(composite, "r+") as file:
        for number in "123":
            group = file["TransformGroup"][number]
            for name in ("Parameters", "FixedParameters"):
                values = group[f"Transform{name}"][()]
                del group[f"Transform{name}"]
                group[f"Tranform{name}"] = values.astype(np.float32) if values.size > 100 else values
    got = read_points(composite, **ENDS)(saved["points"] * FLIP) * FLIP
    np.testing.assert_allclose(got, saved["out"], atol=1e-5)


def test_affine_parts_become_one_matrix_with_an_inverse(composite):
    with h5py.File(composite, "r+") as file:
        del file["TransformGroup"]["2"]
    there, back = read_points(composite, **ENDS), read_points(composite, source=ENDS["target"], target="T1w")
    np.testing.assert_allclose(back.matrix @ there.matrix, np.eye(4), atol=1e-12)
    points = np.random.default_rng(0).normal(0, 40, (5, 3))
    np.testing.assert_allclose(Affine(there.matrix)(points), there(points), atol=1e-12)
    np.testing.assert_allclose(there.then(back)(points), points, atol=1e-10)
    assert PointMap()(points) is points


def test_a_field_in_the_wrong_direction_names_the_file_to_add(composite):
    with pytest.raises(DataError, match="has no inverse") as caught:
        read_points(composite, source="MNI152NLin6Asym", target="T1w")
    assert "from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5" in caught.value.remedy
    with pytest.raises(DataError, match="does not lead from boldref to T1w"):
        read_points(composite, source="boldref", target="T1w")


def test_rigid_text_is_read(tmp_path):
    """Numbers of ITK: what its Euler3DTransform of these angles makes of (1, 2, 30)."""
    path = tmp_path / "sub-01_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"
    text = "#Insight Transform File V1.0\n#Transform 0\nTransform: Euler3DTransform_double_3_3\n"
    path.write_text(text + "Parameters: 0.1 -0.2 0.3 5 6 7\nFixedParameters: 1 2 3 0\n")
    got = read_points(path, source="T1w", target="boldref")(np.array([[1.0, 2.0, 30.0]]) * FLIP) * FLIP
    np.testing.assert_allclose(got, [[1.6562032620262057, 3.891027486566923, 36.32959883444903]], atol=1e-12)


def test_what_cannot_be_read_is_named(composite, tmp_path):
    with h5py.File(composite, "r+") as file:
        kind = file["TransformGroup/3/TransformType"]
        kind[0] = b"BSplineTransform_double_3_3"
    with pytest.raises(DataError, match=r"from-MNI152NLin6Asym_to-T1w.*BSplineTransform_double_3_3"):
        read_points(composite, **ENDS)
    with h5py.File(composite, "r+") as file:
        file["TransformGroup/3/TransformType"][0] = b"AffineTransform_double_2_2"
    with pytest.raises(DataError, match="not one of 3-D points"):
        read_points(composite, **ENDS)
    with h5py.File(composite, "r+") as file:
        del file["TransformGroup/3/TransformType"]
    with pytest.raises(DataError, match="without a name"):
        read_points(composite, **ENDS)
    with h5py.File(composite, "r+") as file:
        del file["TransformGroup"]
    with pytest.raises(DataError, match="no transform that ITK wrote"):
        read_points(composite, **ENDS)
    composite.write_bytes((SAVED / "itk_composite.h5").read_bytes()[:5000])
    with pytest.raises(FileFaultError, match="truncated or corrupt"):
        read_points(composite, **ENDS)
    with pytest.raises(NoInputError, match="does not exist"):
        read_points(tmp_path / "nothing.h5", **ENDS)


def test_a_field_that_is_cut_off_is_refused(composite):
    with h5py.File(composite, "r+") as file:
        group = file["TransformGroup/2"]
        short = group["TransformParameters"][:-3]
        del group["TransformParameters"]
        group["TransformParameters"] = short
    with pytest.raises(DataError, match="displacement field is not complete"):
        read_points(composite, **ENDS)
