# SPDX-License-Identifier: Apache-2.0
"""First pass: means, on/off model, assumed HRF (A), and the best HRF of the library per voxel (B).

All of it is per voxel, so one reading of the data does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from conform_app.glmsingle import factor as fac
from conform_app.glmsingle import fit
from conform_app.glmsingle.problem import Problem


@dataclass
class Odd:
    """Numbers of voxels; the first three kinds are left out, each voxel counted once.

    ``in_run``: (2, n_runs), voxels that are not finite, or constant, in each run.
    """

    nonfinite: int
    constant: int
    zero_mean: int
    demeaned: int
    in_run: np.ndarray

    def __add__(self, other: Odd) -> Odd:
        return Odd(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(eq=False)
class Library:
    """Results of the first pass (names as in `TypeA`, `TypeB`) and counts of odd voxels (`Odd`).

    ``noise_*`` are residual standard deviations in the data's unit, ``variance_*`` those of each beta for
    noise of variance 1: (n_trials,) for the assumed HRF, and one such row per HRF of the library.
    """

    valid: np.ndarray
    mean_vol: np.ndarray
    onoff_betas: np.ndarray
    onoff_r2: np.ndarray
    assumed_betas: Any
    betas: Any
    fit_hrf_r2: np.ndarray
    fit_hrf_r2_run: np.ndarray
    hrf_index: np.ndarray
    hrf_index_run: np.ndarray
    r2: np.ndarray
    r2_run: np.ndarray
    noise_assumed: np.ndarray
    noise: np.ndarray
    variance_assumed: np.ndarray
    variance: np.ndarray
    odd: Odd


class _OnOff:
    """All trials as one condition, one beta for all runs, assumed HRF."""

    def __init__(self, problem: Problem, extra: list[np.ndarray]) -> None:
        self.weights, self.plain, self.size, self.plain_size = [], [], 0.0, []
        for r in problem.runs:
            x = problem.assumed[r].astype(np.float64).sum(axis=1).astype(np.float32).astype(np.float64)
            plain = fac.off(problem.poly[r], x)
            clean = fac.off(extra[r], plain)
            self.size += float(clean @ clean)
            self.plain_size.append(float(plain @ plain))
            put = lambda a: torch.as_tensor(a, dtype=torch.float32, device=problem.device)  # noqa: E731
            self.weights.append(put(clean))
            self.plain.append(put(plain))

    def fit(self, ys: list[torch.Tensor], energies: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.stack(energies).sum(dim=0)
        dot = sum((y @ w).to(torch.float64) for y, w in zip(ys, self.weights, strict=True))
        beta = dot / self.size if self.size > 0 else torch.zeros_like(dot)
        left = total.clone()
        for y, x, size in zip(ys, self.plain, self.plain_size, strict=True):
            left += beta.square() * size - 2 * beta * (y @ x).to(torch.float64)
        return beta, fit.r2(left, total)


@dataclass(eq=False)
class _Scan:
    """What one reading of a block tells of its voxels; ``series`` are the raw data, run by run."""

    finite: np.ndarray
    varies: np.ndarray
    odd_in_run: np.ndarray  # (2, n_runs) numbers not finite, and constant
    mean: np.ndarray
    run_mean: np.ndarray
    series: list[np.ndarray]


def _scan(problem: Problem, lo: int, hi: int) -> _Scan:
    finite, varies = np.ones(hi - lo, bool), np.ones(hi - lo, bool)
    totals, series, odd = [], [], []
    for r in problem.runs:
        y = problem.series.read(r, lo, hi)
        good = np.isfinite(y).all(axis=1)
        y[~good] = 0
        top, bottom = y.max(axis=1), y.min(axis=1)
        # Interpolating a constant leaves rounding behind, which is no signal.
        moves = (top - bottom) > 1e-6 * np.maximum(np.abs(top), np.abs(bottom))
        odd.append([(~good).sum(), (good & ~moves).sum()])
        varies &= moves
        finite &= good
        totals.append(y.sum(axis=1, dtype=np.float64))
        series.append(y)
    lengths = problem.plan.n_volumes
    mean = (sum(totals) / sum(lengths)).astype(np.float32)
    return _Scan(finite, varies, np.array(odd).T, mean, np.stack(totals, axis=1) / lengths, series)


class _FirstPass:
    """What is done to one block, and where it goes."""

    def __init__(self, problem: Problem, extra: list[np.ndarray]) -> None:
        self.problem = problem
        self.factors = problem.factors(extra, range(problem.n_hrfs))
        self.onoff = _OnOff(problem, extra)
        self.assumed = [
            fit.to_run(fac.least_squares(problem.assumed[r], problem.poly[r], extra[r]), problem.device)
            for r in problem.runs
        ]
        self.separate = _separate(problem, extra) if problem.options.wantlss else None
        self.out = self._empty()

    def _empty(self) -> Library:
        problem = self.problem
        n, n_runs, n_hrfs = problem.series.n_voxels, problem.plan.n_runs, problem.n_hrfs
        if self.separate is None:
            variance = [[self.factors[r, h].variance for r in problem.runs] for h in range(n_hrfs)]
        else:
            variance = [
                [self.separate[r, h].square().sum(dim=0).cpu().numpy() for r in problem.runs]
                for h in range(n_hrfs)
            ]
        return Library(
            valid=np.zeros(n, bool),
            mean_vol=problem.empty(),
            onoff_betas=problem.empty(1),
            onoff_r2=np.full(n, np.nan),
            assumed_betas=problem.betas_array("A"),
            betas=problem.betas_array("B"),
            fit_hrf_r2=problem.empty(n_hrfs),
            fit_hrf_r2_run=problem.empty(n_runs, n_hrfs),
            hrf_index=np.full(n, -1, np.int32),
            hrf_index_run=np.full((n, n_runs), -1, np.int32),
            r2=problem.empty(),
            r2_run=problem.empty(n_runs),
            noise_assumed=problem.empty(),
            noise=problem.empty(),
            variance_assumed=np.concatenate([run.variance for run in self.assumed]),
            variance=np.stack([np.concatenate(v) for v in variance]),
            odd=Odd(0, 0, 0, 0, np.zeros((2, n_runs), int)),
        )

    def block(self, lo: int, hi: int) -> Odd:
        """Fit the voxels lo to hi; returns the numbers of odd ones."""
        problem, out, options = self.problem, self.out, self.problem.options
        scan = _scan(problem, lo, hi)
        nonzero = (scan.mean != 0) | (not options.wantpercentbold)
        good = scan.finite if options.reference else scan.finite & scan.varies & nonzero
        out.mean_vol[lo:hi] = np.where(scan.finite, scan.mean, np.nan)
        out.valid[lo:hi] = good
        rows = np.flatnonzero(good)
        ys = [fit.detrend(scan.series.pop(0)[rows], problem.poly_t[r]) for r in problem.runs]
        at, gain = lo + rows, problem.gain(out.mean_vol[lo:hi], late=False)
        energies = [fit.energy(y) for y in ys]
        spread = (sum(energies) / sum(problem.plan.n_volumes)).sqrt().cpu().numpy()
        beta, r2 = self.onoff.fit(ys, energies)
        with np.errstate(invalid="ignore", over="ignore"):
            out.onoff_betas[at, 0] = beta.to(torch.float32).cpu().numpy() * gain[rows]
        out.onoff_r2[at] = r2.cpu().numpy()
        betas, out.noise_assumed[at] = _all_runs(problem, ys, energies, self.assumed)
        if out.assumed_betas is not None:
            problem.put_betas(out.assumed_betas, lo, hi, rows, betas.cpu().numpy(), gain)
        best = _best_hrf(problem, out, at, ys, energies, self.factors)
        betas = self._betas(at, ys, energies, best)
        if out.betas is not None:
            if self.separate is not None and options.reference and options.wantpercentbold:
                # The reference takes percent of each run's own mean here.
                betas *= (scan.mean[:, None] / scan.run_mean)[rows][:, problem.plan.trial_run]
            problem.put_betas(out.betas, lo, hi, rows, betas, gain)
        return Odd(
            int((~scan.finite).sum()),
            int((scan.finite & ~scan.varies).sum()),
            int((scan.finite & scan.varies & ~nonzero).sum()),
            int((np.abs(scan.mean[rows]) < spread).sum()),
            scan.odd_in_run,
        )

    def _betas(self, at: np.ndarray, ys, energies, best: torch.Tensor) -> np.ndarray:
        """Type B betas of voxels ``at`` in the data's unit, (V, n_trials)."""
        problem = self.problem
        out = np.empty((len(at), problem.plan.n_trials), np.float32)
        for h in torch.unique(best).tolist():
            rows = torch.nonzero(best == h)[:, 0]
            group, total = [y[rows] for y in ys], [e[rows] for e in energies]
            here = rows.cpu().numpy()
            betas, self.out.noise[at[here]] = _all_runs(
                problem, group, total, [self.factors[r, h] for r in problem.runs]
            )
            if self.separate is not None:
                betas = torch.cat([y @ self.separate[r, h] for r, y in enumerate(group)], dim=1)
            out[here] = betas.cpu().numpy()
        return out


