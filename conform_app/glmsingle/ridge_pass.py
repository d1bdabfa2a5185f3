# SPDX-License-Identifier: Apache-2.0
"""Last pass: betas with the chosen noise regressors (C), and the best ridge fraction per voxel (D).

Both come from one rotation of the data per run and HRF.  Betas of a fraction exist only for the voxels of the
innermost block, one fraction at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from conform_app.glmsingle import factor as fac
from conform_app.glmsingle import fit, ridge
from conform_app.glmsingle.problem import Problem, by_hrf
from conform_app.glmsingle.uncertainty import Spread
from conform_app.glmsingle.xval import Badness


@dataclass(eq=False)
class Regularised:
    """Results of the last pass (names as in `TypeC`, `TypeD`).

    ``noise`` is the residual standard deviation in the data's unit, ``penalty`` that of the chosen fraction,
    ``spreads`` what the standard errors of each HRF's voxels share.
    """

    betas_c: Any
    r2_c: np.ndarray
    r2_run_c: np.ndarray
    betas_d: Any
    r2_d: np.ndarray
    r2_run_d: np.ndarray
    frac_value: np.ndarray
    rr_badness: np.ndarray | None
    scale_offset: np.ndarray | None
    noise: np.ndarray
    penalty: np.ndarray
    spreads: dict[int, Spread]


class _RidgeBank:
    """Rotations of every (run, HRF), and each HRF's singular values and penalties."""

    def __init__(self, problem: Problem, z: list[np.ndarray], hrfs) -> None:
        self.trials = problem.plan.slices()
        self.by_hrf, self.spreads = {}, {}
        put = lambda a: torch.as_tensor(a, dtype=torch.float64, device=problem.device)  # noqa: E731

        def factor(h: int) -> list[fac.Ridge]:
            return [fac.ridge(problem.library[r][:, :, h], problem.poly[r], z[r]) for r in problem.runs]

        hrfs = [int(h) for h in hrfs]
        for h, parts in zip(hrfs, problem.parallel(factor, hrfs), strict=True):
            s = np.concatenate([p.s for p in parts])
            ends = np.cumsum([0] + [p.s.size for p in parts]).tolist()
            columns = tuple(slice(a, b) for a, b in pairwise(ends))
            runs = tuple(fit.to_ridge(p, problem.device) for p in parts)
            self.by_hrf[h] = (put(s), put(ridge.alpha_grid(s)), runs, columns)
            self.spreads[h] = Spread(
                tuple(np.square(p.V).astype(np.float32) for p in parts), tuple(p.s**2 for p in parts)
            )

    def rotated(self, h: int, c: torch.Tensor) -> fit.Rotated:
        s, grid, runs, columns = self.by_hrf[h]
        return fit.Rotated(c[:, : s.numel()], s, grid, runs, columns, self.trials)


def ridge_pass(
    problem: Problem,
    index: np.ndarray,
    mean_vol: np.ndarray,
    z: list[np.ndarray],
    badness: Badness,
    fracs: tuple[float, ...] | None,
) -> Regularised:
    """Last pass: betas with nuisance ``z`` (C) and, if ``fracs`` is given, fractional ridge (D)."""
    options, n_runs = problem.options, problem.plan.n_runs
    several = fracs is not None and len(fracs) > 1
    scale = options.wantautoscale and fracs is not None and tuple(fracs) != (1.0,)
    hrfs = np.unique(index[index >= 0])
    bank = _RidgeBank(problem, z, hrfs)
    out = Regularised(
        betas_c=problem.betas_array("C") if options.wantglmdenoise else None,
        r2_c=problem.empty(),
        r2_run_c=problem.empty(n_runs),
        betas_d=problem.betas_array("D") if fracs is not None else None,
        r2_d=problem.empty(),
        r2_run_d=problem.empty(n_runs),
        frac_value=problem.empty(),
        rr_badness=problem.empty(len(fracs)) if several else None,
        scale_offset=problem.empty(2) if scale else None,
        noise=problem.empty(),
        penalty=problem.empty(),
        spreads=bank.spreads,
    )
    put = lambda a: torch.as_tensor(a, dtype=torch.float32, device=problem.device)  # noqa: E731
    step = _Step(
        problem=problem,
        out=out,
        index=index,
        mean_vol=mean_vol,
        bank=bank,
        plain=problem.factors([np.zeros((n, 0)) for n in problem.plan.n_volumes], hrfs),
        nuisance=[put(one) for one in z],
        n_nuisance=sum(int(one.any(axis=0).sum()) for one in z),
        badness=badness,
        fracs=fracs,
        usable=torch.as_tensor(np.flatnonzero(problem.usable), device=problem.device),
    )
    for _ in problem.each("ridge" if fracs is not None else "denoising", step.block):
        pass
    return out


