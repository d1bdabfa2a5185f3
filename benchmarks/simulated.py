# SPDX-License-Identifier: Apache-2.0
"""Simulated fMRI with known betas, HRFs and noise, block of voxels by block.

Every condition appears equally often, spread over runs.  A voxel has one HRF of the library, a pattern of
responses (percent), trial-to-trial variation, drifts, white noise, and noise that it shares with all voxels
(what noise regressors are for).  A third of the voxels respond, a third respond weakly, a third not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conform_app.glmsingle import RunTrials
from conform_app.glmsingle.hrf import TableResponses, library_table


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    voxels: int = 20_000
    runs: int = 6
    volumes: int = 200
    conditions: int = 150
    trials: int = 450
    tr: float = 2.0
    stimdur: float = 2.0
    jitter: float = 0.0  # onsets move by up to so many TR off the volumes


class Simulation:
    """A design, and data made from it on demand: the same block is always the same numbers."""

    def __init__(self, size: Size, seed: int = 0, noise: float = 1.0, shared: float = 0.7) -> None:
        self.size, self.seed, self.noise, self.shared = size, seed, noise, shared
        rng = np.random.default_rng(seed)
        per_run = np.full(size.runs, size.trials // size.runs) + (
            np.arange(size.runs) < size.trials % size.runs
        )
        repeats = -(-size.trials // size.conditions)
        order = np.concatenate([rng.permutation(size.conditions) for _ in range(repeats)])[: size.trials]
        responses = TableResponses(library_table(), size.tr, whole_seconds=True)
        self.design, self.arrays, self._x, self._shared = [], [], [], []
        start = 0
        for n in per_run:
            last = size.volumes - int(np.ceil(12 / size.tr))
            volume = np.floor(np.linspace(2, last, n)).astype(int)
            condition = order[start : start + n]
            start += n
            onset = (volume + size.jitter * rng.uniform(-0.5, 0.5, n)) * size.tr
            self.design.append(RunTrials(onset, np.full(n, size.stimdur), condition))
            marks = np.zeros((size.volumes, size.conditions), np.uint8)
            marks[volume, condition] = 1
            self.arrays.append(marks)
            times = np.arange(size.volumes) * size.tr
            x = [responses.sample(times - t, size.stimdur) for t in onset]
            self._x.append(np.stack(x, axis=1))  # (volumes, trials, HRFs)
            self._shared.append(rng.normal(size=(5, size.volumes)).cumsum(axis=1) * 0.2)
        self.condition = np.concatenate([d.condition for d in self.design])

    def voxels(self, lo: int, hi: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Series of each run (n, volumes) float32, true betas (n, trials) in percent, true HRFs (n,)."""
        size, n = self.size, hi - lo
        rng = np.random.default_rng([self.seed, lo])
        hrf = rng.integers(0, 20, n)
        strength = np.array([1.0, 0.3, 0.0])[np.arange(lo, hi) % 3][:, None]
        pattern = rng.normal(1.5, 1.5, (n, size.conditions))
        betas = strength * (pattern[:, self.condition] + 0.5 * rng.normal(size=(n, size.trials)))
        base = rng.uniform(600, 1400, (n, 1))
        weights = self.shared * rng.normal(size=(n, 5))
        drift = np.linspace(-1, 1, size.volumes)
        data, at = [], 0
        for x, common in zip(self._x, self._shared, strict=True):
            b = betas[:, at : at + x.shape[1]]
            at += x.shape[1]
            percent = weights @ common + self.noise * rng.normal(size=(n, size.volumes))
            percent += rng.normal(size=(n, 1)) * drift
            for h in np.unique(hrf):
                rows = hrf == h
                percent[rows] += b[rows] @ x[:, :, h].T
            data.append((base * (1 + percent / 100)).astype(np.float32))
        return data, betas, hrf
