# SPDX-License-Identifier: Apache-2.0
"""Events to trials: what is read, dropped, merged and refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from bids_skeleton import Skeleton

from conform_app.bids.events import drop_rows, read_events
from conform_app.bids.inputs import find_fits
from conform_app.bids.trials import build_trials
from conform_app.errors import DataError, FileFaultError, UsageError
from conform_app.settings import EventSettings

REAL = Path(os.environ.get("CONFORM_TEST_DATA", "/nonexistent")) / "data" / "real"


@pytest.fixture
def make(tmp_path):
    """A function that makes a fit whose runs have these events."""

    def make(*texts, **names):
        skeleton = Skeleton(tmp_path)
        for n, text in enumerate(texts, start=1):
            skeleton.add(run=str(n), events=text.replace(" ", "\t"), **names)
        (fit,) = find_fits(bids_dir=tmp_path)
        return fit

    return make


HEAD = "onset duration trial_type\n"


def test_order_conditions_and_repeats(make):
    fit = make(HEAD + "20 1.5 im10\n4.13 1 im2\n30 1 im2\n", HEAD + "5 1 im2\n9 0 im1\n")
    trials = build_trials(fit, EventSettings(), [60, 60])
    assert trials.conditions == ("im1", "im2", "im10")
    np.testing.assert_array_equal(trials.onset, [4.13, 20, 30, 5, 9])
    np.testing.assert_array_equal(trials.duration, [1, 1.5, 1, 1, 0])
    np.testing.assert_array_equal(trials.run, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(trials.condition, [1, 2, 1, 1, 0])
    np.testing.assert_array_equal(trials.repeat, [1, 1, 2, 3, 1])
    np.testing.assert_array_equal(trials.n_repeats, [1, 3, 1])
    assert trials.stim_column == "trial_type"
    assert trials.warnings == ()
    onset, duration, condition = trials.of_run(1)
    assert (onset.tolist(), duration.tolist(), condition.tolist()) == ([5, 9], [1, 0], [1, 0])


def test_tables(make):
    trials = build_trials(make(HEAD + "4 1 b\n10 1 a\n20 1 b\n"))
    frame = trials.to_frame()
    assert list(frame.columns) == ["index", "run", "onset", "duration", "trial_type", "stim_id", "repeat"]
    assert frame.iloc[2].tolist() == [2, "1", 20.0, 1.0, "b", "b", 2]
    assert trials.conditions_frame().values.tolist() == [[0, "a", 1], [1, "b", 2]]


def test_pooled_sessions_are_told_apart(tmp_path):
    skeleton = Skeleton(tmp_path)
    for ses in ("02", "01"):
        skeleton.add(ses=ses, run="1")
    (fit,) = find_fits(bids_dir=tmp_path, fit_level="subject")
    trials = build_trials(fit)
    assert trials.to_frame()["session"].tolist() == ["01"] * 3 + ["02"] * 3
    assert trials.session.tolist() == [0, 0, 0, 1, 1, 1]
    assert trials.repeat[trials.condition == 0].tolist() == [1, 2, 3, 4]
    (fit, _) = find_fits(bids_dir=tmp_path)
    assert "session" not in build_trials(fit).to_frame()


def test_run_without_label(tmp_path):
    Skeleton(tmp_path).add()
    assert build_trials(find_fits(bids_dir=tmp_path)[0]).to_frame()["run"].tolist() == ["n/a"] * 3


def test_stimulus_column(make):
    head = "onset duration trial_type stim_file stim_id\n"
    fit = make(head + "1 1 t f1 007\n9 1 t f2 8\n", head + "1 1 t f2 8\n")
    assert build_trials(fit).conditions == ("007", "8")
    assert build_trials(fit, EventSettings(stim_column="stim_file")).conditions == ("f1", "f2")
    assert build_trials(fit).trial_type == ("t", "t", "t")
    with pytest.raises(
        UsageError, match=r"run-1_events\.tsv has no column 'image' \(--stim-column\)"
    ) as caught:
        build_trials(fit, EventSettings(stim_column="image"))
    assert "stim_file" in caught.value.remedy


def test_stimulus_column_must_be_in_all_runs(make):
    fit = make("onset duration stim_id trial_type\n1 1 s t\n", HEAD + "1 1 t\n")
    assert build_trials(fit).stim_column == "trial_type"
    with pytest.raises(UsageError, match="run-2"):
        build_trials(fit, EventSettings(stim_column="stim_id"))


def test_an_empty_stimulus_column_is_passed_over(make):
    fit = make("onset duration stim_id trial_type\n1 1 n/a t\n9 1 n/a u\n")
    assert build_trials(fit).stim_column == "trial_type"


def test_no_stimulus_column(make):
    with pytest.raises(DataError, match="none of stim_id, stim_file, trial_type"):
        build_trials(make("onset duration picture\n1 1 a\n"))


def test_query(make):
    fit = make("onset duration trial_type rt\n1 1 go 0.3\n5 1 blank n/a\n9 1 stop 0.1\n13 1 go n/a\n")

    def onsets(query):
        return build_trials(fit, EventSettings(ignore_trials=query)).onset.tolist()

    assert onsets("trial_type == 'blank'") == [1, 9, 13]
    assert onsets("rt < 0.2") == [1, 5, 13]
    assert onsets("rt.isna() and trial_type == 'go'") == [1, 5, 9]
    assert onsets("rt > 0.2 or rt <= 0.2") == [5, 13]
    assert onsets("rt != 0.3") == [1]
    assert onsets("trial_type in ['blank', 'stop']") == [1, 13]
    for bad in (
        "colour == 'red'",
        "trial_type ==",
        "rt + 1",
        "trial_type + 1",
        "@pd",
        "onset.mean()",
        "trial_type",
        "rt",
    ):
        with pytest.raises(UsageError, match="--ignore-trials") as caught:
            onsets(bad)
        assert "run-1_events.tsv" in caught.value.message
        assert "onset, duration, trial_type, rt" in caught.value.remedy


def test_rows_without_stimulus_are_dropped(make):
    trials = build_trials(make(HEAD + "1 1 a\n5 n/a n/a\n9 1 b\n"))
    assert len(trials) == 2
    assert any("1 row has no trial_type; dropped" in text for text in trials.warnings)


def test_a_run_without_trials_is_left_out(make):
    trials = build_trials(
        make(HEAD + "1 1 a\n", HEAD + "1 1 blank\n"), EventSettings(ignore_trials="trial_type == 'blank'")
    )
    assert trials.empty_runs == (1,)
    assert any("run-2" in text and "left out" in text for text in trials.warnings)


def test_no_trial_left_at_all(make):
    with pytest.raises(DataError, match="no trial is left"):
        build_trials(make(HEAD + "1 1 a\n"), EventSettings(ignore_trials="onset > 0"))


BLOCKS = (
    "onset duration trial_type stim_id block\n10 1 face f1 1\n11 1 face f2 1\n12 2 face f3 1\n"
    "20 1 house h1 2\n21 1 house h2 2\n30 1 face f2 3\n"
)


def test_blocks_become_trials(make):
    fit = make(BLOCKS)
    trials = build_trials(fit, EventSettings(block_column="block"))
    assert trials.stim_column == "trial_type"
    assert trials.onset.tolist() == [10, 20, 30]
    assert trials.duration.tolist() == [4, 2, 1]
    assert trials.stim_id == ("face", "house", "face")
    assert trials.repeat.tolist() == [1, 1, 2]
    by_number = build_trials(fit, EventSettings(stim_column="block", block_column="block"))
    assert by_number.conditions == ("1", "2", "3")
    fixed = build_trials(fit, EventSettings(block_column="block", stim_duration=16))
    assert fixed.duration.tolist() == [16, 16, 16]


def test_a_block_holds_one_stimulus(make):
    with pytest.raises(DataError, match=r"lines 2, 3, 4: block 1 holds several stimuli \(f1, f2, f3\)"):
        build_trials(make(BLOCKS), EventSettings(stim_column="stim_id", block_column="block"))


def test_block_column_must_be_there(make):
    with pytest.raises(UsageError, match=r"no column 'bloc' \(--block-column\)"):
        build_trials(make(BLOCKS), EventSettings(block_column="bloc"))


def test_blocks_of_one_name_that_are_apart_stay_apart(make):
    trials = build_trials(make(BLOCKS), EventSettings(block_column="trial_type"))
    assert trials.onset.tolist() == [10, 20, 30]
    assert any("comes back" in text for text in trials.warnings)


def test_rows_outside_blocks_are_dropped(make):
    trials = build_trials(make(BLOCKS + "40 1 face f9 n/a\n"), EventSettings(block_column="block"))
    assert len(trials) == 3
    assert any("1 row has no block" in text for text in trials.warnings)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("n/a 1 a\n", "line 2: the onset is not a number"),
        ("1 1 a\nx 1 b\n", "line 3: the onset is not a number"),
        ("inf 1 a\n", "line 2: the onset is not a number"),
        ("-0.5 1 a\n9 1 b\n", "line 2: the onset is before the start"),
        ("1 n/a a\n", "line 2: the duration is not"),
        ("1 -1 a\n", "line 2: the duration is not"),
        ("1 1 a\n1.0005 1 b\n", r"lines 2, 3: two trials start at 1 s"),
        ("1 1 a\n60 1 b\n", r"line 3: the onset 60 s is beyond the end of the run \(60 s\)"),
        ("1000 1000 a\n9000 1000 b\n", "beyond the end"),
    ],
)
def test_refused(make, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        build_trials(make(HEAD + rows), EventSettings(), [60])
    assert "sub-01_task-x_run-1_events.tsv" in caught.value.message


def test_milliseconds_are_guessed(make):
    with pytest.raises(DataError) as caught:
        build_trials(make(HEAD + "1000 500 a\n9000 500 b\n"), EventSettings(), [60])
    assert "milliseconds" in caught.value.remedy


def test_a_query_can_drop_what_would_be_refused(make):
    fit = make(HEAD + "-3 1 a\nn/a 1 b\n5 1 c\n5 1 key\n90 1 d\n")
    query = "onset < 0 or onset.isna() or trial_type == 'key' or onset > 60"
    assert build_trials(fit, EventSettings(ignore_trials=query), [60]).stim_id == ("c",)


def test_one_duration_for_all(make):
    fit = make(HEAD + "1 n/a a\n9 -1 b\n")
    assert build_trials(fit, EventSettings(stim_duration=2.5)).duration.tolist() == [2.5, 2.5]
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--stim-duration"):
            build_trials(fit, EventSettings(stim_duration=bad))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1 3 a\n3 1 b\n9 1 a\n", "1 of 3 trials overlap the next one, first at line 2"),
        ("1 1 a\n55 1 b\n", r"ends 5\.0 s after its last onset"),
        ("1 1 a\n51 10 b\n", "goes on after the end"),
        ("1 1 a\n2 1 b\n3 1 c\n", r"1\.0 s apart \(median\), too close"),
    ],
)
def test_warned(make, rows, message):
    import re

    warnings = build_trials(make(HEAD + rows), EventSettings(), [60]).warnings
    assert len(warnings) == 1
    assert re.search(message, warnings[0])


def test_jitter_of_the_clock_is_no_overlap(make):
    assert build_trials(make(HEAD + "1 4.04 a\n5 1 b\n"), EventSettings(), [60]).warnings == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"onset\tduration\n", "has no rows"),
        (b"onset\tduration\n\n\n", "has no rows"),
        (b"duration\ttrial_type\n1\ta\n", "no column 'onset'; its columns are duration, trial_type"),
        (b"onset,duration\n1,2\n", "no column 'onset'"),
        (b"onset\ttrial_type\n1\ta\n", "no column 'duration'"),
        ("onset\tduration\ttrial_type\n1\t1\té\n".encode("latin-1"), "is not a tab-separated UTF-8 table"),
    ],
)
def test_files_that_are_no_events(tmp_path, content, message):
    path = tmp_path / "sub-01_task-x_events.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_events(path)


def test_rows_of_unequal_length(tmp_path):
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\ttrial_type\n1\t1\ta\n2\t1\n3\t1\tb\tc\td\n")
    with pytest.raises(DataError, match="line 4"):
        read_events(path)


def test_file_that_is_gone(tmp_path):
    with pytest.raises(FileFaultError):
        read_events(tmp_path / "none.tsv")


def test_spreadsheet_habits_are_read(tmp_path):
    path = tmp_path / "events.tsv"
    path.write_bytes("\ufeffonset\tduration\t trial_type\r\n1\t1\tGesicht ä\r\n\r\n2\t1\tb \r\n".encode())
    rows = read_events(path)
    assert rows.columns == ["onset", "duration", "trial_type"]
    assert rows.labels("trial_type") == ["Gesicht ä", "b"]
    assert list(rows.table.index) == [2, 4]
    assert drop_rows(rows, None) is rows


@pytest.mark.parametrize(
    ("dataset", "settings", "n_trials", "repeats"),
    [
        ("haxby2001-1slice-bids", EventSettings(), 96, [12] * 8),
        ("pyhrf-localizer-bids", EventSettings(), 80, [10, 10, 5, 5, 5, 5, 10, 10, 10, 10]),
        ("studyforrest-localizer-bids", EventSettings(block_column="block"), 12, [2] * 6),
        (
            "studyforrest-localizer-bids",
            EventSettings(stim_column="block", block_column="block"),
            12,
            [1] * 12,
        ),
    ],
)
def test_measured_data(dataset, settings, n_trials, repeats):
    import nibabel

    root = Path(__file__).parent / "data" / dataset
    root = root if root.is_dir() else REAL / dataset
    if not root.is_dir():
        pytest.skip("needs CONFORM_TEST_DATA, the folder of measured data")
    (fit,) = find_fits(bids_dir=root)
    ends = [nibabel.load(r.bold[0]).shape[3] * r.metadata["RepetitionTime"] for r in fit.runs]
    trials = build_trials(fit, settings, ends)
    assert len(trials) == n_trials
    assert trials.n_repeats.tolist() == repeats
    if settings.block_column:
        np.testing.assert_allclose(trials.duration, 16, atol=0.2)
