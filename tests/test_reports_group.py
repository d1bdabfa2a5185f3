# SPDX-License-Identifier: Apache-2.0
"""The group report: what counts as in the collection, and which surface maps are drawn on."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from small_surfaces import ball

from conform_app.cli.groupreport import _brain
from conform_app.reports.groupsections import Book, GroupData, in_collection, methodology
from conform_app.reports.style import figure_style

N = 300  # of a mesh that no template has


def test_trials_of_those_who_are_not_merged_have_no_place_in_the_split():
    trials = pd.DataFrame({"participant": ["a", "a", "b"], "split": ["train", "test", "train"]})
    people = pd.DataFrame({"participant": ["a", "b"], "merged": [True, False]})
    data = GroupData({"trials": trials, "participants": people}, {}, set())
    assert in_collection(data)["split"].tolist() == ["train", "test", "n/a"]
    nobody = GroupData({"trials": trials, "participants": people.assign(merged=False)}, {}, set())
    assert in_collection(nobody)["split"].tolist() == ["train", "test", "train"]


def test_maps_are_drawn_on_a_participants_surface_where_there_is_no_template(tmp_path):
    masks, middles = [], []
    points, triangles = ball(N)
    for hemi in "LR":
        data = nib.gifti.GiftiDataArray(np.ones(N, np.float32), intent="NIFTI_INTENT_NONE")
        masks.append(tmp_path / f"sub-01_hemi-{hemi}_space-fsLR_desc-brain_mask.func.gii")
        nib.save(nib.gifti.GiftiImage(darrays=[data]), masks[-1])
        arrays = [
            nib.gifti.GiftiDataArray((50 * points).astype(np.float32), intent="NIFTI_INTENT_POINTSET"),
            nib.gifti.GiftiDataArray(triangles.astype(np.int32), intent="NIFTI_INTENT_TRIANGLE"),
        ]
        middles.append(tmp_path / f"sub-01_hemi-{hemi}_space-fsLR_midthickness.surf.gii")
        nib.save(nib.gifti.GiftiImage(darrays=arrays), middles[-1])
    collection = SimpleNamespace(
        n_vertices=2 * N, space="fsLR_den-32k", valid_vertices=lambda: np.arange(2 * N)
    )
    summary = {"geometry": [["gone.gii"], list(map(str, masks))]}
    assert not _brain(collection, summary).drawable
    brain = _brain(collection, {**summary, "surfaces": [[], list(map(str, middles))]})
    assert brain.drawable
    assert [mesh.vertices.shape for mesh in brain.meshes] == [(N, 3)] * 2
    assert "middle surface" in brain.geometry


@pytest.mark.parametrize(
    ("n", "words"), [(6, "a row a session."), (61, "a row a dataset, the darker the more")]
)
def test_the_caption_of_missing_facts_says_what_a_row_is(n, words, tmp_path):
    table = pd.DataFrame(
        {"participant": [f"sub-{i:02d}_A" for i in range(n)], "dataset": "A", "session": "n/a"}
    )
    table["EchoTime"] = ["n/a", *["0.03"] * (n - 1)]
    missing = pd.DataFrame(columns=["field", "required", "n_missing", "n_rows", "datasets", "remedy"])
    data = GroupData({"methodology": table, "missing": missing}, {}, {"EchoTime"})
    with figure_style():
        part = methodology(data, Book(tmp_path))
    assert f"(orange), {words}" in part.figures[0].caption
