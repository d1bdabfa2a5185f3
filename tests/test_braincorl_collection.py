# SPDX-License-Identifier: Apache-2.0
"""From a merged collection to a model: a real store on disk, learned from and adapted to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from conform_app.braincorl import (
    ModelSizes,
    Stage,
    TrainSettings,
    adapt,
    evaluate,
    fit_prior,
    from_collection,
    train,
    unit_norm,
)
from conform_app.errors import DataError
from conform_app.mosaic import Collection
from conform_app.mosaic.normalise import FitUnit

E, V = 12, 150


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Three participants; 60 train stimuli of their own and 20 shared test stimuli, each shown twice."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(3, E))
    names = [f"image_{i:03d}.png" for i in range(200)]
    features = unit_norm(rng.normal(size=(200, E)))
    collection = Collection.create(tmp_path_factory.mktemp("store") / "c", space="fsLR_den-91k", n_vertices=V)
    truth = {}
    for number in range(3):
        shown = np.concatenate([np.arange(20), 20 + 60 * number + np.arange(60)])
        order = rng.permutation(np.repeat(shown, 2))
        weights = rng.normal(size=(V, 3)) @ loadings
        signal = features[order] @ weights.T
        betas = signal + 0.7 * signal.std(axis=0) * rng.normal(size=signal.shape)
        phase = np.where(order < 20, "test", "train")
        trials = pd.DataFrame({"stimulus": [names[i] for i in order], "phase": phase})
        half = len(order) // 2
        units = [
            FitUnit("ses-01", betas[:half].astype(np.float32)),
            FitUnit("ses-02", betas[half:].astype(np.float32)),
        ]
        collection.add_participant("TOY", f"sub-0{number + 1}", trials, units)
        truth[f"sub-0{number + 1}_TOY"] = order, betas
    collection.seal()
    return collection, names, features, truth


def test_repeats_are_averaged_and_stimuli_keep_their_features(merged) -> None:
    collection, names, features, truth = merged
    found = from_collection(collection, names, features)
    assert set(found) == set(truth)
    key = "sub-02_TOY"
    order, _ = truth[key]
    x, y = found[key]
    assert x.shape == (60, E)
    assert y.shape == (V, 60)
    first_seen = list(dict.fromkeys(order[order >= 20]))
    np.testing.assert_array_equal(x, features[first_seen])
    stored = collection.betas(key)
    np.testing.assert_allclose(y[:, 0], stored[order == first_seen[0]].mean(axis=0), rtol=1e-5)
    few = from_collection(collection, names, features, participants=[key], vertices=[3, 5])[key][1]
    np.testing.assert_array_equal(few, y[[3, 5]])


def test_two_participants_teach_the_third(merged) -> None:
    collection, names, features, _ = merged
    keys = list(collection.keys)
    prior = fit_prior(from_collection(collection, names, features, participants=keys[:2]), n_components=1)
    assert prior.card["participants"] == keys[:2]
    x, y = from_collection(collection, names, features, participants=keys[2:])[keys[2]]
    test = from_collection(collection, names, features, split="test", participants=keys[2:])[keys[2]]
    with_prior, alone = adapt(x[:20], y[:, :20], prior=prior), adapt(x[:20], y[:, :20], method="ridge")
    r = [evaluate(m, *test, n_bootstrap=10).intervals["all"]["r"][0] for m in (with_prior, alone)]
    assert r[0] > r[1] + 0.05
    assert r[0] > 0.5


def test_a_network_is_trained_on_two_participants_and_knows_which(merged, tmp_path) -> None:
    collection, names, features, _ = merged
    keys = list(collection.keys)
    people = from_collection(collection, names, features, participants=keys[:2])
    stages = (
        Stage(True, (20, 20), 10, 8, 2, 1),
        Stage(True, (8, 30), 10, 8, 2, 1),
        Stage(False, (8, 30), 10, 8, 2, 1),
    )
    settings = TrainSettings(stages=stages, warmup=1, validation_batches=1)
    trained = train(people, ModelSizes(E, 16, 2, 16, 2, 2), tmp_path, settings=settings)
    assert trained.card["participants"] == keys[:2]
    x, y = from_collection(collection, names, features, participants=keys[2:])[keys[2]]
    fitted = adapt(x[:20], y[:, :20], model=trained.model)
    assert np.isfinite(fitted.weights).all()
    assert "transformer" in fitted.parts


def test_stimuli_without_features_have_their_error(merged) -> None:
    collection, names, features, _ = merged
    with pytest.raises(DataError, match=r"no features for stimulus 'image_"):
        from_collection(collection, names[:100], features[:100])
    with pytest.raises(DataError, match="no trials on side 'artificial'"):
        from_collection(collection, names, features, split="artificial")
