# SPDX-License-Identifier: Apache-2.0
"""The methodology table: how each session of each participant was measured, and what nobody wrote down.

One row a participant and session.  A field is *declared* (a sidecar says so), from a *header*, or *derived*
(from the trials, or from other fields); where it is none of these the cell is ``n/a`` and the field is listed
as missing.  Required fields are those without which results of two studies cannot be compared; recommended
ones those that explain differences now and then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.bids.acquisition import common_values
from conform_app.bids.outputs import FitOutput

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.bids.pooling import Member


@dataclass(frozen=True)
class Field:
    """A column of the table.

    Attributes
    ----------
    name : str
        BIDS name where BIDS has one.
    about : str
        What it is, with its unit.
    required : bool
    where : str
        Where to write it when it is missing; empty for what cannot be: it is there, or does not apply.
    """

    name: str
    about: str
    required: bool = False
    where: str = "the BOLD sidecar"


FIELDS = (
    Field("InstitutionName", "site"),
    Field("Manufacturer", "maker of the scanner", True),
    Field("ManufacturersModelName", "model of the scanner", True),
    Field("MagneticFieldStrength", "T", True),
    Field("ReceiveCoilName", "receive coil"),
    Field("PulseSequenceType", "sequence"),
    Field("RepetitionTime", "TR, s", True),
    Field("EchoTime", "TE, s", True),
    Field("FlipAngle", "degrees", True),
    Field("VoxelSize", "mm; from the header of the raw image", True, "the raw image beside the events"),
    Field("NumberOfSlices", "from SliceTiming"),
    Field("SliceTiming", "order of the slices", True),
    Field("MultibandAccelerationFactor", "slices excited at once"),
    Field("ParallelReductionFactorInPlane", "in-plane acceleration"),
    Field("PartialFourier", "share of k-space"),
    Field("PhaseEncodingDirection", "axis and sign", True),
    Field("TotalReadoutTime", "s"),
    Field("NumberOfVolumesDiscardedByUser", "volumes"),
    Field("VisualAngle", "width of the stimuli, degrees", True, "StimulusPresentation of the events sidecar"),
    Field("StimulusSoftware", "program that showed the stimuli", False, "the events sidecar"),
    Field("TaskName", "task", True),
    Field("TaskDescription", "what participants did", True),
    Field("Instructions", "what they were told"),
    Field("age", "years", False, "participants.tsv"),
    Field("sex", "", False, "participants.tsv"),
    Field("handedness", "", False, "participants.tsv"),
    Field("n_runs", "runs", True, "the trials"),
    Field("run_duration", "median, s", True, "the trials"),
    Field("n_trials", "trials", True, "the trials"),
    Field("n_stimuli", "different stimuli", True, "the trials"),
    Field("n_repeated", "stimuli shown more than once in the fit", True, "the trials"),
    Field("stimulus_duration", "median, s", True, "the trials"),
    Field("onset_asynchrony", "from onset to onset within a run, median, s", True, "the trials"),
    Field("preprocessing", "program", True, "dataset_description.json of the preprocessed data"),
    Field("preprocessing_version", "", True, "dataset_description.json of the preprocessed data"),
    Field("SliceTimingCorrected", "by preprocessing", True, "the preprocessed sidecar"),
    Field("StartTime", "time of the first volume after correction, s", False, "the preprocessed sidecar"),
    Field("space", "space of the betas", True, ""),
    Field("conform_version", "", True, ""),
    Field("configuration_hash", "of CONFORM's settings", True, ""),
    Field("beta_types", "GLM types of the betas", True, ""),
    Field("hrf_model", "", True, ""),
    Field("confounds", "modelled", True, ""),
    Field("fit_level", "what one fit pools", True, ""),
    Field("pcnum", "noise regressors chosen", False, ""),
    Field("psn", "denoising of averages", False, ""),
)


def methodology_table(members: Sequence[Member]) -> pd.DataFrame:
    """Return the table.

    Parameters
    ----------
    members : sequence of Member
        Those refused are in it too: how they were measured does not depend on where their betas lie.

    Returns
    -------
    DataFrame
        ``participant``, ``dataset``, ``status``, ``session``, the fields, ``missing_required`` and
        ``missing_recommended`` (names), ``complete_required`` and ``complete_recommended`` (shares).
    """
    import pandas as pd

    rows = []
    for member in members:
        fits = member.fits or member.tables
        sessions = dict.fromkeys(run["session"] for fit in fits for run in fit.fit["runs"])
        for session in sessions:
            values = _session(fits, session)
            place = {"participant": member.key, "dataset": member.participant.site.name}
            rows.append({**place, "status": member.status, "session": session or "n/a", **_row(values)})
    names = ["participant", "dataset", "status", "session", *(field.name for field in FIELDS)]
    names += [f"{what}_{kind}" for what in ("missing", "complete") for kind in ("required", "recommended")]
    return pd.DataFrame(rows, columns=names)


def missing_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each field that some row lacks: in how many rows, of which datasets, where to write it."""
    import pandas as pd

    rows = []
    for field in FIELDS:
        gone = table[table[field.name] == "n/a"]
        if len(gone) and field.where:
            rows.append(
                {
                    "field": field.name,
                    "about": field.about,
                    "required": field.required,
                    "n_missing": len(gone),
                    "n_rows": len(table),
                    "datasets": ", ".join(dict.fromkeys(gone["dataset"])),
                    "remedy": f"Add it to {field.where}.",
                }
            )
    rows.sort(key=lambda row: (not row["required"], -row["n_missing"]))
    names = ["field", "about", "required", "n_missing", "n_rows", "datasets", "remedy"]
    return pd.DataFrame(rows, columns=names)


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {field.name: _text(values.get(field.name)) for field in FIELDS}
    for kind, wanted in (("required", True), ("recommended", False)):
        names = [field.name for field in FIELDS if field.required == wanted and field.where]
        missing = [name for name in names if row[name] == "n/a"]
        row[f"missing_{kind}"] = ", ".join(missing) or "n/a"
        row[f"complete_{kind}"] = round(1 - len(missing) / len(names), 3)
    return row


