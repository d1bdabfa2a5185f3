# SPDX-License-Identifier: Apache-2.0
"""`fit_glmsingle`: from data and design to single-trial betas of types A to D.

Order of work: check the input; types A and B; noise pool and its components; number of noise regressors; types C
and D.  This module holds that order and the checks; the mathematics is in the modules it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.glmsingle import account
from conform_app.glmsingle.blocks import Series, block_length
from conform_app.glmsingle.denoise import choose_number, components, deciding_voxels, noise_pool
from conform_app.glmsingle.design import TrialPlan, orthonormal_in_order, plan_trials, polynomials
from conform_app.glmsingle.hrf import Responses, SampledResponses, TableResponses, canonical_table, library_table
from conform_app.glmsingle.options import GLMsingleOptions
from conform_app.glmsingle.result import Denoising, GLMsingleResult, TypeA, TypeB, TypeC, TypeD
from conform_app.glmsingle.tail import tail_threshold

SHORTEST_END = 8.0
"""Seconds after the last onset below which its beta is doubtful."""


def fit_glmsingle(
    data: Sequence,
    design: Sequence,
    stimdur: float | None,
    tr: float,
    *,
    options: GLMsingleOptions | None = None,
    sessions: Sequence | None = None,
    extra_regressors: Sequence | None = None,
    start_times: float | Sequence[float] = 0.0,
    device: str = "cpu",
    n_threads: int | None = None,
    max_memory: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> GLMsingleResult:
    """Estimate the response to every single trial (Prince et al. 2022, eLife 11:e77599).

    Parameters
    ----------
    data : list of (n_voxels, n_volumes) arrays, or of (X, Y, Z, n_volumes)
        One per run, in scanner units: not z-scored, mean not removed.  Memory maps are read block by block; the
        arrays are never changed.
    design : list of (n_volumes, n_conditions) 0/1 arrays, or of RunTrials
        A 1 marks a trial's onset; `RunTrials` hold onsets in seconds, on the volumes' times or not.
    stimdur : float or None
        Duration of all trials, s.  With `RunTrials`: of those whose duration is NaN.
    tr : float
        Repetition time, s.
    options : GLMsingleOptions, optional
    sessions : (n_runs,) sequence, optional
        Label of each run's session: betas are standardised within sessions for cross-validation.
    extra_regressors : list of (n_volumes, n_columns) arrays, optional
        Nuisance regressors of each run, in every fit.  Values that are not finite become the column's mean.
    start_times : float or (n_runs,) sequence
        Time of volume 0, s, for `RunTrials` (with slice-timing correction: the reference slice's time).
    device : str
        Of torch: "cpu", "cuda".
    n_threads : int, optional
        Threads of torch and BLAS during the fit.
    max_memory : float, optional
        Bytes that the fit may take beside the data: sets the size of the voxel blocks.
    progress : callable, optional
        Called with (stage, voxels done, voxels in all).

    Returns
    -------
    GLMsingleResult

    Raises
    ------
    DataError
        Data and design contradict each other; names the run, counted from 1.
    UsageError
        Options that do not fit the data.

    References
    ----------
    Prince JS, Charest I, Kurzawski JW, Pyles JA, Tarr MJ, Kay KN (2022). Improving the accuracy of single-trial
    fMRI response estimates using GLMsingle. eLife 11:e77599.
    """
    options = GLMsingleOptions() if options is None else options
    if not (np.ndim(tr) == 0 and np.isfinite(tr) and tr > 0):
        raise DataError(f"The repetition time is {tr}.", "Give a positive number of seconds.")
    series, notes = Series(data), []
    design = _match_lengths(series, design, options, notes)
    plan = plan_trials(design, series.n_volumes, stimdur, float(tr), start_times)
    with _threads(n_threads):
        return _fit(series, plan, options, sessions, extra_regressors, device, max_memory, progress, notes)


def _match_lengths(series: Series, design: Sequence, options: GLMsingleOptions, notes: list[str]) -> list:
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


@contextmanager
def _threads(n: int | None):
    """Limit torch's and BLAS's threads within the block."""
    if n is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(n)))
    try:
        with threadpool_limits(limits=max(1, int(n))):
            yield
    finally:
        torch.set_num_threads(before)


def _responses(options: GLMsingleOptions, tr: float) -> tuple[Responses, Responses]:
    """The assumed HRF and the library."""
    assumed: Responses = (
        TableResponses(canonical_table(), tr, whole_seconds=False)
        if options.hrftoassume is None
        else SampledResponses(options.hrftoassume, tr)
    )
    if not options.wantlibrary:
        return assumed, assumed
    if options.hrflibrary is None:
        return assumed, TableResponses(library_table(), tr, whole_seconds=True)
    return assumed, SampledResponses(options.hrflibrary, tr)


def _extras(extra, series: Series, poly: list[np.ndarray], notes: list[str]) -> list[np.ndarray]:
    """Each run's nuisance regressors, orthonormal and off the drifts."""
    if extra is None or extra is False:
        return [np.zeros((n, 0)) for n in series.n_volumes]
    if len(extra) != series.n_runs:
        raise DataError(
            f"There are extra regressors for {len(extra)} runs, data for {series.n_runs}.", "Give one array per run."
        )
    out, filled = [], []
    for r, (columns, n) in enumerate(zip(extra, series.n_volumes, strict=True), 1):
        columns = np.zeros((n, 0)) if columns is None or np.size(columns) == 0 else np.array(columns, np.float64)
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
            f"Extra regressors of run(s) {', '.join(map(str, filled))} held values that are not finite; the column's "
            "mean stands in for them."
        )
    return out


