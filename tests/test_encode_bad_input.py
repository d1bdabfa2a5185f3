# SPDX-License-Identifier: Apache-2.0
"""What the encoding models refuse: each with its error, its words and its exit code."""

from __future__ import annotations

import numpy as np
import pytest
from encode_cases import N_TEST, E, V, edit_features, make_collection, make_job

from conform_app.encode.given import match_features, open_grid
from conform_app.encode.job import plan_encoding, write_job
from conform_app.encode.seal import prepare_step
from conform_app.errors import DataError, NoInputError, UsageError

pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    root = tmp_path_factory.mktemp("merged")
    make_collection(root)
    return root


@pytest.fixture
def root(merged, tmp_path):
    """The collection, with files of its own to spoil."""
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "store.zarr").symlink_to(merged / "group" / "store.zarr")
    (tmp_path / "features.npz").write_bytes((merged / "features.npz").read_bytes())
    return tmp_path


def refused(job, error, code: int, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        plan_encoding(job)
    assert caught.value.exit_code == code
    assert caught.value.remedy


def test_stimuli_without_features_are_named(root) -> None:
    edit_features(root, lambda names, values: (names[2:], values[2:]))
    refused(
        make_job(root), DataError, 65, r"no features for 2 of 204 stimuli: image00[01].png, image00[01].png\."
    )


def test_names_may_be_those_of_the_dataset() -> None:
    import pandas as pd

    names = pd.DataFrame(
        {"dataset": ["A", "B"], "name": ["x.png", "x.png"], "stimulus": ["x.png", "B/x.png"]}
    )
    one, two = np.eye(2)
    found = match_features(["x.png", "B/x.png"], names, {"A/x.png": one, "B/x.png": two})
    np.testing.assert_array_equal(found, [one, two])
    with pytest.raises(DataError, match=r"no features for 2 of 2"):  # a name of two stimuli says nothing
        match_features(["x.png", "B/x.png"], names, {"x.png": one})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda v: v * 2, r"Features of image\d+.png have length 2, not 1 \(204 stimuli\)"),
        (
            lambda v: np.where(np.arange(len(v))[:, None] == 7, np.nan, v),
            r"image007.png are not finite \(1 stim",
        ),
    ],
)
def test_features_that_are_no_unit_vectors(root, spoil, words) -> None:
    edit_features(root, lambda names, values: (names, spoil(values)))
    refused(make_job(root), DataError, 65, words)


def test_features_of_several_lengths(root) -> None:
    with np.load(root / "features.npz") as archive:
        found = dict(zip(archive["names"], archive["values"], strict=True))
    found["image003.png"] = found["image003.png"][:5]
    np.savez(root / "features.npz", **found)
    refused(make_job(root), DataError, 65, "several shapes")


def network(folder, n_features: int, card=None):
    import torch

    from conform_app.braincorl import ModelSizes, save_model
    from conform_app.braincorl.model import BraInCoRL

    torch.manual_seed(0)
    path = folder / "network.safetensors"
    model = BraInCoRL(ModelSizes(n_features, 20, layers=1, ffn=16, registers=2, heads=2, block=16))
    save_model(model, path, card or {})
    return str(path)


def test_a_checkpoint_for_other_features(root) -> None:
    job = make_job(root, encode_model=network(root, E + 1))
    refused(job, DataError, 65, r"--encode-model is for features of 13 numbers, --features has 12")


def test_a_checkpoint_that_has_seen_the_participant(root) -> None:
    path = network(root, E, {"participants": ["sub-01_TWO"]})
    refused(make_job(root, encode_model=path), DataError, 65, "was trained on sub-01_TWO")
    plan = plan_encoding(make_job(root, encode_model=path, encode_target=("01_ONE",)))
    assert [target.key for target in plan.targets] == ["sub-01_ONE"]


