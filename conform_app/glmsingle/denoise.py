# SPDX-License-Identifier: Apache-2.0
"""GLMdenoise: noise regressors from voxels that do not respond (Kay et al. 2013, Front Neurosci 7:247).

The noise pool are voxels inside the brain (bright on average) with a low on/off R2.  Per run, their time
series without drifts are scaled to unit length (rows of Y); the eigenvectors of Y'Y with the largest
eigenvalues are the regressors, each scaled to unit standard deviation.  How many are used is the smallest
number whose cross-validated gain is within a factor of the best.

dtype: float64 sums and eigenvectors; float32 regressors.
"""

from __future__ import annotations

import numpy as np

FALLBACK_VOXELS = 100


def noise_pool(mean_vol, onoff_r2, valid, brainthresh, brain_r2: float, exclude) -> np.ndarray:
    """(n_voxels,) bool: voxels that feed the noise regressors.

    Parameters
    ----------
    mean_vol, onoff_r2 : (n_voxels,) float
    valid : (n_voxels,) bool
    brainthresh : (percentile, factor)
        Voxels need a mean above factor x percentile of the valid voxels' means.
    brain_r2 : float
        On/off R2 must be below, percent.
    exclude : (n_voxels,) bool or None
    """
    percentile, factor = brainthresh
    bright = mean_vol > np.percentile(mean_vol[valid], percentile) * factor
    with np.errstate(invalid="ignore"):
        pool = valid & bright & (onoff_r2 < brain_r2)
    return pool if exclude is None else pool & ~exclude


def components(gram: np.ndarray, n: int) -> np.ndarray:
    """Leading eigenvectors of a (n_volumes, n_volumes) Gram matrix: (n_volumes, <= n) float32, unit sd.

    Only those with an eigenvalue above rounding are given.  The sign is such that the largest entry is
    positive.
    """
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1][:n]
    order = (
        order[values[order] > 1e-10 * max(values[order[0]], np.finfo(float).tiny)] if order.size else order
    )
    out = vectors[:, order]
    peak = out[np.argmax(np.abs(out), axis=0), np.arange(out.shape[1])]
    out = out * np.sign(peak)
    return (out / out.std(axis=0, ddof=1)).astype(np.float32)


def deciding_voxels(onoff_r2, valid, cutoff: float, mask) -> tuple[np.ndarray, bool]:
    """Voxels whose badness decides the number of regressors, and whether any passed the cutoff.

    When none passes, the `FALLBACK_VOXELS` valid voxels (within the mask) of highest R2.
    """
    allowed = valid if mask is None else valid & mask
    with np.errstate(invalid="ignore"):
        chosen = allowed & (onoff_r2 > cutoff)
    if chosen.any():
        return chosen, True
    allowed = allowed if allowed.any() else valid
    score = np.where(allowed & np.isfinite(onoff_r2), onoff_r2, -np.inf)
    best = np.argsort(-score, kind="stable")[:FALLBACK_VOXELS]
    chosen = np.zeros(valid.shape, bool)
    chosen[best] = np.isfinite(score[best])
    return chosen, False


def choose_number(curve: np.ndarray, stop: float) -> int:
    """Number of regressors from performance per number (higher is better) and the stop factor (>= 1).

    Going up from none, each strict improvement is kept, until one comes within the factor of the best.
    """
    curve = np.asarray(curve, dtype=np.float64)
    gain = curve - curve[0]
    best, chosen, most = -np.inf, 0, gain.max()
    for k, value in enumerate(gain):
        if value > best:
            best, chosen = value, k
            if best * stop >= most:
                break
    return chosen
