# SPDX-License-Identifier: Apache-2.0
"""From runs in spaces to fits: which space, and which sessions are pooled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from conform_app.bids.candidates import Candidate
from conform_app.bids.companions import describe
from conform_app.bids.layout import INDEX_ENTITIES, natural
from conform_app.bids.spaces import (
    SpaceKey,
    carried_from,
    match_space,
    parse_space,
    preference,
    surface_key,
)
from conform_app.errors import DataError, NoInputError, NothingSelectedError, UsageError

_LABEL = re.compile(r"[A-Za-z0-9+*?\[\]!-]+")  # a label, or a pattern of labels
_WILD = re.compile(r"[*?\[]")

LONGEST_LABEL = 120
"""Letters of a joined label with which file names stay within what file systems allow."""


@dataclass(frozen=True)
class SessionGroup:
    """Sessions that are one fit.

    Attributes
    ----------
    labels : tuple of str
        Labels, or patterns of labels (``nat*``, ``0[1-5]``).
    name : str or None
        Stands for the sessions in names of files; None: their labels joined.
    """

    labels: tuple[str, ...]
    name: str | None = None

    def holds(self, session: str | None) -> bool:
        """Whether a session belongs to the group."""
        return session is not None and any(fnmatchcase(session, label) for label in self.labels)


Levels = str | tuple[SessionGroup, ...]


@dataclass(frozen=True)
class Group:
    """Runs of one fit; see :class:`conform_app.bids.inputs.Fit` for the flags."""

    members: tuple[Candidate, ...]
    pooled: bool
    grouped: bool
    acquisition: str | None
    name: str | None = None


def parse_fit_level(level: str | Iterable) -> Levels:
    """Read ``session``, ``subject`` or groups of sessions (``["01,02", "shapes=art*"]`` or lists of labels).

    Raises
    ------
    UsageError
        Neither of these, or a session in two groups.
    """
    items = [level] if isinstance(level, str) else list(level)
    if len(items) == 1 and items[0] in ("session", "subject"):
        return items[0]
    remedy = "Give session, subject, or groups of sessions such as 01,02 03,04 or NAME=PATTERN."
    groups = []
    for item in items:
        name, equals, text = item.partition("=") if isinstance(item, str) else ("", "", item)
        text = text if equals else item
        labels = text.split(",") if isinstance(text, str) else list(text)
        group = tuple(str(label).strip().removeprefix("ses-") for label in labels)
        if (
            not group
            or not all(_LABEL.fullmatch(label) for label in group)
            or (equals and not name.isalnum())
        ):
            raise UsageError(f"fit level {item!r} is not understood.", remedy)
        groups.append(SessionGroup(group, name if equals else None))
    every = [label for group in groups for label in group.labels]
    twice = sorted({label for label in every if every.count(label) > 1})
    if twice or not groups or {"session", "subject"} & set(every):
        what = f"session {twice[0]} is in two groups" if twice else f"{level!r} is not understood"
        raise UsageError(f"fit level: {what}.", remedy)
    return tuple(groups)


def choose_spaces(
    candidates: Sequence[Candidate], output_spaces: Iterable[str] | None, warnings: list[str]
) -> list[tuple[SpaceKey, list[Candidate]]]:
    """The spaces asked for, or the best one that exists, each with its runs.

    A surface space that does not exist is given the runs of the volume it can be carried from.

    The best is the first, in the order of :func:`conform_app.bids.spaces.preference`, that every run has;
    if none is, the first of those that most runs have.

    Raises
    ------
    NoInputError
        A space asked for does not exist.
    """
    by_key: dict[SpaceKey, list[Candidate]] = {}
    for candidate in candidates:
        by_key.setdefault(candidate.key, []).append(candidate)
    runs = {candidate.order for candidate in candidates}
    specs = [parse_space(text) for text in output_spaces or ()]
    chosen: list[SpaceKey] = []
    if specs:
        for spec in specs:
            key = match_space(spec, by_key)
            if key is None and (wanted := surface_key(spec)) and (volumes := carried_from(by_key)):
                # in all its runs, then the better space
                volume = min(volumes, key=lambda k: (-len(by_key[k]), volumes.index(k)))
                by_key.setdefault(wanted, by_key[volume])
                key = wanted
            if key is None:
                raise NoInputError(
                    f"no preprocessed BOLD in space {spec}; there is {listed(by_key)}.",
                    "Choose one of these with --output-spaces, or preprocess into the space wanted.",
                )
            chosen.append(key)
    else:
        chosen = [min(by_key, key=lambda k: (-len(by_key[k]), preference(k)))]
        if len(by_key) > 1:
            warnings.append(f"No output space was named: {chosen[0]} is used, of {listed(by_key)}.")
        else:
            warnings.append(f"No output space was named: {chosen[0]} is used, the only one there is.")
    for key in chosen:
        missing = sorted(runs - {c.order for c in by_key[key]})
        if missing:
            names = [describe(next(c.run for c in candidates if c.order == order)) for order in missing]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            warnings.append(f"Left out, not being in space {key}: {', '.join(names[:5])}{more}.")
    return [(key, by_key[key]) for key in dict.fromkeys(chosen)]


def group_runs(
    members: Sequence[Candidate], levels: Levels, warnings: list[str], *, tasks_together: bool = False
) -> list[Group]:
    """Split the runs of one space by subject, task, acquisition and session or group of sessions.

    Parameters
    ----------
    members : sequence of Candidate
    levels : {"session", "subject"} or tuple of tuple of str
        See :func:`parse_fit_level`.
    warnings : list of str
        Added to.
    tasks_together : bool
        Runs of all tasks are one fit.

    Raises
    ------
    NothingSelectedError
        A group names a session that is not there.
    """
    acquisitions: dict[tuple, set] = {}
    for c in members:
        place = (c.run["subject"], None if tasks_together else c.run["task"])
        acquisitions.setdefault(place, set()).add(c.run.get("acquisition"))
    table: dict[tuple, list[Candidate]] = {}
    outside: set[str] = set()
    seen: set[str] = set()
    for c in members:
        session = c.run.get("session")
        if isinstance(levels, str):
            part = session if levels == "session" else None
        else:
            parts = [group for group in levels if group.holds(session)]
            if len(parts) > 1:
                raise UsageError(f"fit level: session {session} is in two groups.", "Check --fit-level.")
            part = parts[0] if parts else None
            if session is not None:
                seen.add(session)
                if part is None:
                    outside.add(session)
                    continue
        # Acquisitions differ in grid or TR: never one model.
        place = (c.run["subject"], None if tasks_together else c.run["task"])
        acquisition = c.run.get("acquisition") if len(acquisitions[place]) > 1 else None
        table.setdefault((*place, acquisition, part), []).append(c)
    if outside:
        warnings.append(f"In no group of sessions, left out: {', '.join(sorted(outside, key=natural))}.")
    if not isinstance(levels, str):
        labels = [label for group in levels for label in group.labels]
        without = [label for label in labels if not any(fnmatchcase(session, label) for session in seen)]
        unknown = [label for label in without if not _WILD.search(label)]
        if unknown or len(without) == len(labels):
            unknown = unknown or without
            there = ", ".join(sorted(seen, key=natural)) or "none"
            raise NothingSelectedError(
                f"fit level: no session {', '.join(unknown)}; there is {there}.",
                "Check --fit-level.",
            )
        if without:
            warnings.append(f"No session is called {', '.join(without)}.")
    _tell_variants(members, warnings)
    pooled, grouped = levels != "session", not isinstance(levels, str) and len(levels) > 1
    return [
        Group(tuple(runs), pooled, grouped, place[2], getattr(place[3], "name", None))
        for place, runs in table.items()
    ]


def check_numbers(members: Sequence[Candidate]) -> None:
    """Refuse runs that are one recording: names that differ by zeros before a number, or the echo, alone.

    Raises
    ------
    DataError
        Naming the two files.
    """
    seen: dict[tuple, Candidate] = {}
    for candidate in members:
        place = tuple(
            (name, int(label) if name in INDEX_ENTITIES and label.isdecimal() else label)
            for name, label in sorted(candidate.run.items())
            if name != "echo"
        )
        other = seen.setdefault(place, candidate)
        if other is candidate:
            continue
        if other.run.get("echo") != candidate.run.get("echo"):
            raise DataError(
                f"{other.files[0].path} and {candidate.files[0].path.name} are echoes of one recording.",
                'Combine them before, or choose one: --bids-filter-file with {"bold": {"echo": 2}}.',
            )
        raise DataError(
            f"{other.files[0].path} and {candidate.files[0].path.name} are one run by their numbers.",
            "Remove the one that an earlier preprocessing left behind.",
        )


def _tell_variants(members: Sequence[Candidate], warnings: list[str]) -> None:
    """Say when runs differ in a way that may mean one recording twice."""
    labels = {c.run.get("reconstruction") for c in members}
    if len(labels) > 1:
        listed = ", ".join(sorted(label or "none" for label in labels))
        warnings.append(
            f"Runs with reconstruction {listed} are modelled together; choose one with --bids-filter-file if "
            "they are versions of the same recording."
        )


def listed(keys: Iterable[SpaceKey]) -> str:
    """Spaces in words, the best first."""
    return ", ".join(f"{key} ({key.kind})" for key in sorted(keys, key=preference))
