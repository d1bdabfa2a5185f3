# SPDX-License-Identifier: Apache-2.0
"""The PSN step: single-trial betas in, denoised condition averages and the model of the noise out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, traits

from conform_app.bids.plan import FitPlan, point_coordinates
from conform_app.images.arrays import load_arrays, load_meta, save_arrays
from conform_app.interfaces.base import FitInterface, PlanInputSpec
from conform_app.interfaces.reliability import z_scored
from conform_app.psn import PSNResult, fit_psn
from conform_app.psn.heldout import held_out
from conform_app.psn.parcels import bisect
from conform_app.reliability import arrange_repeats


class PSNInputSpec(PlanInputSpec):
    """Inputs of the PSN step."""

    glm_file = File(exists=True, mandatory=True, desc="arrays of the GLMsingle step")
    model = traits.Dict(mandatory=True, desc="ModelSettings as a dictionary")


class PSNDenoise(FitInterface):
    """Denoise the condition averages of the last GLM type, block of voxels by block.

    The betas are z-scored per voxel and session first, so that no voxel counts more for its scale; the
    results go back to the unit of the betas.
    """

    input_spec = PSNInputSpec

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Load, denoise, save; without repeats across runs an empty file says so."""
        start = time.monotonic()
        out = cwd / "psn.h5"
        mode = self.inputs.model["psn"]
        if mode == "off" or not plan.repeats_across_runs:
            return {"out_file": str(save_arrays(out, {}, {"mode": "off"}))}
        last = load_meta(Path(self.inputs.glm_file))["types"][-1]
        stored = load_arrays(Path(self.inputs.glm_file), f"betas_{last}", "valid", "points")
        valid = stored["valid"]
        scores, mean, sd = z_scored(stored[f"betas_{last}"][valid], plan)
        repeats = arrange_repeats(scores, plan.condition, n_conditions=len(plan.conditions))
        parcel = bisect(point_coordinates(plan, stored["points"])[valid])
        options = {"mode": mode}
        if mode == "cv":
            options["threshold"] = self.inputs.model["psn_level"]
        fits = [fit_psn(repeats[parcel == number], **options) for number in range(parcel.max() + 1)]
        arrays = joined(fits, parcel, mean, sd) | {"parcel": parcel, "valid": valid, "mean": mean, "sd": sd}
        test = held_out(repeats, parcel, options)
        arrays["reliability"] = test.reliability
        meta = {"mode": mode, "glm_type": last, "basis": fits[0].basis_name, "criterion": fits[0].criterion}
        meta |= {"level": fits[0].level, "n_dims": [float(fit.n_dims) for fit in fits]}
        meta |= {"held_out_error": {"before": test.error_before, "after": test.error_after}}
        meta |= {
            "account": [*account(fits), *test.account()],
            "n_parcels": len(fits),
            "seconds": time.monotonic() - start,
        }
        return {"out_file": str(save_arrays(out, arrays, meta))}


def joined(
    fits: list[PSNResult], parcel: np.ndarray, mean: np.ndarray, sd: np.ndarray
) -> dict[str, np.ndarray]:
    """Put the blocks together, back in the unit of the betas, and keep each block's model."""
    n = len(parcel)
    out = {name: np.empty((n, fits[0].denoised.shape[1]), np.float32) for name in ("denoised", "averages")}
    variances = {"signal_var": "kept_signal", "noise_var": "kept_noise"}
    variances |= {"removed_signal": "removed_signal", "removed_noise": "removed_noise"}
    out |= {f"unit_{name}": np.empty(n, np.float32) for name in variances}
    for number, fit in enumerate(fits):
        here = parcel == number
        for name in ("denoised", "averages"):
            out[name][here] = getattr(fit, name) * sd[here, None] + mean[here, None]
        for name, source in variances.items():
            out[f"unit_{name}"][here] = getattr(fit, source) * sd[here] ** 2
        model = {"axes": fit.axes, "threshold": np.asarray(fit.threshold), "signal_var": fit.signal_var}
        model |= {"noise_var": fit.noise_var, "cv_error": fit.cv_error, "unit_means": fit.unit_means}
        out |= {f"model_{number}_{name}": value for name, value in model.items() if value is not None}
    return out


def account(fits: list[PSNResult]) -> list[str]:
    """Say what was done, in sentences."""
    if len(fits) == 1:
        return list(fits[0].account)
    sizes, dims = [len(fit.valid) for fit in fits], [fit.n_dims for fit in fits]
    return [
        f"PSN was applied to {len(fits)} blocks of {min(sizes)} to {max(sizes)} neighbouring voxels, each by "
        f"itself; it kept {min(dims):g} to {max(dims):g} dimensions (median {np.median(dims):g}) of a block.",
        *fits[0].account[:-1],
    ]
