# SPDX-License-Identifier: Apache-2.0
"""The baselines: the published five-fold ridge to the digit, ridge against its closed form."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from conform_app.braincorl import fit_five_fold_ridge, fit_ridge, group_mean
from conform_app.errors import DataError

HERE = Path(__file__).parent / "data" / "braincorl"


def explained_variance(y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return 1 - (y - predicted).var(axis=1) / y.var(axis=1)


def fixture(name: str) -> dict[str, np.ndarray]:
    if name == "ridge_s":
        return dict(np.load(HERE / "ridge_s.npz"))
    root = os.environ.get("CONFORM_TEST_DATA")
    if not root:
        pytest.skip("CONFORM_TEST_DATA, the folder with the large fixtures, is not set")
    return dict(np.load(Path(root) / "fixtures" / "braincorl" / f"{name}.npz"))


@pytest.mark.parametrize("name", ["ridge_s", "ridge_clip"])
def test_five_fold_ridge_equals_the_published_baseline(name: str) -> None:
    data = fixture(name)
    weights, chosen = fit_five_fold_ridge(data["ic_img"], data["ic_nrn"], penalties=data["lambdas"])
    np.testing.assert_allclose(weights, data["weights_f64"], atol=1e-6)
    assert set(chosen) <= set(data["lambdas"])
    predicted = weights[:, :-1] @ data["uk_img"].T + weights[:, -1:]
    np.testing.assert_allclose(explained_variance(data["uk_nrn"], predicted), data["ev"], atol=1e-2)


def test_ridge_is_the_closed_form_at_the_penalty_it_chose() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 12))
    y = rng.normal(size=(5, 12)) @ x.T + 0.5 * rng.normal(size=(5, 60)) + 3
    weights, chosen = fit_ridge(x, y)
    for v, penalty in enumerate(chosen):
        centred = x - x.mean(axis=0)
        w = np.linalg.solve(centred.T @ centred + penalty * np.eye(12), centred.T @ (y[v] - y[v].mean()))
        np.testing.assert_allclose(weights[v, :-1], w, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(weights[v, -1], y[v].mean() - x.mean(axis=0) @ w, rtol=1e-6)


def test_ridge_chooses_a_penalty_for_each_voxel() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 20))
    signal = rng.normal(size=(2, 20)) @ x.T
    y = signal + np.array([[0.05], [30.0]]) * rng.normal(size=signal.shape)
    chosen = fit_ridge(x, y)[1]
    assert chosen[0] < chosen[1] / 10


def test_group_mean_takes_who_is_there() -> None:
    a, b = np.ones((3, 4)), np.full((3, 4), 3.0)
    a[0], b[0], b[1] = np.nan, np.nan, np.nan
    mean = group_mean([a, b])
    assert np.isnan(mean[0]).all()
    np.testing.assert_array_equal(mean[1:], [[1] * 4, [2] * 4])
    with pytest.raises(DataError, match="one space"):
        group_mean([a, b[:2]])


def test_too_few_images_for_folds() -> None:
    with pytest.raises(DataError, match="too few"):
        fit_five_fold_ridge(np.eye(6), np.ones((2, 6)))
