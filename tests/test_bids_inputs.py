# SPDX-License-Identifier: Apache-2.0
"""What is found in a dataset: runs, spaces, companions, metadata."""

import os
from pathlib import Path

import pytest
from bids_skeleton import CIFTI, EVENTS, MNI, Skeleton, gifti, put

from conform_app.bids.inputs import find_fits
from conform_app.errors import (
    CannotCreateError,
    DataError,
    FileFaultError,
    NoInputError,
    NothingSelectedError,
    UsageError,
)


@pytest.fixture
def skeleton(tmp_path):
    return Skeleton(tmp_path / "a study" / "bids")


def names(selection):
    return [fit.name for fit in selection]


def test_a_run_and_its_companions(skeleton):
    skeleton.add(run="1", sidecar={"RepetitionTime": 1.5, "StartTime": 0.75})
    (fit,) = find_fits(bids_dir=skeleton.raw)
    (run,) = fit.runs
    func = skeleton.prep / "sub-01" / "func"
    stem = "sub-01_task-x_run-1"
    assert fit.name == f"sub-01_task-x_{MNI}"
    assert (fit.kind, fit.space, fit.res, fit.den) == ("volume", "MNI152NLin2009cAsym", "2", None)
    assert run.bold == (func / f"{stem}_{MNI}_desc-preproc_bold.nii.gz",)
    assert run.mask == (func / f"{stem}_{MNI}_desc-brain_mask.nii.gz",)
    assert run.confounds == func / f"{stem}_desc-confounds_timeseries.tsv"
    assert run.events == skeleton.raw / "sub-01" / "func" / f"{stem}_events.tsv"
    assert (run.session, run.run) == (None, "1")
    # The derivative's own value wins over the raw sidecar; what only the raw one has is kept.
    assert run.metadata["RepetitionTime"] == 1.5
    assert run.metadata["StartTime"] == 0.75
    assert run.metadata["SliceTiming"] == [0, 1]


def test_differing_repetition_times_are_told(skeleton):
    skeleton.add(sidecar={"RepetitionTime": 1.5})
    assert any(
        "1.5 s in the derivative and 2 s" in text for text in find_fits(bids_dir=skeleton.raw).warnings
    )


def test_no_repetition_time_stays_absent(skeleton):
    (skeleton.raw / "task-x_bold.json").unlink()
    skeleton.add()
    assert "RepetitionTime" not in find_fits(bids_dir=skeleton.raw)[0].runs[0].metadata


def test_metadata_inheritance_from_root_to_run(skeleton):
    skeleton.add(ses="1", run="1").add(ses="2", run="1")
    put(skeleton.raw / "task-x_bold.json", {"RepetitionTime": 2.0, "EchoTime": 0.03, "FlipAngle": 90})
    put(skeleton.raw / "sub-01" / "sub-01_task-x_bold.json", {"EchoTime": 0.04, "FlipAngle": 80})
    put(skeleton.raw / "sub-01/ses-2/func/sub-01_ses-2_task-x_run-1_bold.json", {"FlipAngle": 70})
    put(skeleton.raw / "task-y_bold.json", {"RepetitionTime": 9.0})
    one, two = find_fits(bids_dir=skeleton.raw)
    keys = ("RepetitionTime", "EchoTime", "FlipAngle")
    assert [one.runs[0].metadata[k] for k in keys] == [2.0, 0.04, 80]
    assert [two.runs[0].metadata[k] for k in keys] == [2.0, 0.04, 70]


def test_echoes_share_their_timing(skeleton):
    (skeleton.raw / "task-x_bold.json").unlink()
    skeleton.add()
    for echo in (1, 2):
        path = skeleton.raw / f"sub-01/func/sub-01_task-x_echo-{echo}_bold.json"
        put(path, {"RepetitionTime": 1.2, "EchoTime": 0.01 * echo})
    metadata = find_fits(bids_dir=skeleton.raw)[0].runs[0].metadata
    assert metadata["RepetitionTime"] == 1.2
    assert "EchoTime" not in metadata


def test_surfaces_take_timing_from_the_volume_of_the_run(skeleton):
    for run, start in (("1", 0.7), ("2", 0.9)):
        timing = {"RepetitionTime": 2.0, "StartTime": start, "SkullStripped": True}
        skeleton.add("space-T1w", *gifti("fsaverage6"), CIFTI, run=run, sidecar=timing)
    put(skeleton.prep / f"sub-01/func/sub-01_task-x_run-1_{CIFTI[:-13]}.json", {"Density": "91k"})
    for space in ("fsLR:den-91k", "fsaverage6"):
        (fit,) = find_fits(bids_dir=skeleton.raw, output_spaces=[space])
        assert [run.metadata["StartTime"] for run in fit.runs] == [0.7, 0.9]
        assert all("SkullStripped" not in run.metadata for run in fit.runs)
    assert find_fits(bids_dir=skeleton.raw, output_spaces=["fsLR"])[0].runs[0].metadata["Density"] == "91k"


