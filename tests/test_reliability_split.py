# SPDX-License-Identifier: Apache-2.0
"""Split-half reliability and the arrangement of trials as repeats."""

import numpy as np
import pytest

from conform_app.errors import DataError, UsageError
from conform_app.reliability import arrange_repeats, repeat_numbers, split_half


def test_equals_numpy_corrcoef():
    betas = np.random.default_rng(0).standard_normal((6, 20, 5)) + np.arange(20)[:, None] / 9
    got = split_half(betas)
    for v in range(6):
        want = np.corrcoef(betas[v, :, 0::2].mean(1), betas[v, :, 1::2].mean(1))[0, 1]
        assert got[v] == pytest.approx(want, abs=1e-13)
    full = split_half(betas, spearman_brown=True)
    np.testing.assert_allclose(full, 2 * got / (1 + got), rtol=1e-12)


def test_missing_repeats_only_shorten():
    betas = np.random.default_rng(1).standard_normal((4, 15, 4))
    padded = np.full((4, 15, 7), np.nan)
    padded[:, :, [0, 2, 3, 6]] = betas  # the k-th existing repeat keeps its turn
    np.testing.assert_allclose(split_half(padded), split_half(betas), rtol=1e-12)
    once = np.concatenate([padded, np.full((4, 3, 7), np.nan)], axis=1)
    once[:, 15:, 0] = 100.0  # conditions shown once carry no information
    np.testing.assert_allclose(split_half(once), split_half(betas), rtol=1e-12)


def test_random_splits_are_reproducible_and_near_the_truth():
    rng = np.random.default_rng(2)
    betas = rng.standard_normal((3, 2000, 1)) + rng.standard_normal((3, 2000, 4))
    got = split_half(betas, n_splits=5, seed=4)
    np.testing.assert_array_equal(got, split_half(betas, n_splits=5, seed=4))
    np.testing.assert_allclose(got, 1 / 1.5, atol=0.05)
    stepped = split_half(betas, n_splits=5, spearman_brown=True)
    np.testing.assert_allclose(stepped, 1 / 1.25, atol=0.05)


def test_constant_voxel_is_nan():
    betas = np.random.default_rng(0).standard_normal((3, 9, 4))
    betas[1] = 0.1
    betas[2] = np.nan
    got = split_half(betas)
    assert np.isfinite(got[0])
    assert np.isnan(got[1:]).all()


def test_split_half_errors():
    with pytest.raises(DataError):
        split_half(np.ones((2, 5, 1)))
    with pytest.raises(UsageError):
        split_half(np.ones((2, 5, 2)), n_splits=0)


def test_arrange_puts_every_trial_once():
    rng = np.random.default_rng(5)
    condition = rng.integers(-1, 6, 50)
    betas = rng.standard_normal((3, 50)).astype(np.float32)
    number = repeat_numbers(condition)
    out = arrange_repeats(betas, condition, n_conditions=7)
    assert out.dtype == np.float32
    assert out.shape == (3, 7, number.max() + 1)
    assert np.isnan(out[:, 6]).all()
    for i in range(50):
        if condition[i] >= 0:
            np.testing.assert_array_equal(out[:, condition[i], number[i]], betas[:, i])
            assert number[i] == (condition[:i] == condition[i]).sum()
        else:
            assert number[i] == -1
    assert (~np.isnan(out[0])).sum() == (condition >= 0).sum()
    short = arrange_repeats(betas, condition, n_conditions=7, n_repeats=2)
    np.testing.assert_array_equal(short, out[:, :, :2])


def test_arrange_errors():
    with pytest.raises(DataError):
        arrange_repeats(np.zeros((2, 3)), np.array([0, 1]))
    with pytest.raises(DataError):
        arrange_repeats(np.zeros((2, 3)), np.array([0, 1, 5]), n_conditions=3)
    with pytest.raises(DataError):
        arrange_repeats(np.zeros((2, 3)), np.array([0, 1, 0.5]))
    assert arrange_repeats(np.zeros((2, 0)), np.zeros(0, int)).shape == (2, 0, 0)
