# SPDX-License-Identifier: Apache-2.0
"""Text queries: prompts and lists of them, the argmax map, and the gap between texts and images."""

from __future__ import annotations

import numpy as np
import pytest

from conform_app.braincorl import Extractor, embed_prompts, modality_gap, text_query, unit_norm
from conform_app.errors import DataError, UsageError

E = 12
WORDS = ("face", "portrait", "house", "street", "food")
RNG = np.random.default_rng(0)
CONCEPTS = dict(zip(WORDS, RNG.standard_normal((len(WORDS), E)), strict=True))
GAP = 4 * RNG.standard_normal(E)


def encode_text(sentences) -> np.ndarray:
    """A text tower: a common direction (the gap), the concepts of the words, and a little of the length."""
    return np.array([GAP + sum(CONCEPTS.get(w, 0) for w in s.split()) + 0.01 * len(s) for s in sentences])


TOWER = Extractor("tower", E, lambda images: np.zeros((len(images), E)), encode_text)


def tuned_to(word: str) -> np.ndarray:
    """Weights of a voxel that answers to one concept and to no other, and strongly to the gap."""
    others = np.array([v for w, v in CONCEPTS.items() if w != word])
    own = CONCEPTS[word] - np.linalg.pinv(others) @ (others @ CONCEPTS[word])
    return np.append(own + 5 * GAP / (GAP @ GAP), 3.0)


def test_prompts_have_an_embedding_per_template() -> None:
    found = embed_prompts(TOWER, ["face", "house"], templates=("a photo of a {}", "{}", "{} and {}"))
    assert [f.shape for f in found] == [(3, E)] * 2
    np.testing.assert_allclose(found[1][0], encode_text(["a photo of a house"])[0], rtol=1e-6)
    np.testing.assert_allclose(found[0][2], encode_text(["face and face"])[0], rtol=1e-6)


def test_lists_of_sentences_stand_for_one_thing() -> None:
    lists = {"people": ["face", "portrait"], "places": ["house", "street"], "food": ["food"]}
    found = embed_prompts(TOWER, lists)
    assert [len(f) for f in found] == [2, 2, 1]
    weights = np.array([tuned_to(word) for word in WORDS] + [np.full(E + 1, np.nan)])
    answer = text_query(weights, list(lists), found)
    assert answer.prompts == ("people", "places", "food")
    np.testing.assert_array_equal(answer.best, [0, 0, 1, 1, 2, -1])
    top = np.sort(answer.selectivity[:5], axis=1)
    np.testing.assert_allclose(answer.margin[:5], top[:, -1] - top[:, -2], rtol=1e-5)
    assert np.isnan(answer.margin[5])


def test_the_gap_does_not_reach_the_answer() -> None:
    """A voxel's answer to what all texts have in common tells nothing of its tuning."""
    prompts = list(WORDS)
    embeddings = embed_prompts(TOWER, prompts)
    weights = np.array([tuned_to(word) for word in WORDS])
    found = text_query(weights, prompts, embeddings)
    np.testing.assert_array_equal(found.best, np.arange(5))
    # A direction along which all texts lie equally far, and the bias: large, and without a say.
    common = np.linalg.pinv(unit_norm(np.concatenate(embeddings)).astype(float)) @ np.ones(5)
    shifted = weights + np.append(50 * common, 100)
    again = text_query(shifted, prompts, embeddings)
    np.testing.assert_allclose(again.selectivity, found.selectivity, atol=1e-4)
    np.testing.assert_array_equal(again.best, found.best)


def test_the_gap_is_measured() -> None:
    images = unit_norm(RNG.standard_normal((20, E)))
    embeddings = embed_prompts(TOWER, WORDS)
    gap = modality_gap(images, embeddings)
    texts = unit_norm(np.concatenate(embeddings)).astype(float)
    upper = np.triu_indices(5, 1)
    assert gap.texts == pytest.approx((texts @ texts.T)[upper].mean(), rel=1e-6)
    assert gap.images == pytest.approx(
        (images.astype(float) @ images.T)[np.triu_indices(20, 1)].mean(), abs=1e-6
    )
    assert gap.between == pytest.approx((images @ texts.T).mean(), abs=1e-6)
    assert gap.distance == pytest.approx(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)), rel=1e-5)
    assert gap.texts > 0.8 > gap.between
    with pytest.raises(DataError, match="1 texts"):
        modality_gap(images, embeddings[:1])
    with pytest.raises(DataError, match="columns"):
        modality_gap(images[:, :5] / np.linalg.norm(images[:, :5], axis=1, keepdims=True), embeddings)


def test_bad_prompts_are_refused() -> None:
    with pytest.raises(UsageError, match="no text tower"):
        embed_prompts(Extractor("eyes", E, len), WORDS)
    for templates in ((), ("a photo",)):
        with pytest.raises(UsageError, match=r"lack \{\}"):
            embed_prompts(TOWER, WORDS, templates=templates)
    for prompts in ((), {"people": []}, {"people": "face"}):
        with pytest.raises(UsageError, match="empty, or no list"):
            embed_prompts(TOWER, prompts)
