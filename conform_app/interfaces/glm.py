# SPDX-License-Identifier: Apache-2.0
"""The GLMsingle step: BOLD runs and trials in, single-trial betas of types A to D out."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nipype.interfaces.base import File, InputMultiObject, traits

from conform_app.bids.plan import FitPlan, load_runs
from conform_app.bids.planning import BASE_MEMORY
from conform_app.glmsingle import GLMsingleOptions, RunTrials, fit_glmsingle
from conform_app.glmsingle.nuisance import event_regressors
from conform_app.images.arrays import ArrayStore
from conform_app.interfaces.base import FitInterface, PlanInputSpec
from conform_app.interfaces.progress import progress_bar


class GLMsingleInputSpec(PlanInputSpec):
    """Inputs of the GLMsingle step; the files are named so that changed ones are noticed."""

    bold_files = InputMultiObject(File(exists=True), mandatory=True)
    side_files = InputMultiObject(File(exists=True), desc="masks and confounds")
    model = traits.Dict(mandatory=True, desc="ModelSettings as a dictionary")
    device = traits.Str("cpu", usedefault=True, nohash=True)
    # "Either" would lose nohash, and what memory is free differs from call to call
    max_memory = traits.Float(nohash=True, desc="bytes")


class GLMsingle(FitInterface):
    """Fit types A to D on the analysis mask of one fit."""

    input_spec = GLMsingleInputSpec

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Load the runs, fit, save the arrays."""
        start = time.monotonic()
        out = cwd / "glmsingle.h5"
        with TemporaryDirectory(dir=cwd) as scratch, ArrayStore(out) as store:
            arrays, meta = self._fit(plan, Path(scratch), store)
            meta["seconds"] = time.monotonic() - start
            store.finish(arrays, meta)
        return {"out_file": str(out)}

    def _fit(
        self, plan: FitPlan, scratch: Path, store: ArrayStore
    ) -> tuple[dict[str, np.ndarray | None], dict[str, Any]]:
        """Arrays and document of the fit; in memory, or from disk to disk where it would not fit."""
        limit = self.inputs.max_memory or None  # undefined is false
        on_disk = limit is not None and plan.memory_glm > limit
        data = load_runs(plan, tuple(self.inputs.model["confounds"]), scratch if on_disk else None)
        result = fit_glmsingle(
            data.bold,
            [RunTrials(*columns) for columns in plan.trials_by_run()],
            None,
            plan.tr,
            options=options_from(self.inputs.model, plan.repeats_across_runs),
            sessions=plan.run_sessions,
            extra_regressors=nuisance(plan, data.confounds),
            start_times=[run.start_time for run in plan.runs],
            device=self.inputs.device,
            n_threads=self.inputs.n_threads,
            max_memory=max(limit - BASE_MEMORY, limit / 4) if on_disk else limit,
            progress=progress_bar(f"{plan.name}: GLMsingle"),
            store=(lambda letter, shape: store.empty(f"betas_{letter}", shape)) if on_disk else None,
        )
        arrays, meta = flatten(result)
        arrays["points"] = data.points
        meta["warnings"] = [*data.warnings, *meta["warnings"]]
        return arrays, meta


def nuisance(plan: FitPlan, confounds: list[np.ndarray] | None) -> list[np.ndarray] | None:
    """Add a regressor for each button that was pressed in a run to the run's confounds."""
    if not any(run.presses for run in plan.runs):
        return confounds
    out = []
    for number, run in enumerate(plan.runs):
        volumes = run.start_time + plan.tr * np.arange(run.n_volumes)
        columns = event_regressors(list(run.presses.values()), volumes, plan.tr)
        out.append(columns if confounds is None else np.hstack([confounds[number], columns]))
    return out


def options_from(model: dict[str, Any], repeats_across_runs: bool) -> GLMsingleOptions:
    """Translate our settings into those of the method."""
    options: dict[str, Any] = {"n_pcs": model["n_pcs"], "pcstop": model["pcstop"]}
    if model["fracs"]:
        options["fracs"] = tuple(model["fracs"])
    if model["hrf_model"] == "canonical":
        options["wantlibrary"] = False
    if model["sloppy"]:
        options |= {"n_pcs": 2, "fracs": (1.0, 0.8, 0.6, 0.4, 0.2)}
    if not repeats_across_runs and model["no_repeats"] == "fixed":
        options |= {"pcstop": -float(model["fixed_pcs"]), "fracs": (model["fixed_fraction"],)}
    elif not repeats_across_runs:  # announced by the plan
        options |= {"wantglmdenoise": False, "wantfracridge": False}
    return GLMsingleOptions(**options)


def flatten(result: Any) -> tuple[dict[str, np.ndarray | None], dict[str, Any]]:
    """Split a result into arrays and what JSON can hold.

    ``design_<run>`` is the assumed-HRF design of a run: one row per volume, one column per trial of the run.
    """
    types = {"A": result.type_a, "B": result.type_b, "C": result.type_c, "D": result.type_d}
    types = {name: value for name, value in types.items() if value is not None}
    arrays: dict[str, np.ndarray | None] = {"valid": result.valid, "mean_vol": result.mean_vol}
    arrays |= {"hrfs": result.hrfs, "hrf_times": result.hrf_times}
    for name, value in types.items():
        arrays |= {f"betas_{name}": value.betas, f"r2_{name}": value.r2}
    arrays["hrf_index"] = result.type_b.hrf_index
    arrays |= {f"design_{number}": design for number, design in enumerate(result.designs)}
    meta: dict[str, Any] = {
        "types": list(types),
        "account": list(result.account),
        "warnings": list(result.warnings),
    }
    meta["r2_threshold"] = float(result.r2_threshold) if np.isfinite(result.r2_threshold) else None
    if "C" in types:
        arrays |= {"noise_pool": result.type_c.noise_pool, "xval_trend": result.type_c.xval_trend}
        meta["pcnum"] = int(result.type_c.pcnum)
        meta["noise_pool_size"] = int(result.type_c.noise_pool.sum())
        for number, regressors in enumerate(result.type_c.pc_regressors or ()):
            arrays[f"pc_regressors_{number}"] = regressors
    if "D" in types:
        arrays["frac_value"] = result.type_d.frac_value
        meta["fracs"] = [float(f) for f in result.fracs]
    return arrays, meta
