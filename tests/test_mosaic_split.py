# SPDX-License-Identifier: Apache-2.0
"""The split over datasets: the reference's lists, the rules one by one, and what the audit says."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conform_app.errors import DataError, UsageError
from conform_app.mosaic import own_split, split_stimuli
from conform_app.mosaic.similarity import Embeddings, median_distance, nearest, pairs_above

DATA = Path(__file__).parent / "data" / "mosaic"
DATASETS = "NSD BMD BOLD5000 THINGS GOD deeprecon HAD NOD".split()


@pytest.fixture(scope="module")
def compiled():
    """Presentations, embeddings and artificial stimuli of the reference's table."""
    table = pd.read_csv(DATA / "split_compiled_stiminfo.tsv", sep="\t", dtype=str, keep_default_na=False)
    rows = [
        (row["filename"], dataset, column[:6], row[f"test_train_{dataset}"], int(row[column]))
        for row in table.to_dict("records")
        for dataset in DATASETS
        for column in table.columns
        if column.endswith(f"_reps_{dataset}") and row[f"test_train_{dataset}"]
    ]
    shown = pd.DataFrame(rows, columns=["stimulus", "dataset", "participant", "phase", "n_trials"])
    given = np.load(DATA / "split_embeddings.npz")
    vectors = dict(zip(given["filename"].tolist(), given["embedding"], strict=True))
    artificial = set(table.loc[table["source"].isin(["NSDsynthetic", "Artificial"]), "filename"])
    return shown, vectors, artificial


@pytest.fixture(scope="module")
def expected():
    return json.loads((DATA / "split_expected.json").read_text())


def shown(*rows):
    return pd.DataFrame(rows, columns=["stimulus", "dataset", "participant", "phase", "n_trials"])


def test_the_reference_gives_the_same_lists(compiled, expected):
    table, vectors, artificial = compiled
    split = split_stimuli(table, embeddings=vectors, artificial=artificial)
    lists = split.mosaic_lists(table)
    assert lists["train_naturalistic"] == expected["train_naturalistic"]
    assert lists["test_naturalistic"] == expected["test_naturalistic"]
    # The reference writes the two artificial sources one after the other, not in the order of its table
    by_name = sorted(map(json.dumps, lists["test_artificial"]))
    assert by_name == sorted(map(json.dumps, expected["test_artificial"]))


def test_the_reference_excludes_the_same_stimuli_and_counts_the_same(compiled, expected):
    table, vectors, artificial = compiled
    split = split_stimuli(table, embeddings=vectors, artificial=artificial)
    pairs = {test: [train] for test, train in zip(split.near["test"], split.near["train"], strict=True)}
    assert pairs == expected["perceptually_similar_exclusions"]
    assert split.counts == {
        "conflicts": 17,
        "conflicts_to_test": 11,
        "train_trials_lost": 20,
        "test_trials_lost": 9,
        "near_stimuli": 9,
        "near_trials": 30,
    }
    said = " ".join(expected["log"])
    for number in ("17 filename conflicts", "11 conflicts", "lost 20", "lost 9", "9 stimuli", "of 30"):
        assert number in said


def test_the_split_does_not_depend_on_the_order_of_rows(compiled):
    table, vectors, artificial = compiled
    one = split_stimuli(table, embeddings=vectors, artificial=artificial)
    mixed = table.sample(frac=1, random_state=3)
    other = split_stimuli(mixed, embeddings=vectors, artificial=artificial)
    a = dict(zip(one.stimuli["stimulus"], one.stimuli["split"], strict=True))
    b = dict(zip(other.stimuli["stimulus"], other.stimuli["split"], strict=True))
    assert a == b
    assert one.audit.max_similarity == other.audit.max_similarity


def test_what_the_audit_says_is_what_brute_force_finds(compiled):
    table, vectors, artificial = compiled
    split = split_stimuli(table, embeddings=vectors, artificial=artificial)
    unit = {k: v.astype(float) / np.linalg.norm(v.astype(float)) for k, v in vectors.items()}
    side = dict(zip(split.stimuli["stimulus"], split.stimuli["split"], strict=True))
    trains = [s for s in side if side[s] == "train"]
    tests = [s for s in side if side[s] in ("test", "artificial")]
    products = np.array([[unit[a] @ unit[b] for b in tests] for a in trains])
    i, j = np.unravel_index(products.argmax(), products.shape)
    assert split.audit.max_similarity == pytest.approx(products.max(), abs=1e-6)
    assert split.audit.pair == (trains[i], tests[j])
    assert split.audit.max_similarity <= 0.8196 < split.audit.max_before
    assert split.audit.n_unchecked == 0
    table = split.audit.table()
    assert table["max_similarity"].iloc[0] == pytest.approx(products.max(), abs=1e-6)
    assert table["max_similarity"].is_monotonic_decreasing


