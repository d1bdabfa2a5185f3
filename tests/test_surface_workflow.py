# SPDX-License-Identifier: Apache-2.0
"""Fits carried to surfaces, as their user runs them: known answers, formats, every kind of source."""

import json
import os
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from small_dataset import SHAPE, bold_files
from small_surfaces import (
    CENTRE,
    COMMON,
    N_NATIVE,
    TYPE_B,
    ball,
    expected_quarter,
    gifti,
    run,
    voxel_quarters,
)

from conform_app.errors import DataError
from conform_app.images import templates
from conform_app.images.surfaces import read_surface
from conform_app.reports.page import build_report
from conform_app.surface import SphereResampler, VolumeToSurface, load_transform

pytestmark = pytest.mark.usefixtures("no_templates")


def betas_of_quarters(out):
    """Betas of the volume, one row a quarter."""
    volume = nib.load(out / "sub-01" / "func" / f"sub-01_task-x_space-T1w_{TYPE_B}.nii.gz").get_fdata()
    quarters = voxel_quarters()
    return np.stack([volume[quarters == number][-1] for number in range(4)])


@pytest.mark.end_to_end
def test_every_vertex_has_the_betas_of_its_quarter_of_the_volume(carried):
    known, func = betas_of_quarters(carried), carried / "sub-01" / "func"
    meshes = {"space-fsLR_den-32k": ball(32492)[0]}
    meshes["space-fsaverage_den-10k"] = read_surface(templates._packaged("sphere", "L"))[0]
    for space, points in meshes.items():
        for hemi in "LR":
            if "fsaverage" in space:
                points = read_surface(templates._packaged("sphere", hemi))[0]
            found, quarter = gifti(func, space, hemi), expected_quarter(points, hemi)
            mask = np.isfinite(found).all(axis=1)
            assert (quarter >= 0).mean() > 0.6
            sure = mask & (quarter >= 0)
            np.testing.assert_allclose(found[sure], known[quarter[sure]], rtol=1e-4, atol=1e-4)
    native = gifti(func, "space-fsnative", "R")
    up = ball(400)[0][:, 2]
    np.testing.assert_allclose(
        native[up > 0.35], np.tile(known[3], ((up > 0.35).sum(), 1)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.end_to_end
def test_the_medial_wall_is_nan_and_nothing_else_is(carried, fslr_home):
    func = carried / "sub-01" / "func"
    for hemi in "LR":
        wall = nib.load(
            fslr_home / "tpl-fsLR" / f"tpl-fsLR_hemi-{hemi}_den-32k_desc-nomedialwall_dparc.label.gii"
        ).darrays[0]
        np.testing.assert_array_equal(
            np.isfinite(gifti(func, "space-fsLR_den-32k", hemi)[:, 0]), wall.data > 0
        )
        mask = gifti(func, "space-fsLR_den-32k", hemi, "desc-brain_mask", "label")[:, 0]
        np.testing.assert_array_equal(mask > 0, wall.data > 0)


@pytest.mark.end_to_end
def test_grayordinates_are_the_vertices_without_wall_with_named_maps(carried):
    func = carried / "sub-01" / "func"
    image = nib.load(func / f"sub-01_task-x_space-fsLR_den-91k_{TYPE_B}.dscalar.nii")
    maps, models = image.header.get_axis(0), image.header.get_axis(1)
    both = np.concatenate([gifti(func, "space-fsLR_den-32k", hemi) for hemi in "LR"])
    inside = np.isfinite(both[:, 0])
    np.testing.assert_allclose(image.get_fdata().T, both[inside], rtol=1e-5, atol=1e-6)
    assert maps.name[0].startswith("1 ")
    assert dict(models.nvertices) == {
        "CIFTI_STRUCTURE_CORTEX_LEFT": 32492,
        "CIFTI_STRUCTURE_CORTEX_RIGHT": 32492,
    }
    assert len(models) == inside.sum()


@pytest.mark.end_to_end
def test_betas_carried_are_the_betas_fitted_on_the_surface(
    carried, balls, fslr_home, tmp_path, monkeypatch, validate
):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    argv = (balls, tmp_path / "out", "participant", "-w", tmp_path / "work", *COMMON)
    assert run(*argv, "--output-spaces", "fsLR:den-32k", "--surface-of", "betas") == 0
    for hemi in "LR":
        first, second = (
            gifti(o / "sub-01" / "func", "space-fsLR_den-32k", hemi) for o in (carried, tmp_path / "out")
        )
        sure = expected_quarter(ball(32492)[0], hemi) >= 0
        np.testing.assert_array_equal(np.isfinite(first), np.isfinite(second))
        np.testing.assert_allclose(first[sure], second[sure], rtol=1e-4, atol=1e-4)
    assert validate(tmp_path / "out") == []
    record = json.loads(next((tmp_path / "out").rglob("log/fits/*.json")).read_text())
    assert record["surface"]["of"] == "betas"


@pytest.mark.end_to_end
def test_the_output_is_valid_and_says_where_it_came_from(carried, validate):
    assert validate(carried) == []
    func = carried / "sub-01" / "func"
    sidecar = json.loads((func / f"sub-01_task-x_hemi-L_space-fsLR_den-32k_{TYPE_B}.json").read_text())
    sources = " ".join(sidecar["Sources"])
    for part in (
        "bids:fmriprep:sub-01/anat/sub-01_hemi-L_white.surf.gii",
        "bids:fmriprep:sub-01/anat/sub-01_hemi-R_space-fsLR_desc-reg_sphere.surf.gii",
        "bids:templateflow:tpl-fsLR/tpl-fsLR_hemi-L_den-32k_sphere.surf.gii",
        "space-T1w_desc-preproc_bold.nii.gz",
        "_events.tsv",
    ):
        assert part in sources
    for hemi in "LR":  # the participant's own mesh is named: it is no template's
        sidecar = json.loads((func / f"sub-01_task-x_hemi-{hemi}_space-fsnative_{TYPE_B}.json").read_text())
        mesh = f"bids:fmriprep:sub-01/anat/sub-01_hemi-{hemi}_midthickness.surf.gii"
        assert sidecar["SpatialReference"] == mesh
    links = json.loads((carried / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["templateflow"].startswith("https://")
    record = json.loads(
        (carried / "sub-01" / "log" / "fits" / "sub-01_task-x_space-fsLR_den-32k.json").read_text()
    )
    assert record["surface"]["volume"] == "T1w"
    assert record["surface"]["covered_percent"] == 100
    # turning a sphere distorts nothing
    assert record["surface"]["reference"] == "sphere"
    assert record["surface"]["arealdistortion"]["p95"] < 1e-4
    page = build_report(carried, "01", records=[record]).read_text()
    assert "sampled between white and pial surface" in page
    for name in ("surfrsquared", "surfcoverage", "surfarealdistortion", "surfedgedistortion"):
        assert f"desc-{name}_bold" in page


@pytest.mark.end_to_end
def test_maps_on_the_participants_own_mesh_come_with_it_and_are_drawn_on_it(carried):
    for hemi, centre in CENTRE.items():
        name = f"sub-01_hemi-{hemi}_space-fsnative_midthickness"
        found, triangles = read_surface(carried / "sub-01" / "anat" / f"{name}.surf.gii")
        points, faces = ball(N_NATIVE)
        np.testing.assert_allclose(found, points * 3.25 + centre, atol=1e-5)
        np.testing.assert_array_equal(triangles, faces)
        told = json.loads((carried / "sub-01" / "anat" / f"{name}.json").read_text())
        assert told["Description"] == "The participant's middle surface."
    assert not list((carried / "sub-01" / "anat").glob("*to-fsnative_mode-points*"))
    record = json.loads(
        (carried / "sub-01" / "log" / "fits" / "sub-01_task-x_space-fsnative.json").read_text()
    )
    page = build_report(carried, "01", records=[record]).read_text()
    assert "No surface to draw on" not in page
    for name in ("surfrsquared", "surfcoverage"):
        assert f"space-fsnative_desc-{name}_bold" in page


@pytest.mark.end_to_end
def test_the_transform_that_was_saved_does_what_was_done(carried):
    anat = carried / "sub-01" / "anat"
    again = SphereResampler.load(anat / "sub-01_hemi-L_den-32k_from-fsnative_to-fsLR_mode-points_xfm.h5")
    native = gifti(carried / "sub-01" / "func", "space-fsnative", "L")
    target = gifti(carried / "sub-01" / "func", "space-fsLR_den-32k", "L")
    inside = np.isfinite(target[:, 0])
    sure = inside & (expected_quarter(ball(32492)[0], "L") >= 0)
    np.testing.assert_allclose(again.apply(native)[sure], target[sure], rtol=1e-4, atol=1e-4)
    mesh = read_surface(anat / "sub-01_hemi-L_space-fsLR_den-32k_midthickness.surf.gii")
    np.testing.assert_allclose(np.linalg.norm(mesh[0] - CENTRE["L"], axis=1), 3.25, atol=0.08)


@pytest.mark.end_to_end
def test_the_matrices_that_were_saved_carry_a_run_as_it_was_carried(carried, balls):
    """V from voxels to the participant's mesh, R from there to the target: their product is what was done."""
    func, anat = carried / "sub-01" / "func", carried / "sub-01" / "anat"
    run = next(path for path in bold_files(balls) if "run-1" in path.name)
    volume = np.asarray(nib.load(run).dataobj, np.float32)
    work = carried.parent / "work"
    for hemi in "LR":
        stem = f"sub-01_task-x_hemi-{hemi}_from-T1w_to-fsnative_mode-image_xfm"
        sample = load_transform(func / f"{stem}.h5")
        assert isinstance(sample, VolumeToSurface)
        assert sample.volume_shape == SHAPE
        name = anat / f"sub-01_hemi-{hemi}_den-32k_from-fsnative_to-fsLR_mode-points_xfm.h5"
        carry = SphereResampler.load(name)
        got = carry.masked(sample.valid).apply(sample.apply(volume))
        path = next(work.rglob(f"sub-01_task-x_run-1_hemi-{hemi}_space-fsLR_den-32k_bold.func.gii"))
        want = np.stack([array.data for array in nib.load(path).darrays], axis=1)
        inside = np.isfinite(want[:, 0])
        np.testing.assert_allclose(got[inside], want[inside], rtol=1e-5)
        # and back: each voxel of the cortex has a value of its own quarter
        back = sample.to_volume(carry.inverse().apply(np.nan_to_num(got[:, 0])), fill=np.nan)
        assert np.isfinite(back).sum() > 10
        sidecar = json.loads((func / f"{stem}.json").read_text())
        sources = " ".join(sidecar["Sources"])
        assert f"sub-01/anat/sub-01_hemi-{hemi}_pial.surf.gii" in sources
        assert "space-T1w_desc-preproc_bold.nii.gz" in sources
        assert "sphere" not in sources
        assert "voxels" in sidecar["Description"]
    with pytest.raises(DataError, match="holds a SphereResampler, not a VolumeToSurface"):
        VolumeToSurface.load(name)


@pytest.mark.end_to_end
def test_workbench_and_nilearn_open_what_is_written(carried):
    from nilearn import surface

    if shutil.which("wb_command") is None:
        pytest.skip("wb_command is not installed")
    files = [
        p for p in (carried / "sub-01").rglob("*") if p.name.endswith((".gii", ".dscalar.nii", ".dlabel.nii"))
    ]
    assert len(files) > 30
    for path in files:
        done = subprocess.run(
            ["wb_command", "-file-information", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower(), path.name
        if "hemi-R" in path.name:
            assert "CortexRight" in done.stdout
            assert "hemi-L" not in done.stdout
        if path.name.endswith((".func.gii", ".label.gii")):
            surface.load_surf_data(str(path))


@pytest.mark.end_to_end
def test_a_finished_fit_is_complete_until_a_surface_changes(balls, fslr_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    argv = (own, tmp_path / "out", "participant", *COMMON, "--output-spaces", "fsLR:den-32k")
    assert run(*argv, "-w", tmp_path / "w1") == 0
    assert run(*argv, "-w", tmp_path / "w2") == 0
    assert "not computed again" in capsys.readouterr().err
    white = next(own.rglob("*hemi-L_white.surf.gii"))
    os.utime(white, (1, 1))
    assert run(*argv, "-w", tmp_path / "w3") == 0
    assert "not computed again" not in capsys.readouterr().err
