# SPDX-License-Identifier: Apache-2.0
"""The participant level: a workflow per participant that holds a workflow per fit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

from conform_app.bids.plan import FitPlan, write_plan
from conform_app.settings import ModelSettings
from conform_app.workflows.fit import init_fit_wf, node_name

NAME = "conform_wf"


def init_subject_wf(
    *, subject: str, plans: Sequence[FitPlan], plan_dir: Path, **fit_options: Any
) -> Workflow:
    """Build the workflow of one participant.

    Parameters
    ----------
    subject : str
        Label without ``sub-``.
    plans : sequence of FitPlan
        The participant's fits.
    plan_dir : Path
        Folder in which the plans are written.
    **fit_options
        Passed on to :func:`conform_app.workflows.fit.init_fit_wf`.

    Returns
    -------
    nipype.pipeline.engine.Workflow
    """
    workflow = Workflow(name=f"sub_{subject}_wf")
    for plan in plans:
        plan_file = write_plan(plan, plan_dir / f"{plan.name}.json")
        workflow.add_nodes([init_fit_wf(plan=plan, plan_file=plan_file, **fit_options)])
    return workflow


def forget_steps(work_dir: Path, plan: FitPlan, *, everything: bool) -> None:
    """Remove from the work folder the steps of a fit that must be done again.

    Parameters
    ----------
    work_dir : Path
    plan : FitPlan
    everything : bool
        All steps; otherwise those whose arrays are gone, as where old files of ``/tmp`` are cleared away.
    """
    folder = work_dir / NAME / f"sub_{plan.subject}_wf" / f"fit_{node_name(plan.name)}_wf"
    if everything:
        shutil.rmtree(folder, ignore_errors=True)
    for result in folder.glob("*/result_*.pklz"):
        if not any(not path.name.startswith(("_", "result_")) for path in result.parent.iterdir()):
            shutil.rmtree(result.parent, ignore_errors=True)


def init_participant_wf(
    *,
    plans: Mapping[str, Sequence[FitPlan]],
    work_dir: Path,
    log_dirs: Mapping[str, Path],
    model: ModelSettings,
    dataset: dict[str, Any],
    save_residuals: bool = False,
    device: str = "cpu",
    n_threads: int = 1,
    max_memory: float | None = None,
    name: str = NAME,
) -> Workflow:
    """Build the workflow of all participants.

    Parameters
    ----------
    plans : mapping of subject to sequence of FitPlan
    work_dir : Path
        Folder for intermediate results.
    log_dirs : mapping of subject to Path
        Where each participant's crash files and notes go.
    model, dataset, save_residuals, device, n_threads, max_memory
        See :func:`conform_app.workflows.fit.init_fit_wf`.
    name : str

    Returns
    -------
    nipype.pipeline.engine.Workflow
    """
    workflow = Workflow(name=name, base_dir=str(work_dir))
    for subject, own in plans.items():
        sub = init_subject_wf(
            subject=subject,
            plans=own,
            plan_dir=work_dir / "plans",
            model=model,
            dataset=dataset,
            log_dir=log_dirs[subject],
            save_residuals=save_residuals,
            device=device,
            n_threads=n_threads,
            max_memory=max_memory,
        )
        workflow.add_nodes([sub])
        for step in sub.list_node_names():
            # Crash files belong to their participant, so that parallel jobs share no folder.
            sub.get_node(step).config = {"execution": {"crashdump_dir": str(log_dirs[subject])}}
    return workflow
