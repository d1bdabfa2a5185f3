# SPDX-License-Identifier: Apache-2.0
"""A network that begins as an estimator: near the prior's answer untrained, and trainable from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conform_app.braincorl import (
    ModelSizes,
    Stage,
    TrainSettings,
    fit_prior,
    fit_ridge,
    load_model,
    save_model,
    start_from_prior,
    train,
    transformer_weights,
    unit_norm,
)
from conform_app.errors import DataError, UsageError

E = 20
SIZES = ModelSizes(E, 40, layers=5, ffn=64, heads=4, block=20)


@pytest.fixture(scope="module")
def world():
    """Features off centre, voxels from a prior of a few directions."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(5, E))
    features = unit_norm(0.3 + rng.normal(size=(600, E)))
    prior = fit_prior(np.column_stack([rng.normal(size=(900, 5)) @ loadings, np.zeros(900)]), n_components=1)
    signal = rng.normal(size=(300, 5)) @ loadings @ features.T
    signal -= signal.mean(axis=1, keepdims=True)
    signal *= np.sqrt(0.3) / signal.std(axis=1, keepdims=True)
    betas = (signal + np.sqrt(0.7) * rng.normal(size=signal.shape)).astype(np.float32)
    people = {"sub-01": (features[:400], betas[:, :400])}
    return people, prior, features, signal, betas


@pytest.fixture(scope="module")
def start(world):
    people, prior, *_ = world
    return start_from_prior(SIZES, prior, people)


def explained(weights, features, signal) -> float:
    left = signal - weights[:, :-1] @ features.T - weights[:, -1:]
    return float((1 - left.var(axis=1) / signal.var(axis=1)).mean())


@pytest.mark.parametrize("n", [20, 50, 100, 200])
def test_untrained_it_is_between_ridge_and_the_prior(world, start, n: int) -> None:
    _, prior, features, signal, betas = world
    x, y, test = features[:n], betas[:, :n], slice(400, 600)
    ours = explained(transformer_weights(start, x, y), features[test], signal[:, test])
    exact = explained(prior.condition(x, y).weights(), features[test], signal[:, test])
    ridge = explained(fit_ridge(x, y)[0], features[test], signal[:, test])
    assert ridge < exact
    assert ours > ridge + 0.25 * (exact - ridge)


def test_it_answers_in_the_unit_that_it_is_given(world, start) -> None:
    people, prior, features, _, betas = world
    ten = start_from_prior(SIZES, prior, people, beta_sd=10.0)
    one = transformer_weights(start, features[:50], betas[:, :50])
    np.testing.assert_allclose(
        transformer_weights(ten, features[:50], 10 * betas[:, :50]), 10 * one, rtol=1e-3, atol=1e-3
    )


def test_it_is_a_network_like_any_other(world, start, tmp_path: Path) -> None:
    """The published architecture: saved, loaded strictly, and the same again from the same seed."""
    people, prior, *_ = world
    again = load_model(save_model(start, tmp_path / "start.safetensors"))
    for a, b in zip(start.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    twice = start_from_prior(SIZES, prior, people)
    assert all(
        torch.equal(a, b)
        for a, b in zip(start.state_dict().values(), twice.state_dict().values(), strict=True)
    )


def test_training_makes_it_better(world, start, tmp_path: Path) -> None:
    people, prior, *_ = world
    stage = Stage(True, (15, 120), 30, 32, 25, 4, lr=3e-4, weight_decay=0.01, schedule="cosine", sizes="log")
    settings = TrainSettings(stages=(stage,), warmup=5, validation_batches=3, precision="bfloat16")
    trained = train(people, SIZES, tmp_path, settings=settings, prior=prior, start=start)
    losses = [row["validation_loss"] for row in trained.history]
    assert losses[-1] < losses[0]
    assert trained.history[-1]["lr"] < 0.05 * stage.lr
    assert trained.card["settings"]["precision"] == "bfloat16"


def test_where_it_has_no_place_there_is_an_error(world) -> None:
    people, prior, *_ = world
    with pytest.raises(UsageError, match="cannot begin as an estimator"):
        start_from_prior(ModelSizes(E, 40, layers=2, ffn=64, heads=4), prior, people)
    with pytest.raises(UsageError, match="cannot begin as an estimator"):
        start_from_prior(ModelSizes(E, 40, layers=5, ffn=64, heads=1), prior, people)
    with pytest.raises(DataError, match="model reads 21 features, the prior 20"):
        start_from_prior(ModelSizes(E + 1, 40, layers=5, ffn=64, heads=4), prior, people)
    with pytest.raises(UsageError, match="schedule 'steps'"):
        Stage(True, (20, 20), schedule="steps")
    with pytest.raises(UsageError, match="sizes 'many'"):
        Stage(True, (20, 20), sizes="many")
    with pytest.raises(UsageError, match="Precision 'half'"):
        TrainSettings(precision="half")
