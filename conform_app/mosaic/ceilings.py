# SPDX-License-Identifier: Apache-2.0
"""Noise ceilings of a participant's stored betas, per vertex and phase, without holding all betas at once.

The definition is `conform_app.reliability.noise_ceiling`'s.  Over the trials x of one phase, with r_c trials
and sum S_c of stimulus c, after the vertex's mean was taken off,

    noise_var = (sum x^2 - sum_c S_c^2 / r_c) / sum_c (r_c - 1),    total_var = sum x^2 / (n - 1)

which needs two passes over a block of vertices and no padding to the largest number of repeats (a phase where
one stimulus has a hundred repeats and ten thousand have one stays small).  Vertices with missing values go
through `reliability` itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import csr_array

from conform_app.reliability import arrange_repeats, noise_ceiling

STRIP_BYTES = 256 << 20
"""Betas of all trials held at once."""

_PIECE_BYTES = 64 << 20


def phase_ceilings(
    strips: Iterable[tuple[slice, np.ndarray]], stimulus: np.ndarray, phase: np.ndarray, n_vertices: int
) -> dict[tuple[str, str], np.ndarray]:
    """Noise ceilings for one trial and for the average of all.

    Parameters
    ----------
    strips : iterable of (slice, ndarray)
        Vertices and their betas ``(n_trials, n_vertices of the strip)``; not read if nothing is repeated.
    stimulus : ndarray, (n_trials,)
        Stimulus of each trial.
    phase : ndarray, (n_trials,) str
    n_vertices : int

    Returns
    -------
    dict
        ``(phase, "1" or "avg")`` to ``(n_vertices,)`` float64, 0 to 100 per cent, NaN where there is none.
        Phases without a repeated stimulus are left out.
    """
    sorted_trials = {}
    out = {}
    for one in ("train", "test", "artificial"):
        trials = np.flatnonzero(phase == one)
        _, code, count = np.unique(stimulus[trials], return_inverse=True, return_counts=True)
        if len(trials) and count.max() > 1:
            order = np.argsort(code, kind="stable")
            sorted_trials[one] = trials[order], code[order], count
            out[one, "1"], out[one, "avg"] = np.full(n_vertices, np.nan), np.full(n_vertices, np.nan)
    if not out:
        return out
    for vertices, betas in strips:
        step = max(1, _PIECE_BYTES // (8 * len(betas)))
        for start in range(0, betas.shape[1], step):
            piece = slice(start, min(start + step, betas.shape[1]))
            at = slice(vertices.start + piece.start, vertices.start + piece.stop)
            for one, (trials, code, count) in sorted_trials.items():
                out[one, "1"][at], out[one, "avg"][at] = _ceilings(betas[trials, piece], code, count)
    return out


def _ceilings(betas: np.ndarray, code: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ceilings of a block ``(n_trials, n_vertices)`` whose trials are sorted by stimulus."""
    n = len(betas)
    y = betas.astype(np.float64)
    mean = y.mean(axis=0)
    y -= mean
    squares = np.einsum("tv,tv->v", y, y)
    sums = csr_array((np.ones(n), (code, np.arange(n))), shape=(len(count), n)) @ y
    between = np.einsum("cv,cv,c->v", sums, sums, 1.0 / count)
    noise = np.maximum(squares - between, 0.0) / (n - len(count))
    total = squares / (n - 1)
    single, average = [_percent(total, noise, weight) for weight in (1.0, float(np.mean(1.0 / count)))]
    # What the formula above cannot do: missing values, and variances that are rounding of the mean
    rest = ~np.isfinite(mean) | (noise <= 1e-10 * total) | (total <= 1e-20 * mean**2)
    some = rest & np.isfinite(betas).any(axis=0)
    single[rest], average[rest] = np.nan, np.nan
    for vertex in np.flatnonzero(some):
        there = np.isfinite(betas[:, vertex])
        if there.sum() < 2 or np.bincount(code[there]).max() < 2:
            continue
        arranged = arrange_repeats(betas[there, vertex][None].astype(np.float64), code[there])
        single[vertex] = noise_ceiling(arranged, n=1)[0]
        average[vertex] = noise_ceiling(arranged, n="avg")[0]
    return single, average


def _percent(total: np.ndarray, noise: np.ndarray, weight: float) -> np.ndarray:
    signal = np.maximum(total - noise, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100.0 * signal / (signal + weight * noise)
