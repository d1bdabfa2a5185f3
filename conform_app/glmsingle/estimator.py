# SPDX-License-Identifier: Apache-2.0
"""`fit_glmsingle`: from data and design to single-trial betas of types A to D.

Order of work: check the input; types A and B; noise pool and its components; number of noise regressors;
types C and D.  This module holds that order and the checks; the mathematics is in the modules it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.glmsingle import account, checks
from conform_app.glmsingle.blocks import Series
from conform_app.glmsingle.denoise import choose_number, components, deciding_voxels, noise_pool
from conform_app.glmsingle.design import TrialPlan, plan_trials, polynomials
from conform_app.glmsingle.hrf import (
    Responses,
    SampledResponses,
    TableResponses,
    canonical_table,
    library_table,
)
from conform_app.glmsingle.options import GLMsingleOptions
from conform_app.glmsingle.result import Denoising, GLMsingleResult, TypeA, TypeB, TypeC, TypeD
from conform_app.glmsingle.tail import tail_threshold


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
        One per run, in scanner units: not z-scored, mean not removed.  Memory maps are read block by block;
        the arrays are never changed.
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
    Prince JS, Charest I, Kurzawski JW, Pyles JA, Tarr MJ, Kay KN (2022). Improving the accuracy of
    single-trial fMRI response estimates using GLMsingle. eLife 11:e77599.
    """
    options = GLMsingleOptions() if options is None else options
    tr = checks.repetition_time(tr)
    series, notes = Series(data), []
    design = checks.match_lengths(series, design, options, notes)
    plan = plan_trials(design, series.n_volumes, stimdur, tr, start_times)
    with _threads(n_threads):
        problem, badness, session = _set_up(
            series, plan, options, sessions, extra_regressors, device, max_memory, progress, notes
        )
        return _fit(problem, badness, session, notes)


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


def _set_up(series, plan, options, sessions, extra_regressors, device, max_memory, progress, notes):
    """Drifts, nuisance, regressors and cross-validation pairs, from checked input."""
    from conform_app.glmsingle.problem import Problem
    from conform_app.glmsingle.xval import Badness

    session = checks.session_of_run(sessions, plan.n_runs)
    checks.check_masks(options, series.n_voxels)
    degrees = checks.degrees(options, series, plan.tr)
    poly = [polynomials(n, d) for n, d in zip(series.n_volumes, degrees, strict=True)]
    extra = checks.extras(extra_regressors, series, poly, notes)
    assumed, library = _responses(options, plan.tr)
    usable = plan.estimable(assumed) if not options.reference else np.ones(plan.n_trials, bool)
    checks.check_design(plan, usable, poly, extra, notes)
    own = options.hrflibrary is not None or options.hrftoassume is not None
    if own and np.ptp(plan.durations) > 0:
        notes.append(
            "Trials differ in duration, but HRFs given by the user are taken as they are for all of them."
        )
    typical = library.on_grid(float(np.median(plan.durations)))
    problem = Problem(
        series=series,
        plan=plan,
        options=options,
        device=_device(device),
        block=checks.block_size(series, plan, options, library.n_hrfs, max_memory),
        assumed=[x[:, :, 0] for x in _regressors(plan, assumed, usable)],
        library=_regressors(plan, library, usable),
        hrfs=typical,
        poly=poly,
        extra=extra,
        usable=usable,
        progress=progress,
    )
    badness = Badness(
        plan.trial_condition,
        plan.trial_run,
        options.folds(plan.n_runs),
        session[plan.trial_run],
        usable,
        problem.device,
    )
    return problem, badness, session


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
    if not first.valid.any():
        raise DataError(
            f"None of the {problem.series.n_voxels} voxels can be fitted: {first.n_nonfinite} hold values "
            f"that are not finite, {first.n_constant} are constant in some run, {first.n_zero_mean} have a "
            "mean of zero.",
            "Check mask and data; data must not be z-scored.",
        )
    if options.wantpercentbold and first.n_demeaned > first.valid.sum() / 2:
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
        last = ridge_pass(problem, first.hrf_index, z, badness, options.fracs if want_d else None)
    _finish(first, last, problem.usable, options)
    result = GLMsingleResult(
        type_a=TypeA(betas=first.assumed_betas, onoff_betas=first.onoff_betas, r2=_float32(first.onoff_r2)),
        type_b=_type_b(first),
        type_c=_type_c(first, last, denoising),
        type_d=_type_d(first, last, denoising) if want_d else None,
        trial_condition=plan.trial_condition.astype(np.int32),
        trial_run=plan.trial_run.astype(np.int32),
        mean_vol=first.mean_vol,
        valid=first.valid,
        r2_threshold=threshold,
        hrfs=problem.hrfs,
        hrf_times=np.arange(len(problem.hrfs)) * plan.tr,
        fracs=tuple(options.fracs),
        poly_degrees=tuple(p.shape[1] - 1 for p in problem.poly),
        options=options,
        warnings=notes,
    )
    result.account.extend(account.tell(result, plan, first, extra, session, fitted))
    return result


def _float32(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32)


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


def _type_b(first) -> TypeB:
    return TypeB(
        betas=first.betas,
        r2=first.r2,
        r2_run=first.r2_run,
        fit_hrf_r2=first.fit_hrf_r2,
        fit_hrf_r2_run=first.fit_hrf_r2_run,
        hrf_index=first.hrf_index,
        hrf_index_run=first.hrf_index_run,
    )


def _type_c(first, last, denoising: Denoising | None) -> TypeC | None:
    if denoising is None:
        return None
    return TypeC(
        betas=last.betas_c,
        r2=last.r2_c,
        r2_run=last.r2_run_c,
        hrf_index=first.hrf_index,
        **vars(denoising),
    )


def _type_d(first, last, denoising: Denoising | None) -> TypeD:
    return TypeD(
        betas=last.betas_d,
        r2=last.r2_d,
        r2_run=last.r2_run_d,
        hrf_index=first.hrf_index,
        frac_value=last.frac_value,
        rr_badness=last.rr_badness,
        scale_offset=last.scale_offset,
        **vars(denoising or Denoising(None, [], 0, None, None, None)),
    )
