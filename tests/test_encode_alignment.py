# SPDX-License-Identifier: Apache-2.0
"""Functional alignment at the group level: what is carried from whom, what may not leak, who is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from encode_cases import HALF, N_TRAIN, E, V, make_collection, make_job

from conform_app.braincorl import fit_aligned
from conform_app.encode import pieces
from conform_app.encode.aligning import open_aligner
from conform_app.encode.job import listing, methods_of, plan_encoding, write_job
from conform_app.encode.model import model_target
from conform_app.encode.pieces import alignment_pieces
from conform_app.encode.prepare import Prepared, open_prepared, prepared_folder
from conform_app.encode.seal import prepare_step, seal_encoding, target_step
from conform_app.encode.sharing import ALIGNED, contexts, shared_counts
from conform_app.errors import DataError
from conform_app.images import Grid, write_maps

pytest.importorskip("zarr")
KEY, OTHER, ALONE = "sub-01_ONE", "sub-02_ONE", "sub-01_TWO"
SPACE = "space-fsaverage_den-10k"
SHARED = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two participants who share train images, and one who shares none."""
    root = tmp_path_factory.mktemp("align")
    make_collection(root, shared=SHARED, constant=2)
    labels = ["n/a"] * 10 + ["front"] * 30 + ["back"] * 40
    (root / "regions.tsv").write_text("label\n" + "\n".join(labels) + "\n")
    return root


def aligned_job(root, method="ridge", **changes):
    chosen = {"encode_context": (20, N_TRAIN), "encode_regions": (str(root / "regions.tsv"),)} | changes
    return make_job(root, encode_alignment=method, **chosen)


@pytest.fixture(scope="module")
def ready(root):
    """Job, plan, and everybody's averaged responses."""
    job = aligned_job(root)
    plan = plan_encoding(job)
    job_file = write_job(job, plan, root / "work")
    people = {key: open_prepared(prepare_step(job_file, key), key) for key in plan.people}
    return job, plan, people


@pytest.fixture(scope="module")
def made(root, ready) -> Path:
    job, plan, _ = ready
    job_file = write_job(job, plan, root / "work")
    for target in plan.targets:
        target_step(job_file, target.key, root / "work" / target.key)
    seal_encoding(job_file)
    return job.root


def target_of(plan, key=KEY):
    return next(target for target in plan.targets if target.key == key)


