# SPDX-License-Identifier: Apache-2.0
"""What must hold for any data: blocks, order, odd voxels, exact onsets, bad input."""

import numpy as np
import pytest

from conform_app.errors import DataError, UsageError
from conform_app.glmsingle import GLMsingleOptions, RunTrials, fit_fir, fit_glmsingle
from conform_app.glmsingle.hrf import TableResponses, library_table

TR, STIMDUR, N_VOXELS = 2.0, 3.0, 60


def simulate(seed=0, n_runs=3, n_volumes=90, jitter=0.0, start=0.0, noise=0.6, spacing=5):
    """Runs with 14 trials of 7 conditions, HRF 10 for all voxels; returns data, trials, true betas."""
    rng = np.random.default_rng(seed)
    responses = TableResponses(library_table(), TR, whole_seconds=True)
    pattern = rng.normal(2, 1.5, size=(N_VOXELS, 7))
    pattern[N_VOXELS // 2 :] = 0
    base = rng.uniform(600, 1400, size=(N_VOXELS, 1))
    data, design, truth = [], [], []
    for _ in range(n_runs):
        onset = (3 + spacing * np.arange(14)) * TR + jitter * rng.uniform(0, TR, 14)
        condition = rng.permutation(np.repeat(np.arange(7), 2))
        times = start + np.arange(n_volumes) * TR
        x = np.stack([responses.sample(times - t, STIMDUR)[:, 10] for t in onset], axis=1)
        betas = pattern[:, condition]
        shared = rng.normal(size=(2, n_volumes))
        weights = rng.normal(size=(N_VOXELS, 2)) * 0.5
        e = noise * rng.normal(size=(N_VOXELS, n_volumes)) + weights @ shared
        data.append((base * (1 + (betas @ x.T + e) / 100)).astype(np.float32))
        design.append(RunTrials(onset, np.full(14, STIMDUR), condition))
        truth.append(betas)
    return data, design, np.concatenate(truth, axis=1)


def as_arrays(design, n_volumes=90):
    out = []
    for trials in design:
        x = np.zeros((n_volumes, 7), int)
        x[np.round(trials.onset / TR).astype(int), trials.condition] = 1
        out.append(x)
    return out


@pytest.fixture(scope="module")
def case():
    return simulate()


@pytest.fixture(scope="module")
def whole(case):
    data, design, _ = case
    return fit_glmsingle(data, design, None, TR)


def same(a, b, rows=slice(None), **tolerance):
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-4}
    assert a.type_c.pcnum == b.type_c.pcnum
    np.testing.assert_array_equal(a.type_b.hrf_index[rows], b.type_b.hrf_index)
    np.testing.assert_array_equal(a.type_d.frac_value[rows], b.type_d.frac_value)
    for letter in "abcd":
        one, two = getattr(a, f"type_{letter}"), getattr(b, f"type_{letter}")
        np.testing.assert_allclose(one.betas[rows], two.betas, **tolerance)
        np.testing.assert_allclose(one.r2[rows], two.r2, **tolerance)


@pytest.mark.parametrize("length", [1, 7, 59])
def test_blocks_do_not_change_results(case, whole, length):
    data, design, _ = case
    same(whole, fit_glmsingle(data, design, None, TR, options=GLMsingleOptions(chunklen=length)))


def test_same_input_same_bytes(case, whole):
    data, design, _ = case
    again = fit_glmsingle(data, design, None, TR)
    for letter in "abcd":
        one, two = getattr(whole, f"type_{letter}").betas, getattr(again, f"type_{letter}").betas
        assert one.tobytes() == two.tobytes()


def test_threads_and_input_forms_do_not_change_results(case, whole, tmp_path):
    data, design, _ = case
    before = [y.copy() for y in data]
    same(whole, fit_glmsingle(data, design, None, TR, n_threads=2))
    same(whole, fit_glmsingle([y.reshape(5, 4, 3, 90) for y in data], design, None, TR))
    same(whole, fit_glmsingle([y.astype(float) for y in data], design, None, TR))
    mapped = []
    for r, y in enumerate(data):
        np.save(tmp_path / f"{r}.npy", y)
        mapped.append(np.load(tmp_path / f"{r}.npy", mmap_mode="r"))
    same(whole, fit_glmsingle(mapped, design, None, TR))
    for y, z in zip(data, before, strict=True):
        np.testing.assert_array_equal(y, z)


