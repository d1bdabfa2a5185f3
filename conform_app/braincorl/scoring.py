# SPDX-License-Identifier: Apache-2.0
r"""Accuracy of many estimators over many voxels, block by block, with intervals that can be compared.

The measures are those of `evaluation`, per voxel: Pearson r, explained variance, share of the noise ceiling.
A draw b of the bootstrap over images takes image i ``c_bi`` times, so that every sum a draw needs is a matrix
product with the counts::

    sum_i c_bi p_vi y_vi  ->  (p * y) @ c'        (n_voxels, n_draws)

and voxels can come in blocks: per draw and region, sums over voxels are all that is kept.  All estimators,
contexts and voxels share the draws, so differences between estimators have paired intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from conform_app.braincorl.evaluation import LEAST_CEILING
from conform_app.errors import DataError

METRICS = ("r", "explained_variance", "ceiling_share")
TINY = 1e-12  # of the variance that rounding leaves of a constant


@dataclass
class _Sums:
    """Per context: sums over the voxels of each region and how many they are."""

    whole: np.ndarray  # (2, n_regions, 3): sum, count
    draws: np.ndarray  # (2, n_regions, 3, n_draws)


@dataclass
class Scorer:
    """Collects accuracy over blocks of voxels and over contexts.

    Parameters
    ----------
    n_images : int
        Test images, at least three.
    regions : mapping of str to ndarray (n_voxels,) of bool
        "all" is every voxel that is given, and is added where it is missing.
    n_bootstrap, seed : int
        Draws of the images.
    """

    n_images: int
    regions: Mapping[str, np.ndarray]
    n_bootstrap: int = 500
    seed: int = 0
    counts: np.ndarray = field(init=False, repr=False)
    _sums: dict[str, dict[int, _Sums]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.n_images < 3:
            raise DataError(f"{self.n_images} test images say nothing.", "Give at least three.")
        rng = np.random.default_rng(self.seed)
        n = self.n_images
        draws = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(self.n_bootstrap)]
        self.counts = np.array(draws, np.float64).reshape(-1, n).T  # (n_images, n_draws)

    def add(
        self, name: str, context: int, voxels: np.ndarray, predicted, measured, ceiling=None
    ) -> dict[str, np.ndarray]:
        """Take in the predictions of one estimator, from one context, for a block of voxels.

        Parameters
        ----------
        name : str
            Of the estimator (or of estimator and context size).
        context : int
            Number of the context: results are averaged over contexts.
        voxels : ndarray of int
            Which voxels: into the regions' masks.
        predicted, measured : array (n, n_images)
        ceiling : array (n,), optional
            Noise ceilings of the measured averages, percent.

        Returns
        -------
        dict of str to ndarray (n,)
            The measures per voxel; NaN where there is no model or the measured betas are constant.
        """
        p, y = np.array(predicted, np.float64), np.array(measured, np.float64)
        good = np.isfinite(p).all(axis=1) & np.isfinite(y).all(axis=1) & (np.ptp(y, axis=1) > 0)
        flat = ~(np.ptp(p, axis=1) > 0)
        p, y = p[good], y[good]
        nc = np.full(len(good), np.nan) if ceiling is None else np.asarray(ceiling, np.float64)
        nc = np.where(nc >= LEAST_CEILING, nc / 100, np.nan)[good]
        p -= p.mean(axis=1, keepdims=True)
        y -= y.mean(axis=1, keepdims=True)
        ones = np.ones((self.n_images, 1))
        whole = _measures(p, y, ones, nc, flat[good])  # (n_good, 3, 1)
        draws = _measures(p, y, self.counts, nc, flat[good])
        draws[~np.isfinite(whole[..., 0])] = np.nan
        sums = self._sums.setdefault(name, {}).setdefault(context, self._empty())
        masks = np.array([np.asarray(m, bool)[voxels][good] for m in self._masks().values()], np.float64)
        for table, values in ((sums.whole, whole[..., 0]), (sums.draws, draws)):
            there = np.isfinite(values)
            flat_values = np.where(there, values, 0.0).reshape(len(values), -1)
            table[0] += (masks @ flat_values).reshape(table[0].shape)
            table[1] += (masks @ there.reshape(len(values), -1)).reshape(table[1].shape)
        out = {}
        for i, metric in enumerate(METRICS):
            out[metric] = np.full(len(good), np.nan, np.float32)
            out[metric][good] = whole[:, i, 0]
        return out

    def _masks(self) -> dict[str, np.ndarray]:
        first = next(iter(self.regions.values()), None)
        if "all" in self.regions or first is None:
            return dict(self.regions)
        return {"all": np.ones(len(first), bool), **self.regions}

    def _empty(self) -> _Sums:
        n = len(self._masks())
        return _Sums(np.zeros((2, n, 3)), np.zeros((2, n, 3, self.n_bootstrap)))

    def names(self) -> list[str]:
        """Estimators that have been given."""
        return list(self._sums)

    def means(self, name: str) -> dict[str, np.ndarray]:
        """Mean over voxels: region to (n_contexts, 3), measures in the order of `METRICS`."""
        its = [_mean(s.whole) for _, s in sorted(self._sums[name].items())]
        return {region: np.array([m[i] for m in its]) for i, region in enumerate(self._masks())}

    def n_voxels(self, name: str) -> dict[str, int]:
        """Voxels with a model, by region (of the first context)."""
        first = self._sums[name][min(self._sums[name])]
        return {region: int(first.whole[1, i, 0]) for i, region in enumerate(self._masks())}

    def intervals(
        self, name: str, other: str | None = None
    ) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Mean over voxels and contexts with its 95 % interval over images, by region and metric.

        Parameters
        ----------
        name : str
        other : str, optional
            The difference to this estimator instead, over the contexts that both have.
        """
        contexts = sorted(set(self._sums[name]) & set(self._sums[other or name]))

        def average(part: str, which: str) -> np.ndarray:
            return np.mean([_mean(getattr(self._sums[which][c], part)) for c in contexts], axis=0)

        middle, draws = average("whole", name), average("draws", name)
        if other is not None:
            middle, draws = middle - average("whole", other), draws - average("draws", other)
        out: dict[str, dict[str, tuple[float, float, float]]] = {}
        for i, region in enumerate(self._masks()):
            out[region] = {}
            for j, metric in enumerate(METRICS):
                its = draws[i, j][np.isfinite(draws[i, j])]
                low, high = np.percentile(its, [2.5, 97.5]) if its.size else (np.nan, np.nan)
                out[region][metric] = (float(middle[i, j]), float(low), float(high))
        return out


