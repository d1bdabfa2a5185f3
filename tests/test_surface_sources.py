# SPDX-License-Identifier: Apache-2.0
"""Where carried fits come from: own grids, FreeSurfer folders, template space, the subcortex."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from small_dataset import SHAPE, TR, bold_files, write_json
from small_surfaces import AFFINE, COMMON, TYPE_B, ball, expected_quarter, gifti, place, run, to_mni_alone

from conform_app.bids.carrycost import surface_memory
from conform_app.bids.plan import FitPlan, RunPlan, write_plan
from conform_app.bids.surfaceplan import HemiPlan, SurfacePlan
from conform_app.images.surfaces import read_surface, write_surface
from conform_app.images.templates import SphereFile
from conform_app.reports.page import build_report
from conform_app.surface import load_transform

pytestmark = pytest.mark.usefixtures("no_templates")


def itk_file(path: Path, parts: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Write an ITK composite: (kind, parameters, fixed parameters) in the order of the file."""
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup")
        kinds = ["CompositeTransform_double_3_3", *(f"{kind}_double_3_3" for kind, _, _ in parts)]
        for number, kind in enumerate(kinds):
            group.create_group(str(number)).create_dataset(
                "TransformType", data=np.array([kind.encode()], "S")
            )
        for number, (_, values, fixed) in enumerate(parts, 1):
            group[str(number)]["TransformParameters"] = values
            group[str(number)]["TransformFixedParameters"] = fixed


@pytest.mark.end_to_end
def test_bold_on_its_own_grid_comes_by_the_transform_of_its_run(
    carried, balls, fslr_home, tmp_path, monkeypatch, capsys
):
    """Each run on a grid of its own: turned, elsewhere, and of another shape; ITK text, or HDF5."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    flip = np.diag([-1.0, -1, 1])
    for number, path in enumerate(bold_files(own)):
        angle, shift = 0.3 + number, np.array([30.0, -12.0, 7.0]) * (number + 1)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        moved = np.eye(4)
        moved[:3, :3], moved[:3, 3] = turn, shift
        stem = str(path).split("_space-")[0]
        for old in (path, Path(str(path).replace("preproc_bold", "brain_mask"))):
            image = nib.load(old)
            # more of nothing around: one voxel before, `number` behind
            pad = [(1, number)] * 3 + [(0, 0)] * (image.ndim - 3)
            values = np.pad(np.asarray(image.dataobj), pad)
            new = nib.Nifti1Image(values, AFFINE, image.header)
            nib.save(new, old)
            start = moved @ AFFINE
            start[:3, 3] -= start[:3, :3] @ np.ones(3)
            place(old, start)
            old.rename(str(old).replace("_space-T1w", ""))
        side = Path(str(path).replace(".nii.gz", ".json"))
        side.rename(str(side).replace("_space-T1w", ""))
        # from boldref to T1w of images: points of T1w to the run's
        matrix, lps = flip @ turn @ flip, flip @ shift
        name = f"{stem}_from-boldref_to-T1w_mode-image_desc-coreg_xfm"
        numbers = np.concatenate([matrix.ravel(), lps])
        if number:
            itk_file(Path(f"{name}.h5"), [("AffineTransform", numbers, np.zeros(3))])
        else:
            text = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
            text += f"Parameters: {' '.join(map(repr, map(float, numbers)))}\nFixedParameters: 0 0 0\n"
            Path(f"{name}.txt").write_text(text)
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON)
    assert run(*argv, "--output-spaces", "fsLR:den-32k") == 0
    func = tmp_path / "out" / "sub-01" / "func"
    for hemi in "LR":
        first = gifti(carried / "sub-01" / "func", "space-fsLR_den-32k", hemi)
        np.testing.assert_allclose(first, gifti(func, "space-fsLR_den-32k", hemi), rtol=1e-4, atol=1e-4)
        # a matrix a run, each named by its run and made of its files
        for number, ending in ((1, "txt"), (2, "h5")):
            name = f"sub-01_task-x_run-{number}_hemi-{hemi}_from-boldref_to-fsnative_mode-image_xfm"
            assert load_transform(func / f"{name}.h5").volume_shape == tuple(np.array(SHAPE) + number)
            sources = " ".join(json.loads((func / f"{name}.json").read_text())["Sources"])
            assert f"run-{number}_from-boldref_to-T1w_mode-image_desc-coreg_xfm.{ending}" in sources
            assert f"run-{3 - number}_" not in sources
    assert run(*argv, "--output-spaces", "fsLR:den-32k", "--surface-of", "betas", "--overwrite") == 65
    assert "Carry the time series" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_runs_in_t1w_space_may_have_other_extents(carried, balls, fslr_home, tmp_path, monkeypatch, capsys):
    """A run with more of nothing around it is another grid: refused in the volume, carried to the cortex."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    path = next(path for path in bold_files(own) if "run-2" in path.name)
    start = AFFINE.copy()
    start[:3, 3] -= AFFINE[:3, :3] @ np.ones(3)
    for old in (path, Path(str(path).replace("preproc_bold", "brain_mask"))):
        image = nib.load(old)
        values = np.pad(np.asarray(image.dataobj), [(1, 2)] * 3 + [(0, 0)] * (image.ndim - 3))
        nib.save(nib.Nifti1Image(values, AFFINE, image.header), old)
        place(old, start)
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON, "--output-spaces")
    assert run(*argv, "T1w", "--dry-run") == 65
    assert "are on different grids" in capsys.readouterr().err
    assert run(*argv, "fsLR:den-32k", "--surface-of", "betas", "--dry-run") == 65
    assert run(*argv, "fsLR:den-32k") == 0
    func = tmp_path / "out" / "sub-01" / "func"
    for hemi in "LR":
        first = gifti(carried / "sub-01" / "func", "space-fsLR_den-32k", hemi)
        np.testing.assert_allclose(first, gifti(func, "space-fsLR_den-32k", hemi), rtol=1e-4, atol=1e-4)
        assert len(list(func.glob(f"*run-?_hemi-{hemi}_from-T1w_to-fsnative_mode-image_xfm.h5"))) == 2


