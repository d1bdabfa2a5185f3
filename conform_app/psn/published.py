# SPDX-License-Identifier: Apache-2.0
"""GSN in the published order of arithmetic, for results that agree to the last bit.

Where cSb is singular, the axes of its null space are an arbitrary choice of the eigensolver, which rounding
decides.  What the published code reports along those axes (noise variances, objectives) can only be met by
feeding the solver the same bits.  So here sums run in the published order and in the data's own dtype; the
estimates are those of `conform_app.psn.covariance` to rounding, at several times the cost.  Bits also depend
on the linear algebra library and its kernels (OPENBLAS_CORETYPE).
"""

from __future__ import annotations

import numpy as np

from conform_app.psn.intake import Usable
from conform_app.psn.shrinkage import shrunk

_MAX_EXACT = 512  # units up to which sums keep the published order; beyond, BLAS is 30 times faster
RIDGE = 1e-10


def raw_covariances(
    usable: Usable, means: np.ndarray, s_n: float, s_d: float
) -> tuple[np.ndarray, np.ndarray]:
    """Shrunk covariances of noise and of trial averages, in the dtype of ``usable.x``.

    ``means`` (n_units, n_conditions): averages over an equal number of trials.
    """
    x, there = usable.x, usable.there
    counts = there.sum(axis=1)
    if there.all():
        residual = x - x.mean(axis=2, keepdims=True)
        if len(x) <= _MAX_EXACT:
            c_n = np.einsum("ict,jct->ij", residual, residual)
        else:
            flat = residual.reshape(len(x), -1)
            c_n = flat @ flat.T
        c_n = c_n / ((there.shape[1] - 1) * there.shape[0])
    else:
        mean = np.where(there, x, 0.0).sum(axis=2) / np.maximum(counts, 1)
        residual = np.where(there & (counts > 1)[:, None], x - mean[:, :, None], 0.0)
        flat = (residual * np.sqrt(1 / np.maximum(counts - 1, 1))[:, None]).reshape(len(x), -1)
        c_n = flat @ flat.T / (counts > 1).sum()
    means = means.astype(x.dtype, copy=False)
    deviations = means - means.mean(axis=1, keepdims=True)
    c_d = deviations @ deviations.T / (means.shape[1] - 1)
    dtype = x.dtype
    return (
        shrunk(c_n.astype(dtype, copy=False), s_n, reference=True),
        shrunk(c_d.astype(dtype, copy=False), s_d, reference=True),
    )


def to_psd(m: np.ndarray) -> np.ndarray:
    """The nearest positive semi-definite matrix, rebuilt from its eigenvectors, made regular by 1e-10."""
    m = (m + m.T) / 2
    if is_positive(m):
        return m
    w, v = np.linalg.eigh(m)
    m = (v * np.maximum(w, 0.0)) @ v.T
    m = (m + m.T) / 2
    if not is_positive(m):
        m = m + RIDGE * np.eye(len(m))  # float64 from here on, also for float32 data
    return m


def is_positive(m: np.ndarray) -> bool:
    """Whether m has a Cholesky factor."""
    try:
        np.linalg.cholesky(m)
    except np.linalg.LinAlgError:
        return False
    return True