def table(made: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(made / f"{SPACE}_{name}.tsv", sep="\t", na_values="n/a")


def test_it_is_a_row_beside_the_others_on_the_same_contexts(made) -> None:
    metrics = table(made, "metrics")
    own = metrics[(metrics["metric"] == "r") & (metrics["participant"] == KEY)]
    its = own[own["method"] == "aligned ridge"].set_index(["region", "n_context"])
    ridge = own[own["method"] == "ridge"].set_index(["region", "n_context"])
    assert set(its.index) == set(ridge.index) == {(r, n) for r in ("all", "front", "back") for n in (20, 60)}
    for column in ("n_repeats", "n_vertices", "n_images"):
        assert (its[column] == ridge.loc[its.index, column]).all(), column
    difference = its["mean"] - ridge.loc[its.index, "mean"]
    np.testing.assert_allclose(its["over_ridge"], difference, atol=1e-4)
    assert (its["over_ridge_low"] <= its["over_ridge"]).all()
    assert its.loc[("all", 20), "over_ridge_low"] > 0  # the other participant's images help where own are few
    curve = table(made, "learningcurve")
    curve = curve[(curve["method"] == "aligned ridge") & (curve["participant"] == KEY)]
    assert curve["n_context"].tolist() == [20, 20, 60]
    assert "aligned ridge" in set(table(made, "imagesneeded")["method"])


def read(made: Path, stat: str, subject: str = "ONE01") -> np.ndarray:
    prefix = made / f"sub-{subject}" / "func" / f"sub-{subject}_" if subject else f"{made}/"
    paths = [f"{prefix}hemi-{h}_{SPACE}_stat-{stat}_desc-alignedridge_statmap.func.gii" for h in "LR"]
    return np.concatenate([np.stack([a.data for a in nib.load(p).darrays], axis=1) for p in paths])


def test_maps_hold_what_the_library_gives(made, ready) -> None:
    """By the public functions, with all of both participants' train images, regions as pieces."""
    _, plan, people = ready
    own, other = people[KEY], people[OTHER]
    features = {key: plan.rows(plan.people[key].train) for key in (KEY, OTHER)}
    pieces = np.r_[np.zeros(10), np.ones(30), np.full(40, 2)].astype(int)
    (rows,) = [rows for size, _, rows in contexts(N_TRAIN, (N_TRAIN,), 1)]
    average = fit_aligned(
        {OTHER: (features[OTHER], other.train)},
        weights={OTHER: other.ridge},
        parcels={OTHER: pieces[other.vertices]},
    )
    fitted = average.adapt(features[KEY][rows], own.train[:, rows], parcels=pieces[own.vertices])
    weights = read(made, "weights")
    assert weights.shape == (V, E + 1)
    np.testing.assert_allclose(weights[own.vertices], fitted.weights, atol=1e-5)
    assert np.isnan(weights[:3]).all()  # a medial wall, two constant vertices
    assert fitted.n_shared == {OTHER: SHARED}
    predicted = fitted.predict(plan.rows(plan.people[KEY].test))
    r = [np.corrcoef(p, y)[0, 1] for p, y in zip(predicted, own.test, strict=True)]
    np.testing.assert_allclose(read(made, "pearsonr")[3:, 0], r, atol=1e-4)
    both = [read(made, "pearsonr", subject)[:, 0] for subject in ("ONE01", "ONE02")]
    np.testing.assert_allclose(read(made, "pearsonr", "")[:, 0], np.mean(both, axis=0), atol=1e-6)


def test_who_shares_nothing_is_left_out_and_it_is_said(made, ready) -> None:
    job, plan, _ = ready
    assert target_of(plan, ALONE).aligned == ()
    assert "aligned ridge" not in methods_of(job, target_of(plan, ALONE))
    assert "aligned ridge" in listing(job, plan)
    metrics = table(made, "metrics")
    assert ALONE in set(metrics["participant"])
    assert ALONE not in set(metrics[metrics["method"] == "aligned ridge"]["participant"])
    summary = json.loads((made / "desc-encoding_summary.json").read_text())
    said = [note for note in summary["Notes"] if note.startswith(ALONE)]
    assert "share at most 0 train images with another participant, and alignment needs 5" in said[0]
    assert summary["Records"][ALONE]["Alignment"]["reason"]
    its = summary["Records"][KEY]["Alignment"]
    assert its["others"] == [OTHER]
    assert its["pieces"] == "regions, and runs of at most 512 consecutive points elsewhere"
    shared = table(made, "alignment").set_index(["participant", "other", "n_context"])
    assert shared.loc[(KEY, OTHER, N_TRAIN), "n_shared"] == SHARED
    assert shared.loc[(KEY, OTHER, 20), "used"]
    assert not shared.loc[(KEY, ALONE, N_TRAIN), "used"]
    assert not shared.loc[ALONE]["used"].any()


def test_sizes_with_too_few_shared_images_are_left_out(tmp_path) -> None:
    make_collection(tmp_path, ("01_ONE", "02_ONE", "01_TWO"), shared=12)
    plan = plan_encoding(aligned_job(tmp_path, encode_regions=()))
    assert {target.aligned for target in plan.targets} == {(N_TRAIN,), ()}
    assert any("through alignment from contexts of 20: they share fewer" in note for note in plan.notes)
    counts = shared_counts(plan, KEY, (OTHER,), (20, N_TRAIN), 3)
    names = np.array(plan.people[KEY].train)
    theirs = set(plan.people[OTHER].train)
    each = [len(theirs & set(names[rows])) for _, _, rows in contexts(N_TRAIN, (20,), 3)]
    assert len(each) == 3
    assert sum(each) == 12
    assert counts == {20: {OTHER: min(each)}, N_TRAIN: {OTHER: 12}}


def test_nobody_shares_images(tmp_path) -> None:
    make_collection(tmp_path)
    with pytest.raises(DataError, match="at most 0 train images with another participant") as caught:
        plan_encoding(aligned_job(tmp_path, encode_regions=()))
    assert caught.value.exit_code == 65
    assert caught.value.remedy


@pytest.mark.parametrize("method", ["ridge", "procrustes", "optimal_transport"])
def test_test_responses_never_enter(method, root, ready, tmp_path) -> None:
    """Random test responses of everybody leave the aligned weights as they are, to the bit."""
    _, _, people = ready
    job = aligned_job(root, method, encode_context=(N_TRAIN,))
    plan = plan_encoding(job)
    rng = np.random.default_rng(0)
    found = []
    for name in ("first", "again", "other"):
        its = people
        if name == "other":
            its = {
                key: replace(p, test=rng.normal(size=p.test.shape).astype(np.float32))
                for key, p in people.items()
            }
        (tmp_path / name).mkdir()
        found.append(model_target(job, plan, target_of(plan), its, tmp_path / name))
    assert np.isfinite(found[0].arrays["aligned"]).all(axis=1).sum() == V - 3
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].arrays["aligned"], other.arrays["aligned"])
    key = (ALIGNED[method], "r")
    np.testing.assert_array_equal(found[0].accuracy[key], found[1].accuracy[key])
    assert not np.array_equal(found[0].accuracy[key], found[2].accuracy[key], equal_nan=True)


