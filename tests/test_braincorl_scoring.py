# SPDX-License-Identifier: Apache-2.0
"""Accuracy in blocks: the same numbers as at once, paired intervals, and where a learning curve gets."""

from __future__ import annotations

import numpy as np
import pytest

from conform_app.braincorl.evaluation import score
from conform_app.braincorl.scoring import METRICS, Scorer, images_at
from conform_app.errors import DataError

V, Q = 37, 25


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(V, Q)) * rng.uniform(0.1, 10, (V, 1)) + 100
    p = y + rng.normal(size=(V, Q)) * 3
    y[3], p[5], p[7, 2] = 1.5, 0.0, np.nan  # constant, constant prediction, no model
    ceiling = rng.uniform(0, 80, V)
    ceiling[11] = 0.2
    return p, y, ceiling, {"front": np.arange(V) < 20, "none": np.zeros(V, bool)}


def test_blocks_give_the_numbers_of_the_whole(case) -> None:
    p, y, ceiling, regions = case
    whole = score(p, y, noise_ceiling=ceiling, regions=regions, n_bootstrap=50)
    scorer = Scorer(Q, {"all": np.ones(V, bool), **regions}, n_bootstrap=50)
    maps = {name: np.full(V, np.nan) for name in METRICS}
    for start in range(4):
        rows = np.arange(start, V, 4)
        for name, values in scorer.add("x", 0, rows, p[rows], y[rows], ceiling[rows]).items():
            maps[name][rows] = values
    for name in METRICS:
        np.testing.assert_allclose(maps[name], getattr(whole, name), rtol=1e-5, atol=1e-6)
    found = scorer.intervals("x")
    for region in ("all", "front"):
        for name in METRICS:
            np.testing.assert_allclose(
                found[region][name], whole.intervals[region][name], rtol=1e-6, atol=1e-9
            )
    assert np.isnan(found["none"]["r"]).all()
    assert scorer.n_voxels("x") == {"all": V - 2, "front": 18, "none": 0}
    np.testing.assert_allclose(scorer.means("x")["all"][0, 0], whole.intervals["all"]["r"][0])


def test_differences_are_paired_and_averaged_over_contexts(case) -> None:
    p, y, _, _ = case
    scorer = Scorer(Q, {"all": np.ones(V, bool)}, n_bootstrap=80)
    for context in range(2):
        scorer.add("good", context, np.arange(V), p, y)
        scorer.add(
            "bad",
            context,
            np.arange(V),
            p + 3 * (1 + context) * np.random.default_rng(1).normal(size=p.shape),
            y,
        )
    both = scorer.means("bad")["all"][:, 0]
    assert both[1] < both[0]
    assert scorer.intervals("bad")["all"]["r"][0] == pytest.approx(both.mean())
    mean, low, high = scorer.intervals("good", "bad")["all"]["r"]
    assert 0 < low < mean < high
    alone = [scorer.intervals(name)["all"]["r"] for name in ("good", "bad")]
    assert high - low < alone[0][2] - alone[1][1] - (alone[0][1] - alone[1][2])
    assert scorer.intervals("good", "good")["all"]["r"] == (0, 0, 0)


def test_two_images_say_nothing() -> None:
    with pytest.raises(DataError, match="say nothing"):
        Scorer(2, {})


@pytest.mark.parametrize(("goal", "expected"), [(0.1, 20), (0.3, np.sqrt(20 * 80)), (0.4, 80), (0.9, np.nan)])
def test_where_a_curve_gets(goal: float, expected: float) -> None:
    assert images_at([20, 50, 80], [0.2, np.nan, 0.4], goal) == pytest.approx(expected, nan_ok=True)
