# SPDX-License-Identifier: Apache-2.0
"""From checked input to a `Problem`: regressors, drifts, cross-validation pairs, and with what it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from conform_app.devices import torch_device
from conform_app.errors import UsageError
from conform_app.glmsingle import checks
from conform_app.glmsingle.design import TrialPlan, polynomials
from conform_app.glmsingle.hrf import (
    Between,
    Responses,
    SampledResponses,
    TableResponses,
    canonical_table,
    library_table,
)
from conform_app.glmsingle.options import GLMsingleOptions


@dataclass(frozen=True)
class Means:
    """With what a fit works; parameters as in `fit_glmsingle`.

    Attributes
    ----------
    device : torch.device
    workers : int
        Blocks of voxels at the same time: as many as threads, one on a GPU.
    max_memory, progress, store
    """

    device: Any
    workers: int
    max_memory: float | None
    progress: Callable[[str, int, int], None] | None
    store: Callable[[str, tuple[int, int]], Any] | None

    @classmethod
    def of(cls, device: str, n_threads: int | None, max_memory, progress, store) -> Means:
        """Check device and threads.

        Raises
        ------
        UsageError
            There is no such device, or less than one thread.
        """
        import torch

        if n_threads is not None and (n_threads < 1 or int(n_threads) != n_threads):
            raise UsageError(f"n_threads is {n_threads}.", "Give a whole number, 1 or more.")
        place = torch_device(device)
        workers = torch.get_num_threads() if n_threads is None else int(n_threads)
        return cls(place, workers if place.type == "cpu" else 1, max_memory, progress, store)


@contextmanager
def one_thread_per_library() -> Iterator[None]:
    """One thread for torch and BLAS within the context: blocks of voxels are what runs in parallel."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


def responses_of(options: GLMsingleOptions, tr: float) -> tuple[Responses, Responses]:
    """The assumed HRF and the library."""
    assumed: Responses = (
        TableResponses(canonical_table(), tr, whole_seconds=False)
        if options.hrftoassume is None
        else SampledResponses(options.hrftoassume, tr)
    )
    if not options.wantlibrary:
        return assumed, assumed
    library: Responses = (
        TableResponses(library_table(), tr, whole_seconds=True)
        if options.hrflibrary is None
        else SampledResponses(options.hrflibrary, tr)
    )
    return assumed, Between(library, options.hrfbetween) if options.hrfbetween else library


def problem_of(
    series,
    plan: TrialPlan,
    options: GLMsingleOptions,
    sessions,
    extra_regressors,
    means: Means,
    notes: list[str],
):
    """The problem, the badness of its trials, and (n_runs,) sessions."""
    from conform_app.glmsingle.problem import Problem
    from conform_app.glmsingle.xval import Badness

    session = checks.session_of_run(sessions, plan.n_runs)
    checks.check_masks(options, series.n_voxels)
    degrees = checks.degrees(options, series, plan.tr)
    poly = [polynomials(n, d) for n, d in zip(series.n_volumes, degrees, strict=True)]
    extra = checks.extras(extra_regressors, series, poly, notes)
    assumed, library = responses_of(options, plan.tr)
    usable = plan.estimable(assumed) if not options.reference else np.ones(plan.n_trials, bool)
    checks.check_design(plan, usable, poly, extra, notes)
    own = options.hrflibrary is not None or options.hrftoassume is not None
    if own and np.ptp(plan.durations) > 0:
        notes.append(
            "Trials differ in duration, but HRFs given by the user are taken as they are for all of them."
        )
    problem = Problem(
        series=series,
        plan=plan,
        options=options,
        device=means.device,
        block=checks.block_size(series, plan, options, library.n_hrfs, means),
        assumed=[x[:, :, 0] for x in _regressors(plan, assumed, usable)],
        library=_regressors(plan, library, usable),
        hrfs=library.on_grid(float(np.median(plan.durations))),
        poly=poly,
        extra=extra,
        usable=usable,
        progress=means.progress,
        store=means.store,
        workers=means.workers,
    )
    badness = Badness(
        plan.trial_condition,
        plan.trial_run,
        options.folds(plan.n_runs, session),
        session[plan.trial_run],
        usable,
        problem.device,
    )
    return problem, badness, session


def _regressors(plan: TrialPlan, responses: Responses, usable: np.ndarray) -> list[np.ndarray]:
    out = []
    for r, trials in enumerate(plan.slices()):
        x = plan.regressors(r, responses)
        x[:, ~usable[trials]] = 0
        out.append(x)
    return out
