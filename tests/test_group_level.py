# SPDX-License-Identifier: Apache-2.0
"""The group level as its user runs it: six participants of three studies, from their outputs alone."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from group_sites import NAMES, copy_of, edit_record, files_of, group, state, store, table

from conform_app.cli import main

pytestmark = pytest.mark.end_to_end
pytest.importorskip("zarr")

REPO = Path(__file__).parents[1]


def test_everybody_is_merged_and_the_betas_are_those_of_the_participants(sites, merged):
    from conform_app.mosaic.collection import Collection

    assert {v[:2] for v in state(merged).values()} == {("compatible", "true")}
    collection = Collection.open(store(merged))
    assert len(collection.participants) == 6
    func = sites / "results" / "Alpha" / "sub-01" / "ses-b" / "func"
    stem = "sub-01_ses-b_task-x"
    image = nib.load(func / f"{stem}_space-fsLR_den-91k_stat-effect_desc-typeD_statmap.dscalar.nii")
    trials = pd.read_csv(func / f"{stem}_trials.tsv", sep="\t")
    betas = image.get_fdata()
    train = betas[trials["split"] == "train"]
    expected = (betas - train.mean(axis=0)) / train.std(axis=0, ddof=1)
    rows = collection.select("sub-01_Alpha", session="b")
    np.testing.assert_allclose(collection.betas("sub-01_Alpha", rows), expected, rtol=1e-4, atol=1e-4)
    names = collection.trials("sub-01_Alpha").iloc[rows]["name"].tolist()
    assert names == trials["stim_id"].tolist()


@pytest.mark.parametrize("scale", ["z", "percent"])
def test_denoised_averages_are_pooled_over_fits_by_trials(sites, merged, tmp_path, scale):
    from conform_app.mosaic.collection import Collection

    out = merged
    if scale == "percent":
        out = tmp_path / "out"
        assert group(sites, sites, out, "--average-scale", scale, names=("Alpha",), features=False) == 0
    collection = Collection.open(store(out))
    names, values = collection.averages("sub-02_Alpha")
    fits, mean, sd = collection.statistics("sub-02_Alpha")
    record = collection.record("sub-02_Alpha")
    assert record["averages"] == "PSN of betas of type B"
    assert record["averages_units"].startswith("z scores" if scale == "z" else "percent signal change")
    sums, weights = np.zeros(values.shape), np.zeros(len(names))
    for session in "ab":
        fit = fits.index(f"ses-{session}_task-x")
        shift, factor = (mean[fit], sd[fit]) if scale == "z" else (0.0, 1.0)
        func = sites / "results" / "Alpha" / "sub-02" / f"ses-{session}" / "func"
        stem = f"sub-02_ses-{session}_task-x"
        image = nib.load(func / f"{stem}_space-fsLR_den-91k_stat-effect_desc-psn_statmap.dscalar.nii")
        conditions = pd.read_csv(func / f"{stem}_conditions.tsv", sep="\t")
        for row, (stim, n) in enumerate(zip(conditions["stim_id"], conditions["n_trials"], strict=True)):
            place = names.tolist().index(stim)
            sums[place] += n * (image.dataobj[row] - shift) / factor
            weights[place] += n
    np.testing.assert_allclose(values, sums / weights[:, None], rtol=1e-4, atol=1e-5)


def test_one_stimulus_under_several_names_and_no_leak(merged):
    stimuli = table(merged, "stimuli").set_index("stimulus")
    assert stimuli.loc["alpha00.png", "names"] == "Alpha/alpha00.png, Gamma/g1.png"  # equal files
    assert stimuli.loc["shared00.png", "datasets"] == "Alpha, Beta"  # one name
    assert set(stimuli.loc[["shared00.png", "shared01.png"], "split"]) == {"test"}  # more test trials
    assert stimuli.loc["beta-near.png", "split"] == "excluded"
    trials = table(merged, "trials")
    sides = trials[trials["split"].isin(["train", "test"])].groupby("stimulus")["split"].nunique()
    assert sides.max() == 1
    summary = json.loads((merged / "group" / "desc-mosaic_summary.json").read_text())
    assert summary["audit"]["max_similarity"] <= 0.8196 < summary["audit"]["max_similarity_before"]
    split = json.loads((merged / "group" / "desc-mosaic_split.json").read_text())
    assert {len(row) for row in split["train_naturalistic"]} == {1}


def test_a_study_without_a_split_gets_one_that_all_its_participants_share(merged):
    trials = table(merged, "trials")
    own = trials[trials["dataset"] == "Gamma"].groupby("name")["phase"].nunique()
    assert own.max() == 1
    assert set(trials[trials["dataset"] == "Gamma"]["phase"]) == {"train", "test"}


def test_methodology_says_what_is_known_and_what_is_missing(merged):
    rows = table(merged, "methodology").set_index(["participant", "session"])
    alpha, gamma = rows.loc[("sub-01_Alpha", "a")], rows.loc[("sub-02_Gamma", "n/a")]
    assert (alpha["MagneticFieldStrength"], alpha["RepetitionTime"], alpha["VisualAngle"]) == (
        "7",
        "1.6",
        "8.4",
    )
    assert (alpha["MultibandAccelerationFactor"], alpha["SliceTiming"]) == ("3", "interleaved")
    assert alpha["VoxelSize"] == "1.8 x 1.8 x 1.8"
    assert alpha["missing_required"] == "n/a"
    assert "EchoTime" in gamma["missing_required"]
    assert float(gamma["complete_required"]) < float(alpha["complete_required"]) == 1
    missing = table(merged, "missing").set_index("field")
    assert missing.loc["EchoTime", "datasets"] == "Gamma"
    variance = table(merged, "variance").set_index(["outcome", "field"])
    assert variance.loc[("beta scale", "dataset"), "df_residual"] == "3"
    assert variance.loc[("beta scale", "VoxelSize"), "note"].startswith("no degree of freedom")


def test_a_session_that_does_not_say_a_fact_makes_no_fact_of_its_own():
    from conform_app.collect.seal import _over_sessions

    assert _over_sessions(["7", "n/a", "7"]) == _over_sessions(["7"]) == "7"
    assert _over_sessions(["GE", "n/a", "Siemens"]) == "GE | Siemens"
    assert _over_sessions(["n/a", "n/a"]) == "n/a"
    assert _over_sessions(["1.5", "2.5"]) == "2"


def test_report_shows_every_figure_it_names(merged):
    page = (merged / "group.html").read_text()
    for path in (merged / "group" / "figures").iterdir():
        assert path.name in page
    for word in ("beta-near.png", "SliceTiming", "sub-01_Alpha", ".zarr"):
        assert word in page
    before = (merged / "group.html").read_bytes()
    assert main([str(merged.parent / "x"), str(merged), "group", "--reports-only"]) == 0
    after = (merged / "group.html").read_bytes()
    assert len(after) == len(before)


def test_outputs_are_named_in_the_table(merged):
    from fnmatch import fnmatch

    from conform_app.bids.naming import group_name, group_products

    names = [group_name(key, "fsLR:den-91k") for key in group_products()]
    found = [
        p.relative_to(merged).as_posix()
        for p in (merged / "group").iterdir()
        if p.suffix in (".tsv", ".zarr")
    ]
    assert {n for n in names if n.endswith((".tsv", ".zarr"))} == set(found)
    hdf5 = [p.relative_to(merged).as_posix() for p in (merged / "group" / "hdf5").iterdir()]
    assert len(hdf5) == 6
    assert all(fnmatch(name, group_name("hdf5")) for name in hdf5)


def test_the_folder_is_valid_bids(merged, validate):
    assert validate(merged) == []


def test_running_again_changes_nothing(sites, merged, capsys):
    before = files_of(store(merged))
    assert group(sites, sites, merged) == 0
    assert "sub-01_Alpha: unchanged" in capsys.readouterr().err
    assert files_of(store(merged)) == before


def test_a_study_added_later_leaves_the_others_as_they_are(sites, tmp_path):
    out = tmp_path / "out"
    assert group(sites, sites, out, names=NAMES[:2]) == 0
    before = files_of(store(out) / "participants")
    assert group(sites, sites, out) == 0
    after = files_of(store(out) / "participants")
    assert {name: after[name] for name in before} == before
    assert len(state(out)) == 6
    manifest = json.loads((store(out) / "manifest.json").read_text())
    assert manifest["version"] == 2
    assert manifest["history"][1]["added"] == ["sub-01_Gamma", "sub-02_Gamma"]


def test_a_later_call_that_names_only_the_new_study_loses_nothing_of_the_others(sites, merged, tmp_path):
    out = tmp_path / "out"
    assert group(sites, sites, out, names=NAMES[:2]) == 0
    assert group(sites, sites, out, names=NAMES[2:]) == 0
    earlier = ["sub-01_Alpha", "sub-02_Alpha", "sub-01_Beta", "sub-02_Beta"]
    for name, key in (
        ("trials", ["participant", "unit", "run", "onset"]),
        ("methodology", ["participant", "session"]),
        ("participants", ["participant"]),
        ("stimuli", ["stimulus"]),
        ("variance", ["outcome", "field"]),
        ("missing", ["field"]),
    ):
        found, expected = (table(o, name).set_index(key).sort_index() for o in (out, merged))
        assert set(found.index) == set(expected.index)
        if name == "participants":
            assert set(found.loc[earlier, "reason"]) == {
                "merged by an earlier call; not among the participants of this one"
            }
            found, expected = found.drop(columns="reason"), expected.drop(columns="reason")
        if name == "missing":  # in the order of the calls
            found, expected = (t.assign(datasets=t["datasets"].map(len)) for t in (found, expected))
        if name != "stimuli":  # whose order, and so the name of what two studies share, is that of the calls
            pd.testing.assert_frame_equal(found[expected.columns], expected)
            continue
        assert found["n_trials"].tolist() == expected["n_trials"].tolist()
        assert (found["n_trials"].astype(int) > 0).all()
    from conform_app.mosaic.collection import Collection

    assert len(Collection.open(store(out)).table("methodology")) == len(table(merged, "methodology"))


def test_one_job_a_participant_and_a_last_one_that_seals(sites, merged, tmp_path):
    """Jobs at once, each a process of its own, then the seal: as one call."""
    out = tmp_path / "out"
    common = [sys.executable, "-m", "conform_app", str(tmp_path / "none"), str(out), "group", "--nprocs", "1"]
    common += ["-w", str(tmp_path / "work"), "-d"]
    common += [f"conform_{name}={sites / 'results' / name}" for name in NAMES]
    common += ["--stimuli", *(f"{name}={sites / 'bids' / name / 'stimuli'}" for name in NAMES)]
    common += ["--features", str(sites / "features.npz"), "--merge-step"]

    def job(key):
        env = os.environ | {"PYTHONPATH": str(REPO)}
        command = [*common, "participants", "--participant-label", key]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    keys = ["sub-01_Alpha", "sub-02_Alpha", "sub-01_Beta", "02"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(job, keys))
    assert [d.returncode for d in done] == [0] * 4, [d.stderr for d in done]
    assert not (store(out) / "manifest.json").exists()
    assert main([*common[3:], "seal"]) == 0
    assert {k for k, v in state(out).items() if v[1] == "true"} == set(state(merged)) - {"sub-01_Gamma"}
    for key in ("sub-01_Alpha", "sub-02_Gamma"):
        one, other = (store(o) / "participants" / key / "betas" for o in (out, merged))
        names = [p.relative_to(one) for p in one.rglob("*") if p.is_file()]
        assert names
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_split_and_names_can_be_given(sites, tmp_path):
    rows = [f"Gamma\tgamma{i:02d}.png\t{'test' if i < 2 else 'train'}" for i in range(6)]
    rows += ["Gamma\tg1.png\ttrain", "Gamma\tg2.png\tartificial"]
    (tmp_path / "split.tsv").write_text("\n".join(["dataset\tstim_id\tsplit", *rows]) + "\n")
    (tmp_path / "names.tsv").write_text("dataset\tstim_id\tname\nGamma\tg1.png\talpha00.png\n")
    more = ("--split", tmp_path / "split.tsv", "--aliases", tmp_path / "names.tsv")
    out = tmp_path / "out"
    assert group(sites, sites, out, *more, names=("Gamma",), stimuli=False, features=False) == 0
    stimuli = table(out, "stimuli").set_index("stimulus")["split"]
    assert set(stimuli[stimuli == "test"].index) == {"gamma00.png", "gamma01.png"}
    assert stimuli["g2.png"] == "artificial"
    assert stimuli["alpha00.png"] == "train"
    assert set(table(out, "trials").query("name == 'alpha00.png'")["alias"]) == {"g1.png"}


def test_one_picture_under_two_spellings_is_told(sites, tmp_path, capsys):
    results = copy_of(sites, tmp_path, "Alpha", "Beta")
    for path in (results / "results" / "Beta").rglob("*_trials.tsv"):
        path.write_text(path.read_text().replace("\tshared00.png", "\tstimuli/Shared00.PNG"))
    out = tmp_path / "out"
    assert group(sites, results, out, names=NAMES[:2], features=False, stimuli=False) == 0
    said = "Alpha/shared00.png, Beta/stimuli/Shared00.PNG; 1 of them is in train and in test"
    assert said in capsys.readouterr().err
    assert said in (out / "group.html").read_text()


def test_a_recipe_says_how_its_test_set_is_found(sites, tmp_path, capsys):
    results = copy_of(sites, tmp_path, "Gamma")

    def recipe(record):
        record["study"] |= {"own_split_rule": "shared", "own_split_list": "images.csv, column shared"}

    for subject in ("01", "02"):
        edit_record(results, "Gamma", subject, recipe)
    alone = ("Gamma",)
    assert group(sites, results, tmp_path / "a", names=alone, stimuli=False, features=False) == 65
    said = capsys.readouterr().err
    assert "Gamma: its test set are the stimuli that several participants saw" in said
    assert "images.csv, column shared: give it with --split" in said
    more = ("--split-rule", "stimulus")
    assert group(sites, results, tmp_path / "b", *more, names=alone, stimuli=False, features=False) == 0
    assert "not its own. The list of its test set is images.csv" in capsys.readouterr().err
    for path in (results / "results" / "Gamma" / "sub-02").rglob("*_trials.tsv"):
        path.write_text(path.read_text().replace("gamma", "own"))  # what two saw is g1.png and g2.png now
    out = tmp_path / "c"
    assert group(sites, results, out, names=alone, stimuli=False, features=False) == 0
    stimuli = table(out, "stimuli").set_index("stimulus")["split"]
    assert set(stimuli[stimuli == "test"].index) == {"g1.png", "g2.png"}


def test_other_space_is_refused_with_the_reason(sites, tmp_path):
    out = tmp_path / "out"
    assert group(sites, sites, out, "--pool-space", "fsaverage") == 0
    found = state(out)
    assert found["sub-01_Gamma"][:2] == ("compatible", "true")
    assert found["sub-01_Alpha"] == (
        "refused", "false", "its betas are in fsLR:den-91k, the collection is in fsaverage:den-10k",
    )  # fmt: skip
    assert len(table(out, "trials")["participant"].unique()) == 6, "tables are merged all the same"


def test_made_another_way_is_compliant_and_merged_on_request_only(sites, tmp_path, capsys):
    results = copy_of(sites, tmp_path)

    def older(record):
        record["software"]["CONFORM"] = "0.0.3"
        record["settings"]["model"]["n_pcs"] = 5

    edit_record(results, "Beta", "02", older)
    assert group(sites, results, tmp_path / "a") == 0
    status, there, reason = state(tmp_path / "a")["sub-02_Beta"]
    assert (status, there) == ("compliant", "false")
    assert "CONFORM 0.0, the others" in reason
    assert "n_pcs is 5" in reason
    assert "sub-02_Beta is compliant" in capsys.readouterr().err
    assert group(sites, results, tmp_path / "b", "--pool", "compliant") == 0
    assert state(tmp_path / "b")["sub-02_Beta"][1] == "true"


def test_dry_run_writes_nothing(sites, tmp_path, capsys):
    assert group(sites, sites, tmp_path / "out", "--dry-run") == 0
    assert "sub-02_Gamma" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_scale_of_betas_across_sites(sites, tmp_path, capsys):
    from conform_app.mosaic.collection import Collection

    out = tmp_path / "out"
    code = group(sites, sites, out, "--harmonise", "combat", features=False)
    said = capsys.readouterr().err
    if importlib.util.find_spec("combatlearn") is None:
        assert code == 66
        assert "combatlearn, which is not installed" in said
        assert not store(out).exists(), "found out before anything is written"
        return
    assert code == 0
    account = json.loads((out / "group" / "desc-mosaic_summary.json").read_text())["account"]
    assert any("harmonised over the sites Alpha (2), Beta (2), Gamma (2)" in text for text in account)
    assert any("Beta and Gamma share no stimulus" in text for text in account)
    collection = Collection.open(store(out))
    scale = collection.harmonised_scale("sub-01_Beta")
    z, b = (collection.betas("sub-01_Beta", harmonised=on) for on in (False, True))
    np.testing.assert_allclose(b, z * scale, rtol=1e-6)
