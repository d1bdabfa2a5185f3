# SPDX-License-Identifier: Apache-2.0
"""One trial table for all spaces of a task: fits that share it must have the same trials.

The table's name holds no space, as the trials are those of the runs.  Where a space lacks a run, the fit
there has fewer trials, and the table written last would number the maps of the other fit wrongly.  Such a fit
is refused, whether the other one belongs to the same call or lies finished in the output folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conform_app.bids.naming import build_name
from conform_app.bids.plan import FitPlan
from conform_app.bids.record import read_records
from conform_app.errors import DataError


def other_trials(plans: Sequence[FitPlan], output_dir: Path) -> list[tuple[FitPlan, DataError]]:
    """Find fits that would write over the trial table of another fit with other trials.

    Parameters
    ----------
    plans : sequence of FitPlan
        Of one call, in the order of preference: the first of those that share a table keeps it.
    output_dir : Path

    Returns
    -------
    list of (FitPlan, DataError)
        The fits that must not be made, each with what is wrong.
    """
    tables: dict[str, tuple[str, Any]] = {}
    refused = []
    planned = {plan.name for plan in plans}
    finished = {
        subject: [r for r in read_records(output_dir, subject) if r["fit"]["name"] not in planned]
        for subject in {plan.subject for plan in plans}
    }
    for plan in plans:
        table = build_name("trials", plan.entities, plan.kind)
        mine = (plan.trials, [(run.session, run.run) for run in plan.runs])
        others = [tables[table]] if table in tables else []
        others += [
            (record["fit"]["name"], _recorded(record))
            for record in finished[plan.subject]
            if table in record["products"].get("trials", ())
        ]
        differing = [name for name, trials in others if trials != mine]
        if differing:
            refused.append((plan, _error(plan, differing[0], table)))
        else:
            tables.setdefault(table, (plan.name, mine))
    return refused


def _recorded(record: dict[str, Any]) -> tuple[Any, list[tuple]]:
    return record["plan"]["trials"], [(run.get("session"), run.get("run")) for run in record["fit"]["runs"]]


def _error(plan: FitPlan, other: str, table: str) -> DataError:
    return DataError(
        f"{plan.name} has other trials ({plan.n_trials} in {len(plan.runs)} runs) than {other}, but both "
        f"would have the trial table {table}.",
        "Name both spaces in --output-spaces, leave out the runs that one of them lacks (--run-label), or "
        "use an output folder for each.",
    )
