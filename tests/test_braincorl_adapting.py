# SPDX-License-Identifier: Apache-2.0
"""Adaptation to a new participant: never worse, sure where it should be, and clear about bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conform_app.braincorl import (
    BraInCoRL,
    ModelSizes,
    adapt,
    fit_prior,
    transformer_weights,
    unit_norm,
)
from conform_app.braincorl.evaluation import explained_variance
from conform_app.errors import CannotCreateError, DataError, UsageError

E = 24
SIZES = ModelSizes(E, 16, 2, 16, 2, 2)


@pytest.fixture(scope="module")
def world():
    """A prior from 800 voxels; 250 voxels of a new participant from the same world."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(4, E))

    def draw(n):
        return rng.normal(size=(n, 4)) @ loadings

    prior = fit_prior(np.column_stack([draw(800), np.zeros(800)]), n_components=2)
    features = unit_norm(rng.normal(size=(600, E)))
    signal = draw(250) @ features.T
    betas = signal + 1.5 * signal.std(axis=1, keepdims=True) * rng.normal(size=signal.shape)
    return prior, features, signal, betas


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return BraInCoRL(SIZES).eval()


@pytest.mark.parametrize("n", [20, 60, 250])
def test_stacked_is_never_worse_than_the_best(world, network, n: int) -> None:
    """With a good prior, a good-for-nothing network and ridge: as the best of them, at every size."""
    prior, features, signal, betas = world
    test = slice(300, 600)
    fitted = adapt(features[:n], betas[:, :n], prior=prior, model=network)
    assert set(fitted.parts) == {"mean", "ridge", "prior", "transformer"}
    np.testing.assert_allclose(sum(fitted.shares.values()), 1, rtol=1e-5)

    def ev(weights) -> float:
        predicted = weights[:, :-1] @ features[test].T + weights[:, -1:]
        return float(explained_variance(predicted, signal[:, test]).mean())

    assert ev(fitted.weights) > max(ev(w) for w in fitted.parts.values()) - 0.02
    assert ev(fitted.weights) > ev(fitted.parts["ridge"])


def test_stacked_leaves_a_prior_that_does_not_hold(world) -> None:
    """Voxels of another world: with enough images the delivered model is as good as ridge."""
    prior, features, _, _ = world
    rng = np.random.default_rng(5)
    signal = rng.normal(size=(200, E)) @ features.T
    betas = signal + 0.5 * signal.std(axis=1, keepdims=True) * rng.normal(size=signal.shape)
    fitted = adapt(features[:200], betas[:, :200], prior=prior)
    left = signal[:, 300:] - fitted.predict(features[300:])
    ridge = fitted.parts["ridge"]
    left_ridge = signal[:, 300:] - ridge[:, :-1] @ features[300:].T - ridge[:, -1:]
    assert left.var() < 1.02 * left_ridge.var()


def test_the_predictive_sd_covers_the_errors(world) -> None:
    prior, features, signal, betas = world
    for method in ("stacked", "prior", "ridge"):
        fitted = adapt(features[:60], betas[:, :60], prior=prior, method=method)
        z = (signal[:, 300:] - fitted.predict(features[300:])) / fitted.predictive_sd(features[300:])
        assert 0.55 < np.mean(np.abs(z) < 1) < 0.85, method
        z = (betas[:, 300:] - fitted.predict(features[300:])) / fitted.predictive_sd(
            features[300:], noise=True
        )
        assert 0.6 < np.mean(np.abs(z) < 1) < 0.76, method


