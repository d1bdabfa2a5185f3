# SPDX-License-Identifier: Apache-2.0
"""The store: what is written is what is read, by us and by Zarr; scaled and measured as defined."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from conform_app.errors import CannotCreateError, DataError, NoInputError, UsageError
from conform_app.mosaic import Averages, Collection, FitUnit
from conform_app.mosaic.shards import Grain, ShardReader, ShardWriter, crc32c
from conform_app.reliability import arrange_repeats, noise_ceiling

V = 5003  # three chunk columns, the last one partly filled


def make(n_trials=300, n_stimuli=90, n_test=20, seed=0, n_vertices=V):
    """Trials and betas of one participant: two test trials in ten, a signal that repeats."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, n_stimuli, n_trials)
    trials = pd.DataFrame(
        {
            "stimulus": [f"{s:03d}.jpg" for s in shown],
            "phase": np.where(shown < n_test, "test", "train"),
            "run": 1 + np.arange(n_trials) // 50,
        }
    )
    signal = rng.standard_normal((n_stimuli, n_vertices), dtype=np.float32)
    betas = 3 + 2 * signal[shown] + rng.standard_normal((n_trials, n_vertices), dtype=np.float32)
    return trials, betas


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A sealed collection of one participant with two fits, and its betas."""
    trials, betas = make()
    betas[:, 7] = np.nan
    betas[:, 8] = 2.0
    betas[5, 9] = np.inf
    path = tmp_path_factory.mktemp("one") / "collection"
    collection = Collection.create(path, space="toy", n_vertices=V)
    units = [FitUnit("ses-01", betas[:130]), FitUnit("ses-02", betas[130:])]
    attributes = {"visual_angle": 8.4, "sex": "F", "tr": [1.6, 1.6]}
    collection.add_participant("NSD", "sub-01", trials, units, attributes=attributes)
    collection.seal()
    return Collection.open(path), trials, betas


def scaled(betas, train, cuts):
    out = np.full(betas.shape, np.nan)
    for rows in np.split(np.arange(len(betas)), cuts):
        y = np.where(np.isfinite(betas[rows]), betas[rows], np.nan).astype(float)
        fit = y[train[rows]]
        with np.errstate(all="ignore"):
            out[rows] = (y - np.nanmean(fit, 0)) / np.nanstd(fit, 0, ddof=1)
    out[:, [7, 8]] = np.nan
    return out


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
def test_betas_are_scaled_by_the_train_trials_of_their_own_fit(one):
    collection, trials, betas = one
    want = scaled(betas, (trials["phase"] == "train").to_numpy(), [130])
    np.testing.assert_allclose(collection.betas("sub-01_NSD"), want, atol=2e-6)
    units, mean, sd = collection.statistics("sub-01_NSD")
    assert units == ["ses-01", "ses-02"]
    back = collection.betas("sub-01_NSD", slice(130, None)) * sd[1] + mean[1]
    ok = np.isfinite(back)
    np.testing.assert_allclose(back[ok], betas[130:][ok], atol=1e-5)


def test_missing_values_are_on_record(one):
    collection, _, _ = one
    record = collection.record("sub-01_NSD")
    assert record["missing"] == {"vertices": 3, "vertices_always": 2, "values": 601, "trials": []}
    assert record["account"] == ["3 of 5003 vertices have no value in one trial or more."]
    assert set(range(V)) - set(collection.valid_vertices()) == {7, 8, 9}


def test_zarr_reads_the_same_array(one):
    collection, _, _ = one
    group = zarr.open_group(collection.root, mode="r")
    array = group["participants/sub-01_NSD/betas"]
    assert array.metadata.zarr_format == 3
    assert (array.shards, array.chunks) == ((256, 6144), (32, 2048))
    assert array.metadata.dimension_names == ("trial", "vertex")
    np.testing.assert_array_equal(array[:], collection.betas("sub-01_NSD"))
    np.testing.assert_array_equal(array[299], collection.betas("sub-01_NSD", 299)[0])


@pytest.mark.parametrize(
    ("trials", "vertices"),
    [
        (3, None),
        (-1, None),
        ([299, 0, 0, 256, 255], None),
        (slice(250, 270), slice(2040, 2060)),
        (None, [5002, 0, 2047, 2048]),
        ([17], [4]),
        (np.arange(300) % 7 == 0, np.arange(V) % 2 == 0),
        (None, np.r_[100:400, 3000:3300]),
        ([], None),
    ],
)
@pytest.mark.parametrize("place", ["disk", "remote"])
def test_any_selection_reads_what_numpy_would(one, trials, vertices, place):
    collection, _, _ = one
    if place == "remote":
        collection = remote(collection)
    whole = one[0].betas("sub-01_NSD")
    empty = isinstance(trials, list) and not trials
    rows = np.atleast_1d(np.arange(300)[slice(0) if empty else slice(None) if trials is None else trials])
    columns = np.arange(V)[slice(None) if vertices is None else vertices]
    got = collection.betas("sub-01_NSD", trials, vertices)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, whole[rows][:, columns])


def remote(collection):
    """The same collection in an object store that lives in memory."""
    import fsspec

    memory = fsspec.filesystem("memory")
    if not memory.exists("/bucket/collection"):
        memory.put(str(collection.root), "/bucket/collection", recursive=True)
    return Collection.open("memory://bucket/collection")


def test_everything_but_writing_works_on_an_object_store(one):
    collection, far = one[0], remote(one[0])
    pd.testing.assert_frame_equal(far.stimuli, collection.stimuli)
    pd.testing.assert_frame_equal(far.trials("sub-01_NSD"), collection.trials("sub-01_NSD"))
    pd.testing.assert_frame_equal(far.participants, collection.participants)
    for key, values in far.noise_ceilings("sub-01_NSD").items():
        np.testing.assert_array_equal(values, collection.noise_ceilings("sub-01_NSD")[key])
    assert far.verify() == []
    assert len(far.torch_dataset("test")) == len(collection.torch_dataset("test"))
    with pytest.raises(UsageError, match="read only"):
        far.seal()
    with pytest.raises(NoInputError, match=r"collection\.json"):
        Collection.open("memory://bucket/nothing")


def test_noise_ceilings_are_those_of_the_definition(one):
    collection, trials, _ = one
    betas = collection.betas("sub-01_NSD").astype(float)
    ceilings = collection.noise_ceilings("sub-01_NSD")
    assert set(ceilings) == {(p, n) for p in ("train", "test") for n in ("1", "avg")}
    for phase in ("train", "test"):
        rows = np.flatnonzero(trials["phase"] == phase)
        code = np.unique(trials["stimulus"].iloc[rows], return_inverse=True)[1]
        cube = arrange_repeats(betas[rows].T, code)
        np.testing.assert_allclose(ceilings[phase, "1"], noise_ceiling(cube, n=1), atol=2e-4)
        np.testing.assert_allclose(ceilings[phase, "avg"], noise_ceiling(cube, n="avg"), atol=2e-4)
        assert np.isnan(ceilings[phase, "1"][[7, 8]]).all()
        assert np.isfinite(ceilings[phase, "1"][9])
        # signal variance 4, noise variance 1
        assert np.nanmedian(ceilings[phase, "1"]) == pytest.approx(80, abs=5)


def test_noise_ceilings_of_the_reference(monkeypatch):
    from pathlib import Path

    from conform_app.mosaic import ceilings

    given = np.load(Path(__file__).parent / "data" / "reliability" / "noiseceiling.npz")
    betas = given["betas_varying"]  # (vertices, repeats, stimuli)
    there = ~np.isnan(betas).all(axis=0)
    stimulus = np.nonzero(there.T)[0]
    flat = betas.transpose(2, 1, 0)[there.T]  # (trials, vertices)
    monkeypatch.setattr(ceilings, "_PIECE_BYTES", 3 * 8 * len(flat))
    strips = [(slice(0, 7), flat[:, :7]), (slice(7, 20), flat[:, 7:])]
    got = ceilings.phase_ceilings(strips, stimulus, np.full(len(flat), "test"), betas.shape[0])
    np.testing.assert_allclose(got["test", "1"], given["varying_nc_n1"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got["test", "avg"], given["varying_nc_navg"], rtol=1e-9, atol=1e-9)


def test_strips_cover_the_array_whatever_their_size(one):
    reader = ShardReader(one[0].root / "participants/sub-01_NSD/betas", Grain(300, V, "float32"))
    whole = one[0].betas("sub-01_NSD")
    for budget in (1, 4 * 300 * 700, 1 << 30):
        if budget == 1:
            vertices, strip = next(reader.strips(budget))
            np.testing.assert_array_equal(strip, whole[:, vertices])
            continue
        strips = list(reader.strips(budget))
        assert [s.start for s, _ in strips] == [0, *(s.stop for s, _ in strips[:-1])]
        np.testing.assert_array_equal(np.concatenate([b for _, b in strips], axis=1), whole)


def test_no_repeats_no_ceiling(tmp_path):
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=10)
    trials = pd.DataFrame({"stimulus": list("abcd"), "phase": "train"})
    betas = np.random.default_rng(0).standard_normal((4, 10))
    record = collection.add_participant("HAD", "sub-01", trials, [FitUnit("ses-01", betas)])
    assert record["noise_ceilings"] == []
    assert "No stimulus is repeated" in record["account"][0]
    assert collection.noise_ceilings("sub-01_HAD") == {}


def test_a_fit_of_test_trials_alone_needs_its_own_statistics(tmp_path):
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=6)
    trials = pd.DataFrame({"stimulus": list("abab") * 5, "phase": "test"})
    betas = np.random.default_rng(0).normal(3, 2, (20, 6))
    with pytest.raises(DataError, match="sub-01_X: tests has 0 train trials"):
        collection.add_participant("X", "sub-01", trials, [FitUnit("tests", betas)])
    assert collection.pending == []
    record = collection.add_participant("X", "sub-01", trials, [FitUnit("tests", betas, own_statistics=True)])
    z = collection.betas("sub-01_X")
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(0, ddof=1), 1, atol=1e-5)
    assert "not on the scale of train trials" in record["account"][0]


def test_float16_halves_the_store_and_reads_as_float32(tmp_path):
    trials, betas = make(40, 10, 2, n_vertices=100)
    kept = {}
    for dtype in ("float32", "float16"):
        collection = Collection.create(tmp_path / dtype, space="toy", n_vertices=100, dtype=dtype)
        collection.add_participant("A", "sub-01", trials, [FitUnit("all", betas)])
        kept[dtype] = collection.betas("sub-01_A")
        assert kept[dtype].dtype == np.float32
        size = (collection.root / "participants/sub-01_A/betas/c/0/0").stat().st_size
        assert size == 64 * 100 * np.dtype(dtype).itemsize + 8 * 16 + 4
        stored = zarr.open_array(collection.root / "participants/sub-01_A/betas")
        np.testing.assert_array_equal(stored[:].astype(np.float32), kept[dtype])
    np.testing.assert_allclose(kept["float16"], kept["float32"], rtol=1e-3, atol=1e-3)
    with pytest.raises(DataError, match="too large for float16"):
        collection.add_participant("A", "sub-02", trials, [FitUnit("all", betas * 1e6)], normalise=False)
    assert collection.pending == ["sub-01_A"]


def test_betas_come_from_anything_that_slices(tmp_path, monkeypatch):
    trials, betas = make(70, 10, 2, n_vertices=50)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["b"] = betas
    np.save(tmp_path / "b.npy", betas)
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=50)
    with h5py.File(tmp_path / "b.h5") as file:
        collection.add_participant("A", "sub-01", trials, [FitUnit("all", file["b"])])
    mapped = np.load(tmp_path / "b.npy", mmap_mode="r")
    collection.add_participant("A", "sub-02", trials, [FitUnit("all", mapped)])
    np.testing.assert_array_equal(collection.betas("sub-01_A"), collection.betas("sub-02_A"))
    # Fits that end anywhere within a chunk give the same rows
    parts = [FitUnit(f"{i}", betas[i : i + 7]) for i in range(0, 70, 7)]
    collection.add_participant("A", "sub-03", trials, parts, normalise=False)
    np.testing.assert_array_equal(collection.betas("sub-03_A"), betas)


def test_averages_are_carried_beside_the_trials(tmp_path):
    trials, betas = make(70, 10, 2, n_vertices=50)
    names = sorted(set(trials["stimulus"]))
    values = np.random.default_rng(1).standard_normal((len(names), 50)).astype(np.float32)
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=50)
    units = [FitUnit("all", betas)]
    collection.add_participant("A", "sub-01", trials, units, averages=Averages(names, values))
    for _ in range(2):
        got, rows = collection.averages("sub-01_A")
        assert got.tolist() == names
        np.testing.assert_array_equal(rows, values)
        collection.seal()
    collection.add_participant("A", "sub-02", trials, units)
    with pytest.raises(NoInputError):
        collection.averages("sub-02_A")
    for wrong, said in (
        (Averages(["no.jpg"], values[:1]), "none of its trials"),
        (Averages(names, values[:2]), "shape"),
    ):
        with pytest.raises(DataError, match=said):
            collection.add_participant("A", "sub-03", trials, units, averages=wrong)
    assert collection.pending == ["sub-02_A"]


def test_averages_of_one_picture_under_two_names_are_pooled_by_trials(tmp_path):
    trials, betas = make(70, 10, 2, n_vertices=50)
    names = sorted(set(trials["stimulus"]))
    train = [name for name in names if (trials["phase"][trials["stimulus"] == name] == "train").all()]
    one, other = train[1], train[4]
    trials["sha256"] = [name if name != other else one for name in trials["stimulus"]]
    values = np.random.default_rng(1).standard_normal((len(names), 50)).astype(np.float32)
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=50)
    given = Averages(names, values)
    collection.add_participant("A", "sub-01", trials, [FitUnit("all", betas)], averages=given)
    collection.seal()
    got, rows = collection.averages("sub-01_A")
    assert len(set(got)) == len(got) == len(names) - 1
    assert set(got) == set(collection.trials("sub-01_A")["stimulus"])
    pair = [names.index(one), names.index(other)]
    counts = [(trials["stimulus"] == names[i]).sum() for i in pair]
    (place,) = [i for i, name in enumerate(got) if name in (one, other)]
    np.testing.assert_allclose(rows[place], np.average(values[pair], axis=0, weights=counts), rtol=1e-5)
    kept = [i for i, name in enumerate(got) if name not in (one, other)]
    np.testing.assert_array_equal(rows[kept], values[[names.index(got[i]) for i in kept]])


def test_averages_of_fits_are_on_the_scale_of_the_betas(tmp_path):
    """An average without denoising is the mean of the trials as they are stored."""
    trials, betas = make(70, 10, 2, n_vertices=50)
    betas = betas * 3.0 + 7.0
    units = [FitUnit("a", betas[:40]), FitUnit("b", 2.0 * betas[40:])]
    stim = trials["stimulus"].to_numpy(str)
    rows, fits, names, counts = [], [], [], []
    for unit, start, stop in zip(units, (0, 40), (40, 70), strict=True):
        for name in sorted(set(stim[start:stop])):
            mine = stim[start:stop] == name
            rows.append(unit.betas[mine].mean(axis=0))
            fits, names, counts = [*fits, unit.name], [*names, name], [*counts, int(mine.sum())]
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=50)
    given = Averages(names, np.stack(rows), method="none", fits=fits, n_trials=counts)
    record = collection.add_participant("A", "sub-01", trials, units, averages=given)
    assert record["averages_units"] == "z scores by the train trials of each fit"
    found, values = collection.averages("sub-01_A")
    stored = collection.betas("sub-01_A")
    assert found.tolist() == list(dict.fromkeys(names))
    expected = np.stack([stored[stim == name].mean(axis=0) for name in found])
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    raw = Averages(names, np.stack(rows), fits=fits, n_trials=counts, scaled=False)
    assert collection.add_participant("A", "sub-02", trials, units, averages=raw)["averages_units"] == (
        "percent signal change"
    )
    whole = np.concatenate([units[0].betas, units[1].betas])
    expected = np.stack([whole[stim == name].mean(axis=0) for name in found])
    np.testing.assert_allclose(collection.averages("sub-02_A")[1], expected, rtol=1e-4, atol=1e-5)
    for wrong in ({"fits": ["c"] * len(names)}, {"fits": fits[:2]}, {"fits": fits, "n_trials": [1]}):
        with pytest.raises(DataError, match="sub-03_A has averages"):
            collection.add_participant(
                "A", "sub-03", trials, units, averages=Averages(names, np.stack(rows), **wrong)
            )


def test_reruns_are_identical_byte_for_byte(tmp_path):
    trials, betas = make(70, 10, 2, n_vertices=50)
    found = []
    for name in ("a", "b"):
        collection = Collection.create(tmp_path / name, space="toy", n_vertices=50)
        collection.add_participant("A", "sub-01", trials, [FitUnit("all", betas)], sources=["bids::x"])
        digest = collection.seal()["digest"]
        root = collection.root / "participants"
        files = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        tables = {p.name: p.read_bytes() for p in (collection.root / "tables/v0001").iterdir()}
        found.append((digest, files, tables))
    assert found[0] == found[1]


def test_the_index_has_a_checksum_that_zarr_checks(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283  # the standard's check value
    grain = Grain(40, 30, "float32")
    writer = ShardWriter(tmp_path / "a", grain)
    values = np.random.default_rng(0).standard_normal((40, 30), dtype=np.float32)
    writer.put(values[:32])
    writer.put(values[32:])
    files = writer.close()
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a")[:], values)
    np.testing.assert_array_equal(ShardReader(tmp_path / "a", grain).read(np.arange(40), None), values)
    path = tmp_path / "a" / "c/0/0"
    assert files == {"c/0/0": (path.stat().st_size, files["c/0/0"][1])}
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"(?i)checksum"):
        zarr.open_array(tmp_path / "a")[:]


def test_tables_keep_names_that_look_like_numbers(one, tmp_path):
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=4)
    trials = pd.DataFrame(
        {
            "stimulus": ["001", "1", "nan", "1e5"],
            "phase": "train",
            "onset": [0.1, 1 / 3, np.nan, 4],
            "run": [1, 2, 3, 4],
            "button": [True, False, True, False],
            "note": ["", "é", "x y", '"'],
        }
    )
    collection.add_participant("A", "sub-01", trials, [FitUnit("u", np.eye(4))])
    back = collection.trials("sub-01_A")
    assert back["name"].tolist() == ["001", "1", "nan", "1e5"]
    np.testing.assert_array_equal(back["onset"], trials["onset"])
    assert back["run"].tolist() == [1, 2, 3, 4]
    assert back["button"].tolist() == [True, False, True, False]
    assert back["note"].tolist() == ["n/a", "é", "x y", '"']
    sidecar = json.loads((collection.root / "participants/sub-01_A/trials.json").read_text())
    assert sidecar["onset"] == {"Description": "Start of the trial in its run, seconds", "Format": "number"}
    trials["note"] = "a\tb"
    with pytest.raises(DataError, match="tab or line break"):
        collection.add_participant("A", "sub-02", trials, [FitUnit("u", np.eye(4))])


def test_selecting_trials(one):
    collection, trials, _ = one
    rows = collection.select("sub-01_NSD", split="test", run=[1, 2])
    assert set(rows) == set(np.flatnonzero((trials["phase"] == "test") & trials["run"].isin([1, 2])))
    assert collection.trials("sub-01_NSD")["stimulus"][rows].isin([f"{i:03d}.jpg" for i in range(20)]).all()
    name = trials["stimulus"][0]
    assert set(collection.select("sub-01_NSD", stimulus=name)) == set(
        np.flatnonzero(trials["stimulus"] == name)
    )
    repetition = collection.trials("sub-01_NSD")["repetition"].to_numpy()
    assert repetition[trials["stimulus"] == name].tolist() == list(range((trials["stimulus"] == name).sum()))
    with pytest.raises(UsageError, match="'colour'"):
        collection.select("sub-01_NSD", colour="red")
    # a misspelt split would otherwise be a study without any such trial
    with pytest.raises(UsageError, match="'tests' is no split"):
        collection.select("sub-01_NSD", split="tests")
    both = set(collection.select("sub-01_NSD", stimulus=list(trials["stimulus"][:2])))
    for given in (trials["stimulus"][:2].to_numpy(), set(trials["stimulus"][:2]), trials["stimulus"][:2]):
        assert set(collection.select("sub-01_NSD", stimulus=given)) == both


def test_betas_without_the_name_of_their_fit_are_refused(tmp_path):
    collection = Collection.create(tmp_path / "c", space="x", n_vertices=4)
    trials = pd.DataFrame({"stimulus": list("abcd"), "phase": ["train"] * 4})
    for units in ([np.eye(4)], FitUnit("u", np.eye(4)), np.eye(4)):
        with pytest.raises(DataError, match="FitUnit"):
            collection.add_participant("A", "sub-01", trials, units)


@pytest.mark.parametrize("wrong", [[300], [-301], [0.5], np.ones(5, bool), [[1]]])
def test_wrong_indices_are_refused(one, wrong):
    with pytest.raises(UsageError):
        one[0].betas("sub-01_NSD", wrong)


def test_wrong_calls_of_create(tmp_path):
    with pytest.raises(UsageError, match="int8"):
        Collection.create(tmp_path / "a", space="toy", n_vertices=5, dtype="int8")
    with pytest.raises(UsageError, match="0 is no number"):
        Collection.create(tmp_path / "a", space="toy", n_vertices=0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.docx").write_text("x")
    with pytest.raises(CannotCreateError, match="not empty"):
        Collection.create(tmp_path / "b", space="toy", n_vertices=5)
    Collection.create(tmp_path / "c", space="toy", n_vertices=5)
    with pytest.raises(CannotCreateError, match="already"):
        Collection.create(tmp_path / "c", space="toy", n_vertices=5)
    with pytest.raises(CannotCreateError, match="space 'toy' instead of 'fsLR'"):
        Collection.create(tmp_path / "c", space="fsLR", n_vertices=5, exist_ok=True)
    assert Collection.create(tmp_path / "c", space="toy", n_vertices=5, exist_ok=True).keys == []
    with pytest.raises(NoInputError, match="collection"):
        Collection.open(tmp_path / "d")
