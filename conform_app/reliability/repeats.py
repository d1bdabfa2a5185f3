# SPDX-License-Identifier: Apache-2.0
"""From a list of trials to conditions x repeats.

Trial i shows condition ``c_i`` for the ``r_i``-th time; the array is ``Y[:, c_i, r_i] = betas[:, i]`` and NaN
wherever a condition was shown fewer times than the most frequent one.
"""

from __future__ import annotations

import numpy as np

from conform_app.errors import DataError


def repeat_numbers(condition: np.ndarray) -> np.ndarray:
    """Number the presentations of each condition in the order of the trials.

    Parameters
    ----------
    condition : array_like, (n_trials,) int
        Index of each trial's condition; negative values mark trials to leave out.

    Returns
    -------
    ndarray, (n_trials,) int64
        0 for the first presentation, 1 for the second, ...; -1 where ``condition`` is negative.

    Raises
    ------
    DataError
        If ``condition`` is not a vector of integers.
    """
    condition = _as_index(condition)
    order = np.argsort(condition, kind="stable")
    ranked = condition[order]
    start = np.r_[True, ranked[1:] != ranked[:-1]] if ranked.size else np.zeros(0, bool)
    place = np.arange(ranked.size)
    number = np.empty(ranked.size, dtype=np.int64)
    number[order] = place - np.maximum.accumulate(np.where(start, place, 0))
    number[condition < 0] = -1
    return number


def arrange_repeats(
    betas: np.ndarray, condition: np.ndarray, *, n_conditions: int | None = None, n_repeats: int | None = None
) -> np.ndarray:
    """Arrange single-trial betas as conditions x repeats, padded with NaN.

    Parameters
    ----------
    betas : array_like, (n_voxels, n_trials)
        Single-trial betas; the dtype of floating input is kept.
    condition : array_like, (n_trials,) int
        Index of each trial's condition, from 0; trials with a negative index are left out.
    n_conditions : int, optional
        Number of conditions; by default the largest index plus one.
    n_repeats : int, optional
        Length of the last axis; by default the largest number of presentations (later ones are dropped when
        it is smaller).

    Returns
    -------
    ndarray, (n_voxels, n_conditions, n_repeats)
        Betas of the r-th presentation of each condition, NaN where there was none.

    Raises
    ------
    DataError
        If the shapes do not agree or an index is out of range.
    """
    betas = _filled(betas)
    condition = _as_index(condition)
    if betas.ndim != 2 or betas.shape[1] != condition.size:
        raise DataError(
            f"Betas of shape {betas.shape} do not go with {condition.size} trial conditions.",
            "Give betas (n_voxels, n_trials) and one condition per trial.",
        )
    number = repeat_numbers(condition)
    used = condition >= 0
    most = int(number.max(initial=-1)) + 1
    n_found = int(condition.max(initial=-1)) + 1
    n_conditions = n_found if n_conditions is None else int(n_conditions)
    if n_found > n_conditions:
        raise DataError(
            f"A trial has condition {n_found - 1}, but there are {n_conditions} conditions.",
            "Count conditions from 0.",
        )
    n_repeats = most if n_repeats is None else int(n_repeats)
    used &= number < n_repeats
    dtype = betas.dtype if np.issubdtype(betas.dtype, np.floating) else np.float64
    out = np.full((betas.shape[0], n_conditions, n_repeats), np.nan, dtype=dtype)
    out[:, condition[used], number[used]] = betas[:, used]
    return out


def as_repeats(betas: np.ndarray) -> np.ndarray:
    """Check betas ``(n_voxels, n_conditions, n_repeats)`` and return them with infinities turned to NaN.

    The dtype of float32 and float64 input is kept; anything else becomes float64.  What is masked is missing.
    """
    betas = _filled(betas)
    if betas.ndim != 3:
        raise DataError(
            f"Betas have {betas.ndim} dimensions instead of 3.",
            "Give (n_voxels, n_conditions, n_repeats); arrange_repeats makes it from a list of trials.",
        )
    if betas.dtype not in (np.float32, np.float64):
        if not (np.issubdtype(betas.dtype, np.number) or betas.dtype == bool) or np.iscomplexobj(betas):
            raise DataError(f"Betas of type {betas.dtype} are not real numbers.", "Give a numeric array.")
        betas = betas.astype(np.float64)
    if np.isinf(betas).any():
        betas = np.where(np.isinf(betas), np.nan, betas)
    return betas


def _filled(betas: np.ndarray) -> np.ndarray:
    """As an array without mask: NaN where it was."""
    if np.ma.isMaskedArray(betas):
        return betas.astype(np.result_type(betas.dtype, np.float32)).filled(np.nan)
    return np.asarray(betas)


def _as_index(condition: np.ndarray) -> np.ndarray:
    condition = np.asarray(condition)
    if condition.ndim != 1 or (condition.size and not np.issubdtype(condition.dtype, np.integer)):
        raise DataError(
            f"Trial conditions must be a vector of integers, not {condition.dtype} {condition.shape}.",
            "Number the conditions from 0.",
        )
    return condition.astype(np.int64)
