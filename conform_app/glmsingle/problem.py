# SPDX-License-Identifier: Apache-2.0
"""What stays the same during a fit, and the walk over blocks of voxels.

A fit passes over the data four times, block by block: HRFs (`first_pass`), noise pool and number of noise
regressors (`noise_pass`), ridge (`ridge_pass`).  In the last two, the voxels of a block are ordered by
their HRF, so that each HRF's voxels are a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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

    def walk(self, stage: str) -> Iterator[tuple[int, int]]:
        """Blocks of voxels, reporting progress."""
        for lo, hi in blocks(self.series.n_voxels, self.block):
            yield lo, hi
            if self.progress is not None:
                self.progress(stage, hi, self.series.n_voxels)

    def empty(self, *shape: int, fill: float = np.nan) -> np.ndarray:
        """A float32 result array with one row per voxel."""
        return np.full((self.series.n_voxels, *shape), fill, np.float32)

    def series_of(self, run: int, lo: int, hi: int, rows: np.ndarray) -> torch.Tensor:
        """Detrended series of some voxels of a block, (len(rows), n_volumes)."""
        return fit.detrend(self.series.read(run, lo, hi, rows), self.poly_t[run])

    def factors(self, extra: list[np.ndarray], hrfs) -> dict[tuple[int, int], fit.Run]:
        """Least-squares factors of each (run, HRF)."""
        return {
            (r, h): fit.to_run(
                fac.least_squares(self.library[r][:, :, h], self.poly[r], extra[r]), self.device
            )
            for r in self.runs
            for h in hrfs
        }


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