def test_only_shared_columns_of_others_enter_and_their_weights(root, ready) -> None:
    """Other responses to images of their own change nothing (their weights hold what these say)."""
    job, plan, people = ready
    target = target_of(plan)
    own = people[KEY]
    rows = np.arange(N_TRAIN)
    aligner = open_aligner(job, plan, target, people)
    features = plan.rows(plan.people[KEY].train)

    def weights(its) -> np.ndarray:
        out = np.full((len(own.vertices), E + 1), np.nan, np.float32)
        for where, found in its.weights(features, own.train, rows):
            out[where] = found
        return out

    seen = set(plan.people[KEY].train)
    noise = np.array(people[OTHER].train)
    columns = [i for i, name in enumerate(plan.people[OTHER].train) if name not in seen]
    assert len(columns) == N_TRAIN - SHARED
    noise[:, columns] = 9.0
    changed = {**people, OTHER: replace(people[OTHER], train=noise)}
    first = weights(aligner)
    np.testing.assert_array_equal(first, weights(open_aligner(job, plan, target, changed)))
    noise[:, [i for i in rows if i not in columns]] += np.random.default_rng(0).normal(
        size=(len(noise), SHARED)
    )
    assert not np.array_equal(first, weights(open_aligner(job, plan, target, changed)), equal_nan=True)


def test_vertices_that_others_lack_have_no_aligned_model(root, ready) -> None:
    """Somebody without data in a region does not keep the rest from being aligned."""
    job, plan, people = ready
    other = people[OTHER]
    front = (other.vertices >= 10) & (other.vertices < 40)
    less = Prepared(OTHER, *(getattr(other, n)[~front] for n in ("vertices", "train", "test", "ridge")))
    aligner = open_aligner(job, plan, target_of(plan), {**people, OTHER: less})
    own = people[KEY]
    rows = np.arange(N_TRAIN)
    features = plan.rows(plan.people[KEY].train)
    there = np.concatenate([where for where, _ in aligner.weights(features, own.train, rows)])
    there = own.vertices[there]
    np.testing.assert_array_equal(np.sort(there), [v for v in own.vertices if not 10 <= v < 40])


def test_small_batches_are_all_of_it(root, ready, monkeypatch) -> None:
    import conform_app.encode.aligning as aligning

    job, plan, people = ready
    aligner = open_aligner(job, plan, target_of(plan), people)
    monkeypatch.setattr(aligning, "BLOCK", 40)
    own, rows = people[KEY], np.arange(N_TRAIN)
    features = plan.rows(plan.people[KEY].train)
    batches = [where for where, _ in aligner.weights(features, own.train, rows)]
    assert len(batches) == 2
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(len(own.vertices)))


def grid_files(root: Path, grid: Grid) -> tuple[str, ...]:
    names = {"volume": ["m.nii.gz"], "cifti": ["m.dlabel.nii"], "gifti": ["l.label.gii", "r.label.gii"]}
    paths = [root / name for name in names[grid.kind]]
    write_maps(grid, paths if len(paths) > 1 else paths[0], np.ones(grid.n_points), intent="mask")
    return tuple(map(str, paths))


