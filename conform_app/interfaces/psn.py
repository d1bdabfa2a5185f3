# SPDX-License-Identifier: Apache-2.0
"""The PSN step: single-trial betas in, denoised condition averages and the model of the noise out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, InputMultiObject, traits
from threadpoolctl import threadpool_limits

from conform_app.bids.atlas import check_whole, labels_of
from conform_app.bids.plan import FitPlan, point_coordinates
from conform_app.bids.psncost import SPAN_MODES
from conform_app.images.arrays import load_arrays, load_meta, save_arrays
from conform_app.interfaces.base import FitInterface, PlanInputSpec
from conform_app.interfaces.reliability import z_scored
from conform_app.psn.heldout import HeldOut, held_out
from conform_app.psn.parcels import ParcelFit, bisect, fit_parcels, from_labels
from conform_app.psn.wide import WideFit, fit_wide
from conform_app.reliability import arrange_repeats


class PSNInputSpec(PlanInputSpec):
    """Inputs of the PSN step."""

    glm_file = File(exists=True, mandatory=True, desc="arrays of the GLMsingle step")
    model = traits.Dict(mandatory=True, desc="ModelSettings as a dictionary")
    device = traits.Str("cpu", usedefault=True, nohash=True, desc="cpu or cuda")
    atlas_files = InputMultiObject(File(exists=True), desc="the plan's atlas, so that its change is noticed")


class PSNDenoise(FitInterface):
    """Denoise the condition averages, block of voxels by block."""

    input_spec = PSNInputSpec

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Load, denoise, test on unseen repeats, save; without repeats across runs a file says so."""
        start, model, out = time.monotonic(), self.inputs.model, cwd / "psn.h5"
        if model["psn"] == "off" or not plan.repeats_across_runs:
            return {"out_file": str(save_arrays(out, {}, {"mode": "off"}))}
        types = load_meta(Path(self.inputs.glm_file))["types"]
        glm_type = model["psn_type"] if model["psn_type"] in types else types[-1]
        stored = load_arrays(Path(self.inputs.glm_file), f"betas_{glm_type}", "valid", "points")
        valid = stored["valid"]
        scores, mean, sd = scaled(stored.pop(f"betas_{glm_type}")[valid], plan, model["psn_scale"])
        repeats = arrange_repeats(scores, plan.condition, n_conditions=len(plan.conditions))
        del scores
        parcel, parcels = choose_parcels(plan, stored["points"], valid, model)
        options = {"mode": model["psn"], "device": self.inputs.device}
        if model["psn"] == "cv":
            options["threshold"] = model["psn_level"]
        wide = parcels["kind"] == "none" and model["psn"] in SPAN_MODES
        n_jobs = self.inputs.n_threads

        def denoise(data: np.ndarray, parcel: np.ndarray, keep: bool = False) -> ParcelFit | WideFit:
            if wide:
                return fit_wide(data, **options)
            return fit_parcels(data, parcel, n_jobs=n_jobs, keep_models=keep, **options)

        with threadpool_limits(n_jobs if wide else 1):  # blocks side by side, each on one thread
            fit = denoise(repeats, parcel, keep=True)
            test = held_out(repeats, parcel, denoise)
        arrays = in_unit_of_betas(fit, mean, sd) | {"parcel": parcel, "valid": valid, "mean": mean, "sd": sd}
        arrays |= {"reliability": test.reliability, "reliability_before": test.before}
        meta = describe(fit, test, model, parcels)
        meta |= {"glm_type": glm_type, "seconds": time.monotonic() - start}
        return {"out_file": str(save_arrays(out, arrays, meta))}


def scaled(betas: np.ndarray, plan: FitPlan, scale: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Betas as PSN sees them, with the mean and sd per voxel that lead back.

    "z": z-scored per voxel and session, so that no voxel counts more for its scale; "percent": as they are.
    """
    if scale == "z":
        return z_scored(betas, plan)
    nothing = np.zeros(len(betas))
    return betas, nothing, nothing + 1


def choose_parcels(
    plan: FitPlan, points: np.ndarray, valid: np.ndarray, model: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels that are denoised together: the parcel of each voxel, and what the parcels are."""
    if not plan.atlas and tuple(model.get("psn_parcels", ())) == ("none",):
        check_whole(model["psn"], int(valid.sum()), plan.n_trials, plan.name)
        return np.zeros(int(valid.sum()), dtype=int), {"kind": "none"}
    place = point_coordinates(plan, points)[valid]
    if not plan.atlas:
        return bisect(place), {"kind": "blocks"}
    labels = labels_of(plan, points)[valid]
    return from_labels(labels, place), {
        "kind": "atlas",
        "files": [Path(path).name for path in plan.atlas],
        "n_labels": int(np.unique(labels[labels > 0]).size),
        "n_unlabelled": int((labels == 0).sum()),
    }


def in_unit_of_betas(fit: ParcelFit | WideFit, mean: np.ndarray, sd: np.ndarray) -> dict[str, np.ndarray]:
    """Maps and models of the fit; averages and variances are taken back to the unit of the betas."""
    out = {
        name: (getattr(fit, name) * sd[:, None] + mean[:, None]).astype(np.float32)
        for name in ("denoised", "averages")
    }
    names = {"signal_var": fit.kept_signal, "noise_var": fit.kept_noise}
    names |= {"removed_signal": fit.removed_signal, "removed_noise": fit.removed_noise}
    out |= {f"unit_{name}": (values * sd**2).astype(np.float32) for name, values in names.items()}
    for number, model in enumerate(fit.models):
        if model is not None:
            out |= {f"model_{number}_{name}": values for name, values in model.arrays().items()}
    return out


def describe(
    fit: ParcelFit | WideFit, test: HeldOut, model: dict[str, Any], parcels: dict[str, Any]
) -> dict[str, Any]:
    """What was done, for the record."""
    dims = [float(np.nanmedian(fit.n_dims[fit.parcel == number])) for number in range(len(fit.models))]
    return {
        "mode": model["psn"],
        "scale": model["psn_scale"],
        "basis": fit.basis,
        "criterion": fit.criterion,
        "level": fit.level,
        "n_dims": dims,
        "n_parcels": len(fit.models),
        "parcels": parcels | {"estimator": getattr(fit, "estimator", "")},
        "held_out_error": {"before": test.error_before, "after": test.error_after},
        "account": [*told(parcels, len(fit.valid)), *fit.account, *test.account()],
    }


def told(parcels: dict[str, Any], n_voxels: int) -> list[str]:
    """Say what the parcels are, where they come from an atlas."""
    if parcels["kind"] != "atlas":
        return []
    unlabelled = parcels["n_unlabelled"]
    rest = (
        f"; the {unlabelled:,} of {n_voxels:,} voxels without a label were denoised in compact blocks"
        if unlabelled
        else ""
    )
    return [
        f"PSN denoised each of {parcels['n_labels']} regions of the atlas {' and '.join(parcels['files'])} by"
        f" itself{rest}."
    ]
