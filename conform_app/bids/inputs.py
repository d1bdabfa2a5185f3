# SPDX-License-Identifier: Apache-2.0
"""What to fit: runs of preprocessed BOLD with their masks, confounds, events and metadata.

A *run* is one recording, whatever versions preprocessing made of it; a *fit* is the set of runs that are
modelled together: one subject, one space, one task (or all that were asked for), and one session, all
sessions or a group of sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conform_app.bids.candidates import Candidate, find_candidates
from conform_app.bids.companions import Companions, describe, present
from conform_app.bids.filters import check_filters, clean_labels
from conform_app.bids.grouping import (
    LONGEST_LABEL,
    Group,
    check_numbers,
    choose_spaces,
    group_runs,
    parse_fit_level,
)
from conform_app.bids.inherit import metadata_of
from conform_app.bids.layout import Dataset, list_subjects, natural, open_dataset
from conform_app.bids.sources import locate_sources
from conform_app.bids.spaces import SpaceKey
from conform_app.bids.surfaces import SubjectSurfaces, SurfaceFinder, places_read, subjects_dirs
from conform_app.errors import ConformError, NoInputError, NothingSelectedError, UsageError


@dataclass(frozen=True)
class RunInput:
    """One run of a fit.

    Attributes
    ----------
    bold : tuple of Path
        One volume or CIFTI file, or the left and the right GIFTI file.
    mask : tuple of Path
        Brain mask in the same space; empty when there is none.
    confounds, events : Path or None
    session, run : str or None
        Labels as in the file names.
    entities : dict of str to str
        Entities of the run (long names: ``subject``, ``task``, ``acquisition`` ...).
    metadata : dict
        Sidecar fields by inheritance; ``RepetitionTime`` is absent if no sidecar has it.
    transform, subcortex : Path or None
        For a fit that is carried to a surface: from T1w space to the run's own grid, and the same run in
        MNI152NLin6Asym.
    """

    bold: tuple[Path, ...]
    mask: tuple[Path, ...]
    confounds: Path | None
    events: Path | None
    session: str | None
    run: str | None
    entities: dict[str, str] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    transform: Path | None = None
    subcortex: Path | None = None

    @property
    def task(self) -> str:
        """Label of the task."""
        return self.entities["task"]

    @property
    def label(self) -> str:
        """Short name for messages, e.g. ``sub-01 ses-02 task-x run-1``."""
        return describe(self.entities)


@dataclass(frozen=True)
class Fit:
    """Runs that are modelled together.

    Attributes
    ----------
    subject : str
    task : str
        Label; ``a+b`` where runs of several tasks are one fit.
    sessions : tuple of str
        Labels in natural order; empty when the files have no session.
    space : str
        ``boldref`` when the files name none.  ``fsaverage5`` and its like are ``fsaverage`` with a `den`.
    res, den : str or None
    kind : {"volume", "gifti", "cifti"}
    runs : tuple of RunInput
        By session, then run, in natural order.
    pooled : bool
        Whether the fit is of all sessions, or of a group of them, rather than of one.
    grouped : bool
        Whether there may be other groups of sessions, so that the name must tell which.
    acquisition : str or None
        Label of ``acq`` when a task was recorded in several ways, each a fit of its own.
    group_name : str or None
        What the user calls the group of sessions.
    volume : SpaceKey or None
        The space of the runs' files when they are volumes that are carried to the surface `space`.
    surfaces : SubjectSurfaces or None
        On which they are; None for volumes in a template's space.
    """

    subject: str
    sessions: tuple[str, ...]
    task: str
    space: str
    res: str | None
    den: str | None
    kind: str
    runs: tuple[RunInput, ...] = field(repr=False)
    pooled: bool = False
    grouped: bool = False
    acquisition: str | None = None
    group_name: str | None = None
    volume: SpaceKey | None = None
    surfaces: SubjectSurfaces | None = field(default=None, repr=False)

    @property
    def session_label(self) -> str | None:
        """``ses`` of output names: ``01``, ``01+02`` (or its name) for a group, None when all are pooled."""
        if self.group_name is not None:
            return self.group_name
        if self.pooled and not (self.grouped and self.sessions):
            return None
        return "+".join(self.sessions) or None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the runs, in natural order."""
        return tuple(sorted({run.task for run in self.runs}, key=natural))

    @property
    def entities(self) -> dict[str, str]:
        """Entities of output names, short names, in BIDS order."""
        found = {
            "sub": self.subject,
            "ses": self.session_label,
            "task": self.task,
            "acq": self.acquisition,
            "space": self.space,
            "res": self.res,
            "den": self.den,
        }
        return {name: label for name, label in found.items() if label is not None}

    @property
    def name(self) -> str:
        """``sub-01_ses-01_task-x_space-y``; unique among the fits of one call."""
        return "_".join(f"{name}-{label}" for name, label in self.entities.items())


@dataclass(frozen=True)
class Failure:
    """Runs that would be a fit but for an error."""

    subject: str
    error: ConformError


