# SPDX-License-Identifier: Apache-2.0
"""Template surfaces that an image brings along: fetched where there is a network, else named as missing."""

import re
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from conform_app.errors import NoInputError
from conform_app.images import fetching, templates


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(templates, "online", lambda: False)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    return tmp_path


def test_what_is_there_is_not_named_as_missing(offline):
    wanted = templates.wanted_files()
    assert len(set(wanted)) == len(wanted)
    assert templates.fetch_all() == [name for _, name in wanted]
    template, name = wanted[0]
    (offline / f"tpl-{template}").mkdir()
    (offline / f"tpl-{template}" / name).write_bytes(b"x")
    assert name not in templates.fetch_all()


def test_every_name_is_one_that_templateflow_lists():
    assert {name for _, name in templates.wanted_files()} <= set(archive())


def test_a_build_without_templates_says_so_where_it_cannot_be_overlooked(offline, capsys):
    assert fetching.main(["try"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("=" * 100)
    assert f"{len(templates.wanted_files())} of {len(templates.wanted_files())}" in said
    assert "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii" in said
    assert "TEMPLATES=require" in said
    assert fetching.main(["require"]) == 1
    assert fetching.main(["none"]) == 0
    assert fetching.main(["maybe"]) == 2
    for template, name in templates.wanted_files():
        (offline / f"tpl-{template}").mkdir(exist_ok=True)
        (offline / f"tpl-{template}" / name).write_bytes(b"x")
    capsys.readouterr()
    assert [fetching.main([policy]) for policy in fetching.POLICIES] == [0, 0, 0]
    out, err = capsys.readouterr()
    assert "All" in out
    assert err == ""


def test_the_image_is_built_by_it():
    text = (Path(__file__).parents[1] / "Dockerfile").read_text()
    assert 'python -m conform_app.images.fetching "${TEMPLATES}"' in text
    assert "ARG TEMPLATES=try" in text


CASES = [
    (("fsLR", "32k", "fsLR", "L"), {"fsLR"}),
    (("fsLR", "91k", "fsaverage", "R"), {"fsLR"}),
    (("fsaverage", "164k", "fsaverage", "L"), {"fsaverage"}),
    (("fsaverage", "41k", "fsaverage", "L"), {"fsaverage"}),
    (("fsaverage", "10k", "fsLR", "L"), {"fsLR"}),
]


@pytest.mark.parametrize(("target", "asked"), CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_command_of_an_error_is_shell_and_fetches_what_was_missing(
    offline, tmp_path, monkeypatch, target, asked
):
    """Run the command as a shell does, with a TemplateFlow that writes what its archive lists."""
    with pytest.raises(NoInputError) as caught:
        templates.target_sphere(*target)
    assert caught.value.exit_code == 66
    home = tmp_path / "fetched"
    run_command(caught.value.remedy, home, tmp_path)
    assert {path.name.removeprefix("tpl-") for path in home.iterdir()} == asked
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    found = templates.target_sphere(*target)
    assert all(Path(path).stat().st_size for path in found.files)
    if target[0] == "fsLR":
        assert templates.medial_wall(target[2], target[3]) is not None


def test_the_command_for_the_subcortex_is_shell_and_fetches_it(offline, tmp_path):
    assert templates.subcortex_labels() is None
    run_command(templates.subcortex_missing(), offline, tmp_path / "scratch")
    assert templates.subcortex_labels() is not None


def run_command(text: str, home: Path, scratch: Path) -> None:
    """Run the command that a message holds in a shell, with an imitation of TemplateFlow."""
    command = re.search(r'python -c ".*?"', text)[0]
    fake = scratch / "fake" / "templateflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "api.py").write_text(FAKE)
    (scratch / "names.txt").write_text("\n".join(archive()))
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(fake.parent)}
    environment |= {"FAKE_HOME": str(home), "FAKE_NAMES": str(scratch / "names.txt")}
    subprocess.run(["sh", "-c", command], check=True, env=environment)


FAKE = '''
import os
from pathlib import Path

LONG = {"density": "den", "resolution": "res"}


def get(template, suffix, **query):
    """As TemplateFlow: every file of the archive that has these labels; those not named may be anything."""
    suffixes = suffix if isinstance(suffix, list) else [suffix]
    for name in Path(os.environ["FAKE_NAMES"]).read_text().split():
        first, *pairs = name.partition(".")[0].split("_")
        if first != f"tpl-{template}" or not pairs or pairs[-1] not in suffixes:
            continue
        labels = dict(pair.split("-", 1) for pair in pairs[:-1])
        if all(labels.get(LONG.get(k, k), "").lstrip("0") == str(v).lstrip("0") for k, v in query.items()):
            path = Path(os.environ["FAKE_HOME"]) / first / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
'''


def archive() -> list[str]:
    """Names of every file that TemplateFlow can fetch, from the skeleton that its package brings."""
    skeletons = [p for p in files("templateflow").joinpath("conf").iterdir() if p.name.endswith(".zip")]
    if not skeletons:
        pytest.skip("this templateflow brings no skeleton")
    with zipfile.ZipFile(str(skeletons[0])) as skeleton:
        return [name.rpartition("/")[2] for name in skeleton.namelist()]
