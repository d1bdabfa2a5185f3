# SPDX-License-Identifier: Apache-2.0
"""PSN in the participant workflow: parcels of an atlas, all voxels at once, and what is told of them."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from conftest import HAXBY
from small_dataset import SHAPE, make_dataset, save

from conform_app.cli import main

FUNC = "sub-01/func/sub-01_task-x_space-T1w"
COMMON = ("--skip-bids-validation", "--sloppy", "--glm-types", "B", "--nprocs", "1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "ds")


def run(dataset, out, *words):
    call = (dataset, out, "participant", "-w", out.parent / "work", *COMMON, *words)
    return main([str(word) for word in call])


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def dseg(path, labels):
    save(path, np.asarray(labels, np.int16).reshape(SHAPE))
    return path


def record(out):
    return json.loads((out / "sub-01" / "log" / "fits" / "sub-01_task-x_space-T1w.json").read_text())


@pytest.mark.end_to_end
def test_regions_of_an_atlas(dataset, tmp_path):
    labels = np.zeros(SHAPE, int)
    labels[:3] = 5  # of these [0] is outside the mask
    labels[3:, :2] = 9
    atlas = dseg(tmp_path / "my_dseg.nii.gz", labels)
    out = tmp_path / "out"
    assert run(dataset, out, "--psn", "wiener", "--psn-parcels", atlas) == 0
    found = record(out)
    parcels = found["choices"]["psn"]["parcels"]
    n_inside, n_free = 5 * 20, 3 * 12
    assert parcels == {
        "kind": "atlas",
        "files": ["my_dseg.nii.gz"],
        "n_labels": 2,
        "n_unlabelled": n_free,
        "estimator": "",
    }
    assert found["choices"]["psn"]["n_parcels"] == 3
    said = " ".join(found["account"])
    assert f"2 regions of the atlas my_dseg.nii.gz by itself; the {n_free} of {n_inside} voxels" in said
    sidecar = json.loads((out / f"{FUNC}_stat-effect_desc-psn_statmap.json").read_text())
    assert any(uri.endswith("my_dseg.nii.gz") for uri in sidecar["Sources"])
    betas = json.loads((out / f"{FUNC}_stat-effect_desc-typeB_statmap.json").read_text())
    assert not any("dseg" in uri for uri in betas["Sources"])
    assert "my_dseg.nii.gz" in (out / "logs" / "CITATION.md").read_text()
    assert "my_dseg.nii.gz" in (out / "sub-01.html").read_text()
    # a region by itself: other regions do not touch it
    other = tmp_path / "other"
    labels[3:, 2:] = 11
    assert run(dataset, other, "--psn", "wiener", "--psn-parcels", dseg(tmp_path / "b.nii.gz", labels)) == 0
    a, b = (nib.load(o / f"{FUNC}_stat-effect_desc-psn_statmap.nii.gz").get_fdata() for o in (out, other))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.end_to_end
def test_a_changed_atlas_is_noticed(dataset, tmp_path, capsys):
    labels = np.ones(SHAPE, int)
    atlas = dseg(tmp_path / "a.nii.gz", labels)
    words = ("--psn", "wiener", "--psn-parcels", atlas)
    assert run(dataset, tmp_path / "out", *words) == 0
    capsys.readouterr()
    assert run(dataset, tmp_path / "out", *words) == 0
    assert "not computed again" in capsys.readouterr().err
    labels[4:] = 2
    dseg(atlas, labels)
    import os

    os.utime(atlas, (2e9, 2e9))
    assert run(dataset, tmp_path / "out", *words) == 0
    assert record(tmp_path / "out")["choices"]["psn"]["n_parcels"] == 2


@pytest.mark.end_to_end
def test_an_atlas_that_cannot_be_used_is_refused_in_one_line(dataset, tmp_path, capsys):
    small = tmp_path / "small.nii.gz"
    save(small, np.ones((3, 3, 3), np.int16))
    outside = np.zeros(SHAPE, int)
    outside[0] = 1
    empty = dseg(tmp_path / "empty.nii.gz", outside)
    cases = (
        ((tmp_path / "none.nii.gz",), 66, "does not exist"),
        ((small,), 65, "another grid"),
        ((empty,), 65, "labels none of the voxels"),
        (("blocks", "none"), 64, "one choice only"),
    )
    for words, code, text in cases:
        assert run(dataset, tmp_path / "out", "--psn-parcels", *words) == code
        line = last_line(capsys)
        assert text in line, line
    assert run(dataset, tmp_path / "off", "--psn", "off", "--psn-parcels", small) == 0


@pytest.mark.end_to_end
def test_all_voxels_at_once(dataset, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(dataset, out, "--psn", "wiener", "--psn-parcels", "none") == 0
    found = record(out)["choices"]["psn"]
    assert found["parcels"]["kind"] == "none"
    assert "in the span of the 24 trials of 100 units" in found["parcels"]["estimator"]
    text = (out / "logs" / "CITATION.md").read_text()
    assert "all voxels at once" in text
    assert "span of the" in text
    assert list((out / "sub-01" / "func").glob("*removed*"))
    page = (out / "sub-01.html").read_text()
    assert "at once" in page
    assert run(dataset, tmp_path / "auto", "--psn", "auto", "--psn-parcels", "none") == 0
    monkeypatch.setattr("conform_app.bids.atlas.MAX_WHOLE", 50)
    assert run(dataset, tmp_path / "refused", "--psn", "auto", "--psn-parcels", "none") == 64
    assert re.search(r"up to 50 voxels at once, and these are 100", last_line(capsys))
    monkeypatch.setattr("conform_app.bids.atlas.MAX_SPAN", 20)
    assert run(dataset, tmp_path / "long", "--psn", "wiener", "--psn-parcels", "none") == 64
    assert "up to 20 trials, and these are 24" in last_line(capsys)


def hemispheres(folder, labels):
    """A pair of label files with the same numbers on both sides."""
    paths = []
    for hemi in "LR":
        array = nib.gifti.GiftiDataArray(np.asarray(labels, np.int32), intent="NIFTI_INTENT_LABEL")
        paths.append(folder / f"hemi-{hemi}_dseg.label.gii")
        nib.save(nib.gifti.GiftiImage(darrays=[array]), paths[-1])
    return paths


@pytest.mark.end_to_end
@pytest.mark.usefixtures("no_templates")
def test_labels_of_hemispheres_on_data_carried_to_the_surface(balls, tmp_path, capsys):
    words = ("--output-spaces", "fsnative", "--psn", "wiener", "--psn-parcels")
    labels = 1 + (np.arange(400) >= 200)
    assert run(balls, tmp_path / "out", *words, *hemispheres(tmp_path, labels)) == 0
    found = json.loads(next((tmp_path / "out").rglob("log/fits/*fsnative*.json")).read_text())
    assert found["choices"]["psn"]["parcels"]["n_labels"] == 4
    assert found["choices"]["psn"]["n_parcels"] == 4
    capsys.readouterr()
    assert run(balls, tmp_path / "a", *words, *hemispheres(tmp_path, labels[:300])) == 65
    assert "300 vertices a hemisphere, the data have 400" in last_line(capsys)
    assert run(balls, tmp_path / "b", *words, dseg(tmp_path / "v.nii.gz", np.ones(SHAPE))) == 65
    assert "is a volume" in last_line(capsys)


@pytest.mark.end_to_end
def test_haxby_with_a_made_atlas(tmp_path):
    mask = nib.load(next(HAXBY.rglob("*desc-brain_mask.nii.gz")))
    inside = np.asarray(mask.dataobj) > 0
    labels = np.where(inside, 1 + (np.arange(inside.shape[0]) >= 20)[:, None, None], 0)
    labels[:, :5] = 0
    nib.save(nib.Nifti1Image(labels.astype(np.int16), mask.affine), tmp_path / "halves_dseg.nii.gz")
    out = tmp_path / "out"
    words = ("--psn-parcels", tmp_path / "halves_dseg.nii.gz", "--sloppy", "--skip-bids-validation")
    call = (HAXBY, out, "participant", "-w", tmp_path / "work", "--nprocs", "1", *words)
    assert main([str(word) for word in call]) == 0
    found = json.loads(next(out.rglob("log/fits/*.json")).read_text())
    assert found["choices"]["psn"]["parcels"]["n_labels"] == 2
    assert found["choices"]["psn"]["n_parcels"] == 3
    error = found["choices"]["psn"]["held_out_error"]
    assert error["after"] < error["before"]
