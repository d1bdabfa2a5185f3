# SPDX-License-Identifier: Apache-2.0
"""Encoding models as the user gets them: BOLD of two simulated studies, ``conform ... group --encode``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from simulated_sites import group_arguments, make_sites, run_participants

from conform_app.cli import main

pytestmark = pytest.mark.end_to_end
pytest.importorskip("zarr")

STEM = "space-fsLR_den-91k"
ENCODE = ("--encode", "stacked", "--encode-context", "10", "16", "--encode-repeats", "2", "--nprocs", "1")
ENCODE += ("--encode-alignment", "ridge")


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Participants of two studies whose tuning has something in common."""
    root = tmp_path_factory.mktemp("sites")
    folders = make_sites(root, n_vertices=40, n_images=16, n_test=8, common=0.5)
    folders = {name: folders[name] for name in ("Alpha", "Beta")}
    outputs = run_participants(root, folders, "--nprocs", "1", "--psn", "off", spaces=("fsLR:den-91k",))
    return root, folders, outputs


@pytest.fixture(scope="module")
def arguments(sites):
    return group_arguments(*[sites[0], sites[2], sites[1]])


@pytest.fixture(scope="module")
def out(sites, arguments):
    assert main([*arguments, *ENCODE]) == 0
    return sites[0] / "collection"


def stamps(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("sub-*/func/*")}


def test_an_encoding_model_is_found_where_there_is_one(out) -> None:
    made = out / "group" / "encoding"
    described = json.loads((made / "dataset_description.json").read_text())
    assert described["Name"] == "CONFORM: encoding models from the collection of Alpha, Beta"
    assert described["License"] == json.loads((out / "dataset_description.json").read_text())["License"]
    assert {path.name for path in made.glob("sub-*")} == {
        "sub-Alpha01",
        "sub-Alpha02",
        "sub-Beta01",
        "sub-Beta02",
    }
    metrics = pd.read_csv(made / f"{STEM}_metrics.tsv", sep="\t")
    r = metrics[(metrics["metric"] == "r") & (metrics["region"] == "all")]
    r = r.groupby(["method", "n_context"])["mean"].mean()
    assert r["stacked", 10] > r["ridge", 10] + 0.05
    assert r["stacked", 16] > 0.5
    assert r["stacked", 16] > r["ridge", 16] - 0.005
    shared = json.loads((made / "desc-encoding_summary.json").read_text())
    assert shared["Records"]["sub-01_Beta"]["LearnedFrom"] == ["sub-01_Alpha", "sub-02_Alpha", "sub-02_Beta"]


def test_the_page_shows_it_and_cites_it(out) -> None:
    page = (out / "group.html").read_text()
    for word in (
        "Encoding models",
        "desc-learningcurve_group.svg",
        "How many images are needed",
        "Yu et al., 2025",
    ):
        assert word in page
    for name in ("learningcurve", "encodingmean", "encodingceiling"):
        assert (out / "group" / "figures" / f"desc-{name}_group.svg").is_file()
    text = (out / "group" / "encoding" / "logs" / "CITATION.md").read_text()
    assert "[@himalaya]" in text
    assert "@misc{braincorl" in (out / "group" / "encoding" / "logs" / "CITATION.bib").read_text()
    for left in ("{{", "{%", "None", "nan", "  "):
        assert left not in text
    before = (out / "group.html").read_bytes()
    assert main([str(out.parent / "x"), str(out), "group", "--reports-only"]) == 0
    assert len((out / "group.html").read_bytes()) == len(before)


def test_participants_of_a_study_are_aligned(out) -> None:
    """They saw the same train images; those of the two studies share none."""
    made = out / "group" / "encoding"
    shared = pd.read_csv(made / f"{STEM}_alignment.tsv", sep="\t").set_index(
        ["participant", "other", "n_context"]
    )
    assert shared.loc[("sub-01_Alpha", "sub-02_Alpha", 16), "n_shared"] == 16
    assert not shared.loc[("sub-01_Alpha", "sub-01_Beta", 16), "used"]
    metrics = pd.read_csv(made / f"{STEM}_metrics.tsv", sep="\t")
    r = metrics[(metrics["metric"] == "r") & (metrics["region"] == "all")]
    r = r.set_index(["method", "n_context", "participant"]).sort_index()
    assert r.loc[("aligned ridge", 16), "mean"].between(0.1, 1).all()
    same = r.loc[("aligned ridge", 16), "n_vertices"] == r.loc[("ridge", 16), "n_vertices"]
    assert same.all()
    assert r.loc[("aligned ridge", 16), "over_ridge_low"].notna().all()
    page = (out / "group.html").read_text()
    assert "Functional alignment" in page
    assert "Bazeille et al., 2021" in page
    assert "aligned ridge" in (out / "group" / "figures" / "desc-learningcurve_group.svg").read_text()


