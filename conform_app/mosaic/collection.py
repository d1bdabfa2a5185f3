# SPDX-License-Identifier: Apache-2.0
"""A collection: open it, read from it, add to it, seal it.

What is written for a participant never depends on the others, so participants can be added at the same time
and at any time; what does depend on all of them (stimulus identity, the split, tables) is made by `seal`,
which gives the collection its next version.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import NoInputError, UsageError
from conform_app.mosaic import growth, layout
from conform_app.mosaic.normalise import FitUnit
from conform_app.mosaic.place import Place
from conform_app.mosaic.shards import Grain, ShardReader
from conform_app.mosaic.similarity import THRESHOLD
from conform_app.mosaic.split import side_of_trials
from conform_app.mosaic.tables import parse
from conform_app.mosaic.writer import Averages

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.mosaic.identity import Identity
    from conform_app.mosaic.split import Split
    from conform_app.mosaic.torch_data import TrialDataset

Selection = int | slice | Sequence[int] | np.ndarray | None


class Collection:
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

    def __init__(self, place: Place, common: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        self.place = place
        self.common = dict(common)
        self.manifest = dict(manifest)
        self.space: str = common["space"]
        self.n_vertices: int = common["n_vertices"]
        self.dtype: str = common["dtype"]
        self._records: dict[str, dict[str, Any]] = {}
        self._readers: dict[str, ShardReader] = {}
        self._trials: dict[str, pd.DataFrame] = {}
        self._tables: dict[str, pd.DataFrame] = {}

    # -- opening ----------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path) -> Collection:
        """Open a collection for reading and, if it is on this machine, for adding to it.

        Parameters
        ----------
        path : path or URL
            A folder, or an address that fsspec knows (``s3://``, ``https://``, ...).

        Raises
        ------
        NoInputError
            If there is no collection.
        FileFaultError
            If it is damaged.
        """
        place = Place.of(path)
        common = growth.load_json(place, layout.COLLECTION)
        manifest = growth.load_json(place, layout.MANIFEST) if place.exists(layout.MANIFEST) else {}
        return cls(place, common, manifest)

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

        Raises
        ------
        CannotCreateError
            If the folder holds something else, or a collection that does not agree.
        """
        growth.create(Path(path), space, n_vertices, dtype, dict(configuration or {}), exist_ok)
        return cls.open(path)

    @property
    def root(self) -> Path:
        """Folder of a local collection.

        Raises
        ------
        UsageError
            If the collection is not on this machine.
        """
        if self.place.fs is not None:
            raise UsageError(f"{self.place.root} is read only.", "Write to a local folder and copy that.")
        return Path(self.place.root)

    def __repr__(self) -> str:
        return f"Collection({str(self.place.root)!r}, version {self.version}, {len(self.keys)} participants)"

    # -- what is there ----------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Version, 0 before the first `seal`."""
        return int(self.manifest.get("version", 0))

    @property
    def keys(self) -> list[str]:
        """Participants such as ``sub-01_NSD``: those of the manifest that are there.

        Before the first `seal`: all that are there.
        """
        if not self.manifest:
            return self.pending
        gone = set(self.missing)
        return [key for key in self.manifest["participants"] if key not in gone]

    @property
    def pending(self) -> list[str]:
        """Participants added since the last `seal`; always empty for a remote collection."""
        if self.place.fs is not None:
            return []
        sealed = self.manifest.get("participants", {})
        return [key for key in growth.present(self.root) if key not in sealed]

    @property
    def missing(self) -> list[str]:
        """Participants of the manifest that are no longer there."""
        if self.place.fs is not None or not self.manifest:
            return []
        there = set(growth.present(self.root))
        return [key for key in self.manifest["participants"] if key not in there]

    @property
    def participants(self) -> pd.DataFrame:
        """One row per participant, index ``sub-01_NSD``; trial counts, attributes and what is missing."""
        return growth.participants_table([self.record(key) for key in self.keys]).set_index("key")

    @property
    def stimuli(self) -> pd.DataFrame:
        """One row per stimulus: ``stimulus``, ``split``, ``reason``, ``source``, ``n_datasets``, ..."""
        return self.table("stimuli")

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of this version: ``stimuli``, ``names``, ``near``, ``methodology``, ...

        Raises
        ------
        NoInputError
            If this version has no such table.
        """
        if name not in self._tables:
            tables = self.manifest.get("tables", {})
            file = next((f for f in tables if f.rpartition("/")[2] == f"{name}.tsv"), None)
            if file is None:
                raise NoInputError(
                    f"Version {self.version} of {self.place.root} has no table {name!r}.",
                    "Seal the collection first." if not self.manifest else f"It has {sorted(tables)}.",
                )
            sidecar = self.place.read(file.removesuffix(".tsv") + ".json")
            self._tables[name] = parse(self.place.read(file), sidecar, file)
        return self._tables[name].copy()

    @property
    def audit(self) -> dict[str, Any]:
        """Similarity that is left between train and test."""
        return growth.load_json(self.place, f"{layout.TABLES}/v{self.version:04d}/audit.json")

    def record(self, key: str) -> dict[str, Any]:
        """Everything on record about a participant.

        Raises
        ------
        NoInputError
            If the participant is not in the collection.
        """
        if key not in self._records:
            if key not in self.keys and key not in self.pending:
                raise NoInputError(
                    f"{self.place.root} has no participant {key!r}.",
                    f"It has {', '.join(self.keys[:5])}{', ...' if len(self.keys) > 5 else ''}.",
                )
            self._records[key] = growth.load_json(self.place, self._path(key, layout.RECORD))
        return self._records[key]

    def trials(self, participant: str) -> pd.DataFrame:
        """Return the trials of a participant, in the order of the rows of its betas.

        Parameters
        ----------
        participant : str
            Such as ``sub-01_NSD``.

        Returns
        -------
        DataFrame
            ``index``, ``stimulus`` (name in the collection), ``name`` (in its dataset), ``phase`` (the
            dataset's own), ``split`` (the collection's; absent before the first `seal`), ``repetition``,
            ``unit``, and what the dataset gave (``session``, ``run``, ``onset``, ...).
        """
        if participant not in self._trials:
            from conform_app.mosaic.identity import lookup

            record = self.record(participant)
            table = growth.read_trials(self.place, participant)
            if participant in self.manifest.get("participants", {}):
                found = lookup(self.table("names"), record["dataset"], table["name"])
                table.insert(1, "stimulus", found)
                table.insert(3, "split", side_of_trials(self._sides, table))
            else:
                table.insert(1, "stimulus", table["name"])
            self._trials[participant] = table
        return self._trials[participant].copy()

    @functools.cached_property
    def _sides(self) -> dict[str, str]:
        stimuli = self.table("stimuli")
        return dict(zip(stimuli["stimulus"], stimuli["split"], strict=True))

    # -- reading ----------------------------------------------------------------------------------------

    def betas(self, participant: str, trials: Selection = None, vertices: Selection = None) -> np.ndarray:
        """Read single-trial betas.

        Parameters
        ----------
        participant : str
            Such as ``sub-01_NSD``.
        trials, vertices : int, slice, sequence of int or bool mask, optional
            Which rows and columns; all by default.

        Returns
        -------
        ndarray, (n_trials, n_vertices) float32
            z scores by the train trials of each fit (see `record` for exceptions), NaN where there is none.
            An int gives that row as ``(1, n_vertices)``.

        Raises
        ------
        UsageError
            If an index is out of range.
        """
        reader = self._readers.get(participant)
        if reader is None:
            record = self.record(participant)
            grain = Grain(record["n_trials"], record["n_vertices"], record["dtype"])
            reader = ShardReader(self.place.folder(self._path(participant, "betas")), grain)
            self._readers[participant] = reader
        if type(trials) is int and vertices is None and 0 <= trials < reader.grain.n_trials:
            return reader.read(np.array([trials]), None)
        rows = _indices(trials, reader.grain.n_trials, "trial")
        columns = None if vertices is None else _indices(vertices, self.n_vertices, "vertex")
        return reader.read(np.arange(reader.grain.n_trials) if rows is None else rows, columns)

    def select(
        self,
        participant: str,
        *,
        split: str | None = None,
        stimulus: str | Sequence[str] | None = None,
        **columns: Any,
    ) -> np.ndarray:
        """Rows of a participant's trials that have these values.

        Parameters
        ----------
        participant : str
        split : {"train", "test", "artificial", "excluded"}, optional
        stimulus : str or sequence of str, optional
        **columns
            Values (or sequences of values) of any other column, such as ``phase="test"``, ``session="01"``.

        Returns
        -------
        ndarray of int
            For `betas`.
        """
        table = self.trials(participant)
        wanted = {"split": split, "stimulus": stimulus, **columns}
        keep = np.ones(len(table), bool)
        for column, value in wanted.items():
            if value is None:
                continue
            if column not in table.columns:
                hint = "Seal the collection first." if column == "split" else f"It has {list(table.columns)}."
                raise UsageError(f"The trials of {participant} have no column {column!r}.", hint)
            values = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
            keep &= table[column].isin(values).to_numpy()
        return np.flatnonzero(keep)

    def statistics(self, participant: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Scale of the betas: units, mean and sd ``(n_units, n_vertices)``; z * sd + mean undoes it.

        Raises
        ------
        NoInputError
            If the participant was not normalised.
        """
        mean, sd = (self.place.array(self._path(participant, name)) for name in ("mean", "sd"))
        return list(mean.attrs["units"]), mean[...], sd[...]

    def noise_ceilings(self, participant: str) -> dict[tuple[str, str], np.ndarray]:
        """Noise ceilings, per cent: ``(phase, "1" or "avg")`` to ``(n_vertices,)``; empty without repeats."""
        if not self.record(participant)["noise_ceilings"]:
            return {}
        array = self.place.array(self._path(participant, "noiseceiling"))
        values = array[...]
        return {(row["phase"], row["n"]): values[i] for i, row in enumerate(array.attrs["maps"])}

    def averages(self, participant: str) -> tuple[np.ndarray, np.ndarray]:
        """Denoised averages: stimuli ``(n,)`` and values ``(n, n_vertices)``, in their own units.

        Raises
        ------
        NoInputError
            If the participant has none.
        """
        names = [self.place.read(self._path(participant, f"averages.{kind}")) for kind in ("tsv", "json")]
        table = parse(*names, f"averages of {participant}")
        stimulus = table["name"].to_numpy(str)
        if participant in self.manifest.get("participants", {}):
            from conform_app.mosaic.identity import lookup

            stimulus = lookup(self.table("names"), self.record(participant)["dataset"], stimulus)
        return stimulus, self.place.array(self._path(participant, "averages"))[...]

    def valid_vertices(self, participants: Sequence[str] | None = None) -> np.ndarray:
        """Vertices that have a value in every trial of these participants (default: all).

        Returns
        -------
        ndarray of int
        """
        keep = np.ones(self.n_vertices, bool)
        for key in self.keys if participants is None else participants:
            if self.record(key)["missing"]["vertices"]:
                keep &= self.place.array(self._path(key, "finite"))[...]
        return np.flatnonzero(keep)

    def torch_dataset(
        self,
        split: str | None = "train",
        *,
        participants: Sequence[str] | None = None,
        vertices: str | Selection = "valid",
        average: bool = False,
        images: Any = None,
    ) -> TrialDataset:
        """Return a ``torch.utils.data.Dataset`` of trials; safe with several workers.

        Parameters
        ----------
        split : {"train", "test", "artificial"} or None
            None: every trial, those of no split included.
        participants : sequence of str, optional
            All by default.
        vertices : "valid", "all" or a selection
            ``valid``: those without a missing value in any of the participants.
        average : bool, default False
            One item per participant and stimulus, the mean over its trials, instead of one per trial.
        images : callable or mapping, optional
            Gives what to show a model for a stimulus's name; goes to the item as ``image``.

        Returns
        -------
        TrialDataset
            Items are dicts: ``betas`` (float32 tensor), ``participant``, ``stimulus``, ``index``,
            ``n_trials``, ``visual_angle`` and, if asked for, ``image``.
        """
        from conform_app.mosaic.torch_data import TrialDataset

        return TrialDataset(self, split, participants, vertices, average, images)

    def export_hdf5(
        self,
        folder: str | Path,
        *,
        participants: Sequence[str] | None = None,
        dtype: str = "float64",
        checksum_name: bool = True,
    ) -> list[Path]:
        """Write MOSAIC-compliant HDF5 files, one per participant, that the ``mosaic-dataset`` package loads.

        Parameters
        ----------
        folder : path
        participants : sequence of str, optional
            All by default.
        dtype : {"float64", "float32"}
            float64 is what the published files have; float32 is read as well and takes half.
        checksum_name : bool, default True
            Name files ``sub-XX_SHORT_crc32-XXXXXXXX.hdf5``; False: ``sub-XX_SHORT.hdf5``, which
            ``mosaic.load`` looks for.

        Returns
        -------
        list of Path
        """
        from conform_app.mosaic.hdf5 import export

        keys = self.keys if participants is None else list(participants)
        return [export(self, key, Path(folder), dtype, checksum_name) for key in keys]

    # -- growing ----------------------------------------------------------------------------------------

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
            Denoised averages per stimulus.
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
        from conform_app.mosaic.writer import Submission

        given = Submission(
            dataset,
            participant,
            trials,
            list(units),
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

        Raises
        ------
        NoInputError
            If it is not there.
        """
        growth.remove(self.root, participant)
        self._forget(participant)

    def names(self) -> pd.DataFrame:
        """Stimulus names of all participants, pending ones included, for `resolve_duplicates`."""
        return growth.names(self.place, [self.record(key) for key in growth.present(self.root)])

    def presentations(self, identity: Identity | None = None) -> pd.DataFrame:
        """Trials per stimulus, dataset, participant and phase, pending ones included, for `split_stimuli`."""
        records = [self.record(key) for key in growth.present(self.root)]
        return growth.presentations(self.place, records, identity)

    def seal(
        self,
        stimuli: Identity | None = None,
        split: Split | None = None,
        *,
        embeddings: Mapping[str, np.ndarray] | None = None,
        threshold: float = THRESHOLD,
        same_name: str = "check",
        tables: Mapping[str, pd.DataFrame] | None = None,
        note: str = "",
    ) -> dict[str, Any]:
        """Make the next version: identity and split over all participants that are there, and the manifest.

        Parameters
        ----------
        stimuli : Identity, optional
            From `resolve_duplicates`; by default made here from `names`.
        split : Split, optional
            From `split_stimuli`; by default made here from `presentations`.
        embeddings, threshold, same_name
            For these defaults.
        tables : dict of DataFrame, optional
            Further tables of this version, such as ``methodology``.
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
        options = {"embeddings": embeddings, "threshold": threshold, "same_name": same_name}
        manifest = growth.seal(Place(self.root), stimuli, split, options, dict(tables or {}), note)
        self.manifest = dict(manifest)
        self._forget()
        return manifest

    def verify(self) -> list[str]:
        """Compare every file with its checksum.

        Returns
        -------
        list of str
            What is wrong, one sentence each; empty if all is well.
        """
        return growth.verify(self.place, self.manifest, self.keys)

    # -- inside -----------------------------------------------------------------------------------------

    def _path(self, key: str, name: str) -> str:
        return f"{layout.PARTICIPANTS}/{key}/{name}"

    def _forget(self, key: str | None = None) -> None:
        for cache in (self._records, self._readers, self._trials):
            cache.clear() if key is None else cache.pop(key, None)
        self._tables.clear()
        self.__dict__.pop("_sides", None)


def _indices(given: Selection, n: int, what: str) -> np.ndarray | None:
    """Indices of a selection, checked."""
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
