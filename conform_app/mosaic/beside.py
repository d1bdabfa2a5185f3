# SPDX-License-Identifier: Apache-2.0
"""What lies beside the betas of each participant: their scale, noise ceilings, denoised averages, holes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from conform_app.errors import NoInputError
from conform_app.mosaic import layout
from conform_app.mosaic.tables import parse


class BesideBetas:
    """Part of a `Collection` reader: arrays with one value a vertex."""

    place: Any
    manifest: Any
    n_vertices: int
    version: Any
    keys: Any
    record: Any
    table: Any
    _path: Any

    def statistics(self, participant: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Scale of the betas: z * sd + mean undoes it.

        Parameters
        ----------
        participant : str
            Such as ``"sub-01_NSD"``.

        Returns
        -------
        units : list of str
            Names of the fits.
        mean, sd : ndarray, (n_units, n_vertices)
            Over the train trials of each fit, in the unit of the betas as given.

        Raises
        ------
        NoInputError
            If the participant was not normalised.
        """
        mean, sd = (self.place.array(self._path(participant, name)) for name in ("mean", "sd"))
        return list(mean.attrs["units"]), mean[...], sd[...]

    def harmonised_scale(self, participant: str) -> np.ndarray:
        """Scale of a participant's betas without its site's share.

        Betas times this are comparable over sites and keep what participants of a site differ in.

        Parameters
        ----------
        participant : str
            Such as ``"sub-01_NSD"``.

        Returns
        -------
        ndarray, (n_vertices,) float32
            NaN where any participant has no scale.

        Raises
        ------
        NoInputError
            The version was sealed without, or the participant has no part in it.
        """
        table = self.table("harmonised")
        row = table.loc[table["participant"] == participant, "row"]
        if not len(row):
            raise NoInputError(f"{participant} was not harmonised.", "It has no train trials, or came later.")
        name = f"{layout.TABLES}/v{self.version:04d}/harmonised_scale.npy"
        return np.load(io.BytesIO(self.place.read(name)), allow_pickle=False)[int(row.iloc[0])]

    def noise_ceilings(self, participant: str) -> dict[tuple[str, str], np.ndarray]:
        """Noise ceilings of a participant.

        Parameters
        ----------
        participant : str
            Such as ``"sub-01_NSD"``.

        Returns
        -------
        dict of (phase, "1" or "avg") to ndarray, (n_vertices,)
            Per cent, for one trial and for the average of all; empty without repeats.
        """
        if not self.record(participant)["noise_ceilings"]:
            return {}
        array = self.place.array(self._path(participant, "noiseceiling"))
        values = array[...]
        return {(row["phase"], row["n"]): values[i] for i, row in enumerate(array.attrs["maps"])}

    def averages(self, participant: str) -> tuple[np.ndarray, np.ndarray]:
        """Denoised averages.

        They are on the scale of the betas, unless the participant's record says otherwise (in
        ``averages_units``).

        Parameters
        ----------
        participant : str
            Such as ``"sub-01_NSD"``.

        Returns
        -------
        stimuli : ndarray of str, (n,)
            Each once.
        values : ndarray, (n, n_vertices)

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
        values = self.place.array(self._path(participant, "averages"))[...]
        return _one_row_each(stimulus, values, table["n_trials"].to_numpy(np.float64))

    def valid_vertices(self, participants: Sequence[str] | None = None) -> np.ndarray:
        """Vertices that have a value in every trial of these participants (default: all).

        Parameters
        ----------
        participants : sequence of str, optional

        Returns
        -------
        ndarray of int
        """
        keep = np.ones(self.n_vertices, bool)
        for key in self.keys if participants is None else participants:
            if self.record(key)["missing"]["vertices"]:
                keep &= self.place.array(self._path(key, "finite"))[...]
        return np.flatnonzero(keep)


def _one_row_each(
    stimulus: np.ndarray, values: np.ndarray, n_trials: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a stimulus that its dataset shows under several names, averaged by their trials."""
    _, first, of, counts = np.unique(stimulus, return_index=True, return_inverse=True, return_counts=True)
    kept = np.sort(first)
    if len(kept) == len(stimulus):
        return stimulus, values
    out = values[kept]
    for one in np.flatnonzero(counts > 1):
        rows = np.flatnonzero(of == one)
        out[np.searchsorted(kept, rows[0])] = np.average(values[rows], axis=0, weights=n_trials[rows])
    return stimulus[kept], out