def test_contexts_larger_than_the_data(root) -> None:
    refused(make_job(root, encode_context=(61,)), DataError, 65, "context of 61 images .* there are 60 train")
    plan = plan_encoding(make_job(root, encode_context=(30, 500)))
    assert {target.sizes for target in plan.targets} == {(30,)}
    assert "no context of 500" in " ".join(plan.notes)
    assert {t.sizes for t in plan_encoding(make_job(root, encode_context=())).targets} == {(20, 50, 60)}
    refused(make_job(root, encode_context=(1,)), UsageError, 64, "two images")


def test_test_images_that_are_learned_from_under_another_name(root) -> None:
    def copy(names, values):
        values[N_TEST + 4] = values[2]  # a train image has the features of a test image
        return names, values

    edit_features(root, copy)
    refused(make_job(root), DataError, 65, "test images are in the context")


def test_the_split_is_checked_again_where_models_are_made(root) -> None:
    """Even a plan that was tampered with does not get test images into a context."""
    from dataclasses import replace

    job = make_job(root)
    plan = plan_encoding(job)
    person = plan.people["sub-01_ONE"]
    job_file = write_job(job, plan, root / "work")
    for key in plan.people:
        prepare_step(job_file, key)
    from conform_app.encode.model import model_target
    from conform_app.encode.prepare import open_prepared, prepared_folder

    people = {key: open_prepared(prepared_folder(job, plan, key), key) for key in plan.people}
    plan.people["sub-01_ONE"] = replace(person, test=(*person.test[:-1], person.train[0]))
    target = next(its for its in plan.targets if its.key == "sub-01_ONE")
    with pytest.raises(DataError, match="are in the context"):
        model_target(make_job(root, encode_context=(60,)), plan, replace(target, sizes=(60,)), people, root)


def test_a_target_that_is_not_in_the_collection(root) -> None:
    refused(make_job(root, encode_target=("07",)), UsageError, 64, "no participant 07")


def test_a_prior_from_one_participant(tmp_path) -> None:
    make_collection(tmp_path, ("01_ONE",))
    refused(make_job(tmp_path, encode="prior"), DataError, 65, "one participant, sub-01_ONE: a prior needs")
    refused(make_job(tmp_path, encode="transformer"), UsageError, 64, "needs a network")


def test_vertices_whose_responses_do_not_vary(merged, tmp_path) -> None:
    """One constant vertex has no model, and the others have theirs; all constant: refused."""
    from dataclasses import replace

    from conform_app.encode.model import model_target
    from conform_app.encode.prepare import open_prepared, prepared_folder

    job = make_job(merged, encode_context=(20,))
    plan = plan_encoding(job)
    job_file = write_job(job, plan, tmp_path)
    folders = {key: prepare_step(job_file, key) for key in plan.people}
    assert folders["sub-01_ONE"] == prepared_folder(job, plan, "sub-01_ONE")
    people = {key: open_prepared(folder, key) for key, folder in folders.items()}
    target = next(its for its in plan.targets if its.key == "sub-01_ONE")
    own = np.array(people["sub-01_ONE"].train)
    own[4] = 1.0
    people["sub-01_ONE"] = replace(people["sub-01_ONE"], train=own)
    found = model_target(job, plan, target, people, tmp_path)
    assert found.n_constant == 1
    np.testing.assert_array_equal(np.isnan(found.arrays["weights"]).all(axis=1), np.arange(len(own)) == 4)
    assert np.isnan(found.accuracy["stacked", "r"][4])
    people["sub-01_ONE"] = replace(people["sub-01_ONE"], train=np.ones_like(own))
    with pytest.raises(DataError, match="every vertex are constant") as caught:
        model_target(job, plan, target, people, tmp_path)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("option", "content", "error", "code", "words"),
    [
        ("regions", "name\nx\n", DataError, 65, "no column 'label'"),
        ("regions", "label\nx\n", DataError, 65, f"has 1 rows, the collection {V} vertices"),
        ("regions", "label\n" + "n/a\n" * V, DataError, 65, "has no label"),
        ("categories", "stimulus\tcategory\nimage000.png\tface\n", DataError, 65, "1 categories"),
        ("queries", "no archive", DataError, 65, "cannot be read"),
        (
            "queries",
            {"a": np.ones(E + 2), "b": np.ones(E + 2)},
            DataError,
            65,
            r"'a' has the shape \(1, 14\)",
        ),
        ("queries", {"a": np.ones(E)}, DataError, 65, "holds 1 queries"),
        ("queries", None, NoInputError, 66, "there is no"),
        ("regions", None, NoInputError, 66, "there is no"),
    ],
)
def test_files_that_do_not_fit(root, option, content, error, code, words) -> None:
    path = root / ("given.npz" if option == "queries" else "given.tsv")
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_text(content)
    given = (str(path),) if option == "regions" else str(path)
    refused(make_job(root, **{f"encode_{option}": given}), error, code, words)