def test_constant_and_broken_voxels_come_back_as_nan_and_harm_nobody(world) -> None:
    prior, features, _, betas = world
    context = betas[:, :50].copy()
    clean = adapt(features[:50], np.delete(context, [3, 7], axis=0), prior=prior)
    context[3], context[7, 4] = 2.0, np.nan
    fitted = adapt(features[:50], context, prior=prior)
    assert np.flatnonzero(~fitted.valid).tolist() == [3, 7]
    assert np.isnan(fitted.weights[[3, 7]]).all()
    assert np.isnan(fitted.predict(features[:2])[[3, 7]]).all()
    assert np.isnan(fitted.predictive_sd(features[:2])[[3, 7]]).all()
    np.testing.assert_allclose(np.delete(fitted.weights, [3, 7], axis=0), clean.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_alike", [9, 10])
def test_images_that_are_one_to_the_features_leave_the_offset(world, n_alike) -> None:
    """Features of two categories: all images of a fold, or of the context, may be of one of them."""
    prior, features, _, betas = world
    x = np.repeat(features[:1], 10, axis=0)
    x[n_alike:] = features[1]
    fitted = adapt(x, betas[:, :10] + 2.0, prior=prior)
    assert np.isfinite(fitted.weights).all()
    assert np.isfinite(fitted.predictive_sd(features[:3])).all()
    if n_alike == len(x):  # what is predicted is the mean, shrunk or not
        r = np.corrcoef(fitted.predict(x[:1])[:, 0], betas[:, :10].mean(axis=1))[0, 1]
        assert r > 0.9


def test_trials_are_matched_to_features_by_name(world) -> None:
    prior, features, _, betas = world
    names = [f"stim{i}" for i in range(50)]
    order = np.random.default_rng(0).permutation(50)
    by_row = adapt(features[order], betas[:, order], method="prior", prior=prior)
    by_name = adapt(
        features[:50],
        betas[:, order],
        method="prior",
        prior=prior,
        feature_names=names,
        beta_names=[names[i] for i in order],
    )
    np.testing.assert_array_equal(by_row.weights, by_name.weights)


def test_same_input_same_bytes(world, network) -> None:
    prior, features, _, betas = world
    a, b = (adapt(features[:40], betas[:, :40], prior=prior, model=network).weights for _ in range(2))
    assert a.tobytes() == b.tobytes()


def test_bad_input_has_its_errors(world, network) -> None:
    prior, features, _, betas = world
    x, y = features[:40], betas[:, :40]
    with pytest.raises(UsageError, match="no method 'lasso'"):
        adapt(x, y, method="lasso")
    with pytest.raises(UsageError, match="needs a trained prior"):
        adapt(x, y, method="prior")
    with pytest.raises(UsageError, match="needs a trained model"):
        adapt(x, y, method="transformer")
    with pytest.raises(DataError, match="length 2, not 1"):
        adapt(2 * x, y)
    with pytest.raises(DataError, match="image 5 are not finite"):
        adapt(np.where(np.arange(40)[:, None] == 5, np.nan, x), y)
    with pytest.raises(DataError, match="10 columns, and 24 are needed"):
        adapt(unit_norm(x[:, :10]), y, prior=prior)
    with pytest.raises(DataError, match="10 columns, and 24 are needed"):
        adapt(unit_norm(x[:, :10]), y, model=network, method="transformer")
    with pytest.raises(DataError, match="39 images, features for 40"):
        adapt(x, y[:, :-1])
    with pytest.raises(DataError, match="look transposed"):
        adapt(x, y.T)
    with pytest.raises(DataError, match="every voxel is constant"):
        adapt(x, np.ones_like(y))
    with pytest.raises(UsageError, match="too small"):
        adapt(x[:1], y[:, :1])
    with pytest.raises(DataError, match="no features for stimulus 'b'"):
        adapt(x[:1], y[:, :2], feature_names=["a"], beta_names=["a", "b"])
    with pytest.raises(DataError, match="'a' more than once"):
        adapt(x[:2], y[:, :2], feature_names=["a", "a"], beta_names=["a", "a"])
    other = BraInCoRL(ModelSizes(10, 16, 1, 16, 2, 2))
    with pytest.raises(UsageError, match="10 features and the prior 24"):
        adapt(x, y, model=other, prior=prior)


def test_blocks_and_memory_change_the_network_s_answer_by_rounding_only(world, network) -> None:
    _, features, _, betas = world
    whole = transformer_weights(network, features[:30], betas[:, :30])
    for options in ({"block": 7}, {"memory": 200_000}):
        np.testing.assert_allclose(
            transformer_weights(network, features[:30], betas[:, :30], **options), whole, atol=1e-5
        )


def test_bfloat16_changes_weights_by_about_a_hundredth(world, network) -> None:
    _, features, _, betas = world
    exact = transformer_weights(network, features[:30], betas[:, :30])
    half = transformer_weights(network, features[:30], betas[:, :30], precision="bfloat16")
    assert 0 < np.sqrt(((half - exact) ** 2).mean()) < 0.03 * exact.std()
    through = adapt(features[:30], betas[:, :30], method="transformer", model=network, precision="bfloat16")
    np.testing.assert_allclose(through.weights, half, rtol=1e-6)
    with pytest.raises(UsageError, match="Precision 'half'"):
        transformer_weights(network, features[:30], betas[:, :30], precision="half")


def test_a_run_over_voxels_goes_on_where_it_was_cut_off(world, network, tmp_path: Path) -> None:
    _, features, _, betas = world
    path = tmp_path / "weights.npy"
    whole = transformer_weights(network, features[:30], betas[:, :30], block=50)
    seen = []

    def cut(done: int, total: int) -> None:
        seen.append(done)
        if done == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transformer_weights(network, features[:30], betas[:, :30], block=50, keep_at=path, progress=cut)
    again = []
    resumed = transformer_weights(
        network, features[:30], betas[:, :30], block=50, keep_at=path, progress=lambda d, t: again.append(t)
    )
    np.testing.assert_array_equal(resumed, whole)
    assert again[0] == 150
    with pytest.raises(CannotCreateError, match="another model"):
        transformer_weights(network, features[:30], betas[:, 1:31], keep_at=path)
    assert json.loads((tmp_path / "weights.npy.json").read_text())["digest"]


def test_the_unit_of_betas_does_not_matter_to_a_network_that_knows_its_own(world) -> None:
    _, features, _, betas = world
    torch.manual_seed(0)
    network = BraInCoRL(SIZES).eval()
    network.card = {"beta_sd": 1.0}
    one = adapt(features[:30], betas[:, :30], method="transformer", model=network).weights
    ten = adapt(features[:30], 10 * betas[:, :30], method="transformer", model=network).weights
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-3, atol=1e-4)
