# SPDX-License-Identifier: Apache-2.0
"""ncsnr and noise ceilings against reference numbers and a simulation whose ceiling is known."""

from pathlib import Path

import numpy as np
import pytest

from conform_app.errors import DataError, UsageError
from conform_app.reliability import arrange_repeats, ncsnr, noise_ceiling, variance_components

FIXTURE = Path(__file__).parent / "data" / "reliability" / "noiseceiling.npz"


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURE) as z:
        return {k: z[k] for k in z.files}


@pytest.mark.parametrize(
    ("betas", "n", "want"),
    [
        ("betas_equal", 1, "equal_nc_n1"),
        ("betas_equal", 6, "equal_nc_n6"),
        ("betas_equal", 3, "equalreps_nc_n3"),
        ("betas_equal", "avg", "equal_nc_navg"),
        ("betas_varying", 1, "varying_nc_n1"),
        ("betas_varying", "avg", "varying_nc_navg"),
    ],
)
def test_ceiling_equals_reference(reference, betas, n, want):
    got = noise_ceiling(reference[betas].transpose(0, 2, 1), n=n)
    np.testing.assert_allclose(got, reference[want], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["equal", "varying"])
def test_ncsnr_equals_reference(reference, kind):
    got = ncsnr(reference[f"betas_{kind}"].transpose(0, 2, 1))
    np.testing.assert_allclose(got, reference[f"{kind}_ncsnr_n1"], rtol=1e-10, atol=1e-12)


def test_ceiling_of_a_known_signal():
    rng = np.random.default_rng(3)
    signal_sd = np.array([0.5, 1.0, 2.0])
    betas = signal_sd[:, None, None] * rng.standard_normal((3, 4000, 1)) + rng.standard_normal((3, 4000, 3))
    np.testing.assert_allclose(ncsnr(betas), signal_sd, rtol=0.05)
    want = 100 * signal_sd**2 / (signal_sd**2 + 1 / 3)
    np.testing.assert_allclose(noise_ceiling(betas, n=3), want, atol=2.5)
    np.testing.assert_allclose(noise_ceiling(betas, n="avg"), noise_ceiling(betas, n=3), rtol=1e-12)


def test_blocks_do_not_change_a_voxel(reference, monkeypatch):
    betas = reference["betas_varying"].transpose(0, 2, 1)
    whole = noise_ceiling(betas, n="avg")
    monkeypatch.setattr("conform_app.reliability.ceiling._BLOCK_VALUES", 500)
    np.testing.assert_array_equal(noise_ceiling(betas, n="avg"), whole)


def test_odd_voxels():
    rng = np.random.default_rng(0)
    betas = rng.standard_normal((5, 12, 3))
    betas[0] = 7.3  # constant
    betas[1] = np.nan  # outside the mask
    betas[2] = betas[2, :, :1]  # no noise
    betas[3, :, 1:] = np.nan  # nothing repeated for this voxel
    got = noise_ceiling(betas)
    assert np.isnan(got[[0, 1, 3]]).all()
    assert got[2] == 100
    alone = noise_ceiling(betas[4:])
    assert got[4] == alone[0]


def test_infinity_counts_as_missing_and_integers_are_taken():
    betas = np.arange(24).reshape(2, 4, 3) ** 2
    with_hole = betas.astype(float)
    with_hole[0, 1, 2] = np.nan
    as_inf = with_hole.copy()
    as_inf[0, 1, 2] = np.inf
    np.testing.assert_array_equal(ncsnr(with_hole), ncsnr(as_inf))
    np.testing.assert_array_equal(ncsnr(betas)[1], ncsnr(with_hole)[1])


def test_what_is_masked_is_missing():
    betas = np.arange(24).reshape(2, 4, 3) ** 2
    hidden = np.zeros(betas.shape, bool)
    hidden[0, 1, 2] = True
    with_hole = np.where(hidden, np.nan, betas)
    np.testing.assert_array_equal(ncsnr(np.ma.array(betas, mask=hidden)), ncsnr(with_hole))
    flat, condition = (
        np.ma.array(betas.reshape(2, 12), mask=hidden.reshape(2, 12)),
        np.repeat(np.arange(4), 3),
    )
    np.testing.assert_array_equal(arrange_repeats(flat, condition), with_hole)


def test_components_add_up():
    betas = np.random.default_rng(1).standard_normal((4, 30, 4)) + 3 * np.arange(30)[:, None]
    signal, noise = variance_components(betas)
    np.testing.assert_allclose(signal + noise, betas.reshape(4, -1).var(axis=1, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(noise, betas.var(axis=2, ddof=1).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "all", True])
def test_bad_n(bad):
    with pytest.raises(UsageError):
        noise_ceiling(np.zeros((2, 3, 2)), n=bad)


def test_bad_data():
    with pytest.raises(DataError):
        noise_ceiling(np.zeros((2, 3)))
    with pytest.raises(DataError):
        noise_ceiling(np.ones((2, 3, 1)))
    with pytest.raises(DataError):
        ncsnr(np.full((2, 3, 4), "a"))