def _session_of_run(sessions, n_runs: int) -> np.ndarray:
    if sessions is None:
        return np.zeros(n_runs, int)
    labels = np.ravel(np.asarray(sessions))
    if labels.size != n_runs:
        raise DataError(f"There are {labels.size} session labels for {n_runs} runs.", "Give one per run.")
    return np.unique(labels, return_inverse=True)[1]


def _check_masks(options: GLMsingleOptions, n_voxels: int) -> None:
    for name in ("brainexclude", "pcR2cutoffmask"):
        mask = getattr(options, name)
        if mask is not None and mask.size != n_voxels:
            raise UsageError(f"{name} has {mask.size} voxels, the data have {n_voxels}.", "Give one value per voxel.")


def _check_design(plan: TrialPlan, usable: np.ndarray, poly, extra, notes: list[str]) -> None:
    """Warnings about trials that are hard to estimate."""
    buffers = plan.end_buffers()
    if buffers.min() < SHORTEST_END:
        runs = ", ".join(str(r + 1) for r in np.flatnonzero(buffers < SHORTEST_END))
        notes.append(
            f"Run(s) {runs} end less than {SHORTEST_END:g} s after their last trial began: its beta is uncertain."
        )
    if not usable.all():
        notes.append(
            f"{int((~usable).sum())} trial(s) begin so late (or so early) that hardly any of their response was "
            "measured: their betas are NaN."
        )
    for r, trials in enumerate(plan.runs):
        _, counts = np.unique(np.round(trials.onset, 6), return_counts=True)
        if (counts > 1).any():
            notes.append(
                f"Run {r + 1}: {int(counts[counts > 1].sum())} trials share their onset with another; their response "
                "is split between them."
            )
        free = plan.n_volumes[r] - poly[r].shape[1] - extra[r].shape[1] - trials.n
        if free < 1:
            notes.append(
                f"Run {r + 1} has {plan.n_volumes[r]} volumes for {trials.n} trials and "
                f"{poly[r].shape[1] + extra[r].shape[1]} nuisance regressors: single trials fit it perfectly."
            )


