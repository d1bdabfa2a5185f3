# SPDX-License-Identifier: Apache-2.0
"""Analytic cuts: definitions by brute force and edge cases."""

import numpy as np
import pytest

from conform_app.psn.threshold import curves, pick_alpha, pick_prediction, pick_tradeoff, pick_variance


@pytest.fixture(params=range(6))
def pair(request):
    rng = np.random.default_rng(request.param)
    signal = np.sort(rng.exponential(1, 12))[::-1]
    return curves(signal, rng.exponential(2, 12), 3.0)


def test_curves_start_at_zero():
    gain, kept = curves(np.array([[3.0, 1.0]]), np.array([[3.0, 6.0]]), 3)
    np.testing.assert_allclose(gain, [[0, 2, 1]])
    np.testing.assert_allclose(kept, [[0, 3, 4]])


def test_prediction_and_variance_by_definition(pair):
    gain, kept = pair
    assert pick_prediction(gain) == max(range(13), key=lambda k: gain[k])
    for share in (0.3, 0.9, 0.99):
        assert pick_variance(kept, share) == next(k for k in range(13) if kept[k] >= share * kept[-1])
    assert pick_variance(kept, 0.0) == 0


def test_tradeoff_is_the_farthest_point_from_the_chord(pair):
    gain, kept = pair
    p = pick_prediction(gain)
    x, y = kept[p:] / kept[-1], (gain[p:] - gain[-1]) / (gain[p] - gain[-1])
    a, b = np.array([x[0], y[0]]), np.array([x[-1], y[-1]])
    along = (b - a) / np.linalg.norm(b - a)
    rest = np.stack([x, y], 1) - a
    distance = np.linalg.norm(rest - np.outer(rest @ along, along), axis=1)
    k = pick_tradeoff(gain, kept)
    assert p <= k <= 12
    assert distance[k - p] == pytest.approx(distance.max(), abs=1e-12)


def test_alpha_runs_from_prediction_to_everything(pair):
    gain, kept = pair
    picks = [pick_alpha(gain, kept, alpha)[0] for alpha in np.linspace(0, 1, 7)]
    assert picks == sorted(picks)
    assert picks[0] == pick_prediction(gain)
    assert kept[picks[-1]] == pytest.approx(kept[-1], rel=1e-12)


def test_allowed_values(pair):
    gain, kept = pair
    allowed = np.array([2, 5, 11])
    assert pick_prediction(gain, allowed) == max(allowed, key=lambda k: gain[k])
    for share in (0.2, 0.8, 0.999999):
        want = next((k for k in allowed if kept[k] >= share * kept[-1]), 11)
        assert pick_variance(kept, share, allowed) == want
    assert pick_tradeoff(gain, kept, allowed) in allowed
    assert pick_alpha(gain, kept, 0.4, allowed)[0] in allowed
    # With a rising gain the pick is the last k, and 6 lies exactly between 5 and 7.
    rising = np.arange(7.0)
    assert pick_tradeoff(rising, rising, np.array([5, 7])[:1]) == 5
    assert pick_tradeoff(np.r_[rising, 0.0][:7], rising, np.array([5, 7]) - 1) == 6


def test_no_signal_keeps_nothing():
    gain, kept = curves(np.zeros(5), np.ones(5), 2)
    assert pick_prediction(gain) == pick_tradeoff(gain, kept) == pick_variance(kept, 0.99) == 0
    assert pick_alpha(gain, kept, 0.5) == (0, 0, 0)
