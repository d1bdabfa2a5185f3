# SPDX-License-Identifier: Apache-2.0
"""Fractional ridge regression (Rokem, Kay 2020, GigaScience 9:giaa133).

In the rotated space of the design's singular vectors the least-squares solution has coefficients c_i and
ridge with penalty alpha has c_i s_i^2 / (s_i^2 + alpha).  The fraction is the length of the ridge solution
divided by the length of the unregularised one; the alpha of a wanted fraction is found per voxel by linear
interpolation of log(1 + alpha) over a fixed grid, as the reference does: the grid, and thereby the slightly
inexact fraction, is part of the method.

The design is block diagonal over runs, so c and s of all runs are simply put side by side; only the length
joins them.  dtype: lengths and alphas float64, coefficients as given.
"""

from __future__ import annotations

import numpy as np
import torch

SMALL_BIAS, BIG_BIAS, STEP = 1e-2, 1e4, 0.2


def alpha_grid(s: np.ndarray) -> np.ndarray:
    """Penalties tried, ascending, from 0, for singular values ``s`` (zeros left out)."""
    s = s[s > 0]
    if s.size == 0:
        return np.zeros(1)
    low = np.floor(np.log10(SMALL_BIAS * s.min() ** 2))
    high = np.ceil(np.log10(BIG_BIAS * s.max() ** 2))
    return np.concatenate([[0.0], 10 ** np.arange(low, high, STEP)])


def alphas_of(c: torch.Tensor, s: torch.Tensor, fracs: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Penalty of each voxel for each fraction.

    Parameters
    ----------
    c : (V, N) tensor
        Rotated least-squares coefficients.
    s : (N,) float64 tensor
        Singular values.
    fracs : (F,) float64 tensor
    grid : (G,) float64 tensor
        Ascending penalties, the first 0.

    Returns
    -------
    (V, F) float64 tensor
        0 for voxels whose coefficients are all zero.
    """
    energy = s.square()
    shrink = (energy[:, None] / (energy[:, None] + grid)).square()  # (N, G)
    length = (c.to(torch.float64).square() @ shrink).sqrt()
    full = length[:, :1]
    ratio = torch.where(full > 0, length / torch.where(full > 0, full, 1.0), 1.0)
    x = ratio.flip(1).contiguous()  # ascending
    y = torch.log1p(grid).flip(0)
    want = fracs.expand(len(x), -1).contiguous()
    last = x.shape[1] - 1
    if last == 0:
        return torch.zeros_like(want)
    at = (torch.searchsorted(x, want, right=True) - 1).clamp(0, last - 1)
    x0, x1 = x.gather(1, at), x.gather(1, at + 1)
    y0, y1 = y[at], y[at + 1]
    gap = torch.where(x1 > x0, x1 - x0, 1.0)
    part = ((want - x0) / gap).clamp(0.0, 1.0)
    log = torch.where(want >= x[:, -1:], y[-1], y0 + (y1 - y0) * part)
    return torch.expm1(log)


def shrinkage(s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """(V, N) factors s^2 / (s^2 + alpha) for one penalty per voxel (V,), float32."""
    energy = s.square()
    return (energy / (energy + alpha[:, None])).to(torch.float32)


def autoscale(ridge: torch.Tensor, full: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """Slope and offset (V, 2) that bring ridge betas closest to full ones; (1, 0) if the slope is < 0.

    Only the ``usable`` trials (n,) count.
    """
    x, y = ridge[:, usable].to(torch.float64), full[:, usable].to(torch.float64)
    mx, my = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    var = (x - mx).square().sum(dim=1)
    slope = ((x - mx) * (y - my)).sum(dim=1) / torch.where(var > 0, var, 1.0)
    keep = (slope < 0) | (var <= 0)
    slope = torch.where(keep, 1.0, slope)
    offset = torch.where(keep, 0.0, (my - slope[:, None] * mx)[:, 0])
    return torch.stack([slope, offset], dim=1)
