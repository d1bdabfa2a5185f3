# SPDX-License-Identifier: Apache-2.0
"""The parts of GLMsingle against the reference's parts, closed forms and brute force."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from glmsingle_cases import fixture

from conform_app.errors import UsageError
from conform_app.glmsingle import GLMsingleOptions, RunTrials, factor, ridge
from conform_app.glmsingle.denoise import choose_number, components, deciding_voxels, noise_pool
from conform_app.glmsingle.design import orthonormal_in_order, plan_trials, polynomials
from conform_app.glmsingle.hrf import SampledResponses, TableResponses, canonical_table, library_table
from conform_app.glmsingle.tail import robust_range, tail_threshold
from conform_app.glmsingle.xval import Badness


@pytest.fixture(scope="module")
def units():
    return fixture("units")


def test_hrfs_equal_the_reference_s(units):
    for i, (duration, tr) in enumerate(units["hrf_cases"]):
        library = TableResponses(library_table(), tr, whole_seconds=True).on_grid(duration)
        np.testing.assert_allclose(library, units[f"hrf_{i}_library_norm"], atol=3e-7)
        assumed = TableResponses(canonical_table(), tr, whole_seconds=False).on_grid(duration)
        np.testing.assert_allclose(assumed[:, 0], units[f"hrf_{i}_canonical"], atol=3e-7)


def test_response_is_zero_before_onset_and_past_its_end():
    responses = TableResponses(library_table(), 1.0, whole_seconds=True)
    values = responses.sample(np.array([-5.0, -1e-9, 0.0, 5.0, 60.0]), 2.0)
    assert (values[[0, 1, 4]] == 0).all()
    assert (values[3] > 0).all()


def test_given_hrf_is_read_at_its_samples():
    samples = np.array([0, 0.4, 1.0, 0.7, 0.1], np.float32)
    responses = SampledResponses(samples, 1.7)
    np.testing.assert_allclose(responses.sample(np.arange(6) * 1.7, 3.0)[:, 0], [*samples, 0], atol=1e-7)


def test_polynomials_equal_the_reference_s(units):
    for i, (n, degree) in enumerate([(100, 0), (120, 2), (187, 3), (300, 5)]):
        np.testing.assert_allclose(polynomials(n, degree), units[f"poly_{i}"], atol=1e-12)


def test_degree_rounds_halves_up():
    assert GLMsingleOptions().poly_degrees([30, 29, 90, 300], 2.0) == (1, 0, 2, 5)


def test_nuisance_is_orthonormal_and_dependent_columns_vanish():
    rng = np.random.default_rng(0)
    poly = polynomials(60, 2)
    a = rng.normal(size=(60, 3))
    out = orthonormal_in_order(np.hstack([a, a[:, :1] + poly[:, :1], a[:, 1:2] * 1e6]), poly)
    np.testing.assert_allclose(out[:, :3].T @ out[:, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(poly.T @ out, 0, atol=1e-12)
    assert (out[:, 3:] == 0).all()


@pytest.fixture
def run():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 12))
    poly = polynomials(80, 2)
    z = orthonormal_in_order(rng.normal(size=(80, 4)), poly)
    return x, poly, z, rng.normal(size=(80, 5)) + 100


def test_ladder_equals_least_squares_with_each_number_of_columns(run):
    x, poly, z, y = run
    f = factor.least_squares(x, poly, z)
    for k in range(5):
        exact = np.linalg.lstsq(np.hstack([x, z[:, :k], poly]), y, rcond=None)[0][:12]
        betas = f.back @ (f.U.T @ y) - f.A[:, :k] @ (f.E[:, :k].T @ y)
        np.testing.assert_allclose(betas, exact, atol=1e-10)
    clean = factor.off(poly, y)
    left = np.sum((clean - factor.off(poly, x) @ exact) ** 2, axis=0)
    in_u = f.U.T @ y
    lost = (f.forth @ f.A) @ (f.E.T @ y)
    explained = np.sum(in_u**2, axis=0) - np.sum(lost**2, axis=0)
    np.testing.assert_allclose(np.sum(clean**2, axis=0) - explained, left, rtol=1e-10)


def test_empty_column_gets_weight_zero_and_twins_share(run):
    x, poly, z, y = run
    x = x.copy()
    x[:, 3] = 0
    x[:, 5] = x[:, 6]
    f = factor.least_squares(x, poly, z)
    betas = f.back @ (f.U.T @ y)
    assert np.abs(betas[3]).max() < 1e-12
    np.testing.assert_allclose(betas[5], betas[6], atol=1e-10)


def test_separate_weights_are_two_column_fits(run):
    x, poly, z, y = run
    weights = factor.separate_weights(x, poly, z)
    for i in range(12):
        model = np.hstack([x[:, [i]], x.sum(axis=1, keepdims=True) - x[:, [i]], z, poly])
        exact = np.linalg.lstsq(model, y, rcond=None)[0][0]
        np.testing.assert_allclose(weights[:, i] @ y, exact, atol=1e-10)


def _fractional(c, s, vt, fracs):
    c = torch.as_tensor(c)
    s = torch.as_tensor(s, dtype=torch.float64)
    alphas = ridge.alphas_of(c, s, torch.as_tensor(fracs), torch.as_tensor(ridge.alpha_grid(s.numpy())))
    coefs = [(c * ridge.shrinkage(s, alphas[:, f])).numpy() @ vt for f in range(len(fracs))]
    return np.stack(coefs, axis=2).transpose(1, 2, 0), alphas.numpy().T


def test_fractional_ridge_equals_the_reference_in_float64(units):
    x, y = units["fr_2_X"], units["fr_2_Y"]
    u, s, vt = np.linalg.svd(x)
    coefs, alphas = _fractional((u.T @ y).T / s, s, vt, units["fr_2_fracs"])
    np.testing.assert_allclose(alphas, units["fr_2_alphas"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(coefs, units["fr_2_coef"], rtol=1e-5, atol=1e-5)


def test_fractional_ridge_equals_the_reference_s_float32_within_its_rounding(units):
    """The reference factors the Gram matrix in float32; its condition, 1.5e4, limits what that can hold."""
    x, y, fracs = units["fr_1_X"].astype(float), units["fr_1_Y"], units["fr_1_fracs"]
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    coefs, alphas = _fractional((u.T @ y).T / s, s, vt, fracs)
    np.testing.assert_allclose(alphas, units["fr_1_alphas"], rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(coefs, units["fr_1_coef"], rtol=5e-3, atol=5e-3)


def test_fractions_are_nearly_met_and_one_is_exact():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(200, 30)), rng.normal(size=(200, 6))
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    coefs, alphas = _fractional((u.T @ y).T / s, s, vt, [1.0, 0.6, 0.1])
    length = np.linalg.norm(coefs, axis=0)
    np.testing.assert_allclose(length / length[0], np.array([1, 0.6, 0.1])[:, None] * np.ones(6), rtol=0.02)
    assert (alphas[0] == 0).all()
    np.testing.assert_allclose(coefs[:, 0], np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-6)


def test_zero_voxel_needs_no_penalty():
    s = torch.tensor([3.0, 1.0], dtype=torch.float64)
    grid = torch.as_tensor(ridge.alpha_grid(s.numpy()))
    alphas = ridge.alphas_of(torch.zeros(1, 2), s, torch.tensor([1.0], dtype=torch.float64), grid)
    assert alphas.item() == 0


def test_autoscale_is_a_line_fit_with_positive_slope():
    rng = np.random.default_rng(3)
    b = torch.as_tensor(rng.normal(size=(2, 40)))
    full = torch.stack([3 * b[0] + 0.5, -2 * b[1]])
    line = ridge.autoscale(b, full, torch.arange(40))
    np.testing.assert_allclose(line.numpy(), [[3, 0.5], [1, 0]], atol=1e-12)


def test_tail_thresholds_equal_the_reference_s(units):
    for i in range(5):
        values = units[f"gmm_{i}_v"]
        threshold, fitted = tail_threshold(values)
        assert fitted
        assert threshold == pytest.approx(float(units[f"gmm_{i}_thr_by_seed"][0]), rel=1e-5)
        finite = values[np.isfinite(values)]
        np.testing.assert_allclose(robust_range(finite), units[f"gmm_{i}_range"], rtol=1e-6)


def test_tail_threshold_of_hopeless_values():
    assert tail_threshold(np.array([1.0, 2.0]))[1] is False
    assert tail_threshold(np.full(500, 3.0))[1] is False
    assert tail_threshold(np.full(500, np.nan))[1] is False


def _brute_badness(results, condition, run, folds, session):
    n_set, n_voxels, _ = results.shape
    z = np.empty_like(results, dtype=float)
    for s in np.unique(session):
        at = session == s
        mean = results[0][:, at].mean(axis=1, keepdims=True)
        sd = results[0][:, at].std(axis=1, ddof=1, keepdims=True)
        sd[sd < 1e-9] = 1
        z[:, :, at] = (results[:, :, at] - mean) / sd
    out = np.zeros((n_voxels, n_set))
    for fold in folds:
        held = np.isin(run, fold)
        for t in np.flatnonzero(held):
            for i in np.flatnonzero(~held & (condition == condition[t])):
                out += ((z[:, :, i] - z[0, :, t]) ** 2).T
    return out


FOLDS = {
    "bad_loro": ([[0], [1], [2], [3], [4]], [1, 1, 1, 1, 1]),
    "bad_ses": ([[0], [1], [2], [3], [4]], [1, 1, 2, 2, 2]),
    "bad_pairs": ([[0, 1], [2, 3, 4]], [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", FOLDS)
def test_badness_equals_reference_and_brute_force(units, name):
    folds, sessions = FOLDS[name]
    condition, run = units["bad_stim"].ravel(), np.repeat(np.arange(5), 12)
    session = np.array(sessions)[run]
    results = units["bad_results"]
    badness = Badness(condition, run, folds, session, np.ones(60, bool), "cpu")
    tensors = torch.as_tensor(results)
    standard = badness.standardise(tensors[0])
    ours = np.stack([badness(b, standard).numpy() for b in tensors], axis=1)
    np.testing.assert_allclose(ours, units[name], rtol=1e-5, atol=3e-4)
    np.testing.assert_allclose(
        ours, _brute_badness(results, condition, run, folds, session), rtol=1e-5, atol=3e-4
    )


def test_unusable_trials_do_not_count():
    rng = np.random.default_rng(4)
    condition, run = np.tile(np.arange(4), 3), np.repeat(np.arange(3), 4)
    usable = np.ones(12, bool)
    usable[[2, 9]] = False
    b = rng.normal(size=(2, 3, 12))
    badness = Badness(condition, run, [[0], [1], [2]], np.zeros(12), usable, "cpu")
    standard = badness.standardise(torch.as_tensor(b[0], dtype=torch.float32))
    ours = badness(torch.as_tensor(b[1], dtype=torch.float32), standard).numpy()
    at = np.flatnonzero(usable)
    brute = _brute_badness(b[:, :, at], condition[at], run[at], [[0], [1], [2]], np.zeros(at.size))
    np.testing.assert_allclose(ours, brute[:, 1], rtol=1e-5)


def test_number_of_regressors_equals_the_reference_s(units):
    for stop in ("1", "1.02", "1.05", "1.2"):
        chosen = [choose_number(c, float(stop)) for c in units["pcsel_curves"]]
        assert chosen == units[f"pcsel_{stop}"].tolist()


def test_components_are_leading_eigenvectors_with_unit_sd():
    rng = np.random.default_rng(5)
    y = rng.normal(size=(40, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5])
    y -= y.mean(axis=0)
    u = np.linalg.svd(y, full_matrices=False)[0]
    ours = components(y @ y.T, 8)
    assert ours.shape == (40, 6)
    np.testing.assert_allclose(np.abs(u.T @ ours), np.eye(6) * np.sqrt(39), atol=1e-4)
    np.testing.assert_allclose(ours.std(axis=0, ddof=1), 1, rtol=1e-5)


def test_pool_and_deciding_voxels():
    mean = np.array([100, 100, 5, 100, np.nan])
    r2 = np.array([0.5, 10, 0.5, np.nan, 0.1])
    valid = np.array([True, True, True, True, False])
    assert noise_pool(mean, r2, valid, (99, 0.1), 1.0, None).tolist() == [True, False, False, False, False]
    assert deciding_voxels(r2, valid, 5.0, None)[0].tolist() == [False, True, False, False, False]
    chosen, passed = deciding_voxels(r2, valid, 50.0, None)
    assert not passed
    assert chosen.tolist() == [True, True, True, False, False]


def test_durations_have_their_own_peak():
    plan = plan_trials([RunTrials([2.0, 60.0], [1.0, 8.0], [0, 1])], [60], None, 2.0, 0.0)
    x = plan.regressors(0, TableResponses(library_table(), 2.0, whole_seconds=True))
    np.testing.assert_allclose(x.max(axis=0), 1, rtol=1e-6)
    assert (x[:, 1] > 0.5).sum() > (x[:, 0] > 0.5).sum()


@pytest.mark.parametrize(
    "bad",
    [
        {"fracs": []},
        {"fracs": [0.0, 0.5]},
        {"fracs": [1.2]},
        {"n_pcs": -1},
        {"pcstop": 0.5},
        {"pcstop": -1.5},
        {"brainthresh": (120, 0.1)},
        {"hrflibrary": np.zeros((10, 2))},
        {"chunklen": 0},
        {"keep": "AX"},
    ],
)
def test_options_are_checked(bad):
    with pytest.raises(UsageError):
        GLMsingleOptions(**bad)


def test_fractions_are_sorted_and_unique():
    assert GLMsingleOptions(fracs=[0.2, 0.9, 0.2]).fracs == (0.9, 0.2)


def test_every_option_is_in_the_documentation():
    page = (Path(__file__).parents[1] / "docs" / "glmsingle.md").read_text(encoding="utf-8")
    assert [f.name for f in fields(GLMsingleOptions) if f"`{f.name}`" not in page] == []
