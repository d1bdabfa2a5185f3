# SPDX-License-Identifier: Apache-2.0
"""The output folder: whose it is, who may write to it, what it says about itself; sidecars and tables."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conform_app.bids.dataset import check_folders, check_output, write_dataset
from conform_app.bids.naming import bidsignore
from conform_app.bids.provenance import bids_uri, sidecar, software_versions, write_json, write_tsv
from conform_app.errors import CannotCreateError, DataError, UsageError

CONFIGURATION = {"model": {"hrf": "library", "fracs": (1.0, 0.5)}, "seed": 0}


@pytest.fixture
def inputs(tmp_path):
    raw, prep = tmp_path / "study", tmp_path / "study/derivatives/fmriprep"
    write_json(
        raw / "dataset_description.json",
        {
            "Name": "Study",
            "BIDSVersion": "1.9.0",
            "License": "CC0",
            "DatasetDOI": "doi:10.18112/openneuro.ds1",
            "HowToAcknowledge": "Cite Us\n(2020).",
        },
    )
    write_json(
        prep / "dataset_description.json",
        {
            "Name": "fMRIPrep",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "License": "CC0",
            "GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.2.0"}],
            "SourceDatasets": [
                {"URL": "https://doi.org/10.18112/openneuro.ds1", "DOI": "10.18112/openneuro.ds1"}
            ],
        },
    )
    return {"raw": raw, "fmriprep": prep}


def write(out, inputs, digest="abc", configuration=CONFIGURATION, **more):
    more = {"version": "1.2", "environ": {}} | more
    return write_dataset(out, configuration=configuration, configuration_hash=digest, inputs=inputs, **more)


def test_description(tmp_path, inputs):
    out = tmp_path / "study/derivatives/conform"
    inputs = dict(reversed(inputs.items()))  # whatever the order, the raw dataset gives the name
    path = write(out, inputs, environ={"CONFORM_DOCKER_TAG": "lab/conform:1.2"})
    content = json.loads(path.read_text())
    assert content["Name"] == "CONFORM: single-trial responses from Study"
    assert content["DatasetType"] == "derivative"
    assert content["License"] == "CC0"
    assert content["HowToAcknowledge"].endswith("Cite Us (2020).")
    assert [e["Name"] for e in content["GeneratedBy"]] == ["CONFORM", "fMRIPrep"]
    own = content["GeneratedBy"][0]
    assert (own["Version"], own["ConfigurationHash"]) == ("1.2", "abc")
    assert own["Container"] == {"Type": "docker", "Tag": "lab/conform:1.2"}
    assert content["DatasetLinks"] == {"raw": "../..", "fmriprep": "../fmriprep"}
    assert content["SourceDatasets"] == [
        {"URL": "https://doi.org/10.18112/openneuro.ds1", "DOI": "10.18112/openneuro.ds1"}
    ]
    assert (out / ".bidsignore").read_text().splitlines() == bidsignore()
    table = pd.read_csv(out / "descriptions.tsv", sep="\t")
    assert set(table["desc_id"]) >= {"desc-typeD", "desc-psn"}
    assert json.loads((out / "logs/configuration-abc.json").read_text())["model"]["fracs"] == [1.0, 0.5]
    assert "CONFORM" in (out / "README.md").read_text()
    assert [p for p in out.rglob(".*") if p.name != ".bidsignore"] == []


def test_collections_and_encoding_models_say_what_they_are(tmp_path, inputs):
    asked = "The source dataset asks: Cite Us (2020)."
    sites = {name: tmp_path / name for name in ("NSD", "BMD")}
    for out in sites.values():
        write(out, inputs)
    merged = tmp_path / "merged"
    content = json.loads(write(merged, sites, kind="group").read_text())
    assert content["Name"] == "CONFORM: collection of NSD, BMD"
    assert content["HowToAcknowledge"].count(asked) == 1
    assert content["HowToAcknowledge"].startswith(
        "Cite the references in logs/CITATION.md of each dataset merged."
    )
    text = (merged / "README.md").read_text()
    assert "_desc-mosaic_betas.zarr" in text
    assert "_trials.tsv`: one row a trial" not in text
    models = merged / "group" / "encoding"
    content = json.loads(write(models, {"conform": merged}, kind="encoding").read_text())
    assert content["Name"] == "CONFORM: encoding models from the collection of NSD, BMD"
    assert content["HowToAcknowledge"].count(asked) == 1
    assert "stat-weights" in (models / "README.md").read_text()


def test_a_collection_that_grows_says_so(tmp_path, inputs):
    other = tmp_path / "other"
    theirs = {"Name": "Other", "License": "CC-BY-4.0", "HowToAcknowledge": "Cite Them."}
    write_json(other / "dataset_description.json", theirs)
    sites = {"NSD": tmp_path / "NSD", "BMD": tmp_path / "BMD"}
    write(sites["NSD"], inputs)
    write(sites["BMD"], {"raw": other})
    merged = tmp_path / "merged"
    for name in ("NSD", "BMD"):  # with other settings, which are no settings of the collection
        path = write(merged, {name: sites[name]}, kind="group", digest=name)
    content = json.loads(path.read_text())
    assert content["Name"] == "CONFORM: collection of NSD, BMD"
    assert content["License"] == "CC0; CC-BY-4.0"
    assert content["HowToAcknowledge"].endswith(
        "The source dataset asks: Cite Us (2020). The source dataset asks: Cite Them."
    )
    assert content["DatasetLinks"] == {"NSD": "../NSD", "BMD": "../BMD"}
    assert "fMRIPrep" in [entry["Name"] for entry in content["GeneratedBy"]]
    before = path.read_bytes()
    write(merged, {"NSD": sites["NSD"]}, kind="group", digest="BMD")
    assert path.read_bytes() == before


def test_the_description_of_a_participant_level_stays(tmp_path, inputs):
    out = tmp_path / "out"
    before = write(out, inputs).read_bytes()
    assert write(out, inputs | {"NSD": tmp_path / "NSD"}, kind="group", digest="x").read_bytes() == before


def test_containers_and_links(tmp_path, inputs):
    out = tmp_path / "far/away/from/it/out"
    environ = {"APPTAINER_CONTAINER": "/home/someone/conform_1.2.sif"}
    remote = inputs | {"templateflow": "https://github.com/templateflow/templateflow"}
    content = json.loads(write(out, remote, environ=environ).read_text())
    assert content["GeneratedBy"][0]["Container"] == {"Type": "apptainer", "Tag": "conform_1.2.sif"}
    assert content["DatasetLinks"]["raw"] == (tmp_path / "study").as_uri()
    assert content["DatasetLinks"]["templateflow"] == remote["templateflow"]
    assert "someone" not in json.dumps(content)


def test_writing_again_changes_nothing(tmp_path, inputs):
    out = tmp_path / "out"
    write(out, inputs)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (out / "dataset_description.json",)}
    texts = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    write(out, inputs)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == texts


def test_what_the_user_wrote_stays(tmp_path, inputs):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README").write_text("mine")
    (out / ".bidsignore").write_text("my_notes.txt\nfigures\n")
    (out / "notes.txt").write_text("notes")
    write(out, inputs)
    assert (out / "README").read_text() == "mine"
    assert not (out / "README.md").exists()
    lines = (out / ".bidsignore").read_text().splitlines()
    assert lines[:2] == ["my_notes.txt", "figures"]
    assert sorted(lines[1:]) == sorted(bidsignore())
    assert (out / "notes.txt").read_text() == "notes"


def test_more_inputs_are_added(tmp_path, inputs):
    out = tmp_path / "out"
    write(out, inputs)
    content = json.loads(
        write(out, {"raw": inputs["raw"], "freesurfer": tmp_path / "fs"}, version="1.3").read_text()
    )
    assert set(content["DatasetLinks"]) == {"raw", "fmriprep", "freesurfer"}
    assert [e["Name"] for e in content["GeneratedBy"]] == ["CONFORM", "fMRIPrep"]
    assert content["GeneratedBy"][0]["Version"] == "1.3"


def test_a_folder_without_a_finished_fit_is_not_said_to_hold_results(tmp_path, inputs):
    out = tmp_path / "out"
    write(out, inputs)
    with pytest.raises(CannotCreateError, match="was begun with other settings") as caught:
        check_output(out, CONFIGURATION, "ffff00001111")
    assert "No fit of it is finished yet: add --overwrite" in caught.value.remedy
    record = out / "sub-01" / "log" / "fits" / "sub-01_task-x_space-T1w.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    with pytest.raises(CannotCreateError, match="holds results of other settings"):
        check_output(out, CONFIGURATION, "ffff00001111")


def test_other_settings_are_refused(tmp_path, inputs):
    out = tmp_path / "out"
    write(out, inputs)
    other = {"model": {"hrf": "canonical", "fracs": [1.0, 0.5]}, "seed": 0}
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for call in (
        lambda **more: check_output(out, other, "def", **more),
        lambda **more: write(out, inputs, "def", other, **more),
    ):
        with pytest.raises(CannotCreateError) as caught:
            call()
        assert caught.value.exit_code == 73
        assert 'model.hrf: "library" there, "canonical" now' in caught.value.message
        assert "fracs" not in caught.value.message
        assert "--overwrite" in caught.value.remedy
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    check_output(out, CONFIGURATION, "abc")
    check_output(out, other, "def", overwrite=True)
    write(out, inputs, "def", other, overwrite=True)
    check_output(out, other, "def")
    assert (out / "logs/configuration-abc.json").exists()  # nothing is deleted
    (out / "logs/configuration-def.json").unlink()
    with pytest.raises(CannotCreateError, match=r"other settings\. "):
        check_output(out, CONFIGURATION, "abc")


@pytest.mark.parametrize(
    "content",
    [
        {"Name": "theirs", "GeneratedBy": [{"Name": "fMRIPrep"}]},
        {"Name": "theirs", "DatasetType": "raw"},
        {"Name": "theirs", "GeneratedBy": [{"Name": "fMRIPrep"}, {"Name": "CONFORM"}]},
        ["theirs"],
    ],
)
def test_foreign_datasets_are_never_touched(tmp_path, inputs, content):
    out = tmp_path / "out"
    path = write_json(out / "dataset_description.json", content)
    before = path.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(CannotCreateError, match="is another dataset"):
            check_output(out, CONFIGURATION, "abc", overwrite=overwrite)
        with pytest.raises(CannotCreateError, match="is another dataset"):
            write(out, inputs, overwrite=overwrite)
    assert path.read_bytes() == before
    assert list(out.iterdir()) == [path]
    path.write_text("{")
    with pytest.raises(CannotCreateError, match="cannot be read"):
        check_output(out, CONFIGURATION, "abc")


def test_folders(tmp_path, inputs):
    raw, prep = inputs["raw"], inputs["fmriprep"]
    link = tmp_path / "link"
    link.symlink_to(raw)
    check_folders(raw, raw / "derivatives/conform", tmp_path / "work", [prep])
    check_folders(raw, tmp_path / "out", None, ["https://x.org"])
    for out in (raw, link, raw / "derivatives/.."):
        with pytest.raises(UsageError, match=r"is the input dataset.*derivatives/conform"):
            check_folders(raw, out)
    with pytest.raises(UsageError, match="one of the input derivatives"):
        check_folders(raw, prep, None, [prep])
    with pytest.raises(UsageError, match=r"work folder .* lies within"):
        check_folders(raw, tmp_path / "out", link / "work")
    with pytest.raises(UsageError, match=r"work folder .* is the output"):
        check_folders(raw, tmp_path / "out", tmp_path / "out")
    with pytest.raises(UsageError) as caught:
        check_folders(raw, raw)
    assert caught.value.exit_code == 64


def _as_nobody(folder, name, queue):
    os.chdir(folder)  # before the rights to pass through its parents are given up
    out = Path(name)
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        check_output(out, CONFIGURATION, "abc")
    except CannotCreateError as error:
        queue.put(error.message)
    else:
        queue.put("written")


@pytest.fixture
def context():
    # fork: the test's own process gives up its rights only in the child
    return multiprocessing.get_context("fork")


def test_unwritable(tmp_path, context):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match=r"file/out cannot be written"):
        check_output(tmp_path / "file/out", CONFIGURATION, "abc")
    locked = tmp_path / "locked"
    locked.mkdir()
    os.chmod(locked, 0o555)  # noqa: S103
    for name in (".", "new"):
        queue = context.Queue()
        child = context.Process(target=_as_nobody, args=(locked, name, queue))
        child.start()
        assert f"output folder {name} cannot be written (Permission denied)" in queue.get(timeout=30)
        child.join()


def _start(out, inputs, digest, barrier, queue):
    barrier.wait()
    try:
        for _ in range(5):
            write(out, inputs, digest, {"digest": digest})
            description = json.loads((out / "dataset_description.json").read_text())
            assert description["GeneratedBy"][0]["ConfigurationHash"] == digest
    except CannotCreateError:
        queue.put("refused")
    except Exception as error:  # noqa: BLE001
        queue.put(repr(error))
    else:
        queue.put("written")


@pytest.mark.parametrize("digests", ["aaaa", "abcd", "aabb"])
def test_four_processes_at_once(tmp_path, inputs, context, digests):
    for round_ in range(5):
        out = tmp_path / f"out{round_}"
        barrier, queue = context.Barrier(4), context.Queue()
        children = [
            context.Process(target=_start, args=(out, inputs, digest, barrier, queue)) for digest in digests
        ]
        for child in children:
            child.start()
        outcomes = sorted(queue.get(timeout=60) for _ in children)
        for child in children:
            child.join()
        winner = json.loads((out / "dataset_description.json").read_text())["GeneratedBy"][0][
            "ConfigurationHash"
        ]
        n = digests.count(winner)
        assert outcomes == ["refused"] * (4 - n) + ["written"] * n
        assert [p.name for p in out.glob("logs/configuration-*")] == [f"configuration-{winner}.json"]
        assert list(out.rglob("*.tmp")) == []


def test_without_hard_links(tmp_path, inputs, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = write(tmp_path / "out", inputs)
    assert json.loads(path.read_text())["GeneratedBy"][0]["Name"] == "CONFORM"
    with pytest.raises(CannotCreateError, match="other settings"):
        write(tmp_path / "out", inputs, "other")


def test_uris(tmp_path):
    roots = {"raw": tmp_path / "s", "fmriprep": tmp_path / "s/derivatives/fmriprep", "tf": "https://x.org/t"}
    inside = tmp_path / "s/derivatives/fmriprep/sub-01/func/a b.nii.gz"
    assert bids_uri(inside, roots) == "bids:fmriprep:sub-01/func/a b.nii.gz"
    assert bids_uri(tmp_path / "s/sub-01/x.tsv", roots) == "bids:raw:sub-01/x.tsv"
    assert bids_uri(tmp_path / "out/sub-01/x.tsv", roots, tmp_path / "out") == "bids::sub-01/x.tsv"
    assert bids_uri("sub-01/x.tsv") == "bids::sub-01/x.tsv"
    assert bids_uri("/elsewhere/x y.tsv", roots) == "file:///elsewhere/x%20y.tsv"


def test_sidecar(tmp_path):
    entities = {"sub": "01", "ses": None, "task": "x", "space": "T1w", "res": "2"}
    source = tmp_path / "prep/sub-01/func/sub-01_task-x_bold.nii.gz"
    content = sidecar(
        "betas_typeD",
        entities,
        sources=[source, source],
        roots={"fmriprep": tmp_path / "prep"},
        configuration_hash="abc",
        fill=float("nan"),
        RepetitionTime=2.0,
        StimulusDuration=None,
        NumberOfTrials=np.int64(12),
    )
    read = json.loads(write_json(tmp_path / "a.json", content).read_text())
    assert read["Units"] == "percent signal change"
    assert read["EstimationMethod"] == "GLMsingle typeD"
    assert read["Sources"] == ["bids:fmriprep:sub-01/func/sub-01_task-x_bold.nii.gz"]
    assert read["SpatialReference"] == read["Sources"][0]
    assert read["TrialTable"] == "bids::sub-01/func/sub-01_task-x_trials.tsv"
    assert read["OutsideMaskValue"] == "n/a"
    assert (read["RepetitionTime"], read["NumberOfTrials"]) == (2.0, 12)
    assert "StimulusDuration" not in read
    assert read["Resolution"]
    assert f"numpy {np.__version__}" in read["SoftwareVersions"]
    assert sidecar("brainmask", entities)["Type"] == "Brain"
    # the image and the table of its labels share one JSON
    assert sidecar("hrfindex", entities, fill=0.0) == sidecar("hrfindex_labels", entities)
    assert sidecar("condmean", entities)["ConditionTable"].endswith("_conditions.tsv")
    table = sidecar("trials", entities)
    assert table["onset"]["Units"] == "s"
    assert "SpatialReference" not in sidecar("mean", entities | {"space": "fsaverage"}, sources=[source])
    assert software_versions()["numpy"] == np.__version__


def test_tables(tmp_path):
    columns = {
        "onset": np.array([0.1, 1e-7, 123456.789]),
        "small": np.array([0.1, np.nan, np.inf], dtype=np.float32),
        "n": np.array([1, 2, 3]),
        "ok": np.array([True, False, True]),
        "label": ["a\tb", "", "ü\nx"],
        "maybe": [None, "n/a", 2.5],
    }
    path = write_tsv(tmp_path / "new/a.tsv", columns)
    assert path.read_text().splitlines() == [
        "onset\tsmall\tn\tok\tlabel\tmaybe",
        "0.1\t0.1\t1\ttrue\ta b\tn/a",
        "0.0000001\tn/a\t2\tfalse\tn/a\tn/a",
        "123456.789\tn/a\t3\ttrue\tü x\t2.5",
    ]
    table = pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)
    np.testing.assert_array_equal(table["onset"], columns["onset"])
    with pytest.raises(DataError, match="different lengths"):
        write_tsv(path, {"a": [1], "b": []})
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    write_tsv(path, {"x": values})
    np.testing.assert_array_equal([float(v) for v in path.read_text().split()[1:]], values)


def test_json_is_plain(tmp_path):
    content = {
        "a": np.float32(0.1),
        "b": [np.nan, np.arange(2)],
        "c": Path("x/y"),
        "d": {2, 1},
        "e": (True, None),
    }
    read = json.loads(write_json(tmp_path / "a.json", content).read_text())
    assert read == {"a": 0.1, "b": ["n/a", [0, 1]], "c": "x/y", "d": [1, 2], "e": [True, None]}