def _fit(series, plan, options, sessions, extra_regressors, device, max_memory, progress, notes) -> GLMsingleResult:
    from conform_app.glmsingle import stages
    from conform_app.glmsingle.xval import Badness

    session = _session_of_run(sessions, plan.n_runs)
    _check_masks(options, series.n_voxels)
    degrees = options.poly_degrees(series.n_volumes, plan.tr)
    for r, (degree, n) in enumerate(zip(degrees, series.n_volumes, strict=True), 1):
        if not 0 <= degree < n - 1:
            raise UsageError(f"Run {r}: polynomial degree {degree} with {n} volumes.", "Choose a lower maxpolydeg.")
    poly = [polynomials(n, d) for n, d in zip(series.n_volumes, degrees, strict=True)]
    extra = _extras(extra_regressors, series, poly, notes)
    assumed, library = _responses(options, plan.tr)
    usable = plan.estimable(assumed) if not options.reference else np.ones(plan.n_trials, bool)
    _check_design(plan, usable, poly, extra, notes)
    problem = stages.Problem(
        series=series,
        plan=plan,
        options=options,
        device=_device(device),
        block=_block(series, plan, options, library.n_hrfs, max_memory),
        assumed=_regressors(plan, assumed, usable),
        library=_regressors(plan, library, usable),
        poly=poly,
        extra=extra,
        usable=usable,
        progress=progress,
    )
    problem.assumed = [x[:, :, 0] for x in problem.assumed]
    badness = Badness(
        plan.trial_condition,
        plan.trial_run,
        options.folds(plan.n_runs),
        session[plan.trial_run],
        usable,
        problem.device,
    )
    want_c, want_d = _possible(options, badness.n_pairs > 0, notes)
    in_ab = extra
    if options.reference and not extra[0].any():
        in_ab = [e[:, :0] for e in extra]
    first = stages.library_pass(problem, in_ab)
    if not first.valid.any():
        raise DataError(
            f"None of the {series.n_voxels} voxels can be fitted: {first.n_nonfinite} hold values that are not finite, "
            f"{first.n_constant} are constant in some run, {first.n_zero_mean} have a mean of zero.",
            "Check mask and data; data must not be z-scored.",
        )
    threshold, fitted = _threshold(first.onoff_r2, options, want_c, notes)
    denoising = _denoise(problem, first, badness, threshold, want_c, notes)
    last = None
    fracs = options.fracs if want_d else None
    if denoising is not None or want_d:
        pcs = denoising.pc_regressors if denoising is not None else [p[:, :0] for p in poly]
        z = stages.nuisance(problem, pcs, denoising.pcnum if denoising is not None else 0)
        if options.reference and (denoising is None or denoising.pcnum == 0):
            z = [e[:, :0] for e in z]
        last = stages.ridge_pass(problem, first.hrf_index, z, badness, fracs)
    _finish(first, last, usable, options)
    typical = float(np.median(plan.durations))
    hrfs = library.on_grid(typical)
    result = GLMsingleResult(
        type_a=TypeA(first.assumed_betas, first.onoff_betas, first.onoff_r2.astype(np.float32)),
        type_b=TypeB(
            first.betas,
            first.r2,
            first.r2_run,
            first.fit_hrf_r2,
            first.fit_hrf_r2_run,
            first.hrf_index,
            first.hrf_index_run,
        ),
        type_c=_type_c(first, last, denoising),
        type_d=_type_d(first, last, denoising) if want_d else None,
        trial_condition=plan.trial_condition.astype(np.int32),
        trial_run=plan.trial_run.astype(np.int32),
        mean_vol=first.mean_vol,
        valid=first.valid,
        r2_threshold=threshold,
        hrfs=hrfs,
        hrf_times=np.arange(len(hrfs)) * plan.tr,
        fracs=tuple(options.fracs),
        poly_degrees=degrees,
        options=options,
        warnings=notes,
    )
    result.account.extend(account.tell(result, plan, first, extra, session, fitted))
    return result


def _device(name: str):
    import torch

    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("No CUDA device is available.", "Use device 'cpu'.")
    return device


def _regressors(plan: TrialPlan, responses: Responses, usable: np.ndarray) -> list[np.ndarray]:
    out = []
    for r, trials in enumerate(plan.slices()):
        x = plan.regressors(r, responses)
        x[:, ~usable[trials]] = 0
        out.append(x)
    return out


def _block(series: Series, plan: TrialPlan, options: GLMsingleOptions, n_hrfs: int, max_memory) -> int:
    """Voxels per block: series of all runs twice, some arrays of betas, and the small tables per voxel."""
    volumes, trials, runs = sum(series.n_volumes), plan.n_trials, plan.n_runs
    per_voxel = 4 * (2 * volumes + max(series.n_volumes) * 2 + 8 * trials) + 8 * n_hrfs * (2 * runs + 1) + 2048
    kept = len(set(options.keep))
    result = 4 * series.n_voxels * (kept * trials + n_hrfs * (runs + 1) + 6 * runs + len(options.fracs) + 40)
    designs = sum(t.n * n for t, n in zip(plan.runs, series.n_volumes, strict=True)) * n_hrfs * 4 * 5
    return block_length(per_voxel, result + designs, series.n_voxels, max_memory, options.chunklen)


def _possible(options: GLMsingleOptions, repeats: bool, notes: list[str]) -> tuple[bool, bool]:
    """Whether types C and D can be made; says why not."""
    want_c, want_d = options.wantglmdenoise, options.wantfracridge
    if repeats:
        return want_c, want_d
    if want_c or want_d:
        notes.append("No condition occurs in more than one cross-validation fold, so nothing can be cross-validated.")
    if want_c and options.pcstop > 0:
        notes.append(
            "The number of noise regressors cannot be chosen without repeats: type C is not made. A fixed number "
            "(pcstop of 0 or less) would make it."
        )
        want_c = False
    if want_d and len(options.fracs) > 1:
        notes.append(
            "The ridge fraction cannot be chosen without repeats: type D is not made. One fixed fraction (fracs) "
            "would make it."
        )
        want_d = False
    return want_c, want_d


