# SPDX-License-Identifier: Apache-2.0
"""One participant's models: learn from the others, adapt on contexts, predict test images, measure.

Every estimator gets the same contexts, see `sharing`.  Vertices come in blocks, each a sample of the cortex
(alignment goes piece by piece of the cortex instead); results go into memory maps in a scratch folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.braincorl import adapt, fit_five_fold_ridge, fit_prior, group_mean
from conform_app.braincorl.checks import check_context_size, check_disjoint
from conform_app.braincorl.scoring import METRICS, Scorer
from conform_app.encode.aligning import Aligner, open_aligner
from conform_app.encode.given import read_regions
from conform_app.encode.job import EncodeJob, EncodePlan, Target
from conform_app.encode.prepare import Prepared, blocks
from conform_app.encode.sharing import contexts
from conform_app.errors import DataError

LEAST_FIVE_FOLD = 10
IMPORTANCE_VERTICES = 200


@dataclass
class Modelled:
    """What was found for one participant.

    Attributes
    ----------
    vertices : ndarray (n,) of int
    scorer : Scorer
        Holds accuracy by ``(method, size)``, see `label`.
    repeats : dict of str to int
        Contexts of each label.
    arrays : dict of str to ndarray
        Of the mapped model: ``weights (n, E + 1)``, ``prediction`` and ``predictivesd (n, n_test)``,
        ``shares (n, n_methods)``; ``aligned (n, E + 1)`` are weights through alignment.
    accuracy : dict of (method, metric) to ndarray (n,)
        With the largest context.
    share_names : tuple of str
        Columns of ``shares``.
    context : ndarray of int
        Train images of the mapped model.
    importance : ndarray (2, n_context) or None
        Mean and standard deviation over a sample of vertices.
    prior : Prior or None
    calibration : float
        Median over blocks of the factor on the predictive variance.
    n_constant : int
        Vertices without a model, since their responses do not vary.
    aligner : Aligner or None
        What the model through alignment came from.
    """

    vertices: np.ndarray
    scorer: Scorer
    repeats: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    accuracy: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    share_names: tuple[str, ...] = ()
    context: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    importance: np.ndarray | None = None
    prior: Any = None
    calibration: float = 1.0
    n_constant: int = 0
    aligner: Aligner | None = None


def label(method: str, size: int) -> str:
    """Name of an estimator with a context size, for the scorer."""
    return f"{method} @ {size}"


def model_target(
    job: EncodeJob, plan: EncodePlan, target: Target, people: Mapping[str, Prepared], scratch: Path
) -> Modelled:
    """Fit and measure all estimators for one participant.

    Parameters
    ----------
    job : EncodeJob
    plan : EncodePlan
    target : Target
    people : mapping of participant to Prepared
        The target and those it is learned from.
    scratch : Path
        Folder for large arrays.

    Returns
    -------
    Modelled

    Raises
    ------
    DataError
        No vertex varies; test images in a context; a context larger than the data.
    """
    person, own = plan.people[target.key], people[target.key]
    regions = read_regions(job.settings.encode_regions, _n_vertices(job), job.geometry)
    masks = {"all": np.ones(len(own.vertices), bool)}
    masks |= {name: mask[own.vertices] for name, mask in regions.items()}
    out = Modelled(own.vertices, Scorer(len(person.test), masks), prior=_prior(job, plan, target, people))
    out.aligner = open_aligner(job, plan, target, people)
    task = _Task(
        out,
        own,
        [people[name] for name in target.teachers],
        plan.rows(person.train),
        plan.rows(person.test),
        _ceiling(job, target.key, own.vertices),
        _network(job),
        job.memory // 4,
    )
    for size in target.sizes:
        check_context_size(size, len(person.train))
    for size, repeat, context in contexts(len(person.train), target.sizes, job.settings.encode_repeats):
        check_disjoint(np.array(person.train)[context], np.array(person.test))
        check_disjoint(task.train[context], task.test)
        keep = None
        if size == target.sizes[-1] and repeat == 0:
            keep, out.context = _Keeper(out, task.test, job.settings.encode, scratch), context
        task.adapt(context, repeat, keep)
        if size in target.aligned:
            task.align(context, repeat, keep)
    if not out.arrays or not np.isfinite(out.arrays["weights"][:, -1]).any():
        raise DataError(
            f"{target.key}: the responses of every vertex are constant or not finite.",
            "Check what the betas were made from.",
        )
    out.n_constant = int((~np.isfinite(out.arrays["weights"][:, -1])).sum())
    if task.network is not None:
        out.importance = _importance(task.network, task.train[out.context], own, out)
    return out


@dataclass(frozen=True)
class _Task:
    """What stays the same over the contexts of one participant."""

    out: Modelled
    own: Prepared
    others: list[Prepared]
    train: np.ndarray  # features
    test: np.ndarray
    ceiling: np.ndarray
    network: Any
    memory: int

    def adapt(self, context: np.ndarray, repeat: int, keep: _Keeper | None) -> None:
        """All estimators from one context, measured; the mapped model is kept where there is a keeper."""
        x, size = self.train[context], len(context)
        for rows in blocks(len(self.own.vertices)):
            betas = np.asarray(self.own.train[rows][:, context])
            if not _varies(betas).any():
                continue
            fitted = adapt(x, betas, prior=self.out.prior, model=self.network, memory=self.memory)
            weights = {"stacked": fitted.weights, **fitted.parts}
            weights.pop("mean", None)
            if size >= LEAST_FIVE_FOLD:
                weights["five-fold ridge"] = _five_fold(x, betas)
            if self.others and keep:
                weights["group mean"] = _group_mean(self.others, self.own.vertices[rows])
            for method, its in weights.items():
                self._measure(method, its, size, repeat, rows, keep)
            if keep:
                keep.take(rows, fitted, weights)

    def align(self, context: np.ndarray, repeat: int, keep: _Keeper | None) -> None:
        """The model through alignment, from one context that shares images with others."""
        aligner = self.out.aligner
        if aligner is None:
            return
        for rows, weights in aligner.weights(self.train[context], self.own.train, context):
            self._measure(aligner.name, weights, len(context), repeat, rows, keep)
            if keep:
                keep.array("aligned", weights.shape[1])[rows] = weights

    def _measure(self, method: str, weights, size: int, repeat: int, rows, keep: _Keeper | None) -> None:
        out = self.out
        # the mean of others has seen nothing of this participant
        name = label(method, 0 if method == "group mean" else size)
        predicted = predict(weights, self.test)
        found = out.scorer.add(name, repeat, rows, predicted, self.own.test[rows], self.ceiling[rows])
        out.repeats[name] = max(out.repeats.get(name, 0), repeat + 1)
        for metric in METRICS if keep else ():
            empty = np.full(len(out.vertices), np.nan, np.float32)
            out.accuracy.setdefault((method, metric), empty)[rows] = found[metric]


def _n_vertices(job: EncodeJob) -> int:
    from conform_app.mosaic.collection import Collection

    return Collection.open(job.store).n_vertices


def _prior(job: EncodeJob, plan: EncodePlan, target: Target, people: Mapping[str, Prepared]) -> Any:
    """The prior given, or one fitted to the other participants; None when there is neither."""
    if job.settings.encode_prior is not None:
        from conform_app.braincorl import Prior

        return Prior.load(job.settings.encode_prior)
    if not target.teachers:
        return None
    return fit_prior({key: (plan.rows(plan.people[key].train), people[key].train) for key in target.teachers})


def _network(job: EncodeJob) -> Any:
    if job.settings.encode_model is None:
        return None
    from conform_app.braincorl import load_model

    return load_model(job.settings.encode_model, device=job.device)


def _ceiling(job: EncodeJob, key: str, vertices: np.ndarray) -> np.ndarray:
    """Noise ceiling of the averages of the test phase, percent; NaN where nothing was repeated."""
    from conform_app.mosaic.collection import Collection

    found = Collection.open(job.store).noise_ceilings(key).get(("test", "avg"))
    return np.full(len(vertices), np.nan) if found is None else found[vertices]


def _varies(betas: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.isfinite(betas).all(axis=1) & (np.ptp(betas, axis=1) > 0)


def _five_fold(features: np.ndarray, betas: np.ndarray) -> np.ndarray:
    good = _varies(betas)
    weights = np.full((len(betas), features.shape[1] + 1), np.nan, np.float32)
    weights[good] = fit_five_fold_ridge(features, betas[good])[0]
    return weights


def _group_mean(others: list[Prepared], vertices: np.ndarray) -> np.ndarray:
    """Mean weights of the others at these vertices; NaN where nobody has data."""
    stack = []
    for person in others:
        place = np.searchsorted(person.vertices, vertices)
        place = np.minimum(place, len(person.vertices) - 1)
        there = person.vertices[place] == vertices
        weights = np.full((len(vertices), person.ridge.shape[1]), np.nan, np.float32)
        weights[there] = person.ridge[place[there]]
        stack.append(weights)
    return group_mean(stack).astype(np.float32)


def predict(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Responses (n, n_images) by weights (n, E + 1)."""
    return weights[:, :-1] @ features.T + weights[:, -1:]


