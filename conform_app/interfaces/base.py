# SPDX-License-Identifier: Apache-2.0
"""What every shell shares: it reads the plan of one fit, and it leaves a note when it fails.

Nipype turns an exception of a node into text in a crash file.  The note (`error-<fit>.json` in the log
folder) keeps what the command line needs to end with the right exit code and one plain line.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits
from threadpoolctl import threadpool_limits

from conform_app.bids.plan import FitPlan, read_plan
from conform_app.devices import gpu_memory_said_plainly
from conform_app.errors import ConformError, FileFaultError
from conform_app.images.files import out_of_space


class PlanInputSpec(BaseInterfaceInputSpec):
    """Inputs that every step of a fit has."""

    plan_file = File(exists=True, mandatory=True, desc="the plan of the fit (JSON)")
    log_dir = traits.Str(nohash=True, desc="folder for the note of a failure")
    n_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads of the numerics")
    version = traits.Str(desc="of CONFORM: another one does the step again")


class OneFileOutputSpec(TraitedSpec):
    """Outputs of a step that leaves one file."""

    out_file = File(exists=True)


class FitInterface(SimpleInterface):
    """A step of one fit: subclasses implement :meth:`work`."""

    input_spec = PlanInputSpec
    output_spec = OneFileOutputSpec

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Do the step and return its outputs by name."""
        raise TypeError(f"{type(self).__name__} does not say what it does")

    def _run_interface(self, runtime: Any) -> Any:
        plan = read_plan(Path(self.inputs.plan_file))
        try:
            with threadpool_limits(self.inputs.n_threads), gpu_memory_said_plainly():
                self._results.update(self.work(plan, Path(runtime.cwd)))
        except Exception as error:
            self._note(plan, error)
            raise
        return runtime

    def _note(self, plan: FitPlan, error: Exception) -> None:
        """Leave the error where the command line finds it."""
        if isinstance(error, ConformError):
            note = {"exit_code": error.exit_code, "message": error.message, "remedy": error.remedy}
        elif out_of_space(error):
            note = {
                "exit_code": FileFaultError.exit_code,
                "message": "No space left to write intermediate results or outputs.",
                "remedy": "Free space in the work folder (-w) and the output folder, and run again.",
            }
        elif isinstance(error, MemoryError):
            note = {
                "exit_code": 1,
                "message": "Out of memory.",
                "remedy": "Give a smaller --mem or fewer --nprocs.",
            }
        else:
            last = traceback.format_exception_only(error)[-1].strip()
            note = {"exit_code": 1, "message": last, "remedy": "This is a bug: please report the crash file."}
        note |= {"fit": plan.name, "subject": plan.subject, "step": type(self).__name__}
        if self.inputs.log_dir:
            log_dir = Path(self.inputs.log_dir)
            log_dir.mkdir(parents=True, exist_ok=True)
            (log_dir / f"error-{plan.name}.json").write_text(
                json.dumps(note, indent=2) + "\n", encoding="utf-8"
            )
