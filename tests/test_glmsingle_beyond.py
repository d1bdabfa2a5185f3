# SPDX-License-Identifier: Apache-2.0
"""What the reference does not have: standard errors, condition means, finer libraries, folds by session."""

import numpy as np
import pytest
from glmsingle_cases import load_input

from conform_app.errors import UsageError
from conform_app.glmsingle import GLMsingleOptions, RunTrials, fit_glmsingle
from conform_app.glmsingle.conditions import condition_means
from conform_app.glmsingle.design import polynomials
from conform_app.glmsingle.hrf import Between, SampledResponses, TableResponses, library_table

TR = 2.0


@pytest.fixture(scope="module")
def mini():
    data, design, stimdur, tr, _ = load_input("mini")
    return data, design, stimdur, tr


@pytest.fixture(scope="module")
def fitted(mini):
    return fit_glmsingle(*mini)


def model_of(result, data, design, tr, stimdur, voxel, pcnum):
    """X (all trials), nuisance and y of one voxel, all runs stacked, in float64."""
    from scipy.linalg import block_diag

    from conform_app.glmsingle.design import plan_trials

    plan = plan_trials(design, [y.shape[1] for y in data], stimdur, tr, 0.0)
    responses = TableResponses(library_table(), tr, whole_seconds=True)
    h = result.type_b.hrf_index[voxel]
    x = block_diag(*[plan.regressors(r, responses)[:, :, h].astype(float) for r in range(len(data))])
    nuisance = []
    for r, y in enumerate(data):
        drifts = polynomials(y.shape[1], result.poly_degrees[r])
        nuisance.append(np.hstack([drifts, result.type_c.pc_regressors[r][:, :pcnum]]))
    return x, block_diag(*nuisance), np.concatenate([y[voxel].astype(float) for y in data])


@pytest.mark.parametrize("voxel", [0, 17, 63, 101])
def test_standard_errors_equal_the_closed_forms(mini, fitted, voxel):
    data, design, stimdur, tr = mini
    gain = 100 / abs(float(fitted.mean_vol[voxel]))
    for letter, pcnum in (("b", 0), ("c", fitted.type_c.pcnum), ("d", fitted.type_c.pcnum)):
        x, z, y = model_of(fitted, data, design, tr, stimdur, voxel, pcnum)
        off = np.eye(len(y)) - z @ np.linalg.pinv(z)
        x, y = off @ x, off @ y
        gram = x.T @ x
        left = y - x @ np.linalg.solve(gram, x.T @ y)
        sigma2 = left @ left / (len(y) - z.shape[1] - x.shape[1])
        errors = getattr(fitted, f"type_{letter}").standard_error
        penalty = float(errors.penalty[voxel]) if letter == "d" else 0.0
        slope = float(fitted.type_d.scale_offset[voxel, 0]) if letter == "d" else 1.0
        covariance = sigma2 * np.linalg.inv(gram + penalty * np.eye(len(gram)))
        expected = np.sqrt(np.diag(covariance)) * abs(slope) * gain
        np.testing.assert_allclose(errors[voxel], expected, rtol=2e-4)
        np.testing.assert_allclose(errors.noise_sd[voxel], np.sqrt(sigma2) * gain, rtol=2e-4)


def test_ridge_betas_are_those_of_the_penalty_kept(mini, fitted):
    data, design, stimdur, tr = mini
    x, z, y = model_of(fitted, data, design, tr, stimdur, 17, fitted.type_c.pcnum)
    off = np.eye(len(y)) - z @ np.linalg.pinv(z)
    x, y = off @ x, off @ y
    penalty = float(fitted.type_d.standard_error.penalty[17])
    slope, offset = fitted.type_d.scale_offset[17]
    ridge = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y) * slope + offset
    np.testing.assert_allclose(
        fitted.type_d.betas[17], ridge * 100 / fitted.mean_vol[17], rtol=1e-3, atol=1e-3
    )


