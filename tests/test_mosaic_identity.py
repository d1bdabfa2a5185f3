# SPDX-License-Identifier: Apache-2.0
"""Which stimuli are one: names, contents, aliases, near-duplicates, movies."""

import unicodedata

import numpy as np
import pandas as pd
import pytest

from conform_app.errors import DataError, NoInputError, UsageError
from conform_app.mosaic import (
    content_hash,
    frame_hashes,
    movie_hash,
    overlapping_movies,
    pixel_hash,
    resolve_duplicates,
    shared_frames,
)
from conform_app.mosaic.identity import stimulus_embeddings
from conform_app.mosaic.similarity import Embeddings
from conform_app.mosaic.spelling import spelling_warnings


def names(*rows, columns=("dataset", "name", "sha256")):
    return pd.DataFrame(rows, columns=list(columns))


def groups(identity):
    table = identity.names
    return {(d, n): s for d, n, s in zip(table["dataset"], table["name"], table["stimulus"], strict=True)}


def test_one_name_in_two_datasets_is_one_stimulus():
    identity = resolve_duplicates(
        names(("A", "x.jpg"), ("B", "x.jpg"), ("B", "y.jpg"), columns=("dataset", "name"))
    )
    assert identity.stimuli["stimulus"].tolist() == ["x.jpg", "y.jpg"]
    assert identity.stimuli["n_datasets"].tolist() == [2, 1]
    assert "1 are shared" in identity.account[0]


def test_equal_content_is_one_stimulus_whatever_the_name():
    identity = resolve_duplicates(
        names(("A", "x.jpg", "11"), ("B", "renamed.jpg", "11"), ("B", "z.jpg", "22"))
    )
    assert groups(identity) == {
        ("A", "x.jpg"): "x.jpg",
        ("B", "renamed.jpg"): "x.jpg",
        ("B", "z.jpg"): "z.jpg",
    }
    assert any("equal byte for byte" in said for said in identity.account)


def test_equal_names_with_different_content_are_not_merged_silently():
    table = names(("A", "001.jpg", "11"), ("B", "001.jpg", "22"))
    with pytest.raises(DataError, match=r"'001.jpg' has different content in A and in B"):
        resolve_duplicates(table)
    apart = resolve_duplicates(table, same_name="separate")
    assert groups(apart) == {("A", "001.jpg"): "001.jpg", ("B", "001.jpg"): "B/001.jpg"}
    together = resolve_duplicates(table, same_name="same")
    assert len(together.stimuli) == 1
    assert any("count as one" in said for said in together.account)


def test_embeddings_tell_a_crop_from_another_picture():
    table = names(
        ("A", "crop.jpg", "11"), ("B", "crop.jpg", "22"), ("A", "1.jpg", "33"), ("B", "1.jpg", "44")
    )
    vectors = {"A/crop.jpg": [1, 0.0], "B/crop.jpg": [0.95, 0.1], "A/1.jpg": [1, 0.0], "B/1.jpg": [0, 1.0]}
    identity = resolve_duplicates(table, embeddings=vectors)
    assert groups(identity) == {
        ("A", "crop.jpg"): "crop.jpg",
        ("B", "crop.jpg"): "crop.jpg",
        ("A", "1.jpg"): "1.jpg",
        ("B", "1.jpg"): "B/1.jpg",
    }


def test_one_dataset_cannot_have_two_contents_of_one_name():
    with pytest.raises(DataError, match=r"A has the stimulus 'x.jpg' with 2 different contents"):
        resolve_duplicates(names(("A", "x.jpg", "11"), ("A", "x.jpg", "22")))


def test_a_hash_known_in_one_row_only_is_kept():
    identity = resolve_duplicates(names(("A", "x.jpg", "n/a"), ("A", "x.jpg", "11"), ("B", "y.jpg", "11")))
    assert identity.stimuli["stimulus"].tolist() == ["x.jpg"]
    assert identity.stimuli["sha256"].tolist() == ["11"]


def test_aliases_lead_to_names_of_their_own_dataset():
    table = names(
        ("BMD", "clip.mp4", "0001.mp4"), ("X", "0001.mp4", "n/a"), columns=("dataset", "name", "alias")
    )
    identity = resolve_duplicates(table)
    assert identity.of("BMD", ["0001.mp4", "clip.mp4"]).tolist() == ["clip.mp4", "clip.mp4"]
    assert identity.of("X", ["0001.mp4"]).tolist() == ["0001.mp4"]
    with pytest.raises(DataError, match="X has 1 stimuli that the table of names lacks, the first 'no'"):
        identity.of("X", ["no"])
    twice = names(("A", "x", "1"), ("A", "y", "1"), columns=("dataset", "name", "alias"))
    with pytest.raises(DataError, match="alias '1' for two"):
        resolve_duplicates(twice)


def test_look_alikes_stay_apart_and_are_listed():
    table = names(("A", "x", "1"), ("B", "y", "2"), ("B", "z", "3"))
    vectors = {"x": [1, 0.0], "y": [0.9, 0.1], "z": [0, 1.0]}
    identity = resolve_duplicates(table, embeddings=vectors)
    assert len(identity.stimuli) == 3
    assert identity.near[["stimulus_a", "stimulus_b"]].to_numpy().tolist() == [["x", "y"]]


def test_an_embedding_keyed_by_a_shared_name_says_nothing():
    table = names(("A", "1", "11"), ("B", "1", "22"))
    identity = resolve_duplicates(table, same_name="separate")
    kept = stimulus_embeddings(identity.stimuli["stimulus"], identity.names, {"1": [1.0], "B/1": [2.0]})
    assert kept.names == ("B/1",)


