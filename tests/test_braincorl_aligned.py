# SPDX-License-Identifier: Apache-2.0
"""Encoding models through functional alignment, on the contexts and with the measures of the others."""

from __future__ import annotations

import numpy as np
import pytest

from conform_app.braincorl import (
    aligned_curve,
    evaluate,
    fit_aligned,
    fit_ridge,
    from_collection,
    learning_curve,
    unit_norm,
)
from conform_app.braincorl.alignment import METHODS
from conform_app.errors import DataError, UsageError


@pytest.fixture(scope="module")
def study() -> dict:
    """Two training participants and a new one, whose voxels are mixtures of the same few tunings."""
    rng = np.random.default_rng(11)
    shared, own, test = (unit_norm(rng.standard_normal((n, 30))) for n in (120, 100, 150))
    tuning = rng.standard_normal((4, 30))
    out = {"people": {}, "weights": {}, "parcels": {}, "shared": shared, "test": test}
    for name, n in (("sub-1", 40), ("sub-2", 50), ("new", 30)):
        weights = rng.standard_normal((n, 4)) @ tuning
        seen = np.concatenate([shared, own]) if name != "new" else shared
        signal = weights @ seen.T
        scale = signal.std(axis=1, keepdims=True)
        betas = signal / scale + 1.0 * rng.standard_normal(signal.shape)
        out["weights"][name] = np.column_stack([weights / scale, np.zeros(n)])
        out["parcels"][name] = np.where(np.arange(n) % 2, "V1", "V2")
        if name != "new":
            out["people"][name] = seen, betas.astype(np.float32)
        else:
            out["betas"], out["truth"] = betas, weights / scale @ test.T
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parcels", [False, True])
def test_a_model_through_alignment_is_scored_like_any_other(method: str, parcels: bool, study: dict) -> None:
    labels = {"parcels": study["parcels"]} if parcels else {}
    average = fit_aligned(study["people"], method=method, **labels)
    x, y = study["shared"][:40], study["betas"][:, :40]
    fitted = average.adapt(x, y, parcels=study["parcels"]["new"] if parcels else None)
    assert fitted.method == f"aligned {method}"
    assert fitted.n_shared == {"sub-1": 40, "sub-2": 40}
    again = fit_aligned(study["people"], method=method, weights=average.weights, **labels)
    for name, weights in again.weights.items():
        np.testing.assert_array_equal(weights, average.weights[name])
    assert fitted.weights.shape == (30, 31)
    score = evaluate(fitted, study["test"], study["truth"], n_bootstrap=20)
    assert score.r.mean() > (0.6 if method == "ridge" else 0.35)
    assert score.explained_variance.mean() > 0.1
    if method == "ridge":
        own = fit_ridge(x, y)[0]
        left = study["truth"] - own[:, :-1] @ study["test"].T - own[:, -1:]
        assert (
            score.explained_variance.mean() > 0.1 + (1 - left.var(axis=1) / study["truth"].var(axis=1)).mean()
        )


def test_with_true_weights_and_no_noise_the_new_participants_model_is_found(study: dict) -> None:
    people = {name: (x, study["weights"][name][:, :-1] @ x.T) for name, (x, _) in study["people"].items()}
    average = fit_aligned(people, weights=study["weights"], method="ridge")
    x = study["shared"]
    fitted = average.adapt(x, study["weights"]["new"][:, :-1] @ x.T)
    assert evaluate(fitted, study["test"], study["truth"], n_bootstrap=0).explained_variance.min() > 0.99
    np.testing.assert_allclose(fitted.gain, 1, atol=0.05)


def test_the_gain_is_right_where_images_are_few(study: dict) -> None:
    """Predictions of new images are neither too large nor too small: their best common factor is near 1."""
    average = fit_aligned(study["people"], weights=study["weights"])
    truth = study["truth"] - study["truth"].mean(axis=1, keepdims=True)
    factors = []
    for start in range(0, 120, 10):
        images = slice(start, start + 10)
        predicted = average.adapt(study["shared"][images], study["betas"][:, images]).predict(study["test"])
        predicted = predicted - predicted.mean(axis=1, keepdims=True)
        factors.append((predicted * truth).sum() / (predicted**2).sum())
    assert 0.85 < np.median(factors) < 1.15


