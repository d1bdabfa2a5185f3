# SPDX-License-Identifier: Apache-2.0
r"""An encoding model for a new participant through functional alignment, beside anatomy and BraInCoRL.

Training participants have encoding weights ``W_p (n_p, E + 1)``, from all their images.  The new participant
has seen some of the same images; on these each training participant is aligned to the new one, ``M_p``, and

    w_v = g_v * mean_p (M_p W_p)_v + offset

with g a gain per voxel: noisy maps give predictions that are too large or too small, and the gain is the
least-squares slope of betas on predictions for held-out fifths of the context, to which all voxels together
add the evidence of 200 images: with few images the participant decides, with many the voxel.  Unlike the
other estimators this one needs images that participants share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conform_app.braincorl.alignment import LEAST_SHARED, METHODS, Alignment, align
from conform_app.braincorl.checks import check_betas, check_context_size, check_disjoint, check_features
from conform_app.braincorl.evaluation import LearningCurve, explained_variance, pearson
from conform_app.braincorl.linear import Linear
from conform_app.braincorl.participants import as_participants
from conform_app.braincorl.ridge import fit_ridge, folds_of
from conform_app.errors import DataError, UsageError

POOLED_IMAGES = 200  # worth of evidence on a voxel's gain from all voxels together
LARGEST_GAIN = 10.0


@dataclass(frozen=True)
class Aligned(Linear):
    """Encoding model of one participant through alignment; `evaluate` takes it as it takes `Adapted`.

    Attributes
    ----------
    method : str
        "aligned ridge" and so on.
    weights : ndarray (n_voxels, E + 1), float32
        Bias last; NaN for voxels that were constant or not finite.
    valid : ndarray (n_voxels,) of bool
    parts : dict of str to ndarray (n_voxels, E + 1)
        What each training participant gives, before gain.
    gain : ndarray (n_voxels,)
    n_shared : dict of str to int
        Images shared with each training participant; those with fewer than five were left out.
    context : ndarray (S, E)
        Features of the context and of all images that the training participants' weights rest on: test images
        among either are refused.
    """

    method: str
    weights: np.ndarray = field(repr=False)
    valid: np.ndarray = field(repr=False)
    parts: dict[str, np.ndarray] = field(repr=False)
    gain: np.ndarray = field(repr=False)
    n_shared: dict[str, int]
    context: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class _Source:
    name: str
    features: np.ndarray
    betas: np.ndarray
    weights: np.ndarray
    parcels: np.ndarray | None

    def names(self) -> list[bytes]:
        return _names(self.features)


def _names(features: np.ndarray) -> list[bytes]:
    """An image by its features: equal features are one image."""
    return [row.tobytes() for row in np.ascontiguousarray(features)]


@dataclass(frozen=True)
class AlignedAverage:
    """Training participants, ready to be aligned to a new one; made by `fit_aligned`.

    Attributes
    ----------
    method : str
    options : dict
        Of `align`.
    sources : tuple
        The participants learned from: features, betas, weights, parcels.
    """

    method: str
    options: dict[str, Any]
    sources: tuple[_Source, ...] = field(repr=False)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Encoding weights of each training participant, (n_voxels, E + 1), as `fit_aligned` takes them."""
        return {p.name: p.weights for p in self.sources}

    def adapt(self, features, betas, *, parcels=None, n_folds: int = 5, seed: int = 0) -> Aligned:
        """Encoding model of a new participant from context images, some of which are shared.

        Parameters
        ----------
        features : array (n_images, E)
        betas : array (n_voxels, n_images)
        parcels : array (n_voxels,), optional
            If the training participants have them.
        n_folds, seed : int
            Folds that find the gain.

        Returns
        -------
        Aligned

        Raises
        ------
        DataError
            No training participant shares five images with the context; parcels that differ.
        UsageError
            Parcels are given on one side only.
        """
        features = check_features(features, self.sources[0].features.shape[1])
        betas, valid = check_betas(betas, len(features))
        if (parcels is None) != (self.sources[0].parcels is None):
            raise UsageError(
                "Parcels are given on one side only.", "Give them for all participants, or none."
            )
        seen = set(_names(features))
        n_shared = {p.name: len(seen.intersection(p.names())) for p in self.sources}
        if max(n_shared.values()) < LEAST_SHARED:
            raise DataError(
                f"No training participant shares {LEAST_SHARED} images with the context (at most "
                f"{max(n_shared.values())}).",
                "Use adapt(), which needs no shared images.",
            )
        rows = np.arange(len(features))
        parts = self._carried(features, betas, rows, parcels, seed)
        gain = self._gain(features, betas, valid, parcels, n_folds, seed)
        weights = gain[:, None] * np.mean(list(parts.values()), axis=0)
        level = weights[:, :-1] @ features.mean(axis=0)
        weights[:, -1] = betas.mean(axis=1) - level
        weights[~valid] = np.nan
        context = np.unique(np.concatenate([features, *(p.features for p in self.sources)]), axis=0)
        name = f"aligned {self.method}"
        return Aligned(name, weights.astype(np.float32), valid, parts, gain, n_shared, context)

    def _carried(self, features, betas, rows, parcels, seed: int) -> dict[str, np.ndarray]:
        """Each participant's weights on the new one's voxels, aligned on some rows of the context."""
        names = _names(features[rows])
        out = {}
        for p in self.sources:
            if len(set(names).intersection(p.names())) < LEAST_SHARED:
                continue
            alignment = align(
                p.betas,
                betas[:, rows],
                method=self.method,
                parcels=None if parcels is None else (p.parcels, np.asarray(parcels)),
                source_names=p.names(),
                target_names=names,
                seed=seed,
                **self.options,
            )
            out[p.name] = alignment.carry(p.weights)
        return out

    def _gain(self, features, betas, valid, parcels, n_folds: int, seed: int) -> np.ndarray:
        """Slope of betas on predictions for held-out images, (n_voxels,); 1 where there are too few."""
        # Both as differences from the fitted images' mean: held-out images pull a mean of all to their side.
        p, y = np.zeros(betas.shape), np.zeros(betas.shape)
        for test in folds_of(len(features), n_folds, seed + 1):
            keep = np.setdiff1d(np.arange(len(features)), test)
            parts = self._carried(features, betas, keep, parcels, seed)
            if not parts:
                return np.ones(len(betas))
            weights = np.mean(list(parts.values()), axis=0)
            p[:, test] = weights[:, :-1] @ (features[test] - features[keep].mean(axis=0)).T
            y[:, test] = betas[:, test] - betas[:, keep].mean(axis=1, keepdims=True)
        gain = np.ones(len(betas))
        gain[valid] = _slopes(np.nan_to_num(p[valid]), y[valid]).clip(0, LARGEST_GAIN)
        return gain


