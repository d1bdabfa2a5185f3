# SPDX-License-Identifier: Apache-2.0
"""Which units and trials can enter an estimate.

A trial of a condition is missing when fewer than half of the units have it.  A unit is left out when it
cannot be modelled: infinite or entirely missing, without a trial that the others have, constant, or without
any noise.  Units left out never touch the others; callers put them back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conform_app.errors import DataError

_NO_NOISE = 1e-20  # noise variance relative to the mean square below which it is rounding


@dataclass(frozen=True, eq=False)
class Usable:
    """Data that an estimate can use.

    Attributes
    ----------
    x : ndarray, (n_valid, n_conditions, n_trials) float64
        Responses of the valid units, NaN where missing.
    there : ndarray, (n_conditions, n_trials) bool
        Trials that all valid units have.
    valid : ndarray, (n_units,) bool
        Units that are used.
    """

    x: np.ndarray
    there: np.ndarray
    valid: np.ndarray


def usable_data(data: np.ndarray, *, keep_partial: bool = False, keep_all: bool = False) -> Usable:
    """Check responses and select units and trials.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
    keep_partial : bool, default False
        Keep units that miss some trials that others have.
    keep_all : bool, default False
        Leave no unit out, whatever it holds.

    Raises
    ------
    DataError
        If nothing usable remains; the message says why.
    """
    data = as_responses(data)
    if keep_all:
        there = ~np.isnan(data).any(axis=0)
        valid = np.ones(len(data), dtype=bool)
    else:
        there, valid = select_units(data, keep_partial)
    counts = there.sum(axis=1)
    if not keep_partial and (counts == 0).any():
        raise DataError(
            f"Condition {int(np.argmin(counts))} has no valid trial.",
            "Leave out conditions never shown; every condition needs one trial that all units have.",
        )
    if not keep_partial and counts.max(initial=0) < 2:
        raise DataError("No condition is repeated.", "Signal and noise can only be told apart with repeats.")
    if data.shape[1] < 2:
        raise DataError("There is only one condition.", "Covariances need at least two conditions.")
    x = data if valid.all() else data[valid]
    return Usable(np.ascontiguousarray(x, dtype=np.float64), there, valid)


def as_responses(data: np.ndarray) -> np.ndarray:
    """Check that data are real numbers, units x conditions x trials, with at least two trials."""
    if np.ma.isMaskedArray(data):  # what is masked is missing
        data = data.astype(np.result_type(data.dtype, np.float32)).filled(np.nan)
    data = np.asarray(data)
    if data.ndim != 3:
        raise DataError(
            f"Responses have {data.ndim} dimensions instead of 3.", "Give (n_units, n_conditions, n_trials)."
        )
    if not np.issubdtype(data.dtype, np.floating):
        if not np.issubdtype(data.dtype, np.integer):
            raise DataError(f"Responses of type {data.dtype} are not real numbers.", "Give a numeric array.")
        data = data.astype(np.float64)
    if 0 in data.shape:
        raise DataError(f"Responses of shape {data.shape} are empty.", "Check the mask and the trials.")
    if data.shape[2] < 2:
        raise DataError("There is only one trial per condition.", "Telling noise from signal needs repeats.")
    return data


def select_units(data: np.ndarray, keep_partial: bool) -> tuple[np.ndarray, np.ndarray]:
    """Trials (n_conditions, n_trials) and units (n_units,) to use; see the module's text.

    Raises
    ------
    DataError
        If no unit is left.
    """
    missing = np.isnan(data)
    valid = ~np.isinf(data).any(axis=(1, 2)) & ~missing.all(axis=(1, 2))
    if valid.any():
        there = 2 * np.count_nonzero(~missing & valid[:, None, None], axis=0) >= valid.sum()
        if not keep_partial:
            valid &= ~(missing & there).any(axis=(1, 2))
    if valid.any():
        valid[valid] = _has_noise(data, np.flatnonzero(valid), None if keep_partial else there)
    if not valid.any():
        raise DataError(
            "No unit is left: all are constant, not finite, without noise, or lack trials that others have.",
            "Check the mask and that repeats are different trials; where units miss trials of their own,"
            ' uneven="missing" keeps them.',
        )
    if keep_partial:
        there = ~missing[valid].any(axis=0)
    return there, valid


def _has_noise(data: np.ndarray, units: np.ndarray, trials: np.ndarray | None) -> np.ndarray:
    """True for those of the units whose repeats differ by more than rounding."""
    out = np.zeros(units.size, dtype=bool)
    step = max(1, (1 << 20) // max(1, data[0].size))
    for start in range(0, units.size, step):
        y = data[units[start : start + step]].astype(np.float64)
        there = ~np.isnan(y) if trials is None else np.broadcast_to(trials, y.shape)
        y = np.where(there, y, 0.0)
        count = there.sum(axis=2)
        mean = y.sum(axis=2) / np.maximum(count, 1)
        within = np.where(there, y - mean[:, :, None], 0.0)
        noise = np.einsum("uct,uct->u", within, within)
        size = np.einsum("uct,uct->u", y, y)
        out[start : start + step] = noise > _NO_NOISE * size
    return out
