# SPDX-License-Identifier: Apache-2.0
"""Template surfaces that an image brings along: fetched where there is a network, else named as missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from template_store import archive, serving

from conform_app.errors import NoInputError
from conform_app.images import fetching, flowstore, packaged, templates

SHAPES = [
    f"tpl-fsaverage_hemi-{hemi}_den-{density}_{name}.surf.gii"
    for hemi in "LR"
    for density in ("3k", "41k", "164k")
    for name in ("white", "pial")
]
# nilearn brings fsaverage5: the sphere of 10k, in which that of 3k is, and the surfaces of 10k
IN_NILEARN = {
    f"tpl-fsaverage_hemi-{hemi}_den-{name}.surf.gii"
    for hemi in "LR"
    for name in ("3k_sphere", "10k_sphere", "10k_white", "10k_pial")
}


def no_package(folder):
    raise RuntimeError("there is no index")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(templates, "online", lambda: False)
    monkeypatch.setattr(packaged, "home", lambda: None)
    monkeypatch.setattr(packaged, "take", no_package)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    return tmp_path


def put(home, template, name):
    (home / f"tpl-{template}").mkdir(exist_ok=True)
    (home / f"tpl-{template}" / name).write_bytes(b"x")


@pytest.mark.parametrize("cache", [None, "cache"])
def test_the_folder_is_the_one_that_templateflow_takes(monkeypatch, tmp_path, cache):
    from templateflow.conf.env import get_templateflow_home

    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if cache:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    assert templates.templates_home() == get_templateflow_home()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "own"))
    assert templates.templates_home() == get_templateflow_home() == tmp_path / "own"


def test_what_is_there_is_not_named_as_missing(offline):
    wanted = templates.wanted_files()
    assert len(set(wanted)) == len(wanted)
    assert templates.fetch_all() == [name for _, name in wanted]
    assert templates.missing_files() == [name for _, name in wanted if name not in IN_NILEARN]
    template, name = wanted[0]
    put(offline, template, name)
    assert name not in templates.fetch_all()
    assert name not in templates.missing_files()


def test_every_name_is_one_that_templateflow_lists():
    names = {name.rpartition("/")[2] for name in archive()}
    assert {name for _, name in templates.wanted_files()} <= names
    deformed = {file.name for file in packaged.FILES if "fsaverage_space-fsLR" in file.name}
    assert {file.name for file in packaged.FILES} - names == deformed
    assert len(deformed) == 2


def test_a_build_without_templates_says_so_where_it_cannot_be_overlooked(offline, capsys):
    assert fetching.main(["try"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("=" * 100)
    wanted = {name for _, name in templates.wanted_files()}
    assert f"{len(wanted - IN_NILEARN)} of {len(wanted)}" in said
    assert set(re.findall(r"^  (tpl-\S+)$", said, re.MULTILINE)) == wanted - IN_NILEARN
    assert "TEMPLATES=require" in said
    for means in ("fsLR:den-32k, fsLR:den-91k, fsaverage:den-41k, fsaverage:den-164k", "no medial wall"):
        assert means in said
    assert "fsLR:den-91k holds the cortex only" in said
    assert "there is no index." in said
    assert fetching.main(["require"]) == 1
    assert fetching.main(["none"]) == 0
    assert fetching.main(["maybe"]) == 2
    for template, name in templates.wanted_files():
        put(offline, template, name)
    capsys.readouterr()
    assert [fetching.main([policy]) for policy in fetching.POLICIES] == [0, 0, 0]
    out, err = capsys.readouterr()
    assert "All" in out
    assert err == ""


def test_a_user_is_not_told_about_images_and_gets_an_exit_code(offline, capsys, monkeypatch):
    """1 where runs would end for want of something; average surfaces, which have a stand-in, are no such."""
    assert fetching.main([]) == 1
    said = capsys.readouterr().err
    assert f"NOT in {offline}" in said
    assert "image" not in said
    for template, name in templates.wanted_files():
        if name not in SHAPES:
            put(offline, template, name)
    assert fetching.main([]) == 0
    said = capsys.readouterr().err
    assert re.findall(r"^  (tpl-\S+)$", said, re.MULTILINE) == SHAPES
    assert "those of den-10k always are" in said
    assert "exit code" not in said
    assert "there is no index" not in said, "the package has nothing to add"
    assert fetching.main(["require"]) == 1


@pytest.mark.parametrize("absent", ["desc-std_sphere", "space-fsLR"])
def test_the_fslr_sphere_in_fsaverage_is_not_missed_where_a_pair_links_the_two(offline, absent):
    across = {f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-32k_sphere.surf.gii" for hemi in "LR"}
    for file in packaged.FILES:
        if absent not in file.name:
            put(offline, file.template, file.name)
    assert across <= set(templates.missing_files())
    for file in packaged.FILES:
        put(offline, file.template, file.name)
    assert templates.missing_files() == SHAPES
    found = templates.target_sphere("fsLR", "91k", "fsaverage", "L")
    assert [Path(path).name for path in found.files] == [
        "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii",
        "tpl-fsaverage_space-fsLR_hemi-L_den-164k_sphere.surf.gii",
        "tpl-fsaverage_hemi-L_den-164k_desc-std_sphere.surf.gii",
    ]


def test_the_image_is_built_by_it():
    text = (Path(__file__).parents[1] / "Dockerfile").read_text()
    assert 'python -m conform_app.images.fetching "${TEMPLATES}"' in text
    assert "ARG TEMPLATES=try" in text


TARGETS = [
    ("fsLR", "32k", "fsLR", "L"),
    ("fsLR", "91k", "fsaverage", "R"),
    ("fsaverage", "164k", "fsaverage", "L"),
    ("fsaverage", "41k", "fsaverage", "L"),
    ("fsaverage", "10k", "fsLR", "L"),
]


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """Run commands as a shell does, with a store that has everything, once each: the folder they made."""
    made = {}

    def run(command: str) -> Path:
        if command not in made:
            home = tmp_path_factory.mktemp("commanded") / "home"
            here = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": os.getcwd()}
            here |= {"TEMPLATEFLOW_HOME": str(home), "PIP_NO_INDEX": "1"}
            with serving() as store:
                here[flowstore.STORE] = store.address
                subprocess.run(["sh", "-c", command], check=True, env=here)
            made[command] = home
        return made[command]

    return run


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
def test_the_command_of_an_error_is_shell_and_fetches_what_was_missing(
    offline, monkeypatch, commanded, target
):
    with pytest.raises(NoInputError) as caught:
        templates.target_sphere(*target)
    assert caught.value.exit_code == 66
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(commanded(command_of(caught.value.remedy))))
    found = templates.target_sphere(*target)
    assert all(Path(path).stat().st_size for path in found.files)
    if target[0] == "fsLR":
        assert templates.medial_wall(target[2], target[3]) is not None


def test_the_command_for_the_subcortex_is_shell_and_fetches_it(offline, monkeypatch, commanded):
    assert templates.subcortex_labels() is None
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(commanded(command_of(templates.subcortex_missing()))))
    assert templates.subcortex_labels() is not None


def command_of(text: str) -> str:
    """The command that a message holds."""
    return re.search(r"(python -m [\w.]+)[,)]", text)[1]