def _slopes(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slope of each row of y on p, with the evidence of some images from all rows together."""
    spread = (y**2).sum(axis=1)
    both, own = (p * y).sum(axis=1) / spread, (p**2).sum(axis=1) / spread
    pooled = POOLED_IMAGES / y.shape[1]
    return (both + pooled * both.mean()) / np.maximum(own + pooled * own.mean(), 1e-12)


def fit_aligned(
    people: Any,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    prior=None,
    parcels: Mapping[str, np.ndarray] | None = None,
    method: str = "ridge",
    **options: Any,
) -> AlignedAverage:
    """Make training participants ready for `AlignedAverage.adapt`.

    Parameters
    ----------
    people : participants
        ``name -> (features (n_images, E), betas (n_voxels, n_images))``, training images only.
    weights : mapping of str to array (n_voxels, E + 1), optional
        Encoding weights, bias last; by default fitted to each participant's images.
    prior : Prior, optional
        For those fits; ridge without one.
    parcels : mapping of str to array (n_voxels,), optional
        Labels of one atlas; voxels are only mapped within their parcel.
    method : {"ridge", "procrustes", "optimal_transport"}
    **options
        Of `align` (engine, entropy).

    Returns
    -------
    AlignedAverage

    Raises
    ------
    UsageError
        An unknown method; weights or parcels that lack a participant.
    DataError
        Weights or parcels of another shape than the participant's betas and features ask for.
    """
    if method not in METHODS:
        raise UsageError(f"There is no alignment {method!r}.", f"Methods are {', '.join(METHODS)}.")
    sources = []
    for person in as_participants(people):
        for what, table in (("weights", weights), ("parcels", parcels)):
            if table is not None and person.name not in table:
                raise UsageError(f"{person.name} has no {what}.", f"Give {what} of every participant.")
        betas = np.array(person.betas[:], np.float32)
        if weights is not None:
            own = np.asarray(weights[person.name], np.float32)
        else:
            own = _encoding(person.features, betas, prior)
        shape = (len(betas), person.features.shape[1] + 1)
        if own.shape != shape:
            raise DataError(
                f"{person.name}: weights have shape {own.shape}, not {shape}.",
                "Give (voxels, features + 1).",
            )
        betas[~np.isfinite(own).all(axis=1)] = np.nan  # voxels without a model have nothing to give
        labels = None if parcels is None else np.asarray(parcels[person.name])
        sources.append(_Source(person.name, person.features, betas, own, labels))
    return AlignedAverage(method, options, tuple(sources))


def _encoding(features: np.ndarray, betas: np.ndarray, prior) -> np.ndarray:
    betas, valid = check_betas(betas, len(features))
    out = np.full((len(betas), features.shape[1] + 1), np.nan, np.float32)
    y = betas[valid].astype(np.float64)
    out[valid] = fit_ridge(features, y)[0] if prior is None else prior.condition(features, y).weights()
    return out


def aligned_curve(
    average: AlignedAverage,
    features,
    betas,
    test_features,
    test_betas,
    *,
    sizes: Sequence[int] = (20, 50, 100, 300, 1000),
    repeats: int = 5,
    seed: int = 0,
    parcels=None,
    alongside: LearningCurve | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LearningCurve:
    """`learning_curve` of a model through alignment, on the same contexts: a further row of that table.

    Parameters
    ----------
    average : AlignedAverage
    features, betas, test_features, test_betas, sizes, repeats, seed, progress
        As `learning_curve`.
    parcels : array (n_voxels,), optional
    alongside : LearningCurve, optional
        What `learning_curve` gave for the same sizes; its rows come first in the answer.

    Returns
    -------
    LearningCurve

    Raises
    ------
    UsageError
        ``alongside`` has other sizes, or a size is below two.
    DataError
        Test images among the others; a size above the number of images; as `AlignedAverage.adapt`.
    """
    features = check_features(features)
    test_features = check_features(test_features, features.shape[1], what="Test features")
    check_disjoint(np.concatenate([features, *(p.features for p in average.sources)]), test_features)
    betas, test_betas = np.asarray(betas), np.asarray(test_betas, np.float64)
    if alongside is not None and tuple(sizes) != alongside.sizes:
        raise UsageError(f"Curves of sizes {alongside.sizes} and {tuple(sizes)}.", "Give the same sizes.")
    for size in sizes:
        check_context_size(size, len(features))
    order = np.random.default_rng(seed).permutation(len(features))
    found = {metric: np.full((len(sizes), repeats), np.nan) for metric in (pearson, explained_variance)}
    for i, size in enumerate(sizes):
        for e in range(min(repeats, len(features) // size)):
            rows = order[e * size : (e + 1) * size]
            fitted = average.adapt(features[rows], betas[:, rows], parcels=parcels, seed=seed)
            good = np.isfinite(fitted.weights).all(axis=1)
            predicted = fitted.predict(test_features)[good]
            for metric, table in found.items():
                table[i, e] = np.nanmean(metric(predicted, test_betas[good]))
        if progress:
            progress(i + 1, len(sizes))
    name = f"aligned {average.method}"
    before = (alongside.r, alongside.explained_variance) if alongside is not None else ({}, {})
    return LearningCurve(
        tuple(sizes), {**before[0], name: found[pearson]}, {**before[1], name: found[explained_variance]}
    )


@dataclass(frozen=True)
class GroupAlignment:
    """A common template and each participant's alignment to it.

    Attributes
    ----------
    template : ndarray (n_reference, n_images)
        Mean aligned betas of the shared images, on the reference participant's voxels.
    alignments : dict of str to Alignment
    """

    template: np.ndarray = field(repr=False)
    alignments: dict[str, Alignment] = field(repr=False)


def align_group(
    betas: Mapping[str, np.ndarray],
    *,
    reference: str | None = None,
    parcels: Mapping[str, np.ndarray] | None = None,
    iterations: int = 2,
    **options,
) -> GroupAlignment:
    """A template across participants: the mean of betas aligned to it, found in turns (hyperalignment).

    Parameters
    ----------
    betas : mapping of str to array (n_voxels, n_images)
        Column for column the same training images; voxels may differ in number.
    reference : str, optional
        Whose voxels the template is first made of; default: the first.
    parcels : mapping of str to array (n_voxels,), optional
    iterations : int
        Rounds of aligning everyone and averaging.
    **options
        Of `align` (method, engine, ...).

    Returns
    -------
    GroupAlignment

    Raises
    ------
    UsageError
        Fewer than two participants or one round; a reference or parcels that name others.
    DataError
        As `align`.

    References
    ----------
    Haxby et al. 2011, Neuron 72:404.
    """
    if len(betas) < 2 or iterations < 1:
        raise UsageError(f"{len(betas)} participants, {iterations} rounds.", "Give two and one, or more.")
    reference = next(iter(betas)) if reference is None else reference
    if reference not in betas or (parcels is not None and set(parcels) != set(betas)):
        raise UsageError("Reference or parcels name other participants than betas.", "Use the same names.")
    template = np.asarray(betas[reference], np.float64)
    alignments: dict[str, Alignment] = {}
    for _ in range(iterations):
        for name, own in betas.items():
            pair = None if parcels is None else (np.asarray(parcels[name]), np.asarray(parcels[reference]))
            alignments[name] = align(own, template, parcels=pair, **options)
        template = np.mean([alignments[name].transform(own) for name, own in betas.items()], axis=0)
    return GroupAlignment(template.astype(np.float32), alignments)
