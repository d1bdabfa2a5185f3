# SPDX-License-Identifier: Apache-2.0
"""RSA noise ceiling against the published one, and bootstrap intervals against known spreads."""

import numpy as np
import pytest
from psn_cases import load_case

from conform_app.errors import DataError, UsageError
from conform_app.psn import fit_gsn
from conform_app.reliability import (
    bootstrap_interval,
    ncsnr,
    noise_ceiling,
    rdm,
    rsa_noise_ceiling,
    split_half,
)
from conform_app.reliability.rsa import _agreement, _root
from conform_app.reliability.rsascale import matching_scale


def test_rsa_ceiling_agrees_with_the_published_simulations():
    arrays, _ = load_case("rsa", bundled=False)
    gsn = fit_gsn(arrays["data"])
    common = {"signal_mean": gsn.signal_mean, "n_simulations": 300}
    plain = rsa_noise_ceiling(gsn.signal_cov, gsn.noise_cov, 60, 4, **common)
    scaled = rsa_noise_ceiling(
        gsn.signal_cov, gsn.noise_cov, 60, 4, raw_signal_cov=gsn.signal_cov_raw, **common
    )
    assert scaled.scale == pytest.approx(float(arrays["mode2/sc"]), rel=1e-6)
    for got, run in ((plain, "mode1"), (scaled, "mode2")):
        want = arrays[f"{run}/ncdist"]
        error = np.hypot(want.std() / np.sqrt(want.size), got.simulated.std() / np.sqrt(got.simulated.size))
        assert abs(got.ceiling - np.median(want)) < 4 * 1.25 * error
        assert got.simulated.std() == pytest.approx(want.std(), rel=0.25)


def test_rsa_ceiling_ends():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((12, 12))
    cov = a @ a.T
    assert rsa_noise_ceiling(cov, np.zeros((12, 12)), 20, 1).ceiling == pytest.approx(1.0)
    low, high = (rsa_noise_ceiling(cov, cov, 20, t, n_simulations=50).ceiling for t in (1, 20))
    assert low < high < 1
    assert abs(rsa_noise_ceiling(1e-12 * cov, cov, 20, 1).ceiling) < 0.1
    x = rng.standard_normal((5, 3))
    assert rdm(x)[0] == pytest.approx(1 - np.corrcoef(x[:, 1], x[:, 0])[0, 1])
    with pytest.raises(DataError):
        rsa_noise_ceiling(cov, cov[:3], 20, 1)
    with pytest.raises(UsageError):
        rsa_noise_ceiling(cov, cov, 20, 0)


