# SPDX-License-Identifier: Apache-2.0
"""The learned prior: its posterior against Gaussian conditioning, its learning against the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conform_app.braincorl import Prior, fit_prior, fit_ridge, unit_norm
from conform_app.braincorl.posterior import Rotation, fit_posterior, log_evidence, mixing_weights
from conform_app.braincorl.prior import shrink_covariance, with_ones
from conform_app.errors import DataError, FileFaultError, NoInputError, UsageError

E = 24


def world(seed: int = 0):
    """Images, and a function that draws voxels: low-dimensional tuning, in two groups."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(2, 4, E))
    centres = 2 * rng.normal(size=(2, E))

    def people(n_voxels: int, n_images: int, noise: float):
        features = unit_norm(rng.normal(size=(n_images, E)))
        group = rng.integers(2, size=n_voxels)
        weights = centres[group] + np.einsum("vk,vke->ve", rng.normal(size=(n_voxels, 4)), loadings[group])
        weights *= np.exp(0.3 * rng.normal(size=(n_voxels, 1)))
        signal = weights @ features.T
        sd = noise * signal.std(axis=1, keepdims=True)
        return features, weights, signal, signal + sd * rng.normal(size=signal.shape)

    return people


@pytest.mark.parametrize("n_images", [10, 60])
def test_evidence_mean_and_variance_are_those_of_gaussian_conditioning(n_images: int) -> None:
    rng = np.random.default_rng(1)
    p = 12
    x = rng.normal(size=(n_images, p))
    mean, root = rng.normal(size=p), np.tril(rng.normal(size=(p, p))) + 3 * np.eye(p)
    y = rng.normal(size=(3, n_images))
    rotation = Rotation.of(x, mean, root)
    noise, scale = np.array([0.3, 2.0]), np.array([0.5, 1.5])
    logs = log_evidence(*rotation.forms(y, noise), scale, n_images)
    for j, d in enumerate(noise):
        for i, s in enumerate(scale):
            cov = s**2 * (x @ root @ root.T @ x.T + d * np.eye(n_images))
            left = y - s * x @ mean
            expected = -0.5 * (np.linalg.slogdet(cov)[1] + (left @ np.linalg.inv(cov) * left).sum(axis=1))
            np.testing.assert_allclose(logs[:, j, i], expected, rtol=1e-9)
    # The whole, as an average over the grid, against conditioning at each point of the grid.
    posterior = fit_posterior(x, y, mean[None], root[None])
    query = rng.normal(size=(5, p))
    prior_cov = root @ root.T
    first, second, weights = 0.0, 0.0, 0.0
    for j, d in enumerate(posterior.noise):
        gain = prior_cov @ x.T @ np.linalg.inv(x @ prior_cov @ x.T + d * np.eye(n_images))
        r0, r1, r2 = posterior.moments[:, 0, j].T[..., None]
        weights = weights + r0 * (y @ gain.T) + r1 * (mean - gain @ x @ mean)
        by_y, by_m = (y @ gain.T) @ query.T, query @ (mean - gain @ x @ mean)
        within = np.einsum("qp,pr,qr->q", query, prior_cov - gain @ x @ prior_cov, query)
        first = first + r0 * by_y + r1 * by_m
        second = second + r0 * by_y**2 + 2 * r1 * by_y * by_m + r2 * (by_m**2 + within)
    np.testing.assert_allclose(posterior.weights(), weights, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(posterior.variance(query), second - first**2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(posterior.moments[..., 0].sum(axis=(1, 2)), 1, rtol=1e-5)


def test_mixing_weights_find_the_points_that_data_come_from() -> None:
    rng = np.random.default_rng(2)
    points = np.array([-2.0, 0.0, 2.0])
    data = rng.normal(rng.choice(points, p=[0.7, 0.0, 0.3], size=4000), 0.7)
    p = mixing_weights(-0.5 * ((data[:, None] - points) / 0.7) ** 2)
    np.testing.assert_allclose(p, [0.7, 0.0, 0.3], atol=0.03)


def test_noise_level_is_recovered() -> None:
    people = world()
    _, weights, _, _ = people(1500, 50, 1.0)
    prior = fit_prior(np.column_stack([weights, np.zeros(len(weights))]))
    features, _, signal, betas = people(800, 100, 1.0)
    posterior = prior.condition(features, betas)
    ratio = posterior.noise_variance() / signal.var(axis=1)
    assert 0.85 < np.median(ratio) < 1.2


def scores(prior: Prior, people, n: int) -> tuple[float, float]:
    """Explained variance of noise-free responses: of the prior, and of ridge."""
    features, _, signal, betas = people(300, 400, 1.5)
    out = []
    for w in (
        prior.condition(features[:n], betas[:, :n]).weights(),
        fit_ridge(features[:n], betas[:, :n])[0],
    ):
        left = signal[:, n:] - w @ with_ones(features[n:]).T
        out.append(float(np.mean(1 - left.var(axis=1) / signal[:, n:].var(axis=1))))
    return out[0], out[1]


def test_a_prior_learned_from_betas_serves_like_one_from_true_weights() -> None:
    people = world(3)
    _, weights, _, _ = people(1500, 50, 1.0)
    from_weights = fit_prior(np.column_stack([weights, np.zeros(len(weights))]))
    trained_on = {}
    for name in ("sub-01", "sub-02"):
        features, _, _, betas = people(700, 200, 1.5)
        trained_on[name] = features, betas
    from_betas = fit_prior(trained_on)
    assert from_betas.card["participants"] == ["sub-01", "sub-02"]
    for n in (15, 40):
        best, ridge = scores(from_weights, people, n)
        learned, _ = scores(from_betas, people, n)
        assert best > ridge + 0.2
        assert learned > best - 0.06


def test_the_answer_does_not_depend_on_the_unit_or_the_offset_of_the_betas() -> None:
    people = world(4)
    _, weights, _, _ = people(800, 50, 1.0)
    prior = fit_prior(np.column_stack([weights, np.zeros(len(weights))]))
    features, _, _, betas = people(100, 60, 1.0)
    one = prior.condition(features, betas).weights()
    thousand = prior.condition(features, 1000 * betas).weights()
    np.testing.assert_allclose(thousand, 1000 * one, rtol=1e-6, atol=1e-6 * np.abs(thousand).max())
    moved = prior.condition(features, betas + betas.std()).weights()
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(one[:, :-1], moved[:, :-1], strict=True)]
    assert np.median(r) > 0.95


def test_blocks_of_voxels_change_nothing() -> None:
    people = world(5)
    _, weights, _, _ = people(800, 50, 1.0)
    prior = fit_prior(np.column_stack([weights, np.zeros(len(weights))]), n_components=2)
    features, _, _, betas = people(90, 40, 1.0)
    roots = prior._roots(with_ones(features))
    a = fit_posterior(with_ones(features), betas, prior.means, roots, block=7)
    b = fit_posterior(with_ones(features), betas, prior.means, roots)
    np.testing.assert_allclose(a.weights(), b.weights(), rtol=1e-6, atol=1e-9)


def test_a_prior_survives_its_file(tmp_path: Path) -> None:
    _, weights, _, _ = world(6)(500, 20, 1.0)
    prior = fit_prior(np.column_stack([weights, np.zeros(len(weights))]), n_components=2)
    again = Prior.load(prior.save(tmp_path / "prior.safetensors"))
    np.testing.assert_allclose(again.covariances, prior.covariances, rtol=1e-6)
    assert again.card["n_components"] == prior.card["n_components"]
    with pytest.raises(NoInputError):
        Prior.load(tmp_path / "no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not this")
    with pytest.raises(FileFaultError):
        Prior.load(tmp_path / "bad.safetensors")


def test_shrinkage_leaves_plenty_of_data_alone_and_makes_few_regular() -> None:
    rng = np.random.default_rng(7)
    true = np.diag(np.linspace(0.1, 4, 30))
    for n, much in ((10_000, False), (10, True)):
        draws = rng.normal(size=(n, 30)) @ np.sqrt(true)
        sample = draws.T @ draws / n
        shrunk = shrink_covariance(sample, n)
        assert np.linalg.eigvalsh(shrunk)[0] > 0
        closer = np.linalg.norm(shrunk - true) / np.linalg.norm(sample - true)
        assert closer < (0.8 if much else 1.02)


def test_bad_training_data_have_their_errors() -> None:
    features, _, _, betas = world(8)(40, 30, 1.0)
    with pytest.raises(DataError, match="shapes"):
        fit_prior([np.ones((5, 4)), np.ones((5, 6))])
    with pytest.raises(DataError, match="Fewer than two"):
        fit_prior(np.zeros((5, 4)))
    with pytest.raises(UsageError, match="0 components"):
        fit_prior(np.ones((5, 4)), n_components=0)
    with pytest.raises(DataError, match="no participants"):
        fit_prior({})
    with pytest.raises(DataError, match="sub-01: betas are for 29"):
        fit_prior({"sub-01": (features, betas[:, :-1])})
    with pytest.raises(DataError, match="sub-01: features of image 0 have length 2"):
        fit_prior({"sub-01": (2 * features, betas)})
    with pytest.raises(DataError, match="sub-02: every voxel is constant"):
        fit_prior({"sub-01": (features, betas), "sub-02": (features, np.ones_like(betas))})
    with pytest.raises(DataError, match="dimensions"):
        fit_prior({"sub-01": (features, betas), "sub-02": (unit_norm(features[:, :9]), betas)})
    with pytest.raises(DataError, match="there twice"):
        fit_prior([("a", features, betas), ("a", features, betas)])
