# SPDX-License-Identifier: Apache-2.0
"""Options of a GLMsingle fit: the reference's names and meanings, checked when they are made.

Where the reference documents one thing and does another, the documented (or plainly intended) behaviour is
the default here and ``reference=True`` brings back what the reference does, so that published results can
be matched:

====================================  ==================================  =================================
matter                                default                             reference=True
====================================  ==================================  =================================
extra regressors                      in every fit                        dropped from fits with 0 PCs;
                                                                          from A and B if run 1 has none
percent signal change of C and D      follows ``wantpercentbold``         always percent
constant voxels                       left out, NaN                       fitted like any other
``brainR2``, ``pcR2cutoff`` of 0      zero                                automatic
design and data of unequal length     an error                            cut to the shorter
trials hardly measured before the end NaN                                 fitted like any other
type B by least-squares-separate      percent of the mean of all runs     percent of each run's own mean
====================================  ==================================  =================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conform_app.errors import UsageError

DEFAULT_FRACS = tuple(np.linspace(1.0, 0.05, 20).round(12).tolist())
"""Fractions of the unregularised length that are tried, from 1 to 0.05."""


@dataclass(frozen=True, eq=False)
class GLMsingleOptions:
    """How to fit.  Frozen; wrong values raise `UsageError` when the object is made.

    Parameters
    ----------
    wantlibrary : bool
        Choose each voxel's HRF from the library (False: the assumed HRF for all).
    wantglmdenoise, wantfracridge : bool
        Make type C (noise regressors) and type D (fractional ridge).
    wantlss : bool
        Type B betas by least-squares-separate (Mumford et al. 2012) instead of all trials at once.
    maxpolydeg : int or sequence of int, optional
        Highest polynomial degree, for all runs or one per run; default round(minutes / 2) of each run.
    wantpercentbold : bool
        Betas in percent of the voxel's mean; False leaves them in the data's unit.
    hrftoassume : (n_samples,) array, optional
        Assumed HRF sampled every TR from trial onset; default the canonical one.
    hrflibrary : (n_samples, n_hrfs) array, optional
        HRF library sampled every TR from trial onset; default the 20 HRFs of Allen et al. 2022.
    hrfbetween : int
        HRFs added between each two neighbours of the library by smooth interpolation; ``hrf_index`` then
        counts in the finer library.  For libraries whose columns form a smooth series.
    n_pcs : int
        Largest number of noise regressors tried.
    brainthresh : (float, float)
        Percentile and factor: voxels whose mean exceeds factor x percentile may enter the noise pool.
    brainR2, pcR2cutoff : float, optional
        R2 (percent) below which a voxel may enter the noise pool, and above which it helps to choose the
        number of noise regressors; default from the distribution of the on/off R2.
    brainexclude : (n_voxels,) bool array, optional
        Voxels barred from the noise pool.
    pcR2cutoffmask : (n_voxels,) bool array, optional
        Voxels that may help to choose the number of noise regressors; default all.
    pcstop : float
        1 or more: smallest number of regressors within this factor of the best.  Zero or less: use exactly
        ``-pcstop`` regressors, no cross-validation.
    fracs : sequence of float
        Fractions in (0, 1]; a single one is used as it is, no cross-validation.
    wantautoscale : bool
        Scale and shift the ridge betas of each voxel to match its unregularised ones.
    xvalscheme : "run", "session", or sequence of int or of sequences of int, optional
        What is held out together: one run at a time (default), one session at a time, or the (0-based) runs
        of each row of a table.
    keep : str
        Letters of the types whose betas the result holds; the others' ``betas`` are None (to save memory).
    chunklen : int, optional
        Largest number of voxels worked on at once, below what the memory allows.
    reference : bool
        Reproduce the reference's quirks (table above).
    """

    wantlibrary: bool = True
    wantglmdenoise: bool = True
    wantfracridge: bool = True
    wantlss: bool = False
    maxpolydeg: int | Sequence[int] | None = None
    wantpercentbold: bool = True
    hrftoassume: Any = None
    hrflibrary: Any = None
    hrfbetween: int = 0
    n_pcs: int = 10
    brainthresh: tuple[float, float] = (99.0, 0.1)
    brainR2: float | None = None
    pcR2cutoff: float | None = None
    brainexclude: Any = None
    pcR2cutoffmask: Any = None
    pcstop: float = 1.05
    fracs: Sequence[float] = field(default=DEFAULT_FRACS)
    wantautoscale: bool = True
    xvalscheme: str | Sequence[Any] | None = None
    keep: str = "ABCD"
    chunklen: int | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("fracs", _fractions(self.fracs))
        if (self.pcstop != int(self.pcstop) and self.pcstop <= 0) or 0 < self.pcstop < 1:
            raise UsageError(
                f"pcstop is {self.pcstop}.", "Give 1 or more, or minus a whole number of regressors."
            )
        if self.n_pcs < 0 or int(self.n_pcs) != self.n_pcs:
            raise UsageError(f"n_pcs is {self.n_pcs}.", "Give a whole number, 0 or more.")
        put("n_pcs", int(self.n_pcs))
        if not 0 <= self.hrfbetween <= 20 or int(self.hrfbetween) != self.hrfbetween:
            raise UsageError(f"hrfbetween is {self.hrfbetween}.", "Give a whole number from 0 to 20.")
        put("hrfbetween", int(self.hrfbetween))
        if isinstance(self.xvalscheme, str) and self.xvalscheme not in ("run", "session"):
            raise UsageError(
                f"xvalscheme is {self.xvalscheme!r}.", "Give 'run', 'session', or the runs of each fold."
            )
        put("brainthresh", tuple(float(x) for x in np.ravel(self.brainthresh)))
        if len(self.brainthresh) != 2 or not 0 <= self.brainthresh[0] <= 100:
            raise UsageError(f"brainthresh is {self.brainthresh}.", "Give (percentile, factor).")
        for name in ("brainR2", "pcR2cutoff"):
            value = getattr(self, name)
            if self.reference and not value:
                put(name, None)
        if self.hrftoassume is not None:
            put("hrftoassume", _hrf(self.hrftoassume, "hrftoassume").ravel())
        if self.hrflibrary is not None:
            put("hrflibrary", _hrf(self.hrflibrary, "hrflibrary"))
        for name in ("brainexclude", "pcR2cutoffmask"):
            value = getattr(self, name)
            if value is not None:
                put(name, np.asarray(value).astype(bool).ravel())
        if self.chunklen is not None and self.chunklen < 1:
            raise UsageError(f"chunklen is {self.chunklen}.", "Give 1 or more voxels.")
        if not set(self.keep) <= set("ABCD"):
            raise UsageError(f"keep is {self.keep!r}.", "Give letters out of ABCD.")

    def poly_degrees(self, n_volumes: Sequence[int], tr: float) -> tuple[int, ...]:
        """Polynomial degree of each run.

        Parameters
        ----------
        n_volumes : sequence of int
            Of each run.
        tr : float
            Repetition time, s.

        Returns
        -------
        tuple of int

        Raises
        ------
        UsageError
            ``maxpolydeg`` names another number of runs.
        """
        if self.maxpolydeg is None:
            return tuple(int(np.floor(n * tr / 60 / 2 + 0.5)) for n in n_volumes)
        degrees = np.ravel(np.asarray(self.maxpolydeg)).astype(int)
        if degrees.size == 1:
            degrees = np.repeat(degrees, len(n_volumes))
        if degrees.size != len(n_volumes):
            raise UsageError(
                f"maxpolydeg names {degrees.size} runs, the data have {len(n_volumes)}.",
                "Give one number, or one per run.",
            )
        return tuple(int(d) for d in degrees)

    def folds(self, n_runs: int, session: np.ndarray | None = None) -> tuple[tuple[int, ...], ...]:
        """Runs (0-based) held out together, fold by fold.

        Parameters
        ----------
        n_runs : int
        session : (n_runs,) array, optional
            Label of each run's session.

        Returns
        -------
        tuple of tuple of int

        Raises
        ------
        UsageError
            ``xvalscheme`` names runs that are not there, or sessions where there is one.
        """
        if self.xvalscheme is None or (isinstance(self.xvalscheme, str) and self.xvalscheme == "run"):
            return tuple((r,) for r in range(n_runs))
        if isinstance(self.xvalscheme, str):
            labels = np.zeros(n_runs, int) if session is None else np.asarray(session)
            if np.unique(labels).size < 2:
                raise UsageError(
                    "Cross-validation by session needs two sessions, there is one.",
                    "Name the runs' sessions, or set xvalscheme to 'run'.",
                )
            return tuple(tuple(np.flatnonzero(labels == s).tolist()) for s in np.unique(labels))
        folds = tuple(tuple(int(r) for r in np.ravel(np.asarray(f))) for f in self.xvalscheme)
        bad = sorted({r for f in folds for r in f if not 0 <= r < n_runs})
        if bad or not folds:
            raise UsageError(
                f"xvalscheme names run {bad[0] if bad else 'none'}, the data have runs 0 to {n_runs - 1}.",
                "Count runs from 0, and name at least one fold.",
            )
        return folds


def _fractions(fracs: Any) -> tuple[float, ...]:
    values = np.unique(np.ravel(np.asarray(fracs, dtype=float)))[::-1]
    if values.size == 0 or not (np.all(values > 0) and np.all(values <= 1)):
        raise UsageError(f"fracs is {fracs}.", "Give at least one number above 0 and at most 1.")
    return tuple(values.tolist())


def _hrf(table: Any, name: str) -> np.ndarray:
    """Columns as float32 with peak 1."""
    table = np.asarray(table, dtype=np.float32)
    table = table[:, None] if table.ndim == 1 else table
    if (
        table.ndim != 2
        or table.shape[0] < 2
        or not np.isfinite(table).all()
        or not np.all(table.max(axis=0) > 0)
    ):
        raise UsageError(
            f"{name} has shape {table.shape} or a column without a positive peak.",
            "Give finite samples every TR, one HRF a column, each with a positive peak.",
        )
    return table / table.max(axis=0)