def library_pass(problem: Problem, extra: list[np.ndarray]) -> Library:
    """First pass: types A and B."""
    step = _FirstPass(problem, extra)
    for odd in problem.each("HRFs", step.block):
        step.out.odd += odd
    return step.out


def _separate(problem: Problem, extra: list[np.ndarray]) -> dict[tuple[int, int], torch.Tensor]:
    return {
        (r, h): torch.as_tensor(
            fac.separate_weights(problem.library[r][:, :, h], problem.poly[r], extra[r]),
            dtype=torch.float32,
            device=problem.device,
        )
        for r in problem.runs
        for h in range(problem.n_hrfs)
    }


def _all_runs(problem: Problem, ys, energies, runs: list[fit.Run]) -> tuple[torch.Tensor, np.ndarray]:
    """Least-squares betas of all runs, (V, n_trials), and the residual standard deviation, (V,) float32."""
    out = torch.empty((len(ys[0]), problem.plan.n_trials), device=problem.device)
    left = sum(energies)
    for y, run, trials in zip(ys, runs, problem.plan.slices(), strict=True):
        left = left - fit.least_squares(y, run, out[:, trials])
    return out, problem.noise_sd(left, sum(run.rank for run in runs))


def _best_hrf(problem: Problem, out: Library, at, ys, energies, factors) -> torch.Tensor:
    """Index of each voxel's best HRF, (V,); fills R2 and indices of voxels ``at`` in ``out``."""
    n_runs, n_hrfs = problem.plan.n_runs, problem.n_hrfs
    explained = torch.empty((len(at), n_runs, n_hrfs), dtype=torch.float64, device=problem.device)
    for r, y in enumerate(ys):
        for h in range(n_hrfs):
            explained[:, r, h] = fit.explained(y, factors[r, h])
    per_run = torch.stack(energies, dim=1)
    total = per_run.sum(dim=1)
    r2 = fit.r2(total[:, None] - explained.sum(dim=1), total[:, None])
    r2_run = fit.r2(per_run[:, :, None] - explained, per_run[:, :, None])
    best = torch.nan_to_num(r2, nan=-torch.inf).argmax(dim=1)
    best_run = torch.nan_to_num(r2_run, nan=-torch.inf).argmax(dim=2)
    out.fit_hrf_r2[at] = r2.cpu().numpy()
    out.fit_hrf_r2_run[at] = r2_run.cpu().numpy()
    out.hrf_index[at] = best.cpu().numpy()
    out.hrf_index_run[at] = best_run.cpu().numpy()
    out.r2[at] = r2.gather(1, best[:, None])[:, 0].cpu().numpy()
    chosen = best[:, None, None].expand(-1, n_runs, 1)
    out.r2_run[at] = r2_run.gather(2, chosen)[:, :, 0].cpu().numpy()
    return best