def test_surface_pairs(skeleton):
    skeleton.add(*gifti("fsaverage5"))
    (fit,) = find_fits(bids_dir=skeleton.raw, output_spaces=["fsaverage:den-10k"])
    assert (fit.kind, fit.space, fit.den) == ("gifti", "fsaverage", "10k")
    assert fit.name == "sub-01_task-x_space-fsaverage_den-10k"
    assert ["hemi-L" in p.name for p in fit.runs[0].bold] == [True, False]
    assert fit.runs[0].mask == ()


def test_half_a_surface_is_left_out(skeleton):
    skeleton.add(gifti("fsaverage5")[0], "space-T1w")
    found = find_fits(bids_dir=skeleton.raw)
    assert [fit.space for fit in found] == ["T1w"]
    assert any("no partner" in text for text in found.warnings)


def test_best_space_when_none_is_named(skeleton):
    skeleton.add(MNI, "space-T1w", *gifti("fsaverage5"), CIFTI)
    found = find_fits(bids_dir=skeleton.raw)
    assert [(fit.kind, fit.den) for fit in found] == [("cifti", "91k")]
    assert any("fsLR:den-91k is used" in text for text in found.warnings)


def test_a_space_that_all_runs_have_comes_first(skeleton):
    skeleton.add("space-T1w", CIFTI, run="1").add("space-T1w", run="2")
    (fit,) = find_fits(bids_dir=skeleton.raw)
    assert (fit.space, len(fit.runs)) == ("T1w", 2)
    found = find_fits(bids_dir=skeleton.raw, output_spaces=["fsLR"])
    assert len(found[0].runs) == 1
    assert any("Left out" in text and "run-2" in text for text in found.warnings)


def test_custom_and_native_spaces(skeleton):
    skeleton.add("space-SPMnormalized", task="a").add("", task="b")
    assert find_fits(bids_dir=skeleton.raw, tasks="a")[0].space == "SPMnormalized"
    (fit,) = find_fits(bids_dir=skeleton.raw, tasks="b", output_spaces=["func"])
    assert fit.name == "sub-01_task-b_space-boldref"
    assert len(fit.runs[0].mask) == 1


def test_spaces_in_the_order_asked(skeleton):
    skeleton.add(MNI, "space-T1w")
    found = find_fits(bids_dir=skeleton.raw, output_spaces=["MNI152NLin2009cAsym:res-2", "T1w"])
    assert [fit.space for fit in found] == ["MNI152NLin2009cAsym", "T1w"]


def test_a_missing_space_lists_what_exists(skeleton):
    skeleton.add(MNI, "space-T1w")
    with pytest.raises(
        NoInputError, match=r"no preprocessed BOLD in space fsLR:den-91k; there is T1w .* MNI152"
    ):
        find_fits(bids_dir=skeleton.raw, output_spaces=["fsLR:den-91k"])


def test_mask_of_another_space_is_not_taken(skeleton):
    skeleton.add(MNI, "space-T1w")
    (skeleton.prep / "sub-01/func/sub-01_task-x_space-T1w_desc-brain_mask.nii.gz").unlink()
    assert find_fits(bids_dir=skeleton.raw, output_spaces=["T1w"])[0].runs[0].mask == ()


def test_old_confounds_name_and_none(skeleton):
    skeleton.add(run="1", confounds=False).add(run="2", confounds=False)
    put(skeleton.prep / "sub-01/func/sub-01_task-x_run-2_desc-confounds_regressors.tsv", "csf\n1\n")
    one, two = find_fits(bids_dir=skeleton.raw)[0].runs
    assert one.confounds is None
    assert two.confounds.name.endswith("regressors.tsv")


@pytest.mark.parametrize(
    "place",
    [
        "task-x_events.tsv",
        "sub-01/sub-01_task-x_events.tsv",
        "sub-01/ses-1/sub-01_ses-1_task-x_events.tsv",
        "sub-01/ses-1/func/sub-01_ses-1_task-x_events.tsv",
    ],
)
def test_events_at_any_level(skeleton, place):
    skeleton.add(ses="1", run="1", events=None)
    events = put(skeleton.raw / place, EVENTS)
    assert find_fits(bids_dir=skeleton.raw)[0].runs[0].events == events