@pytest.mark.end_to_end
def test_a_freesurfer_folder_gives_what_gifti_surfaces_give(carried, balls, fslr_home, tmp_path, monkeypatch):
    from nibabel import freesurfer

    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    own, centre = tmp_path / "ds", np.array([2.0, -3.0, 11.0])
    shutil.copytree(balls, own)
    surf = tmp_path / "subjects" / "sub-01" / "surf"
    surf.mkdir(parents=True)
    info = {"head": np.array([2, 0, 20], np.int32), "valid": "1  # volume info valid", "filename": "orig.mgz"}
    info |= {"volume": np.array([256, 256, 256]), "voxelsize": np.ones(3), "cras": centre}
    info |= {"xras": np.array([-1.0, 0, 0]), "yras": np.array([0, 0, -1.0]), "zras": np.array([0, 1.0, 0])}
    names = {"white": "white", "pial": "pial", "sphere": "sphere", "desc-reg_sphere": "sphere.reg"}
    for path in sorted(own.rglob("*.surf.gii")):
        hemi, _, name = path.name.removeprefix("sub-01_hemi-").removesuffix(".surf.gii").partition("_")
        if name in names:
            points, triangles = read_surface(path)
            shift = 0 if "sphere" in name else centre
            target = surf / f"{hemi.lower()}h.{names[name]}"
            freesurfer.write_geometry(target, points - shift, triangles, volume_info=info)
        path.unlink()
    (surf / "rh.pial").rename(surf / "rh.pial.T1")  # what a copy without links has of FreeSurfer 7's
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON, "--output-spaces")
    assert run(*argv, "fsLR:den-32k", "--dry-run") == 66
    prep = own / "derivatives" / "fmriprep"
    folders = ("-d", f"fmriprep={prep}", f"freesurfer={tmp_path / 'subjects'}")
    assert run(*argv, "fsLR:den-32k", *folders) == 0
    first, second = (
        gifti(o / "sub-01" / "func", "space-fsLR_den-32k", "R") for o in (carried, tmp_path / "out")
    )
    sure = expected_quarter(ball(32492)[0], "R") >= 0
    np.testing.assert_allclose(first[sure], second[sure], rtol=1e-4, atol=1e-4)
    sidecar = next((tmp_path / "out").rglob(f"*hemi-L*{TYPE_B}.json"))
    assert "bids:freesurfer:sub-01/surf/lh.sphere.reg" in json.loads(sidecar.read_text())["Sources"]


