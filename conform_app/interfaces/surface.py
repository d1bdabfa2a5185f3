# SPDX-License-Identifier: Apache-2.0
"""The surface step: runs, or the betas fitted in their volumes, carried to a surface space.

It leaves a plan in which the carried files stand where the volumes stood, so that the steps after it need not
know; and a file of what the registration was, for the outputs and the report.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, InputMultiObject, OutputMultiObject, traits
from scipy import sparse

from conform_app.bids.plan import FitPlan, write_plan
from conform_app.images import write_maps
from conform_app.images.arrays import load_arrays, load_meta, save_arrays
from conform_app.images.series import write_series
from conform_app.interfaces.base import FitInterface, OneFileOutputSpec, PlanInputSpec
from conform_app.interfaces.carrying import Carrier

BLOCK_BYTES = 1 << 28
BLOCK_ROWS = 1 << 14


class CarryInputSpec(PlanInputSpec):
    """Inputs of the surface step; the files are named so that changed ones are noticed."""

    in_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="volumes, surfaces, spheres, templates"
    )
    device = traits.Str("cpu", usedefault=True, nohash=True)


class CarryOutputSpec(OneFileOutputSpec):
    """Outputs of the surface step."""

    plan_file = File(exists=True, desc="the plan with the carried files")
    bold_files = OutputMultiObject(File(exists=True), desc="the carried runs")


class CarrySeries(FitInterface):
    """Carry every run's time series to the surface space of the fit."""

    input_spec = CarryInputSpec
    output_spec = CarryOutputSpec

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Sample and resample run by run, write the runs and their mask."""
        carrier = Carrier(plan, cwd)
        names = [carrier.run_files(cwd, run) for run in plan.runs]
        for number in carrier.grid_by_grid():
            write_series(carrier.grid, names[number], carrier.series(number, self.inputs.device), plan.tr)
        return _leave(plan, carrier, names, cwd) | {
            "out_file": str(carrier.leave_account(cwd / "surface.h5"))
        }


class CarryBetasInputSpec(CarryInputSpec):
    """Inputs of the surface step after the GLM."""

    glm_file = File(exists=True, mandatory=True, desc="arrays of the GLMsingle step in the volume")
    subcortex_file = File(exists=True, desc="the same of the volumes that the subcortex comes from")


class CarryBetasOutputSpec(CarryOutputSpec):
    """Outputs of the surface step after the GLM."""

    glm_file = File(exists=True, desc="the same arrays on the surface")


class CarryBetas(FitInterface):
    """Carry what GLMsingle estimated in the volume to the surface space of the fit."""

    input_spec = CarryBetasInputSpec
    output_spec = CarryBetasOutputSpec

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Sample and resample betas and maps; labels go to the one with most weight."""
        glm_file = Path(self.inputs.glm_file)
        meta = load_meta(glm_file)
        glm = load_arrays(glm_file, "points", "valid", "noise_pool", "hrf_index")
        inside = glm["points"].copy()
        inside[inside] = glm["valid"]
        carrier = Carrier(plan, cwd, inside)
        whole = carrier.open_place(0).matrix
        below = Below(Path(self.inputs.subcortex_file), carrier) if self.inputs.subcortex_file else None
        if below is not None:
            carrier.points[carrier.n_cortex :] = below.kept
        matrix = whole[: carrier.n_cortex][carrier.points[: carrier.n_cortex]][:, inside]
        arrays = {"points": carrier.points, "valid": np.ones(int(carrier.points.sum()), dtype=bool)}
        n_before = len(glm["valid"])
        for name, values in _each(glm_file):
            if name in arrays:
                continue
            along = values.ndim > 0 and len(values) == n_before and not name.startswith(("hrfs", "hrf_times"))
            if not along:
                arrays[name] = values
            else:
                way = _vote if name in ("noise_pool", "hrf_index") else _blocks
                carried = way(matrix, values[glm["valid"]])
                arrays[name] = (
                    carried if below is None else np.concatenate([carried, below.rows(name, carried)])
                )
        if below is not None:
            arrays |= below.regressors(len(plan.runs))
            meta = meta | below.facts
        out = save_arrays(cwd / "glmsingle.h5", arrays, meta)
        names = [carrier.run_files(cwd, plan.runs[0])] * len(plan.runs)
        mean = np.full((carrier.grid.n_points, 1), np.nan, np.float32)
        mean[carrier.points, 0] = arrays["mean_vol"]
        write_series(carrier.grid, names[0], mean, plan.tr)  # stands for the grid
        told = [] if below is None else [below.account(meta)]
        surface = carrier.leave_account(cwd / "surface.h5", told)
        return _leave(plan, carrier, names, cwd) | {"out_file": str(surface), "glm_file": str(out)}