def test_the_gain_is_right_for_a_rotation_to_few_voxels(study: dict) -> None:
    """One scale for ninety source voxels and two target voxels is far too small for the two."""
    average = fit_aligned(study["people"], weights=study["weights"], method="procrustes")
    predicted = average.adapt(study["shared"], study["betas"][:2]).predict(study["test"])
    predicted = predicted - predicted.mean(axis=1, keepdims=True)
    truth = study["truth"][:2] - study["truth"][:2].mean(axis=1, keepdims=True)
    assert (predicted * truth).sum() / (predicted**2).sum() == pytest.approx(1, abs=0.2)


def test_the_gain_follows_the_voxel_where_images_are_many() -> None:
    from conform_app.braincorl.aligned import _slopes

    rng = np.random.default_rng(15)
    truth = rng.uniform(0.2, 1.8, (200, 1))
    for n, worst in ((20, 0.6), (2000, 0.1)):
        p = rng.standard_normal((200, n))
        found = _slopes(p, truth * p + 2 * rng.standard_normal((200, n)))[:, None]
        assert np.sqrt(((found - truth) ** 2).mean()) < worst


def test_the_curve_stands_on_the_contexts_of_the_others(study: dict, monkeypatch) -> None:
    import conform_app.braincorl.evaluation as evaluation
    from conform_app.braincorl.aligned import AlignedAverage

    contexts: dict[str, list[bytes]] = {"adapt": [], "aligned": []}
    adapt, own = evaluation.adapt, AlignedAverage.adapt

    def spy(features, betas, **options):
        contexts["adapt"].append(features.tobytes())
        return adapt(features, betas, **options)

    def spy_own(self, features, betas, **options):
        contexts["aligned"].append(features.tobytes())
        return own(self, features, betas, **options)

    monkeypatch.setattr(evaluation, "adapt", spy)
    monkeypatch.setattr(AlignedAverage, "adapt", spy_own)
    data = study["shared"], study["betas"], study["test"], study["truth"]
    options = {"sizes": (20, 50), "repeats": 3, "seed": 5}
    curve = learning_curve(*data, method="ridge", **options)
    average = fit_aligned(study["people"])
    both = aligned_curve(average, *data, alongside=curve, **options)
    assert contexts["adapt"] == contexts["aligned"]
    assert set(both.r) == {*curve.r, "aligned ridge"}
    assert both.r["aligned ridge"].shape == curve.r["ridge"].shape
    np.testing.assert_array_equal(np.isnan(both.r["aligned ridge"]), np.isnan(curve.r["ridge"]))
    x = np.nanmean(both.explained_variance["aligned ridge"], axis=1)
    assert (x > np.nanmean(curve.explained_variance["ridge"], axis=1)).all()
    assert both.images_needed()
    with pytest.raises(UsageError, match="same sizes"):
        aligned_curve(average, *data, sizes=(20,), alongside=curve)


