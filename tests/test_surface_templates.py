# SPDX-License-Identifier: Apache-2.0
"""Volumes in MNI space, on the average surfaces of fsaverage that are there."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_dataset import bold_files
from small_surfaces import COMMON, TYPE_B, gifti, make_templates, run, to_mni_alone

from conform_app.images import templates
from conform_app.images.surfaces import read_surface, write_surface

pytestmark = pytest.mark.usefixtures("no_templates")


def finer(mesh, *, sphere=True):
    """The mesh with the middle of each edge added after its vertices, as fsaverage's are nested."""
    points, triangles = mesh
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges, which = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    middle = points[edges].mean(axis=1)
    if sphere:
        middle *= 100 / np.linalg.norm(middle, axis=1, keepdims=True)
    first, second, third = (which.reshape(3, -1) + len(points)).astype(np.int32)
    a, b, c = triangles.T
    parts = [(a, first, third), (first, b, second), (third, second, c), (first, second, third)]
    return np.concatenate([points, middle]), np.concatenate([np.stack(p, axis=1) for p in parts])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Templates as the package gives them: fsaverage's fine sphere, and the same in fsLR's coordinates."""
    home = make_templates(tmp_path_factory.mktemp("packaged"))
    (home / "tpl-fsaverage").mkdir()
    for hemi in "LR":
        (home / "tpl-fsLR" / f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-32k_sphere.surf.gii").unlink()
        fine = finer(finer(read_surface(templates._packaged("sphere", hemi))))
        for words in (f"hemi-{hemi}_den-164k_desc-std", f"space-fsLR_hemi-{hemi}_den-164k"):
            path = home / "tpl-fsaverage" / f"tpl-fsaverage_{words}_sphere.surf.gii"
            write_surface(path, fine, hemi, "sphere")
    return home


@pytest.fixture(scope="module")
def in_mni(balls, tmp_path_factory):
    """The small dataset in MNI space only, as large as a head."""
    own = tmp_path_factory.mktemp("mni") / "ds"
    shutil.copytree(balls, own)
    to_mni_alone(own)
    assert bold_files(own)
    return own


@pytest.mark.end_to_end
def test_every_space_is_reached_from_fsaverage5(home, in_mni, tmp_path, monkeypatch, capsys):
    """The vertices that two densities share have one value; what is finer than its surfaces says so."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    argv = (in_mni, tmp_path / "out", "participant", "-w", tmp_path / "w", *COMMON)
    more = ("fsaverage:den-3k", "fsaverage:den-164k", "fsLR:den-32k", "fsLR:den-91k")
    assert run(*argv, "--dry-run", "--output-spaces", *more) == 0
    assert "".join(capsys.readouterr()).count("den-10k, coarser than the target") == 3
    assert run(*argv, "--output-spaces", "fsaverage:den-10k", "fsaverage:den-41k") == 0
    func = tmp_path / "out" / "sub-01" / "func"
    for hemi in "LR":
        known = gifti(func, "space-fsaverage_den-10k", hemi)
        fine = gifti(func, "space-fsaverage_den-41k", hemi)
        assert fine.shape[0] == 40962
        seen = np.isfinite(known[:, 0]) & np.isfinite(fine[:10242, 0])
        assert seen.mean() > 0.6
        np.testing.assert_allclose(fine[:10242][seen], known[seen], rtol=1e-4, atol=1e-4)
        assert np.isfinite(fine[:, 0]).mean() == pytest.approx(np.isfinite(known[:, 0]).mean(), abs=0.02)
    said = {}
    for path in (tmp_path / "out").rglob("log/fits/*.json"):
        record = json.loads(path.read_text())
        said[path.stem.rpartition("den-")[2]] = " ".join(record["warnings"])
    coarse = "average surfaces (den-10k, coarser than the target): group-average registration"
    assert {name for name, text in said.items() if coarse in text} == {"41k"}
    assert all("group-average registration" in text for text in said.values())
    sidecar = next(func.glob(f"*hemi-L_space-fsaverage_den-41k_{TYPE_B}.json"))
    sources = json.loads(sidecar.read_text())["Sources"]
    assert "bids:nilearn:fsaverage5/white_left.gii.gz" in sources
    assert "bids:templateflow:tpl-fsaverage/tpl-fsaverage_hemi-L_den-164k_desc-std_sphere.surf.gii" in sources


def test_surfaces_of_the_target_come_first(home, in_mni, tmp_path, monkeypatch, capsys):
    """Average surfaces that are there are used with their own sphere: the target's, else the densest."""
    own = tmp_path / "templates"
    shutil.copytree(home, own)
    for hemi in "LR":
        for name in ("white", "pial", "sphere"):
            mesh = finer(read_surface(templates._packaged(name, hemi)), sphere=name == "sphere")
            path = own / "tpl-fsaverage" / f"tpl-fsaverage_hemi-{hemi}_den-41k_{name}.surf.gii"
            write_surface(path, mesh, hemi, name)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(own))
    argv = (in_mni, tmp_path / "out", "participant", *COMMON, "--dry-run", "--output-spaces")
    assert run(*argv, "fsaverage:den-41k") == 0
    assert "coarser" not in "".join(capsys.readouterr())
    assert run(*argv, "fsLR:den-32k") == 0
    assert "coarser" not in "".join(capsys.readouterr())
    assert run(*argv, "fsaverage:den-164k") == 0
    assert "den-41k, coarser than the target" in "".join(capsys.readouterr())
    # one hemisphere of it is not enough
    (own / "tpl-fsaverage" / "tpl-fsaverage_hemi-R_den-41k_pial.surf.gii").unlink()
    assert run(*argv, "fsaverage:den-41k") == 0
    assert "den-10k, coarser than the target" in "".join(capsys.readouterr())


@pytest.mark.parametrize("space", ["fsaverage:den-41k", "fsaverage:den-164k", "fsLR:den-32k", "fsLR:den-91k"])
def test_without_its_sphere_a_target_is_refused_with_the_command(in_mni, tmp_path, capsys, space):
    argv = (in_mni, tmp_path / "out", "participant", *COMMON, "--dry-run", "--output-spaces", space)
    assert run(*argv) == 66
    said = capsys.readouterr().err
    assert f"the sphere of {space.replace('91k', '32k')} is not in" in said
    assert "python -m conform_app.images.fetching" in said
    assert len([line for line in said.splitlines() if line.startswith("conform: error")]) == 1
    assert not Path(tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.gii"))


def test_the_made_up_fine_sphere_is_nested(home):
    """What stands in for fsaverage's fine sphere here has nilearn's as its first vertices."""
    path = home / "tpl-fsaverage" / "tpl-fsaverage_hemi-L_den-164k_desc-std_sphere.surf.gii"
    assert nib.load(path).darrays[0].data.shape == (163842, 3)
    found = templates.SphereFile(str(path), 10242)
    from conform_app.interfaces.cortex import open_sphere

    points, triangles = open_sphere(found)
    known = read_surface(templates._packaged("sphere", "L"))
    np.testing.assert_allclose(points, known[0], atol=1e-4)
    rows = [np.unique(np.sort(t, axis=1), axis=0) for t in (triangles, known[1])]
    np.testing.assert_array_equal(*rows)
