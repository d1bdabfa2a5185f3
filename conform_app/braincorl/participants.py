# SPDX-License-Identifier: Apache-2.0
"""What training takes: any object that gives features and betas per participant.

A mapping ``name -> (features, betas)``, or an iterable of ``(features, betas)`` or ``(name, features,
betas)``.  Features are ``(n_images, E)``, betas ``(n_voxels, n_images)``; betas may be anything that has a
``shape`` and gives arrays when sliced (memory map, HDF5 or Zarr array), and is then read block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conform_app.braincorl.checks import check_betas, check_features, match_names
from conform_app.errors import DataError

BLOCK = 4096


@dataclass(frozen=True)
class Participant:
    """One participant's features and betas.

    Attributes
    ----------
    name : str
    features : ndarray (n_images, E), float32
    betas : array-like (n_voxels, n_images)
    voxels : ndarray of int
        Rows of ``betas`` that vary and are finite.
    """

    name: str
    features: np.ndarray = field(repr=False)
    betas: Any = field(repr=False)
    voxels: np.ndarray = field(repr=False)

    def read(self, voxels: np.ndarray) -> np.ndarray:
        """Betas of some voxels (numbers into ``voxels``), float32 ``(n, n_images)``."""
        rows = self.voxels[voxels]
        if isinstance(self.betas, np.ndarray):
            return np.asarray(self.betas[rows], np.float32)
        order = np.argsort(rows, kind="stable")
        read = np.asarray(self.betas[rows[order]], np.float32)  # files want sorted rows
        return read[np.argsort(order, kind="stable")]

    def some(self, n_voxels: int, rng: np.random.Generator) -> np.ndarray:
        """Betas of up to so many voxels, drawn without replacement."""
        n = min(n_voxels, len(self.voxels))
        return self.read(np.sort(rng.choice(len(self.voxels), n, replace=False)))


def is_participants(source: Any) -> bool:
    """Whether something looks like features and betas per participant, not like weights."""
    if isinstance(source, np.ndarray):
        return False
    if isinstance(source, Mapping):
        return True
    if isinstance(source, list | tuple):
        return bool(source) and all(isinstance(item, tuple | Participant) for item in source)
    return isinstance(source, Iterable)


def as_participants(source: Any) -> list[Participant]:
    """Check and name the participants of a source.

    Raises
    ------
    DataError
        No participant, one name twice, different feature dimensions, or anything `check_features` refuses.
    """
    found = [_checked(*item) for item in _items(source)]
    if not found:
        raise DataError("There are no participants to learn from.", "Give at least one.")
    names = [p.name for p in found]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise DataError(f"Participant {twice!r} is there twice.", "Give each participant a name of its own.")
    widths = {p.features.shape[1] for p in found}
    if len(widths) > 1:
        raise DataError(
            f"Participants have features of {sorted(widths)} dimensions.",
            "Use one feature extractor for all.",
        )
    return found


def from_collection(
    collection: Any,
    names: Sequence[str],
    features: np.ndarray,
    *,
    split: str | None = "train",
    participants: Sequence[str] | None = None,
    vertices: Any = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and betas per participant of a merged collection, repeats of a stimulus averaged.

    Parameters
    ----------
    collection : object
        With ``keys`` (participants), ``select(key, split=)`` (row numbers of its trials), ``trials(key)`` (a
        table with column ``stimulus``) and ``betas(key, trials, vertices) -> (n_trials, n_vertices)``.
    names : sequence of str
        Stimulus of each row of ``features``.
    features : array (n_stimuli, E)
        Unit norm.
    split : str or None
        Side of the collection's split; None: all trials.
    participants : sequence of str, optional
    vertices : optional
        Which vertices are read; all by default.

    Returns
    -------
    dict of str to (features (n_images, E), betas (n_vertices, n_images))
        Stimuli in the order of first presentation.

    Raises
    ------
    DataError
        A stimulus without features, or a participant without trials on this side.
    """
    features = check_features(features)
    out = {}
    for key in participants if participants is not None else collection.keys:
        rows = np.asarray(collection.select(key, split=split), int)
        if not rows.size:
            raise DataError(
                f"{key} has no trials on side {split!r} of the split.", "Leave this participant out."
            )
        shown = np.asarray(collection.trials(key)["stimulus"], str)[rows]
        stimuli, first, of = np.unique(shown, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.argsort(order)[of]
        total = None
        for start in range(0, len(rows), BLOCK):
            part = np.asarray(collection.betas(key, rows[start : start + BLOCK], vertices), np.float64)
            total = np.zeros((len(stimuli), part.shape[1])) if total is None else total
            np.add.at(total, place[start : start + BLOCK], part)
        mean = total / np.bincount(place)[:, None]
        out[key] = features[match_names(names, stimuli[order])], mean.T.astype(np.float32)
    return out


def _items(source: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(source, Mapping):
        for name, (features, betas) in source.items():
            yield str(name), features, betas
        return
    for number, item in enumerate(source, 1):
        if isinstance(item, Participant):
            yield item.name, item.features, item.betas
        elif len(item) == 3:
            yield str(item[0]), item[1], item[2]
        else:
            yield f"participant {number}", item[0], item[1]


def _checked(name: str, features: Any, betas: Any) -> Participant:
    features = check_features(features, what=f"{name}: features")
    shape = getattr(betas, "shape", None)
    if shape is None:
        betas = np.asarray(betas)
        shape = betas.shape
    if len(shape) != 2:
        raise DataError(f"{name}: betas have shape {tuple(shape)}.", "Give (voxels, images).")
    valid = np.zeros(shape[0], bool)
    for start in range(0, shape[0], BLOCK):
        block = np.asarray(betas[start : start + BLOCK])
        if block.shape[1] != len(features):
            check_betas(block, len(features), what=f"{name}: betas")
        with np.errstate(invalid="ignore"):
            valid[start : start + BLOCK] = np.isfinite(block).all(axis=1) & (np.ptp(block, axis=1) > 0)
    if not valid.any():
        raise DataError(f"{name}: every voxel is constant or not finite.", "Leave this participant out.")
    return Participant(name, features, betas, np.flatnonzero(valid))


def leave_one_out(source: Any) -> Iterator[tuple[str, list[Participant], Participant]]:
    """Leave each participant out in turn.

    Parameters
    ----------
    source : participants
        As `train` takes them.

    Yields
    ------
    name : str
        Of the one left out.
    others : list of Participant
    left : Participant

    Raises
    ------
    DataError
        There is one participant only.
    """
    people = as_participants(source)
    if len(people) < 2:
        raise DataError("There is one participant, so none is left to learn from.", "Give at least two.")
    for left in people:
        yield left.name, [p for p in people if p is not left], left
