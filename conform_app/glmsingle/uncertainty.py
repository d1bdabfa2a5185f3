# SPDX-License-Identifier: Apache-2.0
"""Standard errors of single-trial betas, worked out when they are asked for.

With white noise of standard deviation sigma after drifts and nuisance, and the design of one HRF factored as
Q X = U S V' (run by run), the covariance of the betas of one voxel is

    least squares   sigma^2 V S^-2 V'
    ridge           sigma^2 V (S^2 + alpha)^-1 V'      (posterior under the prior that ridge stands for,
                                                        betas ~ N(0, sigma^2 / alpha))

and its diagonal needs the squares of V only.  Everything but sigma, alpha and the scaling is shared by all
voxels with the same HRF, so that a matrix as large as the betas exists for the voxels asked for only.
sigma^2 is the residual sum of squares of the unregularised model over its degrees of freedom.  fMRI noise is
not quite white: take the values as relative precision between trials and voxels, and as a lower bound.

dtype: float64 inside, float32 out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Spread:
    """What the voxels of one HRF share, one entry per run.

    Attributes
    ----------
    V2 : tuple of (N_r, r) float64
        Squared loadings of the trials on the directions of the design.
    energy : tuple of (r,) float64
        Squared singular values; ``inf`` never occurs, directions that the design lacks are left out.
    """

    V2: tuple[np.ndarray, ...]
    energy: tuple[np.ndarray, ...]

    def variance(self, alpha: np.ndarray | None) -> np.ndarray:
        """Diagonal of the covariance for sigma = 1: (1, N), or (V, N) for one penalty per voxel."""
        alpha = np.zeros(1) if alpha is None else alpha
        parts = [
            (1 / (energy + alpha[:, None])) @ v2.T for v2, energy in zip(self.V2, self.energy, strict=True)
        ]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class StandardErrors:
    """Standard errors of the betas of one type, (n_voxels, n_trials); slice it to get numbers.

    ``errors[100:200]``, ``errors[mask]`` and ``errors[rows, trials]`` give float32 arrays in the unit of the
    betas, NaN where there is no beta.

    Attributes
    ----------
    noise_sd : (n_voxels,) float32
        sigma, in the unit of the betas.
    hrf_index : (n_voxels,) int
        Key of ``spreads`` for each voxel, -1 for none.
    spreads : mapping of int to Spread
    penalty : (n_voxels,) float32 or None
        Ridge penalty; None for least squares.
    slope : (n_voxels,) float32 or None
        By which the ridge betas were scaled.
    usable : (n_trials,) bool
    """

    noise_sd: np.ndarray
    hrf_index: np.ndarray
    spreads: Mapping[int, Spread]
    penalty: np.ndarray | None
    slope: np.ndarray | None
    usable: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(n_voxels, n_trials)."""
        return self.noise_sd.size, self.usable.size

    def __len__(self) -> int:
        return self.noise_sd.size

    def __getitem__(self, key) -> np.ndarray:
        rows, trials = key if isinstance(key, tuple) else (key, slice(None))
        at = np.arange(len(self))[rows]
        return self._of(np.atleast_1d(at))[:, trials].reshape(*np.shape(at), -1)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def _of(self, at: np.ndarray) -> np.ndarray:
        out = np.full((at.size, self.usable.size), np.nan, np.float32)
        for h in np.unique(self.hrf_index[at]):
            if h < 0:
                continue
            here = np.flatnonzero(self.hrf_index[at] == h)
            voxels = at[here]
            variance = self.spreads[int(h)].variance(
                None if self.penalty is None else self.penalty[voxels].astype(np.float64)
            )
            scale = self.noise_sd[voxels].astype(np.float64)
            if self.slope is not None:
                scale = scale * np.abs(self.slope[voxels])
            out[here] = np.sqrt(variance) * scale[:, None]
        out[:, ~self.usable] = np.nan
        return out
