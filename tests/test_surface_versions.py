# SPDX-License-Identifier: Apache-2.0
"""What versions of preprocessing leave: spheres under a wrong name, spheres and masks left out, sessions."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel import freesurfer
from small_dataset import bold_files
from small_surfaces import COMMON, ball, expected_quarter, gifti, run

from conform_app.bids.surfaces import find_surfaces
from conform_app.images.surfaces import read_surface, write_surface

pytestmark = pytest.mark.usefixtures("no_templates")
# the made-up fsaverage is fsLR turned by a third of a turn: x becomes y, y becomes z
ATLAS = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
FSLR = ("--output-spaces", "fsLR:den-32k")


def turn_spheres(pattern: str, folder, atlas=ATLAS) -> None:
    for path in folder.rglob(pattern):
        points, triangles = read_surface(path)
        hemi = "L" if "hemi-L" in path.name else "R"
        write_surface(path, (points @ atlas.T, triangles), hemi, "sphere")


@pytest.fixture(scope="module")
def two_atlases(balls, fslr_home, tmp_path_factory):
    """The dataset and templates with fsaverage's coordinates other than those of fsLR."""
    root = tmp_path_factory.mktemp("atlases")
    shutil.copytree(balls, root / "ds")
    shutil.copytree(fslr_home, root / "home")
    turn_spheres("*hemi-?_desc-reg_sphere.surf.gii", root / "ds")
    turn_spheres("*space-fsaverage*_sphere.surf.gii", root / "home")
    return root / "ds", root / "home"


def agrees(carried, out) -> int:
    """Check that maps are those of the plain dataset; return how many vertices have lost their value."""
    lost = 0
    for hemi in "LR":
        first, second = (gifti(o / "sub-01" / "func", "space-fsLR_den-32k", hemi) for o in (carried, out))
        assert not (np.isnan(first) & np.isfinite(second)).any()
        lost += int((np.isfinite(first) & np.isnan(second))[:, 0].sum())
        sure = (expected_quarter(ball(32492)[0], hemi) >= 0) & np.isfinite(second[:, 0])
        np.testing.assert_allclose(first[sure], second[sure], rtol=1e-4, atol=1e-4)
    return lost


@pytest.mark.end_to_end
def test_a_copy_of_the_fsaverage_sphere_is_no_registration_to_fslr(
    carried, two_atlases, tmp_path, monkeypatch, capsys
):
    """fMRIPrep 23.1.0 and 23.1.1 wrote FreeSurfer's sphere.reg as space-fsLR_desc-reg_sphere, too."""
    data, home = two_atlases
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    own = tmp_path / "ds"
    shutil.copytree(data, own)
    for hemi in "LR":
        right = next(own.rglob(f"*hemi-{hemi}_desc-reg_sphere.surf.gii"))
        shutil.copy(right, right.with_name(right.name.replace("_desc", "_space-fsLR_desc")))
    argv = ("participant", "-w", tmp_path / "w", *COMMON, *FSLR)
    assert run(data, tmp_path / "sound", *argv) == 0
    assert "is a copy of" not in capsys.readouterr().err
    assert agrees(carried, tmp_path / "sound") == 0
    assert run(own, tmp_path / "out", *argv) == 0
    said = capsys.readouterr().err
    assert (
        "hemi-L_space-fsLR_desc-reg_sphere.surf.gii is a copy of the sphere registered to fsaverage" in said
    )
    assert agrees(carried, tmp_path / "out") == 0
    record = json.loads(next((tmp_path / "out").rglob("log/fits/*.json")).read_text())
    assert record["surface"]["registration"].startswith("sphere registered to fsaverage, and from there to")