def _text(value: Any) -> str:
    """A cell: values that differ between runs one after the other."""
    if value is None or value == "" or value == []:
        return "n/a"
    if isinstance(value, Mapping) and "values" in value:
        return " | ".join(_text(item) for item in value["values"])
    if isinstance(value, (list, tuple)):
        return " x ".join(_text(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


def _session(fits: Sequence[FitOutput], session: str | None) -> dict[str, Any]:
    """Everything known of one session of a participant."""
    runs = [run for fit in fits for run in fit.fit["runs"] if run["session"] == session]
    found = common_values([run.get("acquisition", {}) for run in runs])
    if "MultibandAccelerationFactor" not in found and found.get("SlicesAtOnce") is not None:
        found["MultibandAccelerationFactor"] = found["SlicesAtOnce"]
    first = fits[0]
    found.setdefault("RepetitionTime", first.fit["tr"])
    found.setdefault("TaskName", " | ".join(dict.fromkeys(fit.fit["task"] for fit in fits)))
    found |= _shown(found.get("StimulusPresentation"), first.record.get("study", {}))
    found |= first.fit.get("participant", {})
    found |= _trials(fits, session)
    found |= {"n_runs": len(runs), "run_duration": float(np.median([run["duration_s"] for run in runs]))}
    return found | _processing(fits)


def _processing(fits: Sequence[FitOutput]) -> dict[str, Any]:
    """How the data were processed, from the records."""
    first = fits[0]
    program, version = first.site.preprocessing
    settings = first.record.get("settings", {})
    model = settings.get("model", {})
    confounds = [str(name) for name in model.get("confounds", []) if name != "none"]
    confounds += ["button presses"] * bool(settings.get("events", {}).get("press_column"))
    level = [*map(str, model.get("fit_level", []))]
    level += ["(tasks together)"] * (model.get("fit_tasks") == "together")
    pcnum = [fit.record.get("choices", {}).get("pcnum") for fit in fits]
    return {
        "preprocessing": program,
        "preprocessing_version": version,
        "space": str(first.space),
        "conform_version": first.version,
        "configuration_hash": first.record.get("digest"),
        "beta_types": " ".join(first.beta_types),
        "hrf_model": model.get("hrf_model"),
        "confounds": ", ".join(confounds) or ("none" if "confounds" in model else ""),
        "fit_level": " ".join(level),
        "pcnum": " | ".join(dict.fromkeys(str(n) for n in pcnum if n is not None)),
        "psn": model.get("psn"),
    }


def _shown(presentation: Any, study: Mapping[str, Any]) -> dict[str, Any]:
    """Visual angle and software, from StimulusPresentation or what the study's settings say."""
    if not isinstance(presentation, Mapping):
        presentation = {}
    angle = presentation.get("VisualAngle")
    if isinstance(angle, (list, tuple)) and angle:
        angle = angle[0]
    if angle is None:
        angle = study.get("visual_angle")
    return {"VisualAngle": angle, "StimulusSoftware": presentation.get("SoftwareName")}


def _trials(fits: Sequence[FitOutput], session: str | None) -> dict[str, Any]:
    """Counts and times of the trials of a session."""
    onsets, durations, stimuli, repeated = [], [], [], set()
    for fit in fits:
        runs = fit.fit["runs"]
        columns = fit.record.get("plan", {}).get("trials", {})
        if not columns:
            continue
        counts = np.bincount(columns["condition"])
        for run, onset, duration, condition, stim in zip(
            columns["run"], columns["onset"], columns["duration"], columns["condition"], columns["stim_id"],
            strict=True,
        ):  # fmt: skip
            if runs[run]["session"] == session:
                onsets.append((fit.name, run, onset))
                durations.append(duration)
                stimuli.append(stim)
                if counts[condition] > 1:
                    repeated.add(stim)
    if not onsets:
        return {}
    onsets.sort()
    gaps = [b[2] - a[2] for a, b in pairwise(onsets) if a[:2] == b[:2]]
    gap = float(np.median(gaps)) if gaps else math.nan
    return {
        "n_trials": len(onsets),
        "n_stimuli": len(set(stimuli)),
        "n_repeated": len(repeated),
        "stimulus_duration": float(np.median(durations)),
        "onset_asynchrony": gap if math.isfinite(gap) else None,
    }
