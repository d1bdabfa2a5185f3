# SPDX-License-Identifier: Apache-2.0
"""Bad input ends with its exit code and one line that names file and remedy, never with a traceback."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_dataset import bold_files, edit_bold, make_dataset, save

from conform_app.cli import main

PLAN_ONLY = ("--dry-run", "--skip-bids-validation")


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "ds", n_runs=2)


def call(root, out, *options):
    return main([str(root), str(out), "participant", *map(str, options)])


def refused(capsys, root, code, *words, options=PLAN_ONLY, out=None):
    """Run, expect the code and all the words in the last line of stderr, and no traceback."""
    got = call(root, out or root.parent / "out", *options)
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert got == code, said
    assert "Traceback" not in said
    assert last.endswith(f"(exit code {code})")
    for word in words:
        assert str(word) in last, last


def events_of(root):
    return sorted(root.rglob("*_events.tsv"))[0]


def test_no_derivatives(dataset, capsys):
    shutil.rmtree(dataset / "derivatives")
    refused(capsys, dataset, 66, "preprocessed", "-d fmriprep=PATH")


def test_no_events(dataset, capsys):
    path = events_of(dataset)
    path.unlink()
    refused(capsys, dataset, 66, path.name)


def test_events_beyond_the_run(dataset, capsys):
    path = events_of(dataset)
    path.write_text(path.read_text() + "7500.0\t1.5\tface\n")
    refused(capsys, dataset, 65, path.name, "line 10", "120 s", "milliseconds")


def test_onsets_that_a_shift_puts_before_the_run(dataset, capsys):
    options = (*PLAN_ONLY, "--onset-shift", "-8")
    words = ("line 2", "with its shift of -8 s", '--ignore-trials "onset < 8"')
    refused(capsys, dataset, 65, *words, options=options)
    assert call(dataset, dataset.parent / "out", *options, "--ignore-trials", "onset < 8") == 0


def test_duplicated_onsets(dataset, capsys):
    path = events_of(dataset)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    refused(capsys, dataset, 65, path.name, "lines 2, 10")


def test_overlapping_trials_are_a_warning(dataset, capsys):
    path = events_of(dataset)
    path.write_text(path.read_text().replace("\t1.5\t", "\t14\t"))
    assert call(dataset, dataset.parent / "out", *PLAN_ONLY) == 0
    assert "overlap" in capsys.readouterr().out


def test_missing_tr(dataset, capsys):
    for path in dataset.rglob("*_bold.json"):
        content = json.loads(path.read_text())
        del content["RepetitionTime"]
        path.write_text(json.dumps(content))
    refused(capsys, dataset, 65, bold_files(dataset)[0].name, "RepetitionTime")


def test_truncated_nifti(dataset, capsys):
    path = bold_files(dataset)[1]
    path.write_bytes(path.read_bytes()[:-2000])
    refused(capsys, dataset, 74, path.name, "opy it again")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("csff",), "has no csff"),
        (("motion6", "aroma*"), "has no such column"),
        (("a_comp_cor:5",), "no such"),
    ],
)
def test_a_dry_run_reads_the_confounds(dataset, capsys, words, named):
    refused(capsys, dataset, 64, "run-1_desc-confounds", named, options=(*PLAN_ONLY, "--confounds", *words))


def test_a_dry_run_misses_a_confounds_file(dataset, capsys):
    sorted(dataset.rglob("*confounds_timeseries.tsv"))[1].unlink()
    refused(capsys, dataset, 65, "run-2", "no confounds", options=(*PLAN_ONLY, "--confounds", "motion6"))


def test_sidecar_that_was_not_fetched(dataset, capsys):
    path = next((dataset / "derivatives").rglob("*run-1*_bold.json"))
    path.unlink()
    path.symlink_to("../../.git/annex/objects/gone")
    refused(capsys, dataset, 66, path.name, "datalad get")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--fracs", "0", "0.5"), "fracs is"),
        (("--n-pcs", "-1"), "n_pcs is -1"),
        (("--pcstop", "0.5"), "pcstop is 0.5"),
        (("--fixed-pcs", "-3"), "--fixed-pcs is -3"),
        (("--fixed-fraction", "1.5"), "--fixed-fraction is 1.5"),
        (("--nprocs", "0"), "--nprocs is 0"),
        (("--use-plugin", "nosuch.yml"), "nosuch.yml"),
    ],
)
def test_numbers_out_of_range_are_refused_by_a_dry_run(dataset, capsys, option, named):
    refused(capsys, dataset, 64, named, options=(*PLAN_ONLY, *option))


def test_a_query_that_drops_nothing_is_told(dataset, capsys):
    for path in dataset.rglob("*_events.tsv"):
        path.write_text(path.read_text().replace("face", "0012").replace("house", "0007"))
        path.write_text(path.read_text().replace("cat", "0100").replace("shoe", "0003"))
    said = {}
    for query in ("trial_type == '0012'", "trial_type == 12"):
        assert call(dataset, dataset.parent / "out", *PLAN_ONLY, "--ignore-trials", query) == 0
        said[query] = capsys.readouterr().out
    assert "drops no row of any run; a column of numbers" in said["trial_type == '0012'"]
    assert "drops no row" not in said["trial_type == 12"]


def test_masks_of_other_runs_stand_in_for_a_missing_one(dataset, capsys):
    masks = sorted(dataset.rglob("*_mask.nii.gz"))
    masks[0].unlink()
    assert call(dataset, dataset.parent / "out", *PLAN_ONLY) == 0
    assert "No brain mask for run-1: those of the other runs are used." in capsys.readouterr().out
    masks[1].unlink()
    assert call(dataset, dataset.parent / "out", *PLAN_ONLY) == 0
    assert "No brain mask for run-1, run-2: every voxel that varies is fitted." in capsys.readouterr().out


def warned(dataset, capsys, *options):
    assert call(dataset, dataset.parent / "out", *PLAN_ONLY, *options) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]


def test_a_mask_that_takes_most_voxels_is_told(dataset, capsys):
    assert warned(dataset, capsys) == []
    path = sorted(dataset.rglob("*_mask.nii.gz"))[1]
    mask = np.asarray(nib.load(path).dataobj).copy()
    mask[3:] = 0
    save(path, mask)
    said = "have 40 voxels in common, 57 % of the usual 70; the smallest, of run-2, has 40."
    assert [line for line in warned(dataset, capsys) if line.endswith(said)]


def test_volumes_taken_away_by_preprocessing_are_told(dataset, capsys):
    for path in bold_files(dataset):
        edit_bold(path, lambda data: data[..., 3:])
    said = (
        "2 runs have (first sub-01 task-x run-1) 57 volumes, 60 before preprocessing; if some were taken from"
    )
    line = next(line for line in warned(dataset, capsys) if said in line)
    assert "--onset-shift -6, or StartTime" in line
    for path in (dataset / "derivatives").rglob("*_bold.json"):
        path.write_text(json.dumps({"RepetitionTime": 2.0, "StartTime": 6.0}))
    assert not [line for line in warned(dataset, capsys) if "before preprocessing" in line]


def test_volumes_before_the_steady_state_are_told(dataset, capsys):
    path = sorted(dataset.rglob("*confounds_timeseries.tsv"))[0]
    head, *rows = path.read_text().splitlines()
    marks = [f"{row}\t{float(n == 0)}\t{float(n == 1)}" for n, row in enumerate(rows)]
    names = "\t".join(f"non_steady_state_outlier0{n}" for n in (0, 1))
    path.write_text("\n".join([f"{head}\t{names}", *marks]) + "\n")
    said = "1 of 2 runs begin before the steady state (2 volumes of sub-01 task-x run-1)"
    for options in ((), ("--confounds", "motion6")):
        assert any(said in line for line in warned(dataset, capsys, *options))
    modelled = ("--confounds", "motion6", "non_steady_state_outlier*")
    assert not any("before the steady state" in line for line in warned(dataset, capsys, *modelled))


def test_numbers_written_in_two_ways_are_told(dataset, capsys):
    first, second = sorted(dataset.rglob("*_events.tsv"))
    first.write_text(first.read_text().replace("face", "12"))
    second.write_text(second.read_text().replace("face", "12.0"))
    line = next(line for line in warned(dataset, capsys) if "'.0'" in line)
    assert "1 name is written with and without '.0' (first 12 and 12.0)" in line
    assert not [x for x in warned(dataset, capsys, "--stim-pattern", "^([0-9]+)") if "'.0'" in x]


def test_a_test_set_without_trials_is_told(dataset, capsys):
    lines = warned(dataset, capsys, "--test-trials", "trial_type == 'Face'")
    assert any("--test-trials" in line and "is true of no trial" in line for line in lines)
    assert warned(dataset, capsys, "--test-trials", "trial_type == 'face'") == []


def test_a_tab_at_the_end_of_rows_is_no_matter(dataset, capsys, recwarn):
    path = events_of(dataset)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *(f"{row}\t" for row in rows)]) + "\n")
    assert call(dataset, dataset.parent / "out", *PLAN_ONLY) == 0
    assert not [warning for warning in recwarn if "header" in str(warning.message)]


def test_runs_with_different_grids(dataset, capsys):
    path = bold_files(dataset)[1]
    edit_bold(path, lambda data: data[:, :, :3])
    refused(capsys, dataset, 65, path.name, "grid")


def test_mask_that_covers_nothing(dataset, capsys):
    path = sorted(dataset.rglob("*_mask.nii.gz"))[0]
    save(path, np.zeros(nib.load(path).shape, np.uint8))
    refused(capsys, dataset, 65, "mask")


def test_unknown_subject(dataset, capsys):
    refused(capsys, dataset, 18, "99", "01", options=(*PLAN_ONLY, "--participant-label", "99"))


def test_unknown_task_and_filters_that_select_nothing(dataset, capsys, tmp_path):
    refused(capsys, dataset, 18, "task x", options=(*PLAN_ONLY, "-t", "nosuch"))
    filters = tmp_path / "f.json"
    filters.write_text('{"bold": {"acquisition": "x"}}')
    refused(capsys, dataset, 18, options=(*PLAN_ONLY, "--bids-filter-file", filters))
    filters.write_text('{"blod": {}}')
    refused(capsys, dataset, 64, "blod", options=(*PLAN_ONLY, "--bids-filter-file", filters))


def test_unknown_space(dataset, capsys):
    refused(
        capsys,
        dataset,
        66,
        "MNI152NLin6Asym",
        "T1w",
        options=(*PLAN_ONLY, "--output-spaces", "MNI152NLin6Asym"),
    )


def test_output_is_input(dataset, capsys):
    refused(capsys, dataset, 64, dataset, out=dataset, options=("--skip-bids-validation",))


def test_work_folder_inside_the_input(dataset, capsys):
    refused(capsys, dataset, 64, "work", options=("-w", dataset / "work"))


needs_permissions = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root ignores permissions, and setpriv is absent",
)


def call_with_permissions(root, out, *options):
    """Run in a process that permissions hold for (root may not ignore them), cwd and HOME read-only."""
    nowhere = root.parent / "nowhere"
    nowhere.mkdir(mode=0o555)
    command = [
        sys.executable,
        "-m",
        "conform_app",
        root,
        out,
        "participant",
        "--skip-bids-validation",
        *options,
    ]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--", *command]
    env = {"PATH": os.environ["PATH"], "HOME": str(nowhere), "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        list(map(str, command)), cwd=nowhere, env=env, capture_output=True, text=True, check=False
    )


@needs_permissions
def test_unwritable_output(dataset):
    out = dataset.parent / "locked"
    out.mkdir(mode=0o555)
    done = call_with_permissions(dataset, out)
    assert done.returncode == 73, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert str(out) in last
    assert "Traceback" not in done.stderr


@needs_permissions
def test_read_only_input_and_unwritable_cwd_and_home_work(dataset):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    for path in sorted(before, reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    dataset.chmod(0o555)
    out = dataset.parent / "out"
    done = call_with_permissions(dataset, out, "--sloppy")
    for path in [dataset, *before]:
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert (out / "sub-01.html").is_file()
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_a_disk_that_is_full_when_the_report_is_due(dataset, capsys, monkeypatch):
    from conform_app.reports import page

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(page, "replace_text", full)
    out = dataset.parent / "out"
    options = ("--skip-bids-validation", "--sloppy", "--psn", "off")
    refused(capsys, dataset, 1, "report of sub-01", "No space left on device.", options=options, out=out)
    status = json.loads(next(out.rglob("status.json")).read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 74)
    assert not list(out.rglob(".*.tmp"))
    monkeypatch.undo()
    assert call(dataset, out, *options) == 0
    assert (out / "sub-01.html").is_file()


def test_a_work_folder_that_is_full(dataset, capsys, monkeypatch):
    from conform_app.interfaces import reliability
    from conform_app.workflows import execute

    def full(path, arrays, meta):  # what h5py says
        raise RuntimeError("Unable to flush file (file write failed: errno = 28, error message = 'No space')")

    monkeypatch.setattr(reliability, "save_arrays", full)
    out = dataset.parent / "out"
    options = ("--skip-bids-validation", "--sloppy", "--psn", "off", "-w", dataset.parent / "work")
    refused(capsys, dataset, 74, "No space left", "-w", options=options, out=out)
    note = next(out.rglob("error-*.json"))
    assert len(list(execute._left_notes(note.parent))) == 1
    note.write_text("")  # cut off where the logs' disk is full
    assert list(execute._left_notes(note.parent)) == []


def test_no_part_of_a_store_stays_on_a_full_disk(tmp_path, monkeypatch):
    import h5py

    from conform_app.images.arrays import save_arrays

    def full(path, *_, **__):
        Path(path).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(h5py, "File", full)
    with pytest.raises(OSError, match="No space"):
        save_arrays(tmp_path / "arrays.h5", {}, {})
    assert list(tmp_path.iterdir()) == []


def test_nan_inf_and_constant_voxels_are_left_out_and_touch_no_other(dataset, tmp_path):
    clean, dirty = tmp_path / "clean", tmp_path / "dirty"
    options = ("--sloppy", "--skip-bids-validation", "--no-repeats", "error")
    assert call(dataset, clean, *options) == 0

    def spoil(data):
        data[2, 2, 2, 5] = np.nan
        data[3, 2, 2, 7] = np.inf
        data[4, 2, 2, :] = 300.0

    edit_bold(bold_files(dataset)[1], spoil)
    assert call(dataset, dirty, *options) == 0
    name = "sub-01/func/sub-01_task-x_space-T1w_stat-effect_desc-typeD_statmap.nii.gz"
    before, after = (np.asarray(nib.load(out / name).dataobj) for out in (clean, dirty))
    assert np.isfinite(after).all()
    bad = np.zeros(before.shape[:3], bool)
    bad[2:5, 2, 2] = True
    assert (after[bad] == 0).all()
    assert (after[~bad].any(axis=-1) == before[~bad].any(axis=-1)).all()
    record = json.loads(next(dirty.rglob("log/fits/*.json")).read_text())
    assert any("100 voxels" in text and "not finite" in text for text in record["warnings"])


@needs_permissions
@pytest.mark.parametrize("what", ["image", "folder"])
def test_what_may_not_be_read(dataset, what):
    path = bold_files(dataset)[0] if what == "image" else dataset / "derivatives" / "fmriprep" / "sub-01"
    mode = path.stat().st_mode
    path.chmod(0)
    done = call_with_permissions(dataset, dataset.parent / "out", "--dry-run")
    path.chmod(mode)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 74, done.stderr
    assert str(path) in last
    assert "permission" in last
    assert "Traceback" not in done.stderr
