# SPDX-License-Identifier: Apache-2.0
"""A collection: open it, read from it, add to it, seal it.

What is written for a participant never depends on the others, so participants can be added at the same time
and at any time; what does depend on all of them (stimulus identity, the split, tables) is made by `seal`,
which gives the collection its next version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.mosaic import growth
from conform_app.mosaic.averages import Averages
from conform_app.mosaic.normalise import FitUnit
from conform_app.mosaic.place import Place
from conform_app.mosaic.reading import CollectionReader
from conform_app.mosaic.similarity import THRESHOLD
from conform_app.mosaic.writer import Submission

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.mosaic.identity import Identity
    from conform_app.mosaic.split import Split


class Collection(CollectionReader):
    """Single-trial betas of many participants, with their trials, stimuli and split.

    Made by `Collection.open` or `Collection.create`.

    Attributes
    ----------
    space : str
        Space of the vertices, the same for all participants.
    n_vertices : int
    dtype : str
        Type on disk; what is read is float32.
    manifest : dict
        Of the version opened; empty before the first `seal`.
    """

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        space: str,
        n_vertices: int,
        dtype: str = "float32",
        configuration: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> Collection:
        """Make an empty collection.

        Parameters
        ----------
        path : path
            A folder that does not exist or is empty.
        space : str
            Such as ``fsLR_den-91k``.
        n_vertices : int
        dtype : {"float32", "float16"}
            Type on disk.  float16 keeps three decimal digits and halves the size.
        configuration : dict, optional
            What all participants must share (versions, settings hash), checked key by key.
        exist_ok : bool, default False
            Open the collection instead if it is there and agrees.

        Returns
        -------
        Collection

        Raises
        ------
        CannotCreateError
            If the folder holds something else, or a collection that does not agree.
        """
        growth.create(Path(path), space, n_vertices, dtype, dict(configuration or {}), exist_ok)
        return cls.open(path)

    def add_participant(
        self,
        dataset: str,
        participant: str,
        trials: pd.DataFrame,
        units: Sequence[FitUnit],
        *,
        normalise: bool = True,
        averages: Averages | None = None,
        ceilings: bool = True,
        attributes: Mapping[str, Any] | None = None,
        configuration: Mapping[str, Any] | None = None,
        sources: Sequence[str] = (),
        dataset_id: str = "",
        replace: bool = False,
    ) -> dict[str, Any]:
        """Write one participant; it is there afterwards, or nothing has changed.

        Many processes may add participants at the same time.  They count from the next `seal` on.

        Parameters
        ----------
        dataset : str
            Short name, letters and digits.
        participant : str
            ``sub-01``.
        trials : DataFrame
            One row per trial: ``stimulus`` (name of the file shown, with extension), ``phase`` (train, test
            or artificial by the dataset itself), and whatever else is known: ``session``, ``run``,
            ``onset``, ``alias``, ``source``, ``sha256`` of the stimulus.
        units : sequence of FitUnit
            Betas of each GLM fit; their rows one after the other are the rows of ``trials``.
        normalise : bool, default True
            z-score per vertex by the train trials of each fit.
        averages : Averages, optional
            Denoised averages per stimulus; with the fit of each row they are put on the scale of the betas.
        ceilings : bool, default True
            Compute noise ceilings per vertex and phase.
        attributes : dict, optional
            About the participant and how it was measured: sex, age, visual_angle, site, long_name, ...
        configuration : dict, optional
            Must agree with the collection's.
        sources : sequence of str, optional
            Files that the betas come from.
        dataset_id : str, optional
            What tells two datasets of one name apart (a DOI, a path): must be the same in all participants.
        replace : bool, default False
            Write a participant that is there already again.

        Returns
        -------
        dict
            The participant's record.

        Raises
        ------
        DataError
            If trials and betas do not go together, or the configuration does not agree.
        CannotCreateError
            If the participant is there already, or there is no room.
        FileFaultError
            If betas cannot be read or the disk fills up.
        """
        given = Submission(
            dataset,
            participant,
            trials,
            units if isinstance(units, FitUnit) else list(units),
            normalise,
            averages,
            ceilings,
            dict(attributes or {}),
            dict(configuration or {}),
            list(sources),
            dataset_id,
        )
        record = growth.add(self.root, self.common, given, replace)
        self._forget(given.key)
        return record

    def remove(self, participant: str) -> None:
        """Delete a participant; the manifest says so from the next `seal` on.

        Parameters
        ----------
        participant : str
            Such as ``"sub-01_NSD"``.

        Raises
        ------
        NoInputError
            If it is not there.
        """
        growth.remove(self.root, participant)
        self._forget(participant)

    def names(self) -> pd.DataFrame:
        """Stimulus names of all participants, pending ones included, for `resolve_duplicates`."""
        records = [self.record(key) for key in growth.present(self.root)]
        return growth.names(growth.read_all(self.place, records), records)

    def presentations(self, identity: Identity | None = None) -> pd.DataFrame:
        """Trials per stimulus, dataset, participant and phase, pending ones included, for `split_stimuli`.

        Parameters
        ----------
        identity : Identity, optional
            From `resolve_duplicates`; by default stimuli go by the names in the tables of trials.

        Returns
        -------
        DataFrame
            stimulus, dataset, participant, phase, n_trials.
        """
        records = [self.record(key) for key in growth.present(self.root)]
        return growth.presentations(growth.read_all(self.place, records), records, identity)

    def seal(
        self,
        stimuli: Identity | None = None,
        split: Split | None = None,
        *,
        embeddings: Mapping[str, np.ndarray] | None = None,
        threshold: float = THRESHOLD,
        same_name: str = "check",
        device: str = "cpu",
        tables: Mapping[str, pd.DataFrame | np.ndarray] | None = None,
        note: str = "",
    ) -> dict[str, Any]:
        """Make the next version: identity and split over all participants that are there, and the manifest.

        Parameters
        ----------
        stimuli : Identity, optional
            From `resolve_duplicates`; by default made here from `names`.
        split : Split, optional
            From `split_stimuli`; by default made here from `presentations`.
        embeddings, threshold, same_name, device
            For these defaults.
        tables : dict of DataFrame, optional
            Further tables of this version, such as ``methodology``; an array is kept as ``.npy``.
        note : str, optional
            A word on this version for its history.

        Returns
        -------
        dict
            The manifest.  If nothing has changed since the last version, that one, unchanged.

        Raises
        ------
        DataError
            If stimuli contradict each other, or two datasets have one name.
        FileFaultError
            If a participant is damaged.
        TemporaryError
            If another process is sealing.
        """
        self._forget()
        options = {"embeddings": embeddings, "threshold": threshold, "same_name": same_name, "device": device}
        manifest = growth.seal(Place(self.root), stimuli, split, options, dict(tables or {}), note)
        self._manifest = dict(manifest)
        self._forget()
        return manifest
