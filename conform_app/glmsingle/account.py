# SPDX-License-Identifier: Apache-2.0
"""The plain-language account of a fit: what was chosen, and from what."""

from __future__ import annotations

import numpy as np


def _numbers(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def count(n: int, one: str, many: str | None = None) -> str:
    """``1 run``, ``3,000 runs``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def named(one: str, numbers: list[int]) -> str:
    """``run 2``, ``runs 2, 5 and 6``."""
    words = [str(n) for n in numbers]
    if len(words) == 1:
        return f"{one} {words[0]}"
    return f"{one}s {', '.join(words[:-1])} and {words[-1]}"


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
    says = [_data(result, plan, session), _fitted(result, first), _nuisance(result, extra), _hrfs(result)]
    says += _denoising(result, fitted) + _ridge(result)
    return [s for s in says if s]


def _data(result, plan, session) -> str:
    condition, counts = np.unique(result.trial_condition, return_counts=True)
    n_sessions = np.unique(session).size
    place = count(plan.n_runs, "run") + (f" of {n_sessions} sessions" if n_sessions > 1 else "")
    kind = "on the volumes' times" if plan.on_grid else "at their own times, between volumes where need be"
    instants = " (0 counts as 0.1)" if (plan.durations == 0).any() else ""
    repeated = int((counts > 1).sum())
    across = ""
    if n_sessions > 1 and repeated:
        seen = np.unique(np.stack([result.trial_condition, session[result.trial_run]]), axis=1)[0]
        several = sum(int((seen == c).sum() > 1) for c in condition)
        across = f", {several if several < repeated else 'all'} of them in more than one session"
    shown = count(repeated, "condition was", "conditions were") if repeated else "no condition was"
    return (
        f"{count(plan.n_trials, 'trial')} of {count(counts.size, 'condition')} in {place} were modelled "
        f"{kind}; {shown} shown more than once{across}. "
        f"Trials lasted {_numbers(np.round(plan.durations, 3))} s{instants}, volumes came every "
        f"{plan.tr:g} s."
    )


def left_out(odd) -> str:
    """Which voxels have no model, and in which runs that shows."""
    nonfinite, constant = ((np.flatnonzero(n) + 1).tolist() for n in odd.in_run)
    reasons = []
    if odd.nonfinite:
        reasons.append(f"{odd.nonfinite} with values that are not finite ({named('run', nonfinite)})")
    if odd.constant:
        reasons.append(f"{odd.constant} constant in some run ({named('run', constant)})")
    if odd.zero_mean:
        reasons.append(f"{odd.zero_mean} with a mean of zero")
    return ", ".join(reasons)


def _fitted(result, first) -> str:
    n, left = result.valid.size, int((~result.valid).sum())
    if not left:
        return f"All {n:,} voxels were fitted."
    return f"{n - left:,} of {n:,} voxels were fitted; left out were {left_out(first.odd)}."


def _nuisance(result, extra) -> str:
    degrees = np.array(result.poly_degrees)
    columns = np.array([e.shape[1] for e in extra])
    noun = "given regressor" if columns.max() == 1 else "given regressors"
    more = f" and {_numbers(columns)} {noun} per run" if columns.any() else ""
    return f"Slow drifts were modelled by polynomials up to degree {_numbers(degrees)}{more}."


def _hrfs(result) -> str:
    n = result.hrfs.shape[1]
    if n == 1:
        return "One HRF was assumed for all voxels."
    index = result.type_b.hrf_index[result.valid & np.isfinite(result.type_b.r2)] + 1
    if not index.size:
        return ""
    counts = np.bincount(index, minlength=n + 1)
    most, share = int(counts.argmax()), 100 / index.size
    between = result.options.hrfbetween
    finer = f" (with {between} interpolated between each two neighbours)" if between else ""
    return (
        f"Each voxel has the HRF of {n}{finer} that explained its series best. HRF {most} was chosen most "
        f"often ({counts[most] * share:.0f} % of voxels); the median is HRF {np.median(index):g}, and the "
        f"first and last of the library have {counts[1] * share:.0f} % and {counts[n] * share:.0f} %."
    )


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
    pool = int(c.noise_pool.sum())
    says.append(
        f"{count(pool, 'voxel')} with an on/off R2 below {limit:.3g} % and a mean above {factor:g} times the "
        f"{_ordinal(percentile)} percentile {'forms' if pool == 1 else 'form'} the noise pool."
    )
    if c.xval_trend is None:
        used = "regressor per run was" if c.pcnum == 1 else "regressors per run were"
        return [*says, f"{c.pcnum} noise {used} used, as asked for."]
    tried, deciding = len(c.xval_trend) - 1, count(int(c.pc_voxels.sum()), "responsive voxel")
    if tried == 0:
        return [*says, "There are no noise regressors to choose from."]
    held = _held_out(options)
    if c.pcnum == 0:
        says.append(
            f"None of up to {count(tried, 'noise regressor')} lowers the median cross-validated error over "
            f"{deciding}{held}: none is used."
        )
        return says
    gain = (1 - c.xval_trend[c.pcnum] / c.xval_trend[0]) * 100 if c.xval_trend[0] else 0.0
    chosen = "was chosen: it lowers" if c.pcnum == 1 else "were chosen: they lower"
    says.append(
        f"{c.pcnum} of up to {count(tried, 'noise regressor')} {chosen} the median cross-validated "
        f"error over {deciding} by {gain:.1f} %{held}, and more would add little (stop factor "
        f"{options.pcstop:g})."
    )
    return says


def _ordinal(number: float) -> str:
    if number != int(number):
        return f"{number:g}th"
    last = {1: "st", 2: "nd", 3: "rd"}.get(int(number) % 10, "th")
    return f"{int(number)}{'th' if 10 <= int(number) % 100 <= 20 else last}"


def _held_out(options) -> str:
    scheme = options.xvalscheme
    if scheme is None or (isinstance(scheme, str) and scheme == "run"):
        return " (one run held out at a time)"
    if isinstance(scheme, str):
        return " (one session held out at a time)"
    return f" ({count(len(scheme), 'group')} of runs held out in turn)"


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