def test_wrong_calls_are_refused():
    with pytest.raises(UsageError, match="same_name"):
        resolve_duplicates(names(("A", "x", "1")), same_name="guess")
    with pytest.raises(DataError, match="'name'"):
        resolve_duplicates(pd.DataFrame({"dataset": ["A"]}))


def test_file_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert content_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(NoInputError, match="nowhere"):
        content_hash(tmp_path / "nowhere")


def test_movies_by_frames(tmp_path):
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    long, cut, other = frame_hashes(film), frame_hashes(film[5:12]), frame_hashes(film[::-1] // 2)
    assert shared_frames(long, cut) == shared_frames(cut, long) == 1.0
    assert shared_frames(long, other) == 0.0
    assert movie_hash(long) != movie_hash(cut)
    assert movie_hash(long) == movie_hash(frame_hashes(list(film)))
    assert overlapping_movies({"long": long, "other": other, "cut": cut}) == [("long", "cut", 1.0)]
    assert shared_frames([], long) == 0.0
    for i in range(3):
        (tmp_path / f"m_frame-{i}.png").write_bytes(bytes([i]))
    (tmp_path / "notes.txt").write_text("x")
    assert len(frame_hashes(tmp_path)) == 3
    assert pixel_hash(film[0]) != pixel_hash(film[0].reshape(5, 4, 3))
    with pytest.raises(NoInputError):
        frame_hashes(tmp_path / "none")


def test_embeddings_are_taken_one_at_a_time():
    """In the end there is one float32 copy, and there has never been much more."""
    import tracemalloc

    n, d = 3000, 400
    given = dict(zip(map(str, range(n)), np.random.default_rng(0).standard_normal((n, d)), strict=True))
    tracemalloc.start()
    found = Embeddings.of(given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * n * d * 4
    expected = np.stack([v / np.linalg.norm(v) for v in given.values()])
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-6)


def test_a_file_that_nobody_gave_does_not_make_one_of_two_that_differ():
    """B and C hold different files of one name; A, whose files were not given, must not bridge them."""
    table = names(("A", "1.jpg", "n/a"), ("B", "1.jpg", "11"), ("C", "1.jpg", "22"), ("D", "2.jpg", "n/a"))
    with pytest.raises(DataError, match=r"'1.jpg' has different content in B and in C"):
        resolve_duplicates(table)
    vectors = {"A/1.jpg": [0.0, 1], "B/1.jpg": [1.0, 0], "C/1.jpg": [0.0, 1]}
    assert groups(resolve_duplicates(table, embeddings=vectors)) == {
        ("A", "1.jpg"): "1.jpg",
        ("B", "1.jpg"): "B/1.jpg",
        ("C", "1.jpg"): "1.jpg",
        ("D", "2.jpg"): "2.jpg",
    }
    apart = groups(resolve_duplicates(table, same_name="separate"))
    assert len(set(apart.values())) == 4
    assert len(set(groups(resolve_duplicates(table, same_name="same")).values())) == 2
    with pytest.raises(DataError, match=r"Which '1.jpg' that of A is"):
        resolve_duplicates(table, embeddings={"B/1.jpg": [1.0, 0], "C/1.jpg": [0.0, 1]})


def test_one_name_with_unlike_features_of_each_dataset_is_not_merged_silently():
    table = names(("A", "001.jpg"), ("B", "001.jpg"), columns=("dataset", "name"))
    unlike = {"A/001.jpg": [1.0, 0.0], "B/001.jpg": [0.0, 1.0]}
    with pytest.raises(DataError, match=r"'001.jpg' has unlike features in A and in B"):
        resolve_duplicates(table, embeddings=unlike)
    apart = resolve_duplicates(table, embeddings=unlike, same_name="separate")
    assert groups(apart) == {("A", "001.jpg"): "001.jpg", ("B", "001.jpg"): "B/001.jpg"}
    assert len(resolve_duplicates(table, embeddings=unlike, same_name="same").stimuli) == 1
    alike = {"A/001.jpg": [1.0, 0.0], "B/001.jpg": [0.99, 0.05]}
    assert len(resolve_duplicates(table, embeddings=alike).stimuli) == 1


def test_one_name_in_two_unicode_forms_is_one_name():
    composed, apart = unicodedata.normalize("NFC", "büro.jpg"), unicodedata.normalize("NFD", "büro.jpg")
    assert composed != apart
    identity = resolve_duplicates(names(("A", composed), ("B", apart), columns=("dataset", "name")))
    assert set(groups(identity).values()) == {composed}


def test_names_that_differ_in_spelling_only_are_told():
    rows = [
        ("A", "cat.png"),
        ("B", "stimuli/Cat.JPG"),
        ("C", "stim\\cat"),
        ("A", "dog.png"),
        ("B", "cow.png"),
    ]
    identity = resolve_duplicates(names(*rows, ("C", "dog.png"), columns=("dataset", "name")))
    sides = {"cat.png": "test", "stimuli/Cat.JPG": "train", "stim\\cat": "test", "dog.png": "test"}
    (said,) = spelling_warnings(identity, sides)
    assert said.startswith("1 name is written in several ways")
    assert "A/cat.png, B/stimuli/Cat.JPG, C/stim\\cat" in said
    assert "1 of them is in train and in test" in said
    assert "--aliases" in said
    every = {name: [1.0, i] for i, (_, name) in enumerate(rows)}
    assert spelling_warnings(identity, sides, every) == []  # their features were compared
    several = names(
        ("A", "1.png"), ("B", "1.jpg"), ("A", "2.png"), ("B", "2.jpg"), columns=("dataset", "name")
    )
    (said,) = spelling_warnings(resolve_duplicates(several), {})
    assert said.startswith("2 names are written in several ways")
    assert "in train and in test" not in said