def test_permuting_voxels_permutes_results(case, whole):
    data, design, _ = case
    order = np.random.default_rng(1).permutation(N_VOXELS)
    same(whole, fit_glmsingle([y[order] for y in data], design, None, TR), order)


@pytest.mark.parametrize("kind", ["nan", "inf", "zero", "constant", "constant in one run"])
def test_bad_voxel_changes_no_other(case, whole, kind):
    data, design, _ = case
    row = {"nan": np.nan, "inf": np.inf, "zero": 0.0}.get(kind, 500.0)
    bad = []
    for r, y in enumerate(data):
        extra = y[:1].copy()
        if kind in ("zero", "constant") or r == 1:
            extra[:] = row
        if kind in ("nan", "inf"):
            extra[:, 5:] = y[:1, 5:]
        bad.append(np.vstack([y[:20], extra, y[20:]]))
    result = fit_glmsingle(bad, design, None, TR)
    others = np.delete(np.arange(N_VOXELS + 1), 20)
    assert not result.valid[20]
    assert result.valid[others].all()
    assert np.isnan(result.type_d.betas[20]).all()
    assert not result.type_c.noise_pool[20]
    runs = "runs 1, 2 and 3" if kind in ("zero", "constant") else "run 2"
    assert any(
        text.startswith("Left out of 61 voxels: 1 ") and f"({runs})" in text for text in result.warnings
    )
    same(result, whole, others)


def test_trials_on_the_grid_equal_a_01_design(case, whole):
    data, design, _ = case
    result = fit_glmsingle(data, as_arrays(design), STIMDUR, TR)
    in_time = np.concatenate([14 * r + np.argsort(t.onset) for r, t in enumerate(design)])
    np.testing.assert_array_equal(result.trial_condition, whole.trial_condition[in_time])
    same(whole, result, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.hrfs, whole.hrfs)


def test_trials_keep_the_order_given(case, whole):
    data, design, _ = case
    back = [RunTrials(t.onset[::-1], t.duration[::-1], t.condition[::-1]) for t in design]
    result = fit_glmsingle(data, back, None, TR)
    order = np.concatenate([14 * r + np.arange(14)[::-1] for r in range(3)])
    np.testing.assert_allclose(result.type_d.betas, whole.type_d.betas[:, order], rtol=1e-4, atol=1e-4)


def test_exact_onsets_recover_more_than_rounded_ones():
    data, design, truth = simulate(seed=3, jitter=1.0, noise=0.3, spacing=5, start=0.9)
    exact = fit_glmsingle(data, design, None, TR, start_times=0.9)
    rounded = fit_glmsingle(data, as_arrays(design), STIMDUR, TR)
    unshifted = fit_glmsingle(data, design, None, TR)
    task = slice(0, N_VOXELS // 2)
    order = np.concatenate([14 * r + np.argsort(t.onset) for r, t in enumerate(design)])

    def error(result, letter, truth=truth):
        return np.mean((getattr(result, f"type_{letter}").betas[task] - truth[task]) ** 2)

    for letter in "bcd":
        assert error(exact, letter) < 0.7 * error(rounded, letter, truth[:, order])
        assert error(exact, letter) < error(unshifted, letter)
    assert np.mean(exact.type_b.r2[task]) > np.mean(rounded.type_b.r2[task])


def test_durations_per_trial_are_exact_without_noise():
    rng = np.random.default_rng(5)
    responses = TableResponses(library_table(), TR, whole_seconds=True)
    data, design = [], []
    betas = rng.normal(1, 1, size=(4, 20))
    for r in range(2):
        onset = 4 + 17 * np.arange(10) + rng.uniform(0, 2, 10)
        duration = rng.choice([1.0, 4.0, 8.0], 10)
        times = np.arange(110) * TR
        x = np.stack(
            [responses.sample(times - o, d)[:, 7] for o, d in zip(onset, duration, strict=True)], axis=1
        )
        data.append((1000 * (1 + betas[:, 10 * r : 10 * r + 10] @ x.T / 100)).astype(np.float32))
        design.append(RunTrials(onset, duration, np.arange(10)))
    result = fit_glmsingle(data, design, None, TR)
    assert (result.type_b.hrf_index == 7).all()
    scaled = result.type_b.betas * result.mean_vol[:, None] / 1000
    np.testing.assert_allclose(scaled, betas, atol=2e-3)


def test_extra_regressors_are_always_used(case):
    data, design, _ = case
    rng = np.random.default_rng(6)
    motion = [m - m.mean(axis=0) for m in rng.normal(size=(3, 90, 2))]
    moved = [
        y + (20 * np.outer(rng.normal(size=N_VOXELS), m[:, 0])).astype(np.float32)
        for y, m in zip(data, motion, strict=True)
    ]
    motion[0][0, 1] = np.nan
    for more in ({"pcstop": 0}, {"wantglmdenoise": False}, {}):
        # One HRF: R2, by which HRFs are chosen, counts what the regressors explain as noise.
        options = GLMsingleOptions(wantlibrary=False, **more)
        clean = fit_glmsingle(data, design, None, TR, options=options, extra_regressors=motion)
        result = fit_glmsingle(moved, design, None, TR, options=options, extra_regressors=motion)
        for letter in "ab":
            one, two = getattr(clean, f"type_{letter}").betas, getattr(result, f"type_{letter}").betas
            np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-3)
        if more:
            np.testing.assert_allclose(clean.type_d.betas, result.type_d.betas, rtol=2e-3, atol=2e-3)
        assert any("not finite" in w for w in result.warnings)