class _Keeper:
    """Collects the mapped model."""

    def __init__(self, out: Modelled, test: np.ndarray, method: str, scratch: Path) -> None:
        self.out, self.test, self.method, self.scratch = out, test, method, scratch
        self.calibration: list[float] = []

    def array(self, name: str, width: int) -> np.ndarray:
        if name not in self.out.arrays:
            path = self.scratch / f"{name}.npy"
            shape = (len(self.out.vertices), width)
            made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            made[:] = np.nan
            self.out.arrays[name] = made
        return self.out.arrays[name]

    def take(self, rows: np.ndarray, fitted: Any, weights: Mapping[str, np.ndarray]) -> None:
        """Keep the model of these vertices."""
        its = weights[self.method]
        self.array("weights", its.shape[1])[rows] = its
        self.array("prediction", len(self.test))[rows] = predict(its, self.test)
        self.array("predictivesd", len(self.test))[rows] = fitted.predictive_sd(self.test)
        if self.method == "stacked":
            self.out.share_names = tuple(fitted.shares)
            shares = np.stack(list(fitted.shares.values()), axis=1)
            self.array("shares", shares.shape[1])[rows] = shares
        self.calibration.append(fitted.calibration)
        self.out.calibration = float(np.median(self.calibration))


def _importance(network: Any, features: np.ndarray, own: Prepared, out: Modelled) -> np.ndarray:
    """Attention to each context image over a sample of the vertices: mean and standard deviation."""
    from conform_app.braincorl import image_importance

    good = np.flatnonzero(np.isfinite(out.arrays["weights"][:, -1]))
    some = good[np.linspace(0, len(good) - 1, min(len(good), IMPORTANCE_VERTICES)).astype(int)]
    some = np.unique(some)
    length = len(features) + network.sizes.registers
    block = max(1, int(2e8 / (4 * network.sizes.layers * length**2)))
    betas = np.asarray(own.train[some][:, out.context])
    spread = getattr(network, "card", {}).get("beta_sd")  # betas in the unit that it knows, as in `adapt`
    betas = betas * np.float32(spread / np.median(betas.std(axis=1)) if spread else 1.0)
    found = image_importance(network, features, betas, block=block)
    return np.stack([np.nanmean(found, axis=0), np.nanstd(found, axis=0)])