def _threshold(onoff_r2, options: GLMsingleOptions, want_c: bool, notes: list[str]) -> tuple[float, bool]:
    if not want_c or (options.brainR2 is not None and (options.pcR2cutoff is not None or options.pcstop <= 0)):
        return np.nan, False
    threshold, fitted = tail_threshold(onoff_r2)
    if not fitted:
        notes.append(
            f"Too few voxels to see a tail in their on/off R2: {threshold:g} % stands in for the threshold. Set "
            "brainR2 and pcR2cutoff to choose another."
        )
    return threshold, fitted


def _denoise(problem, first, badness, threshold: float, want_c: bool, notes: list[str]) -> Denoising | None:
    """Noise pool, its components, and how many to use."""
    from conform_app.glmsingle import stages

    if not want_c:
        return None
    options = problem.options
    brain_r2 = threshold if options.brainR2 is None else options.brainR2
    pool = noise_pool(
        first.mean_vol, first.onoff_r2, first.valid, options.brainthresh, brain_r2, options.brainexclude
    )
    fixed = int(-options.pcstop) if options.pcstop <= 0 else None
    n_most = options.n_pcs if fixed is None else max(options.n_pcs, fixed)
    if pool.any():
        pcs = [components(g, n_most + 1) for g in stages.pool_pass(problem, pool)]
        fewest = min(p.shape[1] for p in pcs)
        pcs = [p[:, : min(fewest, n_most + 1)] for p in pcs]
    else:
        notes.append("No voxel qualifies for the noise pool: no noise regressors are used. Lower brainthresh or raise brainR2.")
        pcs = [np.zeros((n, 0), np.float32) for n in problem.plan.n_volumes]
    n_used = min(n_most, pcs[0].shape[1])
    if fixed is not None:
        if fixed > n_used:
            notes.append(f"{fixed} noise regressors were asked for; the noise pool gives {n_used}.")
        return Denoising(pool, pcs, min(fixed, n_used), None, None, None)
    if n_used < n_most and pool.any():
        notes.append(f"The noise pool ({int(pool.sum())} voxels) gives {n_used} noise regressors, not {n_most}.")
    bad = stages.number_pass(problem, first.hrf_index, [p[:, :n_used] for p in pcs], badness)
    cutoff = threshold if options.pcR2cutoff is None else options.pcR2cutoff
    deciding, passed = deciding_voxels(first.onoff_r2, first.valid, cutoff, options.pcR2cutoffmask)
    if not passed:
        notes.append(
            f"No voxel exceeds {cutoff:.3g} % on/off R2: the {int(deciding.sum())} best decide the number of noise "
            "regressors."
        )
    trend = -np.nanmedian(bad[deciding], axis=0) if deciding.any() else np.zeros(n_used + 1)
    return Denoising(pool, pcs, choose_number(trend, options.pcstop), bad, deciding, trend.astype(np.float32))


def _finish(first, last, usable: np.ndarray, options: GLMsingleOptions) -> None:
    """Units of the betas, and NaN for trials that could not be estimated; in place."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = (np.float32(100) / np.abs(first.mean_vol))[:, None]
    late = [] if last is None else [last.betas_c, last.betas_d]
    for betas, percent in (
        (first.onoff_betas, options.wantpercentbold),
        (first.assumed_betas, options.wantpercentbold),
        (first.betas, options.wantpercentbold),
        *((b, options.wantpercentbold or options.reference) for b in late),
    ):
        if betas is None:
            continue
        if percent:
            with np.errstate(invalid="ignore", over="ignore"):
                betas *= gain
        if betas.shape[1] == usable.size and not usable.all():
            betas[:, ~usable] = np.nan


def _type_c(first, last, denoising: Denoising | None) -> TypeC | None:
    if denoising is None:
        return None
    return TypeC(
        last.betas_c,
        last.r2_c,
        last.r2_run_c,
        first.hrf_index,
        denoising.noise_pool,
        denoising.pc_regressors,
        denoising.pcnum,
        denoising.glm_badness,
        denoising.pc_voxels,
        denoising.xval_trend,
    )


def _type_d(first, last, denoising: Denoising | None) -> TypeD:
    d = denoising if denoising is not None else Denoising(None, [], 0, None, None, None)
    return TypeD(
        last.betas_d,
        last.r2_d,
        last.r2_run_d,
        first.hrf_index,
        last.frac_value,
        last.rr_badness,
        last.scale_offset,
        d.noise_pool,
        d.pc_regressors,
        d.pcnum,
        d.glm_badness,
        d.pc_voxels,
        d.xval_trend,
    )
