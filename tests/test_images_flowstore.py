# SPDX-License-Identifier: Apache-2.0
"""Templates fetched by TemplateFlow's own client from a store on this machine."""

import os
import socket

import pytest
from template_store import archive, serving, stored

from conform_app.images import fetching, flowstore, packaged, templates


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setattr(packaged, "home", lambda: None)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def store(monkeypatch):
    with serving() as store:
        monkeypatch.setenv(flowstore.STORE, store.address)
        yield store


def leftovers(home):
    """What is in the folder that the archive does not name."""
    known = {name.rstrip("/") for name in archive()}
    return [p for p in home.rglob("*") if str(p.relative_to(home)) not in known]


def test_everything_is_fetched_and_is_what_the_store_has(home, store):
    assert templates.online()
    assert templates.fetch_all() == []
    for template, name in templates.wanted_files():
        path = home / f"tpl-{template}" / name
        assert path.read_bytes() == stored(name)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert sorted(store.asked) == sorted(f"tpl-{t}/{name}" for t, name in templates.wanted_files())
    assert templates.missing_files() == []
    assert leftovers(home) == []
    # nothing is fetched again
    assert templates.fetch_all() == []
    assert len(store.asked) == len(templates.wanted_files())


def test_the_folder_is_one_that_other_programs_can_use(home, store, monkeypatch):
    """TemplateFlow's list of names is there besides what was fetched."""
    from templateflow.client import TemplateFlowClient

    name = "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii"
    assert flowstore.fetch(home, "fsLR", name)
    client = TemplateFlowClient(root=home, s3_root=store.address)
    found = client.get("fsLR", hemi="L", density="32k", suffix="sphere", space=None)
    assert found.read_bytes() == stored(name)
    other = client.get("fsLR", hemi="R", density="59k", suffix="sphere", space=None)
    assert other.read_bytes() == stored(other.name)


def test_a_file_that_the_store_lacks_is_named_and_the_rest_is_fetched(home, store):
    gone = "tpl-fsaverage_hemi-L_den-41k_white.surf.gii"
    store.absent = {gone}
    assert templates.fetch_all() == [gone]
    assert templates.missing_files() == [gone]
    assert (home / "tpl-fsaverage" / gone).stat().st_size == 0, "TemplateFlow's sign of what can be fetched"


@pytest.mark.parametrize("fault", ["broken", "portal"])
def test_half_a_file_and_a_login_page_never_look_complete(home, store, fault):
    names = {"tpl-fsLR_hemi-R_den-32k_sphere.surf.gii", templates.SUBCORTEX}
    setattr(store, fault, names)
    assert set(templates.fetch_all()) == names
    for name in names:
        template = name.removeprefix("tpl-").partition("_")[0]
        assert (home / f"tpl-{template}" / name).stat().st_size == 0
    assert leftovers(home) == []
    setattr(store, fault, set())
    assert templates.fetch_all() == []


def test_a_store_that_is_down_is_not_waited_for(home, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setenv(flowstore.STORE, f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert not templates.online()
        assert not flowstore.fetch(home, "fsLR", "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii")
    assert len(templates.fetch_all()) == len(templates.wanted_files())


def test_a_store_that_goes_down_half_way_leaves_nothing_that_is_not_whole(home, monkeypatch):
    with serving() as store:
        monkeypatch.setenv(flowstore.STORE, store.address)
        assert templates.online()
        assert templates.subcortex_labels() is not None
    assert len(templates.fetch_all()) == len(templates.wanted_files()) - 1
    assert leftovers(home) == []


def test_a_folder_that_cannot_be_written_is_no_crash(tmp_path, store, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(packaged, "home", lambda: None)
    assert templates.subcortex_labels() is None
    assert fetching.main([]) == 1


def test_a_datalad_dataset_is_left_as_it_is(home, store):
    """There, a file that is not fetched yet is a link that leads nowhere."""
    place = home / "tpl-MNI152NLin6Asym" / templates.SUBCORTEX
    place.parent.mkdir(parents=True)
    place.symlink_to("../.git/annex/objects/nowhere")
    assert templates.subcortex_labels() is None
    assert place.is_symlink()
    assert store.asked == []


@pytest.mark.parametrize("address", ["", "nonsense", "http://", "http://127.0.0.1:no"])
def test_an_address_that_is_none_is_the_default_or_not_reached(address, monkeypatch):
    monkeypatch.setenv(flowstore.STORE, address)
    if address:
        assert not flowstore.online()
    else:
        assert flowstore.address() == "https://templateflow.s3.amazonaws.com"


def test_a_proxy_is_trusted_for_the_addresses_that_go_through_it(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv(flowstore.STORE, "https://templates.invalid/mirror")
    assert flowstore.online()
    monkeypatch.setenv(flowstore.STORE, "http://templates.invalid/mirror")
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    assert not flowstore.online()


def test_the_default_store_is_that_of_templateflow():
    from templateflow.conf.cache import CacheConfig

    assert flowstore.address() == CacheConfig().s3_root


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