@pytest.fixture(scope="module")
def with_template(balls, fslr_home, tmp_path_factory):
    """The dataset with the runs in MNI152NLin6Asym, too, and a TemplateFlow folder with a subcortex."""
    root = tmp_path_factory.mktemp("template")
    home, own = root / "templates", root / "ds"
    shutil.copytree(fslr_home, home)
    labels = np.zeros(SHAPE, np.int16)
    labels[0, 1, 2], labels[1, 1, 2], labels[5, 3, 0], labels[2, 2, 1] = 10, 10, 49, 16
    folder = home / "tpl-MNI152NLin6Asym"
    folder.mkdir()
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "tpl-MNI152NLin6Asym_res-02_atlas-HCP_dseg.nii.gz")
    shutil.copytree(balls, own)
    for path in bold_files(own):
        standard = str(path).replace("space-T1w", "space-MNI152NLin6Asym_res-2")
        shutil.copy(path, standard)
        shutil.copy(
            str(path).replace("preproc_bold", "brain_mask"), standard.replace("preproc_bold", "brain_mask")
        )
        write_json(Path(standard.replace(".nii.gz", ".json")), {"RepetitionTime": TR, "Resolution": "2"})
    return own, home


PLACES = ((2, 2, 1), (1, 1, 2), (0, 1, 2), (5, 3, 0))  # of the grayordinates below, see `with_template`


@pytest.mark.end_to_end
@pytest.mark.parametrize("of", ["timeseries", "betas"])
def test_the_subcortex_comes_from_volumes_in_template_space(
    carried, with_template, tmp_path, monkeypatch, of
):
    own, home = with_template
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON, "--surface-of", of)
    assert run(*argv, "--output-spaces", "fsLR:den-91k") == 0
    name = f"sub-01_task-x_space-fsLR_den-91k_{TYPE_B}"
    image = nib.load(tmp_path / "out" / "sub-01" / "func" / f"{name}.dscalar.nii")
    models = image.header.get_axis(1)
    below = ~models.surface_mask
    names = [str(n).removeprefix("CIFTI_STRUCTURE_") for n in models.name[below]]
    # LAS order: the first index runs from right to left
    assert names == ["BRAIN_STEM", "THALAMUS_LEFT", "THALAMUS_LEFT", "THALAMUS_RIGHT"]
    volume = nib.load(carried / "sub-01" / "func" / f"sub-01_task-x_space-T1w_{TYPE_B}.nii.gz").get_fdata()
    found = image.get_fdata().T
    np.testing.assert_allclose(found[below], [volume[p] for p in PLACES], rtol=1e-5, atol=1e-6)
    without = nib.load(carried / "sub-01" / "func" / f"{name}.dscalar.nii").get_fdata().T
    sure = np.concatenate([expected_quarter(ball(32492)[0], hemi) >= 0 for hemi in "LR"])
    sure = sure[
        np.concatenate(
            [
                models.vertex[models.name == n] + 32492 * k
                for k, n in enumerate(("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"))
            ]
        )
    ]
    np.testing.assert_allclose(found[~below][sure], without[sure], rtol=1e-4, atol=1e-4)
    record = json.loads(next((tmp_path / "out").rglob("log/fits/*.json")).read_text())
    assert record["surface"]["subcortex"]
    told = " ".join(record["account"])
    assert "subcortex comes from MNI152NLin6Asym volumes, which cover 4 of its 4 voxels" in told
    assert ("The subcortex was fitted by itself" in told) == (of == "betas")
    sources = " ".join(
        json.loads((tmp_path / "out" / "sub-01" / "func" / f"{name}.json").read_text())["Sources"]
    )
    assert "space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz" in sources
    assert "atlas-HCP_dseg" in sources
    sidecar = json.loads((tmp_path / "out" / "sub-01" / "func" / f"{name}.json").read_text())
    assert sidecar["Subcortex"].startswith({"timeseries": "voxels of", "betas": "a fit of their own"}[of])
    alone = json.loads((carried / "sub-01" / "func" / f"{name}.json").read_text())
    assert alone["Subcortex"] == "none: cortex only"
    assert alone["SurfaceSampling"] == "T1w volumes sampled on the participant's surfaces: time series"
    assert alone["Registration"] == "desc-reg sphere in fsLR"
    text = (tmp_path / "out" / "logs" / "CITATION.md").read_text()
    assert "Subcortical grayordinates are voxels of the same runs" in text
    for key in ("rsquared", "hrfindex", "mean"):
        shape = {len(below)}
        maps = [p for k, v in record["products"].items() if k.startswith(key) for p in v]
        maps = [p for p in maps if p.endswith(".nii")]
        assert maps
        assert {nib.load(tmp_path / "out" / p).shape[1] for p in maps} == shape


