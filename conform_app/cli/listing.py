# SPDX-License-Identifier: Apache-2.0
"""What `--dry-run` prints: a line a fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conform_app.bids.plan import FitPlan

COLUMNS = (
    "subject",
    "sessions",
    "task",
    "space",
    "runs",
    "trials",
    "conditions",
    "repeats",
    "voxels",
    "memory",
    "carried from",
)

MOST_LABELS = 8


def list_fits(plans: Sequence[FitPlan]) -> str:
    """Return a table of the fits, and below it what is worth knowing before they are run."""
    rows = [COLUMNS, *(_row(plan) for plan in plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.append(f"{len(plans)} fit{'s' * (len(plans) != 1)}; memory is an estimate of the peak of one fit.")
    for plan in plans:
        lines += [f"warning: {plan.name}: {text}" for text in plan.warnings]
    return "\n".join(lines)


def _sessions(labels: Sequence[str]) -> str:
    """All labels, or the first and the last of many."""
    if len(labels) > MOST_LABELS:
        return f"{len(labels)} ({labels[0]} to {labels[-1]})"
    return ",".join(labels) or "-"


def _row(plan: FitPlan) -> tuple[str, ...]:
    repeats = plan.n_repeats
    span = f"{repeats.min()}" if repeats.min() == repeats.max() else f"{repeats.min()}-{repeats.max()}"
    if not plan.repeats_across_runs:
        span += " (none across runs)"
    space = plan.space + (f":res-{plan.res}" if plan.res else "") + (f":den-{plan.den}" if plan.den else "")
    return (
        plan.subject,
        _sessions(plan.sessions),
        plan.task + (f" acq-{plan.entities['acq']}" if "acq" in plan.entities else ""),
        space,
        str(len(plan.runs)),
        str(plan.n_trials),
        str(int(np.count_nonzero(repeats))),
        span,
        str(plan.n_voxels),
        f"{plan.memory / (1 << 30):.1f} GiB",
        "-" if plan.surface is None else f"{plan.surface.volume} volume, {plan.surface.of}",
    )
