# SPDX-License-Identifier: Apache-2.0
"""How a run was measured: what its sidecars and headers say, kept with the fit.

Studies are compared years after their raw data went elsewhere, so what decides whether two participants can
be compared travels with the betas: fields of the BOLD sidecar (raw and preprocessed, merged), of
the events sidecar (how stimuli were shown), of the raw image's header (voxel size) and the participant's row
of ``participants.tsv``.  A field that no file has is left out here; that it is *missing* is said by whoever
lists what should be there (:mod:`conform_app.bids.methodology`).
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from conform_app.bids.inputs import Fit, RunInput
from conform_app.bids.layout import natural
from conform_app.bids.naming import parse_name

SIDECAR_FIELDS = (
    "InstitutionName", "Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "ReceiveCoilName",
    "SoftwareVersions", "PulseSequenceType", "MRAcquisitionType", "RepetitionTime", "EchoTime", "FlipAngle",
    "MultibandAccelerationFactor", "ParallelReductionFactorInPlane", "PartialFourier",
    "PhaseEncodingDirection", "EffectiveEchoSpacing", "TotalReadoutTime",
    "NumberOfVolumesDiscardedByScanner", "NumberOfVolumesDiscardedByUser", "TaskName", "TaskDescription",
    "Instructions", "StimulusPresentation", "StartTime", "SliceTimingCorrected",
)  # fmt: skip
"""Fields carried over as they are; slice times are summed up (see :func:`slice_timing`)."""

PARTICIPANT_FIELDS = ("age", "sex", "handedness", "group", "species")
_MISSING = ("", "n/a", "N/A", "nan")


def describe_run(run: RunInput) -> dict[str, Any]:
    """Return what is known of how a run was measured.

    Parameters
    ----------
    run : RunInput

    Returns
    -------
    dict
        Fields of :data:`SIDECAR_FIELDS` that are there; ``SliceTiming`` in words, ``NumberOfSlices``,
        ``SlicesAtOnce`` where slice times tell; ``VoxelSize`` (mm) and ``MatrixSize`` of the raw image.
    """
    shown = _events_metadata(run.events) if run.events is not None else {}
    metadata = {**shown, **run.metadata}
    found = {name: metadata[name] for name in SIDECAR_FIELDS if metadata.get(name) not in (None, "", [])}
    found |= slice_timing(metadata.get("SliceTiming"))
    return found | _raw_geometry(run.events)


def slice_timing(times: Any) -> dict[str, Any]:
    """Sum up slice times: their number, how many slices share one time, and the order in words."""
    if not isinstance(times, list) or not times or not all(isinstance(t, (int, float)) for t in times):
        return {}
    at_once = min(Counter(round(float(t), 4) for t in times).values())
    stack = times[: len(times) // at_once]
    steps = [b - a for a, b in pairwise(stack)]
    if len(times) == 1:
        words = "one slice"
    elif all(step > 0 for step in steps):
        words = "ascending"
    elif all(step < 0 for step in steps):
        words = "descending"
    else:
        words = "interleaved"
    return {"SliceTiming": words, "NumberOfSlices": len(times), "SlicesAtOnce": at_once}


def describe_participant(fit: Fit) -> dict[str, str]:
    """Return the participant's row of ``participants.tsv`` of the dataset the events lie in."""
    for run in fit.runs:
        root = dataset_root(run.events) if run.events is not None else None
        if root is None:
            continue
        try:
            with (root / "participants.tsv").open(encoding="utf-8-sig", newline="") as stream:
                rows = list(csv.DictReader(stream, delimiter="\t"))
        except (OSError, UnicodeDecodeError, csv.Error):
            return {}
        for row in rows:
            if str(row.get("participant_id")).removeprefix("sub-") == fit.subject:
                return {n: row[n] for n in PARTICIPANT_FIELDS if row.get(n) and row[n] not in _MISSING}
        return {}
    return {}


def dataset_root(path: Path) -> Path | None:
    """The dataset a file lies in: the nearest folder above with a description."""
    return next((folder for folder in path.parents if (folder / "dataset_description.json").is_file()), None)


def _events_metadata(events: Path) -> dict[str, Any]:
    """Merge the sidecars that apply to an events file, from the general to the specific."""
    root = dataset_root(events)
    if root is None:
        return {}
    entities = _entities(events.name)
    found = []
    for folder in (events.parent, *events.parent.parents):
        if not folder.is_relative_to(root):
            break
        for path in folder.glob("*_events.json"):
            own = _entities(path.name)
            if own.items() <= entities.items():
                found.append((len(folder.parts), len(own), path.name, path))
    merged: dict[str, Any] = {}
    for *_, path in sorted(found):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        merged |= content if isinstance(content, dict) else {}
    return merged


def _entities(name: str) -> dict[str, str]:
    return {k: v for k, v in parse_name(name).items() if k not in ("suffix", "extension")}


def _raw_geometry(events: Path | None) -> dict[str, Any]:
    """Voxel and matrix size of the raw image beside the events, from its header."""
    image = _raw_image(events)
    if image is None:
        return {}
    size = (image.grid.affine[:3, :3] ** 2).sum(axis=0) ** 0.5
    return {"VoxelSize": [round(float(v), 4) for v in size], "MatrixSize": list(map(int, image.grid.shape))}


def raw_length(run: RunInput) -> int | None:
    """Return the number of volumes of the raw image beside the events; None where it cannot be read."""
    image = _raw_image(run.events)
    return None if image is None else int(image.n_volumes)


def _raw_image(events: Path | None) -> Any:
    """The raw image beside the events, its header read; None where there is none."""
    from conform_app.errors import ConformError
    from conform_app.images import open_run

    for ending in ("_bold.nii.gz", "_bold.nii"):
        path = None if events is None else events.with_name(events.name.replace("_events.tsv", ending))
        if path is None or not path.is_file():
            continue
        try:
            return open_run((path,))
        except ConformError:
            continue  # the raw image is not needed for a fit
    return None


def common_values(runs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each field's value over runs: the value if all that have it agree, else the distinct ones."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = {json.dumps(run[name], sort_keys=True): run[name] for run in runs if name in run}
        distinct = [values[key] for key in sorted(values, key=natural)]
        out[name] = distinct[0] if len(distinct) == 1 else {"values": distinct}
    return out