def test_an_atlas_on_another_grid(root) -> None:
    from conform_app.images import Grid, write_maps

    grid = Grid("gifti", (10, 10), structures=("CortexLeft", "CortexRight"))
    paths = [root / f"hemi-{h}_dseg.label.gii" for h in "LR"]
    write_maps(grid, paths, np.arange(20) % 4, intent="label")
    job = make_job(root, encode_regions=tuple(map(str, paths)))
    refused(job, DataError, 65, "10 vertices a hemisphere, the data have 40")


def test_no_noise_ceiling_to_select_by(root, tmp_path) -> None:
    refused(make_job(root, encode_min_ceiling=101.0), DataError, 65, "noise ceiling of 101 %")


def add_without_repeats(collection, key="sub-03_TWO", hole=False) -> None:
    """Somebody who saw every image of another once; a trial of it may have no value."""
    from conform_app.mosaic import FitUnit

    trials = collection.trials("sub-01_TWO").drop_duplicates("name")
    betas = collection.betas("sub-01_TWO", trials["index"].to_numpy())
    betas[0] = np.nan if hole else betas[0]
    table = trials[["name", "phase"]].rename(columns={"name": "stimulus"}).reset_index(drop=True)
    label, _, dataset = key.partition("_")
    collection.add_participant(dataset, label, table, [FitUnit("ses-01", betas)])
    collection.seal()


@pytest.mark.parametrize(
    ("least", "hole", "words"), [(5.0, False, "no noise ceiling"), (0.0, True, "no vertex with a value")]
)
def test_somebody_without_usable_vertices_does_not_keep_the_others(tmp_path, least, hole, words) -> None:
    collection = make_collection(tmp_path)
    add_without_repeats(collection, hole=hole)
    job = make_job(tmp_path, encode_min_ceiling=least)
    plan = plan_encoding(job)
    assert "sub-03_TWO" not in plan.people
    assert {target.key for target in plan.targets} == {"sub-01_ONE", "sub-02_ONE", "sub-01_TWO"}
    assert all("sub-03_TWO" not in target.teachers for target in plan.targets)
    (note,) = [note for note in plan.notes if "sub-03_TWO" in note]
    assert words in note
    assert note.endswith("and is left out.")
    prepare_step(write_job(job, plan, tmp_path / "work"), "sub-01_TWO")
    job = make_job(tmp_path, encode_min_ceiling=least, encode_target=("03_TWO",))
    refused(job, DataError, 65, words)


def test_somebody_without_denoised_averages_does_not_keep_the_others(tmp_path) -> None:
    collection = make_collection(tmp_path, averages=True)
    add_without_repeats(collection)  # nothing repeats: there was no PSN
    plan = plan_encoding(make_job(tmp_path, encode_betas="psn"))
    assert {target.key for target in plan.targets} == {"sub-01_ONE", "sub-02_ONE", "sub-01_TWO"}
    (note,) = [note for note in plan.notes if "sub-03_TWO" in note]
    assert "no denoised averages" in note
    assert "sub-03_TWO" in plan_encoding(make_job(tmp_path)).people


def test_maps_need_an_image_on_the_grid(root) -> None:
    from dataclasses import replace

    job = replace(make_job(root), geometry=((str(root / "gone.gii"),),))
    with pytest.raises(NoInputError, match="one image on the collection's grid"):
        open_grid(job.geometry, V)