@dataclass(frozen=True)
class Selection(Sequence):
    """The fits found, with what the user should know about the choice; a sequence of its fits.

    Attributes
    ----------
    fits : tuple of Fit
    warnings : tuple of str
    datasets : dict of str to Path
        Datasets that were read, by name (for ``DatasetLinks``).
    failures : tuple of Failure
        Fits that could not be put together, under ``keep_going``.
    """

    fits: tuple[Fit, ...]
    warnings: tuple[str, ...]
    datasets: dict[str, Path]
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, index):
        return self.fits[index]

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.fits)


def find_fits(
    *,
    bids_dir: Path | str,
    derivatives: Mapping[str, Path | str] | Iterable[tuple[str, Path | str]] | None = None,
    subjects: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    tasks: Iterable[str] | None = None,
    runs: Iterable[str] | None = None,
    filters: Mapping[str, Any] | None = None,
    output_spaces: Iterable[str] | None = None,
    fit_level: str | Iterable[Any] = "session",
    tasks_together: bool = False,
    database_path: Path | str | None = None,
    keep_going: bool = False,
) -> Selection:
    """Find what can be fitted.

    Parameters
    ----------
    bids_dir : path
        A raw dataset, or a derivative (whose raw dataset is then sought through its description).
    derivatives : mapping or pairs of name and path, optional
        Preprocessed datasets in order; none: those in ``bids_dir/derivatives``.
    subjects, sessions, tasks, runs : iterable of str, optional
        Labels with or without prefix; none: all.  A file that lacks the entity is kept.
    filters : mapping, optional
        Content of a BIDS filter file, see :func:`conform_app.bids.filters.check_filters`.
    output_spaces : iterable of str, optional
        ``SPACE[:res-x][:den-y]``; none: the best that exists.
    fit_level : {"session", "subject"} or groups of sessions
        Groups as lists of labels, or as texts such as ``"01,02"``.
    tasks_together : bool
        Runs of all tasks (of a session, or of what `fit_level` pools) are one fit.
    database_path : path, optional
        Folder of a pybids cache.
    keep_going : bool
        Collect the errors of single fits (a run without events, say) in ``failures`` as long as there is some
        fit without error; otherwise the first one is raised.

    Returns
    -------
    Selection
        Fits sorted by subject, sessions, task and the order of the spaces asked for.

    Raises
    ------
    NoInputError
        No derivatives, no preprocessed BOLD, a space that does not exist, or a run without events.
    NothingSelectedError
        The labels or filters leave nothing; the message lists what there is.
    UsageError
        A label, filter, space or fit level that cannot be understood.
    """
    choice = {
        entity: clean_labels(entity, labels)
        for entity, labels in (("subject", subjects), ("session", sessions), ("task", tasks), ("run", runs))
    }
    filters = check_filters(filters)
    levels = parse_fit_level(fit_level)
    sources = locate_sources(Path(bids_dir), dict(derivatives) if derivatives else None)
    warnings = list(sources.warnings)
    wanted = _check_subjects(choice["subject"], [path for _, path in sources.preprocessed])
    cache = None if database_path is None else Path(database_path)
    preprocessed = [open_dataset(p, n, subjects=wanted, database_path=cache) for n, p in sources.preprocessed]
    opened = {d.root.resolve(): d for d in preprocessed}
    raws = [
        opened.get(p.resolve()) or open_dataset(p, n, subjects=wanted, database_path=cache)
        for n, p in sources.raw
    ]
    home, candidates = find_candidates(preprocessed, choice, filters.get("bold"), warnings)
    finder = Companions(home, preprocessed, raws, filters, warnings)
    candidates = _drop_tasks_without_events(candidates, finder, choice["task"], warnings)
    chosen = choose_spaces(candidates, output_spaces, warnings)
    carrying = SurfaceFinder(
        candidates,
        [home.root, *(d.root for d in preprocessed if d is not home)],
        subjects_dirs(bids_dir, [path for _, path in sources.preprocessed], dict(derivatives or {})),
    )
    fits: list[Fit] = []
    failures: list[Failure] = []
    for key, members in chosen:
        for group in group_runs(members, levels, warnings, tasks_together=tasks_together):
            try:
                fits.append(_make_fit(key, group, finder, carrying))
            except ConformError as error:
                if not keep_going:
                    raise
                failures.append(Failure(group.members[0].run["subject"], error))
    if failures and not fits:
        raise failures[0].error
    tried = {fit.subject for fit in fits} | {failure.subject for failure in failures}
    _check_every_subject(choice["subject"], tried, candidates, home.root)
    order = {str(key): n for n, (key, _) in enumerate(chosen)}
    fits.sort(key=lambda f: (*_sort_key(f), order[str(SpaceKey(f.kind, f.space, f.res, f.den))]))
    read = _by_name((*preprocessed, *raws))
    read |= places_read(fit.surfaces for fit in fits if fit.volume is not None)
    return Selection(tuple(fits), tuple(dict.fromkeys(warnings)), read, tuple(failures))


