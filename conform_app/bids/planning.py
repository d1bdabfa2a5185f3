# SPDX-License-Identifier: Apache-2.0
"""From a fit to its plan: headers, sidecars and events are read and checked, no image values.

Times.  Volume k is taken to show the brain at ``start_time + k TR`` on the clock of the events: the sidecar's
``StartTime`` (which fMRIPrep writes after slice-timing correction), else 0.

Memory.  The GLM holds the runs (float32), the betas of four types and about as much again in work space; the
step that carries volumes to a surface may need more (`conform_app.bids.carrycost`), and so may PSN
(`conform_app.bids.psncost`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conform_app.bids.acquisition import describe_participant, describe_run, raw_length
from conform_app.bids.atlas import with_atlas
from conform_app.bids.carried import plan_surface
from conform_app.bids.carrycost import points_fitted, surface_memory
from conform_app.bids.confounds import UNSTEADY, unsteady_volumes
from conform_app.bids.inputs import Fit, RunInput
from conform_app.bids.naming import RUN_ENTITIES
from conform_app.bids.plan import FitPlan, RunPlan, load_confounds
from conform_app.bids.psncost import psn_memory
from conform_app.bids.trials import TrialTable, build_trials
from conform_app.errors import DataError
from conform_app.settings import EventSettings, ModelSettings

BASE_MEMORY = 600 << 20
"""Bytes that the process takes before it holds data (Python, torch, nipype)."""


def make_plan(fit: Fit, events: EventSettings, model: ModelSettings, *, roots: Mapping[str, str]) -> FitPlan:
    """Plan one fit.

    Parameters
    ----------
    fit : Fit
    events : EventSettings
        How events become trials.
    model : ModelSettings
        Says whether repeats are needed.
    roots : mapping of name to folder
        The input datasets.

    Returns
    -------
    FitPlan

    Raises
    ------
    DataError
        No TR, runs of different TR or grid, masks without a common voxel, events that cannot be used, or no
        repeats under ``--no-repeats error``.
    FileFaultError
        A truncated image.
    """
    # time series of several grids meet on the cortex
    meet = fit.volume is not None and model.surface_of == "timeseries"
    images, warnings = _open_runs(fit, one_grid=not meet)
    surface = None
    if fit.volume is not None:
        surface, remarks = plan_surface(fit, model.surface_of, images=images)
        warnings += remarks
    tr = _common_tr(fit)
    for run, image in zip(fit.runs, images, strict=True):
        if image.tr_header and abs(image.tr_header - tr) > 1e-3:
            warnings.append(
                f"{run.bold[0].name}: the header says TR {image.tr_header:g} s, the sidecar {tr:g} s; "
                "the sidecar is used."
            )
    starts, told = _start_times(fit)
    told += _unsteady(fit, model)
    told += _trimmed(fit, [image.n_volumes for image in images], starts, tr)
    table = build_trials(fit, events, [image.n_volumes * tr for image in images])
    with_confounds = model.confounds not in ((), ("none",))
    presses = table.presses or ({},) * len(images)
    further = _further_labels(fit.runs)
    runs = [
        _run_plan(*each, with_confounds)
        for each in zip(fit.runs, images, starts, presses, further, strict=True)
    ]
    plan = FitPlan(
        name=fit.name,
        subject=fit.subject,
        sessions=fit.sessions,
        task=fit.task,
        space=fit.space,
        res=fit.res,
        den=fit.den,
        kind=fit.kind,
        entities=fit.entities,
        tr=tr,
        runs=tuple(run for n, run in enumerate(runs) if n not in table.empty_runs),
        n_points=images[0].grid.n_points if surface is None else surface.n_target,
        n_voxels=images[0].grid.n_points,
        trials=_columns(table),
        conditions=tuple(table.conditions),
        stim_column=table.stim_column,
        memory=0,
        participant=describe_participant(fit),
        warnings=(*warnings, *told, *table.warnings, *_origin(fit, roots)),
        surface=surface,
    )
    return with_atlas(_completed(plan, model), model)


def _open_runs(fit: Fit, one_grid: bool) -> tuple[list[Any], list[str]]:
    """Open each run, and hold them to one grid where they must share it."""
    from conform_app.images import check_complete, grid_difference, open_run

    images = []
    for run in fit.runs:
        for path in (*run.bold, *run.mask):
            check_complete(path)
        images.append(open_run(run.bold))
        free = run.transform is not None or not one_grid
        difference = "" if free else grid_difference(images[0].grid, images[-1].grid)
        if difference:
            raise DataError(
                f"{run.bold[0]} and {fit.runs[0].bold[0]} are on different grids: {difference}.",
                "Resample the runs to one grid, or "
                + ("fit tasks apart." if len(fit.tasks) > 1 else "leave one out with --run-label."),
            )
    return images, []


def _common_tr(fit: Fit) -> float:
    """The TR that every sidecar gives."""
    values = []
    for run in fit.runs:
        tr = run.metadata.get("RepetitionTime")
        if not isinstance(tr, (int, float)) or isinstance(tr, bool) or not 0 < tr < 100:
            found = "no sidecar gives its RepetitionTime" if tr is None else f"its RepetitionTime is {tr!r}"
            raise DataError(
                f"{run.bold[0]}: {found}.", 'Add "RepetitionTime" in seconds to its JSON sidecar.'
            )
        values.append(float(tr))
    if max(values) - min(values) > 1e-3:
        raise DataError(
            f"{fit.name}: the runs have different TRs ({min(values):g} and {max(values):g} s).",
            "Fit them apart, with "
            + ("--fit-tasks apart." if len(fit.tasks) > 1 else "--run-label or --bids-filter-file."),
        )
    return values[0]


def _start_times(fit: Fit) -> tuple[list[float], list[str]]:
    """Time of volume 0 of each run, s, and warnings."""
    starts, warnings = [], []
    for run in fit.runs:
        start = run.metadata.get("StartTime")
        if start is None and run.metadata.get("SliceTimingCorrected"):
            warnings.append(
                f"{run.bold[0].name}: slice timing was corrected but no StartTime says to which time; "
                "the start of each volume is assumed."
            )
        starts.append(float(start or 0.0))
    return starts, list(dict.fromkeys(warnings))


def _unsteady(fit: Fit, model: ModelSettings) -> list[str]:
    """Say so when bright first volumes are in the data and not in the model."""
    if any(fnmatchcase(f"{UNSTEADY}00", item) for item in model.confounds):
        return []
    found = [(run, unsteady_volumes(run.confounds)) for run in fit.runs if run.confounds is not None]
    found = [(run, n) for run, n in found if n]
    if not found:
        return []
    run, n = found[0]
    return [
        f"{len(found)} of {len(fit.runs)} runs begin before the steady state ({n} volumes of {run.label}); "
        f"they are fitted as they are, --confounds '{UNSTEADY}*' models them."
    ]


def _trimmed(fit: Fit, lengths: Sequence[int], starts: Sequence[float], tr: float) -> list[str]:
    """Say so when preprocessing took volumes away: from the start, they shift all onsets."""
    pairs = []
    for run, n, start in zip(fit.runs, lengths, starts, strict=True):
        raw = raw_length(run)
        if raw is not None and raw != n and start < 0.9 * (raw - n) * tr:
            pairs.append((run, n, raw))
    if not pairs:
        return []
    run, n, raw = pairs[0]
    which = f"{run.label} has" if len(pairs) == 1 else f"{len(pairs)} runs have (first {run.label})"
    return [
        f"{which} {n} volumes, {raw} before preprocessing; if some were taken from the start, give "
        f"--onset-shift {-(raw - n) * tr:g}, or StartTime in the sidecar."
    ]


def _further_labels(runs: Sequence[RunInput]) -> list[dict[str, str]]:
    """Labels of each run in what tells runs apart beside session, task and run number, where they differ."""
    differing = {
        short: name
        for name, short in RUN_ENTITIES.items()
        if len({run.entities.get(name) for run in runs}) > 1
    }
    return [{s: run.entities[n] for s, n in differing.items() if n in run.entities} for run in runs]


def _run_plan(
    run: RunInput,
    image: Any,
    start: float,
    presses: Mapping[str, Any],
    further: dict[str, str],
    with_confounds: bool,
) -> RunPlan:
    return RunPlan(
        bold=tuple(map(str, run.bold)),
        mask=tuple(map(str, run.mask)),
        confounds=str(run.confounds) if with_confounds and run.confounds is not None else None,
        events=None if run.events is None else str(run.events),
        session=run.session,
        task=run.task,
        run=run.run,
        n_volumes=image.n_volumes,
        start_time=start,
        transform=None if run.transform is None else str(run.transform),
        subcortex=None if run.subcortex is None else str(run.subcortex),
        presses=dict(presses),
        acquisition=describe_run(run),
        further=further,
    )


def _columns(table: TrialTable) -> dict[str, list[Any]]:
    """The trial table as lists, with runs numbered among those that have trials."""
    used = [n for n in range(len(table.run_labels)) if n not in table.empty_runs]
    return {
        "onset": table.onset.tolist(),
        "duration": table.duration.tolist(),
        "run": [used.index(n) for n in table.run],
        "condition": table.condition.tolist(),
        "repeat": table.repeat.tolist(),
        "stim_id": list(table.stim_id),
        "trial_type": list(table.trial_type),
        **({"split": list(table.split)} if set(table.split) != {"n/a"} else {}),
    }


def _origin(fit: Fit, roots: Mapping[str, str]) -> list[str]:
    """Say so when the preprocessed data did not come from fMRIPrep."""
    from conform_app.bids.layout import read_description

    path = fit.runs[0].bold[0]
    homes = [Path(root) for root in roots.values() if path.is_relative_to(root)]
    if not homes:
        return []
    home = max(homes, key=lambda root: len(root.parts))
    description = read_description(home) or {}
    makers = [
        str(entry.get("Name", "?")) for entry in description.get("GeneratedBy", []) if isinstance(entry, dict)
    ]
    if any("fmriprep" in name.lower() for name in makers):
        return []
    return [
        f"The preprocessed data in {home.name} were not made by fMRIPrep "
        f"(its dataset_description.json names {', '.join(makers) or 'no program'})."
    ]


def _completed(plan: FitPlan, model: ModelSettings) -> FitPlan:
    """Add what follows from the rest: voxels of the mask, memory, and what the lack of repeats means."""
    from dataclasses import replace

    from conform_app.bids.plan import analysis_points

    points, told = analysis_points(plan) if plan.surface is None or plan.surface.of == "betas" else (None, [])
    n_voxels = int(points.sum()) if points is not None else 0
    n_volumes = sum(run.n_volumes for run in plan.runs)
    if plan.surface is not None:
        n_voxels = max(n_voxels, points_fitted(plan))
    memory = BASE_MEMORY + 4 * n_voxels * (2 * n_volumes + 8 * plan.n_trials)
    memory = max(memory, surface_memory(plan, BASE_MEMORY))
    if plan.surface is not None:
        n_voxels = plan.surface.n_target
    told += load_confounds(plan, model.confounds)[1]
    if not plan.repeats_across_runs:
        _without_repeats(plan, model, told)
    plan = replace(plan, n_voxels=n_voxels, memory_glm=memory, warnings=(*plan.warnings, *told))
    return replace(plan, memory=max(memory, psn_memory(plan, model, BASE_MEMORY)))


def _without_repeats(plan: FitPlan, model: ModelSettings, told: list[str]) -> None:
    """Announce the fallback, or refuse."""
    one = "there is one run only" if len(plan.runs) == 1 else "no condition is in more than one run"
    if model.no_repeats == "error":
        raise DataError(
            f"{plan.name}: {one}, so nothing can be cross-validated.",
            "Pool sessions with --fit-level subject, or choose --no-repeats typeB or fixed.",
        )
    if model.no_repeats == "fixed":
        told.append(
            f"Nothing can be cross-validated ({one}): C and D use {model.fixed_pcs} noise regressors and "
            f"the ridge fraction {model.fixed_fraction:g} as given; no reliability, ncsnr or PSN."
        )
    else:
        told.append(
            f"Nothing can be cross-validated ({one}): only types A and B are estimated, without reliability, "
            "ncsnr or PSN. --no-repeats fixed gives types C and D with fixed settings."
            + (" Repeats in other sessions count with --fit-level subject." if plan.sessions else "")
        )
