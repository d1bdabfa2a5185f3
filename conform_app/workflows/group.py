# SPDX-License-Identifier: Apache-2.0
"""The group level: a node a participant, side by side, and one that seals the collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from conform_app.collect.plans import ParticipantPlan
from conform_app.interfaces.group import MergeParticipant, SealCollection


def init_group_wf(
    *,
    plans: Sequence[ParticipantPlan],
    plan_dir: Path,
    job_file: Path,
    work_dir: Path,
    log_dir: Path,
    seal: bool = True,
    mem_gb: float = 2.0,
    name: str = "conform_group_wf",
) -> Workflow:
    """Build the workflow of the group level.

    Parameters
    ----------
    plans : sequence of ParticipantPlan
        Participants to write; may be empty (then the collection is sealed as it is).
    plan_dir : Path
        Where their plans are, as ``KEY.json``.
    job_file : Path
        What to collect (see :class:`conform_app.collect.job.GroupJob`).
    work_dir, log_dir : Path
        For intermediate results and crash files.
    seal : bool
        Whether the collection is sealed at the end.
    mem_gb : float
        Estimated peak of one participant.
    name : str

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Its node ``seal`` has the output ``out_file``; each ``merge_KEY`` a summary likewise.
    """
    workflow = Workflow(name=name, base_dir=str(work_dir))
    nodes = []
    for plan in plans:
        node = Node(
            MergeParticipant(plan_file=str(plan_dir / f"{plan.key}.json")),
            name=f"merge_{plan.key.replace('-', '_')}",
            mem_gb=mem_gb,
        )
        nodes.append(node)
    workflow.add_nodes(nodes)
    if seal:
        last = Node(SealCollection(job_file=str(job_file), log_dir=str(log_dir)), name="seal", mem_gb=1.0)
        workflow.add_nodes([last])
        if nodes:
            every = Node(Merge(len(nodes)), name="every", run_without_submitting=True)
            workflow.connect([(node, every, [("out_file", f"in{n}")]) for n, node in enumerate(nodes, 1)])
            workflow.connect(every, "out", last, "summaries")
    for node_name in workflow.list_node_names():
        workflow.get_node(node_name).config = {"execution": {"crashdump_dir": str(log_dir)}}
    return workflow
