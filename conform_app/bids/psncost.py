# SPDX-License-Identifier: Apache-2.0
"""What PSN costs in memory, estimated from the numbers of voxels, trials and conditions.

In blocks of n of all v voxels, j of them at once, with D bytes of responses (v x conditions x repeats):

    peak = base + 6 D + v n m + j (30 MB + 8 x 8 n^2 + 6 D n / v)

m bytes of the model for a pair of voxels of a block: 4 for cuts (axes), 8 with a matrix besides (Wiener
filter, ``auto``).  In the span of q trials, where no voxel x voxel matrix is made:

    peak = base + 200 MB + 5 D + 13 x 8 q^2

The 30 MB of a thread are buffers of the linear algebra and holes between arrays.  Measured peaks of the
step were 0.64 to 0.90 of the former (1,300 to 6,000 voxels, one or two blocks at once or all together, 150
to 1,200 trials), 0.72 to 0.94 of the latter (4,000 and 20,000 voxels, 300 to 2,400 trials).
"""

from __future__ import annotations

from conform_app.bids.plan import FitPlan
from conform_app.settings import ModelSettings

SPAN_MODES = ("wiener", "standard", "conservative", "aggressive")
"""Modes that take any number of voxels at once, in the span of the trials."""
BLOCK = 1500
"""Voxels of a block at most, as :mod:`conform_app.psn.parcels` cuts them."""
MATRICES, SPAN_MATRICES = 8, 13
"""Matrices of double precision at the peak: voxels x voxels of a block, trials x trials of the span."""
SPAN_BASE, THREAD_BASE = 200_000_000, 30_000_000


def psn_memory(plan: FitPlan, model: ModelSettings, base: int, n_jobs: int = 1) -> int:
    """Peak of the PSN step of a fit, bytes; `base` where there is none.

    Parameters
    ----------
    plan : FitPlan
        With its voxels counted.
    model : ModelSettings
    base : int
        Of the process before it holds data, bytes.
    n_jobs : int
        Threads: blocks at once.
    """
    if model.psn == "off" or not plan.repeats_across_runs or not plan.n_voxels:
        return base
    voxels, trials = plan.n_voxels, plan.n_trials
    data = 4 * voxels * len(plan.conditions) * int(plan.n_repeats.max())
    together = tuple(model.psn_parcels) == ("none",)
    if together and model.psn in SPAN_MODES and voxels > trials:
        return base + SPAN_BASE + 5 * data + SPAN_MATRICES * 8 * trials**2
    block = voxels if together else min(voxels, BLOCK)
    at_once = min(max(1, n_jobs), -(-voxels // block))
    of_model = voxels * block * (8 if model.psn in ("auto", "wiener") else 4)
    of_block = THREAD_BASE + MATRICES * 8 * block**2 + 6 * data * block // voxels
    return base + 6 * data + of_model + at_once * of_block