def test_standard_errors_slice_like_arrays(fitted):
    errors = fitted.type_d.standard_error
    whole = np.asarray(errors)
    assert errors.shape == whole.shape == fitted.type_d.betas.shape
    assert whole.dtype == np.float32
    assert len(errors) == len(whole)
    some = np.arange(len(errors)) % 7 == 0
    for key in (slice(5, 40), some, [3, 99], (slice(0, 9), slice(2, 5)), 4):
        np.testing.assert_array_equal(errors[key], whole[key])


def simulate(noise, n_voxels=400, seed=0):
    """Two runs, white noise, HRF 8 for all: data, trials, true betas."""
    rng = np.random.default_rng(seed)
    responses = TableResponses(library_table(), TR, whole_seconds=True)
    data, design, truth = [], [], []
    for _ in range(2):
        onset = 6 + 9.0 * np.arange(20) + rng.uniform(0, 2, 20)
        x = np.stack([responses.sample(np.arange(110) * TR - t, 2.0)[:, 8] for t in onset], axis=1)
        betas = rng.normal(1, 1, (n_voxels, 20))
        e = noise * rng.normal(size=(n_voxels, 110))
        data.append((1000 * (1 + (betas @ x.T + e) / 100)).astype(np.float32))
        design.append(RunTrials(onset, np.full(20, 2.0), np.arange(20)))
        truth.append(betas)
    return data, design, np.concatenate(truth, axis=1)


def test_standard_errors_are_calibrated_for_white_noise():
    data, design, truth = simulate(0.5)
    table = TableResponses(library_table(), TR, whole_seconds=True).on_grid(2.0)[:, 8]
    options = GLMsingleOptions(hrftoassume=table, wantlibrary=False, pcstop=0, maxpolydeg=1)
    result = fit_glmsingle(data, design, None, TR, options=options)
    gain = result.mean_vol[:, None] / 1000
    for letter in "abc":
        one = getattr(result, f"type_{letter}")
        z = (one.betas * gain - truth) / (np.asarray(one.standard_error) * gain)
        assert z.std() == pytest.approx(1, abs=0.03)
        assert np.median(one.standard_error.noise_sd) == pytest.approx(0.5, rel=0.03)


def test_errors_of_separate_fits_and_of_odd_voxels(mini):
    data, design, stimdur, tr = mini
    bad = [y.copy() for y in data]
    bad[1][9] = np.nan
    options = GLMsingleOptions(wantlss=True, wantglmdenoise=False, wantfracridge=False)
    result = fit_glmsingle(bad, design, stimdur, tr, options=options)
    errors = np.asarray(result.type_b.standard_error)
    assert np.isnan(errors[9]).all()
    assert np.isfinite(np.delete(errors, 9, axis=0)).all()
    full = np.asarray(fit_glmsingle(data, design, stimdur, tr).type_b.standard_error)
    assert np.mean(np.delete(errors < full, 9, axis=0)) > 0.99  # fewer regressors, less variance


def test_condition_means_and_t():
    from scipy import stats

    rng = np.random.default_rng(0)
    condition = np.array([5, 2, 2, 5, 7, 2, 9])
    betas = rng.normal(size=(6, 7)).astype(np.float32)
    betas[:, 3] = np.nan  # a trial that could not be estimated
    betas[4] = np.nan  # a voxel without a model
    found = condition_means(betas, condition)
    assert found.condition.tolist() == [2, 5, 7, 9]
    assert found.n_trials.tolist() == [3, 1, 1, 1]
    assert found.degrees == 2
    np.testing.assert_allclose(found.mean[0], [betas[0, [1, 2, 5]].mean(), *betas[0, [0, 4, 6]]], rtol=1e-6)
    # with one condition repeated, its t is that of one sample
    expected = stats.ttest_1samp(betas[:4, [1, 2, 5]].astype(float), 0, axis=1).statistic
    np.testing.assert_allclose(found.t[:4, 0], expected, rtol=1e-4)
    assert np.isnan(found.mean[4]).all()
    once = condition_means(betas[:, :2], condition[:2])
    assert np.isnan(once.t).all()
    assert once.degrees == 0