def test_the_nearest_events_count(skeleton):
    put(skeleton.raw / "task-x_events.tsv", EVENTS)
    skeleton.add(run="1", events=None).add(run="2")
    one, two = find_fits(bids_dir=skeleton.raw)[0].runs
    assert one.events.name == "task-x_events.tsv"
    assert two.events.name == "sub-01_task-x_run-2_events.tsv"


def test_padded_run_labels_are_numbers(skeleton):
    skeleton.add_raw(run="01")
    skeleton.add_prep(MNI, run="1")
    assert (
        find_fits(bids_dir=skeleton.raw, runs=["run-001"])[0]
        .runs[0]
        .events.name.startswith("sub-01_task-x_run-01")
    )


def test_one_run_preprocessed_under_two_labels_is_refused(skeleton):
    skeleton.add(run="1").add(run="2").add_prep(MNI, run="01")
    with pytest.raises(DataError, match=r"run-01_.* and .*run-1_.* are one run by their numbers"):
        find_fits(bids_dir=skeleton.raw)


def test_a_copy_in_another_format_is_told(skeleton):
    skeleton.add(run="1")
    image = next(skeleton.prep.rglob("*_bold.nii.gz"))
    image.with_suffix("").write_bytes(b"")
    found = find_fits(bids_dir=skeleton.raw)
    assert len(found[0].runs) == 1
    assert any(f"{image.name} is another copy of it" in text for text in found.warnings)


def test_missing_events_name_the_file_expected(skeleton):
    skeleton.add(run="1").add(run="2", events=None)
    expected = skeleton.raw / "sub-01/func/sub-01_task-x_run-2_events.tsv"
    with pytest.raises(NoInputError, match="sub-01 task-x run-2 has no events") as caught:
        find_fits(bids_dir=skeleton.raw)
    assert str(expected) in caught.value.message
    assert len(find_fits(bids_dir=skeleton.raw, runs=["1"])[0].runs) == 1
    assert len(find_fits(bids_dir=skeleton.raw, filters={"bold": {"run": 1}})[0].runs) == 1


def test_a_failing_fit_need_not_stop_the_others(skeleton):
    skeleton.add(sub="01").add(sub="02", run="1").add(sub="02", run="2", events=None)
    found = find_fits(bids_dir=skeleton.raw, keep_going=True)
    assert [fit.subject for fit in found] == ["01"]
    assert [(f.subject, type(f.error)) for f in found.failures] == [("02", NoInputError)]
    with pytest.raises(NoInputError):
        find_fits(bids_dir=skeleton.raw, subjects=["02"], keep_going=True)


def test_rest_is_left_out_unless_asked_for(skeleton):
    skeleton.add(task="x").add(task="rest", events=None)
    found = find_fits(bids_dir=skeleton.raw)
    assert [fit.task for fit in found] == ["x"]
    assert any("task-rest" in text for text in found.warnings)
    with pytest.raises(NoInputError, match="no events"):
        find_fits(bids_dir=skeleton.raw, tasks=["rest"])


def test_labels_with_or_without_prefix(skeleton):
    for sub in ("01", "02"):
        for ses in ("a", "b"):
            skeleton.add(sub=sub, ses=ses)
    one = find_fits(bids_dir=skeleton.raw, subjects=["02"], sessions=["b"], tasks=["x"])
    two = find_fits(bids_dir=skeleton.raw, subjects=["sub-02"], sessions=["ses-b"], tasks=["task-x"])
    assert names(one) == names(two) == [f"sub-02_ses-b_task-x_{MNI}"]


def test_a_file_without_the_entity_is_kept(skeleton):
    skeleton.add(sub="01").add(sub="02", ses="a").add(sub="02", ses="b")
    assert names(find_fits(bids_dir=skeleton.raw, sessions=["a"])) == [
        f"sub-01_task-x_{MNI}",
        f"sub-02_ses-a_task-x_{MNI}",
    ]


def test_unknown_participant_lists_ten(skeleton):
    for n in range(1, 13):
        skeleton.add(sub=f"{n:02d}")
    with pytest.raises(NothingSelectedError, match=r"unknown participant 99: .* 01, 02, .*, 10 and 2 more"):
        find_fits(bids_dir=skeleton.raw, subjects=["01", "99"])


