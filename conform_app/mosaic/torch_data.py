# SPDX-License-Identifier: Apache-2.0
"""Trials of a collection as a ``torch.utils.data.Dataset``.

Workers get a copy of the dataset without open files; each maps the shards that it reads.  A batch is read
participant by participant (``__getitems__``), not trial by trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from conform_app.errors import NoInputError, UsageError

if TYPE_CHECKING:
    from conform_app.mosaic.reading import CollectionReader, Selection


class TrialDataset(Dataset):
    """Single trials, or averages over the trials of each participant and stimulus.

    Made by `Collection.torch_dataset`.

    Attributes
    ----------
    participants : list of str
    vertices : ndarray of int, or None for all
    stimuli : list of str
        Stimulus of each item.
    """

    def __init__(
        self,
        collection: CollectionReader,
        split: str | None,
        participants: Sequence[str] | None,
        vertices: str | Selection,
        average: bool,
        images: Callable[[str], Any] | Mapping[str, Any] | None,
    ) -> None:
        if split not in ("train", "test", "artificial", None):
            raise UsageError(f"{split!r} is no split.", "Choose train, test, artificial or None.")
        if split is not None and not collection.manifest:
            raise UsageError("A collection that was never sealed has no split.", "Seal it first.")
        self.collection = collection
        self.participants = list(collection.keys if participants is None else participants)
        self.vertices = _chosen_vertices(collection, self.participants, vertices)
        self.images = images
        owners: list[np.ndarray] = []
        every: list[np.ndarray] = []
        self.stimuli: list[str] = []
        angles = [collection.record(key)["attributes"].get("visual_angle") for key in self.participants]
        self._angle = [float(a) if isinstance(a, int | float) else float("nan") for a in angles]
        for number, key in enumerate(self.participants):
            rows = collection.select(key, split=split)
            stimulus = collection.trials(key)["stimulus"].to_numpy(str)[rows]
            groups = _by_stimulus(rows, stimulus) if average else [rows[i : i + 1] for i in range(len(rows))]
            names = list(dict.fromkeys(stimulus)) if average else list(stimulus)
            owners.append(np.full(len(groups), number))
            every += groups
            self.stimuli += [str(name) for name in names]
        # Flat arrays, not half a million small ones: they travel to every worker
        self._owner = np.concatenate([np.zeros(0, int), *owners])
        self._edges = np.cumsum([0, *map(len, every)])
        self._flat = np.concatenate([np.zeros(0, int), *every])
        if not every:
            raise NoInputError(f"No trial of the collection is in {split!r}.", "Choose another split.")

    def __len__(self) -> int:
        return len(self._owner)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """Read a batch, participant by participant."""
        items = [range(len(self))[int(i)] for i in items]
        out: list[dict[str, Any]] = [{}] * len(items)
        owners = self._owner[items]
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            groups = [self._flat[self._edges[items[i]] : self._edges[items[i] + 1]] for i in here]
            betas = self.collection.betas(self.participants[owner], np.concatenate(groups), self.vertices)
            stop = 0
            for i, rows in zip(here, groups, strict=True):
                start, stop = stop, stop + len(rows)
                values = betas[start] if len(rows) == 1 else _mean(betas[start:stop])
                out[i] = self._item(items[i], int(owner), rows, values)
        return out

    def _item(self, item: int, owner: int, rows: np.ndarray, values: np.ndarray) -> dict[str, Any]:
        stimulus = self.stimuli[item]
        made = {
            "betas": torch.from_numpy(np.array(values, dtype=np.float32)),
            "participant": self.participants[owner],
            "stimulus": stimulus,
            "index": int(rows[0]),
            "n_trials": len(rows),
            "visual_angle": self._angle[owner],
        }
        if self.images is not None:
            made["image"] = self.images(stimulus) if callable(self.images) else self.images[stimulus]
        return made


def _chosen_vertices(
    collection: CollectionReader, participants: Sequence[str], vertices: str | Selection
) -> np.ndarray | None:
    if isinstance(vertices, str):
        if vertices == "valid":
            valid = collection.valid_vertices(participants)
            return None if len(valid) == collection.n_vertices else valid
        if vertices != "all":
            raise UsageError(f"{vertices!r} selects no vertices.", "Choose valid, all, or give indices.")
        return None
    return None if vertices is None else np.arange(collection.n_vertices)[vertices].reshape(-1)


def _by_stimulus(rows: np.ndarray, stimulus: np.ndarray) -> list[np.ndarray]:
    found: dict[str, list[int]] = {}
    for row, name in zip(rows, stimulus, strict=True):
        found.setdefault(name, []).append(int(row))
    return [np.array(group) for group in found.values()]


def _mean(betas: np.ndarray) -> np.ndarray:
    """Mean over trials; a trial without a value at a vertex does not count there."""
    there = np.isfinite(betas)
    count = there.sum(axis=0)
    total = np.where(there, betas, 0.0).sum(axis=0, dtype=np.float64)
    return np.divide(total, count, out=np.full(betas.shape[1], np.nan), where=count > 0)
