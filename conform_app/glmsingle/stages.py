# SPDX-License-Identifier: Apache-2.0
"""The four passes over the data, each block by block.

1. `library_pass`: means, on/off model, single trials with the assumed HRF, and the best HRF per voxel (A, B).
2. `pool_pass`: Gram matrices of the noise pool, hence the noise regressors of each run.
3. `number_pass`: badness for 0, 1, ... noise regressors.
4. `ridge_pass`: betas with the chosen number (C), then the best fraction per voxel (D).

Within a block of passes 3 and 4 voxels are ordered by their HRF, so that each HRF's voxels are a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from conform_app.glmsingle import factor as fac
from conform_app.glmsingle import fit, ridge
from conform_app.glmsingle.blocks import Series, blocks
from conform_app.glmsingle.design import TrialPlan, off_all
from conform_app.glmsingle.options import GLMsingleOptions
from conform_app.glmsingle.xval import Badness

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


@dataclass(eq=False)
class Library:
    """Results of the first pass (names as in `TypeA`, `TypeB`)."""

    valid: np.ndarray
    mean_vol: np.ndarray
    n_nonfinite: int
    n_constant: int
    n_zero_mean: int
    onoff_betas: np.ndarray
    onoff_r2: np.ndarray
    assumed_betas: np.ndarray | None
    betas: np.ndarray | None
    fit_hrf_r2: np.ndarray
    fit_hrf_r2_run: np.ndarray
    hrf_index: np.ndarray
    hrf_index_run: np.ndarray
    r2: np.ndarray
    r2_run: np.ndarray


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


def _scan(problem: Problem, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Which voxels of a block are finite and vary in each run; their means; the block itself."""
    finite, varies = np.ones(hi - lo, bool), np.ones(hi - lo, bool)
    total, block = np.zeros(hi - lo), []
    for r in problem.runs:
        y = problem.series.read(r, lo, hi)
        good = np.isfinite(y).all(axis=1)
        y[~good] = 0
        top, bottom = y.max(axis=1), y.min(axis=1)
        # Interpolating a constant leaves rounding behind, which is no signal.
        varies &= (top - bottom) > 1e-6 * np.maximum(np.abs(top), np.abs(bottom))
        finite &= good
        total += y.sum(axis=1, dtype=np.float64)
        block.append(y)
    return finite, varies, (total / sum(problem.plan.n_volumes)).astype(np.float32), block


def library_pass(problem: Problem, extra: list[np.ndarray]) -> Library:
    """First pass: types A and B.  Betas come in the data's unit."""
    n, n_trials, n_runs, n_hrfs = (
        problem.series.n_voxels,
        problem.plan.n_trials,
        problem.plan.n_runs,
        problem.n_hrfs,
    )
    options, keep = problem.options, problem.options.keep
    factors = problem.factors(extra, range(n_hrfs))
    onoff = _OnOff(problem, extra)
    assumed = [
        fit.to_run(fac.least_squares(problem.assumed[r], problem.poly[r], extra[r]), problem.device)
        for r in problem.runs
    ]
    separate = _separate(problem, extra) if options.wantlss else None
    out = Library(
        valid=np.zeros(n, bool),
        mean_vol=problem.empty(),
        n_nonfinite=0,
        n_constant=0,
        n_zero_mean=0,
        onoff_betas=problem.empty(1),
        onoff_r2=np.full(n, np.nan),
        assumed_betas=problem.empty(n_trials) if "A" in keep else None,
        betas=problem.empty(n_trials) if "B" in keep else None,
        fit_hrf_r2=problem.empty(n_hrfs),
        fit_hrf_r2_run=problem.empty(n_runs, n_hrfs),
        hrf_index=np.full(n, -1, np.int32),
        hrf_index_run=np.full((n, n_runs), -1, np.int32),
        r2=problem.empty(),
        r2_run=problem.empty(n_runs),
    )
    percent = options.wantpercentbold
    for lo, hi in problem.walk("HRFs"):
        finite, varies, mean, block = _scan(problem, lo, hi)
        nonzero = (mean != 0) | (not percent)
        good = finite if options.reference else finite & varies & nonzero
        out.n_nonfinite += int((~finite).sum())
        out.n_constant += int((finite & ~varies).sum())
        out.n_zero_mean += int((finite & varies & ~nonzero).sum())
        out.mean_vol[lo:hi] = np.where(finite, mean, np.nan)
        out.valid[lo:hi] = good
        rows = np.flatnonzero(good)
        if not rows.size:
            continue
        ys = [fit.detrend(block.pop(0)[rows], problem.poly_t[r]) for r in problem.runs]
        at = lo + rows
        energies = [fit.energy(y) for y in ys]
        beta, r2 = onoff.fit(ys, energies)
        out.onoff_betas[at, 0], out.onoff_r2[at] = beta.cpu().numpy(), r2.cpu().numpy()
        if out.assumed_betas is not None:
            out.assumed_betas[at] = _all_runs(problem, ys, assumed).cpu().numpy()
        _best_hrf(problem, out, at, ys, energies, factors, separate)
    return out


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


