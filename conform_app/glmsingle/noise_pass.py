# SPDX-License-Identifier: Apache-2.0
"""Passes for the noise regressors: Gram matrices of the pool, then the badness of each number of them."""

from __future__ import annotations

import numpy as np
import torch

from conform_app.glmsingle import fit
from conform_app.glmsingle.design import off_all
from conform_app.glmsingle.problem import Problem, by_hrf
from conform_app.glmsingle.xval import Badness


def pool_pass(problem: Problem, pool: np.ndarray) -> list[np.ndarray]:
    """Second pass: Gram matrices (n_volumes, n_volumes) float64 of the pool's unit-length series, per run."""
    grams = [torch.zeros((n, n), dtype=torch.float64, device=problem.device) for n in problem.plan.n_volumes]

    def part(lo: int, hi: int) -> list[torch.Tensor]:
        rows, out = np.flatnonzero(pool[lo:hi]), []
        for r in problem.runs if rows.size else ():
            y = problem.series_of(r, lo, hi, rows).to(torch.float64)
            length = torch.linalg.vector_norm(y, dim=1, keepdim=True)
            y = y / torch.where(length > 0, length, 1.0)
            out.append(y.T @ y)
        return out

    for found in problem.each("noise pool", part):
        for gram, one in zip(grams, found, strict=False):
            gram += one
    return [g.cpu().numpy() for g in grams]


def nuisance(problem: Problem, pcs: list[np.ndarray], n_pcs: int) -> list[np.ndarray]:
    """The user's regressors and the first noise regressors of each run, orthonormal in this order."""
    return [
        off_all([problem.extra[r], pcs[r][:, :n_pcs].astype(np.float64)], problem.poly[r])
        for r in problem.runs
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

    def block(lo: int, hi: int) -> None:
        order, groups = by_hrf(index[lo:hi])
        if not order.size:
            return
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

    for _ in problem.each("noise regressors", block):
        pass
    return out
