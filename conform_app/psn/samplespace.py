# SPDX-License-Identifier: Apache-2.0
"""PSN without shrinkage for any number of units: everything happens in the span of the trials.

Without shrinkage cD, cN and all that follows from them (cSb, cNb, bases, Wiener filter) live in the span of
the centred trials ``X`` (n x q, q trials in all).  With ``X'X = V L V'`` the coordinates of the trials in an
orthonormal basis ``Q = X V L^-1/2`` of that span are ``Y = L^1/2 V'`` (r x q, r <= q).  PSN of Y gives
denoised coordinates Z, and the denoised responses are

    m + Q Z = m + X (V L^-1/2 Z),

so neither an n x n matrix nor Q is ever formed: O(n q^2) time, q x q memory beside the data.  Exact for one
cut for all units and for the Wiener filter (both commute with rotations); a cut per unit does not.

This is another estimator than the default of `fit_psn`, which shrinks covariances towards their diagonal:
without shrinkage, noise along axes that the trials do not span counts as absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.psn.estimator import fit_psn
from conform_app.psn.intake import as_responses
from conform_app.psn.result import PSNResult

_BLOCK = 1 << 22  # values of a block in double precision
_RANK = 1e-12  # eigenvalues of X'X below this share of the largest are rounding


@dataclass(frozen=True, eq=False)
class SampleSpaceFit:
    """PSN in the span of the trials.

    Attributes
    ----------
    denoised : ndarray, (n_units, n_conditions) float32
    unit_means : ndarray, (n_units,) float64
    inner : PSNResult
        The fit of the coordinates; its variances along axes and its numbers of dimensions are those of the
        units.
    weights : ndarray, (n_trials_in_all, n_conditions)
        Denoised minus means is the centred trials times these.
    account : tuple of str
    """

    denoised: np.ndarray
    unit_means: np.ndarray
    inner: PSNResult
    weights: np.ndarray
    account: tuple[str, ...]


def fit_sample_space(data: np.ndarray, *, mode: str = "wiener", **options) -> SampleSpaceFit:
    """Denoise any number of units, without shrinkage.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        A trial must be there for all units or for none.
    mode : str
        Of :func:`conform_app.psn.fit_psn`.
    **options
        Others of :func:`conform_app.psn.fit_psn`, but for the level, groups, a basis and shrinkage.

    Raises
    ------
    DataError
        If single units miss single trials or hold infinities.
    UsageError
        If an option does not commute with rotations.
    """
    data = as_responses(data)
    wrong = {"threshold", "unit_groups", "shrink", "shrink_levels", "gsn", "pooling"} & set(options)
    if wrong or mode == "auto" or not isinstance(options.get("basis", ""), str):
        raise UsageError(
            f"In the span of the trials there is no {', '.join(sorted(wrong)) or mode}.",
            "Use fit_psn or fit_parcels.",
        )
    there = np.isfinite(data[0])
    m = _means(data, there)
    gram = _gram(data, m, there)
    values, vectors = np.linalg.eigh(gram)
    keep = values > _RANK * max(values[-1], 0.0)
    if not keep.any():
        raise DataError("The trials do not differ.", "Check the mask.")
    root, vectors = np.sqrt(values[keep]), vectors[:, keep]
    y = np.full((int(keep.sum()), *there.shape), np.nan)
    y[:, there] = root[:, None] * vectors.T
    level = {} if mode == "wiener" or options.get("criterion") == "wiener" else {"threshold": "global"}
    inner = fit_psn(y, mode=mode, shrink=False, **level, **options)
    weights = (vectors / root) @ inner.denoised
    denoised = np.empty(data.shape[:2], np.float32)
    for rows in _blocks(data):
        denoised[rows] = _trials(data, rows, m, there) @ weights + m[rows, None]
    account = (
        f"PSN ran in the {len(y)} dimensions that the trials of {len(data)} units span, without shrinkage.",
        *inner.account,
    )
    return SampleSpaceFit(denoised, m, inner, weights, account)


def _blocks(data: np.ndarray):
    size = max(1, _BLOCK // data[0].size)
    return [slice(start, start + size) for start in range(0, len(data), size)]


def _means(data: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean over conditions of each unit's averages."""
    counts = there.sum(axis=1)
    if (counts == 0).any():
        raise DataError("A condition has no trial.", "Leave out conditions never shown.")
    weight = np.where(there, 1.0 / (counts[:, None] * len(counts)), 0.0)
    out = np.empty(len(data))
    for rows in _blocks(data):
        block = data[rows].astype(np.float64)
        if not np.array_equal(np.isfinite(block), np.broadcast_to(there, block.shape)):
            raise DataError(
                "Single units miss single trials.", "Leave those units out; a trial must be there for all."
            )
        out[rows] = np.einsum("uct,ct->u", np.where(there, block, 0.0), weight)
    return out


def _trials(data: np.ndarray, rows: slice, m: np.ndarray, there: np.ndarray) -> np.ndarray:
    return data[rows][:, there].astype(np.float64) - m[rows, None]


def _gram(data: np.ndarray, m: np.ndarray, there: np.ndarray) -> np.ndarray:
    q = int(there.sum())
    gram = np.zeros((q, q))
    for rows in _blocks(data):
        x = _trials(data, rows, m, there)
        gram += x.T @ x
    return gram
