# SPDX-License-Identifier: Apache-2.0
"""Which trials, which vertices: a number, a slice, numbers or a mask, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from conform_app.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

Selection = int | slice | Sequence[int] | np.ndarray | None


def indices(given: Selection, n: int, what: str) -> np.ndarray | None:
    """Return the indices that a selection means.

    Parameters
    ----------
    given : int, slice, sequence of int, ndarray (int, or bool of shape (n,)), or None
        None means all.
    n : int
        How many there are.
    what : str
        What is selected, for messages.

    Returns
    -------
    ndarray of int64, or None for all

    Raises
    ------
    UsageError
        No such selection, or an index out of range.
    """
    if given is None:
        return None
    if isinstance(given, slice):
        return np.arange(n)[given]
    index = np.atleast_1d(np.asarray(given))
    if index.size == 0:
        return np.zeros(0, np.int64)
    if index.dtype == bool:
        if index.shape != (n,):
            raise UsageError(f"A mask of {index.size} values does not go with {n}.", f"One per {what}.")
        return np.flatnonzero(index)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise UsageError(f"{given!r} selects no {what}.", "Give an int, a slice, integers or a mask.")
    index = np.where(index < 0, index + n, index)
    if ((index < 0) | (index >= n)).any():
        raise UsageError(f"A {what} index is out of range 0..{n - 1}.", "Look at .trials and .n_vertices.")
    return index.astype(np.int64)


def labelled(parcels: pd.DataFrame, labels: Sequence[str | int], n_vertices: int) -> np.ndarray:
    """Vertices with any of these labels; see `CollectionReader.region`."""
    if len(parcels) != n_vertices or "label" not in parcels.columns:
        raise UsageError(
            f"The table parcels has {len(parcels)} rows for {n_vertices} vertices.",
            "Seal with one row per vertex and a column label.",
        )
    found = [parcels["label"] == label for label in labels]
    unknown = [label for label, its in zip(labels, found, strict=True) if not its.any()]
    if unknown:
        raise UsageError(f"No vertex is labelled {unknown[0]!r}.", "Look at table('parcels').")
    return np.flatnonzero(np.logical_or.reduce(found)) if found else np.zeros(0, np.int64)
