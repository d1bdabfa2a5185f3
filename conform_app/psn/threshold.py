# SPDX-License-Identifier: Apache-2.0
"""How many dimensions to keep, from the signal and noise variance of each (no held-out data).

In the order of the basis let ``s_d`` and ``v_d`` be a dimension's signal and single-trial noise variance.
Keeping the first k dimensions of averages over T trials gains

    G(k) = sum_{d <= k} (s_d - v_d / T)        A(k) = sum_{d <= k} s_d        k = 0 .. D

in expected squared error against dropping them, and signal variance A(k).  The rules:

* prediction: the first maximum p of G;
* variance: the first k with ``A(k) >= f A(D)``;
* max-tradeoff: the k in p..D farthest from the chord of the curve ``x = A(k)/A(D)``, ``y`` = G scaled to
  1..0;
* alpha: the first k >= p with ``A(k) >= A(p) + alpha (A(D) - A(p))``.

`allowed`, where given, restricts the answer to a sorted set of k.
"""

from __future__ import annotations

import numpy as np

_FLAT = 1e-12


def curves(signal: np.ndarray, noise: np.ndarray, n_trials: float) -> tuple[np.ndarray, np.ndarray]:
    """G and A, (..., D + 1), from variances (..., D)."""
    return cumulative(signal - noise / n_trials), cumulative(signal)


def cumulative(values: np.ndarray) -> np.ndarray:
    """Cumulative sum along the last axis with a leading zero."""
    out = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=out[..., 1:])
    return out


def pick_prediction(gain: np.ndarray, allowed: np.ndarray | None = None) -> int:
    """First maximum of the expected gain."""
    if allowed is None:
        return int(np.argmax(gain))
    return int(allowed[np.argmax(gain[allowed])])


def pick_variance(kept: np.ndarray, fraction: float, allowed: np.ndarray | None = None) -> int:
    """Fewest dimensions that hold the fraction of the signal variance."""
    target = fraction * kept[-1] if fraction > 0 and kept[-1] > 0 else 0.0
    candidates = np.arange(kept.size) if allowed is None else allowed
    enough = candidates[kept[candidates] >= target]
    if enough.size:
        return int(enough[0])
    return 0 if allowed is None else int(allowed[-1])


def pick_tradeoff(
    gain: np.ndarray, kept: np.ndarray, allowed: np.ndarray | None = None, *, published: bool = False
) -> int:
    """Elbow of the trade between expected gain and signal variance kept.

    Without a fall of the gain there is no trade; ``published`` takes 1e-12 in the squared unit of the data
    for none, so that small numbers, such as volts, get another cut than the same in microvolts.
    """
    p = int(np.argmax(gain))
    last = gain.size - 1
    fall = gain[p] - gain[last]
    if kept[last] <= 0 or last - p < 2 or fall <= _FLAT * (1.0 if published else kept[last]):
        return _snap(p, allowed)
    x = kept[p:] / kept[last]
    y = (gain[p:] - gain[last]) / fall
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    length = np.hypot(dx, dy)
    if length <= _FLAT:
        return _snap(p, allowed)
    distance = np.abs(dy * (x - x[0]) - dx * (y - y[0])) / length
    if allowed is None:
        return p + int(np.argmax(distance))
    inside = allowed[allowed >= p]
    if inside.size == 0:
        return _snap(p + int(np.argmax(distance)), allowed)
    return int(inside[np.argmax(distance[inside - p])])


def pick_alpha(
    gain: np.ndarray, kept: np.ndarray, alpha: float, allowed: np.ndarray | None = None
) -> tuple[int, int, int]:
    """Between prediction (alpha 0) and all the signal variance (alpha 1).

    Returns
    -------
    k, k_pred, k_var : int
        The pick, the maximum of the gain, and the dimensions that alpha = 1 would keep.
    """
    last = kept.size - 1
    if kept[last] <= 0:
        return _snap(0, allowed), 0, 0
    p = int(np.argmax(gain))
    full = _first_at_least(kept, kept[p] + max(0.0, kept[last] - kept[p]), p)
    target = kept[p] + alpha * max(0.0, kept[last] - kept[p])
    free = _first_at_least(kept, target, p)
    if allowed is None:
        return free, p, full
    enough = allowed[(allowed >= p) & (kept[allowed] >= target)]
    return (int(enough[0]) if enough.size else _snap(free, allowed)), p, full


def _first_at_least(kept: np.ndarray, target: float, least: int) -> int:
    reached = np.flatnonzero(kept >= target)
    return max(int(reached[0]) if reached.size else kept.size - 1, least)


def _snap(k: int, allowed: np.ndarray | None) -> int:
    """Nearest allowed value, the larger on ties."""
    if allowed is None:
        return k
    distance = np.abs(allowed - k)
    return int(allowed[distance == distance.min()].max())