@pytest.mark.end_to_end
@pytest.mark.parametrize("of", ["timeseries", "betas"])
def test_subcortical_voxels_outside_the_mask_of_a_run_are_left_out(with_template, tmp_path, monkeypatch, of):
    own, home = tmp_path / "ds", with_template[1]
    shutil.copytree(with_template[0], own)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    mask = next(own.rglob("*run-2_space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz"))
    image = nib.load(mask)
    values = np.asarray(image.dataobj).copy()
    values[PLACES[1]] = 0
    nib.save(nib.Nifti1Image(values, image.affine, image.header), mask)
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON, "--surface-of", of)
    assert run(*argv, "--output-spaces", "fsLR:den-91k") == 0
    func = tmp_path / "out" / "sub-01" / "func"
    image = nib.load(func / f"sub-01_task-x_space-fsLR_den-91k_{TYPE_B}.dscalar.nii")
    below = image.get_fdata()[:, ~image.header.get_axis(1).surface_mask]
    assert np.isnan(below).all(axis=0).tolist() == [False, True, False, False]


@pytest.mark.end_to_end
def test_the_noise_regressors_of_a_subcortex_fitted_by_itself_are_written(
    with_template, tmp_path, monkeypatch
):
    """They are those of a fit of the template's volumes alone."""
    own, home = with_template
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    argv = ["--skip-bids-validation", "--sloppy", "--glm-types", "D", "--nprocs", "1", "--psn", "off"]
    for out, *more in (
        ("below", "--output-spaces", "MNI152NLin6Asym:res-2"),
        ("out", "--output-spaces", "fsLR:den-91k", "--surface-of", "betas"),
    ):
        assert run(own, tmp_path / out, "participant", "-w", tmp_path / "w" / out, *argv, *more) == 0
    for number in (1, 2):
        stem = f"sub-01/func/sub-01_task-x_run-{number}_space"
        one = tmp_path / "below" / f"{stem}-MNI152NLin6Asym_res-2_desc-glmdenoise_timeseries.tsv"
        both = tmp_path / "out" / f"{stem}-fsLR_den-91k_desc-glmdenoisesubcortex_timeseries.tsv"
        assert both.read_text() == one.read_text()
        facts = [json.loads(p.with_suffix(".json").read_text()) for p in (one, both)]
        assert facts[0]["NumberOfComponentsUsed"] == facts[1]["NumberOfComponentsUsed"]
        assert both.with_name(both.name.replace("subcortex", "")).is_file()


