# SPDX-License-Identifier: Apache-2.0
"""One participant's encoding weights through functional alignment, from everybody who saw the same images.

The others' ridge weights are carried to the participant's vertices by maps that are fitted on the train
images that a context shares with them, within pieces of the cortex (see `braincorl.aligned`).  Pieces come in
batches; only shared columns of the others' responses are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from conform_app.braincorl import fit_aligned
from conform_app.encode.job import EncodeJob, EncodePlan, Target
from conform_app.encode.pieces import pieces_of
from conform_app.encode.prepare import BLOCK, Prepared
from conform_app.encode.sharing import ALIGNED, image_keys, shared_counts, usable

FEW_TEACHERS = 8


@dataclass(frozen=True)
class _Teacher:
    """Somebody to carry weights from: shared columns, and which vertices have something to give."""

    person: Prepared
    columns: np.ndarray
    features: np.ndarray
    pieces: np.ndarray  # of its vertices; -1 without weights


@dataclass(frozen=True)
class Aligner:
    """Everything that contexts of one participant have in common.

    Attributes
    ----------
    name : str
        Of the estimator.
    method : str
        Of `align`.
    about : str
        What the pieces are.
    counts : dict of int to dict of str to int
        Shared images with each other participant, the fewest over the contexts of each size.
    own : ndarray (n,)
        Piece of each of the participant's vertices.
    """

    name: str
    method: str
    about: str
    counts: dict[int, dict[str, int]]
    own: np.ndarray = field(repr=False)
    teachers: dict[str, _Teacher] = field(repr=False)

    def weights(
        self, features: np.ndarray, train: np.ndarray, context: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Vertices and their weights (n, E + 1), batch by batch, from one context.

        Parameters
        ----------
        features : ndarray (S, E)
            Of the context.
        train : ndarray (n, n_train)
            The participant's averaged responses, which may be on disk.
        context : ndarray (S,) of int
            Columns of ``train``.
        """
        names = usable(self.counts[len(context)])
        for batch, able in self._batches(train, context, names):
            rows = np.flatnonzero(np.isin(self.own, batch))
            people, weights, parcels = {}, {}, {}
            for name in able:
                its = self.teachers[name]
                there = np.flatnonzero(np.isin(its.pieces, batch))
                people[name] = (its.features, its.person.train[there][:, its.columns])
                weights[name], parcels[name] = its.person.ridge[there], its.pieces[there]
            average = fit_aligned(people, weights=weights, parcels=parcels, method=self.method)
            betas = np.asarray(train[rows][:, context])
            yield rows, average.adapt(features, betas, parcels=self.own[rows]).weights

    def _batches(
        self, train: np.ndarray, context: np.ndarray, names: Sequence[str]
    ) -> Iterator[tuple[list[int], tuple[str, ...]]]:
        """Pieces that the same others have, some thousand vertices together: they share a gain's evidence."""
        most = BLOCK * FEW_TEACHERS // max(FEW_TEACHERS, len(names))
        groups: dict[tuple[str, ...], list[int]] = {}
        theirs = {name: set(self.teachers[name].pieces.tolist()) for name in names}
        size = np.bincount(self.own[self.own >= 0])
        for piece in np.flatnonzero(size):
            able = tuple(name for name in names if int(piece) in theirs[name])
            if able and (np.ptp(train[self.own == piece][:, context], axis=1) > 0).any():
                groups.setdefault(able, []).append(int(piece))
        for able, pieces in groups.items():
            batch: list[int] = []
            for piece in pieces:
                if batch and size[[*batch, piece]].sum() > most:
                    yield batch, able
                    batch = []
                batch.append(piece)
            yield batch, able


def open_aligner(
    job: EncodeJob, plan: EncodePlan, target: Target, people: Mapping[str, Prepared]
) -> Aligner | None:
    """Get ready to align to one participant; None where that was not asked for or is not possible."""
    if not target.aligned:
        return None
    method = job.settings.encode_alignment
    pieces, about = pieces_of(job, plan)
    own = set(image_keys(plan.rows(plan.people[target.key].train)))
    counts = shared_counts(plan, target.key, target.teachers, target.sizes, job.settings.encode_repeats)
    teachers = {}
    for name in dict.fromkeys(name for size in target.aligned for name in usable(counts[size])):
        person, features = people[name], plan.rows(plan.people[name].train)
        columns = np.array([i for i, image in enumerate(image_keys(features)) if image in own])
        good = np.isfinite(person.ridge[:, -1])
        teachers[name] = _Teacher(
            person, columns, features[columns], np.where(good, pieces[person.vertices], -1)
        )
    its = pieces[people[target.key].vertices]
    return Aligner(ALIGNED[method], method, about, counts, its, teachers)
