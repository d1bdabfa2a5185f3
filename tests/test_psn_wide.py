# SPDX-License-Identifier: Apache-2.0
"""PSN of all units at once in the span of the trials: against dense matrices, and against known truth."""

import numpy as np
import pytest
from psn_cases import error, relative, simulate

from conform_app.errors import DataError, UsageError
from conform_app.psn import fit_gsn, fit_psn, fit_wide
from conform_app.psn.covariance import level_grid
from conform_app.psn.span import measure


def no_signal(n_units, *shape, seed=0, **options):
    """Every second unit without signal, and units that differ in noise."""
    truth, data = simulate(n_units, *shape, seed=seed, **options)
    silent = np.arange(n_units) % 2 == 0
    noise = data - truth[:, :, None]
    truth[silent] = truth[silent].mean(axis=1, keepdims=True)
    size = np.exp(0.5 * np.random.default_rng(seed).standard_normal(n_units))
    return truth, truth[:, :, None] + noise * size[:, None, None], silent


def dense(data):
    """The same estimate written out with n x n matrices: Q by an SVD, covariances carried into it."""
    gsn = fit_gsn(data)  # levels and shrunk covariances; tested by themselves
    n, c, t = data.shape
    average = data.mean(axis=2)
    m = average.mean(axis=1, keepdims=True)
    x = data.reshape(n, -1) - m
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    q = u[:, s > 1e-6 * s[0]]
    c_n = q.T @ gsn.noise_cov_raw @ q
    c_d = q.T @ (gsn.signal_cov_raw + gsn.noise_cov_raw / t) @ q
    signal, noise = c_d - c_n / t, c_n
    den = c * t**2 * (t - 1) + c - 1
    for _ in range(100):
        old = signal, noise
        signal = clipped(c_d - noise / t)
        noise = clipped(c * (t - 1) * t**2 / den * c_n + (c - 1) * t / den * (c_d - signal))
        if all(
            np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999 for a, b in ((signal, old[0]), (noise, old[1]))
        ):
            break
    return q @ (signal @ np.linalg.solve(signal + noise / t, q.T @ (average - m))) + m


def clipped(c):
    w, v = np.linalg.eigh((c + c.T) / 2)
    return (v * np.maximum(w, 0)) @ v.T


@pytest.mark.parametrize("shape", [(150, 12, 4), (90, 30, 2)])
def test_more_units_than_trials_equals_dense_matrices(shape):
    _, data, _ = no_signal(*shape)
    data -= data.mean(axis=(1, 2), keepdims=True)  # results are float32
    fit = fit_wide(data)
    assert fit.span is not None
    gsn = fit_gsn(data)
    assert (fit.inner.gsn.shrink_noise, fit.inner.gsn.shrink_data) == (gsn.shrink_noise, gsn.shrink_data)
    assert 0 < gsn.shrink_data < 1
    assert relative(fit.denoised, dense(data)) < 1e-6


@pytest.mark.parametrize("uneven", [False, True])
def test_span_of_more_trials_than_units_is_the_exact_fit(uneven):
    _, data = simulate(25, 30, 4)
    if uneven:
        data[:, :7, 3] = np.nan
        data[:, 3, 1:] = np.nan
    there = np.isfinite(data[0])
    span = measure(data, np.arange(25), there, shrink=True, choose=True)
    inner = fit_psn(span.coordinates(), mode="wiener", gsn=span.gsn(level_grid(True, None)))
    exact = fit_psn(data, mode="wiener")
    x = data[:, there] - span.unit_means[:, None]
    back = x @ (span.vectors / span.root @ inner.denoised) + span.unit_means[:, None]
    assert relative(back - exact.unit_means[:, None], exact.denoised - exact.unit_means[:, None]) < 1e-6
    assert relative(fit_wide(data).denoised, exact.denoised) < 1e-6


@pytest.mark.parametrize("row", [(300, 60, 3, 3.0), (300, 60, 3, 10.0), (400, 40, 2, 1.0), (250, 20, 8, 3.0)])
def test_error_is_that_of_the_dense_filter_and_below_the_average(row):
    for make in (lambda *a, **k: simulate(*a, **k), lambda *a, **k: no_signal(*a, **k)[:2]):
        truth, data = make(*row[:3], noise=row[3])
        wide, exact = fit_wide(data), fit_psn(data, mode="wiener")
        assert wide.span is not None
        assert error(wide.denoised, truth) < 1.02 * error(exact.denoised, truth)
        assert error(wide.denoised, truth) < 0.7 * error(data.mean(axis=2), truth)


def test_units_without_signal_go_to_their_mean_and_not_beyond():
    truth, data, silent = no_signal(300, 60, 3)
    fit = fit_wide(data)
    before = ((data.mean(axis=2) - truth) ** 2).sum(axis=1)
    after = ((fit.denoised - truth) ** 2).sum(axis=1)
    assert (after[silent] < before[silent]).all()
    exact = ((fit_psn(data, mode="wiener").denoised - truth) ** 2).sum(axis=1)
    assert after[silent].sum() < 1.03 * exact[silent].sum() < 0.4 * before[silent].sum()
    centred = fit.denoised - fit.unit_means[:, None]
    average = fit.averages - fit.unit_means[:, None]
    assert (np.einsum("uc,uc->u", centred, average)[silent] >= -1e-6).all()  # no sign is turned


