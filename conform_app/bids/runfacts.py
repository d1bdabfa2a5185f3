# SPDX-License-Identifier: Apache-2.0
"""What the record of a fit says of its runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from conform_app.bids.plan import FitPlan


def runs_told(plan: FitPlan) -> list[str]:
    """Say what is modelled together, and which button presses are."""
    said = []
    if len(plan.tasks) > 1:
        said.append(
            f"Runs of the tasks {', '.join(plan.tasks)} are one fit; a stimulus is one in all of them."
        )
    presses: Counter[str] = Counter()
    for run in plan.runs:
        presses.update({button: len(times) for button, times in run.presses.items()})
    if presses:
        listed = ", ".join(f"{button} ({n} times)" for button, n in sorted(presses.items()))
        said.append(f"Presses of the buttons {listed} are nuisance regressors, by the canonical response.")
    return said


def run_entry(plan: FitPlan, number: int) -> dict[str, Any]:
    """What the record says of one run: labels, file, length, trials, how it was measured."""
    run = plan.runs[number]
    entry = {
        "session": run.session,
        "run": run.run,
        "bold": Path(run.bold[0]).name,
        "n_volumes": run.n_volumes,
    }
    if len(plan.tasks) > 1:
        entry["task"] = run.task
    entry |= run.further
    n_trials = int((plan.run_of_trial == number).sum())
    entry |= {"duration_s": run.n_volumes * plan.tr, "n_trials": n_trials}
    return entry | {"acquisition": run.acquisition}
