# SPDX-License-Identifier: Apache-2.0
"""The workflow of one fit: GLMsingle, then reliability and PSN side by side, then the files.

Where volumes are carried to a surface, that step comes before GLMsingle (time series) or after it (betas).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Node, Workflow

from conform_app.bids.carrycost import surface_memory
from conform_app.bids.plan import FitPlan, write_plan
from conform_app.bids.planning import BASE_MEMORY
from conform_app.bids.psncost import psn_memory
from conform_app.bids.subcortex import in_template
from conform_app.interfaces.derivatives import WriteDerivatives
from conform_app.interfaces.glm import GLMsingle
from conform_app.interfaces.psn import PSNDenoise
from conform_app.interfaces.reliability import Reliability
from conform_app.interfaces.surface import CarryBetas, CarrySeries
from conform_app.settings import ModelSettings

GIB = 1 << 30


def init_fit_wf(
    *,
    plan: FitPlan,
    plan_file: Path,
    model: ModelSettings,
    dataset: dict[str, Any],
    log_dir: Path,
    save_residuals: bool = False,
    device: str = "cpu",
    n_threads: int = 1,
    max_memory: float | None = None,
    name: str | None = None,
) -> Workflow:
    """Build the workflow of one fit.

    Parameters
    ----------
    plan : FitPlan
        What is fitted; sets memory estimates and the files whose change is noticed.
    plan_file : Path
        The same plan as JSON.
    model : ModelSettings
    dataset : dict
        What the files need to know of the output dataset (see
        :func:`conform_app.bids.derivatives.write_fit`).
    log_dir : Path
        Folder for notes of failures.
    save_residuals : bool
        Also write PSN's residuals.
    device : {"cpu", "cuda"}
    n_threads : int
        Threads of each node.
    max_memory : float, optional
        Bytes that the numerics stay within.
    name : str, optional
        Name of the workflow; by default from the fit.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Its node ``write`` has the output ``out_file``, the fit record.
    """
    common = {"plan_file": str(plan_file), "log_dir": str(log_dir), "n_threads": n_threads}
    common["version"] = str(dataset["version"])
    gib = max(plan.memory_glm / GIB, 0.2)

    def node(interface: Any, label: str, mem_gb: float) -> Node:
        return Node(interface, name=label, n_procs=n_threads, mem_gb=mem_gb)

    settings = asdict(model)

    def fitting(of: FitPlan, label: str) -> Node:
        step = GLMsingle(bold_files=of.bold_files(), model=settings, device=device, **common)
        if max_memory is not None:
            step.inputs.max_memory = float(max_memory)
        if of.side_files():
            step.inputs.side_files = of.side_files()
        return node(step, label, gib)

    glm = fitting(plan, "glmsingle")
    reliability = node(Reliability(**common), "reliability", gib / 2)
    of_psn = psn_memory(plan, model, BASE_MEMORY, n_threads) / GIB
    psn = node(PSNDenoise(model=settings, device=device, **common), "psn", of_psn)
    psn.inputs.atlas_files = list(plan.atlas)
    write = node(
        WriteDerivatives(model=settings, dataset=dataset, save_residuals=save_residuals, **common),
        "write",
        gib / 2,
    )
    workflow = Workflow(name=name or f"fit_{node_name(plan.name)}_wf")
    workflow.connect(
        [
            (glm, reliability, [("out_file", "glm_file")]),
            (glm, psn, [("out_file", "glm_file")]),
            (glm, write, [("out_file", "glm_file")]),
            (reliability, write, [("out_file", "reliability_file")]),
            (psn, write, [("out_file", "psn_file")]),
        ]
    )
    if plan.surface is not None:
        inputs = {"in_files": plan.surface.files(), "device": device, **common}
        _carry(workflow, plan, plan_file, node, inputs, fitting)
    return workflow


def _carry(
    workflow: Workflow, plan: FitPlan, plan_file: Path, node: Any, inputs: dict[str, Any], fitting: Any
) -> None:
    """Put the surface step before the GLM, or between it and the steps that use its betas.

    Betas of grayordinates also take those of the subcortex, fitted in the volumes of the template.
    """
    gib = surface_memory(plan, BASE_MEMORY) / GIB
    glm, write = workflow.get_node("glmsingle"), workflow.get_node("write")
    users = [workflow.get_node(name) for name in ("reliability", "psn", "write")]
    if plan.surface.of == "timeseries":
        step = node(CarrySeries(**inputs), "surface", gib)
        workflow.connect(step, "bold_files", glm, "bold_files")
        users.append(glm)
    else:
        glm.inputs.plan_file = str(write_plan(plan.in_volume(), plan_file.parent / "volume" / plan_file.name))
        step = node(CarryBetas(**inputs), "surface", gib)
        for user in users:
            workflow.disconnect(glm, "out_file", user, "glm_file")
            workflow.connect(step, "glm_file", user, "glm_file")
        workflow.connect(glm, "out_file", step, "glm_file")
        if plan.surface.subcortex is not None:
            below = in_template(plan)
            other = fitting(below, "glmsingle_subcortex")
            folder = plan_file.parent / "template"
            other.inputs.plan_file = str(write_plan(below, folder / plan_file.name))
            workflow.connect(other, "out_file", step, "subcortex_file")
    for user in users:
        workflow.connect(step, "plan_file", user, "plan_file")
    workflow.connect(step, "out_file", write, "surface_file")


def node_name(text: str) -> str:
    """Spell a fit's name as Nipype allows: ``sub-01_ses-1+2`` becomes ``sub_01_ses_1_and_2``."""
    return text.replace("-", "_").replace("+", "_and_")
