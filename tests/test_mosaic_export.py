# SPDX-License-Identifier: Apache-2.0
"""What others read: MOSAIC's HDF5 files and torch datasets."""

import os
import pickle
import shutil
import zlib
from importlib.metadata import distributions
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from conform_app.errors import FileFaultError, NoInputError, UsageError
from conform_app.mosaic import Collection, FitUnit

DATA = Path(__file__).parent / "data" / "mosaic"
V = 91282
ARTIFICIAL = {"007.jpg"}


def toy(name):
    """A published-layout file: from the test data, or the larger one from the folder of shared data."""
    if (DATA / name).exists():
        return DATA / name
    folder = os.environ.get("CONFORM_TEST_DATA")
    if folder is None:
        pytest.skip("CONFORM_TEST_DATA is not set: no larger toy file")
    return Path(folder) / "fixtures" / "mosaic" / name


def gather(path, root, dataset):
    """A collection of the trials of a published-layout file, in an order of their own."""
    collection = Collection.create(root, space="fsLR_den-91k", n_vertices=V)
    with h5py.File(path) as file:
        order = list(file["betas"])
        attributes = {k: v.item() if hasattr(v, "item") else v for k, v in file.attrs.items()}
        order = order[1::2] + order[::2]
        order.sort(key=lambda name: int(name[-1]))  # repetitions in order, all else mixed
        trials = [dict(file["betas"][name].attrs) for name in order]
        betas = np.stack([file["betas"][name][:] for name in order])
    table = pd.DataFrame(
        {
            "stimulus": [t["presented_stimulus_filename"] for t in trials],
            "phase": [
                "artificial" if t["presented_stimulus_filename"] in ARTIFICIAL else t["phase"] for t in trials
            ],
        }
    )
    unit = FitUnit("all", betas)
    collection.add_participant(dataset, "sub-01", table, [unit], normalise=False, attributes=attributes)
    collection.seal()
    return collection


@pytest.mark.parametrize("dataset", ["HAD", "NSD"])
def test_a_published_file_comes_out_as_it_went_in(dataset, tmp_path):
    original = toy(f"sub-01_{dataset}.hdf5")
    collection = gather(original, tmp_path / "c", dataset)
    (made,) = collection.export_hdf5(tmp_path / "out")
    crc = zlib.crc32(made.read_bytes())
    assert made.name == f"sub-01_{dataset}_crc32-{crc:08x}.hdf5"
    with h5py.File(original) as want, h5py.File(made) as got:
        assert dict(got.attrs) == dict(want.attrs)
        assert list(got) == list(want)
        assert list(got["betas"]) == list(want["betas"])  # in the order of creation
        for name, trial in want["betas"].items():
            same(trial, got["betas"][name])
            np.testing.assert_array_equal(got["betas"][name][:], trial[:].astype(np.float32))
        np.testing.assert_array_equal(np.sort(got["nan_indices_all"][:]), np.sort(want["nan_indices_all"][:]))
        if dataset == "NSD":
            # NSD-synthetic has a ceiling of its own where it is told apart; the toy file has none
            assert set(want["noiseceilings"]) <= set(got["noiseceilings"])
            for name, ceiling in want["noiseceilings"].items():
                mine = got["noiseceilings"][name]
                assert (mine.shape, mine.dtype, mine.attrs["n"], mine.attrs["phase"]) == (
                    ceiling.shape,
                    ceiling.dtype,
                    ceiling.attrs["n"],
                    ceiling.attrs["phase"],
                )
                assert mine.attrs["nan_indices"].tolist() == [24576, 24577]


def same(want, got):
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert got.chunks is None
    assert set(got.attrs) == set(want.attrs)
    for key, value in want.attrs.items():
        assert type(got.attrs[key]) is type(value)
        np.testing.assert_array_equal(got.attrs[key], value)


@pytest.mark.skipif(
    not any(d.name == "mosaic-dataset" for d in distributions()), reason="mosaic-dataset is not installed"
)
@pytest.mark.parametrize("dataset", ["HAD", "NSD"])
def test_the_published_package_loads_it(dataset, tmp_path):
    import mosaic

    collection = gather(toy(f"sub-01_{dataset}.hdf5"), tmp_path / "c", dataset)
    (path,) = collection.export_hdf5(tmp_path / "out", checksum_name=False)
    assert path.name == f"sub-01_{dataset}.hdf5"
    with h5py.File(path) as file:
        long_name = file.attrs["dataset_name"]
    loaded = mosaic.load({long_name: [1]}, folder=str(tmp_path / "out"), parse_betas=False)
    table = collection.trials(f"sub-01_{dataset}")
    assert len(loaded) == len(table)
    betas = collection.betas(f"sub-01_{dataset}")
    stems = [name.rpartition(".")[0] for name in table["name"]]
    for item in (loaded[i] for i in range(len(loaded))):
        row = next(
            i
            for i, (stem, rep) in enumerate(zip(stems, table["repetition"], strict=True))
            if f"stimulus-{stem}_" in item["name"] and item["name"].endswith(f"rep-{rep}")
        )
        np.testing.assert_array_equal(np.asarray(item["betas"], np.float32), betas[row])
    parsed = mosaic.load({long_name: [1]}, folder=str(tmp_path / "out"), parse_betas=True)[0]["betas"]
    assert len(parsed) == 380


