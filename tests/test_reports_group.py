# SPDX-License-Identifier: Apache-2.0
"""The group report: what counts as in the collection, and which surface maps are drawn on."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
from small_surfaces import ball

from conform_app.cli.groupreport import _brain
from conform_app.reports.groupsections import GroupData, in_collection

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