@dataclass(eq=False)
class _Step:
    """What is done to one block of voxels."""

    problem: Problem
    out: Regularised
    index: np.ndarray
    mean_vol: np.ndarray
    bank: _RidgeBank
    plain: dict[tuple[int, int], fit.Run]  # designs without nuisance, for R2
    nuisance: list[torch.Tensor]
    n_nuisance: int
    badness: Badness
    fracs: tuple[float, ...] | None
    usable: torch.Tensor

    def block(self, lo: int, hi: int) -> None:
        """Betas, R2 and choices of the voxels lo to hi."""
        problem, out = self.problem, self.out
        order, groups = by_hrf(self.index[lo:hi])
        at, gain = lo + order, problem.gain(self.mean_vol[lo:hi], late=True)
        c, fits, energies, left = self._project(lo, hi, order, groups)
        full, chosen = torch.empty_like(c), torch.empty_like(c) if self.fracs else None
        left_c, left_d = torch.empty_like(energies), torch.empty_like(energies)
        for h, rows in groups:
            rotated = self.bank.rotated(h, c[rows])
            out.noise[at[rows]] = problem.noise_sd(left[rows], rotated.s.numel() + self.n_nuisance)
            b0 = fit.betas_at(rotated, None, full[rows])
            left_c[rows] = self._left(h, b0, fits[rows], energies[rows])
            if self.fracs is None:
                continue
            alpha = self._best_alpha(rotated, b0, at[rows])
            out.penalty[at[rows]] = alpha.cpu().numpy()
            betas = fit.betas_at(rotated, alpha, chosen[rows])
            left_d[rows] = self._left(h, betas, fits[rows], energies[rows])
            if out.scale_offset is not None:
                line = ridge.autoscale(betas, b0, self.usable).to(torch.float32)
                out.scale_offset[at[rows]] = line.cpu().numpy()
                betas.mul_(line[:, :1]).add_(line[:, 1:])
        out.r2_c[at], out.r2_run_c[at] = _r2s(left_c, energies)
        if out.betas_c is not None:
            problem.put_betas(out.betas_c, lo, hi, order, full.cpu().numpy(), gain)
        if self.fracs is not None:
            out.r2_d[at], out.r2_run_d[at] = _r2s(left_d, energies)
            if out.betas_d is not None:
                problem.put_betas(out.betas_d, lo, hi, order, chosen.cpu().numpy(), gain)

    def _project(self, lo, hi, order, groups) -> tuple[torch.Tensor, ...]:
        """Rotated coefficients and U'y of the plain designs (V, N), energies (V, n_runs), residual (V,)."""
        problem, device = self.problem, self.problem.device
        c = torch.zeros((order.size, problem.plan.n_trials), device=device)
        fits = torch.zeros_like(c)
        energies = torch.empty((order.size, problem.plan.n_runs), dtype=torch.float64, device=device)
        left = torch.zeros(order.size, dtype=torch.float64, device=device)
        for r, trials in zip(problem.runs, problem.plan.slices(), strict=True):
            y = problem.series_of(r, lo, hi, order)
            energies[:, r] = fit.energy(y)
            left += energies[:, r] - fit.energy(y @ self.nuisance[r])
            for h, rows in groups:
                s, _, runs, columns = self.bank.by_hrf[h]
                c[rows, columns[r]] = y[rows] @ runs[r].rotate
                left[rows] -= fit.energy(c[rows, columns[r]] * s[columns[r]].to(torch.float32))
                basis = self.plain[r, h].basis
                fits[rows, trials.start : trials.start + basis.shape[1]] = y[rows] @ basis
        return c, fits, energies, left

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
