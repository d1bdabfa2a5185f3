# SPDX-License-Identifier: Apache-2.0
"""The package holds what it needs, the tested set is complete, and the citation and the changes agree."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import subprocess
import tomllib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = ("features", "alignment")
# What torch brings on some platforms only; torch pins these itself.
LEFT_TO_TORCH = re.compile(r"^(nvidia|cuda|triton)\b")
# constraints.txt is the set of this Python; later ones need less of it.
PINNED_FOR = {"python_version": "3.11", "python_full_version": "3.11.7"}


def pins() -> dict[str, dict[str, Version]]:
    """constraints.txt: section ("run", "test", "build") -> name -> version."""
    found: dict[str, dict[str, Version]] = {}
    section = ""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# --- to (\w+)", line):
            section = heading.group(1)
            found[section] = {}
        elif line and not line.startswith("#"):
            name, exact, version = line.partition("==")
            assert exact, f"{line!r} is not an exact pin"
            assert name == canonicalize_name(name), f"{name} is not in its canonical spelling"
            found[section][name] = Version(version)
    return found


def all_pins() -> dict[str, Version]:
    return {name: version for section in pins().values() for name, version in section.items()}


def applies(requirement: Requirement, extras: Iterable[str], python: dict[str, str]) -> bool:
    """Whether it is asked for with any of the extras, by a Python given, or this one."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra, **python}) for extra in ("", *extras))


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that `requirements` need, directly or not, with the Python of the pins."""
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen or LEFT_TO_TORCH.match(key[0]):
            continue
        seen.add(key)
        for text in metadata.requires(wanted.name) or []:
            below = Requirement(text)
            if applies(below, wanted.extras, PINNED_FOR):
                if applies(below, wanted.extras, {}):
                    todo.append(below)
                else:  # not here: this Python has it built in
                    seen.add((canonicalize_name(below.name), frozenset()))
    return {name for name, _ in seen}


def newest_entry() -> str:
    """Version of the first entry of CHANGES.md."""
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading, "CHANGES.md has no entry"
    return heading.group(1)


def test_pins_are_sorted_and_said_once() -> None:
    for section, found in pins().items():
        assert list(found) == sorted(found), section
    assert sum(map(len, pins().values())) == len(all_pins())


@pytest.mark.parametrize("section", ["run", "test", "build"])
def test_pins_satisfy_what_the_project_accepts(section: str) -> None:
    wanted = {
        "run": PROJECT["dependencies"],
        "test": PROJECT["optional-dependencies"]["dev"],
        "build": PYPROJECT["build-system"]["requires"],
    }[section]
    for text in wanted:
        requirement = Requirement(text)
        version = pins()[section][canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} but {version} was tested"
        assert version.local is None


def test_pins_are_the_whole_tested_set_and_nothing_besides() -> None:
    run = closure(PROJECT["dependencies"])
    test = closure(PROJECT["optional-dependencies"]["dev"])
    assert run == set(pins()["run"])
    assert test - run == set(pins()["test"])


def test_pins_of_the_extras_are_what_they_need() -> None:
    wanted = [Requirement(t) for e in EXTRAS for t in PROJECT["optional-dependencies"][e]]
    encode = pins()["encode"]
    for requirement in wanted:
        assert requirement.specifier.contains(encode[canonicalize_name(requirement.name)])
    try:
        needed = closure(map(str, wanted))
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"the extras {' and '.join(EXTRAS)} are not installed ({error})")
    assert needed - set(pins()["run"]) - set(pins()["test"]) == set(encode)


def test_lower_bounds_are_given_for_every_dependency() -> None:
    for text in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        operators = {bound.operator for bound in Requirement(text).specifier}
        assert operators == {">="}, f"{text}: a lower bound and no more, so that users can upgrade"


def test_each_dependency_is_explained() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    optional = PROJECT["optional-dependencies"]
    extras = chain(*(optional[extra] for extra in optional.keys() - {"docs", "bench"}))
    named = [*PROJECT["dependencies"], *extras]
    assert explained == {Requirement(line).name for line in named}


def test_the_installed_package_holds_every_file() -> None:
    """A wheel that forgot a data file works in the checkout and fails at the user's."""
    try:
        installed = metadata.files("conform-app") or []
    except metadata.PackageNotFoundError:
        installed = []
    inside = {str(path) for path in installed}
    if not any(path.startswith("conform_app/") for path in inside):
        pytest.skip("CONFORM is not installed here other than as a checkout; .ci/run installs it")
    tracked = subprocess.run(
        ["git", "ls-files", "conform_app", "boilerplate"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    needed = {re.sub(r"^boilerplate/", "conform_app/boilerplate/", path) for path in tracked}
    assert needed - inside == set()
    assert not [path for path in inside if path.startswith(("tests/", "docs/", "benchmarks/"))]


def test_the_version_is_told_by_the_package() -> None:
    from conform_app import __version__

    assert Version(__version__)


def test_changes_open_with_the_version_to_come() -> None:
    assert newest_entry() == PYPROJECT["tool"]["hatch"]["version"]["fallback-version"]
    text = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    badges = set(re.findall(r"^- \*\*(\w+)\*\*", text, re.MULTILINE))
    assert badges
    assert badges <= {"New", "Change", "Fix", "Removal"}


def test_citation_file() -> None:
    """Fields of the Citation File Format 1.2.0 that it requires, and ours in step with the rest."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    citation = yaml.safe_load(text)
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["type"] == "software"
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in PROJECT["authors"]]
    assert citation["license"] == PROJECT["license"]
    # The policy: the citation names the version that CHANGES.md opens with; a date comes with the release.
    assert citation["version"] == newest_entry()
    unreleased = f"## {newest_entry()} (unreleased)" in (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    assert unreleased == ("date-released" not in citation)