def _all_runs(problem: Problem, ys: list[torch.Tensor], runs: list[fit.Run]) -> torch.Tensor:
    """Least-squares betas of all runs: (V, n_trials)."""
    out = torch.empty((len(ys[0]), problem.plan.n_trials), device=problem.device)
    for y, run, trials in zip(ys, runs, problem.plan.slices(), strict=True):
        fit.least_squares(y, run, out[:, trials])
    return out


def _best_hrf(problem: Problem, out: Library, at, ys, energies, factors, separate) -> None:
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
    if out.betas is None:
        return
    for h in torch.unique(best).tolist():
        rows = torch.nonzero(best == h)[:, 0]
        group = [y[rows] for y in ys]
        if separate is None:
            betas = _all_runs(problem, group, [factors[r, h] for r in problem.runs])
        else:
            betas = torch.cat([y @ separate[r, h] for r, y in enumerate(group)], dim=1)
        out.betas[at[rows.cpu().numpy()]] = betas.cpu().numpy()


def pool_pass(problem: Problem, pool: np.ndarray) -> list[np.ndarray]:
    """Second pass: Gram matrices (n_volumes, n_volumes) float64 of the pool's unit-length series, per run."""
    grams = [torch.zeros((n, n), dtype=torch.float64, device=problem.device) for n in problem.plan.n_volumes]
    for lo, hi in problem.walk("noise pool"):
        rows = np.flatnonzero(pool[lo:hi])
        for r in problem.runs if rows.size else ():
            y = problem.series_of(r, lo, hi, rows).to(torch.float64)
            length = torch.linalg.vector_norm(y, dim=1, keepdim=True)
            y = y / torch.where(length > 0, length, 1.0)
            grams[r].addmm_(y.T, y)
    return [g.cpu().numpy() for g in grams]


def nuisance(problem: Problem, pcs: list[np.ndarray], n_pcs: int) -> list[np.ndarray]:
    """The user's regressors and the first noise regressors of each run, orthonormal in this order."""
    return [
        off_all([problem.extra[r], pcs[r][:, :n_pcs].astype(np.float64)], problem.poly[r]) for r in problem.runs
    ]


def _by_hrf(index: np.ndarray) -> tuple[np.ndarray, list[tuple[int, slice]]]:
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