def test_leaks_and_contradictions_are_refused(study: dict) -> None:
    average = fit_aligned(study["people"])
    x, y = study["shared"][:40], study["betas"][:, :40]
    fitted = average.adapt(x, y)
    for seen in (x[:5], study["people"]["sub-1"][0][-5:]):  # the context's; a training participant's alone
        with pytest.raises(DataError, match="test images are in the context"):
            evaluate(fitted, np.concatenate([study["test"], seen]), np.zeros((30, 155)))
        with pytest.raises(DataError, match="test images are in the context"):
            aligned_curve(average, x, y, np.concatenate([study["test"], seen]), np.zeros((30, 155)))
    with pytest.raises(DataError, match=r"shares 5 images with the context \(at most 0\)"):
        average.adapt(study["test"], study["truth"])
    with pytest.raises(DataError, match="at most 3"):
        average.adapt(np.concatenate([x[:3], study["test"]]), np.column_stack([y[:, :3], study["truth"]]))
    with pytest.raises(UsageError, match="one side"):
        average.adapt(x, y, parcels=study["parcels"]["new"])
    with pytest.raises(UsageError, match="sub-2 has no parcels"):
        fit_aligned(study["people"], parcels={"sub-1": study["parcels"]["sub-1"]})
    with pytest.raises(DataError, match="sub-1: weights have shape"):
        fit_aligned(study["people"], weights={k: v[:, :-1] for k, v in study["weights"].items()})
    with pytest.raises(UsageError, match="no alignment"):
        fit_aligned(study["people"], method="magic")


def test_voxels_without_data_and_participants_without_shared_images_are_left_out(study: dict) -> None:
    people = {name: (x, b.copy()) for name, (x, b) in study["people"].items()}
    people["sub-1"][1][3] = 0.0
    people["stranger"] = (study["test"], np.random.default_rng(0).standard_normal((7, len(study["test"]))))
    average = fit_aligned(people)
    y = study["betas"][:, :40].copy()
    y[4] = 2.0
    fitted = average.adapt(study["shared"][:40], y)
    assert fitted.n_shared["stranger"] == 0
    assert set(fitted.parts) == {"sub-1", "sub-2"}
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(fitted.weights).all(axis=1)), [4])
    np.testing.assert_array_equal(np.flatnonzero(~fitted.valid), [4])


class Merged:
    """A merged collection of three participants: trials of shared and own stimuli, and a split."""

    keys = ("one", "two", "new")

    def __init__(self) -> None:
        rng = np.random.default_rng(12)
        self.names = [f"shared-{i}" for i in range(60)] + [
            f"{key}-{i}" for key in self.keys for i in range(30)
        ]
        self.features = unit_norm(rng.standard_normal((len(self.names), 10)))
        tuning = rng.standard_normal((3, 10))
        self.stimuli, self.values = {}, {}
        for key in self.keys:
            seen = np.array([i for i, name in enumerate(self.names) if name.startswith(("shared", key))])
            order = rng.permutation(np.tile(seen, 2))
            signal = (rng.standard_normal((20, 3)) @ tuning) @ self.features[order].T
            self.stimuli[key] = [self.names[i] for i in order]
            self.values[key] = (signal + 0.3 * rng.standard_normal(signal.shape)).T.astype(np.float32)

    def is_test(self, name: str) -> bool:
        return name.startswith("shared") and int(name.split("-")[1]) >= 40

    def select(self, key: str, *, split: str | None = None) -> np.ndarray:
        wanted = [split is None or self.is_test(name) == (split == "test") for name in self.stimuli[key]]
        return np.flatnonzero(wanted)

    def trials(self, key: str) -> dict[str, list[str]]:
        return {"stimulus": self.stimuli[key]}

    def betas(self, key: str, trials, vertices=None) -> np.ndarray:
        return self.values[key][trials]


def test_a_collections_train_side_is_aligned_and_its_test_side_scored() -> None:
    collection = Merged()
    given = collection.names, collection.features
    people = from_collection(collection, *given, split="train", participants=("one", "two"))
    context = from_collection(collection, *given, split="train", participants=("new",))["new"]
    test = from_collection(collection, *given, split="test", participants=("new",))["new"]
    fitted = fit_aligned(people).adapt(*context)
    assert fitted.n_shared == {"one": 40, "two": 40}
    assert len(test[0]) == 20
    assert evaluate(fitted, *test, n_bootstrap=0).r.mean() > 0.8
    everything = from_collection(collection, *given, split=None, participants=("one", "two"))
    with pytest.raises(DataError, match="20 test images are in the context"):
        evaluate(fit_aligned(everything).adapt(*context), *test)
