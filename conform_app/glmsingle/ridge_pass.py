# SPDX-License-Identifier: Apache-2.0
"""Last pass: betas with the chosen noise regressors (C), and the best ridge fraction per voxel (D).

Both come from one rotation of the data per run and HRF.  Betas of a fraction exist only for the voxels of the
innermost block, one fraction at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from conform_app.glmsingle import factor as fac
from conform_app.glmsingle import fit, ridge
from conform_app.glmsingle.problem import Problem, by_hrf
from conform_app.glmsingle.xval import Badness


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
            columns = tuple(slice(a, b) for a, b in pairwise(ends))
            put = lambda a: torch.as_tensor(a, dtype=torch.float64, device=problem.device)  # noqa: E731
            runs = tuple(fit.to_ridge(p, problem.device) for p in parts)
            self.by_hrf[h] = (put(s), put(ridge.alpha_grid(s)), runs, columns)

    def rotated(self, h: int, c: torch.Tensor) -> fit.Rotated:
        s, grid, runs, columns = self.by_hrf[h]
        return fit.Rotated(c[:, : s.numel()], s, grid, runs, columns, self.trials)


def ridge_pass(
    problem: Problem,
    index: np.ndarray,
    z: list[np.ndarray],
    badness: Badness,
    fracs: tuple[float, ...] | None,
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
    step = _Step(
        problem=problem,
        out=out,
        bank=_RidgeBank(problem, z, hrfs),
        plain=problem.factors([np.zeros((n, 0)) for n in problem.plan.n_volumes], hrfs),
        badness=badness,
        fracs=fracs,
        usable=torch.as_tensor(np.flatnonzero(problem.usable), device=problem.device),
    )
    for lo, hi in problem.walk("ridge" if fracs is not None else "denoising"):
        order, groups = by_hrf(index[lo:hi])
        if order.size:
            step.block(lo, hi, order, groups)
    return out


@dataclass(eq=False)
class _Step:
    """What is done to one block of voxels."""

    problem: Problem
    out: Regularised
    bank: _RidgeBank
    plain: dict[tuple[int, int], fit.Run]  # designs without nuisance, for R2
    badness: Badness
    fracs: tuple[float, ...] | None
    usable: torch.Tensor

    def block(self, lo: int, hi: int, order: np.ndarray, groups: list[tuple[int, slice]]) -> None:
        """Betas, R2 and choices of the voxels ``lo + order``, whose HRFs are given by ``groups``."""
        out, at = self.out, lo + order
        c, fits, energies = self._project(lo, hi, order, groups)
        full, chosen = torch.empty_like(c), torch.empty_like(c) if self.fracs else None
        left_c, left_d = torch.empty_like(energies), torch.empty_like(energies)
        for h, rows in groups:
            rotated = self.bank.rotated(h, c[rows])
            b0 = fit.betas_at(rotated, None, full[rows])
            left_c[rows] = self._left(h, b0, fits[rows], energies[rows])
            if self.fracs is None:
                continue
            alpha = self._best_alpha(rotated, b0, at[rows])
            betas = fit.betas_at(rotated, alpha, chosen[rows])
            left_d[rows] = self._left(h, betas, fits[rows], energies[rows])
            if out.scale_offset is not None:
                line = ridge.autoscale(betas, b0, self.usable).to(torch.float32)
                out.scale_offset[at[rows]] = line.cpu().numpy()
                betas.mul_(line[:, :1]).add_(line[:, 1:])
        out.r2_c[at], out.r2_run_c[at] = _r2s(left_c, energies)
        if out.betas_c is not None:
            out.betas_c[at] = full.cpu().numpy()
        if self.fracs is not None:
            out.r2_d[at], out.r2_run_d[at] = _r2s(left_d, energies)
            if out.betas_d is not None:
                out.betas_d[at] = chosen.cpu().numpy()

    def _project(self, lo, hi, order, groups) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated coefficients (V, N), U'y of the plain designs (V, N), energies (V, n_runs)."""
        problem, device = self.problem, self.problem.device
        c = torch.zeros((order.size, problem.plan.n_trials), device=device)
        fits = torch.zeros_like(c)
        energies = torch.empty((order.size, problem.plan.n_runs), dtype=torch.float64, device=device)
        for r, trials in zip(problem.runs, problem.plan.slices(), strict=True):
            y = problem.series_of(r, lo, hi, order)
            energies[:, r] = fit.energy(y)
            for h, rows in groups:
                _, _, runs, columns = self.bank.by_hrf[h]
                c[rows, columns[r]] = y[rows] @ runs[r].rotate
                basis = self.plain[r, h].basis
                fits[rows, trials.start : trials.start + basis.shape[1]] = y[rows] @ basis
        return c, fits, energies

    def _left(self, h: int, betas, fits, energies) -> torch.Tensor:
        """Sum of squares that betas leave in each run, |y|^2 - |U'y|^2 + |S V'b - U'y|^2: (V, n_runs)."""
        left = []
        for r, trials in zip(self.problem.runs, self.problem.plan.slices(), strict=True):
            run = self.plain[r, h]
            p = fits[:, trials.start : trials.start + run.basis.shape[1]]
            left.append(energies[:, r] - fit.energy(p) + fit.energy(betas[:, trials] @ run.forth - p))
        return torch.stack(left, dim=1)

    def _best_alpha(self, rotated: fit.Rotated, b0: torch.Tensor, at: np.ndarray) -> torch.Tensor:
        """Penalty of the best fraction of each voxel, (V,); fills badness and fraction in the result."""
        out, fracs = self.out, self.fracs
        wanted = torch.as_tensor(fracs, dtype=torch.float64, device=b0.device)
        alphas = fit.penalties(rotated, wanted)
        if len(fracs) == 1:
            out.frac_value[at] = fracs[0]
            return alphas[:, 0]
        standard, trial = self.badness.standardise(b0), torch.empty_like(b0)
        bad = torch.empty_like(alphas)
        for f, frac in enumerate(fracs):
            betas = b0 if frac == 1 else fit.betas_at(rotated, alphas[:, f], trial)
            bad[:, f] = self.badness(betas, standard)
        best = bad.argmin(dim=1)
        out.rr_badness[at] = bad.cpu().numpy()
        out.frac_value[at] = wanted[best].cpu().numpy()
        return alphas.gather(1, best[:, None])[:, 0]


def _r2s(left: torch.Tensor, energies: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    whole = fit.r2(left.sum(dim=1), energies.sum(dim=1))
    return whole.cpu().numpy(), fit.r2(left, energies).cpu().numpy()