def _leave(plan: FitPlan, carrier: Carrier, names: list[list[Path]], cwd: Path) -> dict[str, Any]:
    """Write the mask and the plan for the steps that follow."""
    suffixes = (".dlabel.nii",) if carrier.grid.kind == "cifti" else (".label.gii", ".label.gii")
    sides = ("",) if carrier.grid.kind == "cifti" else ("_hemi-L", "_hemi-R")
    masks = [cwd / f"{plan.name}{side}_mask{suffix}" for side, suffix in zip(sides, suffixes, strict=True)]
    write_maps(carrier.grid, masks, carrier.points.astype(np.uint8), intent="mask")
    runs = [
        replace(run, bold=tuple(map(str, paths)), mask=tuple(map(str, masks)))
        for run, paths in zip(plan.runs, names, strict=True)
    ]
    carried = replace(
        plan, runs=tuple(runs), n_points=carrier.grid.n_points, n_voxels=int(carrier.points.sum())
    )
    plan_file = write_plan(carried, cwd / f"{plan.name}.json")
    files = list(dict.fromkeys(str(path) for paths in [*names, masks] for path in paths))
    return {"plan_file": str(plan_file), "bold_files": files}


class Below:
    """What GLMsingle estimated at the subcortex's voxels, in the volumes of the template.

    Parameters
    ----------
    path : Path
        Arrays of that fit.
    carrier : Carrier

    Attributes
    ----------
    kept : ndarray of bool, shape (n_subcortical,)
        Grayordinates whose voxel was fitted.
    facts : dict
        ``subcortex_pcnum``: how many noise regressors that fit uses, where it has any.
    """

    def __init__(self, path: Path, carrier: Carrier) -> None:
        self.path = path
        meta = load_meta(path)
        self.facts = {"subcortex_pcnum": meta["pcnum"]} if "pcnum" in meta else {}
        found = load_arrays(path, "points", "valid")
        fitted = found["points"].copy()
        fitted[fitted] = found["valid"]
        voxels = carrier.subcortical_voxels()
        self.kept = fitted[voxels]
        self._rows = (np.cumsum(found["points"]) - 1)[voxels[self.kept]]

    def rows(self, name: str, like: np.ndarray) -> np.ndarray:
        """Values of the grayordinates kept; NaN (or 0) if that fit did not get as far as this array."""
        import h5py

        shape = (len(self._rows), *like.shape[1:])
        with h5py.File(self.path, "r") as store:
            if name not in store:
                return np.full(shape, np.nan if like.dtype.kind == "f" else 0, like.dtype)
            out, data = np.empty(shape, like.dtype), store[name]
            for start in range(0, len(data), BLOCK_ROWS):
                here = (self._rows >= start) & (self._rows < start + BLOCK_ROWS)
                out[here] = data[start : start + BLOCK_ROWS][self._rows[here] - start]
        return out

    def regressors(self, n_runs: int) -> dict[str, np.ndarray]:
        """Noise regressors of that fit, by the names under which they are written beside the cortex's."""
        found = load_arrays(self.path, *(f"pc_regressors_{number}" for number in range(n_runs)))
        return {f"subcortex_{name}": values for name, values in found.items()}

    def account(self, cortex: dict[str, Any]) -> str:
        """Say that the subcortex is a fit of its own."""
        text = "The subcortex was fitted by itself, in whole-brain MNI152NLin6Asym volumes"
        if self.facts and "pcnum" in cortex:
            own, other = self.facts["subcortex_pcnum"], cortex["pcnum"]
            text += f" ({own} noise regressors; {other} in the fit of the cortex)"
        return f"{text}."


def _each(path: Path) -> Any:
    """Arrays of a file one after the other, so that one type of betas is held at a time."""
    import h5py

    with h5py.File(path, "r") as store:
        for name in store:
            yield name, store[name][()]


def _blocks(matrix: sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Apply a matrix to (n,) or (n, m) values, some columns at a time; float32."""
    if values.ndim == 1:
        return (matrix @ values.astype(np.float64)).astype(np.float32)
    out = np.empty((matrix.shape[0], values.shape[1]), np.float32)
    step = max(1, BLOCK_BYTES // (8 * max(matrix.shape)))
    for first in range(0, values.shape[1], step):
        out[:, first : first + step] = matrix @ values[:, first : first + step].astype(np.float64)
    return out


def _vote(matrix: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Return for each row the label that has most weight."""
    known = np.unique(labels)
    weight = np.stack([matrix @ (labels == label).astype(np.float64) for label in known])
    return known[weight.argmax(axis=0)]
