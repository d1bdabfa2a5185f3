# SPDX-License-Identifier: Apache-2.0
"""Files about stimuli that the user gives the group level."""

import numpy as np
import pytest

from conform_app.collect.given import (
    check_vectors,
    features_of,
    hash_stimuli,
    read_aliases,
    read_features,
    read_split,
    unmatched,
    without_features,
)
from conform_app.errors import DataError, NoInputError, UsageError


def test_features_in_three_forms(tmp_path):
    values = np.arange(6, dtype=float).reshape(2, 3)
    np.savez(tmp_path / "a.npz", x=values[0], **{"A/y": values[1]})
    np.savez(tmp_path / "b.npz", names=np.array(["x", "A/y"]), values=values)
    np.save(tmp_path / "c.npy", values)
    (tmp_path / "c.txt").write_text("x\nA/y\n")
    for name in ("a.npz", "b.npz", "c.npy"):
        found = read_features(tmp_path / name)
        assert list(found) == ["x", "A/y"]
        np.testing.assert_array_equal(found["A/y"], values[1])
    assert list(features_of("A", ["x", "y", "z"], found)) == ["x", "y"]


def test_wrong_features(tmp_path):
    np.savez(tmp_path / "short.npz", names=np.array(["x"]), values=np.zeros((2, 3)))
    np.savez(tmp_path / "twice.npz", names=np.array(["x", "x"]), values=np.zeros((2, 3)))
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "alone.npy", np.zeros((2, 3)))
    for name, error in (("short.npz", DataError), ("twice.npz", DataError), ("text.npz", DataError)):
        with pytest.raises(error, match=name):
            read_features(tmp_path / name)
    with pytest.raises(NoInputError, match=r"alone\.txt"):
        read_features(tmp_path / "alone.npy")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"names": np.array(["x", "y"]), "values": np.array([[1.0, 0.0], [np.nan, 0.0]])}, "y .*not finite"),
        ({"names": np.array(["x", "y"]), "values": np.array([[0.0, 0.0], [1.0, 0.0]])}, "x .*zero"),
        ({"names": np.array(["x", "y"]), "values": np.array([["1", "0"], ["0", "1"]])}, "<U1"),
        ({"names": np.array(["x", "y"]), "values": np.eye(2).astype(complex)}, "complex"),
        ({"x": np.array([1.0, 2.0]), "y": np.array([1.0, 2.0, 3.0])}, "y .*3 numbers.* 2"),
        ({"names": np.array(["x", "y"]), "other": np.eye(2)}, "values"),
    ],
)
def test_features_that_are_no_vectors_are_refused_where_they_are_read(tmp_path, arrays, words):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(DataError, match=words):
        check_vectors(tmp_path / "f.npz", read_features(tmp_path / "f.npz"))


