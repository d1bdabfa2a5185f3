# SPDX-License-Identifier: Apache-2.0
"""What a setting is: a dataclass field whose metadata say what it is for, how it is read, what it may be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, field
from pathlib import Path
from typing import Any

from conform_app.errors import UsageError


def option(
    default: Any,
    text: str,
    *,
    flags: tuple[str, ...] = (),
    kind: str = "str",
    many: bool = False,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    alters: bool = False,
) -> Any:
    """Declare one setting: its default, its help text and how the command line reads it.

    Parameters
    ----------
    default : object
        Value when neither the TOML file nor the command line gives one.
    text : str
        Help text; also the entry of the docs.
    flags : tuple of str, optional
        Spellings besides ``--name-with-dashes``.
    kind : {"str", "int", "float", "bool", "path", "count", "memory", "label", "derivative"}
        How a word of the command line becomes a value.
    many : bool
        The option takes one or more words.
    choices : tuple of str, optional
        Words allowed.
    metavar : str, optional
        Stand-in for the value in the help text.
    alters : bool
        The setting changes results, so it is part of the configuration hash.

    Returns
    -------
    dataclasses.Field
    """
    meta = {"text": text, "flags": flags, "kind": kind, "many": many}
    meta |= {"choices": choices, "metavar": metavar, "alters": alters}
    return field(default=default, metadata=meta)


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "memory": (int,),
    "count": (int,),
    "float": (int, float),
    "bool": (bool,),
}


def checked(spec: Field, value: Any, where: str) -> Any:
    """Return a value in the form that its field holds.

    Paths become absolute, from the current folder; a default such as 'auto' is none.

    Raises
    ------
    UsageError
        The value has another type than the setting, or is none of its choices.
    """
    meta = spec.metadata
    if value is None and spec.default is None:
        return None
    if meta["many"]:
        if meta["kind"] == "derivative" and isinstance(value, Mapping):
            value = list(value.items())
        items = [value] if isinstance(value, (str, int, float)) else list(value)
        if meta["kind"] == "derivative":
            return tuple((str(name), os.path.abspath(path)) for name, path in items)
        return tuple(_one(spec, item, where) for item in items)
    return _one(spec, value, where)


def _one(spec: Field, value: Any, where: str) -> Any:
    """Check one word or number; a path becomes absolute, as nodes of the workflow work in other folders."""
    meta = spec.metadata
    if meta["kind"] == "memory" and isinstance(value, str):
        value = parse_memory(value, where)
    allowed = _KINDS.get(meta["kind"], (str, Path))
    if meta["kind"] == "label" and isinstance(value, int):
        value = str(value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise UsageError(f"{where}: {value!r} is not of the kind '{meta['kind']}'.", "See conform --help.")
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"{where}: '{value}' is none of {', '.join(meta['choices'])}.")
    if meta["kind"] == "float":
        return float(value)
    if meta["kind"] == "path" and value != spec.default:
        return os.path.abspath(value)
    return str(value) if isinstance(value, Path) else value


def parse_memory(text: str, where: str = "--mem") -> int:
    """Return bytes from text such as ``8G`` or ``16000`` (plain numbers are megabytes).

    Raises
    ------
    UsageError
        The text is not a positive number with an optional K, M, G or T.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    body = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = units.get(body[-1:], None)
    try:
        size = int(float(body[:-1] if unit else body) * (unit or units["M"]))
    except ValueError:
        size = 0
    if size <= 0:
        raise UsageError(
            f"{where}: '{text}' is not an amount of memory.", "Write for example 8G or 16000 (megabytes)."
        )
    return size