@pytest.mark.end_to_end
def test_a_changed_volume_of_the_template_is_noticed_and_a_wrong_one_refused(
    with_template, tmp_path, monkeypatch, capsys
):
    own, home = tmp_path / "ds", with_template[1]
    shutil.copytree(with_template[0], own)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON)
    argv = (*argv, "--output-spaces", "fsLR:den-91k")
    assert run(*argv) == 0
    standard = sorted(own.rglob("*run-1_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"))[0]
    os.utime(standard, (1, 1))
    capsys.readouterr()
    assert run(*argv) == 0
    assert "not computed again" not in capsys.readouterr().err
    image = nib.load(standard)
    values = np.asarray(image.dataobj).copy()
    nib.save(nib.Nifti1Image(values[..., :-2], image.affine, image.header), standard)
    assert run(*argv, "--dry-run") == 65
    assert "both come from one recording" in capsys.readouterr().err
    moved = AFFINE.copy()
    moved[0, 3] += 1
    nib.save(nib.Nifti1Image(values, moved, image.header), standard)
    place(standard, moved)
    assert run(*argv, "--dry-run") == 65
    assert "are on different grids" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_volumes_in_mni_space_go_to_the_group_average_and_say_so(balls, tmp_path, capsys):
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    to_mni_alone(own)
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON)
    assert run(*argv, "--output-spaces", "fsaverage:den-10k", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "MNI152NLin2009cAsym volume, timeseries" in said
    assert run(*argv, "--output-spaces", "fsaverage:den-10k") == 0
    record = json.loads(next((tmp_path / "out").rglob("log/fits/*.json")).read_text())
    assert record["surface"]["group_average"]
    assert "group-average registration" in " ".join(record["warnings"])
    sidecar = json.loads(next((tmp_path / "out").rglob(f"*hemi-L*{TYPE_B}.json")).read_text())
    assert "group-average registration" in sidecar["SurfaceSampling"]
    page = build_report(tmp_path / "out", "01", records=[record]).read_text()
    assert "Group-average registration" in page
    assert not list((tmp_path / "out" / "sub-01").glob("anat/*"))
    assert run(*argv, "--output-spaces", "fsnative") == 66


@pytest.mark.end_to_end
def test_volumes_in_mni_space_lie_on_own_surfaces_by_the_participants_normalization(
    carried, balls, fslr_home, tmp_path, monkeypatch
):
    """A turn and a displacement field take the surfaces where the volumes were taken: the same betas."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    turn, shift, bend = (
        np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
        np.array([30.0, -12, 7]),
        [0.0, 4.0, 0],
    )
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turn, turn @ (shift + bend)
    for path in list((own / "derivatives").rglob("*_space-T1w_*")):
        new = path.rename(str(path).replace("space-T1w", "space-MNI152NLin2009cAsym"))
        if new.name.endswith(".nii.gz"):
            place(new, moved @ AFFINE)
    flip = np.diag([-1.0, -1, 1])
    matrix = flip @ turn @ flip
    size, spacing = np.array([3, 4, 5]), np.full(3, 60.0)
    grid = np.concatenate([size, -spacing * (size - 1) / 2, spacing, np.eye(3).ravel()])
    field = np.tile(flip @ bend, int(size.prod()))
    affine = (matrix.ravel(), matrix @ flip @ shift)
    anat = own / "derivatives" / "fmriprep" / "sub-01" / "anat"
    # points of T1w to the template: the field (last in the file) comes first
    itk_file(
        anat / "sub-01_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5",
        [
            ("AffineTransform", np.concatenate(affine), np.zeros(3)),
            ("DisplacementFieldTransform", field, grid),
        ],
    )
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON)
    assert run(*argv, "--output-spaces", "fsLR:den-32k") == 0
    for hemi in "LR":
        first, second = (
            gifti(o / "sub-01" / "func", "space-fsLR_den-32k", hemi) for o in (carried, tmp_path / "out")
        )
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
    record = json.loads(next((tmp_path / "out").rglob("log/fits/*.json")).read_text())
    assert not record["surface"]["group_average"]
    assert record["surface"]["warped"]
    assert "by the participant's own normalization" in " ".join(record["account"])
    name = "sub-01_task-x_hemi-L_from-MNI152NLin2009cAsym_to-fsnative_mode-image_xfm.json"
    sources = json.loads((tmp_path / "out" / "sub-01" / "func" / name).read_text())["Sources"]
    assert "bids:fmriprep:sub-01/anat/sub-01_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5" in sources
    text = (tmp_path / "out" / "logs" / "CITATION.md").read_text()
    assert "normalization" in text


PEAK = """
import re, sys
from pathlib import Path
from conform_app.bids.plan import read_plan
from conform_app.interfaces import surface
from conform_app.interfaces.carrying import Carrier
# of this program alone: what getrusage gives starts with its parent's
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
carrier = Carrier(read_plan(Path(sys.argv[1])), Path(sys.argv[2]).parent)
carrier.series(0)
carrier.leave_account(Path(sys.argv[2]))
print(peak() - before)
"""


def test_the_plan_counts_the_memory_of_the_surface_step(tmp_path):
    """The estimate is above the measured peak of the step, and not by much."""
    points, triangles = ball(40962)
    rng, shape, n_volumes = np.random.default_rng(0), (72, 72, 72), 30
    volume = nib.Nifti1Image(rng.random((*shape, n_volumes), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    bold = tmp_path / "bold.nii"
    nib.save(volume, bold)
    halves, files = [], {}
    for hemi, x in (("L", 71.0), ("R", 72.0)):
        for name, radius in (("white", 60.0), ("pial", 62.5), ("sphere", 100.0)):
            centre = 0 if name == "sphere" else np.array([x, 71.0, 71.0])
            files[name] = tmp_path / f"{hemi}_{name}.surf.gii"
            write_surface(files[name], (points * radius + centre, triangles), hemi, name)
        mesh = SphereFile(str(files["sphere"]), 40962)
        own = {name: str(path) for name, path in files.items()}
        halves.append(HemiPlan(hemi, **own, target=mesh, n_target=40962, n_source=40962))
    surface = SurfacePlan("timeseries", "T1w", (str(bold),), tuple(halves), "x", "fsLR")
    one = RunPlan((str(bold),), (), None, None, None, "1", n_volumes, 0.0)
    what = {"name": "a", "subject": "01", "sessions": (), "task": "x", "space": "fsLR", "res": None}
    what |= {"den": "32k", "kind": "gifti", "entities": {}, "tr": 2.0, "n_points": 0, "n_voxels": 0}
    what |= {"trials": {"onset": []}, "conditions": (), "stim_column": "", "memory": 0, "warnings": ()}
    plan = FitPlan(runs=(one,), surface=surface, **what)
    written = write_plan(plan, tmp_path / "plan.json")
    command = [sys.executable, "-c", PEAK, str(written), str(tmp_path / "surface.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, estimate = int(done.stdout), surface_memory(plan, 0)
    assert 0.4 < measured / estimate < 1.0, (measured, estimate)
    # more volumes: more memory; nothing is carried: nothing is added
    longer = replace(plan, runs=(replace(one, n_volumes=900),))
    assert surface_memory(longer, 0) > estimate
    assert surface_memory(replace(plan, surface=None), 7) == 7


@pytest.mark.end_to_end
def test_the_dry_run_prints_an_estimate_that_holds_the_surface_step(
    balls, fslr_home, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    printed = {}
    for space in ("T1w", "fsLR:den-32k"):
        argv = (balls, tmp_path / "out", "participant", *COMMON, "--output-spaces", space, "--dry-run")
        assert run(*argv) == 0
        printed[space] = float(re.search(r"([\d.]+) GiB", capsys.readouterr().out)[1])
    assert printed["fsLR:den-32k"] > printed["T1w"] + 0.1
