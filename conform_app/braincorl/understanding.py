# SPDX-License-Identifier: Apache-2.0
"""What a participant's encoding weights say, and which context images they rest on.

Text queries: a sentence's embedding in the same space as the images' (CLIP, SigLIP) is put in the place of
an image.  Text and image embeddings lie in two separate cones (the modality gap): all sentences are nearer
to one another than to any image.  Predictions for sentences are therefore compared *among sentences*, each
minus the mean over the list; their level, and differences to images' predictions, mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from conform_app.braincorl.checks import check_betas, check_features, unit_norm
from conform_app.errors import DataError, UsageError


def image_importance(model, features, betas, *, layer: int | None = None, block: int = 16) -> np.ndarray:
    """Attention that the readout pays to each context image.

    Parameters
    ----------
    model : BraInCoRL
    features : array (S, E)
    betas : array (n_voxels, S)
    layer : int, optional
        Block of the network; default: mean over all.
    block : int
        Voxels at a time; attention is written out in full here.

    Returns
    -------
    ndarray (n_voxels, S), float32
        Mean over heads.  Rows sum to 1 less what goes to the learned tokens; NaN for constant voxels.

    Raises
    ------
    DataError
        Features or betas that the network cannot read; a layer that is not there.
    """
    import torch

    features = check_features(features, model.sizes.features)
    betas, valid = check_betas(betas, len(features))
    if layer is not None and not -model.sizes.layers <= layer < model.sizes.layers:
        raise DataError(f"Layer {layer} of {model.sizes.layers} was asked for.", "Count from 0.")
    device = next(model.parameters()).device
    context = torch.from_numpy(features).to(device)
    out = np.full(betas.shape, np.nan, np.float32)
    rows = np.flatnonzero(valid)
    with torch.inference_mode():
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            y = torch.from_numpy(np.ascontiguousarray(betas[part])).to(device)
            _, attention = model.weights(context, y, plain=True)
            readout = torch.stack([a[:, 0, model.sizes.registers :] for a in attention])
            out[part] = (readout.mean(dim=0) if layer is None else readout[layer]).cpu().numpy()
    return out


@dataclass(frozen=True)
class TextQuery:
    """Answers of voxels to sentences.

    Attributes
    ----------
    prompts : tuple of str
    selectivity : ndarray (n_voxels, n_prompts), float32
        Predicted response to each prompt minus the voxel's mean over prompts.
    best : ndarray (n_voxels,) of int
        Prompt with the largest (the argmax map); -1 where there is no model.
    margin : ndarray (n_voxels,), float32
        By how much it is the largest; NaN where there is no model.
    """

    prompts: tuple[str, ...]
    selectivity: np.ndarray = field(repr=False)
    best: np.ndarray = field(repr=False)
    margin: np.ndarray = field(repr=False)


def embed_prompts(
    extractor,
    prompts: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    templates: Sequence[str] = ("{}",),
) -> list[np.ndarray]:
    """Text embeddings of prompts, for `text_query`.

    Parameters
    ----------
    extractor : Extractor
        One with a text tower: the extractor of the image features that the weights were fitted to.
    prompts : sequence of str, or mapping of str to sequence of str
        Prompts; or lists of sentences that stand for one thing ("faces": ["a face", "a portrait"]).
    templates : sequence of str
        Sentences around each prompt, with ``{}`` for it ("a photo of {}").

    Returns
    -------
    list of ndarray (n_sentences, E)
        One array per prompt or list.

    Raises
    ------
    UsageError
        The network has no text tower, a list is empty, or a template has no place for the prompt.
    """
    if extractor.encode_text is None:
        raise UsageError(
            f"{extractor.name} has no text tower.",
            "Use a CLIP or SigLIP network, or category_contrast, which needs none.",
        )
    if not templates or any("{}" not in template for template in templates):
        raise UsageError(f"Templates {list(templates)} lack {{}} for the prompt.", "Write 'a photo of {}'.")
    lists = prompts if isinstance(prompts, Mapping) else {prompt: [prompt] for prompt in prompts}
    if not lists or not all(lists.values()) or any(isinstance(own, str) for own in lists.values()):
        raise UsageError("A list of prompts is empty, or no list.", "Give sentences.")
    sentences = [[t.replace("{}", prompt) for prompt in own for t in templates] for own in lists.values()]
    found = np.asarray(extractor.encode_text([s for own in sentences for s in own]), np.float32)
    return np.split(found, np.cumsum([len(own) for own in sentences])[:-1])


@dataclass(frozen=True)
class ModalityGap:
    """How far texts lie from images in their common space: mean cosines, and the distance of the two means.

    Attributes
    ----------
    images, texts, between : float
        Mean cosine among images, among texts, and between an image and a text.
    distance : float
        Length of the difference between the mean image and the mean text vector.
    """

    images: float
    texts: float
    between: float
    distance: float


def modality_gap(features, embeddings) -> ModalityGap:
    """Measure the gap between images and texts.

    Parameters
    ----------
    features : array (n_images, E)
        Unit norm.
    embeddings : array (n_texts, E) or sequence of arrays (n_templates, E)
        As `text_query` takes them.

    Returns
    -------
    ModalityGap

    Raises
    ------
    DataError
        Fewer than two of either, or vectors of different lengths.

    References
    ----------
    Liang et al. 2022, arXiv:2203.02053.
    """
    images = check_features(features).astype(np.float64)
    texts = unit_norm(np.concatenate([np.atleast_2d(e) for e in embeddings])).astype(np.float64)
    check_features(texts, images.shape[1], what="Text embeddings")
    if len(images) < 2 or len(texts) < 2:
        raise DataError(
            f"{len(images)} images and {len(texts)} texts show no gap.", "Give at least two each."
        )

    def among(x: np.ndarray) -> float:
        return float((np.sum(x.sum(axis=0) ** 2) - len(x)) / (len(x) * (len(x) - 1)))

    a, b = images.mean(axis=0), texts.mean(axis=0)
    return ModalityGap(among(images), among(texts), float(a @ b), float(np.linalg.norm(a - b)))


def text_query(weights, prompts: Sequence[str], embeddings) -> TextQuery:
    """Selectivity of voxels for sentences.

    Parameters
    ----------
    weights : array (n_voxels, E + 1)
    prompts : sequence of str
        At least two: answers are compared among them.  (Names of the lists, where there are lists.)
    embeddings : array (n_prompts, E) or sequence of arrays (n_templates, E)
        From the text tower that goes with the image features (`embed_prompts`).  Several templates
        of a prompt are brought to unit norm, averaged, and brought to unit norm again.

    Returns
    -------
    TextQuery

    Raises
    ------
    DataError
        Fewer than two prompts, another number of embeddings, or an embedding that is zero or not finite.
    """
    weights = np.asarray(weights, np.float64)
    if len(prompts) != len(embeddings):
        raise DataError(f"{len(prompts)} prompts have {len(embeddings)} embeddings.", "Give one of each.")
    if len(prompts) < 2:
        raise DataError("One prompt cannot be compared with others.", "Give at least two.")
    rows = []
    for prompt, embedding in zip(prompts, embeddings, strict=True):
        embedding = np.atleast_2d(np.asarray(embedding, np.float64))
        length = np.linalg.norm(embedding, axis=1, keepdims=True)
        if not np.isfinite(embedding).all() or not (length > 0).all():
            raise DataError(f"The embedding of {prompt!r} is zero or not finite.", "Encode it again.")
        mean = (embedding / length).mean(axis=0)
        if not np.linalg.norm(mean) > 1e-6:
            raise DataError(f"The templates of {prompt!r} cancel out.", "Give templates of one meaning.")
        rows.append(mean / np.linalg.norm(mean))
    text = check_features(np.stack(rows), weights.shape[1] - 1, what="Text embeddings")
    answer = weights[:, :-1] @ text.T
    answer -= answer.mean(axis=1, keepdims=True)
    there = np.isfinite(answer).all(axis=1)
    best = np.where(there, np.argmax(np.where(there[:, None], answer, 0), axis=1), -1)
    last = np.sort(answer, axis=1)  # NaN goes last, and stays
    margin = (last[:, -1] - last[:, -2]).astype(np.float32)
    return TextQuery(tuple(prompts), answer.astype(np.float32), best, margin)


def category_contrast(
    weights, features, categories: Sequence[str], category: str
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted response to a category's images against all others: no text tower needed.

    Parameters
    ----------
    weights : array (n_voxels, E + 1)
    features : array (n_images, E)
        Any images, also ones that were never shown.
    categories : sequence of str
        Category of each image.
    category : str

    Returns
    -------
    difference : ndarray (n_voxels,), float32
        Mean predicted response inside minus outside.
    d_prime : ndarray (n_voxels,), float32
        The same over the pooled standard deviation of predicted responses; how far the predictions separate.

    Raises
    ------
    DataError
        Other numbers of categories and images; fewer than two images on either side.
    """
    weights = np.asarray(weights, np.float64)
    features = check_features(features, weights.shape[1] - 1)
    inside = np.asarray([str(c) == category for c in categories])
    if len(inside) != len(features):
        raise DataError(f"{len(inside)} categories for {len(features)} images.", "Give one per image.")
    if inside.sum() < 2 or (~inside).sum() < 2:
        raise DataError(
            f"{inside.sum()} images are of category {category!r} and {(~inside).sum()} are not.",
            "Both sides need at least two.",
        )
    predicted = weights[:, :-1] @ features.T
    a, b = predicted[:, inside], predicted[:, ~inside]
    difference = a.mean(axis=1) - b.mean(axis=1)
    pooled = np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return difference.astype(np.float32), np.where(pooled > 0, difference / pooled, 0).astype(np.float32)
