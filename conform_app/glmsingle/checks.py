# SPDX-License-Identifier: Apache-2.0
"""Checks of what a fit is given, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.glmsingle.account import count, named
from conform_app.glmsingle.blocks import Series, block_length
from conform_app.glmsingle.design import TrialPlan, orthonormal_in_order
from conform_app.glmsingle.options import GLMsingleOptions

SHORTEST_END = 8.0
"""Seconds after the last onset below which its beta is doubtful."""


def repetition_time(tr) -> float:
    """TR as a float, if it is a positive number."""
    if not (isinstance(tr, (int, float, np.number, np.ndarray)) and np.ndim(tr) == 0 and 0 < tr < np.inf):
        raise DataError(f"The repetition time is {tr}.", "Give a positive number of seconds.")
    return float(tr)


def match_lengths(series: Series, design: Sequence, options: GLMsingleOptions, notes: list[str]) -> list:
    """The designs as a list as long as the data; with ``reference`` cut to a common length."""
    if hasattr(design, "ndim") or len(design) != series.n_runs:
        raise DataError(
            f"There are {series.n_runs} runs of data and {len(design)} of design.",
            "Give a list of designs, one per run.",
        )
    design = list(design)
    if options.reference and all(hasattr(d, "shape") for d in design):
        lengths = [d.shape[0] for d in design]
        if tuple(lengths) != series.n_volumes:
            notes.append("Data and design differ in length: the longer was cut to the shorter.")
            series.cut(lengths)
            design = [d[:n] for d, n in zip(design, series.n_volumes, strict=True)]
    return design


def extras(extra, series: Series, poly: list[np.ndarray], notes: list[str]) -> list[np.ndarray]:
    """Each run's nuisance regressors, orthonormal and off the drifts."""
    if extra is None or extra is False:
        return [np.zeros((n, 0)) for n in series.n_volumes]
    if len(extra) != series.n_runs:
        raise DataError(
            f"There are extra regressors for {len(extra)} runs, data for {series.n_runs}.",
            "Give one array per run.",
        )
    out, filled = [], []
    for r, (columns, n) in enumerate(zip(extra, series.n_volumes, strict=True), 1):
        columns = (
            np.zeros((n, 0)) if columns is None or np.size(columns) == 0 else np.array(columns, np.float64)
        )
        columns = columns[:, None] if columns.ndim == 1 else columns
        if columns.ndim != 2 or columns.shape[0] != n:
            raise DataError(
                f"Run {r}: the extra regressors have shape {columns.shape}, the data have {n} volumes.",
                "Give (n_volumes, n_columns).",
            )
        bad = ~np.isfinite(columns)
        if bad.all(axis=0).any():
            raise DataError(f"Run {r}: an extra regressor has no finite value.", "Leave this column out.")
        if bad.any():
            filled.append(r)
            means = np.nanmean(np.where(bad, np.nan, columns), axis=0)
            columns = np.where(bad, means, columns)
        out.append(orthonormal_in_order(columns, poly[r - 1]))
    if filled:
        notes.append(
            f"Extra regressors of {named('run', filled)} held values that are not finite; "
            "the column's mean stands in for them."
        )
    return out


def session_of_run(sessions, n_runs: int) -> np.ndarray:
    """(n_runs,) index of each run's session."""
    if sessions is None:
        return np.zeros(n_runs, int)
    labels = np.ravel(np.asarray(sessions))
    if labels.size != n_runs:
        raise DataError(f"There are {labels.size} session labels for {n_runs} runs.", "Give one per run.")
    return np.unique(labels, return_inverse=True)[1]


def degrees(options: GLMsingleOptions, series: Series, tr: float) -> tuple[int, ...]:
    """Polynomial degree of each run, checked against its length."""
    out = options.poly_degrees(series.n_volumes, tr)
    for r, (degree, n) in enumerate(zip(out, series.n_volumes, strict=True), 1):
        if not 0 <= degree < n - 1:
            raise UsageError(
                f"Run {r}: polynomial degree {degree} with {n} volumes.", "Choose another maxpolydeg."
            )
    return out


