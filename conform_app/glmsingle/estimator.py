# SPDX-License-Identifier: Apache-2.0
"""`fit_glmsingle`: from data and design to single-trial betas of types A to D.

Order of work: check the input; types A and B; noise pool and its components; number of noise regressors;
types C and D.  This module holds that order and the checks; the mathematics is in the modules it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.glmsingle import account, checks, setup
from conform_app.glmsingle.blocks import Series
from conform_app.glmsingle.denoise import choose_number, components, deciding_voxels, noise_pool
from conform_app.glmsingle.design import plan_trials
from conform_app.glmsingle.options import GLMsingleOptions
from conform_app.glmsingle.result import Denoising, GLMsingleResult, TypeA, TypeB, TypeC, TypeD
from conform_app.glmsingle.tail import tail_threshold
from conform_app.glmsingle.uncertainty import Spread, StandardErrors


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
    store: Callable[[str, tuple[int, int]], Any] | None = None,
) -> GLMsingleResult:
    """Estimate the response to every single trial (Prince et al. 2022, eLife 11:e77599).

    Parameters
    ----------
    data : list of (n_voxels, n_volumes) arrays, or of (X, Y, Z, n_volumes)
        One per run, in scanner units: not z-scored, mean not removed.  Anything with ``shape`` that slices
        by its first axis will do (memory maps, HDF5 datasets, image proxies): it is read block by block, four
        times, and never changed.
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
        "cpu", "cuda", or "auto": a GPU if there is one.
    n_threads : int, optional
        Blocks of voxels worked on at the same time; default as many as torch has threads.
    max_memory : float, optional
        Bytes that the fit may take beside the data: sets the size of the voxel blocks.
    progress : callable, optional
        Called with (stage, voxels done, voxels in all).
    store : callable, optional
        Where betas go as they are made, so that they are never in memory together:
        ``store(letter, (n_voxels, n_trials))`` gives, for each type kept, an object that takes
        ``object[lo:hi] = float32 array`` once per block (an HDF5 dataset, a writable memory map); it becomes
        ``betas`` of that type.

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
    Prince JS, Charest I, Kurzawski JW, Pyles JA, Tarr MJ, Kay KN (2022). Improving the accuracy of
    single-trial fMRI response estimates using GLMsingle. eLife 11:e77599.
    """
    options = GLMsingleOptions() if options is None else options
    if not isinstance(options, GLMsingleOptions):
        raise UsageError("The options are no GLMsingleOptions.", "Give GLMsingleOptions(name=value, ...).")
    tr = checks.repetition_time(tr)
    series, notes = Series(data), []
    design = checks.match_lengths(series, design, options, notes)
    plan = plan_trials(design, series.n_volumes, stimdur, tr, start_times)
    means = setup.Means.of(device, n_threads, max_memory, progress, store)
    with setup.one_thread_per_library():
        problem, badness, session = setup.problem_of(
            series, plan, options, sessions, extra_regressors, means, notes
        )
        return _fit(problem, badness, session, notes)


def _fit(problem, badness, session: np.ndarray, notes: list[str]) -> GLMsingleResult:
    """Types A to D in their order."""
    from conform_app.glmsingle.first_pass import library_pass
    from conform_app.glmsingle.noise_pass import nuisance
    from conform_app.glmsingle.ridge_pass import ridge_pass

    options, plan, extra = problem.options, problem.plan, problem.extra
    want_c, want_d = checks.possible_types(options, badness.n_pairs > 0, notes)
    # The reference looks at the first run only to see whether there are regressors.
    ignored = options.reference and not extra[0].any()
    first = library_pass(problem, [e[:, :0] for e in extra] if ignored else extra)
    left_out = account.left_out(first.odd)
    if not first.valid.any():
        raise DataError(
            f"None of the {problem.series.n_voxels} voxels can be fitted: {left_out}.",
            "Check mask and data, or leave that run out; data must not be z-scored.",
        )
    if not first.valid.all():
        notes.append(f"Left out of {problem.series.n_voxels} voxels: {left_out}.")
    if options.wantpercentbold and first.odd.demeaned > first.valid.sum() / 2:
        notes.append(
            "Most voxels' mean is smaller than their fluctuation, as if the mean had been removed: "
            "percent signal change has no meaning then. Give the data with their mean, or set "
            "wantpercentbold to False."
        )
    threshold, fitted = _threshold(first.onoff_r2, options, want_c, notes)
    denoising = _denoise(problem, first, badness, threshold, want_c, notes)
    last = None
    if denoising is not None or want_d:
        n_pcs = 0 if denoising is None else denoising.pcnum
        pcs = [p[:, :0] for p in problem.poly] if denoising is None else denoising.pc_regressors
        z = nuisance(problem, pcs, n_pcs)
        if options.reference and n_pcs == 0:
            z = [e[:, :0] for e in z]
        last = ridge_pass(
            problem, first.hrf_index, first.mean_vol, z, badness, options.fracs if want_d else None
        )
    result = GLMsingleResult(
        type_a=_type_a(problem, first),
        type_b=_type_b(problem, first),
        type_c=_type_c(problem, first, last, denoising),
        type_d=_type_d(problem, first, last, denoising) if want_d else None,
        trial_condition=plan.trial_condition.astype(np.int32),
        trial_run=plan.trial_run.astype(np.int32),
        mean_vol=first.mean_vol,
        valid=first.valid,
        r2_threshold=threshold,
        hrfs=problem.hrfs,
        hrf_times=np.arange(len(problem.hrfs)) * plan.tr,
        designs=problem.assumed,
        fracs=tuple(options.fracs),
        poly_degrees=tuple(p.shape[1] - 1 for p in problem.poly),
        options=options,
        warnings=notes,
    )
    result.account.extend(account.tell(result, plan, first, extra, session, fitted))
    return result


def _threshold(onoff_r2, options: GLMsingleOptions, want_c: bool, notes: list[str]) -> tuple[float, bool]:
    if not want_c or (
        options.brainR2 is not None and (options.pcR2cutoff is not None or options.pcstop <= 0)
    ):
        return np.nan, False
    threshold, fitted = tail_threshold(onoff_r2)
    if not fitted:
        notes.append(
            f"Too few voxels to see a tail in their on/off R2: {threshold:g} % stands in for the "
            "threshold. Set brainR2 and pcR2cutoff to choose another."
        )
    return threshold, fitted


def _denoise(problem, first, badness, threshold: float, want_c: bool, notes: list[str]) -> Denoising | None:
    """Noise pool, its components, and how many to use."""
    from conform_app.glmsingle.noise_pass import number_pass, pool_pass

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
        pcs = [components(g, n_most + 1) for g in pool_pass(problem, pool)]
        fewest = min(p.shape[1] for p in pcs)
        pcs = [p[:, : min(fewest, n_most + 1)] for p in pcs]
    else:
        notes.append(
            "No voxel qualifies for the noise pool: no noise regressors are used. Lower brainthresh or "
            "raise brainR2."
        )
        pcs = [np.zeros((n, 0), np.float32) for n in problem.plan.n_volumes]
    n_used = min(n_most, pcs[0].shape[1])
    if fixed is not None:
        if fixed > n_used:
            notes.append(f"{fixed} noise regressors were asked for; the noise pool gives {n_used}.")
        return Denoising(pool, pcs, min(fixed, n_used), None, None, None)
    if n_used < n_most and pool.any():
        notes.append(
            f"The noise pool ({int(pool.sum())} voxels) gives {n_used} noise regressors, not {n_most}."
        )
    bad = number_pass(problem, first.hrf_index, [p[:, :n_used] for p in pcs], badness)
    cutoff = threshold if options.pcR2cutoff is None else options.pcR2cutoff
    deciding, passed = deciding_voxels(first.onoff_r2, first.valid, cutoff, options.pcR2cutoffmask)
    if not passed:
        notes.append(
            f"No voxel exceeds {cutoff:.3g} % on/off R2: the {int(deciding.sum())} best decide the number "
            "of noise regressors."
        )
    trend = -np.nanmedian(bad[deciding], axis=0) if deciding.any() else np.zeros(n_used + 1)
    return Denoising(pool, pcs, choose_number(trend, options.pcstop), bad, deciding, trend.astype(np.float32))


def _type_a(problem, first) -> TypeA:
    gain = problem.gain(first.mean_vol, late=False)
    spread = {0: _diagonal(first.variance_assumed, problem.plan)}
    index = np.where(first.valid, 0, -1)
    errors = StandardErrors(_times(first.noise_assumed, gain), index, spread, None, None, problem.usable)
    return TypeA(
        betas=first.assumed_betas,
        onoff_betas=first.onoff_betas,
        r2=first.onoff_r2.astype(np.float32),
        standard_error=errors,
    )


def _times(noise: np.ndarray, gain: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return noise * gain


def _diagonal(variance: np.ndarray, plan) -> Spread:
    """Variances of each trial's beta, as if the trials were the directions of the design."""
    return Spread(
        tuple(np.diag(variance[trials]) for trials in plan.slices()),
        tuple(np.ones(trials.stop - trials.start) for trials in plan.slices()),
    )


