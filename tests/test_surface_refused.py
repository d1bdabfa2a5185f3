# SPDX-License-Identifier: Apache-2.0
"""Surfaces, volumes and templates that do not go together: one line that names the file, and an exit code."""

import shutil
from pathlib import Path

import pytest
from small_surfaces import AFFINE, COMMON, ball, place, run

from conform_app.images.surfaces import read_surface, write_surface

pytestmark = pytest.mark.usefixtures("no_templates")


def swap(path):
    other = path.with_name(path.name.replace("hemi-L", "hemi-R"))
    left, right = path.read_bytes(), other.read_bytes()
    path.write_bytes(right)
    other.write_bytes(left)


def fewer(path):
    points, triangles = ball(300)
    write_surface(path, (points * 100, triangles), "L", "sphere")


BAD = {
    "no right white": (
        "*hemi-R_white*",
        Path.unlink,
        66,
        ["no white surface of hemisphere R", "sub-01/anat"],
    ),
    "no left pial": ("*hemi-L_pial*", Path.unlink, 66, ["no pial surface of hemisphere L"]),
    "another mesh": (
        "*hemi-L_space-fsLR_desc-reg*",
        fewer,
        65,
        ["400 vertices", "300", "fsLR_desc-reg_sphere"],
    ),
    "a cut file": (
        "*hemi-L_pial*",
        lambda path: path.write_bytes(path.read_bytes()[:2000]),
        74,
        ["hemi-L_pial.surf.gii is truncated"],
    ),
}


@pytest.mark.end_to_end
@pytest.mark.parametrize("case", BAD)
def test_one_bad_file_is_one_plain_line(balls, fslr_home, tmp_path, monkeypatch, capsys, case):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    pattern, change, code, words = BAD[case]
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    change(next(own.rglob(pattern)))
    argv = (own, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON)
    assert run(*argv, "--output-spaces", "fsLR:den-32k", "--dry-run") == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    for word in [*words, f"(exit code {code})"]:
        assert word in last


@pytest.mark.end_to_end
def test_swapped_hemispheres_and_volumes_elsewhere_are_refused(
    balls, fslr_home, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    argv = ("participant", "-w", tmp_path / "w", *COMMON, "--output-spaces", "fsLR:den-32k", "--dry-run")
    own = tmp_path / "swapped"
    shutil.copytree(balls, own)
    for name in ("white", "pial"):
        swap(next(own.rglob(f"*hemi-L_{name}.surf.gii")))
    assert run(own, tmp_path / "out", *argv) == 65
    assert "left and right are swapped" in capsys.readouterr().err.strip().splitlines()[-1]
    metres = AFFINE / 1000
    metres[3, 3] = 1
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] += 500
    for name, affine in (("metres", metres), ("elsewhere", elsewhere)):
        own = tmp_path / name
        shutil.copytree(balls, own)
        for path in (own / "derivatives").rglob("*.nii.gz"):
            place(path, affine)
        assert run(own, tmp_path / "out", *argv) == 65
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert "does not overlap the cortex" in last
        assert "space-T1w_desc-preproc_bold.nii.gz" in last


def moved(path, change):
    """Write a surface of the same hemisphere by its own words, elsewhere."""
    points, triangles = read_surface(path)
    write_surface(path, (change(points), triangles), "L" if "hemi-L" in path.name else "R", "white")


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda own: swap(next(own.rglob("*hemi-L_space-fsLR*sphere*"))),
            "hemi-L_space-fsLR_desc-reg_sphere",
        ),
        (lambda own: swap(next(own.rglob("*hemi-L_sphere*"))), "says of itself that it is CortexRight"),
        (
            lambda own: [
                moved(path, lambda x: x * [-1, 1, 1]) for path in own.rglob("*hemi-?_[wp]*.surf.gii")
            ],
            "lies to the right of",
        ),
        (
            lambda own: [
                moved(path, lambda x: x - [9, 0, 0]) for path in own.rglob("*hemi-R_[wp]*.surf.gii")
            ],
            "lie in one place (middles at x = -4 and -4 mm): they are of one hemisphere",
        ),
    ],
    ids=["registered", "sphere", "mirrored", "one hemisphere twice"],
)
def test_a_hemisphere_under_the_name_of_the_other_is_refused(
    balls, fslr_home, tmp_path, monkeypatch, capsys, change, words
):
    """Templates have as many vertices left as right: counts say nothing, the file and the place do."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    change(own)
    argv = ("participant", "-w", tmp_path / "w", *COMMON, "--output-spaces", "fsLR:den-32k", "--dry-run")
    assert run(own, tmp_path / "out", *argv) == 65
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.end_to_end
def test_missing_templates_spheres_and_meshes_have_a_remedy(balls, fslr_home, tmp_path, capsys):
    argv = (
        balls,
        tmp_path / "out",
        "participant",
        "-w",
        tmp_path / "w",
        *COMMON,
        "--dry-run",
        "--output-spaces",
    )
    assert run(*argv, "fsLR:den-32k") == 66
    last = capsys.readouterr().err.strip().splitlines()[-1]
    command = "On a machine with network: python -m conform_app.images.fetching"
    assert "the sphere of fsLR:den-32k is not in" in last
    assert command in last
    assert run(*argv, "fsaverage:den-41k") == 66
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the sphere of fsaverage:den-41k is not in" in last
    assert command in last
    # spheres alone do not make grayordinates: they would be 64,984 under the name of 91k
    home = tmp_path / "home"
    shutil.copytree(fslr_home, home)
    for path in home.rglob("*nomedialwall*"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEMPLATEFLOW_HOME", str(home))
        assert run(*argv, "fsLR:den-32k") == 0
        assert "has values like the rest" in capsys.readouterr().out
        assert run(*argv, "fsLR:den-91k") == 66
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert "fsLR's medial wall, which says what vertices are grayordinates, is not in" in last
        assert command in last
    assert run(*argv, "fsaverage:den-7k") == 64
    assert "Densities of fsaverage: 3k, 10k, 41k, 164k" in capsys.readouterr().err
    assert run(*argv, "fsaverage:den-10k") == 0  # what nilearn ships is enough
    own = tmp_path / "ds"
    shutil.copytree(balls, own)
    for path in own.rglob("*reg_sphere*"):
        path.unlink()
    assert run(own, *argv[1:], "fsaverage:den-10k") == 66
    assert "no registration sphere of hemisphere L" in capsys.readouterr().err
    assert run(own, *argv[1:], "fsnative") == 0