def check_masks(options: GLMsingleOptions, n_voxels: int) -> None:
    """Masks in the options have one value per voxel."""
    for name in ("brainexclude", "pcR2cutoffmask"):
        mask = getattr(options, name)
        if mask is not None and mask.size != n_voxels:
            raise UsageError(
                f"{name} has {mask.size} voxels, the data have {n_voxels}.", "Give one value per voxel."
            )


def check_design(plan: TrialPlan, usable: np.ndarray, poly, extra, notes: list[str]) -> None:
    """Warnings about trials that are hard to estimate."""
    buffers = plan.end_buffers()
    short = (np.flatnonzero(buffers < SHORTEST_END) + 1).tolist()
    if short:
        ends = "ends" if len(short) == 1 else "end"
        notes.append(
            f"{named('Run', short)} {ends} less than {SHORTEST_END:g} s after the last trial began: its beta "
            "is uncertain."
        )
    n_lost = int((~usable).sum())
    if n_lost:
        begin, response = ("begins", "its beta is") if n_lost == 1 else ("begin", "their betas are")
        notes.append(
            f"{count(n_lost, 'trial')} {begin} so late (or so early) that hardly any of the response was "
            f"measured: {response} NaN."
        )
    for r, trials in enumerate(plan.runs):
        _, counts = np.unique(np.round(trials.onset, 6), return_counts=True)
        if (counts > 1).any():
            notes.append(
                f"Run {r + 1}: {int(counts[counts > 1].sum())} trials share their onset with another; "
                "their response is split between them."
            )
        free = plan.n_volumes[r] - poly[r].shape[1] - extra[r].shape[1] - trials.n
        if free < 1:
            notes.append(
                f"Run {r + 1} has {plan.n_volumes[r]} volumes for {trials.n} trials and "
                f"{poly[r].shape[1] + extra[r].shape[1]} nuisance regressors: single trials fit it "
                "perfectly."
            )


def possible_types(options: GLMsingleOptions, repeats: bool, notes: list[str]) -> tuple[bool, bool]:
    """Whether types C and D can be made; says why not."""
    want_c, want_d = options.wantglmdenoise, options.wantfracridge
    if repeats:
        return want_c, want_d
    if want_c or want_d:
        notes.append(
            "No condition occurs in more than one cross-validation fold, so nothing can be cross-validated."
        )
    if want_c and options.pcstop > 0:
        notes.append(
            "The number of noise regressors cannot be chosen without repeats: type C is not made. A fixed "
            "number (pcstop of 0 or less) would make it."
        )
        want_c = False
    if want_d and len(options.fracs) > 1:
        notes.append(
            "The ridge fraction cannot be chosen without repeats: type D is not made. One fixed fraction "
            "(fracs) would make it."
        )
        want_d = False
    return want_c, want_d


def block_size(series: Series, plan: TrialPlan, options: GLMsingleOptions, n_hrfs: int, means) -> int:
    """Voxels per block: series of all runs twice, some arrays of betas, and the small tables per voxel."""
    volumes, trials, runs = sum(series.n_volumes), plan.n_trials, plan.n_runs
    per_voxel = (
        4 * (2 * volumes + max(series.n_volumes) * 2 + 8 * trials) + 8 * n_hrfs * (2 * runs + 1) + 2048
    )
    kept = 0 if means.store is not None else len(set(options.keep))
    result = 4 * series.n_voxels * (kept * trials + n_hrfs * (runs + 1) + 6 * runs + len(options.fracs) + 40)
    designs = sum(t.n * n for t, n in zip(plan.runs, series.n_volumes, strict=True)) * n_hrfs * 4 * 5
    return block_length(
        per_voxel,
        result + designs,
        series.n_voxels,
        means.max_memory,
        options.chunklen,
        means.workers,
        means.device.type,
    )