def test_a_conflict_goes_to_the_side_with_more_trials_and_ties_to_test():
    table = shown(
        ("more train", "A", "sub-01", "train", 3),
        ("more train", "B", "sub-01", "test", 2),
        ("tie", "A", "sub-01", "train", 2),
        ("tie", "B", "sub-01", "test", 2),
    )
    split = split_stimuli(table)
    assert [split.of("more train"), split.of("tie")] == ["train", "test"]
    assert split.of_trials(table).tolist() == ["train", "excluded", "excluded", "test"]


def test_a_train_stimulus_close_to_an_artificial_one_is_dropped():
    table = shown(("a", "A", "sub-01", "train", 1), ("shape", "B", "sub-01", "artificial", 1))
    near = {"a": [1.0, 0.0], "shape": [0.9, 0.1]}
    split = split_stimuli(table, embeddings=near)
    assert [split.of("a"), split.of("shape")] == ["excluded", "artificial"]
    assert "shape" in split.stimuli["reason"][0]
    assert split_stimuli(table, embeddings=near, threshold=0.999).of("a") == "train"


def test_the_threshold_is_strict_whatever_the_rounding():
    a, b = np.array([[1.0, 0.0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    exact = float(a[0].astype(float) @ b[0].astype(float) / np.linalg.norm(b[0].astype(float)))
    assert len(pairs_above(a, b, exact)[0]) == 0
    assert len(pairs_above(a, b, np.nextafter(exact, 0))[0]) == 1


def test_blocks_do_not_change_similarities(monkeypatch):
    rng = np.random.default_rng(0)
    unit = Embeddings.of({f"{i}": rng.standard_normal(6) for i in range(57)}).vectors
    whole, pairs = nearest(unit[:20], unit[20:]), pairs_above(unit, None, 0.5)
    monkeypatch.setattr("conform_app.mosaic.similarity._BLOCK", 7)
    small, small_pairs = nearest(unit[:20], unit[20:]), pairs_above(unit, None, 0.5)
    for one, other in zip((*whole, *pairs), (*small, *small_pairs), strict=True):
        np.testing.assert_array_equal(one, other)
    first, second, value = pairs
    product = unit.astype(float) @ unit.T.astype(float)
    assert len(first) == (np.triu(product, 1) > 0.5).sum()
    np.testing.assert_allclose(value, product[first, second], atol=1e-6)


def test_stimuli_without_embedding_are_counted_not_dropped():
    table = shown(("a", "A", "sub-01", "train", 1), ("b", "A", "sub-01", "test", 1))
    split = split_stimuli(table, embeddings={"a": [1.0, 0.0]})
    assert split.of("a") == "train"
    assert split.audit.n_unchecked == 1
    assert any("1 of 2 stimuli have no embedding" in said for said in split.account)
    assert np.isnan(split.audit.max_similarity)


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        (shown(("a", "A", "s", "validation", 1)), {}, "'validation' is no phase"),
        (shown(("a", "A", "s", "train", 1)).drop(columns="phase"), {}, "lacks the column 'phase'"),
        (shown(("a", "A", "s", "train", 1)), {"threshold": 2.0}, "2.0 does not exist"),
        (shown(("a", "A", "s", "train", 1)), {"artificial": {"a"}}, "a is artificial"),
        (shown(("a", "A", "s", "train", -1)), {}, "negative"),
        (shown(("a", "A", "s", "train", 1)), {"embeddings": {"a": [0.0]}}, "zero or not finite"),
        (shown(("a", "A", "s", "train", 1)), {"embeddings": {"a": [1], "b": [1, 2]}}, "different lengths"),
    ],
)
def test_bad_input_is_refused_by_name(table, options, said):
    with pytest.raises(DataError, match=said):
        split_stimuli(table, **options)


def test_trials_of_unknown_stimuli_are_refused():
    split = split_stimuli(shown(("a", "A", "s", "train", 1)))
    with pytest.raises(DataError, match="'b'"):
        split.of_trials(pd.DataFrame({"stimulus": ["b"], "phase": ["train"]}))


# -- a split for datasets without one ---------------------------------------------------------------------


def trials_of(n_participants=3, n_runs=6, n_stimuli=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        (f"sub-{p:02d}", r, f"{s:03d}.jpg")
        for p in range(n_participants)
        for r in range(n_runs)
        for s in rng.integers(0, n_stimuli, 10) + r * 25
    ]
    return pd.DataFrame(rows, columns=["participant", "run", "stimulus"])


@pytest.mark.parametrize("rule", ["stimulus", "run", "farthest"])
def test_no_participant_has_a_stimulus_on_both_sides(rule):
    trials = trials_of()
    rng = np.random.default_rng(1)
    vectors = {name: rng.standard_normal(5) for name in sorted(set(trials["stimulus"]))}
    phase = own_split(trials, rule=rule, embeddings=vectors)
    for _, its in trials.assign(phase=phase).groupby(["participant", "stimulus"]):
        assert its["phase"].nunique() == 1
    assert {*phase} == {"train", "test"}
    np.testing.assert_array_equal(phase, own_split(trials, rule=rule, embeddings=vectors))


def test_by_stimulus_the_side_is_the_same_everywhere_and_stays_when_data_are_added():
    trials = trials_of(n_participants=40)
    phase = own_split(trials, rule="stimulus")
    assert trials.assign(phase=phase).groupby("stimulus")["phase"].nunique().max() == 1
    half = trials.iloc[: len(trials) // 2]
    np.testing.assert_array_equal(own_split(half, rule="stimulus"), phase[: len(half)])
    names = pd.DataFrame({"participant": "x", "stimulus": [f"{i}.jpg" for i in range(5000)]})
    assert (own_split(names, fraction=0.2) == "test").mean() == pytest.approx(0.2, abs=0.02)


def test_by_run_the_last_quarter_of_runs_is_test():
    trials = pd.DataFrame(
        {"participant": "sub-01", "run": np.repeat(np.arange(12), 4), "stimulus": [f"{i}" for i in range(48)]}
    )
    phase = own_split(trials, rule="run", fraction=0.25)
    assert set(trials["run"][phase == "test"]) == {9, 10, 11}


def test_farthest_takes_the_largest_median_distances():
    rng = np.random.default_rng(2)
    vectors = {f"{i:02d}": rng.standard_normal(4) for i in range(30)}
    trials = pd.DataFrame({"participant": "sub-01", "stimulus": list(vectors)})
    phase = own_split(trials, rule="farthest", fraction=0.2, embeddings=vectors)
    unit = np.stack([v / np.linalg.norm(v) for v in vectors.values()])
    distance = [np.median([1 - unit[i] @ unit[j] for j in range(30) if j != i]) for i in range(30)]
    assert set(np.flatnonzero(phase == "test")) == set(np.argsort(distance)[-6:])
    np.testing.assert_allclose(median_distance(Embeddings.of(vectors).vectors), distance, atol=1e-6)


def test_farthest_is_taken_of_each_task():
    """The images of one task lie close together, and still a fifth of them is test."""
    rng = np.random.default_rng(3)
    vectors = {f"coco{i}": np.ones(6) + 0.01 * rng.standard_normal(6) for i in range(10)}
    vectors |= {f"net{i}": rng.standard_normal(6) for i in range(30)}
    task = ["coco"] * 10 + ["net"] * 30
    trials = pd.DataFrame({"participant": "sub-01", "stimulus": list(vectors), "task": task})
    phase = own_split(trials, rule="farthest", fraction=0.2, embeddings=vectors)
    assert [(phase[trials["task"] == name] == "test").sum() for name in ("coco", "net")] == [2, 6]
    for name in ("coco", "net"):
        its = {k: v for k, v in vectors.items() if k.startswith(name)}
        alone = own_split(trials[trials["task"] == name], rule="farthest", embeddings=its)
        np.testing.assert_array_equal(alone, phase[trials["task"] == name])
    both = pd.concat([trials, trials[:10].assign(task="net")], ignore_index=True)
    phase = own_split(both, rule="farthest", embeddings=vectors)
    assert both.assign(phase=phase).groupby("stimulus")["phase"].nunique().max() == 1


def test_shared_stimuli_are_those_that_several_participants_saw():
    trials = pd.DataFrame({"participant": list("aaaabbbc"), "stimulus": list("xxyzzwwv")})
    phase = own_split(trials, rule="shared")
    assert phase.tolist() == ["train", "train", "train", "test", "test", "train", "train", "train"]
    with pytest.raises(DataError, match="leaves no test trial"):
        own_split(trials.iloc[:3], rule="shared")


def test_own_split_refuses_what_it_cannot_do():
    same = pd.DataFrame({"participant": "s", "run": [1, 2, 3], "stimulus": "a"})
    with pytest.raises(DataError, match="leaves no test trial"):
        own_split(same, rule="run")
    with pytest.raises(DataError, match="no embedding"):
        own_split(same, rule="farthest")
    with pytest.raises(UsageError, match="no rule"):
        own_split(same, rule="coin")
    with pytest.raises(UsageError, match="no share"):
        own_split(same, fraction=1.0)
    with pytest.raises(DataError, match="'run'"):
        own_split(same.drop(columns="run"), rule="run")
