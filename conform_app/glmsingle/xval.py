# SPDX-License-Identifier: Apache-2.0
"""Cross-validated badness: how far betas fitted one way lie from held-out betas of the same condition.

For settings j = 0, 1, ... of one hyperparameter (0: the unregularised one) with betas B_j, and per session
the mean mu and standard deviation sd of B_0, let z_j = (B_j - mu) / sd.  Over folds, held-out trials t and
training trials i of the same condition,

    badness_j = sum (z_j[i] - z_0[t])^2
              = sum_i a_i z_j[i]^2 - 2 sum_i z_j[i] (M z_0)[i] + sum_t c_t z_0[t]^2,

with M[i, t] the number of folds in which (i, t) is such a pair, a and c its row and column sums.  M depends
on the design only and is sparse; no pair is ever visited voxel by voxel.

dtype: betas float32; sums over trials float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


def pair_matrix(condition: np.ndarray, run: np.ndarray, folds: Sequence[Sequence[int]], usable: np.ndarray):
    """M as a scipy CSR array (n_trials, n_trials); trials that are not ``usable`` pair with none."""
    from scipy.sparse import coo_array

    held = np.stack([np.isin(run, fold) for fold in folds], axis=1).astype(np.float32)
    rows, cols, counts = [], [], []
    for c in np.unique(condition):
        at = np.flatnonzero((condition == c) & usable)
        pairs = (1 - held[at]) @ held[at].T
        i, t = np.nonzero(pairs)
        rows.append(at[i])
        cols.append(at[t])
        counts.append(pairs[i, t])
    shape = (condition.size, condition.size)
    if not rows:
        return coo_array(shape, dtype=np.float32).tocsr()
    return coo_array(
        (np.concatenate(counts), (np.concatenate(rows), np.concatenate(cols))), shape=shape
    ).tocsr()


class Standard(NamedTuple):
    """What badness needs of the unregularised betas; V voxels, S sessions."""

    mean: torch.Tensor  # (V, S)
    scale: torch.Tensor  # (V, S) 1 / sd
    partner: torch.Tensor  # (V, N) 2 M z_0
    constant: torch.Tensor  # (V,) sum c z_0^2


class Badness:
    """Badness of betas for one design.

    Parameters
    ----------
    condition, run : (n_trials,) int
    folds : sequence of sequences of int
        Runs held out together.
    session : (n_trials,) int
        Any labels.
    usable : (n_trials,) bool
        Trials that count.
    device : str or torch.device
    """

    def __init__(self, condition, run, folds, session, usable, device) -> None:
        pairs = pair_matrix(condition, run, folds, usable)
        self.n_pairs = float(pairs.sum())
        _, which = np.unique(session, return_inverse=True)
        self._groups = [
            torch.as_tensor(np.flatnonzero((which == s) & usable), device=device)
            for s in range(which.max() + 1)
        ]
        self._one_session = len(self._groups) == 1
        self._which = torch.as_tensor(which, device=device)
        self._rows = torch.as_tensor(pairs.sum(axis=1).astype(np.float32), device=device)
        self._cols = torch.as_tensor(pairs.sum(axis=0).astype(np.float32), device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR layout a beta
            self._pairs = torch.sparse_csr_tensor(
                torch.as_tensor(pairs.indptr.astype(np.int64)),
                torch.as_tensor(pairs.indices.astype(np.int64)),
                torch.as_tensor(pairs.data.astype(np.float32)),
                size=pairs.shape,
            ).to(device)

    def _z(self, betas, mean, scale):
        if self._one_session:
            return (betas - mean) * scale
        return (betas - mean[:, self._which]) * scale[:, self._which]

    def standardise(self, betas: torch.Tensor) -> Standard:
        """Means, scales and partners' sums from unregularised betas (V, N)."""
        means, scales = [], []
        for group in self._groups:
            if group.numel() < 2:  # nothing to standardise with
                means.append(betas.new_zeros((len(betas), 1)))
                scales.append(betas.new_ones((len(betas), 1)))
                continue
            own = betas if group.numel() == betas.shape[1] else betas[:, group]
            mean = own.mean(dim=1, keepdim=True, dtype=torch.float64)
            sd = (own - mean).square().sum(dim=1, keepdim=True).div(own.shape[1] - 1).sqrt()
            # Betas that do not vary (up to float32) have nothing to be scaled by.
            flat = sd <= 1e-6 * mean.abs()
            means.append(mean.to(betas.dtype))
            scales.append((1 / torch.where(flat, 1.0, sd)).to(betas.dtype))
        mean, scale = torch.cat(means, dim=1), torch.cat(scales, dim=1)
        z = self._z(betas, mean, scale)
        partner = 2 * torch.sparse.mm(self._pairs, z.T.contiguous()).T.contiguous()
        constant = (z.square() * self._cols).sum(dim=1, dtype=torch.float64)
        return Standard(mean, scale, partner, constant)

    def __call__(self, betas: torch.Tensor, standard: Standard) -> torch.Tensor:
        """Badness of betas (V, N): (V,) float64."""
        z = self._z(betas, standard.mean, standard.scale)
        return ((z * self._rows - standard.partner) * z).sum(dim=1, dtype=torch.float64) + standard.constant
