# SPDX-License-Identifier: Apache-2.0
r"""How alike two stimuli are: cosine similarity of their embeddings.

    s(a, b) = <e_a, e_b> / (|e_a| |e_b|)

`THRESHOLD` = 0.8196 is the cut MOSAIC publishes for DreamSim embeddings (default ensemble; of a video, the
mean over its frames).  It was derived from how alike two frames of one three-second clip are, and means
nothing for embeddings of another kind: those need a cut of their own.

Products are float32 in blocks; a pair within 1e-4 of the cut is computed again in float64, so that the
decision depends neither on the block size nor on the order of summation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conform_app.devices import torch_device
from conform_app.errors import DataError

if TYPE_CHECKING:
    import torch

THRESHOLD = 0.8196
"""Cosine similarity of DreamSim embeddings above which two stimuli count as near-duplicates."""

THRESHOLD_ORIGIN = (
    "0.8196 is the cut that MOSAIC uses with DreamSim embeddings, derived from the similarity of two frames "
    "of the same short video clip; for other embeddings it has no meaning and a threshold should be given."
)

_BLOCK = 4096
_CLOSE = 1e-4


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of stimuli.

    Attributes
    ----------
    names : tuple of str
    vectors : ndarray, (n, d) float32
        Rows of length 1.
    """

    names: tuple[str, ...]
    vectors: np.ndarray

    @classmethod
    def of(cls, given: Mapping[str, np.ndarray] | Embeddings | None) -> Embeddings:
        """Take a mapping from name to vector (an opened ``.npz`` will do) and normalise it.

        Parameters
        ----------
        given : mapping of str to (E,) array, Embeddings, or None
            None: no embeddings.

        Returns
        -------
        Embeddings
            Vectors of length 1, float32.

        Raises
        ------
        DataError
            If vectors differ in length, or one is zero or not finite.
        """
        if isinstance(given, cls):
            return given
        if not given:
            return cls((), np.zeros((0, 1), np.float32))
        names = tuple(given)
        first = np.size(given[names[0]])
        vectors, bad = np.empty((len(names), first), np.float32), np.zeros(len(names), bool)
        for i, name in enumerate(names):  # one at a time: 170,000 in float64 are gigabytes
            row = np.asarray(given[name], dtype=np.float64).ravel()
            if row.size != first:
                raise DataError(
                    f"Embeddings have different lengths ({first} and {row.size}).",
                    "All embeddings must come from one model.",
                )
            norm = float(np.linalg.norm(row))
            bad[i] = not (np.isfinite(norm) and norm > 0)
            vectors[i] = 0.0 if bad[i] else row / norm
        if bad.any():
            raise DataError(
                f"The embedding of {names[int(bad.argmax())]} is zero or not finite "
                f"({int(bad.sum())} in all).",
                "Compute it again, or leave the stimulus out of the embeddings.",
            )
        return cls(names, vectors)

    def take(self, names: Iterable[str]) -> tuple[list[str], np.ndarray]:
        """Those of the names that have an embedding, in the order given, and their vectors.

        Parameters
        ----------
        names : iterable of str

        Returns
        -------
        names : list of str
        vectors : ndarray (n, E), float32
        """
        kept = [name for name in names if name in self.place]
        return kept, self.vectors[[self.place[name] for name in kept]]

    @functools.cached_property
    def place(self) -> dict[str, int]:
        """Row of each name."""
        return {name: i for i, name in enumerate(self.names)}


def _on(vectors: np.ndarray, device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).to(torch_device(device))


def _exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine in float64."""
    out = np.empty(len(a))
    for rows in (slice(i, i + _BLOCK) for i in range(0, len(a), _BLOCK)):
        x, y = a[rows].astype(np.float64), b[rows].astype(np.float64)
        out[rows] = np.einsum("nd,nd->n", x, y) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return out


def pairs_above(
    a: np.ndarray, b: np.ndarray | None, threshold: float, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs more similar than the threshold.

    Parameters
    ----------
    a : ndarray, (n, d)
        Unit vectors.
    b : ndarray, (m, d), or None
        Unit vectors; None: pairs within a, each once.
    threshold : float
        Strict: a pair at the threshold is not above it.
    device : str, default "cpu"
        Where products are computed (``cuda``: one GPU; ``auto``: a GPU if there is one).

    Returns
    -------
    first, second : ndarray, (n_pairs,) int64
        Rows of a and of b, in order.
    similarity : ndarray, (n_pairs,) float64
    """
    within, b = b is None, a if b is None else b
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    left = _on(a, device)
    right = left if within else _on(b, device)
    for i in range(0, len(a), _BLOCK):
        for j in range(i if within else 0, len(b), _BLOCK):
            product = left[i : i + _BLOCK] @ right[j : j + _BLOCK].T
            found = (product > threshold - _CLOSE).nonzero().cpu().numpy()
            row, column = found[:, 0] + i, found[:, 1] + j
            keep = row < column if within else slice(None)
            first.append(row[keep])
            second.append(column[keep])
    row, column = np.concatenate(first), np.concatenate(second)
    order = np.lexsort((column, row))
    row, column = row[order], column[order]
    value = _exact(a[row], b[column])
    above = value > threshold
    return row[above], column[above], value[above]


def nearest(a: np.ndarray, b: np.ndarray, *, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """For each row of a, the most similar row of b.

    Parameters
    ----------
    a, b : ndarray, (n, d) and (m, d)
        Unit vectors.
    device : str, default "cpu"
        Where products are computed.

    Returns
    -------
    index : ndarray, (n,) int64
        Row of b, the first of equal ones; -1 where b is empty.
    similarity : ndarray, (n,) float64
        NaN where b is empty.
    """
    index, best = np.full(len(a), -1), np.full(len(a), -np.inf, np.float32)
    left, right = _on(a, device), _on(b, device)
    for i in range(0, len(a), _BLOCK):
        for j in range(0, len(b), _BLOCK):
            top = (left[i : i + _BLOCK] @ right[j : j + _BLOCK].T).max(dim=1)
            value, column = top.values.cpu().numpy(), top.indices.cpu().numpy()
            better = value > best[i : i + _BLOCK]
            best[i : i + _BLOCK][better] = value[better]
            index[i : i + _BLOCK][better] = column[better] + j
    found = index >= 0
    similarity = np.full(len(a), np.nan)
    similarity[found] = _exact(a[found], b[index[found]])
    return index, similarity


def median_distance(vectors: np.ndarray) -> np.ndarray:
    """Median cosine distance of each row to all others.

    Parameters
    ----------
    vectors : ndarray, (n, d)
        Unit vectors.

    Returns
    -------
    ndarray, (n,) float64
    """
    out = np.full(len(vectors), np.nan)
    for i in range(0, len(vectors), 256):
        product = vectors[i : i + 256].astype(np.float64) @ vectors.T.astype(np.float64)
        rows = np.arange(len(product))
        product[rows, rows + i] = np.nan
        if len(vectors) > 1:
            out[i : i + 256] = np.nanmedian(1.0 - product, axis=1)
    return out
