# SPDX-License-Identifier: Apache-2.0
"""Names of an atlas's regions belong to the numbers that its labels have."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from conform_app.encode.given import read_regions
from conform_app.images import Grid, write_maps
from conform_app.images.atlas import read_labels
from conform_app.images.atlasnames import label_names

LEFT = np.array([0, 1, 2, 2, 3])
RIGHT = np.array([0, 0, 1, 3, 3])
NAMES = {1: "V1", 2: "V2", 3: "FFA"}
PAIR = Grid("gifti", (5, 5), structures=("CortexLeft", "CortexRight"))


@pytest.fixture
def pair(tmp_path):
    paths = [tmp_path / f"hemi-{h}_dseg.label.gii" for h in "LR"]
    write_maps(PAIR, paths, np.concatenate([LEFT, RIGHT]), intent="label", labels=NAMES)
    return tuple(map(str, paths))


def regions(files, grid_files, n) -> dict[str, list[int]]:
    found = read_regions(files, n, (grid_files,))
    return {name: np.flatnonzero(mask).tolist() for name, mask in found.items()}


def test_two_hemispheres_have_regions_of_their_own(pair) -> None:
    numbers, names = read_labels(pair, PAIR), label_names(pair)
    assert [names.get(int(n), "") for n in numbers] == [
        "", "L V1", "L V2", "L V2", "L FFA", "", "", "R V1", "R FFA", "R FFA",
    ]  # fmt: skip
    assert regions(pair, pair, 10) == {
        "L V1": [1],
        "L V2": [2, 3],
        "L FFA": [4],
        "R V1": [7],
        "R FFA": [8, 9],
    }


def test_grayordinates(tmp_path) -> None:
    axis = nib.cifti2.BrainModelAxis.from_mask(np.ones(5, bool), name="CortexLeft")
    grid, path = Grid("cifti", (5,), brain_models=axis), tmp_path / "x.dlabel.nii"
    write_maps(grid, path, LEFT, intent="label", labels=NAMES)
    assert label_names(path) == NAMES
    assert regions((str(path),), (str(path),), 5) == {"V1": [1], "V2": [2, 3], "FFA": [4]}


@pytest.mark.parametrize("table", [True, False])
def test_a_volume_has_its_names_beside_it(tmp_path, table) -> None:
    image = nib.Nifti1Image(LEFT.reshape(5, 1, 1).astype(np.int16), np.eye(4))
    path = tmp_path / "x_dseg.nii.gz"
    nib.save(image, path)
    if table:
        (tmp_path / "x_dseg.tsv").write_text("index\tname\n1\tV1\n2\tV2\n3\tFFA\nx\ty\n")
    assert label_names(path) == (NAMES if table else {})
    named = NAMES if table else {n: f"label {n}" for n in NAMES}
    assert regions((str(path),), (str(path),), 5) == {named[1]: [1], named[2]: [2, 3], named[3]: [4]}
