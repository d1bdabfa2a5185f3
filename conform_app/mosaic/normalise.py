# SPDX-License-Identifier: Apache-2.0
"""Betas on the scale of their own fit: z = (beta - m) / s per vertex.

m and s (ddof 1) are taken over the TRAIN trials of one GLM fit (a session, or sessions fitted together), by
the dataset's own phases, so that test data have no part in their own scale and a later merge changes nothing.
A fit that holds only test trials may be scaled by all its own (MOSAIC does so for Deeprecon and
NSD-synthetic); its betas are then not on the train scale, which is on record.

Sums are float64, block by block by Chan, Golub and LeVeque (1983): with a block of n' trials, mean m' and sum
of squares q' about it, and d = m' - m,

    m <- m + d n' / (n + n'),    q <- q + q' + d^2 n n' / (n + n')

Values that are not finite do not count.  A vertex that is constant has no scale: its z is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from conform_app.errors import DataError


@dataclass(frozen=True, eq=False)
class FitUnit:
    """The betas of one GLM fit.

    Attributes
    ----------
    name : str
        What was fitted together, e.g. ``ses-01``.
    betas : array-like, (n_trials, n_vertices)
        Anything whose rows can be sliced: numpy, numpy.memmap, h5py, nibabel's ``dataobj``.  Blocks of rows
        are read, twice, and never all at once.
    own_statistics : bool, default False
        Scale by all trials of the unit instead of its train trials.
    """

    name: str
    betas: Any
    own_statistics: bool = False


class Moments:
    """Running mean and sum of squares per vertex."""

    def __init__(self, n_vertices: int) -> None:
        self.n = np.zeros(n_vertices)
        self.mean = np.zeros(n_vertices)
        self.squares = np.zeros(n_vertices)

    def add(self, block: np.ndarray) -> None:
        """Take trials ``(n, n_vertices)``; NaN does not count."""
        if not len(block):
            return
        y = block.astype(np.float64)
        n: Any = len(y)
        with np.errstate(invalid="ignore"):
            mean = y.mean(axis=0)
        holes = ~np.isfinite(mean)
        if holes.any():
            there = np.isfinite(y)
            n = there.sum(axis=0).astype(np.float64)
            y = np.where(there, y, 0.0)
            mean = y.sum(axis=0) / np.maximum(n, 1)
            y -= mean
            y[~there] = 0.0
        else:
            y -= mean
        squares = np.einsum("tv,tv->v", y, y)
        d, total = mean - self.mean, np.maximum(self.n + n, 1)
        self.mean += d * (n / total)
        self.squares += squares + d * d * (self.n * n / total)
        self.n = self.n + n

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd (ddof 1) per vertex, float64; NaN where fewer than two values or no variance."""
        with np.errstate(invalid="ignore", divide="ignore"):
            sd = np.sqrt(self.squares / (self.n - 1))
        none = (self.n < 2) | ~(sd > 1e-12 * np.abs(self.mean))
        return np.where(none, np.nan, self.mean), np.where(none, np.nan, sd)


def unit_statistics(
    unit: FitUnit, train: np.ndarray, blocks: Iterable[tuple[slice, np.ndarray]], n_vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale of one fit.

    Parameters
    ----------
    unit : FitUnit
    train : ndarray, (n_trials,) bool
        The unit's train trials.
    blocks : iterable of (slice, ndarray)
        The unit's betas, block by block.
    n_vertices : int

    Returns
    -------
    mean, sd : ndarray, (n_vertices,) float64
        NaN at vertices without variance.

    Raises
    ------
    DataError
        If there are fewer than two trials to take them over.
    """
    use = np.ones(len(train), bool) if unit.own_statistics else train
    if use.sum() < 2:
        raise DataError(
            f"{unit.name} has {int(use.sum())} train trials, so its betas have no scale.",
            "Fit it together with train trials, mark it own_statistics (scaled by all its own trials), or do "
            "not normalise.",
        )
    moments = Moments(n_vertices)
    for rows, block in blocks:
        chosen = use[rows]
        moments.add(block if chosen.all() else block[chosen])
    return moments.result()
