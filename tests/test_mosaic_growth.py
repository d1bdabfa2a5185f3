# SPDX-License-Identifier: Apache-2.0
"""Growing a collection: versions, processes at once, and everything that goes wrong on the way."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conform_app.errors import (
    CannotCreateError,
    DataError,
    FileFaultError,
    NoInputError,
    TemporaryError,
    UsageError,
)
from conform_app.mosaic import Collection, FitUnit, growth, layout, split_stimuli

V = 64
ROOT = Path(__file__).resolve().parents[1]


def trials_of(names, phase="train", **columns):
    return pd.DataFrame({"stimulus": names, "phase": phase, **columns})


def betas_of(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, V))


def add(collection, dataset="A", participant="sub-01", names=("x.jpg", "y.jpg", "x.jpg", "z.jpg"), **options):
    phase = options.pop("phase", ["train", "train", "train", "test"])
    trials = trials_of(list(names), phase, **options.pop("columns", {}))
    units = options.pop("units", [FitUnit("all", betas_of(len(names)))])
    return collection.add_participant(dataset, participant, trials, units, **options)


@pytest.fixture
def empty(tmp_path):
    return Collection.create(tmp_path / "c", space="toy", n_vertices=V)


def files_of(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


# -- versions ---------------------------------------------------------------------------------------------


def test_adding_leaves_what_is_there_untouched(empty):
    add(empty)
    first = empty.seal(note="first")
    before = files_of(empty.root / "participants/sub-01_A")
    add(empty, "B", names=("x.jpg", "q.jpg", "z.jpg", "z.jpg"), phase=["test", "train", "train", "train"])
    assert empty.pending == ["sub-01_B"]
    assert empty.keys == ["sub-01_A"]
    second = empty.seal(note="second")
    assert files_of(empty.root / "participants/sub-01_A") == before
    assert (first["version"], second["version"]) == (1, 2)
    assert [step["added"] for step in second["history"]] == [["sub-01_A"], ["sub-01_B"]]
    # x: two train trials against one test trial; z: one test, two train
    assert empty.trials("sub-01_A")["split"].tolist() == ["train", "train", "train", "excluded"]
    assert empty.trials("sub-01_B")["split"].tolist() == ["excluded", "train", "train", "train"]
    assert empty.stimuli["n_datasets"].tolist() == [2, 1, 2, 1]


def test_sealing_without_a_change_is_the_same_version(empty):
    add(empty)
    assert empty.seal() == empty.seal()
    assert sorted(p.name for p in (empty.root / "tables").iterdir()) == ["v0001"]


def test_the_old_version_stays_readable_until_the_manifest_is_replaced(empty, monkeypatch):
    add(empty)
    empty.seal()
    reader = Collection.open(empty.root)
    add(empty, "B")
    monkeypatch.setattr(layout, "write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        empty.seal()
    monkeypatch.undo()
    for view in (reader, Collection.open(empty.root)):
        assert view.version == 1
        assert view.keys == ["sub-01_A"]
        assert view.stimuli["n_datasets"].max() == 1
        assert view.verify() == []
    assert empty.seal()["version"] == 2


def test_a_removed_participant_is_on_record_and_the_rest_is_as_before(empty):
    add(empty)
    add(empty, participant="sub-02")
    empty.seal()
    z = empty.betas("sub-02_A")
    empty.remove("sub-01_A")
    assert empty.keys == ["sub-02_A"]
    assert empty.missing == ["sub-01_A"]
    assert empty.verify() == ["sub-01_A is no longer there."]
    with pytest.raises(NoInputError, match="sub-01_A"):
        empty.betas("sub-01_A")
    assert empty.seal()["history"][-1]["removed"] == ["sub-01_A"]
    assert (empty.missing, empty.verify()) == ([], [])
    np.testing.assert_array_equal(empty.betas("sub-02_A"), z)
    for name in ("sub-09_A", "", "../c", ".incoming-x"):
        with pytest.raises(NoInputError):
            empty.remove(name)


def test_a_participant_is_replaced_only_on_request(empty):
    add(empty)
    empty.seal()
    with pytest.raises(CannotCreateError, match="sub-01_A is in the collection already"):
        add(empty)
    add(empty, replace=True, normalise=False)
    assert empty.seal()["history"][-1]["replaced"] == ["sub-01_A"]
    np.testing.assert_allclose(empty.betas("sub-01_A"), betas_of(4), atol=1e-6)
    assert [p.name for p in (empty.root / "participants").iterdir() if p.is_dir()] == ["sub-01_A"]


def test_a_split_made_elsewhere_is_taken_and_must_cover_all(empty):
    add(empty)
    shown = empty.presentations()
    split = split_stimuli(shown, threshold=0.5)
    empty.seal(split=split, tables={"methodology": pd.DataFrame({"participant": ["sub-01_A"], "tr": [2.0]})})
    assert empty.table("methodology")["tr"].tolist() == [2.0]
    assert empty.audit["threshold"] == 0.5
    assert "DreamSim" in empty.audit["threshold_origin"]
    with pytest.raises(DataError, match="have no split"):
        empty.seal(split=split_stimuli(shown[shown["stimulus"] != "x.jpg"]))
    with pytest.raises(NoInputError, match="no table 'weather'") as found:
        empty.table("weather")
    assert found.value.remedy.startswith("It has audit_datasets, excluded, methodology, ")


def test_regions_by_label(empty):
    add(empty)
    with pytest.raises(NoInputError):
        empty.region("V1")
    labels = ["V1", "V2", "", "V1"] * (V // 4)
    empty.seal(tables={"parcels": pd.DataFrame({"label": labels})})
    assert empty.region("V1").tolist() == [i for i in range(V) if i % 4 in (0, 3)]
    assert empty.region("V2", "V1").tolist() == [i for i in range(V) if i % 4 != 2]
    assert empty.betas("sub-01_A", vertices=empty.region("V2")).shape == (4, V // 4)
    with pytest.raises(UsageError, match="'V9'"):
        empty.region("V1", "V9")
    empty.seal(tables={"parcels": pd.DataFrame({"label": labels[:-1]})})
    with pytest.raises(UsageError, match="63 rows for 64 vertices"):
        empty.region("V1")


def test_embeddings_given_to_seal_keep_near_duplicates_apart(empty):
    add(empty)
    vectors = {"x.jpg": [1, 0, 0.0], "y.jpg": [0, 1, 0.0], "z.jpg": [1, 0.1, 0.0]}
    empty.seal(embeddings=vectors)
    assert dict(empty.stimuli[["stimulus", "split"]].to_numpy()) == {
        "x.jpg": "excluded",
        "y.jpg": "train",
        "z.jpg": "test",
    }
    assert empty.table("near")[["stimulus_a", "stimulus_b"]].to_numpy().tolist() == [["x.jpg", "z.jpg"]]
    assert empty.trials("sub-01_A")["split"].tolist() == ["excluded", "train", "excluded", "test"]


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": (), "phase": "train"}, "has no table of trials"),
        ({"names": ("x", "y"), "phase": "train"}, "4 betas and 2 rows"),
        ({"units": [FitUnit("all", np.zeros((4, V + 1)))]}, "shape"),
        ({"units": [FitUnit("a", betas_of(2)), FitUnit("a", betas_of(2))]}, "Two fits of sub-01_A"),
        ({"units": [FitUnit("all", np.full((4, V), np.nan))]}, "No beta of sub-01_A is finite"),
        ({"phase": "validation"}, "phase 'validation'"),
        ({"names": ("x", "", "z", "w")}, "have no stimulus"),
        ({"participant": "sub-0/1"}, "cannot be named"),
        ({"dataset": "my data"}, "cannot be named"),
        ({"configuration": {"settings": "bbb"}}, r"cannot be pooled: its settings is 'bbb', .* 'aaa'"),
        ({"configuration": {}}, "cannot be pooled: its settings is None"),
    ],
)
def test_nothing_is_merged_that_does_not_fit(tmp_path, options, said):
    same = {"settings": "aaa"}
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=V, configuration=same)
    units = {"units": [FitUnit("all", betas_of(4))]} if "names" in options else {}
    with pytest.raises(DataError, match=said):
        add(collection, **{"configuration": {**same, "site": "x"}, **units, **options})
    assert collection.pending == []
    assert [p for p in (collection.root / "participants").iterdir() if p.is_dir()] == []
    with pytest.raises(DataError, match="no participants"):
        collection.seal()


def test_two_datasets_of_one_name_are_told_apart(empty):
    add(empty, dataset_id="doi:1")
    with pytest.raises(DataError, match=r"sub-02_A and sub-01_A belong to different datasets of one name"):
        add(empty, participant="sub-02", dataset_id="doi:2")
    add(empty, participant="sub-02", dataset_id="doi:1")
    record = empty.root / "participants/sub-02_A/record.json"
    record.write_text(record.read_text().replace("doi:1", "doi:2"))
    with pytest.raises(DataError, match="different datasets of one name"):
        empty.seal()


def test_one_name_with_two_contents_stops_the_seal(empty):
    add(empty, columns={"sha256": ["11", "22", "11", "33"]})
    add(empty, participant="sub-02", columns={"sha256": ["11", "22", "11", "44"]})
    with pytest.raises(DataError, match=r"A has the stimulus 'z.jpg' with 2 different contents"):
        empty.seal()
    assert empty.version == 0
    empty.remove("sub-02_A")
    add(empty, "B", columns={"sha256": ["11", "22", "11", "44"]})
    with pytest.raises(DataError, match=r"'z.jpg' has different content in A and in B"):
        empty.seal()
    empty.seal(same_name="separate")
    assert empty.trials("sub-01_B")["stimulus"].tolist() == ["x.jpg", "y.jpg", "x.jpg", "B/z.jpg"]


def test_vertices_without_values_stay_missing_and_are_left_out_of_training(empty):
    betas = betas_of(4)
    betas[:, 5] = np.nan
    betas[2, 6] = np.nan
    betas[3] = np.nan
    record = add(empty, units=[FitUnit("all", betas)])
    assert record["missing"] == {"vertices": V, "vertices_always": 1, "values": 4 + V, "trials": [3]}
    add(empty, participant="sub-02")
    empty.seal()
    assert len(empty.valid_vertices()) == 0
    assert len(empty.valid_vertices(["sub-02_A"])) == V
    assert np.isfinite(empty.betas("sub-02_A")).all()


# -- crashes, full disks, many at once ----------------------------------------------------------------------


def run(code, **options):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


SLOW = """
    import sys, time
    import numpy as np, pandas as pd
    from conform_app.mosaic import Collection, FitUnit
    class Slow:
        shape = (400, 64)
        reads = 0
        def __getitem__(self, rows):
            Slow.reads += 1
            if Slow.reads == 24:
                print("half", flush=True)
                time.sleep(60)
            return np.random.default_rng(rows.start).standard_normal((400, 64))[rows]
    trials = pd.DataFrame({{"stimulus": [f"{{i}}.jpg" for i in range(400)], "phase": "train"}})
    Collection.open({path!r}).add_participant("A", "sub-02", trials, [FitUnit("all", Slow())])
