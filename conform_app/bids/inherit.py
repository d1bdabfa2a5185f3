# SPDX-License-Identifier: Apache-2.0
"""BIDS inheritance: which sidecar, events, mask or confounds file belongs to a run.

A file applies to a run when every entity in its name has the run's label and it lies in the run's folder or
above.  Metadata are merged from the general to the specific; of files that are taken whole (events) the
most specific one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conform_app.bids.layout import BidsFile, Dataset, read_json, same_label

# Entities by which preprocessing tells apart versions of one and the same run.
VERSION_ENTITIES = frozenset({"space", "res", "den", "hemi", "desc", "cohort"})
# What a surface file's sidecar may lack and the volume's has.
TIMING = ("RepetitionTime", "StartTime", "SliceTimingCorrected", "VolumeTiming", "DelayTime")


def run_entities(entities: Mapping[str, str]) -> dict[str, str]:
    """Entities that name the run itself, whatever was done to it."""
    return {name: label for name, label in entities.items() if name not in VERSION_ENTITIES}


def applies(entities: Mapping[str, str], target: Mapping[str, str], but: Iterable[str] = ()) -> bool:
    """Whether every entity (`but` these) has the target's label."""
    skipped = set(but)
    return all(
        name in skipped or (name in target and same_label(name, label, target[name]))
        for name, label in entities.items()
    )


def run_folder(root: Path, entities: Mapping[str, str]) -> Path:
    """The folder of a run's files in a dataset."""
    session = entities.get("session")
    folder = root / f"sub-{entities['subject']}"
    return (folder / f"ses-{session}" if session else folder) / "func"


def inheritable(
    dataset: Dataset, target: Mapping[str, str], suffixes: tuple[str, ...], extensions: tuple[str, ...],
    but: Iterable[str] = (),
) -> list[BidsFile]:  # fmt: skip
    """Files of a dataset that apply to a run, from the general to the specific."""
    folder = run_folder(dataset.root, target)
    places = {folder, *folder.parents}
    found = [
        file
        for file in dataset.of_subject(target["subject"])
        if file.suffix in suffixes
        and file.extension in extensions
        and file.path.parent in places
        and applies(file.entities, target, but)
    ]
    return sorted(found, key=lambda f: (len(f.path.parts), len(f.entities), f.path.name))


def metadata_of(
    bold: BidsFile, home: Dataset, raws: Iterable[Dataset], suffix: str = "bold"
) -> tuple[dict[str, Any], list[str]]:
    """Metadata of a preprocessed file.

    Raw sidecars (at any level) come first, then the derivative's timing of another version of the same run
    (surface files often lack it), then the file's own sidecars.

    Returns
    -------
    metadata : dict
    warnings : list of str
        A repetition time that differs between raw and derivative.
    """
    run = run_entities(bold.entities)
    merged: dict[str, Any] = {}
    for raw in raws:
        # The echoes of a run share its timing; echo and part are gone after preprocessing.
        files = inheritable(raw, run, (suffix,), (".json",), but=("echo", "part"))
        plain = [f for f in files if applies(f.entities, run)]
        merged = _merge(plain)
        if "RepetitionTime" not in merged:
            merged = {**_merge(files), **merged}
            if len(files) > len(plain):
                merged.pop("EchoTime", None)
        if merged:
            break
    raw_tr = merged.get("RepetitionTime")
    own = _merge(inheritable(home, bold.entities, (suffix,), (".json",)))
    if not {"RepetitionTime", "StartTime"} <= own.keys():
        for other in _volumes(run, home, suffix):
            timing = {key: value for key, value in read_json(other.path).items() if key in TIMING}
            if timing:
                merged.update(timing)
                break
    merged.update(own)
    warnings = []
    tr = merged.get("RepetitionTime")
    if isinstance(raw_tr, int | float) and isinstance(tr, int | float) and abs(raw_tr - tr) > 1e-3:
        warnings.append(
            f"{bold.path.name}: RepetitionTime is {tr:g} s in the derivative and {raw_tr:g} s in the raw "
            "data; the derivative's is used."
        )
    return merged, warnings


def _volumes(run: Mapping[str, str], home: Dataset, suffix: str) -> Iterator[BidsFile]:
    """Sidecars of the same run's volumes (those of surfaces and CIFTI name a hemisphere or a density)."""
    for file in home.of_subject(run["subject"]):
        same_run = file.suffix == suffix and file.extension == ".json" and run_entities(file.entities) == run
        if same_run and not {"hemi", "den"} & file.entities.keys():
            yield file


def _merge(files: Iterable[BidsFile]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for file in files:
        merged.update(read_json(file.path))
    return merged
