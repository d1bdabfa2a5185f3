# SPDX-License-Identifier: Apache-2.0
r"""How well predictions agree with measured betas, voxel by voxel, on images that no fit has seen.

Per voxel over test images: Pearson r, explained variance ``1 - var(y - yhat) / var(y)`` (as published:
blind to an offset, not to a gain), and the share of what noise allows, ``r^2 / (nc / 100)`` with nc the
noise ceiling in percent of variance.  Means over voxels and over regions come with a percentile interval
from a bootstrap over *images*, in which all voxels share each draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conform_app.braincorl.adapting import Adapted, adapt
from conform_app.braincorl.checks import check_context_size, check_disjoint, check_features
from conform_app.errors import DataError

LEAST_CEILING = 1.0  # percent: below, a share of the ceiling says nothing


@dataclass(frozen=True)
class Accuracy:
    """Accuracy per voxel; NaN for voxels without a model or whose test betas are constant.

    Attributes
    ----------
    r, explained_variance, ceiling_share : ndarray (n_voxels,), float32
        The last is NaN where no ceiling is given or it is below 1 %.
    intervals : dict
        ``{region: {metric: (mean, low, high)}}``, 95 % over images; region "all" is every voxel.
    n_images : int
    """

    r: np.ndarray = field(repr=False)
    explained_variance: np.ndarray = field(repr=False)
    ceiling_share: np.ndarray = field(repr=False)
    intervals: dict[str, dict[str, tuple[float, float, float]]]
    n_images: int


def pearson(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Correlation of rows: (n_voxels, n_images) twice -> (n_voxels,); NaN where a row is constant."""
    a = predicted - predicted.mean(axis=1, keepdims=True)
    b = measured - measured.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def explained_variance(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """``1 - var(y - yhat) / var(y)`` of rows: (n_voxels,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (measured - predicted).var(axis=1) / measured.var(axis=1)


def score(
    predicted,
    measured,
    *,
    noise_ceiling=None,
    regions: dict[str, np.ndarray] | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
) -> Accuracy:
    """Accuracy of predictions on test images.

    Parameters
    ----------
    predicted, measured : array (n_voxels, n_images)
    noise_ceiling : array (n_voxels,), optional
        Percent of variance, for the averaging that ``measured`` has.
    regions : dict of str to array (n_voxels,) of bool, optional
        A mask a region; means are given for each and for all voxels.
    n_bootstrap : int
        Draws of test images for the intervals.
    seed : int

    Returns
    -------
    Accuracy

    Raises
    ------
    DataError
        Shapes that differ, fewer than three images, another number of noise ceilings than voxels.
    """
    predicted, measured = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    if predicted.shape != measured.shape or predicted.ndim != 2:
        raise DataError(
            f"Predictions have shape {predicted.shape}, measured betas {measured.shape}.",
            "Give the same images.",
        )
    if predicted.shape[1] < 3:
        raise DataError(f"{predicted.shape[1]} test images say nothing.", "Give at least three.")
    ceiling = (
        np.full(len(measured), np.nan) if noise_ceiling is None else np.asarray(noise_ceiling, np.float64)
    )
    if ceiling.shape != (len(measured),):
        raise DataError(
            f"Noise ceilings have shape {ceiling.shape}, not ({len(measured)},).", "One per voxel."
        )
    allowed = np.where(ceiling >= LEAST_CEILING, ceiling / 100, np.nan)
    good = (
        np.isfinite(predicted).all(axis=1)
        & np.isfinite(measured).all(axis=1)
        & (np.ptp(measured, axis=1) > 0)
    )

    def metrics(images) -> dict[str, np.ndarray]:
        p, y = predicted[good][:, images], measured[good][:, images]
        r = pearson(p, y)
        # A constant prediction agrees with nothing; an anticorrelated one reaches no share of the ceiling.
        r = np.where(np.ptp(p, axis=1) > 0, r, 0.0)
        share = np.sign(r) * r**2 / allowed[good]
        return {"r": r, "explained_variance": explained_variance(p, y), "ceiling_share": share}

    if regions is not None and not isinstance(regions, Mapping):
        raise DataError(
            f"Regions are no mapping of name to mask of the {len(measured)} voxels.",
            "Of labels: {name: labels == name for name in np.unique(labels)}.",
        )
    masks = {"all": np.ones(len(measured), bool), **(regions or {})}
    for name, mask in masks.items():
        if np.shape(mask) != (len(measured),):
            raise DataError(
                f"Region {name!r} has shape {np.shape(mask)}, not ({len(measured)},).", "One per voxel."
            )
    whole = metrics(slice(None))
    rng = np.random.default_rng(seed)
    draws = [metrics(rng.integers(measured.shape[1], size=measured.shape[1])) for _ in range(n_bootstrap)]
    intervals = {
        region: {
            name: _interval(whole[name], [d[name] for d in draws], np.asarray(mask, bool)[good])
            for name in whole
        }
        for region, mask in masks.items()
    }
    out = {name: np.full(len(measured), np.nan, np.float32) for name in whole}
    for name, values in whole.items():
        out[name][good] = values
    return Accuracy(**out, intervals=intervals, n_images=measured.shape[1])


def _interval(values: np.ndarray, draws: list[np.ndarray], mask: np.ndarray) -> tuple[float, float, float]:
    def mean(v: np.ndarray) -> float:
        v = v[mask & np.isfinite(values)]
        v = v[np.isfinite(v)]
        return float(v.mean()) if v.size else float("nan")

    middles = [mean(d) for d in draws]
    if not middles:
        return mean(values), float("nan"), float("nan")
    with np.errstate(all="ignore"):
        low, high = np.percentile(middles, [2.5, 97.5])
    return mean(values), float(low), float(high)


def evaluate(adapted: Adapted, features, betas, **options: Any) -> Accuracy:
    """`score` of a participant's model on test images; images of its context are refused.

    Parameters
    ----------
    adapted : Adapted
    features : array (n_images, E)
    betas : array (n_voxels, n_images)
    **options
        As `score`.

    Returns
    -------
    Accuracy

    Raises
    ------
    DataError
        A test image was in the context; or as `score`.
    """
    features = check_features(features, adapted.weights.shape[1] - 1, what="Test features")
    check_disjoint(adapted.context, features)
    return score(adapted.predict(features), betas, **options)


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy over context sizes.

    Attributes
    ----------
    sizes : tuple of int
    r, explained_variance : dict of str to ndarray (n_sizes, n_repeats)
        Mean over voxels, per estimator.
    """

    sizes: tuple[int, ...]
    r: dict[str, np.ndarray]
    explained_variance: dict[str, np.ndarray]

    def images_needed(self, share: float = 0.9) -> dict[str, float]:
        """Images at which each estimator reaches ``share`` of the best mean r anywhere on the curves.

        Interpolated over the logarithm of the size; NaN where it is not reached.
        """
        curves = {name: np.nanmean(values, axis=1) for name, values in self.r.items()}
        goal = share * max(values.max() for values in curves.values())
        out = {}
        for name, values in curves.items():
            reached = np.flatnonzero(values >= goal)
            if not reached.size:
                out[name] = float("nan")
                continue
            i = reached[0]
            if i == 0:
                out[name] = float(self.sizes[0])
                continue
            t = (goal - values[i - 1]) / (values[i] - values[i - 1])
            out[name] = float(self.sizes[i - 1] ** (1 - t) * self.sizes[i] ** t)
        return out


def learning_curve(
    features,
    betas,
    test_features,
    test_betas,
    *,
    sizes: Sequence[int] = (20, 50, 100, 300, 1000),
    repeats: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> LearningCurve:
    """Accuracy of each estimator over context sizes, on disjoint contexts.

    Parameters
    ----------
    features, betas : array (n_images, E), (n_voxels, n_images)
        Images that contexts are drawn from: repeat e of a size n takes images ``e n ... (e + 1) n`` of one
        shuffled order, so its contexts share no image; there are as many repeats as fit, at most ``repeats``.
    test_features, test_betas : array (n_test, E), (n_voxels, n_test)
    sizes : sequence of int
    repeats : int
        Most contexts of a size.
    seed : int
        Of the order of images.
    progress : callable (done, total), optional
    **options
        Of `adapt` (model, prior, ...).

    Returns
    -------
    LearningCurve
        Of "stacked", and of each estimator in it; entries of repeats that do not fit are NaN.

    Raises
    ------
    DataError
        Test images among the others; a size above the number of images; as `adapt`.
    UsageError
        A size below two.
    """
    features = check_features(features)
    test_features = check_features(test_features, features.shape[1], what="Test features")
    check_disjoint(features, test_features)
    betas, test_betas = np.asarray(betas), np.asarray(test_betas, np.float64)
    order = np.random.default_rng(seed).permutation(len(features))
    r: dict[str, np.ndarray] = {}
    ev: dict[str, np.ndarray] = {}
    for size in sizes:
        check_context_size(size, len(features))
    for i, size in enumerate(sizes):
        for e in range(min(repeats, len(features) // size)):
            rows = order[e * size : (e + 1) * size]
            fitted = adapt(features[rows], betas[:, rows], **options)
            for name, weights in {fitted.method: fitted.weights, **fitted.parts}.items():
                good = np.isfinite(weights[:, -1])
                predicted = weights[good, :-1] @ test_features.T + weights[good, -1:]
                for table, metric in ((r, pearson), (ev, explained_variance)):
                    table.setdefault(name, np.full((len(sizes), repeats), np.nan))
                    if name == "mean" and metric is pearson:
                        table[name][i, e] = 0.0
                    else:
                        table[name][i, e] = np.nanmean(metric(predicted, test_betas[good]))
        if progress:
            progress(i + 1, len(sizes))
    return LearningCurve(tuple(sizes), r, ev)