def _measures(p: np.ndarray, y: np.ndarray, counts: np.ndarray, nc, flat) -> np.ndarray:
    """Measures of centred predictions under every draw: (n_voxels, 3, n_draws)."""
    n = counts.sum(axis=0)
    mp, my = p @ counts / n, y @ counts / n
    vp = np.maximum((p * p) @ counts / n - mp**2, 0)
    vy = np.maximum((y * y) @ counts / n - my**2, 0)
    cov = (p * y) @ counts / n - mp * my
    # What is left of a constant is rounding, and says nothing.
    vy[vy <= TINY * (y * y).max(axis=1, initial=0)[:, None]] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip(cov / np.sqrt(vp * vy), -1, 1)
        # A constant prediction agrees with nothing.
        r = np.where(flat[:, None] | (vp <= TINY * (p * p).max(axis=1, initial=0)[:, None]), 0.0, r)
        r = np.where(np.isnan(vy), np.nan, r)
        ev = 1 - (vy + vp - 2 * cov) / vy
        share = np.sign(r) * r**2 / nc[:, None]
    return np.stack([r, ev, share], axis=1)


def _mean(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[1] > 0, sums[0] / sums[1], np.nan)


def images_at(sizes: Sequence[int], accuracy: Sequence[float], goal: float) -> float:
    """Images at which a learning curve first reaches a goal.

    Parameters
    ----------
    sizes : sequence of int
        Rising.
    accuracy : sequence of float
        Accuracy at each size; NaN where there is none.
    goal : float

    Returns
    -------
    float
        Interpolated over the logarithm of the size; the first size where that is good enough already, NaN
        where the goal is not reached.
    """
    pairs = [(s, a) for s, a in zip(sizes, accuracy, strict=True) if np.isfinite(a)]
    for i, (size, value) in enumerate(pairs):
        if value >= goal:
            if i == 0:
                return float(size)
            before, below = pairs[i - 1]
            share = (goal - below) / (value - below)
            return float(before ** (1 - share) * size**share)
    return float("nan")
