# SPDX-License-Identifier: Apache-2.0
"""Reading a collection: what is there, trials, betas, what they were scaled by, and what others read."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from conform_app.errors import NoInputError, UsageError
from conform_app.mosaic import growth, layout
from conform_app.mosaic.beside import BesideBetas
from conform_app.mosaic.place import Place
from conform_app.mosaic.selection import Selection, indices, labelled
from conform_app.mosaic.shards import Grain, ShardReader
from conform_app.mosaic.split import SIDES, side_of_trials
from conform_app.mosaic.tables import parse

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.mosaic.torch_data import TrialDataset


_END = b"\n}\n"  # of a manifest that is whole: no other line begins with a brace


class CollectionReader(BesideBetas):
    """What a `Collection` can do without writing."""

    def __init__(self, place: Place, common: Mapping[str, Any], manifest: dict[str, Any] | bytes) -> None:
        self.place = place
        self.common = dict(common)
        self._manifest = manifest
        self.space: str = common["space"]
        self.n_vertices: int = common["n_vertices"]
        self.dtype: str = common["dtype"]
        self._records: dict[str, dict[str, Any]] = {}
        self._readers: dict[str, ShardReader] = {}
        self._trials: dict[str, pd.DataFrame] = {}
        self._tables: dict[str, pd.DataFrame] = {}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a collection for reading and, if it is on this machine, for adding to it.

        Parameters
        ----------
        path : path or URL
            A folder, or an address that fsspec knows (``s3://``, ``https://``, ...).

        Returns
        -------
        Collection

        Raises
        ------
        NoInputError
            If there is no collection.
        FileFaultError
            If it is damaged.
        """
        place = Place.of(path)
        common = growth.load_json(place, layout.COLLECTION)
        try:
            content = place.read(layout.MANIFEST)
        except NoInputError:
            return cls(place, common, {})
        opened = cls(place, common, content)
        if not content.endswith(_END):
            _ = opened.manifest  # not whole: says so now
        return opened

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the version opened; empty before the first `seal`.

        Parsed when it is first needed: one trial of a known participant is read without.
        """
        if isinstance(self._manifest, bytes):
            self._manifest = growth.parse_json(self.place, layout.MANIFEST, self._manifest)
        return self._manifest

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
        """Return a table of this version.

        Parameters
        ----------
        name : str
            ``stimuli``, ``names``, ``near``, ``methodology``, ...

        Returns
        -------
        DataFrame

        Raises
        ------
        NoInputError
            If this version has no such table.
        """
        if name not in self._tables:
            tables = self.manifest.get("tables", {})
            file = next((f for f in tables if f.rpartition("/")[2] == f"{name}.tsv"), None)
            if file is None:
                there = sorted(PurePosixPath(f).stem for f in tables if f.endswith(".tsv"))
                raise NoInputError(
                    f"Version {self.version} of {self.place.root} has no table {name!r}.",
                    f"It has {', '.join(there)}; seal(tables=...) adds others."
                    if self.manifest
                    else "Seal the collection first.",
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

        Parameters
        ----------
        key : str
            Such as ``"sub-01_NSD"``.

        Returns
        -------
        dict

        Raises
        ------
        NoInputError
            If the participant is not in the collection.
        """
        if key not in self._records:
            name = self._path(key, layout.RECORD)
            if key.startswith(".") or not self.place.exists(name):
                raise NoInputError(
                    f"{self.place.root} has no participant {key!r}.",
                    f"It has {', '.join(self.keys[:5])}{', ...' if len(self.keys) > 5 else ''}.",
                )
            self._records[key] = growth.load_json(self.place, name)
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

    def betas(
        self,
        participant: str,
        trials: Selection = None,
        vertices: Selection = None,
        *,
        harmonised: bool = False,
    ) -> np.ndarray:
        """Read single-trial betas.

        Parameters
        ----------
        participant : str
            Such as ``sub-01_NSD``.
        trials, vertices : int, slice, sequence of int or bool mask, optional
            Which rows and columns; all by default.
        harmonised : bool, default False
            In the participant's scale with the sites' share taken out (see `harmonised_scale`).

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
        if harmonised:
            scale = self.harmonised_scale(participant)
            columns = None if vertices is None else indices(vertices, self.n_vertices, "vertex")
            return self.betas(participant, trials, vertices) * (scale if columns is None else scale[columns])
        if type(trials) is int and vertices is None and 0 <= trials < reader.grain.n_trials:
            return reader.read(np.array([trials]), None)
        rows = indices(trials, reader.grain.n_trials, "trial")
        columns = None if vertices is None else indices(vertices, self.n_vertices, "vertex")
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

        Raises
        ------
        UsageError
            The trials have no such column; no such split, or none before the first `seal`.
        NoInputError
            There is no such participant.
        """
        table = self.trials(participant)
        wanted = {"split": split, "stimulus": stimulus, **columns}
        if split is not None and not {split} <= set(SIDES):
            raise UsageError(f"{split!r} is no split.", f"Choose {', '.join(SIDES)}.")
        keep = np.ones(len(table), bool)
        for column, value in wanted.items():
            if value is None:
                continue
            if column not in table.columns:
                hint = "Seal the collection first." if column == "split" else f"It has {list(table.columns)}."
                raise UsageError(f"The trials of {participant} have no column {column!r}.", hint)
            single = isinstance(value, str) or not isinstance(value, Iterable)
            values = [value] if single else list(value)
            keep &= table[column].isin(values).to_numpy()
        return np.flatnonzero(keep)

    def region(self, *labels: str | int) -> np.ndarray:
        """Vertices of one or more regions, from the table ``parcels`` given to `seal`.

        Parameters
        ----------
        *labels : str or int
            Values of that table's column ``label``; the table has one row per vertex, in order.

        Returns
        -------
        ndarray of int
            For `betas`.

        Raises
        ------
        NoInputError
            If there is no such table.
        UsageError
            If no vertex has such a label.
        """
        return labelled(self.table("parcels"), labels, self.n_vertices)

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