def test_what_is_there_stays_and_other_settings_are_refused(out, arguments, capsys) -> None:
    before = stamps(out / "group" / "encoding")
    assert main([*arguments, *ENCODE]) == 0
    assert stamps(out / "group" / "encoding") == before
    assert "its encoding model is there" in capsys.readouterr().err
    others = [
        *arguments,
        *ENCODE[:-2],
        "--nprocs",
        "1",
        "--encode-betas",
        "mean",
        "--encode-min-ceiling",
        "5",
    ]
    assert main(others) == 73
    assert "encode_min_ceiling: 0.0 there, 5.0 now" in capsys.readouterr().err
    assert stamps(out / "group" / "encoding") == before


def test_dry_run_says_what_would_be_done(out, arguments, capsys) -> None:
    assert main([*arguments, *ENCODE, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.count("3 others") == 4
    assert text.count(" done ") == 4
    fresh = [arg if arg != str(out) else str(out.parent / "fresh") for arg in arguments]
    assert main([*fresh, *ENCODE, "--dry-run"]) == 0
    assert "follow once the collection is there" in capsys.readouterr().out
    assert not (out.parent / "fresh").exists()


def test_mistakes_end_with_their_code_and_the_collection_is_still_reported(
    out, arguments, sites, capsys, tmp_path
) -> None:
    plain = [arg for arg in arguments if not arg.endswith("features.npz") and arg != "--features"]
    assert main([*plain, *ENCODE]) == 64
    assert "--encode needs features" in capsys.readouterr().err
    own = ["--encode-features", str(sites[0] / "features.npz")]
    assert main([*plain, *ENCODE, *own, "--dry-run"]) == 0  # others than those for near-duplicates, or none
    assert capsys.readouterr().out.count("3 others") == 4
    assert main([*arguments, "--encode", "transformer"]) == 64
    assert main([*arguments, *ENCODE, "--encode-regions", str(tmp_path / "no.tsv")]) == 66
    (tmp_path / "half.npz").write_bytes((sites[0] / "features.npz").read_bytes()[:999])
    assert main([*arguments, *ENCODE, "--encode-features", str(tmp_path / "half.npz"), "--dry-run"]) == 65
    assert "half.npz holds no features" in capsys.readouterr().err
    assert main([*arguments, *ENCODE, "--encode-target", "77"]) == 64
    with np.load(sites[0] / "features.npz") as archive:
        names, values = archive["names"], archive["values"]
    np.savez(tmp_path / "long.npz", names=names, values=values * 3)
    longer = [arg if not arg.endswith("features.npz") else str(tmp_path / "long.npz") for arg in arguments]
    capsys.readouterr()
    (out / "group.html").unlink()
    assert main([*longer, *ENCODE]) == 65
    error = capsys.readouterr().err
    assert "have length 3, not 1" in error
    assert "Traceback" not in error
    assert (out / "group.html").is_file()


def test_one_participant_that_fails_does_not_keep_the_others(out, arguments, monkeypatch, capsys) -> None:
    """Its earlier model stays, the others are made, and the exit code says that something was wrong."""
    import conform_app.encode.seal as seal
    from conform_app.errors import DataError

    write = seal.write_target

    def broken(job, plan, target, found, space, grid):
        if target.key == "sub-02_Alpha":
            raise DataError("sub-02_Alpha: nothing fits.", "Look again.")
        return write(job, plan, target, found, space, grid)

    monkeypatch.setattr(seal, "write_target", broken)
    before = stamps(out / "group" / "encoding")
    assert main([*arguments, *ENCODE, "--overwrite"]) == 1
    said = capsys.readouterr().err
    assert "sub-02_Alpha: nothing fits." in said
    assert said.count(": encoding model\n") == 4
    after = stamps(out / "group" / "encoding")
    assert after.keys() == before.keys()
    changed = {path.parents[1].name for path in after if after[path] != before[path]}
    assert changed == {"sub-Alpha01", "sub-Beta01", "sub-Beta02"}
    assert "In the last call this failed: sub-02_Alpha" in (out / "group.html").read_text()


def test_maps_need_one_output_that_is_still_there(out, arguments, sites, capsys) -> None:
    """The collection is enough for tables; images need a grid, and what is missing is said."""
    masks = [path for folder in sites[2].values() for path in folder.rglob("*desc-brain_mask.d*.nii")]
    assert masks
    for path in masks:
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        assert main([*arguments, *ENCODE, "--overwrite"]) == 66
        assert "one image on the collection's grid" in capsys.readouterr().err
    finally:
        for path in masks:
            path.with_name(f"{path.name}.away").rename(path)


def test_models_of_another_version_of_the_collection_are_told(out, arguments, capsys) -> None:
    plain = [arg for arg in arguments if not arg.endswith("features.npz") and arg != "--features"]
    told = "The encoding models on this page were made from version"
    assert told not in (out / "group.html").read_text()
    assert main(plain) == 0  # without features the split is another one
    assert told in (out / "group.html").read_text()
    assert told in capsys.readouterr().err
    assert main([*arguments, *ENCODE]) == 0
    assert capsys.readouterr().err.count("its encoding model is there") == 4
    assert told not in (out / "group.html").read_text()
