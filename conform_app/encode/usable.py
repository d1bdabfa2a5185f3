# SPDX-License-Identifier: Apache-2.0
"""Who can be modelled: vertices with a value in every trial and the ceiling asked for, and the responses."""

from __future__ import annotations

from typing import Any

import numpy as np

from conform_app.collect.seal import single_trial_ceiling
from conform_app.errors import DataError


def usable_vertices(collection: Any, key: str, least: float) -> np.ndarray:
    """Vertices that a participant's models are made for.

    Parameters
    ----------
    collection : Collection
    key : str
    least : float
        Noise ceiling of single trials that a vertex must have, percent; 0 for any.

    Returns
    -------
    ndarray of int

    Raises
    ------
    DataError
        There is none.
    """
    found = collection.valid_vertices([key])
    if least > 0:
        ceiling = single_trial_ceiling(collection, key)
        if ceiling is None:
            raise DataError(
                f"{key} has no noise ceiling: none of its stimuli is repeated.",
                "Leave out --encode-min-ceiling.",
            )
        found = found[ceiling[found] >= least]
    if not found.size:
        and_ceiling = f" and a noise ceiling of {least:g} %" if least else ""
        raise DataError(
            f"{key} has no vertex with a value in every trial{and_ceiling}.",
            "Lower --encode-min-ceiling." if least else "Leave this participant out.",
        )
    return found


def check_usable(collection: Any, key: str, least: float, betas: str) -> None:
    """Refuse a participant without a vertex to model, or without the responses asked for.

    Parameters
    ----------
    collection : Collection
    key : str
    least : float
        As for `usable_vertices`.
    betas : {"mean", "psn"}

    Raises
    ------
    DataError
    """
    usable_vertices(collection, key, least)
    if betas == "psn" and collection.record(key).get("averages") is None:
        raise DataError(
            f"{key} has no denoised averages in the collection.",
            "Run the participant level with PSN, or leave out --encode-betas psn.",
        )
