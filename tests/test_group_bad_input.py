# SPDX-License-Identifier: Apache-2.0
"""Bad input of the group level: who is refused, what is said, and that nothing is harmed."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from group_sites import NAMES, copy_of, files_of, group, state, store, table

from conform_app.cli import main

pytestmark = pytest.mark.end_to_end
pytest.importorskip("zarr")

REPO = Path(__file__).parents[1]


def test_nothing_to_merge(tmp_path, capsys):
    assert main([str(tmp_path / "x"), str(tmp_path / "out"), "group"]) == 66
    assert "no finished participant output" in capsys.readouterr().err


def test_participant_without_trial_table_or_with_another_length_is_refused_alone(sites, tmp_path, capsys):
    results = copy_of(sites, tmp_path)
    next((results / "results" / "Alpha" / "sub-01").rglob("*_trials.tsv")).unlink()
    path = next((results / "results" / "Beta" / "sub-01").rglob("*_trials.tsv"))
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    out = tmp_path / "out"
    assert group(sites, results, out) == 0
    found = state(out)
    assert "trial table is missing" in found["sub-01_Alpha"][2]
    assert "34 maps" not in found["sub-01_Beta"][2]
    assert "rows in the trial table" in found["sub-01_Beta"][2]
    assert {k for k, v in found.items() if v[1] == "true"} == {
        "sub-02_Alpha", "sub-02_Beta", "sub-01_Gamma", "sub-02_Gamma",
    }  # fmt: skip
    # one that was asked for by name fails, as a job of a cluster should
    asked = ("--merge-step", "participants", "--participant-label", "01_Alpha")
    capsys.readouterr()
    assert group(sites, results, tmp_path / "asked", *asked) == 65
    assert "sub-01_Alpha: it is refused:" in capsys.readouterr().err
    assert not store(tmp_path / "asked").exists()


def test_vertices_without_a_value_are_merged_and_on_record(sites, tmp_path):
    from conform_app.mosaic.collection import Collection

    results = copy_of(sites, tmp_path)
    path = next((results / "results" / "Gamma" / "sub-01").rglob("*fsLR*desc-typeD_statmap.dscalar.nii"))
    if "effect" not in path.name:
        path = next(p for p in path.parent.glob("*fsLR*stat-effect_desc-typeD*.dscalar.nii"))
    image = nib.load(path)
    data = image.get_fdata().astype(np.float32)
    data[:, 3] = np.nan
    nib.save(nib.Cifti2Image(data, header=image.header), path)
    assert group(sites, results, tmp_path / "out", names=("Gamma", "Alpha")) == 0
    collection = Collection.open(store(tmp_path / "out"))
    assert collection.record("sub-01_Gamma")["missing"]["vertices"] >= 1
    assert 3 not in collection.valid_vertices()
    assert np.isfinite(collection.betas("sub-01_Alpha")).all()


def test_as_many_points_elsewhere_are_refused(sites, tmp_path):
    results = copy_of(sites, tmp_path, "Gamma", "Beta")
    for path in (results / "results" / "Gamma" / "sub-02").rglob("*fsLR*stat-effect_desc-typeD*.dscalar.nii"):
        image = nib.load(path)
        maps, points = (image.header.get_axis(k) for k in (0, 1))
        half = len(points) // 2
        moved = nib.cifti2.BrainModelAxis.from_surface(np.arange(half) + 100, 32492, "CortexLeft")
        moved += nib.cifti2.BrainModelAxis.from_surface(np.arange(half) + 100, 32492, "CortexRight")
        nib.save(nib.Cifti2Image(image.get_fdata().astype(np.float32), header=(maps, moved)), path)
    out = tmp_path / "out"
    assert group(sites, results, out, names=("Beta", "Gamma")) == 0
    status, there, reason = state(out)["sub-02_Gamma"]
    assert (status, there) == ("refused", "false")
    assert "not those of sub-01_Beta" in reason
    # alone, it would be compared with nobody: the collection remembers its points
    grown = tmp_path / "grown"
    assert group(sites, results, grown, names=("Beta",)) == 0
    before = files_of(store(grown) / "participants")
    for path in (results / "results" / "Gamma").glob("sub-01*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert group(sites, results, grown, names=("Gamma",)) == 65
    status, there, reason = state(grown)["sub-02_Gamma"]
    assert (status, there) == ("refused", "false")
    assert "not those of the collection that is there" in reason
    assert files_of(store(grown) / "participants") == before


def test_two_datasets_with_one_name(sites, tmp_path, capsys):
    argv = ["x", str(tmp_path / "out"), "group", "-d", f"conform_A={sites / 'results' / 'Alpha'}"]
    assert main([*argv, f"a={sites / 'results' / 'Beta'}"]) == 64
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Two datasets are named" in said


def test_another_dataset_under_a_name_that_is_taken_harms_nothing(sites, tmp_path, capsys):
    out = tmp_path / "out"
    assert group(sites, sites, out, names=("Alpha",)) == 0
    before = files_of(store(out) / "participants")
    argv = ["x", str(out), "group", "-w", str(tmp_path / "w"), "--nprocs", "1"]
    assert main([*argv, "-d", f"conform_Alpha={sites / 'results' / 'Gamma'}"]) == 73
    assert "Alpha" in capsys.readouterr().err
    assert files_of(store(out) / "participants") == before


def test_one_name_with_different_content(sites, tmp_path, capsys):
    stimuli = tmp_path / "stimuli"
    shutil.copytree(sites / "bids" / "Beta" / "stimuli", stimuli)
    (stimuli / "shared00.png").write_bytes(b"another picture")
    more = ("--stimuli", f"Alpha={sites / 'bids' / 'Alpha' / 'stimuli'}", f"Beta={stimuli}")
    out = tmp_path / "out"
    code = group(sites, sites, out, *more, names=NAMES[:2], stimuli=False, features=False)
    said = capsys.readouterr().err
    assert code == 65
    assert "shared00.png" in said
    assert not (store(out) / "manifest.json").exists(), "nothing is sealed"
    again = (*more, "--same-name", "separate")
    assert group(sites, sites, out, *again, names=NAMES[:2], stimuli=False, features=False) == 0
    assert "Beta/shared00.png" in set(table(out, "stimuli")["stimulus"])


def test_half_written_participant_is_nobodys(sites, merged, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(merged, out)
    folder = store(out) / "participants" / ".incoming-sub-09_Alpha-0000"
    folder.mkdir()
    (folder / ".lock").write_bytes(b"")
    (folder / "trials.tsv").write_text("half")
    assert group(sites, sites, out) == 0
    assert not folder.exists()
    assert "sub-09_Alpha" not in state(out)


def test_disk_full_during_the_merge_harms_nothing(sites, merged, tmp_path):
    """A limit on the size of files stands for a full disk: the large files cannot be written to the end."""
    out = tmp_path / "out"
    assert group(sites, sites, out, names=("Gamma",), stimuli=False, features=False) == 0
    before = files_of(store(out) / "participants")
    command = [sys.executable, "-m", "conform_app", "x", out, "group", "-w", tmp_path / "w", "--nprocs", "1"]
    command += ["--merge-step", "participants", "-d"]
    command += [f"conform_{name}={sites / 'results' / name}" for name in NAMES[:2]]
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert done.returncode == 74, done.stderr
    assert "sub-01_Alpha" in done.stderr
    assert files_of(store(out) / "participants") == before
    assert group(sites, sites, out, stimuli=False, features=False) == 0
    assert len([v for v in state(out).values() if v[1] == "true"]) == 6


def test_participant_whose_output_is_gone_stays_until_it_is_removed(sites, tmp_path):
    results = copy_of(sites, tmp_path)
    out = tmp_path / "out"
    assert group(sites, results, out) == 0
    shutil.rmtree(results / "results" / "Alpha" / "sub-02")
    assert group(sites, results, out) == 0
    assert state(out)["sub-02_Alpha"][1] == "true"
    assert "sub-02_Alpha: in the collection, but not among" in (out / "group.html").read_text()
    assert group(sites, results, out, "--remove-participant", "sub-02_Alpha") == 0
    assert "sub-02_Alpha" not in state(out)
    assert group(sites, results, out, "--remove-participant", "sub-77_Alpha") == 18


def test_exported_files_of_the_gone_and_the_replaced_go(sites, tmp_path):
    results = copy_of(sites, tmp_path, "Gamma", "Alpha")
    out, names = tmp_path / "out", ("Gamma", "Alpha")
    assert group(sites, results, out, "--export-hdf5", names=names) == 0
    before = {path.name for path in (out / "group" / "hdf5").iterdir()}
    assert len(before) == 4
    path = next((results / "results" / "Gamma" / "sub-02").rglob("*fsLR*stat-effect_desc-typeD*.dscalar.nii"))
    image = nib.load(path)
    nib.save(nib.Cifti2Image(image.get_fdata(dtype=np.float32)[::-1].copy(), image.header), path)
    assert group(sites, results, out, "--overwrite", "--export-hdf5", names=names) == 0
    after = {path.name for path in (out / "group" / "hdf5").iterdir()}
    assert len(after) == 4
    assert {name[:12] for name in before - after} == {"sub-02_Gamma"}
    assert group(sites, results, out, "--remove-participant", "sub-01_Alpha", names=names) == 0
    left = {path.name[:12] for path in (out / "group" / "hdf5").iterdir()}
    assert left == {"sub-01_Gamma", "sub-02_Gamma", "sub-02_Alpha"}


def test_changed_participant_is_replaced_on_request_only(sites, tmp_path, capsys):
    results = copy_of(sites, tmp_path)
    out = tmp_path / "out"
    assert group(sites, results, out) == 0
    path = next((results / "results" / "Gamma" / "sub-02").rglob("*fsLR*stat-effect_desc-typeD*.dscalar.nii"))
    os.utime(path, (1, 1))
    before = files_of(store(out) / "participants")
    assert group(sites, results, out) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert files_of(store(out) / "participants") == before
    assert group(sites, results, out, "--overwrite") == 0


def test_measured_slice_has_no_space_to_share_and_its_tables_are_merged(haxby_run, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["x", str(out), "group", "-w", str(tmp_path / "w"), "-d", f"conform_Haxby={haxby_run}"]
    assert main(argv) == 65
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no space that participants could share" in said
    assert state(out)["sub-01_Haxby"][0] == "refused"
    assert len(table(out, "trials")) == 96
    assert set(table(out, "stimuli")["stimulus"]) >= {"face", "house"}
    assert not list(out.rglob("*.zarr"))
    assert "No betas were pooled" in (out / "group.html").read_text()
