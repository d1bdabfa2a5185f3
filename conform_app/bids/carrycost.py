# SPDX-License-Identifier: Apache-2.0
"""What carrying a fit to a surface costs in memory, estimated from headers and masks.

    peak = base + mesh (n_source + n_target) + max(4 c v t, gathered block + 4 t (v + n_target))

with v voxels of the brain and t volumes of the longest run (c = 2.5 copies while it is found which voxels
vary); betas in place of volumes where those are carried.  Runs on grids of their own follow one another.
Constants: measured peaks of the step, which were 0.68 to 0.83 of this with 2 x 41,000 and 2 x 164,000
vertices of the participant, 3 mm and 2 mm voxels, 30 to 156 volumes.
"""

from __future__ import annotations

from pathlib import Path

from conform_app.bids.plan import FitPlan
from conform_app.bids.subcortex import in_template

MESH = 3600
"""Bytes a vertex of either mesh: weights, search trees, faces while they are cut."""
COPIES = 2.5
GATHERED = 256 << 20
"""What a transform gathers at a time (see :mod:`conform_app.surface.linear`)."""


def surface_memory(plan: FitPlan, base: int) -> int:
    """Peak of the surface step of a fit, bytes; `base` for a fit that is not carried.

    Parameters
    ----------
    plan : FitPlan
        With ``surface``.
    base : int
        Of the process before it holds data, bytes.
    """
    if plan.surface is None:
        return base
    halves = plan.surface.hemispheres
    mesh = MESH * sum(half.n_source + half.n_target for half in halves)
    voxels, target = _voxels(plan), plan.surface.n_target
    maps = max(run.n_volumes for run in plan.runs)
    looking = int(4 * COPIES * voxels * maps)
    if plan.surface.of == "betas":
        maps = max(maps, 2 * plan.n_trials)  # as read, and of the voxels that were fitted
    carrying = min(GATHERED, 4 * voxels * maps) + 4 * maps * (voxels + target)
    return base + mesh + max(looking, carrying)


def points_fitted(plan: FitPlan) -> int:
    """Points of the largest model of a fit that is carried, besides that of its volumes."""
    if plan.surface is None:
        return 0
    of_betas = plan.surface.of == "betas" and plan.surface.subcortex is not None
    return max(plan.surface.n_target, _voxels(in_template(plan)) if of_betas else 0)


def _voxels(plan: FitPlan) -> int:
    """Voxels in the mask of the first run: the others are like it."""
    from conform_app.images import open_run, read_mask

    run = plan.runs[0]
    grid = open_run(tuple(map(Path, run.bold))).grid
    return int(read_mask(tuple(map(Path, run.mask)), grid).sum()) if run.mask else grid.n_points
