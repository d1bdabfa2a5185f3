# SPDX-License-Identifier: Apache-2.0
"""Haemodynamic responses to a trial, read at any time after its onset.

The tables hold responses to a 0.1-s event every 0.1 s.  A trial of duration d is n = max(1, round(d / 0.1))
such events in a row, so its response is the table summed over n shifts.  Between samples it is the monotone
cubic (pchip) through them; before the onset and past the end it is zero.  Every response is divided by its
peak *on the TR grid counted from its own onset*, which makes a beta the peak percent change of that trial
wherever its onset falls between two volumes.

dtype: float64 until the values at the lags asked for, float32 from there (before the division by the peak).
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Protocol

import numpy as np

DT = 0.1
"""Spacing of the tables, s."""


class Responses(Protocol):
    """A family of HRFs that can be read at any lag."""

    n_hrfs: int

    def sample(self, lags: np.ndarray, duration: float) -> np.ndarray:
        """Values at ``lags`` (s after onset) of a trial of ``duration`` s: (n_lags, n_hrfs) float32."""

    def on_grid(self, duration: float) -> np.ndarray:
        """Values at 0, TR, 2 TR, ...: (n_samples, n_hrfs) float32."""


@cache
def library_table() -> np.ndarray:
    """The 20 HRFs of the Natural Scenes Dataset (Allen et al. 2022): (501, 20), every 0.1 s."""
    return _load("library.tsv")


@cache
def canonical_table() -> np.ndarray:
    """The assumed HRF: (490, 1), every 0.1 s."""
    return _load("canonical.tsv")


def _load(name: str) -> np.ndarray:
    path = resources.files("conform_app") / "data" / "hrf" / name
    with path.open(encoding="ascii") as file:
        table = np.loadtxt(file, ndmin=2)
    table.setflags(write=False)
    return table


class TableResponses:
    """Responses from a 0.1-s table, for any duration.

    Parameters
    ----------
    table : (n_samples, n_hrfs) float64
        Responses to a 0.1-s event, every 0.1 s.
    tr : float
        Repetition time, s: spacing of the grid on which the peak is 1.
    whole_seconds : bool
        The grid runs to the end of the table's last second (the library's convention) instead of ending just
        before its last sample (the canonical HRF's).
    """

    def __init__(self, table: np.ndarray, tr: float, *, whole_seconds: bool) -> None:
        self.table = np.asarray(table, dtype=np.float64)
        self.tr = float(tr)
        self.whole_seconds = whole_seconds
        self.n_hrfs = self.table.shape[1]
        self._made: dict[int, tuple] = {}

    def _curve(self, duration: float) -> tuple:
        """Interpolator, time of its last sample, end of the grid, peaks on the grid."""
        from scipy.interpolate import PchipInterpolator

        n = max(1, int(np.floor(duration / DT + 0.5)))
        if n not in self._made:
            held = np.stack([np.convolve(column, np.ones(n)) for column in self.table.T], axis=1)
            last = (len(held) - 1) * DT
            end = float(np.ceil(round(len(held) * DT, 9))) if self.whole_seconds else last
            curve = PchipInterpolator(np.arange(len(held)) * DT, held)
            grid = np.arange(0, end, self.tr)
            values = _within(curve, grid, last, end).astype(np.float32)
            self._made[n] = (curve, last, end, values.max(axis=0), values)
        return self._made[n]

    def sample(self, lags: np.ndarray, duration: float) -> np.ndarray:
        """See `Responses`."""
        curve, last, end, peak, _ = self._curve(duration)
        return _within(curve, np.asarray(lags, dtype=np.float64), last, end).astype(np.float32) / peak

    def on_grid(self, duration: float) -> np.ndarray:
        """See `Responses`."""
        *_, peak, values = self._curve(duration)
        return values / peak


class SampledResponses:
    """Responses given by the user every TR from trial onset; the trial's duration is already in them.

    Parameters
    ----------
    samples : (n_samples, n_hrfs) float32
        Peak 1 in each column.
    tr : float
        Repetition time, s.
    """

    def __init__(self, samples: np.ndarray, tr: float) -> None:
        from scipy.interpolate import PchipInterpolator

        samples = np.asarray(samples, dtype=np.float32)
        self.samples = samples[:, None] if samples.ndim == 1 else samples
        self.tr = float(tr)
        self.n_hrfs = self.samples.shape[1]
        self._last = (len(self.samples) - 1) * self.tr
        self._curve = PchipInterpolator(
            np.arange(len(self.samples)) * self.tr, self.samples.astype(np.float64)
        )

    def sample(self, lags: np.ndarray, duration: float) -> np.ndarray:
        """See `Responses`."""
        lags = np.asarray(lags, dtype=np.float64)
        # Onsets on the grid give lags a rounding error past the last sample: read that sample, not zero.
        near = np.where(np.abs(lags - self._last) < 1e-6 * self.tr, self._last, lags)
        return _within(self._curve, near, self._last, np.inf).astype(np.float32)

    def on_grid(self, duration: float) -> np.ndarray:
        """See `Responses`."""
        return self.samples


class Between:
    """A library with further HRFs between neighbours, for HRFs that form a smooth series.

    A cubic spline runs over the number of the HRF at every lag; the column ``i * (between + 1)`` is the
    library's HRF i.

    Parameters
    ----------
    library : Responses
    between : int
        HRFs added between each two neighbours.
    """

    def __init__(self, library: Responses, between: int) -> None:
        from scipy.interpolate import CubicSpline

        self.library, n = library, library.n_hrfs
        if n == 1:
            self._mix = np.ones((1, 1))
        else:
            places = np.linspace(0, n - 1, (n - 1) * (between + 1) + 1)
            self._mix = CubicSpline(np.arange(n), np.eye(n))(places).T  # (n, n_hrfs)
            self._mix[:, :: between + 1] = np.eye(n)
        self.n_hrfs = self._mix.shape[1]
        self._peaks: dict[float, np.ndarray] = {}

    def sample(self, lags: np.ndarray, duration: float) -> np.ndarray:
        """See `Responses`."""
        if duration not in self._peaks:
            peak = (self.library.on_grid(duration) @ self._mix).max(axis=0)
            self._peaks[duration] = peak
        return (self.library.sample(lags, duration) @ self._mix / self._peaks[duration]).astype(np.float32)

    def on_grid(self, duration: float) -> np.ndarray:
        """See `Responses`."""
        mixed = self.library.on_grid(duration) @ self._mix
        return (mixed / mixed.max(axis=0)).astype(np.float32)


def _within(curve, lags: np.ndarray, last: float, end: float) -> np.ndarray:
    """The curve where 0 <= lag < end and not past its last sample; zero elsewhere."""
    values = np.zeros((len(lags), curve.c.shape[-1]))
    inside = (lags >= 0) & (lags < end) & (lags <= last)
    values[inside] = curve(lags[inside])
    return values
