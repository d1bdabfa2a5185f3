# SPDX-License-Identifier: Apache-2.0
"""Where the tail of a distribution of R2 begins.

Most voxels have an on/off R2 near zero; those that respond form a tail.  Two Gaussians are fitted to the
values and the threshold is where, coming from the top, the tail's Gaussian stops being the likelier one, on
500 even points of a range that outliers cannot stretch.
"""

from __future__ import annotations

import warnings

import numpy as np

N_POINTS = 500
MOST_VALUES = 1_000_000
FALLBACK = 5.0
"""Percent; used when the values are too few or too alike for a mixture."""
FEWEST_VALUES = 10


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Range of the bulk of the values.

    The caps lie at the median plus and minus five times the distance to the 90th and 10th percentile.  An
    end is the 99.9th (0.1th) percentile when that is within the cap, or the extreme itself when no further
    than 1.1 times as far from the median; otherwise values beyond the cap are dropped and all starts again.
    """
    while True:
        low, p10, mid, p90, high = np.percentile(values, [0.1, 10, 50, 90, 99.9])
        floor, cap = mid - 5 * (mid - p10), mid + 5 * (p90 - mid)
        smallest, largest = values.min(), values.max()
        top = largest if largest <= mid + 1.1 * (high - mid) else high
        bottom = smallest if smallest >= mid - 1.1 * (mid - low) else low
        kept = values[(values <= cap if high > cap else True) & (values >= floor if low < floor else True)]
        if (high <= cap and low >= floor) or kept.size in (0, values.size):
            return float(bottom), float(top)
        values = kept


def tail_threshold(values: np.ndarray, seed: int = 0) -> tuple[float, bool]:
    """Threshold between bulk and tail.

    Parameters
    ----------
    values : array
        R2 in percent; values that are not finite are left out.
    seed : int
        Of the mixture's start.

    Returns
    -------
    threshold : float
    fitted : bool
        False: the values allowed no mixture and `FALLBACK` is returned.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    values = np.ravel(np.asarray(values))
    values = values[np.isfinite(values)]
    if values.size > MOST_VALUES:
        values = np.random.default_rng(0).choice(values, MOST_VALUES, replace=False)
    if values.size < FEWEST_VALUES or np.unique(values).size < FEWEST_VALUES:
        return FALLBACK, False
    mixture = GaussianMixture(2, tol=1e-10, reg_covar=0, n_init=3, max_iter=100, random_state=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(values[:, None])
    except ValueError:  # a component collapsed onto one value
        return FALLBACK, False
    low, high = robust_range(values)
    means = mixture.means_.ravel()
    points = np.linspace(min(low, means.min()), max(high, means.max()), N_POINTS)
    posterior = mixture.predict_proba(points[:, None])
    tail = posterior[:, int(np.argmax(posterior[-1]))]
    below = np.flatnonzero(tail <= 0.5)
    return float(points[below[-1] if below.size else 0]), True
