# SPDX-License-Identifier: Apache-2.0
"""Which files count: labels from the command line and the BIDS filter file.

Labels (``--session-label`` and its like) keep a file that lacks the entity (BEP027); a filter file is
strict.  In a filter file ``null`` means that the entity must be absent and ``"*"`` that it must be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conform_app.bids.layout import ENTITIES, BidsFile, read_json, same_label
from conform_app.errors import DataError, NoInputError, UsageError

QUERIES = ("bold", "mask", "confounds", "events")
_PREFIX = {"subject": "sub-", "session": "ses-", "task": "task-", "run": "run-"}
_ATTRIBUTES = ("suffix", "extension")

Filters = Mapping[str, Mapping[str, tuple[Any, ...]]]


def clean_labels(entity: str, labels: Iterable[Any] | None) -> tuple[str, ...] | None:
    """Labels without prefix, each once, in the order given; None stays None (no choice made)."""
    if labels is None:
        return None
    if isinstance(labels, str | int):
        labels = [labels]
    prefix = _PREFIX[entity]
    cleaned = [str(label).strip().removeprefix(prefix) for label in labels]
    bad = [label for label in cleaned if not label.replace("+", "").isalnum()]
    if bad:
        raise UsageError(f"{bad[0]!r} is not a {entity} label.", "Labels are letters and digits.")
    return tuple(dict.fromkeys(cleaned)) or None


def passes_labels(entities: Mapping[str, str], choice: Mapping[str, tuple[str, ...] | None]) -> bool:
    """Whether a file is kept by the labels chosen; one that lacks the entity is."""
    return all(
        labels is None
        or entity not in entities
        or any(same_label(entity, label, entities[entity]) for label in labels)
        for entity, labels in choice.items()
    )


def read_filters(path: Path | str) -> Filters:
    """Read a BIDS filter file; see `check_filters`."""
    path = Path(path)
    if not path.is_file():
        raise NoInputError(f"the BIDS filter file {path} does not exist.", "Check --bids-filter-file.")
    try:
        return check_filters(read_json(path), str(path))
    except DataError as error:
        raise UsageError(error.message, error.remedy) from error


def check_filters(content: Mapping[str, Any] | None, source: str = "the BIDS filter") -> Filters:
    """Check and normalise filters ``{query: {entity: value or list of values}}``.

    Parameters
    ----------
    content : mapping or None
        Queries are ``bold``, ``mask``, ``confounds`` and ``events``; entities have pybids' long names
        (``session``, ``acquisition``) or the short ones (``ses``, ``acq``).
    source : str
        What messages call it.

    Returns
    -------
    dict
        Long names; each value a tuple of str, None (must be absent) or ``"*"`` (must be there).

    Raises
    ------
    UsageError
        An unknown query or entity, or a value that is not a label.
    """
    checked: dict[str, dict[str, tuple[Any, ...]]] = {}
    for query, wanted in (content or {}).items():
        if query not in QUERIES:
            raise UsageError(f"{source}: unknown query {query!r}.", f"Known are {', '.join(QUERIES)}.")
        if not isinstance(wanted, Mapping):
            raise UsageError(
                f"{source}: {query!r} must hold entities.", 'For instance {"bold": {"task": "x"}}.'
            )
        checked[query] = {}
        for entity, values in wanted.items():
            name = ENTITIES.get(entity, entity)
            if name == "datatype":  # only functional files are ever looked at
                continue
            if name not in ENTITIES.values() and name not in _ATTRIBUTES:
                known = ", ".join([*dict.fromkeys(ENTITIES.values()), *_ATTRIBUTES])
                raise UsageError(f"{source}: unknown entity {entity!r} in {query!r}.", f"Known are {known}.")
            checked[query][name] = _check_values(name, values, f"{source}: {query}.{entity}")
    return checked


def passes_filter(file: BidsFile, wanted: Mapping[str, tuple[Any, ...]] | None) -> bool:
    """Whether a file is kept by the part of a filter that concerns it."""
    for entity, values in (wanted or {}).items():
        if entity in _ATTRIBUTES:
            label: str | None = getattr(file, entity)
        else:
            label = file.entities.get(entity)
        if label is None:
            if None not in values:
                return False
        elif not any(v is not None and (v == "*" or same_label(entity, v, label)) for v in values):
            return False
    return True


def _check_values(entity: str, values: Any, where: str) -> tuple[Any, ...]:
    items = values if isinstance(values, list | tuple) else [values]
    if not items:
        raise UsageError(f"{where} is an empty list.", 'Give a label, a list of labels, null or "*".')
    checked: list[Any] = []
    for item in items:
        if isinstance(item, bool) or not (item is None or isinstance(item, str | int)):
            raise UsageError(f"{where}: {item!r} is not a label.", 'Give a label, a list, null or "*".')
        text = None if item is None else str(item)
        if text and entity in _PREFIX:
            text = text.removeprefix(_PREFIX[entity])
        if text and entity == "extension" and text != "*" and not text.startswith("."):
            text = f".{text}"
        checked.append(text)
    return tuple(checked)
