# SPDX-License-Identifier: Apache-2.0
"""The subcortex of grayordinates: voxels of the same runs in MNI152NLin6Asym at 2 mm.

Where time series are carried, those of the voxels join the vertices and one model is fitted to all.  Where
betas are carried, the volumes in the template are fitted by themselves, whole brain and all, so that the
noise pool is that of a brain; the betas of the subcortex's voxels then join those of the vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conform_app.bids.inputs import Fit
from conform_app.bids.plan import FitPlan
from conform_app.errors import DataError
from conform_app.images import templates

SPACE = "MNI152NLin6Asym"


def find_subcortex(fit: Fit, images: Sequence[Any], warnings: list[str]) -> str | None:
    """Return the segmentation of the subcortex if it can be used; otherwise say why not.

    Parameters
    ----------
    fit : Fit
    images : sequence of BoldRun
        The opened volumes that are carried.
    warnings : list of str
        Added to.

    Raises
    ------
    DataError
        The volumes in the template are not of the same recordings, or differ in grid.
    """
    without = "the grayordinates are those of the cortex only"
    missing = [run.label for run in fit.runs if run.subcortex is None]
    if missing:
        warnings.append(
            f"No {SPACE}:res-2 volume of {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}: {without}."
        )
        return None
    labels = templates.subcortex_labels()
    if labels is None:
        warnings.append(f"{templates.subcortex_missing()}: {without}.")
        return None
    _check(fit, images)
    return labels


def _check(fit: Fit, images: Sequence[Any]) -> None:
    """Hold the volumes in the template against those that are carried, and against each other."""
    from conform_app.images import check_complete, grid_difference, open_run

    first = None
    for run, image in zip(fit.runs, images, strict=True):
        check_complete(run.subcortex)
        found = open_run(run.subcortex)
        first = first or found
        if found.n_volumes != image.n_volumes:
            raise DataError(
                f"{run.subcortex} has {found.n_volumes} volumes, {run.bold[0]} has {image.n_volumes}.",
                "Preprocess this run again: both come from one recording.",
            )
        difference = grid_difference(first.grid, found.grid)
        if difference:
            raise DataError(
                f"{run.subcortex} and {fit.runs[0].subcortex} are on different grids: {difference}.",
                f"Preprocess into {SPACE}:res-2 again, or leave that space out for the cortex alone.",
            )


def template_files(fit: Fit) -> list[str]:
    """Volumes in the template and their brain masks."""
    return [str(path) for run in fit.runs for path in (run.subcortex, *template_mask(run.subcortex))]


def in_template(plan: FitPlan) -> FitPlan:
    """The same fit in the volumes in the template."""
    from conform_app.images import open_run

    runs = tuple(
        replace(run, bold=(run.subcortex,), mask=template_mask(run.subcortex), transform=None, subcortex=None)
        for run in plan.runs
    )
    n_points = open_run(Path(runs[0].bold[0])).grid.n_points
    return replace(plan, kind="volume", surface=None, runs=runs, n_points=n_points, n_voxels=n_points)


def template_mask(bold: str | Path) -> tuple[str, ...]:
    """The brain mask beside a volume in the template, if there is one."""
    name = Path(bold).name
    beside = Path(bold).with_name(name.replace("_desc-preproc_bold.nii", "_desc-brain_mask.nii"))
    return (str(beside),) if beside.name != name and beside.is_file() else ()