def freesurfer_folder(own, folder, *, cut: int = 0):
    """Leave surfaces alone; put the registered spheres and a mask of the cortex into a FreeSurfer folder."""
    home = folder / "sub-01"
    (home / "surf").mkdir(parents=True)
    (home / "label").mkdir()
    for path in sorted(own.rglob("*hemi-?_desc-reg_sphere.surf.gii")):
        side = "lh" if "hemi-L" in path.name else "rh"
        points, triangles = read_surface(path)
        mesh = triangles[cut:] if cut else triangles
        for name in ("white", "pial", "sphere", "sphere.reg"):
            freesurfer.write_geometry(home / "surf" / f"{side}.{name}", points, mesh)
        inside = np.flatnonzero(points[:, 2] < 60)
        lines = [f"{vertex} 0 0 0 0" for vertex in inside]
        text = "\n".join(["#!ascii label", str(len(lines)), *lines])
        (home / "label" / f"{side}.cortex.label").write_text(text + "\n")
    for path in [*own.rglob("*reg_sphere.surf.gii"), *own.rglob("*hemi-?_sphere.surf.gii")]:
        path.unlink()
    return folder


@pytest.mark.end_to_end
def test_spheres_and_masks_left_out_come_from_freesurfers_folder(
    carried, two_atlases, tmp_path, monkeypatch, capsys
):
    data, home = two_atlases
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    own = tmp_path / "ds"
    shutil.copytree(data, own)
    folder = freesurfer_folder(own, tmp_path / "subjects")
    prep = own / "derivatives" / "fmriprep"
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON, *FSLR)
    assert run(*argv) == 66
    assert "no registration sphere of hemisphere L" in capsys.readouterr().err
    named = ("-d", f"fmriprep={prep}", f"freesurfer={folder}")
    assert run(*argv, *named) == 0
    assert agrees(carried, tmp_path / "out") > 1000  # outside the mask
    sidecar = next((tmp_path / "out").rglob("*hemi-L_space-fsLR_den-32k_stat-effect_desc-typeB_statmap.json"))
    sources = " ".join(json.loads(sidecar.read_text())["Sources"])
    assert "bids:freesurfer:sub-01/surf/lh.sphere.reg" in sources
    assert "bids:freesurfer:sub-01/label/lh.cortex.label" in sources
    assert "bids:fmriprep:sub-01/anat/sub-01_hemi-L_white.surf.gii" in sources
    # the medial wall of the participant's own mesh is known from there alone
    unmasked = "has values like the rest"
    for words, told in ((named, False), ((), True)):
        assert run(*argv[:-1], "fsnative", *words, "--dry-run") == 0
        assert (unmasked in capsys.readouterr().out) is told
    # another reconstruction's files are of no use here
    shutil.rmtree(folder)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    freesurfer_folder(other, tmp_path / "subjects", cut=3)
    assert run(*argv, *named, "--dry-run") == 66
    assert "no registration sphere of hemisphere L" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_without_a_transform_freesurfers_space_is_taken_for_t1w_and_said_so(
    two_atlases, tmp_path, monkeypatch, capsys
):
    data, home = two_atlases
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    own = tmp_path / "ds"
    shutil.copytree(data, own)
    geometry = {
        "head": np.array([2, 0, 20], np.int32), "valid": "1", "filename": "x", "volume": np.full(3, 256),
        "voxelsize": np.ones(3), "xras": np.array([-1.0, 0, 0]), "yras": np.array([0, 0, -1.0]),
        "zras": np.array([0, 1.0, 0]), "cras": np.zeros(3),
    }  # fmt: skip
    surf = tmp_path / "subjects" / "sub-01" / "surf"
    surf.mkdir(parents=True)
    for path in sorted(own.rglob("*.surf.gii")):
        hemi, _, name = path.name.removeprefix("sub-01_hemi-").removesuffix(".surf.gii").partition("_")
        name = {"white": "white", "pial": "pial", "desc-reg_sphere": "sphere.reg"}.get(name)
        if name:
            target = surf / f"{hemi.lower()}h.{name}"
            freesurfer.write_geometry(target, *read_surface(path), volume_info=geometry)
        path.unlink()
    prep = own / "derivatives" / "fmriprep"
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON, *FSLR, "--dry-run")
    named = ("-d", f"fmriprep={prep}", f"freesurfer={tmp_path / 'subjects'}")
    assert run(*argv, *named) == 0
    assert "are taken to lie in T1w space" in capsys.readouterr().out
    xfm = prep / "sub-01" / "anat" / "sub-01_from-fsnative_to-T1w_mode-image_xfm.txt"
    xfm.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    assert run(*argv, *named) == 0
    assert "are taken to lie in T1w space" not in capsys.readouterr().out


