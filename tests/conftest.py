# SPDX-License-Identifier: Apache-2.0
"""What many tests need: the measured slice, run once through the command line."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

HAXBY = Path(__file__).parent / "data" / "haxby2001-1slice-bids"


@pytest.fixture(scope="session")
def haxby_run(tmp_path_factory):
    """Output folder of a full participant run on the Haxby slice (about half a minute)."""
    from conform_app.cli import main

    root = tmp_path_factory.mktemp("haxby")
    argv = [
        HAXBY,
        root / "out",
        "participant",
        "-w",
        root / "work",
        "--glm-types",
        "B",
        "D",
        "--save-residuals",
    ]
    assert main(list(map(str, argv))) == 0
    shutil.rmtree(root / "work")
    return root / "out"


@pytest.fixture(scope="session")
def sites(tmp_path_factory):
    """Outputs of six participants of three simulated studies (about a minute)."""
    from group_sites import prepare

    return prepare(tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="session")
def merged(sites, tmp_path_factory):
    """Output folder of the group level over all three studies."""
    from group_sites import group

    out = tmp_path_factory.mktemp("merged") / "out"
    assert group(sites, sites, out, "--export-hdf5") == 0
    return out


@pytest.fixture(scope="session")
def validate():
    """Return a function that lists the errors of a BIDS dataset."""
    import json
    import subprocess

    from conform_app.bids.validation import find_validator

    program = find_validator()
    if program is None:
        pytest.skip("bids-validator-deno is not installed")

    def errors(folder):
        done = subprocess.run([program, "--json", str(folder)], capture_output=True, text=True, check=False)
        issues = json.loads(done.stdout)["issues"]["issues"]
        return [(i["code"], i.get("location")) for i in issues if i["severity"] == "error"]

    return errors


@pytest.fixture
def no_templates(monkeypatch, tmp_path_factory):
    """No template is fetched, none of this machine's is used; reports are made where they are looked at."""
    monkeypatch.setattr("conform_app.images.templates.online", lambda: False)
    monkeypatch.setattr("conform_app.images.packaged.home", lambda: None)
    monkeypatch.setattr("conform_app.reports.build_report", lambda *args, **kwargs: None)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path_factory.getbasetemp() / "no-templates"))


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """A small dataset with surfaces, see `small_surfaces`."""
    from small_surfaces import make_surface_dataset

    return make_surface_dataset(tmp_path_factory.mktemp("surface") / "ds", n_runs=2)


@pytest.fixture(scope="session")
def fslr_home(tmp_path_factory):
    """A TemplateFlow folder with made-up fsLR spheres."""
    from small_surfaces import make_templates

    return make_templates(tmp_path_factory.mktemp("templateflow"))


@pytest.fixture(scope="session")
def carried(balls, fslr_home, tmp_path_factory):
    """Output of one run in every surface space, and in the volume."""
    from small_surfaces import COMMON, run

    from conform_app.images import templates

    root = tmp_path_factory.mktemp("carried")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
        patch.setattr(templates, "online", lambda: False)
        patch.setattr("conform_app.reports.build_report", lambda *args, **kwargs: None)
        spaces = ("T1w", "fsnative", "fsLR:den-32k", "fsaverage:den-10k", "fsLR:den-91k")
        argv = (
            balls,
            root / "out",
            "participant",
            "-w",
            root / "work",
            *COMMON,
            "--output-spaces",
            *spaces,
        )
        assert run(*argv) == 0
    return root / "out"
