# SPDX-License-Identifier: Apache-2.0
"""What stays the same during a fit, and the walk over blocks of voxels.

A fit passes over the data four times, block by block: HRFs (`first_pass`), noise pool and number of noise
regressors (`noise_pass`), ridge (`ridge_pass`).  In the last two, the voxels of a block are ordered by
their HRF, so that each HRF's voxels are a slice.

Threads: each of ``workers`` threads takes a block of its own, and torch and BLAS use one thread inside it.
The threads of one operation wait for each other at its end, thousands of times per second, and they wait
spinning: where cores are shared with other work, two threads can be ten times slower than one.  Whole blocks
wait for nothing, and the numbers do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch

from conform_app.glmsingle import factor as fac
from conform_app.glmsingle import fit
from conform_app.glmsingle.blocks import Series, blocks
from conform_app.glmsingle.design import TrialPlan
from conform_app.glmsingle.options import GLMsingleOptions

SUB_BLOCK = 4096
"""Voxels in the innermost step, so that its arrays stay in the processor's cache."""


@dataclass(eq=False)
class Problem:
    """Everything that does not change during a fit; R runs, H HRFs.

    Attributes
    ----------
    assumed : list of (n_volumes, N_r) float32, one per run
        Regressors of the assumed HRF.
    library : list of (n_volumes, N_r, H) float32
    hrfs : (n_samples, H) float32
        The library every TR, for the median duration.
    poly : list of (n_volumes, p) float64
    extra : list of (n_volumes, k) float64
        Orthonormal, off ``poly``; the user's regressors.
    usable : (n_trials,) bool
    store : callable or None
        ``store(letter, shape)`` gives the array-like that takes the betas of a type, block by block.
    workers : int
        Blocks worked on at the same time.
    """

    series: Series
    plan: TrialPlan
    options: GLMsingleOptions
    device: torch.device
    block: int
    assumed: list[np.ndarray]
    library: list[np.ndarray]
    hrfs: np.ndarray
    poly: list[np.ndarray]
    extra: list[np.ndarray]
    usable: np.ndarray
    progress: Callable[[str, int, int], None] | None = None
    store: Callable[[str, tuple[int, int]], Any] | None = None
    workers: int = 1
    poly_t: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.poly_t = [torch.as_tensor(p, dtype=torch.float32, device=self.device) for p in self.poly]

    @property
    def n_hrfs(self) -> int:
        """Number of HRFs."""
        return self.library[0].shape[2]

    @property
    def runs(self) -> range:
        """Indices of the runs."""
        return range(self.plan.n_runs)

    def each(self, stage: str, work: Callable[[int, int], Any]) -> Iterator[Any]:
        """Do ``work(lo, hi)`` for every block of voxels; its results in order, reporting progress."""
        spans = list(blocks(self.series.n_voxels, self.block))
        for (_, hi), found in zip(spans, self.parallel(lambda span: work(*span), spans), strict=True):
            yield found
            if self.progress is not None:
                self.progress(stage, hi, self.series.n_voxels)

    def parallel(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """``work(item)`` of each item, in order, some at the same time."""
        if self.workers == 1:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, items)

    def empty(self, *shape: int, fill: float = np.nan) -> np.ndarray:
        """A float32 result array with one row per voxel."""
        return np.full((self.series.n_voxels, *shape), fill, np.float32)

    def betas_array(self, letter: str) -> Any:
        """Where the betas of a type go: in memory or in the store, None if they are not kept."""
        if letter not in self.options.keep:
            return None
        shape = (self.series.n_voxels, self.plan.n_trials)
        return self.empty(shape[1]) if self.store is None else self.store(letter, shape)

    def gain(self, mean_vol: np.ndarray, *, late: bool) -> np.ndarray:
        """Factor from the data's unit to that of the betas, per voxel, float32; ``late``: types C and D."""
        if not (self.options.wantpercentbold or (late and self.options.reference)):
            return np.ones(mean_vol.shape, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.float32(100) / np.abs(mean_vol)

    def noise_sd(self, left: torch.Tensor, rank: int) -> np.ndarray:
        """Residual standard deviation (V,) float32 from residual sums of squares and the model's rank."""
        free = sum(self.plan.n_volumes) - sum(p.shape[1] for p in self.poly) - rank
        if free <= 0:
            return np.full(len(left), np.nan, np.float32)
        return (left.clamp(min=0) / free).sqrt().to(torch.float32).cpu().numpy()

    def put_betas(self, target, lo: int, hi: int, rows: np.ndarray, betas: np.ndarray, gain) -> None:
        """Write a block: betas (len(rows), n_trials) of ``rows`` in the data's unit, NaN elsewhere."""
        block = np.full((hi - lo, betas.shape[1]), np.nan, np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            block[rows] = betas * gain[rows, None]
        block[:, ~self.usable] = np.nan
        target[lo:hi] = block

    def series_of(self, run: int, lo: int, hi: int, rows: np.ndarray) -> torch.Tensor:
        """Detrended series of some voxels of a block, (len(rows), n_volumes)."""
        return fit.detrend(self.series.read(run, lo, hi, rows), self.poly_t[run])

    def factors(self, extra: list[np.ndarray], hrfs) -> dict[tuple[int, int], fit.Run]:
        """Least-squares factors of each (run, HRF)."""

        def make(key: tuple[int, int]) -> fit.Run:
            r, h = key
            one = fac.least_squares(self.library[r][:, :, h], self.poly[r], extra[r])
            return fit.to_run(one, self.device)

        keys = list(product(self.runs, (int(h) for h in hrfs)))
        return dict(zip(keys, self.parallel(make, keys), strict=True))


def by_hrf(index: np.ndarray) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Valid rows of a block ordered by HRF, and each HRF's slice (cut to `SUB_BLOCK`) of that order."""
    order = np.argsort(index, kind="stable")
    order = order[np.searchsorted(index[order], 0) :]
    hrfs, starts = np.unique(index[order], return_index=True)
    ends = np.append(starts[1:], order.size)
    return order, [
        (int(h), slice(a, min(a + SUB_BLOCK, int(end))))
        for h, start, end in zip(hrfs, starts, ends, strict=True)
        for a in range(int(start), int(end), SUB_BLOCK)
    ]