"""


def test_a_killed_writer_leaves_nothing_that_counts(empty):
    add(empty)
    empty.seal()
    before = files_of(empty.root / "participants/sub-01_A")
    writer = run(SLOW.format(path=str(empty.root)))
    assert writer.stdout.readline() == "half\n"
    half = [p for p in (empty.root / "participants").iterdir() if p.name.startswith(".incoming")]
    assert len(half) == 1
    assert (half[0] / "betas/c/0/0").stat().st_size > 0
    # While the writer lives, its folder is nobody else's
    assert Collection.open(empty.root).pending == []
    assert layout.sweep(empty.root) == []
    assert half[0].exists()
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=30)
    assert Collection.open(empty.root).pending == []
    assert Collection.open(empty.root).verify() == []
    add(empty, participant="sub-02")
    manifest = empty.seal()
    assert not half[0].exists()
    assert manifest["history"][-1]["leftovers_removed"] == [half[0].name.removeprefix(".incoming-")]
    assert files_of(empty.root / "participants/sub-01_A") == before


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_disk_that_fills_up_harms_nothing(empty):
    """The kernel refuses to let a file grow, as it does when the disk or the quota is full."""
    add(empty)
    empty.seal()
    before = files_of(empty.root)
    code = SLOW.format(path=str(empty.root)).replace("Slow.reads == 24", "False")
    writer = run(code, preexec_fn=limit_file_size)
    _, errors = writer.communicate(timeout=60)
    assert writer.returncode == 1
    assert "FileFaultError: No room left to write" in errors
    assert "nothing that was there is harmed" in errors
    assert files_of(empty.root) == before


def test_a_disk_without_room_is_refused_before_the_first_byte(empty, monkeypatch):
    full = shutil.disk_usage(empty.root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(CannotCreateError, match=r"sub-01_A takes .* GB and the disk has 0.00 GB left"):
        add(empty)
    assert empty.pending == []


def test_a_source_that_breaks_off_is_named(empty):
    class Broken:
        shape = (4, V)

        def __getitem__(self, rows):
            raise OSError("truncated file")

    with pytest.raises(FileFaultError, match="Betas of sub-01_A all cannot be read: truncated file"):
        add(empty, units=[FitUnit("all", Broken())])
    assert empty.pending == []


def join(path, number, gate):
    gate.wait()
    collection = Collection.create(path, space="toy", n_vertices=V, exist_ok=True)
    add(collection, participant=f"sub-{number:02d}")


def test_processes_add_participants_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    workers = [context.Process(target=join, args=(tmp_path / "c", i, gate)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    collection = Collection.open(tmp_path / "c")
    assert collection.keys == [f"sub-{i:02d}_A" for i in range(4)]
    assert len(collection.seal()["participants"]) == 4
    assert collection.verify() == []


def test_one_process_seals_at_a_time(empty):
    add(empty)
    with layout.sealing(empty.root), pytest.raises(TemporaryError, match="Another process"):
        empty.seal()
    assert empty.seal()["version"] == 1


def test_a_writer_that_died_between_two_renames_gets_its_participant_back(empty):
    add(empty)
    empty.seal()
    folder = empty.root / "participants"
    (folder / "sub-01_A").rename(folder / f"{layout.REPLACED}sub-01_A")
    assert Collection.open(empty.root).missing == ["sub-01_A"]
    layout.sweep(empty.root)
    assert Collection.open(empty.root).verify() == []


def test_leftovers_without_a_lock_go_after_a_day(empty):
    folder = empty.root / "participants" / ".incoming-sub-09_A-00000000"
    folder.mkdir()
    assert layout.sweep(empty.root) == []
    day_ago = time.time() - 90_000
    os.utime(folder, (day_ago, day_ago))
    assert layout.sweep(empty.root) == ["sub-09_A-00000000"]


# -- damage -----------------------------------------------------------------------------------------------


def test_damage_is_found(empty):
    add(empty)
    empty.seal()
    shard = empty.root / "participants/sub-01_A/betas/c/0/0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert empty.verify() == ["participants/sub-01_A/betas/c/0/0 differs from what was written."]
    shard.write_bytes(content[:-7])
    with pytest.raises(FileFaultError, match=r"bytes instead of"):
        Collection.open(empty.root).betas("sub-01_A")
    add(empty, participant="sub-02")
    with pytest.raises(FileFaultError, match="Remove sub-01_A and add it again"):
        empty.seal()
    shard.unlink()
    with pytest.raises(FileFaultError, match="cannot be read"):
        Collection.open(empty.root).betas("sub-01_A")
    table = next((empty.root / "tables/v0001").glob("stimuli.tsv"))
    table.write_text("stimulus\tsimilarity\nx.jpg\tmuch\n")
    with pytest.raises(FileFaultError, match="damaged"):
        _ = Collection.open(empty.root).stimuli
    (empty.root / "manifest.json").write_text("{")
    with pytest.raises(FileFaultError, match=r"manifest.json is damaged"):
        Collection.open(empty.root)


def test_a_collection_of_a_later_schema_is_refused(empty):
    path = empty.root / "collection.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(FileFaultError, match="newer version"):
        Collection.open(empty.root)


def test_a_manifest_is_parsed_when_it_is_needed_and_half_of_one_is_refused_at_once(empty, monkeypatch):
    add(empty)
    empty.seal()
    whole = (empty.root / "manifest.json").read_bytes()
    parsed = []
    real = growth.parse_json
    monkeypatch.setattr(
        growth, "parse_json", lambda place, name, content: parsed.append(name) or real(place, name, content)
    )
    collection = Collection.open(empty.root)
    assert collection.betas("sub-01_A", 0).shape == (1, V)
    assert "manifest.json" not in parsed
    assert collection.version == 1
    assert "manifest.json" in parsed
    for size in range(0, len(whole) - 1, 97):
        (empty.root / "manifest.json").write_bytes(whole[:size])
        with pytest.raises(FileFaultError, match=r"manifest.json is damaged"):
            Collection.open(empty.root)
