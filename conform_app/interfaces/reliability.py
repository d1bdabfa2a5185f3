# SPDX-License-Identifier: Apache-2.0
"""The reliability step: how repeatable the betas of each GLM type are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File

from conform_app.bids.plan import FitPlan
from conform_app.images.arrays import load_arrays, load_meta, save_arrays
from conform_app.interfaces.base import FitInterface, PlanInputSpec
from conform_app.reliability import arrange_repeats, ncsnr, noise_ceiling, split_half


class ReliabilityInputSpec(PlanInputSpec):
    """Inputs of the reliability step."""

    glm_file = File(exists=True, mandatory=True, desc="arrays of the GLMsingle step")


class Reliability(FitInterface):
    """Split-half reliability of types A to D; ncsnr and noise ceiling of the last of them."""

    input_spec = ReliabilityInputSpec

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Load betas type by type, compute, save."""
        arrays: dict[str, np.ndarray | None] = {}
        meta = load_meta(Path(self.inputs.glm_file))
        if plan.repeats_across_runs:
            for name in meta["types"]:
                betas = load_arrays(Path(self.inputs.glm_file), f"betas_{name}")[f"betas_{name}"]
                repeats = arrange_repeats(
                    z_scored(betas, plan)[0], plan.condition, n_conditions=len(plan.conditions)
                )
                arrays[f"reliability_{name}"] = split_half(repeats).astype(np.float32)
                last = repeats
            arrays["ncsnr"] = ncsnr(last).astype(np.float32)
            arrays["noiseceiling"] = noise_ceiling(last, n="avg").astype(np.float32)
        return {"out_file": str(save_arrays(cwd / "reliability.h5", arrays, {"types": meta["types"]}))}


def z_scored(betas: np.ndarray, plan: FitPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardise betas per voxel within each session, so that gain and offset of a session do not count.

    Parameters
    ----------
    betas : ndarray of shape (n_voxels, n_trials)
    plan : FitPlan

    Returns
    -------
    scores : ndarray of shape (n_voxels, n_trials)
        Zero where a voxel does not vary in a session, NaN for trials without a beta.
    mean, sd : ndarray of shape (n_voxels,)
        Averages over sessions, to go back to the unit of the betas.
    """
    session = np.asarray(plan.run_sessions)[plan.run_of_trial]
    estimated = np.isfinite(betas).any(axis=0)
    scores = np.full(betas.shape, np.nan, dtype=np.float32)
    means, sds = [], []
    for number in np.unique(session[estimated]):
        here = estimated & (session == number)
        mean = betas[:, here].mean(axis=1, dtype=np.float64, keepdims=True)
        sd = np.ones_like(mean)
        if here.sum() > 1:
            sd = betas[:, here].std(axis=1, ddof=1, dtype=np.float64, keepdims=True)
        scores[:, here] = (betas[:, here] - mean) / np.where(sd > 0, sd, 1)
        means.append(mean[:, 0])
        sds.append(sd[:, 0])
    return scores, np.mean(means, axis=0), np.mean(sds, axis=0)
