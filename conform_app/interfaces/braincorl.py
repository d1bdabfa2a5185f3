# SPDX-License-Identifier: Apache-2.0
"""Shells of the encoding models: averaged responses, one participant's models, the group's tables."""

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
from threadpoolctl import threadpool_limits

from conform_app.devices import gpu_memory_said_plainly
from conform_app.errors import ConformError


class EncodeInputSpec(BaseInterfaceInputSpec):
    """Inputs of a step for one participant."""

    job_file = File(exists=True, mandatory=True, desc="what to make (JSON)")
    key = traits.Str(mandatory=True, desc="participant in the collection")
    before = InputMultiObject(File(exists=True), desc="outcomes of the steps that must come first")
    n_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads of the numerics")


class OutcomeSpec(TraitedSpec):
    """How it went."""

    out_file = File(exists=True)


class _Step(SimpleInterface):
    """What is wrong with one participant is written down and not raised, so that the others are made."""

    input_spec = EncodeInputSpec
    output_spec = OutcomeSpec
    always_run = True  # the folders that steps fill may have lost what the work folder remembers

    def work(self, cwd: Path) -> None:
        raise TypeError(f"{type(self).__name__} does not say what it does")

    def _run_interface(self, runtime: Any) -> Any:
        key = self.inputs.key
        outcome = {"key": key, "state": "done"}
        try:
            with threadpool_limits(self.inputs.n_threads), gpu_memory_said_plainly():
                self.work(Path(runtime.cwd))
        except (ConformError, OSError, MemoryError) as error:
            outcome |= {
                "state": "failed",
                "exit_code": getattr(error, "exit_code", 1),
                "message": getattr(error, "message", str(error) or type(error).__name__),
                "remedy": getattr(error, "remedy", ""),
            }
        out = Path(runtime.cwd) / "outcome.json"
        out.write_text(json.dumps(outcome, indent=1), encoding="utf-8")
        self._results["out_file"] = str(out)
        return runtime


class AverageResponses(_Step):
    """Average a participant's responses over repeats, and fit what others learn from."""

    def work(self, cwd: Path) -> None:
        """Do it."""
        from conform_app.encode.seal import prepare_step

        prepare_step(Path(self.inputs.job_file), self.inputs.key)


class ModelParticipant(_Step):
    """Learn from the others, adapt to a participant, measure, and write its files."""

    def work(self, cwd: Path) -> None:
        """Do it, if everybody's responses are there."""
        from conform_app.encode.seal import target_step

        target_step(Path(self.inputs.job_file), self.inputs.key, cwd / "arrays")


class SealEncodingInputSpec(BaseInterfaceInputSpec):
    """Inputs of the last step."""

    job_file = File(exists=True, mandatory=True, desc="what to make (JSON)")
    outcomes = InputMultiObject(File(exists=True), desc="of the participants' steps")
    log_dir = traits.Str(nohash=True, desc="folder for the note of a failure")


class SealEncoding(SimpleInterface):
    """Write the group's tables and maps from what is there."""

    input_spec = SealEncodingInputSpec
    output_spec = OutcomeSpec
    always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from conform_app.encode.seal import seal_encoding

        paths = self.inputs.outcomes or ()  # nobody was left to model
        outcomes = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
        failed = sorted({its["key"] for its in outcomes if its["state"] == "failed"})
        try:
            self._results["out_file"] = str(seal_encoding(Path(self.inputs.job_file), failed))
        except ConformError as error:
            note = {"exit_code": error.exit_code, "message": error.message, "remedy": error.remedy}
            if self.inputs.log_dir:
                path = Path(self.inputs.log_dir) / "error-encoding.json"
                path.write_text(json.dumps({**note, "subject": ""}, indent=2) + "\n", encoding="utf-8")
            raise
        return runtime