def _make_fit(key: SpaceKey, group: Group, finder: Companions, carrying: SurfaceFinder) -> Fit:
    check_numbers(group.members)
    volume = group.members[0].key if group.members[0].key != key else None
    made = []
    for candidate in sorted(group.members, key=lambda c: c.order):
        entities = candidate.run
        events = finder.events(entities)
        if events is None:
            raise NoInputError(
                f"{describe(entities)} has no events: expected {finder.expected_events(entities)}, or a file "
                "above it that applies.",
                "Add it, or leave the run out with --run-label or --bids-filter-file.",
            )
        metadata, told = metadata_of(candidate.files[0], finder.home, finder.raws, candidate.files[0].suffix)
        finder.warnings.extend(told)
        bold = tuple(present(file.path) for file in candidate.files)
        made.append(
            RunInput(
                bold=bold,
                mask=finder.mask(candidate),
                confounds=finder.confounds(entities),
                events=present(events),
                session=entities.get("session"),
                run=entities.get("run"),
                entities=entities,
                metadata=metadata,
                transform=finder.transform(candidate) if volume else None,
                subcortex=carrying.subcortex.get(candidate.order) if volume and key.kind == "cifti" else None,
            )
        )
    first = group.members[0].run
    sessions = tuple(sorted({r.session for r in made if r.session is not None}, key=natural))
    if group.grouped and group.name is None and len("+".join(sessions)) > LONGEST_LABEL:
        raise UsageError(
            f"The group of {len(sessions)} sessions {sessions[0]} ... {sessions[-1]} is too long for "
            "names of files.",
            "Give it a name: --fit-level NAME=LABELS.",
        )
    return Fit(
        subject=first["subject"],
        sessions=sessions,
        task="+".join(sorted({r.task for r in made}, key=natural)),
        space=key.space,
        res=key.res,
        den=key.den,
        kind=key.kind,
        runs=tuple(made),
        pooled=group.pooled,
        grouped=group.grouped,
        acquisition=group.acquisition,
        group_name=group.name,
        volume=volume,
        surfaces=carrying.surfaces(first["subject"], sessions, volume, key) if volume else None,
    )


def _check_subjects(wanted: tuple[str, ...] | None, roots: Sequence[Path]) -> tuple[str, ...] | None:
    if wanted is None:
        return None
    available = list(dict.fromkeys(label for root in roots for label in list_subjects(root)))
    unknown = [label for label in wanted if label not in available]
    if unknown:
        more = f" and {len(available) - 10} more" if len(available) > 10 else ""
        listed = ", ".join(sorted(available, key=natural)[:10]) or "none"
        raise NothingSelectedError(
            f"unknown participant {', '.join(unknown)}: {', '.join(map(str, roots))} holds {listed}{more}.",
            "Check --participant-label.",
        )
    return wanted


def _check_every_subject(
    wanted: tuple[str, ...] | None, tried: set[str], candidates: Sequence[Candidate], home: Path
) -> None:
    """A participant asked for by name must be there; otherwise a run would end well without it."""
    for label in wanted or ():
        if label not in tried:
            there = sorted({str(c.key) for c in candidates if c.run["subject"] == label})
            if not there:
                raise NoInputError(
                    f"sub-{label} has no preprocessed BOLD where that of others is read ({home}).",
                    "Run it by itself if its data are in another of the datasets, or leave it out.",
                )
            raise NoInputError(
                f"sub-{label} has no BOLD in the space chosen; it has {', '.join(there)}.",
                "Choose its space with --output-spaces, or leave the participant out.",
            )


def _drop_tasks_without_events(
    candidates: Sequence[Candidate], finder: Companions, asked: tuple[str, ...] | None, warnings: list[str]
) -> list[Candidate]:
    """Leave out tasks (rest, say) none of whose runs has events, unless they were asked for."""
    tasks: dict[str, bool] = {}
    runs: dict[tuple, bool] = {}
    for candidate in candidates:
        if candidate.order not in runs:
            runs[candidate.order] = finder.events(candidate.run) is not None
        task = candidate.run["task"]
        tasks[task] = tasks.get(task, False) or runs[candidate.order]
    if asked is not None or not any(tasks.values()):
        return list(candidates)
    bare = sorted(task for task, has in tasks.items() if not has)
    if bare:
        warnings.append(f"Left out, having no events: {', '.join(f'task-{task}' for task in bare)}.")
    return [c for c in candidates if tasks[c.run["task"]]]


def _by_name(datasets: Sequence[Dataset]) -> dict[str, Path]:
    """Roots by name, each once; a name taken gets a number."""
    read: dict[str, Path] = {}
    for dataset in datasets:
        if dataset.root not in read.values():
            names = (dataset.name, *(f"{dataset.name}{n}" for n in range(2, len(datasets) + 2)))
            read[next(name for name in names if name not in read)] = dataset.root
    return read


def _sort_key(fit: Fit) -> tuple:
    return (
        natural(fit.subject),
        tuple(map(natural, fit.sessions)),
        natural(fit.task),
        natural(fit.acquisition),
    )
