# SPDX-License-Identifier: Apache-2.0
"""Shares of the estimators: chance agreement on a few images is no evidence, and voxels keep their say."""

from __future__ import annotations

import numpy as np

from conform_app.braincorl import adapt, fit_prior, unit_norm
from conform_app.braincorl.prior import Prior, flat_prior
from conform_app.braincorl.stacking import choose_shares


def test_chance_agreement_on_few_images_is_not_taken_for_skill() -> None:
    """A useless estimator that errs alike in all voxels: with 20 images it agrees by chance."""
    rng = np.random.default_rng(0)
    lost = []
    for _ in range(40):
        tuning, images = rng.normal(size=(300, 3)), rng.normal(size=(3, 220))
        signal = tuning @ images
        y = signal + 2 * rng.normal(size=signal.shape)
        useless = 0.6 * (tuning @ rng.normal(size=(3, 3))) @ rng.normal(size=(3, 220))
        guesses = {"mean": np.zeros_like(y), "good": 0.5 * signal, "useless": useless}
        shares = choose_shares({m: g[:, :20] for m, g in guesses.items()}, y[:, :20])
        error = {m: ((signal - g)[:, 20:] ** 2).mean() for m, g in guesses.items()}
        delivered = sum(shares[m][:, None] * guesses[m] for m in guesses)
        lost.append(((signal - delivered)[:, 20:] ** 2).mean() / error["good"] - 1)
    assert np.mean(lost) < 0.01
    assert np.max(lost) < 0.15


def test_a_combination_that_is_better_is_found() -> None:
    """Two estimators with errors of their own: their mean halves the error, and that is seen."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(200, 60))
    y = signal + rng.normal(size=signal.shape)
    held_out = {m: signal + rng.normal(size=signal.shape) for m in "ab"}
    shares = choose_shares(held_out, y)
    assert abs(shares["a"].mean() - 0.5) < 0.1


def test_the_reference_gives_way_to_what_is_surely_better_only() -> None:
    """What 20 images cannot tell from the reference gets little; what is clearly better gets most."""
    rng = np.random.default_rng(3)
    signal = rng.normal(size=(300, 20))
    y = signal + rng.normal(size=signal.shape)
    shared = 0.2 * rng.normal(size=(1, 20))  # an error that all voxels have at an image
    held_out = {"reference": 0.7 * signal + shared, "other": 0.7 * signal + 0.5 * shared}
    assert choose_shares(held_out, y)["other"].mean() > 0.9
    assert choose_shares(held_out, y, reference="reference")["other"].mean() < 0.1
    held_out = {"reference": 0.5 * signal, "other": signal}
    assert choose_shares(held_out, y, reference="reference")["other"].mean() > 0.7


def test_with_many_images_a_voxel_decides_for_itself() -> None:
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(100, 4000))
    y = signal + rng.normal(size=signal.shape)
    other = np.arange(100) >= 80  # voxels that the first estimator does not hold for
    first = np.where(other[:, None], 0.0, signal)
    second = np.where(other[:, None], signal, 0.3 * signal)
    shares = choose_shares({"first": first, "second": second}, y)
    assert shares["first"][~other].mean() > 0.7
    assert shares["second"][other].mean() > 0.7


def long_tailed(rng: np.random.Generator):
    """Voxels with tuning to many directions, of which few images and noisy voxels teach only the first."""
    e = 60
    axes = np.linalg.qr(rng.normal(size=(e, e)))[0] / np.arange(1, e + 1) ** 0.35

    def people(n_voxels: int, n_images: int):
        features = unit_norm(rng.normal(size=(n_images, e)))
        signal = rng.normal(size=(n_voxels, e)) @ axes.T @ features.T
        signal /= signal.std(axis=1, keepdims=True)
        betas = np.sqrt(0.3) * signal + np.sqrt(0.7) * rng.normal(size=signal.shape)
        return features, np.sqrt(0.3) * signal, betas

    return people


def test_signal_that_passes_for_noise_is_known_from_participants_left_out() -> None:
    """The predictive standard deviation is far nearer to the errors at 20 images than without it."""
    people = long_tailed(np.random.default_rng(3))
    train = {}
    for name in ("sub-01", "sub-02"):
        features, _, betas = people(300, 400)
        train[name] = features, betas
    prior = fit_prior(train, n_components=1)
    shares = [prior.signal_in_noise(n) for n in (20, 50, 100)]
    assert 0.05 < shares[0] < 0.9
    assert shares[0] > shares[2]
    assert prior.signal_in_noise(5000) == prior.card["signal_in_noise"][-1][1]
    features, signal, betas = people(300, 400)
    unaware = Prior(prior.means, prior.covariances, prior.shares)
    assert unaware.signal_in_noise(20) == 0
    within = {}
    for name, known in (("left out", prior), ("unaware", unaware)):
        found = []
        for start in range(0, 100, 20):
            part = slice(start, start + 20)
            fitted = adapt(features[part], betas[:, part], prior=known)
            z = (signal[:, 200:] - fitted.predict(features[200:])) / fitted.predictive_sd(features[200:])
            found.append(np.mean(np.abs(z) < 1))
        within[name] = np.mean(found)
    assert within["unaware"] + 0.1 < within["left out"] < 0.75


def test_noise_is_lowered_by_the_share_of_signal_in_it() -> None:
    people = long_tailed(np.random.default_rng(5))
    features, _, betas = people(200, 100)
    plain = flat_prior(61)
    card = {"signal_in_noise": [[20, 0.4], [80, 0.2]], "signal_share": 0.25}
    aware = Prior(plain.means, plain.covariances, plain.shares, card)
    assert np.isclose(aware.signal_in_noise(40), 0.3)
    fits = [adapt(features[:40], betas[:, :40], prior=p, method="prior") for p in (plain, aware)]
    before, after = (float((f.noise_sd**2).mean()) for f in fits)
    total = betas[:, :40].var(axis=1, ddof=1).mean()
    signal = (40 * (total - before) / 0.7 + 100 * 0.25 * total) / 140
    np.testing.assert_allclose(before, after + 0.3 * signal, rtol=1e-5)
    np.testing.assert_array_equal(fits[0].weights, fits[1].weights)
    assert fits[1].calibration > fits[0].calibration


def test_one_participant_or_weights_leave_nothing_to_learn_it_from() -> None:
    people = long_tailed(np.random.default_rng(4))
    features, _, betas = people(150, 200)
    assert fit_prior({"sub-01": (features, betas)}, n_components=1).signal_in_noise(20) == 0
    assert fit_prior(np.random.default_rng(0).normal(size=(200, 61))).signal_in_noise(20) == 0
    assert flat_prior(61).signal_in_noise(20) == 0