def test_single_run_and_fixed_choices():
    data, design, _ = simulate(n_runs=1)
    result = fit_glmsingle(data, design, None, TR)
    assert result.type_c is None
    assert result.type_d is None
    assert np.isfinite(result.type_b.betas).all()
    assert any("cross-validat" in w for w in result.warnings)
    result = fit_glmsingle(data, design, None, TR, options=GLMsingleOptions(pcstop=-2, fracs=0.4))
    assert result.type_c.pcnum == 2
    assert (result.type_d.frac_value == np.float32(0.4)).all()


def test_tiny_masks_do_not_crash(case):
    data, design, _ = case
    for n in (1, 2, 5, 12):
        result = fit_glmsingle([y[:n] for y in data], design, None, TR)
        assert np.isfinite(result.type_d.betas).all()
        assert n > 9 or any("Too few voxels" in w for w in result.warnings)
    result = fit_glmsingle(data, design, None, TR, options=GLMsingleOptions(brainR2=-1.0))
    assert result.type_c.pcnum == 0
    np.testing.assert_allclose(result.type_c.betas, result.type_b.betas, rtol=1e-4, atol=1e-4)
    assert any("noise pool" in w for w in result.warnings)


def test_late_trials_are_nan_and_harm_nothing(case, whole):
    data, design, _ = case
    first = design[0]
    late = [
        RunTrials(np.append(first.onset, 179.0), np.full(15, STIMDUR), np.append(first.condition, 0)),
        *design[1:],
    ]
    result = fit_glmsingle(data, late, None, TR)
    for letter in "abcd":
        betas = getattr(result, f"type_{letter}").betas
        assert np.isnan(betas[:, 14]).all()
        assert np.isfinite(np.delete(betas, 14, axis=1)).all()
    kept = np.delete(np.arange(43), 14)
    np.testing.assert_allclose(result.type_d.betas[:, kept], whole.type_d.betas, rtol=1e-4, atol=1e-4)
    assert any("NaN" in w for w in result.warnings)


def test_memory_limit_only_sets_the_block(case, whole):
    data, design, _ = case
    same(whole, fit_glmsingle(data, design, None, TR, max_memory=2**28))
    many = [np.tile(y, (10, 1)) for y in data]
    with pytest.raises(UsageError, match="GiB"):
        fit_glmsingle(many, design, None, TR, max_memory=1000)


def test_keep_drops_betas_only(case, whole):
    data, design, _ = case
    result = fit_glmsingle(data, design, None, TR, options=GLMsingleOptions(keep="D"))
    assert result.type_a.betas is None
    assert result.type_b.betas is None
    assert result.type_c.betas is None
    np.testing.assert_allclose(result.type_d.betas, whole.type_d.betas, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.type_b.r2, whole.type_b.r2, rtol=1e-5)


def test_progress_and_account(case):
    data, design, _ = case
    seen = []
    result = fit_glmsingle(
        data, design, None, TR, options=GLMsingleOptions(chunklen=25), progress=lambda *a: seen.append(a)
    )
    stages = list(dict.fromkeys(s for s, _, _ in seen))
    assert stages == ["HRFs", "noise pool", "noise regressors", "ridge"]
    assert [d for s, d, _ in seen if s == "ridge"] == [20, 40, 60]
    text = " ".join(result.account)
    assert "42 trials of 7 conditions" in text
    assert f"{int(result.type_c.noise_pool.sum())} voxels" in text
    assert "median of" in text