def _type_b(problem, first) -> TypeB:
    gain = problem.gain(first.mean_vol, late=False)
    spreads = {h: _diagonal(v, problem.plan) for h, v in enumerate(first.variance)}
    return TypeB(
        betas=first.betas,
        r2=first.r2,
        r2_run=first.r2_run,
        fit_hrf_r2=first.fit_hrf_r2,
        fit_hrf_r2_run=first.fit_hrf_r2_run,
        hrf_index=first.hrf_index,
        hrf_index_run=first.hrf_index_run,
        standard_error=StandardErrors(
            _times(first.noise, gain), first.hrf_index, spreads, None, None, problem.usable
        ),
    )


def _late_errors(problem, first, last, *, ridge: bool) -> StandardErrors:
    gain = problem.gain(first.mean_vol, late=True)
    slope = last.scale_offset[:, 0] if ridge and last.scale_offset is not None else None
    penalty = last.penalty if ridge else None
    noise = _times(last.noise, gain)
    return StandardErrors(noise, first.hrf_index, last.spreads, penalty, slope, problem.usable)


def _type_c(problem, first, last, denoising: Denoising | None) -> TypeC | None:
    if denoising is None:
        return None
    return TypeC(
        betas=last.betas_c,
        r2=last.r2_c,
        r2_run=last.r2_run_c,
        hrf_index=first.hrf_index,
        standard_error=_late_errors(problem, first, last, ridge=False),
        **vars(denoising),
    )


def _type_d(problem, first, last, denoising: Denoising | None) -> TypeD:
    return TypeD(
        betas=last.betas_d,
        r2=last.r2_d,
        r2_run=last.r2_run_d,
        hrf_index=first.hrf_index,
        standard_error=_late_errors(problem, first, last, ridge=True),
        frac_value=last.frac_value,
        rr_badness=last.rr_badness,
        scale_offset=last.scale_offset,
        **vars(denoising or Denoising(None, [], 0, None, None, None)),
    )