def number_pass(problem: Problem, index: np.ndarray, pcs: list[np.ndarray], badness: Badness) -> np.ndarray:
    """Third pass: badness for 0, 1, ... noise regressors, (n_voxels, n_pcs + 1) float32."""
    n_pcs = pcs[0].shape[1]
    z = nuisance(problem, pcs, n_pcs)
    n_extra = [e.shape[1] for e in problem.extra]
    # The reference leaves the user's regressors out of the fit without noise regressors.
    first = [0] * len(z) if problem.options.reference else n_extra
    factors = problem.factors(z, np.unique(index[index >= 0]))
    slices = problem.plan.slices()
    out = problem.empty(n_pcs + 1)
    for lo, hi in problem.walk("noise regressors"):
        order, groups = _by_hrf(index[lo:hi])
        if not order.size:
            continue
        betas = torch.empty((order.size, problem.plan.n_trials), device=problem.device)
        along = []
        for r in problem.runs:
            y = problem.series_of(r, lo, hi, order)
            along.append(torch.empty((order.size, z[r].shape[1]), device=problem.device))
            for h, rows in groups:
                along[r][rows] = fit.ladder_start(y[rows], factors[r, h], first[r], betas[rows, slices[r]])
        bad = torch.empty((order.size, n_pcs + 1), dtype=torch.float64, device=problem.device)
        for h, rows in groups:
            b = betas[rows]
            standard = badness.standardise(b)
            bad[rows, 0] = badness(b, standard)
            for k in range(1, n_pcs + 1):
                for r in problem.runs:
                    used = slice(first[r] if k == 1 else n_extra[r] + k - 1, n_extra[r] + k)
                    b[:, slices[r]].addmm_(along[r][rows, used], factors[r, h].ladder[used], alpha=-1)
                bad[rows, k] = badness(b, standard)
        out[lo + order] = bad.cpu().numpy()
    return out


@dataclass(eq=False)
class Regularised:
    """Results of the last pass (names as in `TypeC`, `TypeD`); betas in the data's unit."""

    betas_c: np.ndarray | None
    r2_c: np.ndarray
    r2_run_c: np.ndarray
    betas_d: np.ndarray | None
    r2_d: np.ndarray
    r2_run_d: np.ndarray
    frac_value: np.ndarray
    rr_badness: np.ndarray | None
    scale_offset: np.ndarray | None


class _RidgeBank:
    """Rotations of every (run, HRF), and each HRF's singular values and penalties."""

    def __init__(self, problem: Problem, z: list[np.ndarray], hrfs) -> None:
        self.trials = problem.plan.slices()
        self.by_hrf = {}
        for h in hrfs:
            parts = [fac.ridge(problem.library[r][:, :, h], problem.poly[r], z[r]) for r in problem.runs]
            s = np.concatenate([p.s for p in parts])
            ends = np.cumsum([0] + [p.s.size for p in parts]).tolist()
            columns = tuple(slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True))
            put = lambda a: torch.as_tensor(a, dtype=torch.float64, device=problem.device)  # noqa: E731
            runs = tuple(fit.to_ridge(p, problem.device) for p in parts)
            self.by_hrf[h] = (put(s), put(ridge.alpha_grid(s)), runs, columns)

    def rotated(self, h: int, c: torch.Tensor) -> fit.Rotated:
        s, grid, runs, columns = self.by_hrf[h]
        return fit.Rotated(c[:, : s.numel()], s, grid, runs, columns, self.trials)


def ridge_pass(
    problem: Problem, index: np.ndarray, z: list[np.ndarray], badness: Badness, fracs: tuple[float, ...] | None
) -> Regularised:
    """Last pass: betas with nuisance ``z`` (C) and, if ``fracs`` is given, fractional ridge (D)."""
    options, n_runs, n_trials = problem.options, problem.plan.n_runs, problem.plan.n_trials
    want_c, want_d = options.wantglmdenoise and "C" in options.keep, fracs is not None and "D" in options.keep
    several = fracs is not None and len(fracs) > 1
    scale = options.wantautoscale and fracs is not None and tuple(fracs) != (1.0,)
    out = Regularised(
        betas_c=problem.empty(n_trials) if want_c else None,
        r2_c=problem.empty(),
        r2_run_c=problem.empty(n_runs),
        betas_d=problem.empty(n_trials) if want_d else None,
        r2_d=problem.empty(),
        r2_run_d=problem.empty(n_runs),
        frac_value=problem.empty(),
        rr_badness=problem.empty(len(fracs)) if several else None,
        scale_offset=problem.empty(2) if scale else None,
    )
    hrfs = np.unique(index[index >= 0])
    bank = _RidgeBank(problem, z, hrfs)
    none = [np.zeros((n, 0)) for n in problem.plan.n_volumes]
    plain = problem.factors(none, hrfs)
    usable = torch.as_tensor(np.flatnonzero(problem.usable), device=problem.device)
    for lo, hi in problem.walk("ridge" if fracs is not None else "denoising"):
        order, groups = _by_hrf(index[lo:hi])
        if order.size:
            _ridge_block(problem, out, bank, plain, badness, fracs, usable, lo, hi, order, groups)
    return out