def small(root, names, phase, **options):
    collection = Collection.create(root, space="toy", n_vertices=30)
    betas = np.random.default_rng(0).standard_normal((len(names), 30))
    collection.add_participant(
        "LAB", "sub-01", pd.DataFrame({"stimulus": names, "phase": phase}), [FitUnit("all", betas)], **options
    )
    collection.seal()
    return collection


def test_stems_that_clash_keep_their_extension(tmp_path):
    collection = small(tmp_path / "c", ["a.jpg", "a.png", "b.jpg", "sub/dir.jpg"], "train", normalise=False)
    (path,) = collection.export_hdf5(tmp_path, dtype="float32")
    with h5py.File(path) as file:
        assert list(file["betas"]) == [
            "sub-01_LAB_stimulus-a.jpg_phase-train_rep-0",
            "sub-01_LAB_stimulus-a.png_phase-train_rep-0",
            "sub-01_LAB_stimulus-b_phase-train_rep-0",
            "sub-01_LAB_stimulus-sub_dir_phase-train_rep-0",
        ]
        assert file["betas/sub-01_LAB_stimulus-b_phase-train_rep-0"].dtype == np.float32
        assert file.attrs["dataset_name"] == "LAB"
        assert file.attrs["sex"] == "n/a"
        assert "noiseceilings" not in file


def test_exports_are_deterministic_and_leave_no_halves(tmp_path, monkeypatch):
    collection = small(tmp_path / "c", ["a.jpg", "b.jpg"] * 3, "train")
    (one,) = collection.export_hdf5(tmp_path / "1")
    (two,) = collection.export_hdf5(tmp_path / "2")
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(UsageError, match="int8"):
        collection.export_hdf5(tmp_path / "3", dtype="int8")
    monkeypatch.setattr(
        "conform_app.mosaic.hdf5._write_ceilings", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(FileFaultError, match="No room left"):
        collection.export_hdf5(tmp_path / "4")
    assert list((tmp_path / "4").iterdir()) == []


# -- torch ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three participants of two datasets, one vertex missing in one of them."""
    collection = Collection.create(tmp_path_factory.mktemp("t") / "c", space="toy", n_vertices=30)
    for i, (dataset, subject) in enumerate((("A", "sub-01"), ("A", "sub-02"), ("B", "sub-01"))):
        rng = np.random.default_rng(i)
        shown = rng.integers(0, 20, 120)
        phase = np.where(shown < 4, "test", "train")
        betas = rng.standard_normal((120, 30))
        if i == 1:
            betas[:, 3] = np.nan
        table = pd.DataFrame({"stimulus": [f"{dataset}{s}.jpg" for s in shown], "phase": phase})
        angle = {"visual_angle": 5.0 + i} if i else {}
        collection.add_participant(dataset, subject, table, [FitUnit("all", betas)], attributes=angle)
    collection.seal()
    return collection


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("average", [False, True])
def test_an_epoch_holds_every_train_trial_once(three, workers, average):
    from torch.utils.data import DataLoader

    dataset = three.torch_dataset("train", average=average)
    loader = DataLoader(dataset, 32, shuffle=True, num_workers=workers)
    seen = []
    for batch in loader:
        assert batch["betas"].shape[1] == 29
        for i, key in enumerate(batch["participant"]):
            stimulus = batch["stimulus"][i]
            rows = (
                three.select(key, split="train", stimulus=stimulus)
                if average
                else np.array([int(batch["index"][i])])
            )
            assert int(batch["n_trials"][i]) == len(rows)
            want = three.betas(key, rows, np.delete(np.arange(30), 3)).mean(axis=0)
            np.testing.assert_allclose(batch["betas"][i].numpy(), want, atol=1e-6)
            assert three.trials(key)["stimulus"][rows[0]] == stimulus
            seen.append((key, stimulus if average else int(rows[0])))
    assert len(seen) == len(set(seen)) == len(dataset)
    total = sum(len(three.select(key, split="train")) for key in three.keys)
    if not average:
        assert len(seen) == total


def test_no_stimulus_of_a_test_item_is_in_a_train_item(three):
    train, test = three.torch_dataset("train"), three.torch_dataset("test")
    assert not set(train.stimuli) & set(test.stimuli)
    everything = three.torch_dataset(None, vertices="all", participants=["sub-02_A"])
    assert len(everything) == 120
    assert everything[5]["betas"].shape == (30,)
    assert everything[5]["betas"][3].isnan()


def test_items_carry_what_a_model_needs(three):
    dataset = three.torch_dataset("test", images=lambda name: name.upper(), vertices=[4, 5])
    item = dataset[len(dataset) - 1]
    assert item["image"] == item["stimulus"].upper()
    assert item["visual_angle"] == 6.0
    assert np.isnan(dataset[0]["visual_angle"])
    np.testing.assert_array_equal(item["betas"].numpy(), three.betas("sub-02_A", item["index"], [4, 5])[0])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_datasets_travel_to_workers_without_their_files(three):
    dataset = three.torch_dataset("train")
    dataset[0]
    sent = pickle.dumps(dataset)
    assert len(sent) < 200_000
    assert pickle.loads(sent)[7]["stimulus"] == dataset[7]["stimulus"]  # noqa: S301


def test_wrong_calls_of_torch_dataset(three, tmp_path):
    for options in ({"split": "validation"}, {"vertices": "V1"}):
        with pytest.raises(UsageError):
            three.torch_dataset(**options)
    with pytest.raises(NoInputError, match="artificial"):
        three.torch_dataset("artificial")
    shutil.copytree(three.root, tmp_path / "c", ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(UsageError, match="never sealed"):
        Collection.open(tmp_path / "c").torch_dataset("train")
