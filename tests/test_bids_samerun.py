# SPDX-License-Identifier: Apache-2.0
"""Runs with one number, spaces that share a trial table, fits made anew: files stay what they say."""

import shutil

import nibabel as nib
import pandas as pd
import pytest
from small_dataset import make_dataset

from conform_app.bids.outputs import FitOutput, Site
from conform_app.cli import main

pytestmark = pytest.mark.end_to_end


def run(root, out, work, *more):
    common = ["--skip-bids-validation", "--sloppy", "--nprocs", "1", "-w", str(work)]
    return main([str(root), str(out), "participant", *common, *more])


def rename(root, names):
    for path in sorted(root.rglob("*_run-*")):
        for old, new in names.items():
            if f"_{old}_" in path.name:
                path.rename(path.with_name(path.name.replace(f"_{old}_", f"_{new}_")))
                break


@pytest.mark.parametrize(
    "names",
    [
        {"run-1": "dir-AP", "run-2": "dir-PA"},
        {"run-1": "dir-AP_run-1", "run-2": "dir-PA_run-1", "run-3": "dir-AP_run-2"},
    ],
    ids=["without numbers", "with equal numbers"],
)
def test_runs_that_differ_by_direction_alone_are_told_apart(tmp_path, names):
    root = make_dataset(tmp_path / "data", n_runs=len(names))
    rename(root, names)
    assert run(root, tmp_path / "out", tmp_path / "work") == 0
    func = tmp_path / "out" / "sub-01" / "func"
    trials = pd.read_csv(func / "sub-01_task-x_trials.tsv", sep="\t", dtype=str, keep_default_na=False)
    shown = trials[["run", "direction"]].drop_duplicates().to_numpy().tolist()
    expected = [
        [dict(part.split("-") for part in new.split("_")).get(key, "n/a") for key in ("run", "dir")]
        for new in names.values()
    ]
    assert sorted(shown) == sorted(expected)
    events = {new: sorted((root / "sub-01").rglob(f"*_{new}_events.tsv"))[0] for new in names.values()}
    columns = []
    for new, path in events.items():
        design = pd.read_csv(func / f"sub-01_task-x_{new}_desc-glmsingle_design.tsv", sep="\t")
        columns += list(design)
        rows = trials.loc[[int(name[-4:]) - 1 for name in design]]
        assert list(rows["trial_type"]) == list(pd.read_csv(path, sep="\t")["trial_type"])
        assert (func / f"sub-01_task-x_{new}_space-T1w_desc-glmdenoise_timeseries.tsv").is_file()
    assert sorted(columns) == [f"trial_{n:04d}" for n in range(1, len(trials) + 1)]


def test_directions_that_all_runs_share_are_not_in_names(tmp_path):
    root = make_dataset(tmp_path / "data", n_runs=2)
    rename(root, {"run-1": "dir-AP_run-1", "run-2": "dir-AP_run-2"})
    assert run(root, tmp_path / "out", tmp_path / "work") == 0
    func = tmp_path / "out" / "sub-01" / "func"
    assert (func / "sub-01_task-x_run-1_desc-glmsingle_design.tsv").is_file()
    assert "direction" not in (func / "sub-01_task-x_trials.tsv").read_text().splitlines()[0]


def test_a_collection_tells_runs_apart_as_the_trial_table_does(tmp_path):
    rows = ["stim_id\trun\tdirection\tonset", "a\t1\tAP\t0", "b\t1\tPA\t0", "c\tn/a\tPA\t9", "d\t2\tn/a\t9"]
    (tmp_path / "trials.tsv").write_text("\n".join(rows) + "\n")
    fit = FitOutput(Site("x", tmp_path, {}), {"products": {"trials": ["trials.tsv"]}})
    assert fit.trials()["run"].tolist() == ["dir-AP_1", "dir-PA_1", "dir-PA", "2"]