@pytest.mark.parametrize("n_conditions", [4, 8, 20])
@pytest.mark.parametrize("mode", ["wiener", "standard", "aggressive"])
def test_signal_kept_with_few_conditions(mode, n_conditions):
    """They say little of what units share; the averages lie in the span all the same."""
    truth, data = simulate(300, n_conditions, 12, noise=1.0)
    fit = fit_wide(data, mode=mode)
    kept = fit.apply(truth).var(axis=1, ddof=1)
    assert fit.kept_signal.sum() == pytest.approx(kept.sum(), rel=0.45)
    assert np.corrcoef(fit.kept_signal, kept)[0, 1] > 0.85


def test_variances_are_those_of_the_denoiser():
    _, data = simulate(400, 60, 3)
    fit, exact, gsn = fit_wide(data), fit_psn(data, mode="wiener"), fit_gsn(data)
    np.testing.assert_allclose(
        fit.kept_noise + fit.removed_noise, gsn.noise_cov_raw.diagonal() / 3, rtol=1e-4
    )
    x = data.reshape(400, -1) - fit.unit_means[:, None]
    through = x @ (fit.span.vectors / fit.span.root) @ fit.inner.operator()
    kept = np.einsum("ur,rs,us->u", through, fit.inner.gsn.noise_cov / 3, through)
    np.testing.assert_allclose(fit.kept_noise, kept, rtol=1e-4)
    np.testing.assert_allclose(fit.kept_signal + kept, fit.denoised.var(axis=1, ddof=1), rtol=1e-3)
    assert (fit.removed_signal >= 0).all()
    q = fit.noise_axes.astype(float)
    np.testing.assert_allclose(q.T @ q, np.eye(20), atol=1e-4)
    np.testing.assert_allclose(
        fit.noise_axis_var, np.linalg.eigvalsh(exact.gsn.noise_cov)[:-21:-1], rtol=0.05
    )


@pytest.mark.parametrize("mode", ["wiener", "aggressive"])
def test_apply_noise_and_the_stored_weights(mode):
    _, data = simulate(120, 15, 3)
    data = data.astype(np.float32)
    data[:, 2, 2] = np.nan
    data[7] = 1.0
    data[9, 0, 0] = np.nan
    fit = fit_wide(data, mode=mode)
    assert fit.denoised.dtype == fit.noise().dtype == np.float32
    assert list(np.flatnonzero(~fit.valid)) == [7, 9]
    np.testing.assert_array_equal(fit.denoised[7], 1.0)
    np.testing.assert_allclose(fit.denoised[9], np.nanmean(data[9], axis=1), rtol=1e-5)
    np.testing.assert_allclose(fit.apply(fit.averages)[fit.valid], fit.denoised[fit.valid], atol=1e-3)
    assert np.isnan(fit.noise()[0, 2, 2])
    arrays = fit.arrays()
    there = np.isfinite(data[0])
    m = arrays["unit_means"][0]
    np.testing.assert_allclose(
        (data[0][there] - m) @ arrays["weights"] + m, fit.denoised[0], rtol=1e-4, atol=1e-4
    )
    assert "120 units" not in fit.estimator
    assert f"{there.sum()} trials of 118 units" in fit.estimator
    assert any(fit.estimator in sentence for sentence in fit.account)
    with pytest.raises(DataError):
        fit.apply(fit.averages[:5])


def test_few_trials_for_each_average_are_denoised_harder():
    _, data = simulate(120, 15, 3)
    fit = fit_wide(data)
    one, many = (fit.apply(data[:, :, 0], n_trials=n) for n in (1, 30))
    assert one.var(axis=1).sum() < many.var(axis=1).sum()


def test_few_conditions_are_said_of_the_units():
    _, data = simulate(120, 6, 3)
    assert any("6 conditions for 120 units" in sentence for sentence in fit_wide(data).account)


def test_block_size_changes_nothing(monkeypatch):
    _, data = simulate(120, 15, 3)
    whole = fit_wide(data)
    monkeypatch.setattr("conform_app.psn.span._BLOCK", 1000)
    np.testing.assert_allclose(fit_wide(data).denoised, whole.denoised, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_done_is_refused():
    _, data = simulate(60, 12, 3)
    for wrong in (
        {"mode": "cv"},
        {"mode": "compare"},
        {"mode": "auto"},
        {"threshold": "unit"},
        {"uneven": "missing"},
        {"device": "x"},
    ):
        with pytest.raises(UsageError):
            fit_wide(data, **wrong)
    with pytest.raises(DataError):
        fit_wide(data[:, :, :1])
    data[:, 3] = np.nan
    with pytest.raises(DataError):
        fit_wide(data)
