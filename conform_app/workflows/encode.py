# SPDX-License-Identifier: Apache-2.0
"""Encoding models: everybody's averaged responses, then a node a participant, then the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from conform_app.interfaces.braincorl import AverageResponses, ModelParticipant, SealEncoding


def init_encode_wf(
    *,
    people: Sequence[str],
    targets: Sequence[str],
    job_file: Path,
    work_dir: Path,
    log_dir: Path,
    n_threads: int = 1,
    mem_gb: float = 2.0,
    name: str = "conform_encode_wf",
) -> Workflow:
    """Build the workflow of the encoding models.

    Parameters
    ----------
    people : sequence of str
        Participants whose averaged responses are needed; may be empty.
    targets : sequence of str
        Participants to model; may be empty (then tables are made from what is there).
    job_file : Path
        See :class:`conform_app.encode.job.EncodeJob`.
    work_dir, log_dir : Path
        For intermediate results and crash files.
    n_threads : int
    mem_gb : float
        Estimated peak of one participant.
    name : str

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Nodes ``average_KEY``, ``model_KEY`` (output ``out_file``: how it went) and ``seal``.
    """
    workflow = Workflow(name=name, base_dir=str(work_dir))

    def node(kind: type, prefix: str, key: str) -> Node:
        return Node(
            kind(job_file=str(job_file), key=key, n_threads=n_threads),
            name=f"{prefix}_{key.replace('-', '_')}",
            mem_gb=mem_gb,
            n_procs=n_threads,
        )

    averages = [node(AverageResponses, "average", key) for key in people]
    models = [node(ModelParticipant, "model", key) for key in targets]
    workflow.add_nodes([*averages, *models])
    if averages and models:
        ready = Node(Merge(len(averages)), name="ready", run_without_submitting=True)
        workflow.connect([(its, ready, [("out_file", f"in{n}")]) for n, its in enumerate(averages, 1)])
        workflow.connect([(ready, its, [("out", "before")]) for its in models])
    last = Node(SealEncoding(job_file=str(job_file), log_dir=str(log_dir)), name="seal", mem_gb=1.0)
    workflow.add_nodes([last])
    steps = [*averages, *models]
    if steps:
        every = Node(Merge(len(steps)), name="every", run_without_submitting=True)
        workflow.connect([(its, every, [("out_file", f"in{n}")]) for n, its in enumerate(steps, 1)])
        workflow.connect(every, "out", last, "outcomes")
    for node_name in workflow.list_node_names():
        workflow.get_node(node_name).config = {"execution": {"crashdump_dir": str(log_dir)}}
    return workflow