@pytest.fixture
def two_spaces(tmp_path):
    """Three runs in T1w, the first and the last of them in MNI space too."""
    root = make_dataset(tmp_path / "data")
    for path in list((root / "derivatives").rglob("*_space-T1w_*")):
        if "_run-2_" not in path.name:
            shutil.copy(path, path.with_name(path.name.replace("T1w", "MNI152NLin2009cAsym_res-2")))
    return root


def rows_and_maps(out, space):
    func = out / "sub-01" / "func"
    trials = pd.read_csv(func / "sub-01_task-x_trials.tsv", sep="\t", dtype=str)
    betas = nib.load(func / f"sub-01_task-x_space-{space}_stat-effect_desc-typeD_statmap.nii.gz")
    return len(trials), betas.shape[-1]


def test_a_space_that_lacks_a_run_does_not_write_over_the_trial_table(two_spaces, tmp_path, capsys):
    out, work = tmp_path / "out", tmp_path / "work"
    both = ("--output-spaces", "T1w", "MNI152NLin2009cAsym:res-2")
    assert run(two_spaces, out, work, *both) == 1
    assert rows_and_maps(out, "T1w") == (24, 24)
    assert "both would have the trial table sub-01/func/sub-01_task-x_trials.tsv" in capsys.readouterr().err
    assert not list(out.rglob("*space-MNI*statmap*"))
    assert run(two_spaces, out, work, "--dry-run", *both) == 1  # a dry run says so, too
    # the other space alone, later: the finished fit's table stays
    assert run(two_spaces, out, work, *both[:1], both[2]) == 65
    assert rows_and_maps(out, "T1w") == (24, 24)


def test_spaces_with_the_same_runs_share_their_table(two_spaces, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    both = ("--output-spaces", "T1w", "MNI152NLin2009cAsym:res-2", "--run-label", "1", "3")
    assert run(two_spaces, out, work, *both) == 0
    for space in ("T1w", "MNI152NLin2009cAsym_res-2"):
        assert rows_and_maps(out, space) == (16, 16)


def test_a_fit_made_anew_takes_the_files_of_its_former_self_away(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    root = make_dataset(tmp_path / "data")
    assert run(root, out, work, "--glm-types", "B", "D") == 0
    func = out / "sub-01" / "func"
    betas = func / "sub-01_task-x_space-T1w_stat-effect_desc-typeB_statmap.nii.gz"
    design = func / "sub-01_task-x_run-3_desc-glmsingle_design.tsv"
    # the same settings and data, other types: what is there stays right
    betas.with_name(betas.name.replace("typeB", "typeD")).unlink()
    assert run(root, out, work, "--glm-types", "D") == 0
    assert betas.is_file()
    assert design.is_file()
    # other data, then other settings
    assert run(root, out, work, "--glm-types", "B", "--run-label", "1", "2") == 0
    assert not design.exists()
    assert not design.with_suffix(".json").exists()
    assert list(func.glob("*psn*"))
    assert run(root, out, work, "--glm-types", "D", "--psn", "off", "--overwrite") == 0
    assert not list(func.glob("*psn*"))
    assert not betas.exists()
    assert design.is_file()
    assert rows_and_maps(out, "T1w") == (24, 24)


def test_a_fit_that_breaks_off_while_it_is_written_anew_has_no_record(tmp_path, monkeypatch):
    from conform_app.bids import derivatives

    out, work = tmp_path / "out", tmp_path / "work"
    root = make_dataset(tmp_path / "data", n_runs=2)
    assert run(root, out, work) == 0
    assert len(list(out.rglob("log/fits/*.json"))) == 1

    def fail(*_, **__):
        raise OSError("the disk went away")

    monkeypatch.setattr(derivatives, "_write_reliability", fail)
    assert run(root, out, work, "--overwrite", "--n-pcs", "1") == 1
    assert not list(out.rglob("log/fits/*.json"))
