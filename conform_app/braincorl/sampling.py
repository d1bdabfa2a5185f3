# SPDX-License-Identifier: Apache-2.0
"""Batches for meta-training: voxels, their context and their query images.

Every batch is a function of (seed, stage, epoch, step) alone, and is drawn whole before each process takes
its share: runs can be cut off and resumed, and spread over processes, without other numbers being drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from conform_app.braincorl.participants import Participant
from conform_app.braincorl.prior import Prior
from conform_app.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Arrays of one batch, float32: context (V, S, E) and (V, S), queries (V, Q, E) and (V, Q)."""

    context_features: np.ndarray = field(repr=False)
    context_betas: np.ndarray = field(repr=False)
    query_features: np.ndarray = field(repr=False)
    query_betas: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class RealVoxels:
    """Measured voxels of participants.

    Attributes
    ----------
    people : list of Participant
    voxels : list of ndarray of int
        Which of each participant's voxels are drawn from.
    """

    people: list[Participant]
    voxels: list[np.ndarray]

    def draw(self, rng: np.random.Generator, n_voxels: int, n_context: int, n_query: int) -> Batch:
        """Draw voxels of all participants alike, each with images of its own."""
        counts = np.array([len(v) for v in self.voxels])
        of = np.searchsorted(np.cumsum(counts), rng.integers(counts.sum(), size=n_voxels), side="right")
        features, betas = [], []
        for p in np.unique(of):
            person = self.people[p]
            rows = rng.choice(self.voxels[p], size=(of == p).sum())
            y = person.read(rows)
            images = _images(rng, len(person.features), len(rows), n_context + n_query)
            features.append(person.features[images])
            betas.append(np.take_along_axis(y, images, axis=1))
        return _batch(np.concatenate(features), np.concatenate(betas), n_context)


@dataclass(frozen=True)
class SyntheticVoxels:
    """Voxels whose weights are drawn from a prior, seen through participants' images, with Gaussian noise.

    Attributes
    ----------
    people : list of Participant
        Only their features are used.
    prior : Prior
    noise_ceiling : tuple of float
        Range of the share of signal variance in a single beta; uniform draws.
    beta_sd : float
        Standard deviation that betas are given.
    """

    people: list[Participant]
    prior: Prior
    noise_ceiling: tuple[float, float] = (0.05, 0.7)
    beta_sd: float = 1.0

    def draw(self, rng: np.random.Generator, n_voxels: int, n_context: int, n_query: int) -> Batch:
        """Draw weights, scale them to unit signal, and add noise; betas have mean zero over all images.

        The query betas have none: the loss has the same minimum then, and gradients are less uncertain.
        """
        shares = self.prior.shares / self.prior.shares.sum()
        component = rng.choice(len(shares), size=n_voxels, p=shares)
        weights = np.empty((n_voxels, self.prior.n_features), np.float32)
        for k in np.unique(component):
            root = self._root(k)
            draws = rng.standard_normal(((component == k).sum(), len(root)))
            weights[component == k] = (self.prior.means[k] + draws @ root.T)[:, :-1]
        person = self.people[rng.integers(len(self.people))]
        some = person.features[rng.integers(len(person.features), size=500)]
        typical = weights @ some.T
        scale = np.maximum(typical.std(axis=1, keepdims=True), 1e-12)
        images = _images(rng, len(person.features), n_voxels, n_context + n_query)
        features = person.features[images]
        signal = (np.einsum("vie,ve->vi", features, weights) - typical.mean(axis=1, keepdims=True)) / scale
        ceiling = rng.uniform(*self.noise_ceiling, size=(n_voxels, 1))
        betas = np.sqrt(ceiling) * signal
        betas[:, :n_context] += np.sqrt(1 - ceiling) * rng.standard_normal((n_voxels, n_context))
        return _batch(features, self.beta_sd * betas, n_context)

    def _root(self, k: int) -> np.ndarray:
        cache = self.__dict__.setdefault("_roots", {})
        if k not in cache:
            cache[k] = np.linalg.cholesky(self.prior.covariances[k])
        return cache[k]


def split_voxels(
    people: list[Participant], held_out: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Voxels of each participant for training and for validation (a share ``held_out`` of each)."""
    train, validation = [], []
    for number, person in enumerate(people):
        order = np.random.default_rng([seed, number]).permutation(len(person.voxels))
        n = max(1, round(held_out * len(order)))
        if n >= len(order):
            raise DataError(
                f"{person.name} has {len(order)} voxels, too few to hold some out.", "Leave it out."
            )
        validation.append(np.sort(order[:n]))
        train.append(np.sort(order[n:]))
    return train, validation


def _images(rng: np.random.Generator, n_images: int, n_voxels: int, n_needed: int) -> np.ndarray:
    """Different images for every voxel, without replacement: (n_voxels, n_needed)."""
    if n_needed > n_images:
        raise DataError(
            f"A context and queries of {n_needed} images were asked for, and a participant has {n_images}.",
            "Lower the context size or the number of queries.",
        )
    return np.argpartition(rng.random((n_voxels, n_images)), n_needed - 1, axis=1)[:, :n_needed]


def _batch(features: np.ndarray, betas: np.ndarray, n_context: int) -> Batch:
    features, betas = np.ascontiguousarray(features, np.float32), np.ascontiguousarray(betas, np.float32)
    return Batch(features[:, :n_context], betas[:, :n_context], features[:, n_context:], betas[:, n_context:])