def test_demeaned_data_draw_a_warning(case):
    data, design, _ = case
    result = fit_glmsingle([y - y.mean(axis=1, keepdims=True) for y in data], design, None, TR)
    assert any("mean had been removed" in w for w in result.warnings)


def _bad_inputs():
    data, design, _ = simulate()
    arrays = as_arrays(design)
    late = RunTrials([10.0, 400.0], [1.0, 1.0], [0, 1])
    gone = RunTrials([10.0], [np.nan], [0])
    none = RunTrials([], [], [])
    short = [data[0], data[1][:, :60], data[2]]
    other = [data[0], data[1][:10], data[2]]
    return {
        "design too long": ([data[0], data[1][:, :80], data[2]], arrays, STIMDUR, TR, "Run 2"),
        "runs differ in voxels": (other, design, None, TR, "Run 2"),
        "onset beyond the run": (data, [design[0], design[1], late], None, TR, "Run 3"),
        "onset beyond a short run": (short, design, None, TR, "Run 2"),
        "no trial (trials)": (data, [none, *design[1:]], None, TR, "Run 1"),
        "no trial (array)": (data, [arrays[0], arrays[1] * 0, arrays[2]], STIMDUR, TR, "Run 2"),
        "not 0/1": (data, [arrays[0], arrays[1] * 2, arrays[2]], STIMDUR, TR, "Run 2"),
        "no duration": (data, [gone, *design[1:]], None, TR, "Run 1"),
        "no stimdur": (data, arrays, None, TR, "stimdur"),
        "negative stimdur": (data, arrays, -1.0, TR, "duration"),
        "negative TR": (data, design, None, -2.0, "repetition time"),
        "no TR": (data, design, None, None, "repetition time"),
        "TR not a number": (data, design, None, np.nan, "repetition time"),
        "number of runs": (data, design[:2], None, TR, "3 runs"),
        "mixed kinds": (data, [design[0], arrays[1], arrays[2]], STIMDUR, TR, "same kind"),
        "nothing valid": ([y * 0 for y in data], design, None, TR, "constant in some run"),
        "one run not finite": ([data[0], data[1] * np.nan, data[2]], design, None, TR, "run 2"),
        "one run constant": ([*data[:2], np.full_like(data[2], 7)], design, None, TR, "run 3"),
        "no list": (data[0], design, None, TR, "list"),
        "three dimensions": ([y.reshape(6, 10, 90) for y in data], design, None, TR, "Run 1"),
    }


@pytest.mark.parametrize("name", list(_bad_inputs()))
def test_bad_input_names_the_run_and_the_remedy(name):
    data, design, stimdur, tr, words = _bad_inputs()[name]
    with pytest.raises(DataError, match=words) as caught:
        fit_glmsingle(data, design, stimdur, tr)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"sessions": [1, 2]}, DataError),
        ({"extra_regressors": [np.zeros((90, 1))] * 2}, DataError),
        ({"extra_regressors": [np.zeros((80, 1))] * 3}, DataError),
        ({"start_times": [0.0, 1.0]}, DataError),
        ({"options": GLMsingleOptions(xvalscheme=[[0], [7]])}, UsageError),
        ({"options": GLMsingleOptions(brainexclude=np.zeros(5))}, UsageError),
        ({"options": GLMsingleOptions(maxpolydeg=[1, 2])}, UsageError),
        ({"options": GLMsingleOptions(maxpolydeg=200)}, UsageError),
        ({"options": {"n_pcs": 3}}, UsageError),
    ],
)
def test_bad_options_for_the_data(case, more, error):
    data, design, _ = case
    with pytest.raises(error):
        fit_glmsingle(data, design, None, TR, **more)


def test_conditions_given_by_name_are_told_how_to_become_numbers():
    with pytest.raises(DataError, match="whole numbers from 0") as caught:
        RunTrials([0.0, 10.0], [1.0, 1.0], ["face", "house"])
    assert "return_inverse" in caught.value.remedy


def test_fir_finds_the_response_and_sets_odd_voxels_aside(case):
    data, design, _ = case
    odd = [y.copy() for y in data]
    odd[1][3] = np.nan
    odd[0][40] = 7
    fir = fit_fir(odd, design, TR, percentile=80)
    assert np.isnan(fir.r2[3, 1])
    assert np.isnan(fir.r2[40, 0])
    assert np.isfinite(np.delete(fir.r2, [3, 40], axis=0)).all()
    assert 4 <= fir.times[np.argmax(fir.average)] <= 8
    assert fir.best[: N_VOXELS // 2].sum() == fir.best.sum() > 0