def test_labels_that_select_nothing_list_what_there_is(skeleton):
    skeleton.add(ses="a", task="x", run="1")
    for choice in ({"sessions": ["b"]}, {"tasks": ["y"]}, {"runs": ["2"]}):
        with pytest.raises(NothingSelectedError, match="session a; task x; run 1"):
            find_fits(bids_dir=skeleton.raw, **choice)


def test_a_label_in_vain_is_told(skeleton):
    skeleton.add(task="x")
    assert any("task y" in text for text in find_fits(bids_dir=skeleton.raw, tasks=["x", "y"]).warnings)


def test_bad_label(skeleton):
    with pytest.raises(UsageError, match="not a subject label"):
        find_fits(bids_dir=skeleton.raw, subjects=["0/1"])


def test_natural_order(skeleton):
    for sub in ("10", "9"):
        for run in ("10", "2", "1"):
            skeleton.add(sub=sub, run=run)
    found = find_fits(bids_dir=skeleton.raw)
    assert [fit.subject for fit in found] == ["9", "10"]
    assert [run.run for run in found[0].runs] == ["1", "2", "10"]


def test_fit_levels(skeleton):
    for ses in ("1", "2", "3"):
        skeleton.add(ses=ses, run="1").add(ses=ses, run="2")
    by_session = find_fits(bids_dir=skeleton.raw)
    assert [fit.sessions for fit in by_session] == [("1",), ("2",), ("3",)]
    (pooled,) = find_fits(bids_dir=skeleton.raw, fit_level=("subject",))
    assert pooled.name == f"sub-01_task-x_{MNI}"
    assert [run.session for run in pooled.runs] == ["1", "1", "2", "2", "3", "3"]
    groups = find_fits(bids_dir=skeleton.raw, fit_level=[["1", "ses-2"], ["3"]])
    assert [fit.sessions for fit in groups] == [("1", "2"), ("3",)]
    assert names(groups) == [f"sub-01_ses-1+2_task-x_{MNI}", f"sub-01_ses-3_task-x_{MNI}"]
    assert names(groups) == names(find_fits(bids_dir=skeleton.raw, fit_level=("1,2", "3")))
    some = find_fits(bids_dir=skeleton.raw, fit_level=["1,3"])
    assert [fit.sessions for fit in some] == [("1", "3")]
    assert any("left out: 2" in text for text in some.warnings)


@pytest.mark.parametrize("level", ["run", ["1,2", "2,3"], [], ["session", "1"], [""], ["a b"]])
def test_bad_fit_level(skeleton, level):
    skeleton.add(ses="1").add(ses="2").add(ses="3")
    with pytest.raises((UsageError, NothingSelectedError), match="fit level"):
        find_fits(bids_dir=skeleton.raw, fit_level=level)


def test_acquisitions_are_fits_of_their_own(skeleton):
    skeleton.add(more="acq-fine").add(more="acq-coarse")
    assert names(find_fits(bids_dir=skeleton.raw)) == [
        f"sub-01_task-x_acq-coarse_{MNI}",
        f"sub-01_task-x_acq-fine_{MNI}",
    ]


def test_directions_are_pooled(skeleton):
    skeleton.add(more="dir-AP", run="1").add(more="dir-PA", run="1")
    (fit,) = find_fits(bids_dir=skeleton.raw)
    assert [run.entities["direction"] for run in fit.runs] == ["AP", "PA"]


def test_single_echoes_and_phase_are_left_out(skeleton):
    skeleton.add()
    skeleton.add_prep(MNI, more="echo-1", confounds=False)
    skeleton.add_prep(MNI, more="part-phase", confounds=False)
    (fit,) = find_fits(bids_dir=skeleton.raw)
    assert len(fit.runs) == 1


def test_names_are_unique(skeleton):
    for ses in ("1", "2"):
        skeleton.add(MNI, "space-T1w", CIFTI, *gifti("fsaverage5"), *gifti("fsaverage6"), ses=ses)
    spaces = ["T1w", "MNI152NLin2009cAsym", "fsLR", "fsaverage5", "fsaverage6"]
    for level in ("session", "subject", ["1", "2"]):
        found = names(find_fits(bids_dir=skeleton.raw, output_spaces=spaces, fit_level=level))
        assert len(found) == len(set(found)) == (5 if level == "subject" else 10)


def test_entities_come_from_the_name_not_the_place(tmp_path):
    skeleton = Skeleton(tmp_path / "ses-9" / "task-z_run-7" / "sub-77")
    skeleton.add(run="1")
    (fit,) = find_fits(bids_dir=skeleton.raw)
    assert (fit.subject, fit.task, fit.sessions, fit.runs[0].run) == ("01", "x", (), "1")


