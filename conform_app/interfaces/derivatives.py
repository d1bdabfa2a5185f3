# SPDX-License-Identifier: Apache-2.0
"""The last step of a fit: arrays in, BIDS-derivatives and the fit's record out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, isdefined, traits

from conform_app.bids.derivatives import write_fit
from conform_app.bids.plan import FitPlan
from conform_app.interfaces.base import FitInterface, PlanInputSpec


class WriteDerivativesInputSpec(PlanInputSpec):
    """Inputs of the writing step."""

    glm_file = File(exists=True, mandatory=True)
    reliability_file = File(exists=True, mandatory=True)
    psn_file = File(exists=True, mandatory=True)
    surface_file = File(exists=True, desc="what the surface step left")
    model = traits.Dict(mandatory=True, desc="ModelSettings as a dictionary")
    dataset = traits.Dict(mandatory=True, desc="see conform_app.bids.derivatives.FitWriter")
    save_residuals = traits.Bool(False, usedefault=True)


class WriteDerivatives(FitInterface):
    """Write every file of one fit."""

    input_spec = WriteDerivativesInputSpec
    always_run = True  # the output folder may have lost files that the work folder knows nothing of

    def work(self, plan: FitPlan, cwd: Path) -> dict[str, Any]:
        """Write and name the record."""
        record = write_fit(
            plan,
            glm_file=Path(self.inputs.glm_file),
            reliability_file=Path(self.inputs.reliability_file),
            psn_file=Path(self.inputs.psn_file),
            model=self.inputs.model,
            dataset=self.inputs.dataset,
            save_residuals=self.inputs.save_residuals,
            surface_file=Path(self.inputs.surface_file) if isdefined(self.inputs.surface_file) else None,
        )
        return {"out_file": str(record)}
