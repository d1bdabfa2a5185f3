# SPDX-License-Identifier: Apache-2.0
"""From a sealed collection to files: the numbers, what may not leak, one participant after the other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from encode_cases import HALF, N_TEST, N_TRAIN, E, V, make_collection, make_job, take_steps

from conform_app.braincorl import Prior, fit_ridge, from_collection
from conform_app.encode.job import listing, methods_of, plan_encoding, write_job
from conform_app.encode.seal import prepare_step, seal_encoding, target_step
from conform_app.errors import CannotCreateError, DataError
from conform_app.images import Grid, write_maps
from conform_app.mosaic import Collection

pytest.importorskip("zarr")
KEY = "sub-01_TWO"
SPACE = "space-fsaverage_den-10k"


def run(job, root: Path):
    """All steps, as the workflow takes them."""
    _, job_file = take_steps(job, root)
    return seal_encoding(job_file)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("encode")
    make_collection(root, constant=2)
    labels = ["n/a"] * 10 + ["front"] * 30 + ["back"] * 40
    (root / "regions.tsv").write_text("label\n" + "\n".join(labels) + "\n")
    rng = np.random.default_rng(5)
    np.savez(root / "queries.npz", **{"a face": rng.normal(size=E), "a place": rng.normal(size=(3, E))})
    rows = [f"image{i:03d}.png\t{'face' if i % 3 else 'place'}" for i in range(N_TEST + 3 * N_TRAIN)]
    (root / "categories.tsv").write_text("stimulus\tcategory\n" + "\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def job(root):
    given = {
        f"encode_{name}": str(root / f"{name}.{end}")
        for name, end in (("queries", "npz"), ("categories", "tsv"))
    }
    return make_job(root, encode_regions=(str(root / "regions.tsv"),), **given)


@pytest.fixture(scope="module")
def made(root, job) -> Path:
    run(job, root)
    return job.root


def table(made: Path, name: str, subject: str = "") -> pd.DataFrame:
    folder = made / f"sub-{subject}" / "func" if subject else made
    stem = f"sub-{subject}_{SPACE}" if subject else SPACE
    return pd.read_csv(folder / f"{stem}_{name}.tsv", sep="\t", na_values="n/a")


def maps(
    made: Path, stat: str, desc: str, subject: str = "TWO01", suffix: str = "statmap.func"
) -> np.ndarray:
    """(V, n_maps)"""
    parts = []
    for hemi in "LR":
        stem = f"hemi-{hemi}_{SPACE}" + (f"_stat-{stat}" if stat else "") + f"_desc-{desc}_{suffix}.gii"
        path = made / f"sub-{subject}" / "func" / f"sub-{subject}_{stem}" if subject else made / stem
        parts.append(np.stack([array.data for array in nib.load(path).darrays], axis=1))
    return np.concatenate(parts)


def responses(root: Path, key: str = KEY):
    with np.load(root / "features.npz") as archive:
        names, values = list(archive["names"]), archive["values"]
    collection = Collection.open(root / "group" / "store.zarr")
    return [
        from_collection(collection, names, values, split=side, participants=[key])[key]
        for side in ("train", "test")
    ]


def test_maps_hold_the_models_that_the_tables_measure(root, made) -> None:
    (x, y), (xt, yt) = responses(root)
    rows = np.random.default_rng(0).permutation(N_TRAIN)[:40]
    good = np.arange(3, V)  # a medial wall, two constant vertices
    weights, _ = fit_ridge(x[rows], y[good][:, rows])
    predicted = weights[:, :-1] @ xt.T + weights[:, -1:]
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted, yt[good], strict=True)]
    ridge = maps(made, "pearsonr", "ridge")[:, 0]
    np.testing.assert_allclose(ridge[good], r, atol=1e-4)
    own = maps(made, "weights", "stacked")
    assert own.shape == (V, E + 1)
    prediction = maps(made, "prediction", "stacked")
    np.testing.assert_allclose(prediction[good], own[good, :-1] @ xt.T + own[good, -1:], atol=1e-4)
    shown = table(made, "images", "TWO01")
    assert len(shown) == prediction.shape[1] == N_TEST
    stacked = maps(made, "pearsonr", "stacked")[:, 0]
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(prediction[good], yt[good], strict=True)]
    np.testing.assert_allclose(stacked[good], expected, atol=1e-4)
    for stat in (
        "weights",
        "prediction",
        "predictivesd",
        "pearsonr",
        "explainedvariance",
        "ceilingshare",
        "share",
    ):
        values = maps(made, stat, "stacked")
        assert np.isnan(values[:3]).all(), stat
        assert np.isfinite(values[good]).all() or stat == "ceilingshare", stat
    np.testing.assert_allclose(maps(made, "share", "stacked")[good].sum(axis=1), 1, atol=1e-5)
    metrics = table(made, "metrics", "TWO01")
    row = metrics[(metrics["method"] == "ridge") & (metrics["n_context"] == 40) & (metrics["metric"] == "r")]
    assert row[row["region"] == "all"]["mean"].item() == pytest.approx(np.mean(r), abs=1e-4)
    assert row[row["region"] == "back"]["mean"].item() == pytest.approx(np.mean(r[37:]), abs=1e-4)
    assert row[row["region"] == "front"]["n_vertices"].item() == 30


def test_learning_from_others_helps_where_images_are_few(made) -> None:
    metrics = table(made, "metrics")
    assert set(metrics["participant"]) == {"sub-01_ONE", "sub-02_ONE", "sub-01_TWO"}
    own = metrics[(metrics["region"] == "all") & (metrics["metric"] == "r")].set_index(
        ["method", "n_context"]
    )
    stacked, ridge = own.loc[("stacked", 20)], own.loc[("ridge", 20)]
    assert (stacked["mean"].to_numpy() > ridge["mean"].to_numpy() + 0.05).all()
    assert (stacked["over_ridge_low"] > 0).all()
    assert (own.loc[("stacked", 20), "n_repeats"] == 2).all()
    assert (own.loc[("stacked", 40), "n_repeats"] == 1).all()
    needed = table(made, "imagesneeded").set_index(["participant", "method", "goal"])
    assert needed.loc[(KEY, "stacked", "ridge with 40"), "n_images"] == 20
    curve = table(made, "learningcurve", "TWO01")
    both = curve[(curve["method"] == "prior") & (curve["n_context"] == 20)]["r"]
    assert both.mean() == pytest.approx(own.loc[("prior", 20)].set_index("participant").loc[KEY, "mean"])


def test_group_maps_are_means_over_participants(made) -> None:
    each = [maps(made, "pearsonr", "prior", subject)[:, 0] for subject in ("ONE01", "ONE02", "TWO01")]
    np.testing.assert_allclose(maps(made, "pearsonr", "prior", "")[:, 0], np.mean(each, axis=0), rtol=1e-5)


def test_queries_and_categories(made, root) -> None:
    answer = maps(made, "selectivity", "queries")
    assert answer.shape == (V, 2)
    best = maps(made, "", "queries", suffix="dseg.label")[:, 0]
    np.testing.assert_array_equal(best[3:], answer[3:].argmax(axis=1) + 1)
    assert (best[:3] == 0).all()
    margin = maps(made, "margin", "queries")[:, 0]
    np.testing.assert_allclose(margin[3:], abs(answer[3:, 0] - answer[3:, 1]), atol=1e-5)
    assert np.isnan(margin[:3]).all()
    assert table(made, "desc-queries_dseg", "TWO01")["name"].tolist() == ["a face", "a place"]
    contrast = maps(made, "contrast", "categories")
    np.testing.assert_allclose(contrast[3:, 0], -contrast[3:, 1], atol=1e-5)
    assert table(made, "categories", "TWO01")["n_images"].sum() == N_TRAIN + N_TEST


def test_the_prior_is_that_of_the_others_and_can_be_given_again(made, root, tmp_path) -> None:
    path = made / "sub-TWO01" / "func" / f"sub-TWO01_{SPACE}_prior.safetensors"
    prior = Prior.load(path)
    assert prior.card["participants"] == ["sub-01_ONE", "sub-02_ONE"]
    again = tmp_path / "again"
    make_collection(again, ("01_TWO",))
    job = make_job(again, encode="prior", encode_prior=str(path))
    with pytest.raises(DataError, match="was trained on sub-01_ONE"):
        plan_encoding(make_job(root, encode_prior=str(path)))
    run(job, again)
    methods = set(table(job.root, "metrics")["method"])
    assert methods == {"stacked", "prior", "ridge", "five-fold ridge"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }


def test_models_do_not_see_test_responses_nor_priors_their_own_participant(made, root, tmp_path) -> None:
    """Other test responses give the same models, bit for bit; other train responses the same prior."""
    import conform_app.encode.model as model
    import conform_app.encode.prepare as prepare

    job = make_job(root)
    plan = plan_encoding(job)
    target = next(its for its in plan.targets if its.key == KEY)
    folders = {key: prepare.prepared_folder(job, plan, key) for key in plan.people}
    people = {key: prepare.open_prepared(folder, key) for key, folder in folders.items()}
    rng = np.random.default_rng(0)

    def modelled(name: str, **changed):
        def noise(key, side, values):
            return (
                rng.normal(size=values.shape).astype(np.float32)
                if changed.get(side) in (key, "all")
                else values
            )

        (tmp_path / name).mkdir()
        its = {
            key: prepare.Prepared(
                key, p.vertices, noise(key, "train", p.train), noise(key, "test", p.test), p.ridge
            )
            for key, p in people.items()
        }
        return model.model_target(job, plan, target, its, tmp_path / name)

    first, other_test, other_train = (
        modelled("first"),
        modelled("test", test="all"),
        modelled("train", train=KEY),
    )
    np.testing.assert_array_equal(first.arrays["weights"], other_test.arrays["weights"])
    np.testing.assert_array_equal(first.arrays["predictivesd"], other_test.arrays["predictivesd"])
    assert not np.array_equal(first.accuracy["ridge", "r"], other_test.accuracy["ridge", "r"])
    for name in ("means", "covariances", "shares"):
        np.testing.assert_array_equal(getattr(first.prior, name), getattr(other_train.prior, name))
    assert not np.array_equal(first.arrays["weights"], other_train.arrays["weights"])


def test_same_input_same_bytes(made, root, job, tmp_path) -> None:
    shutil.copytree(root / "group" / "store.zarr", tmp_path / "group" / "store.zarr")
    from dataclasses import replace

    run(replace(job, output_dir=str(tmp_path), scratch=str(tmp_path / "scratch")), tmp_path)
    first, second = files_of(made), files_of(tmp_path / "group" / "encoding")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_participant_is_done_or_not(made, root, job, monkeypatch) -> None:
    plan = plan_encoding(job)
    assert all(target.done for target in plan.targets)
    assert listing(job, plan).count(" done ") == 3
    stamps = {path: path.stat().st_mtime_ns for path in made.rglob("sub-*/func/*")}
    run(job, root)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("sub-*/func/*")} == stamps
    other = make_job(root, encode_context=(20,))
    assert not any(target.done for target in plan_encoding(other).targets)
    # a call that is killed while writing leaves what was there, and its own half is swept away
    (made / ".incoming-sub-TWO01-0123abcd" / "sub-TWO01").mkdir(parents=True)
    (made / "sub-ONE01").rename(made / ".replaced-sub-ONE01-0123abcd")
    assert [target.done for target in plan_encoding(job).targets].count(True) == 2
    seal_encoding(write_job(job, plan, root / "work"))
    assert not list(made.glob(".*-sub-*"))
    assert all(target.done for target in plan_encoding(job).targets)


def test_a_mixture_of_settings_is_said(made, root, job, tmp_path) -> None:
    from dataclasses import replace

    shutil.copytree(root / "group", tmp_path / "group")
    store, scratch = str(tmp_path / "group" / "store.zarr"), str(tmp_path / "scratch")
    settings = replace(job.settings, encode_context=(30,), encode_target=(KEY,))
    mixed = replace(job, output_dir=str(tmp_path), store=store, scratch=scratch, settings=settings)
    job_file = write_job(mixed, plan_encoding(mixed), tmp_path / "work")
    for key in ("sub-01_ONE", "sub-02_ONE", KEY):
        prepare_step(job_file, key)
    target_step(job_file, KEY, tmp_path / "work" / "x")
    notes = json.loads(Path(seal_encoding(job_file)).read_text())["Notes"]
    assert [note for note in notes if note.startswith("sub-01_ONE, sub-02_ONE: made by an earlier call")]
    assert not any(
        "earlier call" in note
        for note in json.loads((made / "desc-encoding_summary.json").read_text())["Notes"]
    )


def test_models_of_somebody_taken_out_of_the_collection_go(made, root, job, tmp_path) -> None:
    from dataclasses import replace

    shutil.copytree(root / "group", tmp_path / "group")
    fewer = replace(job, output_dir=str(tmp_path), store=str(tmp_path / "group" / "store.zarr"))
    collection = Collection.open(fewer.store)
    collection.remove("sub-02_ONE")
    collection.seal()
    plan = plan_encoding(fewer)
    assert not any(target.done for target in plan.targets)  # the others have lost a teacher
    seal_encoding(write_job(fewer, plan, tmp_path / "work"))
    assert not (fewer.root / "sub-ONE02").exists()
    assert set(table(fewer.root, "metrics")["participant"]) == {"sub-01_ONE", "sub-01_TWO"}


def test_a_write_that_fails_leaves_what_was_there(made, job, root, monkeypatch) -> None:
    import conform_app.encode.write as write

    before = files_of(made)
    plan = plan_encoding(make_job(root, encode_context=(20,)))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_encode_table", full)
    job_file = write_job(make_job(root, encode_context=(20,)), plan, root / "work-full")
    with pytest.raises(CannotCreateError, match="No space left"):
        target_step(job_file, KEY, root / "work-full" / "x")
    assert files_of(made) == before
    assert not list(made.glob(".*-sub-*"))


def validator() -> str | None:
    beside = Path(sys.executable).parent / "bids-validator-deno"
    return shutil.which("bids-validator-deno") or (str(beside) if beside.exists() else None)


@pytest.mark.skipif(validator() is None, reason="bids-validator-deno is not installed")
def test_the_validator_accepts_the_dataset(made) -> None:
    done = subprocess.run([validator(), "--json", str(made)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [(i["code"], i["location"]) for i in issues if i["severity"] == "error"] == []


def test_every_file_has_a_sidecar_and_every_product_a_description(made, job) -> None:
    for path in made.rglob("sub-*/func/*"):
        if path.suffix != ".json":
            sidecar = path.with_name(path.name.split(".")[0] + ".json")
            content = json.loads(sidecar.read_text())
            assert content["Description"], path
    record = json.loads((made / "sub-TWO01" / "func" / f"sub-TWO01_{SPACE}_encoding.json").read_text())
    assert record["LearnedFrom"] == ["sub-01_ONE", "sub-02_ONE"]
    assert all((made / name).is_file() for files in record["Products"].values() for name in files)
    labels = pd.read_csv(made / "participants.tsv", sep="\t")
    assert labels["participant_id"].tolist() == ["sub-ONE01", "sub-TWO01", "sub-ONE02"]
    assert methods_of(job, plan_encoding(job).targets[0]) == (
        "stacked", "prior", "ridge", "five-fold ridge", "group mean",
    )  # fmt: skip


def test_one_participant_alone_has_ridge_only_and_it_is_said(tmp_path) -> None:
    make_collection(tmp_path, ("01_ONE",))
    job = make_job(tmp_path)
    summary = json.loads(Path(run(job, tmp_path)).read_text())
    assert set(table(job.root, "metrics")["method"]) == {"stacked", "ridge", "five-fold ridge"}
    assert "nobody to learn from" in " ".join(summary["Notes"])
    assert not list(job.root.rglob("*_prior.*"))


def test_a_network_is_evaluated_beside_and_says_what_it_looked_at(root, tmp_path) -> None:
    import torch

    from conform_app.braincorl import ModelSizes, save_model
    from conform_app.braincorl.model import BraInCoRL

    torch.manual_seed(0)
    model = BraInCoRL(ModelSizes(E, 20, layers=1, ffn=16, registers=2, heads=2, block=16))
    path = tmp_path / "network.safetensors"
    save_model(model, path, {"participants": ["sub-09_ELSE"]})
    job = make_job(
        root, encode="transformer", encode_model=str(path), encode_context=(20,), encode_target=(KEY,)
    )
    from dataclasses import replace

    shutil.copytree(root / "group" / "store.zarr", tmp_path / "group" / "store.zarr")
    job = replace(job, output_dir=str(tmp_path))
    run(job, tmp_path)
    assert "transformer" in set(table(job.root, "metrics")["method"])
    context = table(job.root, "context", "TWO01")
    assert len(context) == 20
    assert context["importance"].between(0, 1).all()
    assert (maps(job.root, "weights", "transformer")[3:] != 0).any()


def test_denoised_averages_can_be_learned_from(tmp_path) -> None:
    """Averages in percent signal change come in the units of the z scores, for train images only."""
    make_collection(tmp_path, ("01_ONE", "02_ONE"), averages=True)
    job = make_job(tmp_path, encode_betas="psn", encode_context=(20,))
    run(job, tmp_path)
    from conform_app.encode.prepare import open_prepared, prepared_folder

    plan = plan_encoding(job)
    found = open_prepared(prepared_folder(job, plan, "sub-01_ONE"), "sub-01_ONE")
    (_, y), (_, yt) = responses(tmp_path, "sub-01_ONE")
    np.testing.assert_allclose(found.train, 0.5 * y[found.vertices], atol=1e-3)
    np.testing.assert_array_equal(found.test, yt[found.vertices])


def test_vertices_below_a_noise_ceiling_get_no_model(root, tmp_path) -> None:
    from dataclasses import replace

    from conform_app.collect.seal import single_trial_ceiling

    collection = Collection.open(root / "group" / "store.zarr")
    ceiling = single_trial_ceiling(collection, KEY)
    least = float(np.nanmedian(ceiling))
    job = make_job(root, encode_min_ceiling=least, encode_context=(20,), encode_target=(KEY,))
    job = replace(job, output_dir=str(tmp_path), scratch=str(tmp_path / "scratch"))
    run(job, tmp_path)
    there = np.isfinite(maps(job.root, "weights", "stacked")[:, 0])
    np.testing.assert_array_equal(there, ceiling >= least)


@pytest.mark.parametrize("kind", ["volume", "cifti"])
def test_maps_are_written_in_the_form_of_the_betas(root, kind, tmp_path) -> None:
    from dataclasses import replace

    if kind == "volume":
        header = nib.Nifti1Image(np.zeros((4, 5, 4)), np.eye(4)).header
        grid, extension = Grid("volume", (4, 5, 4), affine=np.eye(4), header=header), ".nii.gz"
    else:
        axis = nib.cifti2.BrainModelAxis.from_mask(np.ones(V, bool), name="CortexLeft")
        grid, extension = Grid("cifti", (V,), brain_models=axis), ".dscalar.nii"
    path = tmp_path / f"mask{extension if kind == 'volume' else '.dlabel.nii'}"
    write_maps(grid, path, np.ones(V), intent="mask")
    job = make_job(root, encode_context=(20,), encode_queries=str(root / "queries.npz"))
    job = replace(job, output_dir=str(tmp_path), geometry=((str(path),),))
    run(job, tmp_path)
    func = job.root / "sub-TWO01" / "func"
    stem = f"sub-TWO01_{SPACE}"
    values = np.asarray(nib.load(func / f"{stem}_stat-weights_desc-stacked_statmap{extension}").dataobj)
    assert values.size == V * (E + 1)
    outside = values.reshape(V, -1)[0] if kind == "volume" else values.reshape(-1, V)[:, 0]
    assert (outside == 0).all() if kind == "volume" else np.isnan(outside).all()
    each = [
        np.asarray(
            nib.load(
                job.root
                / f"sub-{s}"
                / "func"
                / f"sub-{s}_{SPACE}_stat-pearsonr_desc-ridge_statmap{extension}"
            ).dataobj
        ).ravel()
        for s in ("ONE01", "ONE02", "TWO01")
    ]
    mean = np.asarray(
        nib.load(job.root / f"{SPACE}_stat-pearsonr_desc-ridge_statmap{extension}").dataobj
    ).ravel()
    np.testing.assert_allclose(mean[3:], np.mean(each, axis=0)[3:], rtol=1e-4)
    assert HALF * 2 == V
