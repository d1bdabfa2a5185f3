# SPDX-License-Identifier: Apache-2.0
"""Several tasks in one fit, and what studies with several tasks, kinds of sessions and buttons need."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from bids_skeleton import Skeleton, put
from small_dataset import bold_files, make_dataset, response

from conform_app.bids.events import read_events
from conform_app.bids.inputs import find_fits
from conform_app.bids.studies import onset_shifts, press_times
from conform_app.bids.trials import build_trials
from conform_app.cli import main
from conform_app.errors import DataError, NothingSelectedError, UsageError
from conform_app.glmsingle.nuisance import event_regressors
from conform_app.settings import EventSettings


def tsv(text):
    return text.replace(" ", "\t")


TEST = tsv("onset duration stim_id\n4 1 a\n10 1 b\n")
TRAIN = tsv("onset duration stim_id\n4 1 b\n10 1 c\n")


@pytest.fixture
def two_tasks(tmp_path):
    skeleton = Skeleton(tmp_path)
    for ses in ("1", "2"):
        for task, events in (("train", TRAIN), ("test", TEST)):
            skeleton.add(ses=ses, task=task, run="1", events=events, sidecar={"RepetitionTime": 2.0})
    return skeleton


def test_tasks_of_a_session_are_one_fit(two_tasks):
    apart = find_fits(bids_dir=two_tasks.raw)
    assert [fit.task for fit in apart] == ["test", "train"] * 2
    together = find_fits(bids_dir=two_tasks.raw, tasks_together=True)
    assert [(fit.sessions, fit.task) for fit in together] == [(("1",), "test+train"), (("2",), "test+train")]
    fit = together[0]
    assert fit.entities["task"] == "test+train"
    assert fit.tasks == ("test", "train")
    trials = build_trials(fit, EventSettings(test_trials="task == 'test'"))
    assert trials.conditions == ("a", "b", "c")
    assert trials.repeat.tolist() == [1, 1, 2, 1]  # b is one condition, in whatever task it is shown
    assert trials.split == ("test", "test", "train", "train")
    assert trials.to_frame()["task"].tolist() == ["test", "test", "train", "train"]
    (pooled,) = find_fits(bids_dir=two_tasks.raw, tasks_together=True, fit_level="subject")
    assert [(r.session, r.task) for r in pooled.runs] == [
        ("1", "test"), ("1", "train"), ("2", "test"), ("2", "train"),
    ]  # fmt: skip
    (one,) = find_fits(bids_dir=two_tasks.raw, tasks_together=True, tasks=["test"], sessions=["1"])
    assert one.task == "test"
    assert "task" not in build_trials(one).to_frame()


def as_two_tasks(root, moved=("run-3", "run-4")):
    """Call the last runs runs of another task, and number them anew."""
    for path in sorted(root.rglob("sub-*_task-x_run-*")):
        for new, old in enumerate(moved, 1):
            if f"_{old}_" in path.name:
                path.rename(path.with_name(path.name.replace(f"task-x_{old}", f"task-y_run-{new}")))


@pytest.mark.end_to_end
def test_a_fit_of_two_tasks_is_that_of_the_same_runs_of_one_task(tmp_path, capsys, validate):
    one = make_dataset(tmp_path / "one", n_runs=4)
    two = make_dataset(tmp_path / "two", n_runs=4)
    as_two_tasks(two)
    work = ("-w", str(tmp_path / "w"), "--sloppy")
    assert main([str(one), str(tmp_path / "o1"), "participant", *work]) == 0
    together = ("-t", "x", "y", "--fit-tasks", "together")
    capsys.readouterr()
    assert main([str(two), str(tmp_path / "o2"), "participant", *work, *together, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"01 +- +x\+y +T1w +4 +32 +4 +8 ", listed)
    assert "1 fit;" in listed
    assert main([str(two), str(tmp_path / "o2"), "participant", *work, *together]) == 0
    names = [f"o{n}/sub-01/func/sub-01_task-{t}" for n, t in ((1, "x"), (2, "x+y"))]
    images = [f"{name}_space-T1w_stat-effect_desc-typeD_statmap.nii.gz" for name in names]
    betas = [nib.load(tmp_path / image).get_fdata() for image in images]
    np.testing.assert_array_equal(*betas)
    tables = [pd.read_csv(tmp_path / f"{name}_trials.tsv", sep="\t") for name in names]
    assert tables[1]["task"].tolist() == ["x"] * 16 + ["y"] * 16
    assert tables[1]["run"].tolist() == [1] * 8 + [2] * 8 + [1] * 8 + [2] * 8
    for column in ("onset", "stim_id", "condition", "repeat"):
        assert tables[0][column].tolist() == tables[1][column].tolist()
    func = tmp_path / "o2" / "sub-01" / "func"
    designs = sorted(p.name.split("_desc")[0] for p in func.glob("*design*.tsv"))
    assert designs == [f"sub-01_task-{t}_run-{r}" for t in "xy" for r in (1, 2)]
    sidecar = json.loads((tmp_path / f"{names[1]}_trials.json").read_text())
    assert sidecar["task"] == {"Description": "Label of the task."}
    assert "Runs of the tasks x, y are one fit" in (tmp_path / "o2" / "sub-01.html").read_text()
    assert validate(tmp_path / "o2") == []


@pytest.mark.end_to_end
@pytest.mark.parametrize("what", ["TR", "grid"])
def test_tasks_that_cannot_be_one_fit_are_refused(tmp_path, capsys, what):
    data = make_dataset(tmp_path / "ds", n_runs=2)
    as_two_tasks(data, ("run-2",))
    bold = next(path for path in bold_files(data) if "task-y" in path.name)
    if what == "TR":
        put(bold.with_name(bold.name.replace(".nii.gz", ".json")), {"RepetitionTime": 1.5})
    else:
        image = nib.load(bold)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine, image.header), bold)
    argv = [str(data), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "w"), "--sloppy"]
    assert main([*argv, "--fit-tasks", "together"]) == 65
    said = capsys.readouterr().err
    assert ("different TRs (1.5 and 2 s)" if what == "TR" else "different grids") in said
    assert "tasks apart" in said or "--fit-tasks apart" in said


def test_runs_may_name_stimuli_in_different_columns(tmp_path):
    skeleton = Skeleton(tmp_path)
    skeleton.add(task="a", events=tsv("onset duration stim_file\n4 1 one.png\n10 1 two.png\n"))
    skeleton.add(task="b", events=tsv("onset duration stim_file condition\n4 1 n/a one.png\n10 1 n/a n/a\n"))
    (fit,) = find_fits(bids_dir=tmp_path, tasks_together=True)
    settings = EventSettings(stim_column="stim_file, condition", task_onset_shift=("b=16",), onset_shift=1)
    table = build_trials(fit, settings)
    assert table.stim_id == ("one.png", "two.png", "one.png")
    assert table.stim_column == "stim_file, condition"
    assert table.onset.tolist() == [5, 11, 20]
    with pytest.raises(UsageError, match=r"none of the columns code, name \(--stim-column\)"):
        build_trials(fit, EventSettings(stim_column="code,name"))


@pytest.mark.parametrize("text", ["b", "b=late", "=3", "b=inf"])
def test_shift_of_a_task_that_is_none(text):
    with pytest.raises(UsageError, match="TASK=SECONDS"):
        onset_shifts(["b"], EventSettings(task_onset_shift=(text,)))


def test_sessions_are_grouped_by_patterns_and_names(tmp_path):
    skeleton = Skeleton(tmp_path)
    for ses in ("nat01", "nat02", "art01", "imagery"):
        skeleton.add(ses=ses)
    levels = ["natural=nat*", "art*"]
    found = find_fits(bids_dir=tmp_path, fit_level=levels)
    assert [(f.session_label, f.sessions) for f in found] == [
        ("art01", ("art01",)), ("natural", ("nat01", "nat02")),
    ]  # fmt: skip
    assert any("left out: imagery" in text for text in found.warnings)
    found = find_fits(bids_dir=tmp_path, fit_level=[*levels, "letter*"])
    assert "No session is called letter*." in found.warnings
    with pytest.raises(UsageError, match="nat01 is in two groups"):
        find_fits(bids_dir=tmp_path, fit_level=["nat*", "*01"])
    with pytest.raises(NothingSelectedError, match="no session x"):
        find_fits(bids_dir=tmp_path, fit_level=["x*"])
    with pytest.raises(NothingSelectedError, match="no session nat03"):
        find_fits(bids_dir=tmp_path, fit_level=["nat*", "nat03"])


def test_a_group_too_long_for_file_names_wants_a_name(tmp_path):
    skeleton = Skeleton(tmp_path)
    for n in range(20):
        skeleton.add(ses=f"perception{n:02d}").add(ses=f"rest{n:02d}")
    with pytest.raises(UsageError, match="too long for names of files"):
        find_fits(bids_dir=tmp_path, fit_level=["perception*", "rest00"])
    found = find_fits(bids_dir=tmp_path, fit_level=["all=perception*", "rest00"])
    assert found[0].name.startswith("sub-01_ses-all_")


PRESSES = tsv(
    "onset duration stim_id response response_time\n4 1 a 1 0.5\n10 1 b -1 0.75\n16 1 a 0 0\n"
    "22 1 n/a 1 1.25\n28 1 a n/a n/a\n"
)


def test_presses_are_read_by_button(tmp_path):
    rows = read_events(put(tmp_path / "events.tsv", PRESSES))
    assert press_times(rows, "response", 12.0) == {"-1": (22.75,), "1": (16.5, 35.25)}
    assert press_times(rows, "button", 0.0) == {}
    bare = read_events(put(tmp_path / "bare.tsv", tsv("onset duration response\n4 1 1\n")))
    with pytest.raises(DataError, match="no time of them"):
        press_times(bare, "response", 0.0)


def test_regressor_of_presses_is_the_sum_of_canonical_responses():
    from conform_app.glmsingle.design import RunTrials, plan_trials
    from conform_app.glmsingle.hrf import TableResponses, canonical_table

    tr, n = 1.5, 60
    times = [3.2, 20.0, 21.7]
    volumes = 0.4 + tr * np.arange(n)
    columns = event_regressors([times, [500.0], [50.0]], volumes, tr)
    assert columns.shape == (n, 2)  # the second kind lies outside the run
    trials = plan_trials([RunTrials(times, 0.0, [0, 0, 0])], [n], None, tr, 0.4)
    expected = trials.regressors(0, TableResponses(canonical_table(), tr, whole_seconds=False))
    np.testing.assert_allclose(columns[:, 0], expected[:, :, 0].sum(axis=1), atol=1e-6)


@pytest.mark.end_to_end
def test_presses_are_taken_out_of_the_betas(tmp_path):
    """Responses to presses after trials disturb the betas, unless presses are modelled."""
    data = make_dataset(tmp_path / "ds")
    rng = np.random.default_rng(1)
    for bold in bold_files(data):
        run = re.search(r"run-(\d)", bold.name).group()
        events = data / "sub-01" / "func" / f"sub-01_task-x_{run}_events.tsv"
        table = pd.read_csv(events, sep="\t")
        table["response"] = 1
        table["response_time"] = rng.uniform(2.0, 9.0, len(table)).round(2)
        table.to_csv(events, sep="\t", index=False)
        image = nib.load(bold)
        volumes = 2.0 * np.arange(image.shape[3])
        press = sum(response(volumes - time) for time in table["onset"] + table["response_time"])
        values = np.asarray(image.dataobj) + np.float32(25.0) * press.astype(np.float32)
        nib.save(nib.Nifti1Image(values, image.affine, image.header), bold)
    name = "sub-01/func/sub-01_task-x_space-T1w_stat-effect_desc-typeB_statmap.nii.gz"
    found = {}
    clean = make_dataset(tmp_path / "clean")
    for case, root, more in (
        ("clean", clean, ()), ("without", data, ()), ("with", data, ("--press-column", "response")),
    ):  # fmt: skip
        argv = [
            str(root),
            str(tmp_path / f"out-{case}"),
            "participant",
            "-w",
            str(tmp_path / "w"),
            "--sloppy",
        ]
        assert main([*argv, "--psn", "off", "--glm-types", "B", *more]) == 0
        found[case] = nib.load(tmp_path / f"out-{case}" / name).get_fdata()[1:].ravel()
    near = {case: np.corrcoef(found["clean"], found[case])[0, 1] for case in ("without", "with")}
    assert near["with"] > 0.8
    assert near["with"] > near["without"] + 0.05
    assert "Presses of the buttons 1 (24 times)" in (tmp_path / "out-with" / "sub-01.html").read_text()


@pytest.mark.parametrize(
    ("settings", "confounds", "level"),
    [
        ({"model": {"confounds": ["none"], "fit_level": ["session"]}}, "none", "session"),
        (
            {
                "model": {"confounds": ["motion6"], "fit_level": ["subject"], "fit_tasks": "together"},
                "events": {"press_column": "response"},
            },
            "motion6, button presses",
            "subject (tasks together)",
        ),
        ({}, "", ""),
    ],
)
def test_methodology_says_what_one_fit_pools_and_what_is_nuisance(settings, confounds, level):
    from conform_app.bids.methodology import _processing
    from conform_app.bids.outputs import FitOutput, Site

    fit = {"kind": "volume", "space": "T1w", "name": "sub-01_task-x+y_space-T1w"}
    found = _processing([FitOutput(Site("A", None, {}), {"fit": fit, "settings": settings})])
    assert (found["confounds"], found["fit_level"]) == (confounds, level)
