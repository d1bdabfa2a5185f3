# SPDX-License-Identifier: Apache-2.0
"""Docstrings of what users call: every parameter, what comes back, and the errors raised, as they are."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap

import pytest

import conform_app.errors

PACKAGES = ("glmsingle", "psn", "reliability", "surface", "mosaic", "braincorl")
ALSO = ("glmsingle.compat.GLM_single.fit", "psn.compat.psn", "psn.compat.perform_gsn")
ALSO += ("psn.legacy.psn_crossvalidated", "psn.parcels.from_labels", "psn.parcels.bisect")


def public():
    """Name and object of every public function, and of the public methods of public classes."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(f"conform_app.{package}")
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                ours = [base for base in thing.__mro__ if base.__module__.startswith("conform_app")]
                for key, value in (item for base in reversed(ours) for item in vars(base).items()):
                    value = getattr(value, "__func__", value)
                    if inspect.isfunction(value) and not key.startswith("_"):
                        found[f"{package}.{name}.{key}"] = value
            elif inspect.isfunction(thing):
                found[f"{package}.{name}"] = thing
    for path in ALSO:
        module, name = re.fullmatch(r"(.*?)\.([A-Z].*|[^.]*)", path).groups()
        thing = importlib.import_module(f"conform_app.{module}")
        for part in name.split("."):
            thing = getattr(thing, part)
        found[path] = thing
    return found


PUBLIC = public()
RECORDS = {
    f"{package}.{name}": getattr(importlib.import_module(f"conform_app.{package}"), name)
    for package in PACKAGES
    for name in importlib.import_module(f"conform_app.{package}").__all__
}
RECORDS = {name: thing for name, thing in RECORDS.items() if dataclasses.is_dataclass(thing)}


def sections(thing):
    """Lines of each numpydoc section."""
    lines = inspect.getdoc(thing).splitlines()
    out, current = {}, None
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch("-{3,}", following.strip()) and line.strip():
            current = out.setdefault(line.strip(), [])
        elif current is not None and not re.fullmatch("-{3,}", line.strip()):
            current.append(line)
    return out


def entries(lines):
    """Names that a section has entries for."""
    heads = [line.partition(" :")[0] for line in lines if line.strip() and not line.startswith(" ")]
    return [word.strip().lstrip("*") for head in heads for word in head.split(",")]


def raised(thing):
    """Our errors that the body itself raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None]
    names = {ast.unparse(call.func if isinstance(call, ast.Call) else call) for call in calls}
    return {name for name in names if hasattr(conform_app.errors, name)}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_true(name):
    thing = PUBLIC[name]
    found = sections(thing)
    signature = inspect.signature(thing)
    wanted = [p for p in signature.parameters if p not in ("self", "cls")]
    assert sorted(entries(found.get("Parameters", []))) == sorted(wanted)
    if wanted and signature.return_annotation not in (None, "None", inspect.Signature.empty):
        assert "Returns" in found or "Yields" in found
    assert raised(thing) <= set(entries(found.get("Raises", [])))


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_is_explained(name):
    found = sections(RECORDS[name])
    told = entries(found.get("Parameters", []) + found.get("Attributes", []))
    assert {f.name for f in dataclasses.fields(RECORDS[name])} - set(told) == set()


def test_everything_is_looked_at():
    assert len(PUBLIC) > 100
    assert {"mosaic.Collection.betas", "surface.VolumeToSurface.save"} <= set(PUBLIC)
    assert len(RECORDS) > 10
