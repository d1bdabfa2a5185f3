# SPDX-License-Identifier: Apache-2.0
"""Voxel kernels: what is done to a block of voxels, given the designs' factorisations.

y is (V, n_volumes) of one run, drifts removed.  Everything is a product of y with fixed matrices of
`conform_app.glmsingle.factor`, one pair of matrix products per run and HRF.

dtype: time series and betas float32; sums of squares float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from conform_app.glmsingle import factor as fac
from conform_app.glmsingle.ridge import alphas_of, shrinkage


class Run(NamedTuple):
    """A run's least-squares factors on the device; r the rank, k nuisance columns."""

    basis: torch.Tensor  # (T, r + k): [U, E]
    back: torch.Tensor  # (r, N): transposed
    forth: torch.Tensor  # (N, r): transposed
    ladder: torch.Tensor  # (k, N): A transposed
    loss: torch.Tensor  # (k, r): (S V' A) transposed
    rank: int  # dimensions of trials and nuisance together
    variance: np.ndarray  # (N,) of each beta, for noise of variance 1


class RidgeRun(NamedTuple):
    """A run's ridge rotation on the device."""

    rotate: torch.Tensor  # (T, r): U / s
    back: torch.Tensor  # (r, N): V transposed


def to_run(f: fac.LeastSquares, device) -> Run:
    """Move factors to the device as float32."""
    put = lambda a: torch.as_tensor(np.ascontiguousarray(a, dtype=np.float32), device=device)  # noqa: E731
    return Run(
        basis=put(np.hstack([f.U, f.E])),
        back=put(f.back.T),
        forth=put(f.forth.T),
        ladder=put(f.A.T),
        loss=put((f.forth @ f.A).T),
        rank=f.U.shape[1] + int(f.E.any(axis=0).sum()),
        variance=np.square(f.back).sum(axis=1) + np.square(f.A).sum(axis=1),
    )


def to_ridge(f: fac.Ridge, device) -> RidgeRun:
    """Move a rotation to the device as float32."""
    put = lambda a: torch.as_tensor(np.ascontiguousarray(a, dtype=np.float32), device=device)  # noqa: E731
    return RidgeRun(put(f.U / f.s), put(f.V.T))


def detrend(y: np.ndarray, poly: torch.Tensor) -> torch.Tensor:
    """Move a run to the device and remove mean and drifts (poly: orthonormal (T, p) float32)."""
    y = torch.from_numpy(y).to(poly.device)
    y = y - y.mean(dim=1, keepdim=True, dtype=torch.float64).to(torch.float32)
    return y.addmm_(y @ poly, poly.T, alpha=-1)


def energy(y: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each row, float64."""
    return y.square().sum(dim=1, dtype=torch.float64)


def explained(y: torch.Tensor, run: Run) -> torch.Tensor:
    """Sum of squares that least squares explains (all nuisance columns in): (V,) float64."""
    p = y @ run.basis
    r = run.back.shape[0]
    out = energy(p[:, :r])
    return out - energy(p[:, r:] @ run.loss) if run.loss.shape[0] else out


def least_squares(y: torch.Tensor, run: Run, out: torch.Tensor) -> torch.Tensor:
    """Betas with all nuisance columns in, into ``out`` (V, N); returns |y|^2 of trials and nuisance, (V,)."""
    p = y @ run.basis
    r = run.back.shape[0]
    out.copy_(p[:, :r] @ run.back)
    if run.ladder.shape[0]:
        out.addmm_(p[:, r:], run.ladder, alpha=-1)
    return energy(p)


def ladder_start(y: torch.Tensor, run: Run, n_always: int, out: torch.Tensor) -> torch.Tensor:
    """Betas with the first ``n_always`` nuisance columns into ``out``; returns e'y of all columns (V, k)."""
    p = y @ run.basis
    r = run.back.shape[0]
    out.copy_(p[:, :r] @ run.back)
    if n_always:
        out.addmm_(p[:, r : r + n_always], run.ladder[:n_always], alpha=-1)
    return p[:, r:]


def r2(left: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Percent explained; NaN where there is nothing to explain."""
    return 100 * (1 - left / torch.where(total > 0, total, torch.nan))


class Rotated(NamedTuple):
    """Least-squares coefficients of voxels with one HRF in the rotated space of all runs, side by side."""

    c: torch.Tensor  # (V, R)
    s: torch.Tensor  # (R,) float64
    grid: torch.Tensor  # float64 penalties
    runs: tuple[RidgeRun, ...]
    columns: tuple[slice, ...]  # of each run among R
    trials: tuple[slice, ...]  # of each run among N


def betas_at(rotated: Rotated, alpha: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Ridge betas at one penalty per voxel (None: unregularised), into ``out`` (V, N)."""
    c = rotated.c if alpha is None else rotated.c * shrinkage(rotated.s, alpha)
    for run, columns, trials in zip(rotated.runs, rotated.columns, rotated.trials, strict=True):
        out[:, trials] = c[:, columns] @ run.back
    return out


def penalties(rotated: Rotated, fracs: torch.Tensor) -> torch.Tensor:
    """(V, F) penalty of each fraction, float64."""
    return alphas_of(rotated.c, rotated.s, fracs, rotated.grid)
