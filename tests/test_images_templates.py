# SPDX-License-Identifier: Apache-2.0
"""Template surfaces that an image brings along: fetched where there is a network, else named as missing."""

import pytest

from conform_app.images import templates


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
    import zipfile
    from importlib.resources import files

    skeletons = [p for p in files("templateflow").joinpath("conf").iterdir() if p.name.endswith(".zip")]
    if not skeletons:
        pytest.skip("this templateflow brings no skeleton")
    with zipfile.ZipFile(str(skeletons[0])) as skeleton:
        listed = {name.rpartition("/")[2] for name in skeleton.namelist()}
    unknown = [name for _, name in templates.wanted_files() if name not in listed]
    assert unknown == []
