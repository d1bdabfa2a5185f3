# SPDX-License-Identifier: Apache-2.0
"""The shim for existing scripts: the reference's own options, dictionaries and files, case by case."""

import json
import warnings

import numpy as np
import pytest
from glmsingle_cases import ATOL, RTOL, fixture

from conform_app.glmsingle.compat import GLM_single

CASES = [
    ("mini", "mini"),
    ("default", "base"),
    ("default_2d", "mini"),
    ("unequal", "unequal"),
    ("session", "session"),
    ("session_ignored", "session"),
    ("norepeat", "norepeat"),
    ("norepeat_forced", "norepeat"),
    ("within", "within"),
    ("assumehrf", "base"),
    ("hrftoassume", "base"),
    ("hrflibrary", "base"),
    ("fracs_noauto", "base"),
    ("xvalscheme", "base"),
    ("extraregressors", "base"),
    ("extraregressors_nopc", "mini"),
    ("nopercent", "mini"),
    ("brainr2", "mini"),
    ("pcmask", "mini"),
    ("rronly", "mini"),
    ("denoiseonly", "mini"),
    ("lss", "mini"),
    ("chunked", "mini"),
    ("upsampled", "upsampled"),
    ("upsampled_noauto", "upsampled"),
]


def read(name, flat=False):
    """Data in their own shape (or 2-D), designs, stimulus duration, TR."""
    file = fixture(f"in_{name}")
    runs = range(int(file["nruns"]))
    data = [file[f"data_{r}"] for r in runs]
    if flat:
        data = [y.reshape(-1, y.shape[-1]) for y in data]
    return [file[f"design_{r}"] for r in runs], data, float(file["stimdur"]), float(file["tr"])


def params_of(output):
    """The options as they were given to the reference."""
    params = json.loads(str(output["params_json"]))
    for name, value in params.items():
        if isinstance(value, str):
            single, many = f"param_{name}", sorted(k for k in output.files if k.startswith(f"param_{name}_"))
            params[name] = output[single] if single in output.files else [output[k] for k in many]
        elif name == "xvalscheme":
            params[name] = [np.array(fold) for fold in value]
    return params


def run(name, params, folder, *, flat=False):
    model = GLM_single(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return model, model.fit(*read(name, flat), str(folder), str(folder / "figures"))


def compare(found, output):
    """Every field of the reference, by name, shape, kind and value."""
    seen = 0
    for key in output.files:
        kind, _, field = key.partition("_")
        if not kind.startswith("type"):
            continue
        if field.startswith("pcregressors"):
            if output[key].size == 0:
                assert found[kind]["pcregressors"] == []
                continue
            ours = found[kind]["pcregressors"][int(field.rpartition("_")[2])]
            assert ours.shape == output[key].shape
            sign = np.sign(np.sum(ours * output[key], axis=0))  # and near-equal eigenvalues may mix
            assert np.abs(ours[:, 0] * sign[0] - output[key][:, 0]).max() < 1e-3
            continue
        ours, theirs = found[kind][field], output[key]
        ours = np.asarray(ours)
        assert ours.shape == theirs.shape, key
        assert ours.dtype.kind == theirs.dtype.kind, key
        if theirs.dtype.kind in "ib":
            np.testing.assert_array_equal(ours, theirs, err_msg=key)
        else:
            if theirs.size:
                assert ours.dtype == theirs.dtype, key
            np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=ATOL, err_msg=key)
        seen += 1
    assert seen >= 5


@pytest.mark.parametrize(("case", "name"), CASES, ids=[c for c, _ in CASES])
def test_dictionaries_equal_the_reference_s(case, name, tmp_path):
    output = fixture(f"out_{case}")
    model, found = run(name, params_of(output), tmp_path, flat=case == "default_2d")
    compare(found, output)
    kinds = {key.partition("_")[0] for key in output.files if key.startswith("type")}
    assert kinds == set(found) if "typeb" in kinds else kinds <= set(found)
    for name in ("maxpolydeg", "wantglmdenoise", "wantfracridge"):
        np.testing.assert_array_equal(np.asarray(model.params[name]), output[f"info_{name}"])
    for name in ("brainR2", "pcR2cutoff"):
        if f"info_{name}" in output.files and output[f"info_{name}"].size:
            ours = np.asarray(model.params[name], float)
            if ours.size and "typec" in found:
                np.testing.assert_allclose(ours, output[f"info_{name}"], rtol=1e-4)


