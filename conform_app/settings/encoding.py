# SPDX-License-Identifier: Apache-2.0
"""Settings of the encoding models that the group level learns across participants."""

from __future__ import annotations

from dataclasses import dataclass

from conform_app.settings.declare import option


@dataclass(frozen=True)
class EncodeSettings:
    """Encoding models of the collection's participants."""

    encode: str = option(
        "none",
        "learn encoding models across the collection's participants and map this one: stacked (a combination "
        "of the others by cross-validation), prior (learned from others, closed form), transformer "
        "(needs --encode-model) or ridge (the participant alone); all are evaluated. Needs features",
        choices=("none", "stacked", "prior", "transformer", "ridge"),
    )
    encode_features: str | None = option(
        None,
        "features of the stimuli to predict responses from, vectors of length 1, in the forms of --features "
        "(default: those of --features, where near-duplicates are looked for with the same ones)",
        kind="path",
        metavar="FILE",
    )
    encode_model: str | None = option(
        None,
        "checkpoint of a BraInCoRL network (.pth, .ckpt, .safetensors), for features of the same kind",
        kind="path",
        metavar="FILE",
    )
    encode_alignment: str = option(
        "none",
        "evaluate a model through functional alignment beside the others: weights of participants who saw "
        "the same images are carried to this one by a map that is fitted on them. Needs at least five train "
        "stimuli in each context that another participant saw too; who shares fewer has no such model",
        choices=("none", "ridge", "procrustes", "optimal_transport"),
    )
    encode_prior: str | None = option(
        None,
        "prior that an earlier call wrote, in place of one fitted to the other participants",
        kind="path",
        metavar="FILE",
    )
    encode_target: tuple[str, ...] = option(
        (),
        "participants to make models for, as sub-01_DATASET, 01_DATASET or 01; the others are learned from "
        "(default: each in turn)",
        many=True,
        metavar="NAME",
    )
    encode_context: tuple[int, ...] = option(
        (),
        "numbers of train images to learn from; the maps are those of the largest (default: 20, 50, 100, 300 "
        "and 1000 as far as there are images, and all of them where there are fewer than 1000)",
        kind="int",
        many=True,
        metavar="N",
    )
    encode_repeats: int = option(
        5, "contexts of each size that share no image, at most", kind="int", metavar="N"
    )
    encode_betas: str = option(
        "mean",
        "responses to learn from: the mean over the repeats of a stimulus, or its average denoised with PSN; "
        "accuracy is always measured against the mean over repeats",
        choices=("mean", "psn"),
    )
    encode_min_ceiling: float = option(
        0.0,
        "least noise ceiling of single trials, in percent, of the vertices that get a model",
        kind="float",
        metavar="PERCENT",
    )
    encode_regions: tuple[str, ...] = option(
        (),
        "regions for the tables: an atlas in the space of the collection (.dlabel.nii, one .label.gii a "
        "hemisphere, or NIfTI), or a TSV with a row a vertex and the column label (n/a: none)",
        kind="path",
        many=True,
        metavar="FILE",
    )
    encode_queries: str | None = option(
        None,
        "vectors to ask for selectivity (.npz with an array a name): embeddings of sentences in the space of "
        "the features; each (E,) or, for several wordings, (n, E)",
        kind="path",
        metavar="FILE",
    )
    encode_categories: str | None = option(
        None,
        "categories of images (TSV with the columns stimulus and category): the predicted response to each "
        "against all others is mapped",
        kind="path",
        metavar="FILE",
    )