def test_broken_sidecar(skeleton):
    skeleton.add()
    put(skeleton.raw / "task-x_bold.json", "{")
    with pytest.raises(DataError, match=r"task-x_bold\.json is not valid JSON"):
        find_fits(bids_dir=skeleton.raw)


def test_content_that_was_not_fetched(skeleton):
    skeleton.add()
    bold = skeleton.prep / f"sub-01/func/sub-01_task-x_{MNI}_desc-preproc_bold.nii.gz"
    bold.unlink()
    bold.symlink_to(".git/annex/objects/nothing")
    with pytest.raises(NoInputError, match="link to a file that is not here"):
        find_fits(bids_dir=skeleton.raw)


def test_only_the_requested_participant_is_indexed(skeleton, monkeypatch):
    for n in range(1, 41):
        skeleton.add(sub=f"{n:04d}")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": listed.append(Path(path)) or scandir(path))
    (fit,) = find_fits(bids_dir=skeleton.raw, subjects=["0007"])
    assert fit.subject == "0007"
    entered = {part for path in listed for part in path.parts if part.startswith("sub-")}
    assert entered == {"sub-0007"}


def test_a_thousand_participants(tmp_path):
    skeleton = Skeleton(tmp_path)
    for n in range(1, 1001):
        skeleton.add(sub=f"{n:04d}", run="1")
    assert names(find_fits(bids_dir=tmp_path, subjects=["0500"])) == [f"sub-0500_task-x_{MNI}"]


def test_database_is_shared_and_follows_new_participants(skeleton, tmp_path):
    skeleton.add(sub="01").add(sub="02")
    cache = tmp_path / "cache"
    first = find_fits(bids_dir=skeleton.raw, subjects=["01"], database_path=cache)
    assert names(first) == [f"sub-01_task-x_{MNI}"]
    stamps = {p: p.stat().st_mtime_ns for p in cache.rglob("*.sqlite")}
    assert len(stamps) == 2
    assert len(find_fits(bids_dir=skeleton.raw, database_path=cache)) == 2
    skeleton.add(sub="03")
    assert [f.subject for f in find_fits(bids_dir=skeleton.raw, subjects=["03"], database_path=cache)] == [
        "03"
    ]
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.sqlite")} == stamps


def test_damaged_or_unwritable_database(skeleton, tmp_path):
    skeleton.add()
    cache = tmp_path / "cache"
    find_fits(bids_dir=skeleton.raw, database_path=cache)
    for path in cache.rglob("*.sqlite"):
        path.write_bytes(b"no database" * 500)
    with pytest.raises(FileFaultError, match=r"the index .* cannot be read"):
        find_fits(bids_dir=skeleton.raw, database_path=cache)
    with pytest.raises(CannotCreateError, match="cannot be written"):
        find_fits(bids_dir=skeleton.raw, database_path=put(tmp_path / "a_file") / "cache")


def test_inputs_are_not_written_to(skeleton):
    skeleton.add()
    before = sorted(skeleton.raw.rglob("*"))
    for path in (skeleton.raw, skeleton.prep):
        path.chmod(0o555)
    try:
        assert len(find_fits(bids_dir=skeleton.raw)) == 1
    finally:
        for path in (skeleton.raw, skeleton.prep):
            path.chmod(0o755)
    assert sorted(skeleton.raw.rglob("*")) == before


@pytest.mark.parametrize(
    ("dataset", "space", "n_runs", "tr"),
    [
        ("haxby2001-1slice-bids", "func", 12, 2.5),
        ("pyhrf-localizer-bids", "SPMnormalized", 1, 2.4),
        ("studyforrest-localizer-bids", "T1w", 1, 2.0),
    ],
)
def test_measured_data(dataset, space, n_runs, tr):
    root = Path(__file__).parent / "data" / dataset
    if not root.is_dir():
        root = Path(os.environ.get("CONFORM_TEST_DATA", "/nonexistent")) / "data" / "real" / dataset
    if not root.is_dir():
        pytest.skip("needs CONFORM_TEST_DATA, the folder of measured data")
    (fit,) = find_fits(bids_dir=root)
    assert (fit.space, len(fit.runs)) == (space, n_runs)
    for run in fit.runs:
        assert run.metadata["RepetitionTime"] == tr
        assert len(run.mask) == 1
        assert all(path.is_file() for path in (*run.bold, *run.mask, run.confounds, run.events))
