# SPDX-License-Identifier: Apache-2.0
"""Interpolation to another TR: the published numbers, and the even grid."""

import os
from pathlib import Path

import numpy as np
import pytest

from conform_app.errors import DataError
from conform_app.glmsingle import Resampled, RunTrials, fit_glmsingle


def published():
    root = os.environ.get("CONFORM_TEST_DATA")
    if not root:
        pytest.skip("CONFORM_TEST_DATA does not name the folder with the test vectors")
    return np.load(Path(root) / "fixtures" / "mosaic" / "interpolate_ts.npz")


@pytest.mark.parametrize("name", ["nsd", "bmd", "things", "nod"])
def test_equals_the_published_interpolation(name):
    file = published()
    tr, new_tr = file[f"{name}_tr"]
    run = Resampled(file[f"{name}_in"], tr, new_tr)
    assert run.shape == file[f"{name}_out"].shape
    np.testing.assert_allclose(run[:], file[f"{name}_out"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(run[1:2], file[f"{name}_out"][1:2], rtol=1e-10, atol=1e-10)


def test_even_grid_is_linear_interpolation_at_its_times():
    y = np.random.default_rng(0).normal(size=(4, 30))
    run = Resampled(y, 1.6, 1.0, even=True)
    times = np.arange(48)
    expected = [np.interp(times, np.arange(30) * 1.6, row) for row in y]
    np.testing.assert_allclose(run[:], expected, atol=1e-12)
    np.testing.assert_allclose(Resampled(y, 2.0, 2.0)[:], y)


def test_takes_the_place_of_a_run():
    rng = np.random.default_rng(1)
    data = [rng.normal(1000, 5, (30, 60)).astype(np.float32) for _ in range(2)]
    trials = [RunTrials(np.arange(10) * 9.0 + 3, np.ones(10), rng.permutation(10)) for _ in range(2)]
    lazy = fit_glmsingle([Resampled(y, 2.0, 1.0) for y in data], trials, None, 1.0)
    whole = fit_glmsingle([Resampled(y, 2.0, 1.0)[:] for y in data], trials, None, 1.0)
    np.testing.assert_array_equal(lazy.type_d.betas, whole.type_d.betas)
    cube = Resampled(data[0].reshape(5, 3, 2, 60), 2.0, 1.0)
    assert cube.shape == (5, 3, 2, 120)


@pytest.mark.parametrize(("tr", "new"), [(0, 1), (1, -1), (np.nan, 1), (1, 500)])
def test_wrong_times(tr, new):
    with pytest.raises(DataError):
        Resampled(np.zeros((2, 10)), tr, new)