def test_blocks_of_a_volume_are_compact_and_small(root, tmp_path) -> None:
    shape = (10, 12, 14)
    header = nib.Nifti1Image(np.zeros(shape), np.eye(4)).header
    grid = Grid("volume", shape, affine=np.eye(4), header=header)
    job = replace(make_job(root), geometry=(grid_files(tmp_path, grid),))
    valid = np.random.default_rng(0).random(grid.n_points) > 0.1
    of, about = alignment_pieces(job, valid, "MNI152NLin2009cAsym_res-2")
    assert about == "compact blocks of at most 512 points"
    np.testing.assert_array_equal(of >= 0, valid)
    index = np.stack(np.unravel_index(np.arange(grid.n_points), shape), axis=1)
    for piece in range(of.max() + 1):
        inside = index[of == piece]
        assert 256 <= len(inside) <= 512
        assert np.prod(np.ptp(inside, axis=0) + 1) <= 1.5 * len(inside)


def test_blocks_of_surfaces_stay_in_their_hemisphere(root, tmp_path, monkeypatch) -> None:
    axis = nib.cifti2.BrainModelAxis.from_surface(np.arange(0, 600), 700, "CortexLeft")
    axis += nib.cifti2.BrainModelAxis.from_surface(np.arange(0, 600), 700, "CortexRight")
    grid = Grid("cifti", (1200,), brain_models=axis)
    job = replace(make_job(root), geometry=(grid_files(tmp_path, grid),))
    of, about = alignment_pieces(job, np.ones(1200, bool), "fsLR_den-91k")
    assert about == "runs of at most 512 consecutive points"
    assert np.bincount(of).tolist() == [300] * 4
    assert (np.diff(of) >= 0).all()
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(700, 3))
    monkeypatch.setattr(pieces, "_sphere", lambda space, hemi: sphere)
    of, about = alignment_pieces(job, np.ones(1200, bool), "fsLR_den-91k")
    assert about == "compact blocks of at most 512 points"
    longest = int(np.ptp(sphere[:600], axis=0).argmax())
    for start in (0, 600):  # cut across the longest axis
        first, second = (
            sphere[:600][of[start : start + 600] == n, longest] for n in np.unique(of[start:][:600])
        )
        assert first.max() <= second.min()


def test_the_sphere_of_fsaverage_is_used_where_it_fits(root, tmp_path) -> None:
    half = 10242
    grid = Grid("gifti", (half, half), structures=("CortexLeft", "CortexRight"))
    job = replace(make_job(root), geometry=(grid_files(tmp_path, grid),))
    of, about = alignment_pieces(job, np.ones(2 * half, bool), "fsaverage_den-10k")
    assert about == "compact blocks of at most 512 points"
    assert np.bincount(of).max() <= 512
    assert not set(of[:half]) & set(of[half:])
    sphere = pieces._sphere("fsaverage_den-10k", "L")
    spread = [sphere[of[:half] == n].std(axis=0).sum() for n in np.unique(of[:half])]
    assert max(spread) < 0.6 * sphere.std(axis=0).sum()


def test_turned_off_again_what_it_made_goes(root, made, tmp_path) -> None:
    import shutil

    shutil.copytree(root / "group", tmp_path / "group")
    job = make_job(root, encode_context=(20,))
    job = replace(job, output_dir=str(tmp_path), store=str(tmp_path / "group" / "store.zarr"))
    plan = plan_encoding(job)
    assert not any(target.done for target in plan.targets)
    job_file = write_job(job, plan, tmp_path / "work")
    for key in plan.people:
        prepare_step(job_file, key)
        assert prepared_folder(job, plan, key).is_dir()
    for target in plan.targets:
        target_step(job_file, target.key, tmp_path / "work" / target.key)
    assert list(job.root.glob("*alignedridge*"))
    seal_encoding(job_file)
    assert not list(job.root.rglob("*alignedridge*"))
    assert not list(job.root.rglob("*_alignment.*"))
    assert HALF * 2 == V