def _ridge_block(problem, out, bank, plain, badness, fracs, usable, lo, hi, order, groups) -> None:
    """One block of `ridge_pass`."""
    device, at = problem.device, lo + order
    size = (order.size, problem.plan.n_trials)
    c = torch.zeros(size, device=device)
    fits = torch.zeros(size, device=device)  # U'y of the plain designs, for R2
    energies = torch.empty((order.size, problem.plan.n_runs), dtype=torch.float64, device=device)
    slices = problem.plan.slices()
    for r in problem.runs:
        y = problem.series_of(r, lo, hi, order)
        energies[:, r] = fit.energy(y)
        for h, rows in groups:
            columns = bank.by_hrf[h][3][r]
            c[rows, columns] = y[rows] @ bank.by_hrf[h][2][r].rotate
            rank = plain[r, h].back.shape[0]
            fits[rows, slices[r].start : slices[r].start + rank] = y[rows] @ plain[r, h].basis
    full, chosen = torch.empty(size, device=device), torch.empty(size, device=device) if fracs else None
    r2_c, r2_d = torch.empty_like(energies), torch.empty_like(energies)
    for h, rows in groups:
        rotated = bank.rotated(h, c[rows])
        b0 = fit.betas_at(rotated, None, full[rows])
        r2_c[rows] = _left(problem, plain, h, b0, fits[rows], energies[rows])
        if fracs is None:
            continue
        best = _fractions(out, rotated, b0, badness, fracs, at[rows])
        ridge_betas = fit.betas_at(rotated, best, chosen[rows])
        r2_d[rows] = _left(problem, plain, h, ridge_betas, fits[rows], energies[rows])
        if out.scale_offset is not None:
            line = ridge.autoscale(ridge_betas, b0, usable).to(torch.float32)
            out.scale_offset[at[rows]] = line.cpu().numpy()
            ridge_betas.mul_(line[:, :1]).add_(line[:, 1:])
    out.r2_c[at], out.r2_run_c[at] = _r2s(r2_c, energies)
    if out.betas_c is not None:
        out.betas_c[at] = full.cpu().numpy()
    if fracs is not None:
        out.r2_d[at], out.r2_run_d[at] = _r2s(r2_d, energies)
        if out.betas_d is not None:
            out.betas_d[at] = chosen.cpu().numpy()


def _left(problem, plain, h: int, betas, fits, energies) -> torch.Tensor:
    """Sum of squares left by betas in each run: (V, n_runs)."""
    left = []
    for r, trials in zip(problem.runs, problem.plan.slices(), strict=True):
        p = fits[:, trials.start : trials.start + plain[r, h].back.shape[0]]
        left.append(energies[:, r] - fit.energy(p) + fit.energy(betas[:, trials] @ plain[r, h].forth - p))
    return torch.stack(left, dim=1)


def _r2s(left: torch.Tensor, energies: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    whole = fit.r2(left.sum(dim=1), energies.sum(dim=1))
    return whole.cpu().numpy(), fit.r2(left, energies).cpu().numpy()


def _fractions(out: Regularised, rotated: fit.Rotated, b0, badness: Badness, fracs, at) -> torch.Tensor:
    """Penalty of the best fraction of each voxel, (V,); fills badness and fraction in ``out``."""
    wanted = torch.as_tensor(fracs, dtype=torch.float64, device=b0.device)
    alphas = fit.penalties(rotated, wanted)
    if len(fracs) == 1:
        out.frac_value[at] = fracs[0]
        return alphas[:, 0]
    standard, trial = badness.standardise(b0), torch.empty_like(b0)
    bad = torch.empty_like(alphas)
    for f, frac in enumerate(fracs):
        betas = b0 if frac == 1 else fit.betas_at(rotated, alphas[:, f], trial)
        bad[:, f] = badness(betas, standard)
    best = bad.argmin(dim=1)
    out.rr_badness[at] = bad.cpu().numpy()
    out.frac_value[at] = wanted[best].cpu().numpy()
    return alphas.gather(1, best[:, None])[:, 0]
