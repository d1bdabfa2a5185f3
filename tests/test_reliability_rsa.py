# SPDX-License-Identifier: Apache-2.0
"""RSA noise ceiling against the published one, and bootstrap intervals against known spreads."""

import numpy as np
import pytest
from psn_cases import load_case

from conform_app.errors import DataError, UsageError
from conform_app.psn import fit_gsn
from conform_app.reliability import bootstrap_interval, ncsnr, rdm, rsa_noise_ceiling


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