def simulated(n_units=30, n_conditions=60, n_trials=4, *, noise=1.0, seed=0):
    """Covariances and data of known scale."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n_units, n_units)))[0] for _ in range(2))
    rank = np.arange(1, n_units + 1)
    signal_root, noise_root = u / rank, v * np.sqrt(noise / rank)
    signal = signal_root @ rng.standard_normal((n_units, n_conditions))
    trials = np.einsum("ij,jct->ict", noise_root, rng.standard_normal((n_units, n_conditions, n_trials)))
    return signal_root @ signal_root.T, noise_root @ noise_root.T, signal[:, :, None] + trials


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_scale_with_which_the_model_repeats_as_the_data_do(factor):
    """A signal covariance that is wrong by a known factor is put right, on average over data sets."""
    scales, ceilings, truths = [], [], []
    for seed in range(12):
        signal_cov, noise_cov, data = simulated(seed=seed)
        options = {"n_simulations": 30, "seed": seed}
        found = rsa_noise_ceiling(signal_cov / factor, noise_cov, 60, 4, data=data, **options)
        scales.append(found.scale)
        ceilings.append(found.ceiling)
        truths.append(rsa_noise_ceiling(signal_cov, noise_cov, 60, 4, **options).ceiling)
        assert 0 < found.split_half < 1
    # one data set's scale spreads by 0.23 of its size
    assert np.mean(scales) == pytest.approx(factor, rel=3 * 0.23 / np.sqrt(12))
    assert np.mean(ceilings) == pytest.approx(np.mean(truths), abs=3 * 0.044 / np.sqrt(12))


def test_scale_on_the_published_case():
    """The published code splits the trials once, first against second half; its scale is on a grid of 0.1."""
    arrays, _ = load_case("rsa", bundled=False)
    data, gsn = arrays["data"], fit_gsn(arrays["data"])
    target = _agreement(data[:, :, :2].mean(axis=2), data[:, :, 2:].mean(axis=2))
    assert target == pytest.approx(float(arrays["mode0/splitr"][0]), rel=1e-6)
    roots = _root(gsn.signal_cov), _root(gsn.noise_cov)
    options = {"n_simulations": 100, "seed": 0}
    scale = matching_scale(target, np.full(60, 2), *roots, gsn.signal_mean[:, None], _agreement, **options)
    assert scale == pytest.approx(float(arrays["mode0/sc"]), abs=0.1)
    common = {"signal_mean": gsn.signal_mean, **options}
    got = rsa_noise_ceiling(scale * gsn.signal_cov, gsn.noise_cov, 60, 4, **common)
    assert got.ceiling == pytest.approx(float(arrays["mode0/nc"]), abs=0.06)
    # one split is one draw of many: with all of them the scale is nearer to one
    found = rsa_noise_ceiling(gsn.signal_cov, gsn.noise_cov, 60, 4, data=data, **common)
    assert target < found.split_half
    assert scale < found.scale < 1.1


def test_scale_of_noise_and_of_uneven_trials():
    signal_cov, noise_cov, data = simulated(noise=3.0)
    rng = np.random.default_rng(0)
    nothing = rsa_noise_ceiling(
        signal_cov, noise_cov, 60, 4, data=rng.standard_normal(data.shape), n_simulations=40
    )
    assert nothing.scale < 0.3
    data[:, ::2, 3] = np.nan
    data[:, 0, 1:] = np.nan
    found = rsa_noise_ceiling(signal_cov, noise_cov, 60, 4, data=data, n_simulations=40)
    assert 0.3 < found.scale < 2
    with pytest.raises(UsageError):
        rsa_noise_ceiling(signal_cov, noise_cov, 60, 4, data=data, raw_signal_cov=signal_cov)
    with pytest.raises(DataError):
        rsa_noise_ceiling(signal_cov, noise_cov, 60, 4, data=data[:5])
    data[:, 2:, 1:] = np.nan
    with pytest.raises(DataError, match="three conditions"):
        rsa_noise_ceiling(signal_cov, noise_cov, 60, 4, data=data)


@pytest.mark.parametrize("value", [3.0, np.nan])
@pytest.mark.parametrize("scaled_by", [None, "raw", "data"])
def test_units_that_gsn_left_out_change_nothing(value, scaled_by):
    rng = np.random.default_rng(0)
    data = rng.standard_normal((20, 15, 1)) + rng.standard_normal((20, 15, 4))

    def ceiling(data):
        gsn = fit_gsn(data)
        options = {"raw": {"raw_signal_cov": gsn.signal_cov_raw}, "data": {"data": data}}.get(scaled_by, {})
        options |= {"signal_mean": gsn.signal_mean, "n_simulations": 20}
        return rsa_noise_ceiling(gsn.signal_cov, gsn.noise_cov, 15, 4, **options)

    whole, more = ceiling(data), ceiling(np.insert(data, 5, value, axis=0))
    np.testing.assert_allclose(more.simulated, whole.simulated, atol=1e-6)
    assert more.scale == pytest.approx(whole.scale)


@pytest.mark.parametrize("statistic", [ncsnr, noise_ceiling, split_half])
def test_bootstrap_with_few_repeated_conditions(statistic):
    """A third of the draws holds none of them; the interval is that of the others."""
    betas = np.random.default_rng(1).standard_normal((3, 12, 4)) + np.arange(12)[:, None]
    betas[:, 2:, 1:] = np.nan
    low, high = bootstrap_interval(statistic, betas, n_boot=200, seed=4)
    rng, found = np.random.default_rng(4), []
    for _ in range(200):
        drawn = rng.integers(0, 12, 12)
        if (drawn < 2).any():
            found.append(statistic(betas[:, drawn]))
    assert 100 < len(found) < 200
    np.testing.assert_allclose((low, high), np.nanquantile(found, (0.025, 0.975), axis=0))
    with pytest.raises(DataError):
        bootstrap_interval(statistic, betas[:, 2:], n_boot=5)


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal():
    rng = np.random.default_rng(0)
    betas = rng.standard_normal((3, 400, 2))
    low, high = bootstrap_interval(lambda y: y.mean(axis=(1, 2)), betas, n_boot=500)
    half = 1.96 * betas.mean(axis=2).std(axis=1) / np.sqrt(400)
    np.testing.assert_allclose((high - low) / 2, half, rtol=0.15)
    assert ((low < betas.mean(axis=(1, 2))) & (betas.mean(axis=(1, 2)) < high)).all()


def test_bootstrap_interval_of_ncsnr():
    rng = np.random.default_rng(1)
    betas = rng.standard_normal((4, 100, 1)) + 0.5 * rng.standard_normal((4, 100, 3))
    betas[3] = np.nan
    low, high = bootstrap_interval(ncsnr, betas, n_boot=100)
    assert (low[:3] < 2).all()
    assert (high[:3] > 2).all()
    assert np.isnan(low[3])
    again = bootstrap_interval(ncsnr, betas, n_boot=100)
    np.testing.assert_array_equal(low, again[0])
    with pytest.raises(UsageError):
        bootstrap_interval(ncsnr, betas, level=1)