@pytest.mark.parametrize("size", [0, 100])
def test_features_cut_short(tmp_path, size):
    np.savez(tmp_path / "f.npz", names=np.array(["x", "y"]), values=np.eye(2))
    (tmp_path / "f.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:size])
    with pytest.raises(DataError, match=r"f\.npz holds no features"):
        read_features(tmp_path / "f.npz")


def test_names_and_features_are_the_pair_that_the_library_reads_too(tmp_path):
    np.savez(tmp_path / "f.npz", names=np.array(["x", "y"]), features=np.eye(2))
    assert read_features(tmp_path / "f.npz")["y"].tolist() == [0.0, 1.0]


def test_aliases_and_split(tmp_path):
    (tmp_path / "a.tsv").write_text("dataset\tstim_id\tname\nGOD\t1.5\tn01.JPEG\n")
    assert read_aliases(tmp_path / "a.tsv") == {("GOD", "1.5"): "n01.JPEG"}
    assert read_aliases(None) == {}
    (tmp_path / "s.tsv").write_text("dataset\tstim_id\tsplit\nGOD\t1.5\ttest\n")
    assert read_split(str(tmp_path / "s.tsv")) == {("GOD", "1.5"): "test"}
    assert read_split("auto") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dataset\tstim\tsplit\n", "no column 'stim_id'"),
        ("dataset\tstim_id\tsplit\nA\tx\tvalidation\n", "validation"),
    ],
)
def test_wrong_split(tmp_path, text, words):
    (tmp_path / "s.tsv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_split(str(tmp_path / "s.tsv"))
    with pytest.raises(NoInputError):
        read_split(str(tmp_path / "none.tsv"))


def test_two_sides_for_one_stimulus(tmp_path):
    (tmp_path / "s.tsv").write_text("dataset\tstim_id\tsplit\nA\t1\ttest\nA\t1\ttrain\n")
    with pytest.raises(DataError, match="has 1 of A in test and train"):
        read_split(str(tmp_path / "s.tsv"))


def test_rows_that_fit_nothing_are_told():
    given = {("a", "x.png"): "test", ("A", "y.png"): "test", ("A", "x.png"): "train"}
    shown = {"A": {"x.png"}, "B": {"z.png"}}
    assert unmatched("split", given, shown) == [
        "--split names the dataset a (1 stimuli), which is not here: here are A, B.",
        "--split names 2 stimuli of A; 1 of them were not shown, for instance y.png.",
    ]
    assert unmatched("aliases", {("A", "x.png"): "w.png"}, shown) == []


def test_stimuli_without_features_are_told():
    given = {"A/x.png": np.ones(2), "y.png": np.ones(2), "known.png": np.ones(2)}
    shown = {"A": {("x.png", "x.png"), ("y.png", "y.png"), ("z.png", "known.png")}}
    assert without_features("f.npz", given, shown) == []
    [told] = without_features("in/f.npz", given, shown | {"B": {("x.png", "x.png"), ("y.png", "y.png")}})
    assert told.startswith("1 of 2 stimuli of B have no features in f.npz, for instance x.png, so that")


def test_two_names_for_one_stimulus(tmp_path):
    (tmp_path / "a.tsv").write_text("dataset\tstim_id\tname\nA\t1\tx\nA\t1\ty\n")
    with pytest.raises(DataError, match="two names"):
        read_aliases(tmp_path / "a.tsv")


def test_content_is_found_by_path_name_or_stem(tmp_path):
    for name, content in (("a/x.png", b"1"), ("b/y.png", b"1"), ("b/z.png", b"2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = hash_stimuli(tmp_path, ["a/x.png", "y.png", "z", "nowhere.png"]).hashes
    assert set(found) == {"a/x.png", "y.png", "z"}
    assert found["a/x.png"] == found["y.png"] != found["z"]
    (tmp_path / "a" / "z.png").write_bytes(b"3")
    with pytest.raises(UsageError, match="2 files of different content"):
        hash_stimuli(tmp_path, ["z.png"])


def test_a_file_of_another_folder_does_not_answer_to_the_name(tmp_path):
    """set2/1.png was not given: set1/1.png is another picture."""
    (tmp_path / "set1").mkdir()
    (tmp_path / "set1" / "1.png").write_bytes(b"1")
    names = ["set1/1.png", "set2/1.png", "stimuli/set1/1.png", "1.png", "set1/1", "set2/1"]
    found = {"set1/1.png", "stimuli/set1/1.png", "1.png", "set1/1"}
    assert set(hash_stimuli(tmp_path, names).hashes) == found
    assert set(hash_stimuli(tmp_path / "set1", names).hashes) == set(names)  # which folder, nobody says


def test_movies_that_share_frames_are_not_on_both_sides(tmp_path):
    import pandas as pd

    from conform_app.collect.seal import without_shared_frames
    from conform_app.mosaic import resolve_duplicates, split_stimuli

    for movie, frames in (("one", "abcd"), ("two", "cdef"), ("three", "ghij"), ("copy", "abcd")):
        (tmp_path / movie).mkdir()
        for i, content in enumerate(frames):
            (tmp_path / movie / f"frame-{i:04d}.png").write_text(content)
    names = ["one.mp4", "two.mp4", "three.mp4", "copy.mp4"]
    contents = hash_stimuli(tmp_path, names)
    assert contents.hashes["one.mp4"] == contents.hashes["copy.mp4"] != contents.hashes["two.mp4"]
    table = pd.DataFrame({"dataset": "A", "name": names, "sha256": [contents.hashes[n] for n in names]})
    identity = resolve_duplicates(table)
    shown = pd.DataFrame(
        {
            "stimulus": identity.of("A", names[:3]), "dataset": "A", "participant": "sub-01",
            "phase": ["test", "train", "train"], "n_trials": 1,
        }
    )  # fmt: skip
    movies = {("A", name): its for name, its in contents.frames.items()}
    split = without_shared_frames(split_stimuli(shown), identity, movies)
    sides = split.stimuli.set_index("stimulus")
    assert sides["split"].to_dict() == {"one.mp4": "test", "two.mp4": "excluded", "three.mp4": "train"}
    assert "50 %" in sides.loc["two.mp4", "reason"]
    assert "share frames" in split.account[-1]
