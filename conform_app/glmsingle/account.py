# SPDX-License-Identifier: Apache-2.0
"""The plain-language account of a fit: what was chosen, and from what."""

from __future__ import annotations

import numpy as np


def _numbers(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def tell(result, plan, first, extra, session, fitted: bool) -> list[str]:
    """Sentences for reports and logs.

    Parameters
    ----------
    result : GLMsingleResult
    plan : TrialPlan
    first : Library
        The first pass, with its counts of voxels left out.
    extra : list of arrays
        Nuisance regressors given.
    session : (n_runs,) int
    fitted : bool
        Whether the R2 threshold came from a mixture.
    """
    says = [_data(result, plan, session), _left_out(result, first), _nuisance(result, extra), _hrfs(result)]
    says += _denoising(result, fitted) + _ridge(result)
    return [s for s in says if s]


def _data(result, plan, session) -> str:
    _, counts = np.unique(result.trial_condition, return_counts=True)
    n_sessions = np.unique(session).size
    place = f"{plan.n_runs} run(s)" + (f" of {n_sessions} sessions" if n_sessions > 1 else "")
    kind = "on the volumes' times" if plan.on_grid else "at their own times, between volumes where need be"
    instants = " (0 counts as 0.1)" if (plan.durations == 0).any() else ""
    return (
        f"{plan.n_trials} trials of {counts.size} conditions in {place} were modelled {kind}; "
        f"{int((counts > 1).sum())} conditions were shown more than once. Trials lasted "
        f"{_numbers(np.round(plan.durations, 3))} s{instants}, volumes came every {plan.tr:g} s."
    )


def _left_out(result, first) -> str:
    n, left = result.valid.size, int((~result.valid).sum())
    if not left:
        return f"All {n} voxels were fitted."
    return (
        f"{n - left} of {n} voxels were fitted; left out were {first.n_nonfinite} with values that are not "
        f"finite, {first.n_constant} that are constant in some run and {first.n_zero_mean} with a mean of "
        "zero."
    )


def _nuisance(result, extra) -> str:
    degrees = np.array(result.poly_degrees)
    columns = np.array([e.shape[1] for e in extra])
    more = f" and {_numbers(columns)} given regressors per run" if columns.any() else ""
    return f"Slow drifts were modelled by polynomials up to degree {_numbers(degrees)}{more}."


def _hrfs(result) -> str:
    n = result.hrfs.shape[1]
    if n == 1:
        return "One HRF was assumed for all voxels."
    index = result.type_b.hrf_index[result.valid & np.isfinite(result.type_b.r2)]
    counts = np.bincount(index, minlength=n)
    text = ", ".join(f"{i}: {c}" for i, c in enumerate(counts) if c)
    return f"Each voxel has the HRF of {n} that explained its series best (HRF, from 0: voxels) - {text}."


def _denoising(result, fitted: bool) -> list[str]:
    c = result.type_c
    if c is None:
        return []
    options, says = result.options, []
    if fitted:
        says.append(
            f"The on/off R2 of signal and noise voxels separate at {result.r2_threshold:.3g} % (two "
            "Gaussians)."
        )
    limit = result.r2_threshold if options.brainR2 is None else options.brainR2
    percentile, factor = options.brainthresh
    says.append(
        f"{int(c.noise_pool.sum())} voxels with an on/off R2 below {limit:.3g} % and a mean above "
        f"{factor:g} times the {percentile:g}th percentile form the noise pool."
    )
    if c.xval_trend is None:
        says.append(f"{c.pcnum} noise regressors per run were used, as asked for.")
        return says
    if c.pcnum == 0:
        says.append(
            f"None of up to {len(c.xval_trend) - 1} noise regressors lowers the median cross-validated "
            f"error over {int(c.pc_voxels.sum())} responsive voxels: none is used."
        )
        return says
    gain = (1 - c.xval_trend[c.pcnum] / c.xval_trend[0]) * 100 if c.xval_trend[0] else 0.0
    says.append(
        f"{c.pcnum} of up to {len(c.xval_trend) - 1} noise regressors were chosen: over "
        f"{int(c.pc_voxels.sum())} responsive voxels they lower the median cross-validated error by "
        f"{gain:.1f} %, and more of them would add little (stop factor {options.pcstop:g})."
    )
    return says


def _ridge(result) -> list[str]:
    d = result.type_d
    if d is None:
        return []
    if d.rr_badness is None:
        return [f"All voxels were regularised to a fraction of {result.fracs[0]:g}, as asked for."]
    frac = d.frac_value[result.valid]
    said = (
        f"Ridge regression: of {len(result.fracs)} fractions of the unregularised length, the one with the "
        f"least cross-validated error per voxel has a median of {np.median(frac):.2f}; "
        f"{np.mean(frac == 1) * 100:.0f} % of voxels stay unregularised."
    )
    return [said]
