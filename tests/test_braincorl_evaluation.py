# SPDX-License-Identifier: Apache-2.0
"""Scores against scipy, numpy and simulation; leakage refused; what weights say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from conform_app.braincorl import adapt, evaluate, fit_prior, learning_curve, score, unit_norm
from conform_app.braincorl.understanding import (
    category_contrast,
    image_importance,
    text_query,
)
from conform_app.errors import DataError

E = 16


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(3, E))
    weights = rng.normal(size=(60, 3)) @ loadings
    features = unit_norm(rng.normal(size=(500, E)))
    signal = weights @ features.T
    betas = signal + signal.std(axis=1, keepdims=True) * rng.normal(size=signal.shape)
    prior = fit_prior(np.column_stack([rng.normal(size=(500, 3)) @ loadings, np.zeros(500)]))
    return weights, features, betas, prior


def test_scores_are_those_of_scipy_and_numpy() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(4, 50))
    p = 0.5 * y + rng.normal(size=(4, 50)) + 7
    p[2] = 1.0
    y[3] = 2.0
    found = score(p, y, noise_ceiling=[50, 0.5, 50, 50], regions={"a": np.array([1, 1, 0, 0], bool)})
    for v in (0, 1):
        assert found.r[v] == pytest.approx(stats.pearsonr(p[v], y[v])[0], rel=1e-5)
        assert found.explained_variance[v] == pytest.approx(1 - np.var(y[v] - p[v]) / np.var(y[v]), rel=1e-4)
    assert found.r[2] == 0
    assert np.isnan(found.r[3])
    assert found.ceiling_share[0] == pytest.approx(found.r[0] ** 2 / 0.5, rel=1e-5)
    assert np.isnan(found.ceiling_share[1])
    mean, low, high = found.intervals["a"]["r"]
    assert low < mean < high
    assert mean == pytest.approx(found.r[:2].mean(), rel=1e-5)


def test_labels_in_place_of_regions_are_refused() -> None:
    y = np.random.default_rng(1).normal(size=(4, 50))
    with pytest.raises(DataError, match="mask of the 4 voxels"):
        score(y, y, regions=np.array([1, 1, 2, 2]))


def test_a_perfect_model_reaches_the_ceiling() -> None:
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(300, 800))
    nc = rng.uniform(10, 80, size=300)
    y = signal + np.sqrt((100 - nc) / nc)[:, None] * rng.normal(size=signal.shape)
    found = score(signal, y, noise_ceiling=nc, n_bootstrap=50)
    assert found.intervals["all"]["ceiling_share"][0] == pytest.approx(1, abs=0.03)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for trial in range(60):
        y = rng.normal(size=(1, 60))
        p = 0.6 * y + 0.8 * rng.normal(size=y.shape)
        _, low, high = score(p, y, n_bootstrap=200, seed=trial).intervals["all"]["r"]
        inside += low < 0.6 < high
    assert inside >= 50


def test_test_images_of_the_context_are_refused(world) -> None:
    _, features, betas, prior = world
    fitted = adapt(features[:40], betas[:, :40], prior=prior)
    accuracy = evaluate(fitted, features[40:], betas[:, 40:], n_bootstrap=20)
    assert accuracy.n_images == 460
    assert accuracy.intervals["all"]["r"][0] > 0.4
    with pytest.raises(DataError, match=r"1 test images are in the context \(first: test image 0\)"):
        evaluate(fitted, features[39:], betas[:, 39:])
    with pytest.raises(DataError, match="in the context"):
        learning_curve(features[:50], betas[:, :50], features[40:], betas[:, 40:])


def test_learning_curves_rise_and_say_how_many_images_are_needed(world) -> None:
    _, features, betas, prior = world
    curve = learning_curve(
        features[:300],
        betas[:, :300],
        features[300:],
        betas[:, 300:],
        sizes=(10, 40, 150),
        repeats=3,
        prior=prior,
    )
    assert set(curve.r) == {"stacked", "mean", "ridge", "prior"}
    assert np.isfinite(curve.r["stacked"][:2]).all()
    assert np.isfinite(curve.r["stacked"][2]).tolist() == [True, True, False]  # two disjoint contexts of 150
    middle = {name: np.nanmean(values, axis=1) for name, values in curve.r.items()}
    assert (np.diff(middle["stacked"]) > 0).all()
    assert (middle["stacked"] >= middle["ridge"] - 0.005).all()
    needed = curve.images_needed(0.9)
    assert needed["prior"] < needed["ridge"]
    assert np.isnan(needed["mean"])
    with pytest.raises(DataError, match="context of 301 images"):
        learning_curve(features[:300], betas[:, :300], features[300:], betas[:, 300:], sizes=(301,))


def test_importance_is_the_attention_of_the_readout() -> None:
    import torch

    from conform_app.braincorl import BraInCoRL, ModelSizes

    torch.manual_seed(0)
    model = BraInCoRL(ModelSizes(E, 16, 3, 16, 2, 2)).eval()
    rng = np.random.default_rng(0)
    features, betas = unit_norm(rng.normal(size=(12, E))), rng.normal(size=(5, 12)).astype(np.float32)
    betas[2] = 1
    every = image_importance(model, features, betas, block=2)
    assert every.shape == (5, 12)
    assert np.isnan(every[2]).all()
    assert (np.delete(every, 2, axis=0).sum(axis=1) < 1).all()
    layers = [image_importance(model, features, betas, layer=i) for i in range(3)]
    np.testing.assert_allclose(np.mean(layers, axis=0), every, rtol=1e-5)
    with pytest.raises(DataError, match="Layer 3 of 3"):
        image_importance(model, features, betas, layer=3)


def test_text_queries_find_what_voxels_are_tuned_to() -> None:
    rng = np.random.default_rng(0)
    concepts = np.linalg.qr(rng.normal(size=(E, 4)))[0].T
    gap = 3 * np.linalg.qr(np.column_stack([concepts.T, rng.normal(size=E)]))[0][:, -1]  # all texts share it
    tuned = rng.integers(4, size=50)
    weights = np.column_stack([concepts[tuned] + 0.05 * rng.normal(size=(50, E)), rng.normal(size=50)])
    weights[7] = np.nan
    prompts = ["a face", "a place", "a body", "food"]
    templates = [unit_norm(c + gap + 0.1 * rng.normal(size=(6, E))) for c in concepts]
    found = text_query(weights, prompts, templates)
    np.testing.assert_array_equal(np.delete(found.best, 7), np.delete(tuned, 7))
    assert found.best[7] == -1
    np.testing.assert_allclose(np.nansum(found.selectivity, axis=1), 0, atol=1e-4)
    with pytest.raises(DataError, match="compared"):
        text_query(weights, prompts[:1], templates[:1])
    with pytest.raises(DataError, match="4 prompts have 3"):
        text_query(weights, prompts, templates[:3])
    with pytest.raises(DataError, match="zero or not finite"):
        text_query(weights, prompts, [*templates[:3], np.zeros((1, E))])


def test_category_contrast_is_the_difference_of_means() -> None:
    rng = np.random.default_rng(0)
    features = unit_norm(rng.normal(size=(30, E)))
    categories = ["face"] * 10 + ["house"] * 20
    weights = rng.normal(size=(5, E + 1))
    difference, d = category_contrast(weights, features, categories, "face")
    predicted = weights[:, :-1] @ features.T + weights[:, -1:]
    np.testing.assert_allclose(difference, predicted[:, :10].mean(1) - predicted[:, 10:].mean(1), rtol=1e-4)
    t = stats.ttest_ind(predicted[:, :10], predicted[:, 10:], axis=1, equal_var=False)
    assert (np.sign(d) == np.sign(t.statistic)).all()
    with pytest.raises(DataError, match="at least two"):
        category_contrast(weights, features, categories, "cat")
