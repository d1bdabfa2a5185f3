# SPDX-License-Identifier: Apache-2.0
"""The participant level as its user runs it, on measured data and on small data of each kind of image."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import HAXBY
from small_dataset import CONDITIONS, SHAPE, TR, bold_files, make_dataset, write_json

from conform_app.cli import main

FUNC = "sub-01/func/sub-01_task-objectviewing"
REPO = Path(__file__).parents[1]


def run(*argv):
    return main([str(word) for word in argv])


def products(out):
    """Files of a run that are the same in every run: without logs of the call, and what pandoc would make."""
    names = [str(p.relative_to(out)) for p in sorted(out.rglob("*")) if p.is_file()]
    names = [re.sub(r"configuration-[0-9a-f]+", "configuration-HASH", name) for name in names]
    return [name for name in names if not re.search(r"/log/\d{8}|CITATION\.(html|tex)$", name)]


@pytest.mark.end_to_end
def test_haxby_writes_exactly_the_expected_files(haxby_run):
    expected = (REPO / "tests" / "data" / "haxby_outputs.txt").read_text().split()
    assert products(haxby_run) == expected


@pytest.mark.end_to_end
def test_haxby_output_is_valid_bids(haxby_run, validate):
    assert validate(haxby_run) == []


@pytest.mark.end_to_end
def test_rows_of_the_trial_table_are_the_volumes_of_the_betas(haxby_run):
    trials = pd.read_csv(haxby_run / f"{FUNC}_trials.tsv", sep="\t")
    betas = nib.load(haxby_run / f"{FUNC}_space-func_stat-effect_desc-typeD_statmap.nii.gz")
    means = nib.load(haxby_run / f"{FUNC}_space-func_stat-effect_desc-condmean_statmap.nii.gz")
    assert betas.shape == (40, 20, 1, 96) == (*betas.shape[:3], len(trials))
    conditions = pd.read_csv(haxby_run / f"{FUNC}_conditions.tsv", sep="\t")
    assert list(conditions["n_trials"]) == [12] * 8
    values = betas.get_fdata()
    for number, stim in enumerate(conditions["stim_id"]):
        mean = values[..., (trials["stim_id"] == stim).to_numpy()].mean(axis=-1)
        np.testing.assert_allclose(means.get_fdata()[..., number], mean, rtol=1e-4, atol=1e-5)
    residual = nib.load(haxby_run / f"{FUNC}_space-func_stat-residual_desc-psn_statmap.nii.gz").get_fdata()
    denoised = nib.load(haxby_run / f"{FUNC}_space-func_stat-effect_desc-psn_statmap.nii.gz").get_fdata()
    where = trials["condition"].to_numpy() - 1
    values = nib.load(haxby_run / f"{FUNC}_space-func_stat-effect_desc-typeB_statmap.nii.gz").get_fdata()
    np.testing.assert_allclose(residual + denoised[..., where], values, rtol=1e-4, atol=1e-4)


@pytest.mark.end_to_end
def test_maps_are_zero_outside_the_mask_and_finite_inside(haxby_run):
    mask = nib.load(haxby_run / f"{FUNC}_space-func_desc-brain_mask.nii.gz").get_fdata() > 0
    assert mask.sum() == 462
    for path in haxby_run.rglob("*_statmap.nii.gz"):
        data = nib.load(path).get_fdata()
        assert (data[~mask] == 0).all(), path.name
        assert np.isfinite(data[mask]).all(), path.name


@pytest.mark.end_to_end
def test_every_sidecar_names_sources_settings_and_software(haxby_run):
    digests = set()
    for path in haxby_run.rglob("func/*.json"):
        content = json.loads(path.read_text())
        assert content["Description"]
        assert content["SoftwareVersions"]
        assert content["Sources"]
        assert all(uri.startswith(("bids:raw:", "bids:fmriprep:")) for uri in content["Sources"])
        assert not any("confounds" in uri for uri in content["Sources"]), "no confounds were used"
        digests.add(content["ConfigurationHash"])
    description = json.loads((haxby_run / "dataset_description.json").read_text())
    assert digests == {description["GeneratedBy"][0]["ConfigurationHash"]}


@pytest.mark.end_to_end
def test_report_and_methods_text_are_there(haxby_run):
    page = (haxby_run / "sub-01.html").read_text()
    figures = re.findall(r'src="(sub-01/figures/[^"]+)"', page) or re.findall(
        r'(?:src|data)="([^"]+\.svg)"', page
    )
    assert len(figures) >= 10
    assert all((haxby_run / figure).is_file() for figure in figures)
    assert "not made by fMRIPrep" in page
    text = (haxby_run / "logs" / "CITATION.md").read_text()
    keys = set(re.findall(r"@([a-z0-9]+)", text))
    entries = set(re.findall(r"@\w+\{(\w+)", (haxby_run / "logs" / "CITATION.bib").read_text()))
    assert keys == entries
    assert "96 trials" in text


@pytest.mark.end_to_end
def test_a_finished_fit_is_not_computed_again_when_the_work_folder_is_lost(haxby_run, tmp_path, capsys):
    betas = haxby_run / f"{FUNC}_space-func_stat-effect_desc-typeD_statmap.nii.gz"
    before = betas.stat().st_mtime_ns
    assert run(HAXBY, haxby_run, "participant", "-w", tmp_path / "new") == 0
    assert "not computed again" in capsys.readouterr().err
    assert betas.stat().st_mtime_ns == before


@pytest.mark.end_to_end
def test_other_settings_into_the_same_folder_are_refused(haxby_run, tmp_path, capsys):
    assert run(HAXBY, haxby_run, "participant", "-w", tmp_path, "--psn", "wiener") == 73
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "psn" in last
    assert "--overwrite" in last


@pytest.mark.end_to_end
def test_reports_only_needs_no_input_data(haxby_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(haxby_run, out)
    (out / "sub-01.html").unlink()
    assert run(tmp_path / "gone", out, "participant", "--reports-only") == 0
    assert (out / "sub-01.html").is_file()


@pytest.mark.end_to_end
def test_dry_run_lists_the_fit_and_writes_nothing(tmp_path, capsys):
    assert run(HAXBY, tmp_path / "out", "participant", "--dry-run") == 0
    table = capsys.readouterr().out
    assert re.search(r"01 +- +objectviewing +func +12 +96 +8 +12 +462", table)
    assert not (tmp_path / "out").exists()


@pytest.mark.end_to_end
def test_two_equal_runs_give_equal_bytes_whatever_the_processes(tmp_path):
    data = make_dataset(tmp_path / "ds", subjects=("01", "02"))
    common = ("--skip-bids-validation", "--sloppy")
    assert run(data, tmp_path / "a", "participant", "-w", tmp_path / "wa", "--nprocs", "1", *common) == 0
    assert run(data, tmp_path / "b", "participant", "-w", tmp_path / "wb", "--nprocs", "2", *common) == 0
    names = [n for n in products(tmp_path / "a") if n.endswith((".nii.gz", ".tsv", ".h5")) or "/func/" in n]
    assert len(names) > 40
    assert products(tmp_path / "a") == products(tmp_path / "b")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.end_to_end
def test_participants_run_at_once_into_one_folder_as_one_after_the_other(tmp_path, validate):
    data = make_dataset(tmp_path / "ds", subjects=("01", "02", "03"), n_runs=2)

    def one(label):
        command = [sys.executable, "-m", "conform_app", data, tmp_path / "out", "participant", "--sloppy"]
        command += ["--participant-label", label, "-w", tmp_path / "work", "--nprocs", "1"]
        env = os.environ | {"PYTHONPATH": str(REPO)}
        return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(one, ("01", "02", "03")))
    assert [d.returncode for d in done] == [0, 0, 0], [d.stderr for d in done]
    assert validate(tmp_path / "out") == []
    assert run(data, tmp_path / "serial", "participant", "--sloppy", "-w", tmp_path / "w2") == 0
    assert products(tmp_path / "out") == products(tmp_path / "serial")


@pytest.mark.end_to_end
def test_one_bad_subject_does_not_stop_the_others(tmp_path, capsys):
    data = make_dataset(tmp_path / "ds", subjects=("01", "02"), n_runs=2)
    events = next((data / "sub-02").rglob("*_events.tsv"))
    events.write_text(events.read_text() + "9000\t1\tface\n")
    assert run(data, tmp_path / "out", "participant", "--sloppy", "-w", tmp_path / "w") == 1
    said = capsys.readouterr().err
    assert events.name in said
    assert (tmp_path / "out" / "sub-01.html").is_file()
    assert events.name in (tmp_path / "out" / "sub-02.html").read_text()
    status = json.loads(next((tmp_path / "out" / "sub-02" / "log").rglob("status.json")).read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 65)
    assert run(data, tmp_path / "o2", "participant", "--stop-on-first-crash", "-w", tmp_path / "w") == 65


@pytest.mark.end_to_end
def test_crash_in_a_step_is_reported_with_its_code(tmp_path, capsys):
    data = make_dataset(tmp_path / "ds", n_runs=2)
    for path in data.rglob("*confounds_timeseries.tsv"):
        path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    assert run(data, tmp_path / "out", "participant", "--confounds", "motion6", "-w", tmp_path / "w") == 65
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "desc-confounds_timeseries.tsv" in last
    assert "exit code 65" in last


@pytest.mark.end_to_end
def test_confounds_with_a_missing_first_row_and_sessions(tmp_path, validate):
    data = make_dataset(tmp_path / "ds", sessions=("a", "b"), n_runs=2)
    options = ("--confounds", "motion6", "framewise_displacement", "--fit-level", "subject", "--sloppy")
    assert run(data, tmp_path / "out", "participant", *options, "-w", tmp_path / "w") == 0
    trials = pd.read_csv(tmp_path / "out" / "sub-01" / "func" / "sub-01_task-x_trials.tsv", sep="\t")
    assert sorted(set(trials["session"])) == ["a", "b"]
    assert validate(tmp_path / "out") == []


@pytest.mark.end_to_end
def test_without_repeats_the_fallback_is_announced_and_can_be_forced_or_refused(tmp_path, capsys):
    data = make_dataset(tmp_path / "ds", repeats=False)
    work = ("-w", tmp_path / "w", "--sloppy")
    assert run(data, tmp_path / "b", "participant", *work) == 0
    assert "only types A and B" in capsys.readouterr().err
    name = "sub-01/func/sub-01_task-x_space-T1w_stat-effect_desc-{}_statmap.nii.gz"
    assert (tmp_path / "b" / name.format("typeB")).is_file()
    assert not (tmp_path / "b" / name.format("typeD")).exists()
    assert "only types A and B" in (tmp_path / "b" / "sub-01.html").read_text()
    assert run(data, tmp_path / "d", "participant", *work, "--no-repeats", "fixed") == 0
    assert (tmp_path / "d" / name.format("typeD")).is_file()
    assert run(data, tmp_path / "e", "participant", *work, "--no-repeats", "error") == 65


@pytest.mark.end_to_end
@pytest.mark.parametrize("kind", ["gifti", "cifti"])
def test_surfaces_and_grayordinates_give_the_betas_of_the_volume(tmp_path, validate, kind):
    """The same time series as voxels, vertices and grayordinates; sidecars of surfaces lack TR and task."""
    data = make_dataset(tmp_path / "ds", n_runs=2)
    keep = np.zeros(SHAPE, bool)
    keep[1:] = True
    half = int(keep.sum()) // 2
    for path in bold_files(data):
        series = np.asarray(nib.load(path).dataobj)[keep]
        stem = str(path).split("_space-")[0]
        if kind == "gifti":
            for hemi, part in (("L", series[:half]), ("R", series[half:])):
                arrays = [
                    nib.gifti.GiftiDataArray(column, intent="NIFTI_INTENT_TIME_SERIES") for column in part.T
                ]
                name = f"{stem}_hemi-{hemi}_space-fsaverage5_bold.func.gii"
                structure = {"L": "CortexLeft", "R": "CortexRight"}[hemi]
                image = nib.gifti.GiftiImage(darrays=arrays)
                image.meta["AnatomicalStructurePrimary"] = structure
                nib.save(image, name)
                write_json(Path(name.removesuffix(".func.gii") + ".json"), {})
        else:
            axis = nib.cifti2.BrainModelAxis.from_surface(np.arange(half), half + 5, "CortexLeft")
            axis += nib.cifti2.BrainModelAxis.from_surface(
                np.arange(len(series) - half), half + 5, "CortexRight"
            )
            time = nib.cifti2.SeriesAxis(0, TR, series.shape[1])
            image = nib.Cifti2Image(series.T, header=(time, axis))
            nib.save(image, f"{stem}_space-fsLR_den-91k_bold.dtseries.nii")
            write_json(Path(f"{stem}_space-fsLR_den-91k_bold.json"), {"Density": "91k"})
    space = {"gifti": "fsaverage:den-10k", "cifti": "fsLR:den-91k"}[kind]
    options = ("--output-spaces", "T1w", space, "--sloppy", "--nprocs", "1", "-w", tmp_path / "w")
    assert run(data, tmp_path / "out", "participant", *options) == 0
    func = tmp_path / "out" / "sub-01" / "func"
    volume = nib.load(func / "sub-01_task-x_space-T1w_stat-effect_desc-typeD_statmap.nii.gz").get_fdata()[
        keep
    ]
    if kind == "gifti":
        name = "sub-01_task-x_hemi-{}_space-fsaverage_den-10k_stat-effect_desc-typeD_statmap.func.gii"
        parts = [np.stack([d.data for d in nib.load(func / name.format(h)).darrays], axis=1) for h in "LR"]
        found = np.concatenate(parts)
    else:
        image = nib.load(func / "sub-01_task-x_space-fsLR_den-91k_stat-effect_desc-typeD_statmap.dscalar.nii")
        found = image.get_fdata().T
        assert image.header.get_axis(0).name[0].startswith("1 ")
    np.testing.assert_allclose(found, volume, rtol=1e-5, atol=1e-6)
    assert validate(tmp_path / "out") == []


@pytest.mark.end_to_end
def test_a_trial_cut_off_by_the_end_of_its_run_has_no_beta_and_harms_no_other(tmp_path, capsys):
    data = make_dataset(tmp_path / "ds", n_runs=3)
    events = sorted(data.rglob("*_events.tsv"))[0]
    events.write_text(events.read_text() + f"119.5\t1.5\t{CONDITIONS[0]}\n")
    assert run(data, tmp_path / "out", "participant", "--sloppy", "-w", tmp_path / "w") == 0
    func = tmp_path / "out" / "sub-01" / "func"
    betas = nib.load(func / "sub-01_task-x_space-T1w_stat-effect_desc-typeD_statmap.nii.gz").get_fdata()[1:]
    assert np.isnan(betas[..., 8]).all()
    assert np.isfinite(np.delete(betas, 8, axis=-1)).all()
    for name in ("stat-effect_desc-condmean", "stat-effect_desc-psn", "stat-ncsnr_desc-typeD"):
        data = nib.load(func / f"sub-01_task-x_space-T1w_{name}_statmap.nii.gz").get_fdata()
        assert np.isfinite(data).all(), name


@pytest.mark.end_to_end
def test_a_derivative_alone_finds_its_events_and_a_plugin_file_is_used(tmp_path):
    data = make_dataset(tmp_path / "ds", n_runs=2)
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: MultiProc\nplugin_args: {n_procs: 2}\n")
    argv = (
        data / "derivatives" / "fmriprep",
        tmp_path / "out",
        "participant",
        "-w",
        tmp_path / "w",
        "--sloppy",
    )
    assert run(*argv, "--use-plugin", plugin, "--bids-database-dir", tmp_path / "db") == 0
    assert (tmp_path / "out" / "sub-01.html").is_file()
    plugin.write_text("MultiProc\n")
    assert run(*argv, "--use-plugin", plugin, "--overwrite") == 64


@pytest.mark.end_to_end
def test_a_second_run_on_the_same_participant_waits_its_turn(tmp_path, capsys):
    from conform_app.workflows.execute import locked

    data = make_dataset(tmp_path / "ds", n_runs=2)
    with locked(tmp_path / "w", ["01"]):
        assert run(data, tmp_path / "out", "participant", "-w", tmp_path / "w", "--sloppy") == 75
    assert "Another run" in capsys.readouterr().err.strip().splitlines()[-1]
    status = json.loads(next((tmp_path / "out").rglob("status.json")).read_text())
    assert status["state"] == "interrupted"
    assert run(data, tmp_path / "out", "participant", "-w", tmp_path / "w", "--sloppy") == 0


@pytest.mark.end_to_end
def test_invalid_bids_stops_unless_validation_is_skipped(tmp_path, capsys, validate):
    data = make_dataset(tmp_path / "ds", n_runs=2)
    (data / "sub-01" / "func" / "sub-01_task-x_nonsense.nii.gz").write_bytes(b"")
    assert len(validate(data)) > 0
    assert run(data, tmp_path / "out", "participant", "-w", tmp_path / "w") == 16
    assert "--skip-bids-validation" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        run(data, tmp_path / "out", "participant", "-w", tmp_path / "w", "--sloppy", "--skip-bids-validation")
        == 0
    )


REAL = os.environ.get("CONFORM_TEST_DATA")


@pytest.mark.end_to_end
@pytest.mark.skipif(REAL is None, reason="CONFORM_TEST_DATA names no folder with the larger data")
@pytest.mark.parametrize(
    ("name", "options", "n_trials", "n_voxels"),
    [("pyhrf-localizer", (), 80, 6443), ("studyforrest-localizer", ("--block-column", "block"), 12, 65831)],
)
def test_single_runs_of_other_labs_end_at_type_b_and_say_so(
    tmp_path, validate, name, options, n_trials, n_voxels
):
    data = Path(REAL) / "data" / "real" / f"{name}-bids"
    assert run(data, tmp_path / "out", "participant", "-w", tmp_path / "w", *options) == 0
    assert validate(tmp_path / "out") == []
    record = json.loads(next(tmp_path.rglob("log/fits/*.json")).read_text())
    assert record["fit"]["types"] == ["A", "B"]
    assert (record["fit"]["n_trials"], record["fit"]["n_voxels"]) == (n_trials, n_voxels)
    page = next((tmp_path / "out").glob("sub-*.html")).read_text()
    assert "not made by fMRIPrep" in page
    assert "Nothing can be cross-validated" in page
    betas = nib.load(next((tmp_path / "out").rglob("*desc-typeB_statmap.nii.gz")))
    assert betas.shape[-1] == n_trials or "effect" not in betas.get_filename()