def by_session(own) -> None:
    """Give the two runs a session each, and each session surfaces of its own."""
    subject = own / "derivatives" / "fmriprep" / "sub-01"
    for number in (1, 2):
        target = subject / f"ses-{number}" / "anat"
        target.mkdir(parents=True)
        for path in (subject / "anat").iterdir():
            shutil.copy(path, target / path.name.replace("sub-01", f"sub-01_ses-{number}"))
    shutil.rmtree(subject / "anat")
    for root in (subject, own / "sub-01"):
        for path in sorted((root / "func").iterdir()):
            number = 2 if "run-2" in path.name else 1
            target = root / f"ses-{number}" / "func"
            target.mkdir(parents=True, exist_ok=True)
            path.rename(target / path.name.replace("sub-01", f"sub-01_ses-{number}"))


@pytest.mark.end_to_end
def test_sessions_with_surfaces_of_their_own_are_not_pooled(two_atlases, tmp_path, monkeypatch, capsys):
    """Volumes of one session would be laid on the cortex as it lay in another."""
    data, home = two_atlases
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    own = tmp_path / "ds"
    shutil.copytree(data, own)
    assert len(bold_files(own)) == 2
    by_session(own)
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON, *FSLR, "--dry-run")
    assert run(*argv) == 0
    capsys.readouterr()
    assert run(*argv, "--fit-level", "subject") == 65
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "surfaces of its own in sessions 1, 2" in last
    assert "--fit-level session" in last
    # one anatomy for both is what it was
    subject = own / "derivatives" / "fmriprep" / "sub-01"
    shutil.rmtree(subject / "ses-2" / "anat")
    assert run(*argv, "--fit-level", "subject") == 0


@pytest.mark.end_to_end
def test_volumes_that_do_not_say_where_they_lie_are_refused(two_atlases, tmp_path, monkeypatch, capsys):
    """Without sform and qform libraries put the middle of the volume at 0, which overlaps any cortex."""
    data, home = two_atlases
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    own = tmp_path / "ds"
    shutil.copytree(data, own)
    for path in (own / "derivatives").rglob("*.nii.gz"):
        image = nib.load(path)
        image.header["sform_code"] = image.header["qform_code"] = 0
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    argv = (
        own,
        tmp_path / "out",
        "participant",
        "-w",
        tmp_path / "w",
        *COMMON,
        "--dry-run",
        "--output-spaces",
    )
    assert run(*argv, "T1w") == 0
    assert run(*argv, "fsLR:den-32k") == 65
    assert "does not say where it lies (sform_code and qform_code are 0)" in capsys.readouterr().err


def test_the_transform_from_freesurfer_is_that_of_the_session(tmp_path):
    surf = tmp_path / "fs" / "sub-01_ses-2" / "surf"
    surf.mkdir(parents=True)
    for side in ("lh", "rh"):
        for name in ("white", "pial", "sphere.reg"):
            (surf / f"{side}.{name}").touch()
    for number in (1, 2):
        anat = tmp_path / "prep" / "sub-01" / f"ses-{number}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-01_ses-{number}_from-fsnative_to-T1w_mode-image_xfm.txt").touch()
    found = find_surfaces("01", ("2",), [tmp_path / "prep"], [tmp_path / "fs"])
    assert "ses-2" in found.to_t1w.name
