# SPDX-License-Identifier: Apache-2.0
"""Preprocessed BOLD that could be modelled: every version (space) of every run selected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from conform_app.bids.filters import passes_filter, passes_labels
from conform_app.bids.inherit import run_entities
from conform_app.bids.layout import BidsFile, Dataset, natural
from conform_app.bids.spaces import SpaceKey, space_of_file
from conform_app.errors import NoInputError, NothingSelectedError

_KINDS = {".nii.gz": "volume", ".nii": "volume", ".func.gii": "gifti", ".dtseries.nii": "cifti"}


@dataclass(frozen=True)
class Candidate:
    """One run in one space.

    Attributes
    ----------
    key : SpaceKey
    run : dict
        Entities of the run itself.
    files : tuple of BidsFile
        One file, or left and right.
    """

    key: SpaceKey
    run: dict[str, str]
    files: tuple[BidsFile, ...]

    @cached_property
    def order(self) -> tuple:
        """Identity of the run, sorting by subject, session, task, run and the rest in natural order."""
        first = ("subject", "session", "task", "run")
        rest = sorted((name, label) for name, label in self.run.items() if name not in first)
        return (*(natural(self.run.get(name)) for name in first), tuple((n, natural(v)) for n, v in rest))


def find_candidates(
    datasets: Sequence[Dataset],
    choice: Mapping[str, tuple[str, ...] | None],
    wanted: Mapping[str, tuple[Any, ...]] | None,
    warnings: list[str],
) -> tuple[Dataset, list[Candidate]]:
    """Take the first dataset that holds preprocessed BOLD of the selection.

    Parameters
    ----------
    datasets : sequence of Dataset
        In order of preference.
    choice : dict
        Labels chosen per entity, None for all.
    wanted : dict, optional
        The ``bold`` part of the filters.  A ``desc`` or ``suffix`` in it replaces the default search for
        ``desc-preproc`` and ``bold``.
    warnings : list of str
        Added to.

    Raises
    ------
    NoInputError
        No dataset holds preprocessed BOLD.
    NothingSelectedError
        Labels or filter leave nothing.
    """
    all_runs: list[BidsFile] = []
    for place, dataset in enumerate(datasets):
        files = [file for file in dataset.files if _is_bold(file, wanted)]
        all_runs += files
        kept = [f for f in files if passes_labels(f.entities, choice) and passes_filter(f, wanted)]
        kept = _one_echo(kept)
        if kept:
            _tell_unmatched(kept, choice, warnings)
            _tell_elsewhere(dataset, kept, datasets[place + 1 :], choice, wanted, warnings)
            return dataset, _pair(kept, warnings)
    places = ", ".join(str(dataset.root) for dataset in datasets)
    if not all_runs:
        raise NoInputError(
            f"no preprocessed BOLD in {places} (*_desc-preproc_bold.nii.gz, *_hemi-L_*bold.func.gii, "
            "*_bold.dtseries.nii).",
            "Name the folder of fMRIPrep's output with -d fmriprep=PATH.",
        )
    raise NothingSelectedError(
        f"the labels and filters select no preprocessed BOLD in {places}; there is {_what_is(all_runs)}.",
        "Check the --*-label options and --bids-filter-file.",
    )


def _tell_elsewhere(
    home: Dataset,
    kept: Sequence[BidsFile],
    others: Sequence[Dataset],
    choice: Mapping[str, tuple[str, ...] | None],
    wanted: Mapping[str, tuple[Any, ...]] | None,
    warnings: list[str],
) -> None:
    """Say which participants are left out because their BOLD is in a later dataset alone."""
    here = {file.entities["subject"] for file in kept}
    for other in others:
        there = {
            file.entities["subject"]
            for file in other.files
            if _is_bold(file, wanted) and passes_labels(file.entities, choice) and passes_filter(file, wanted)
        }
        if there - here:
            listed = ", ".join(sorted(there - here, key=natural))
            warnings.append(
                f"Left out, their BOLD being in {other.name} alone, while {home.name} is read: {listed}. Run "
                "them by themselves, with --participant-label."
            )


def _is_bold(file: BidsFile, wanted: Mapping[str, tuple[Any, ...]] | None) -> bool:
    kind = _KINDS.get(file.extension)
    if kind is None or not {"subject", "task"} <= file.entities.keys():
        return False
    if "suffix" not in (wanted or {}) and file.suffix != "bold":
        return False
    if kind == "gifti" and file.entities.get("hemi") not in ("L", "R"):
        return False
    if file.entities.get("part", "mag") != "mag":
        return False
    desc = file.entities.get("desc")
    # fMRIPrep gives desc-preproc to volumes only.
    return "desc" in (wanted or {}) or desc == "preproc" or (desc is None and kind != "volume")


def _one_echo(files: Sequence[BidsFile]) -> list[BidsFile]:
    """Drop single echoes of runs whose combination is there."""
    combined = {_without_echo(f) for f in files if "echo" not in f.entities}
    return [f for f in files if "echo" not in f.entities or _without_echo(f) not in combined]


def _without_echo(file: BidsFile) -> frozenset[tuple[str, str]]:
    return frozenset(item for item in run_entities(file.entities).items() if item[0] != "echo")


def _pair(files: Sequence[BidsFile], warnings: list[str]) -> list[Candidate]:
    """Group files into runs and spaces; a hemisphere without the other is left out."""
    groups: dict[tuple, list[BidsFile]] = {}
    keys: dict[tuple, SpaceKey] = {}
    for file in files:
        get = file.entities.get
        space = "+".join(filter(None, (get("space"), get("cohort")))) or None
        key = space_of_file(_KINDS[file.extension], space, get("res"), get("den"))
        place = (key, tuple(sorted(run_entities(file.entities).items())), get("desc"))
        groups.setdefault(place, []).append(file)
        keys[place] = key
    candidates: dict[tuple, Candidate] = {}
    for place in sorted(groups, key=lambda p: (str(p[0]), p[1], p[2] != "preproc", p[2] or "")):
        members, key = groups[place], keys[place]
        if key.kind == "gifti":
            members = sorted(members, key=lambda f: f.entities["hemi"])
            if [f.entities["hemi"] for f in members] != ["L", "R"]:
                warnings.append(f"{members[0].path.name} has no partner of the other hemisphere; left out.")
                continue
        elif len(members) > 1:
            copies = ", ".join(file.path.name for file in members[1:])
            warnings.append(f"{members[0].path.name} is used, {copies} is another copy of it.")
        candidate = Candidate(key, dict(place[1]), tuple(members[:2] if key.kind == "gifti" else members[:1]))
        known = candidates.setdefault((key, place[1]), candidate)
        if known is not candidate:
            name = candidate.files[0].path.name
            warnings.append(f"{known.files[0].path.name} is used, {name} is another version of it.")
    return list(candidates.values())


def _tell_unmatched(
    kept: Sequence[BidsFile], choice: Mapping[str, tuple[str, ...] | None], warnings: list[str]
) -> None:
    for entity, labels in choice.items():
        if entity == "subject" or not any(entity in f.entities for f in kept):
            continue
        missing = [x for x in labels or () if not any(_has(f, entity, x) for f in kept)]
        if missing:
            warnings.append(f"No preprocessed BOLD for {entity} {', '.join(missing)}.")


def _has(file: BidsFile, entity: str, label: str) -> bool:
    return entity in file.entities and passes_labels(file.entities, {entity: (label,)})


def _what_is(files: Iterable[BidsFile]) -> str:
    """Labels present, up to ten per entity."""
    files = list(files)
    told = []
    for entity in ("subject", "session", "task", "run", "acquisition", "space", "desc"):
        labels = sorted({f.entities[entity] for f in files if entity in f.entities}, key=natural)
        if labels:
            more = " ..." if len(labels) > 10 else ""
            told.append(f"{entity} {', '.join(labels[:10])}{more}")
    return "; ".join(told)