def test_pooled_t_equals_a_linear_model():
    rng = np.random.default_rng(1)
    condition, betas = rng.permutation(np.repeat(np.arange(5), 4)), rng.normal(1, 1, (3, 20))
    found = condition_means(betas, condition)
    x = np.eye(5)[condition]
    for voxel in range(3):
        b, left, *_ = np.linalg.lstsq(x, betas[voxel], rcond=None)
        se = np.sqrt(left[0] / 15 * np.diag(np.linalg.inv(x.T @ x)))
        np.testing.assert_allclose(found.t[voxel], b / se, rtol=1e-5)
        np.testing.assert_allclose(found.standard_error[voxel], se, rtol=1e-5)


def test_conditions_of_a_result(fitted):
    means = fitted.conditions("b")
    at = fitted.trial_condition == 4
    np.testing.assert_allclose(
        means.mean[:, 4], fitted.type_b.betas[:, at].mean(axis=1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(fitted.conditions().mean, fitted.conditions("D").mean)
    without = fit_glmsingle(*load_input("mini")[:4], options=GLMsingleOptions(keep="B"))
    with pytest.raises(UsageError, match="it has B"):
        without.conditions("d")


def test_finer_library_holds_the_library():
    base = TableResponses(library_table(), 1.5, whole_seconds=True)
    fine = Between(base, 3)
    assert fine.n_hrfs == 77
    lags = np.arange(-2, 30, 0.7)
    np.testing.assert_allclose(fine.sample(lags, 2.0)[:, ::4], base.sample(lags, 2.0), atol=1e-6)
    np.testing.assert_allclose(fine.on_grid(2.0).max(axis=0), 1, atol=1e-6)
    curves = fine.on_grid(2.0)
    steps = np.linalg.norm(np.diff(curves, axis=1), axis=0)
    coarse = np.linalg.norm(np.diff(base.on_grid(2.0), axis=1), axis=0)
    assert steps.max() < 0.5 * coarse.max()
    assert Between(SampledResponses(curves[:, 0], 1.5), 2).n_hrfs == 1
    assert Between(SampledResponses(curves[:, :2], 1.5), 1).n_hrfs == 3


def test_finer_library_fits_an_hrf_between_two(mini):
    rng = np.random.default_rng(2)
    fine = Between(TableResponses(library_table(), TR, whole_seconds=True), 3)
    true = 4 * 10 + 2  # half-way between two of the library
    onset = 6 + 14.0 * np.arange(14)
    x = np.stack([fine.sample(np.arange(110) * TR - t, 2.0)[:, true] for t in onset], axis=1)
    data, design = [], []
    for _ in range(2):
        betas = rng.normal(2, 0.5, (30, 14))
        data.append((1000 + 10 * (betas @ x.T)).astype(np.float32))
        design.append(RunTrials(onset, np.full(14, 2.0), np.arange(14)))
    result = fit_glmsingle(data, design, None, TR, options=GLMsingleOptions(hrfbetween=3))
    assert result.hrfs.shape[1] == 77
    assert (result.type_b.hrf_index == true).all()
    assert (result.type_b.r2 > fit_glmsingle(data, design, None, TR).type_b.r2).all()
    assert any("3 interpolated" in text for text in result.account)


def two_sessions(across_only=False):
    """Four runs in two sessions, the second with twice the gain; conditions repeat across sessions."""
    rng = np.random.default_rng(3)
    responses = TableResponses(library_table(), TR, whole_seconds=True)
    pattern, data, design = rng.normal(1, 1, (80, 20)), [], []
    pattern[40:] = 0
    for r in range(4):
        condition = np.arange(10) + 10 * (r % 2) if across_only else rng.permutation(20)[:10]
        onset = 6 + 12.0 * np.arange(10)
        x = np.stack([responses.sample(np.arange(75) * TR - t, 2.0)[:, 9] for t in onset], axis=1)
        signal = pattern[:, condition] @ x.T * (1 + (r > 1))
        e = 0.5 * rng.normal(size=(80, 75)) + 0.5 * rng.normal(size=(80, 1)) * rng.normal(size=75)
        data.append((1000 + 10 * (signal + e)).astype(np.float32))
        design.append(RunTrials(onset, np.full(10, 2.0), condition))
    return data, design


def test_folds_by_run_session_and_table():
    data, design = two_sessions()
    sessions = ["a", "a", "b", "b"]

    def fit(scheme):
        options = GLMsingleOptions(xvalscheme=scheme)
        return fit_glmsingle(data, design, None, TR, options=options, sessions=sessions)

    for one, two in (("run", None), ("run", [0, 1, 2, 3]), ("session", [[0, 1], [2, 3]])):
        first, second = fit(one), fit(two)
        np.testing.assert_array_equal(first.type_d.rr_badness, second.type_d.rr_badness)
        np.testing.assert_array_equal(first.type_d.betas, second.type_d.betas)
    assert not np.array_equal(fit("run").type_d.rr_badness, fit("session").type_d.rr_badness)
    assert any("one session held out" in text for text in fit("session").account)
    assert any("2 groups of runs" in text for text in fit([[0, 1], [2, 3]]).account)
    with pytest.raises(UsageError, match="two sessions"):
        fit_glmsingle(data, design, None, TR, options=GLMsingleOptions(xvalscheme="session"))
    with pytest.raises(UsageError, match="xvalscheme"):
        GLMsingleOptions(xvalscheme="voxel")


def test_repeats_only_across_sessions_count():
    data, design = two_sessions(across_only=True)
    result = fit_glmsingle(data, design, None, TR, sessions=[1, 1, 2, 2])
    assert result.type_d is not None
    assert any(
        "20 conditions were shown more than once, all of them in more than one" in t for t in result.account
    )
    # z-scoring within sessions undoes the gain: without it, the fits are penalised for what no fit can help
    without = fit_glmsingle(data, design, None, TR)
    task = slice(0, 40)
    assert (
        result.type_d.rr_badness[task].min(axis=1).mean() < without.type_d.rr_badness[task].min(axis=1).mean()
    )


def test_designs_are_those_of_the_assumed_hrf(mini, fitted):
    data, design, _, _ = mini
    assert [x.shape for x in fitted.designs] == [(90, int(d.sum())) for d in design]
    assert all(x.dtype == np.float32 for x in fitted.designs)
    betas, gain = fitted.type_a.betas, 100 / fitted.mean_vol
    at = 0
    for r, x in enumerate(fitted.designs):
        model = np.hstack([x.astype(float), polynomials(90, fitted.poly_degrees[r])])
        exact = np.linalg.lstsq(model, data[r][30].astype(float), rcond=None)[0][: x.shape[1]]
        np.testing.assert_allclose(betas[30, at : at + x.shape[1]], exact * gain[30], rtol=1e-3, atol=1e-3)
        at += x.shape[1]


def test_account_counts_hrfs_from_one_and_knows_the_plural(fitted):
    text = " ".join(fitted.account)
    counts = np.bincount(fitted.type_b.hrf_index, minlength=20)
    assert f"HRF {counts.argmax() + 1} was chosen most often" in text
    assert f"the median is HRF {np.median(fitted.type_b.hrf_index) + 1:g}" in text
    assert "in 3 runs were modelled" in text
    assert "(s)" not in text
    data, design, stimdur, tr = load_input("mini")[:4]
    alone = fit_glmsingle(data[:1], design[:1], stimdur, tr)
    assert "in 1 run were" in " ".join(alone.account)


@pytest.mark.parametrize("bad", [{"hrfbetween": -1}, {"hrfbetween": 1.5}, {"hrfbetween": 99}])
def test_wrong_options(bad):
    with pytest.raises(UsageError):
        GLMsingleOptions(**bad)


def test_wrong_means_of_working(mini):
    with pytest.raises(UsageError, match="n_threads"):
        fit_glmsingle(*mini, n_threads=0)
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="CUDA"):
            fit_glmsingle(*mini, device="cuda")


def test_cuda_gives_the_same_numbers(mini, fitted):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = fit_glmsingle(*mini, device="cuda")
    np.testing.assert_array_equal(result.type_b.hrf_index, fitted.type_b.hrf_index)
    np.testing.assert_allclose(result.type_d.betas, fitted.type_d.betas, rtol=1e-3, atol=1e-3)
