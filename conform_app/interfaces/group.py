# SPDX-License-Identifier: Apache-2.0
"""Shells of the group level: one participant into the collection, and the list of how it went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from conform_app.errors import ConformError


class MergeInputSpec(BaseInterfaceInputSpec):
    """Inputs of the merging step; the plan holds a hash of everything that goes in."""

    plan_file = File(exists=True, mandatory=True, desc="plan of the participant (JSON)")


class SummaryOutputSpec(TraitedSpec):
    """How it went."""

    out_file = File(exists=True)


class MergeParticipant(SimpleInterface):
    """Write one participant into the collection.

    What is wrong with one participant (or with the disk) is reported and not raised, so that the sealing step
    runs with the others; anything else is a bug and stops the workflow before anything is sealed.
    """

    input_spec = MergeInputSpec
    output_spec = SummaryOutputSpec
    always_run = True  # the collection may have lost what the work folder remembers

    def _run_interface(self, runtime: Any) -> Any:
        from conform_app.collect.merge import merge_participant, summary
        from conform_app.collect.plans import read_plan

        plan = read_plan(Path(self.inputs.plan_file))
        try:
            done = summary(plan, merge_participant(plan))
        except (ConformError, OSError, MemoryError) as error:
            done = summary(plan, "failed", error)
        out = Path(runtime.cwd) / "summary.json"
        out.write_text(json.dumps(done, indent=1), encoding="utf-8")
        self._results["out_file"] = str(out)
        return runtime


class SealInputSpec(BaseInterfaceInputSpec):
    """Inputs of the sealing step."""

    summaries = InputMultiObject(File(exists=True), desc="of the participants' steps")
    job_file = File(exists=True, mandatory=True, desc="what to collect (JSON)")
    log_dir = traits.Str(nohash=True, desc="folder for the note of a failure")


class SealCollection(SimpleInterface):
    """Make identity, split and tables over everybody, and seal the collection."""

    input_spec = SealInputSpec
    output_spec = SummaryOutputSpec
    always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from conform_app.collect.job import read_job, seal_job

        summaries = [
            json.loads(Path(path).read_text(encoding="utf-8")) for path in self.inputs.summaries or ()
        ]
        try:
            out = seal_job(read_job(Path(self.inputs.job_file)), summaries)
        except ConformError as error:
            note = {
                "exit_code": error.exit_code,
                "message": error.message,
                "remedy": error.remedy,
                "subject": "",
            }
            if self.inputs.log_dir:
                path = Path(self.inputs.log_dir) / "error-seal.json"
                path.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            raise
        self._results["out_file"] = str(out)
        return runtime