def test_files_hold_what_is_returned(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    _, found = run("mini", {}, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    names = {
        "typea": "TYPEA_ONOFF",
        "typeb": "TYPEB_FITHRF",
        "typec": "TYPEC_FITHRF_GLMDENOISE",
        "typed": "TYPED_FITHRF_GLMDENOISE_RR",
    }
    for key, name in names.items():
        stored = np.load(tmp_path / f"{name}.npy", allow_pickle=True).item()
        assert stored.keys() == found[key].keys()
        np.testing.assert_array_equal(stored["betasmd"], found[key]["betasmd"])
    assert {p.name for p in tmp_path.iterdir()} == {
        "mine.txt",
        "DESIGNINFO.npy",
        "RUNWISEFIR.npy",
        *(f"{n}.npy" for n in names.values()),
    }
    run("mini", {"wantfileoutputs": [0, 0, 0, 1]}, tmp_path)
    assert (tmp_path / "TYPEB_FITHRF.npy").exists()


def test_design_and_finite_impulse_responses_equal_the_reference_s(tmp_path):
    run("base", {"wantfileoutputs": [1, 0, 0, 0], "wantmemoryoutputs": [0, 0, 0, 1]}, tmp_path)
    output = fixture("out_default")
    info = np.load(tmp_path / "DESIGNINFO.npy", allow_pickle=True).item()
    for name in ("stimorder", "numtrialrun", "condcounts", "condinruns", "endbuffers"):
        np.testing.assert_allclose(info[name], output[f"design_{name}"], atol=1e-9)
    designs = read("base")[0]
    for full, single in zip(designs, info["designSINGLE"], strict=True):
        np.testing.assert_array_equal(single.sum(axis=1), full.sum(axis=1))
        for volume, trial in zip(*np.nonzero(single), strict=True):
            assert full[volume, info["stimorder"][trial]] == 1
    fir = np.load(tmp_path / "RUNWISEFIR.npy", allow_pickle=True).item()
    for name in ("firR2", "firavg", "firgrandavg"):
        assert fir[name].shape == output[f"fir_{name}"].shape
        np.testing.assert_allclose(fir[name], output[f"fir_{name}"], rtol=RTOL, atol=ATOL)
    assert fir["firtcs"].shape == (4, 8, 8, 6, 1, 19)
    assert not (tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.npy").exists()


def test_hdf5_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    _, found = run("mini", {"wanthdf5": 1}, tmp_path)
    compare(found, fixture("out_mini"))
    with h5py.File(tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.hdf5") as file:
        np.testing.assert_array_equal(file["betasmd"][()], found["typed"]["betasmd"])
        assert file.attrs["pcnum"] == found["typed"]["pcnum"]
        assert file["pcregressors"].shape == (3, 90, 11)
    with h5py.File(tmp_path / "TYPEA_ONOFF.hdf5") as file:
        assert set(file) == {"onoffR2", "meanvol", "betasmd"}
    assert (tmp_path / "DESIGNINFO.npy").exists()


def test_ragged_lists_and_nothing_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    _, found = run("unequal", {"wanthdf5": 1, "pcstop": -2}, tmp_path)
    with h5py.File(tmp_path / "TYPEC_FITHRF_GLMDENOISE.hdf5") as file:
        assert sorted(file["pcregressors"]) == [str(r) for r in range(5)]
        np.testing.assert_array_equal(file["pcregressors"]["3"][()], found["typec"]["pcregressors"][3])
        assert file["glmbadness"].shape is None


def test_memory_outputs_and_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"wantfileoutputs": [0, 0, 0, 0], "wantmemoryoutputs": [0, 0, 0, 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = GLM_single(quiet).fit(*read("mini"))
    assert set(found) == {"typed"}
    assert list(tmp_path.iterdir()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        GLM_single({"wantfileoutputs": [0, 0, 0, 1]}).fit(*read("mini"))
    assert (tmp_path / "GLMestimatesingletrialoutputs" / "TYPED_FITHRF_GLMDENOISE_RR.npy").exists()


def test_what_crashes_in_the_reference_works(tmp_path):
    for case, name in (("xvallist", "base"), ("xvalscheme_mini", "mini"), ("brainexclude", "mini")):
        output = fixture(f"out_{case}")
        assert str(output["log_error"])
        assert set(run(name, params_of(output), tmp_path)[1]) == {"typea", "typeb", "typec", "typed"}
    _, found = run("nan", {}, tmp_path)
    assert np.isfinite(found["typed"]["betasmd"]).any()


def test_one_run_sparse_designs_and_the_caller_s_arrays(tmp_path):
    from scipy.sparse import csr_matrix

    design, data, stimdur, tr = read("mini")
    before = [y.copy() for y in data]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = GLM_single().fit([csr_matrix(d) for d in design], data, stimdur, tr, tmp_path)
        alone = GLM_single().fit(design[0], data[0], stimdur, tr, tmp_path)
    compare(found, fixture("out_mini"))
    assert set(alone) == {"typea", "typeb"}
    for y, was in zip(data, before, strict=True):
        np.testing.assert_array_equal(y, was)
    with pytest.warns(UserWarning, match="runs of data"):
        GLM_single().fit(design[:2], data, stimdur, tr, tmp_path)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"wantlibary": 1}, "wantlibary"),
        ({"wantfileoutputs": [1, 1]}, "wantfileoutputs"),
        ({"wantmemoryoutputs": [1, 1, 2, 1]}, "wantmemoryoutputs"),
        ({"wantfileoutputs": [1, 1, 0, 0], "wantmemoryoutputs": [1, 1, 0, 0]}, "wantglmdenoise"),
        ({"wantfileoutputs": [1, 1, 1, 0], "wantmemoryoutputs": [1, 1, 1, 0]}, "wantfracridge"),
        ({"fracs": [0, 0.5]}, "fracs"),
        ({"pcstop": 0.5}, "pcstop"),
        ({"n_pcs": -1}, "n_pcs"),
        ({"chunklen": 0}, "chunklen"),
        ({"xvalscheme": "volume"}, "xvalscheme"),
    ],
)
def test_wrong_options_are_value_errors(params, words):
    with pytest.raises(ValueError, match=words):
        GLM_single(params)


def test_options_without_effect_are_accepted():
    GLM_single({"numforhrf": 50, "hrfmodel": "optimise", "n_jobs": 2, "lambda": 1, "suppressoutput": 1})


def test_wrong_data_are_value_errors(tmp_path):
    design, data, stimdur, tr = read("mini")
    with pytest.raises(ValueError, match="Run 2"):
        GLM_single().fit([design[0], design[1] * 0, design[2]], data, stimdur, tr, tmp_path)
    with pytest.raises(ValueError, match="repetition time"):
        GLM_single().fit(design, data, stimdur, -1.0, tmp_path)
