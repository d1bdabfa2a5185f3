# SPDX-License-Identifier: Apache-2.0
"""The house rule: imports run one way, and each room uses only the libraries it is meant to use.

The tables below are the rule; a new room or arrow is written here first.  Imports are read from the syntax
tree, those inside functions and under ``TYPE_CHECKING`` included, so nothing has to be importable.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "conform_app"

GROUND = {"errors", "devices"}
METHODS = {"glmsingle", "psn", "reliability", "surface", "mosaic", "braincorl"}
FLOORS = METHODS | {"images", "bids", "reports"}

# room -> the rooms it may import from.  conform_app itself (__version__) is open to all; "data" holds files.
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "devices": {"errors"},
    "settings": GROUND,
    "glmsingle": GROUND,
    "psn": GROUND,
    "reliability": GROUND,
    "surface": GROUND,
    "mosaic": GROUND | {"reliability"},  # a store has noise ceilings, and these have one definition
    "braincorl": GROUND,
    "images": GROUND | {"settings"},
    "bids": GROUND | {"settings", "images"},
    "reports": GROUND | {"settings", "images"},
    "collect": GROUND | {"settings", "images", "bids", "mosaic"},  # participants' outputs -> a collection
    "encode": GROUND | {"settings", "images", "bids", "mosaic", "braincorl", "collect"},  # -> models
    "interfaces": GROUND | {"settings", "collect", "encode"} | FLOORS,
    "workflows": GROUND | {"settings", "interfaces", "collect", "encode"} | FLOORS,
    "cli": GROUND | {"settings", "workflows", "interfaces", "collect", "encode"} | FLOORS,
    "__main__": {"cli"},
}

# What the method packages may use besides the standard library: they take and give arrays.
METHODS_USE = {"numpy", "scipy", "torch", "sklearn", "threadpoolctl"}

# Used where installed: networks that compute image features, and what reads videos and aligns participants.
EXTRAS = {"av", "combatlearn", "efficientnet_lite_pytorch", "fmralign", "huggingface_hub"}
EXTRAS |= {"open_clip", "timm", "torchvision", "transformers"}

# Files of a method package that use more: the shim for existing scripts writes the published files itself.
METHODS_WRITE = {
    "conform_app/glmsingle/compat_files.py": {"h5py"},
    # Transforms on disk: what `save` and `load` of the public classes write and read.
    "conform_app/surface/stored.py": {"h5py"},
    "conform_app/mosaic/video.py": {"av"},
    "conform_app/mosaic/harmonise.py": {"combatlearn"},
    "conform_app/braincorl/features.py": {"h5py"},
    "conform_app/braincorl/pictures.py": {"PIL", "av"},
    "conform_app/braincorl/networks.py": {"PIL"} | (EXTRAS - {"av", "fmralign"}),
    "conform_app/braincorl/alignment.py": {"fmralign"},
}

# Method packages that use more throughout: mosaic owns a store on disk, with tables.
METHODS_STORE = {
    "mosaic": {"zarr", "fsspec", "h5py", "pandas"},
    "braincorl": {"himalaya", "safetensors"},  # ridge; models on disk
}

# Libraries that stand behind some rooms only, so that they can be replaced there.
BEHIND: dict[str, set[str]] = {
    "bids": {"bids"},
    "nipype": {"interfaces", "workflows"},
    "nibabel": {"images", "reports"},
    "jinja2": {"reports"},
    "matplotlib": {"reports"},
    "nilearn": {"images", "reports", "surface"},
    "torch": METHODS | {"devices"},
    "sklearn": METHODS,
    "zarr": {"mosaic"},
    "fsspec": {"mosaic"},
    "himalaya": {"braincorl"},
    "safetensors": {"braincorl"},
}

# Libraries that a declared one brings and whose errors reach us through it.
COMES_WITH = {"sqlalchemy": "pybids", "PIL": "matplotlib"}

# Rooms that ``conform --help`` goes through, and what must not be imported at their top level.
LIGHT = {"", "errors", "settings", "cli", "__main__"}
HEAVY = {"torch", "nipype", "nilearn", "nibabel", "bids", "matplotlib", "sklearn", "scipy", "pandas"}
HELP_LOADS_NONE_OF = HEAVY | {"numpy", "h5py", "jinja2", "yaml"}


@dataclass(frozen=True)
class Import:
    """One imported module: where, what, and whether importing the file executes it."""

    file: Path
    line: int
    target: str
    at_top: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.target}"


def room_of(module: str) -> str:
    """``conform_app.bids.layout`` -> ``bids``; ``conform_app`` and ``conform_app._version`` -> ''."""
    parts = module.split(".")[1:]
    return "" if not parts or parts[0] == "_version" else parts[0]


def module_of(file: Path) -> str:
    """Dotted name of a source file of the package."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of(file: Path, tree: ast.AST | None = None, at_top: bool = True) -> Iterator[Import]:
    """Every import of a file, relative ones resolved."""
    tree = tree or ast.parse(file.read_text(encoding="utf-8"), str(file))
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, at_top)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_of(file).split(".")
                keep = len(package) - node.level + (file.name == "__init__.py")
                base = ".".join([*package[:keep], *([base] if base else [])])
            # "from conform_app import bids" names a room, "from conform_app.bids import find_fits" does not
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}" if base == PACKAGE else base, at_top)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(file, node, at_top and not inside and not is_type_checking(node))


SOURCES = sorted(f for f in (ROOT / PACKAGE).rglob("*.py") if f.name != "_version.py")
IMPORTS = [found for file in SOURCES for found in imports_of(file)]


def third_party(found: Import) -> str | None:
    """Top-level name of an imported library, None for our own and the standard library's."""
    top = found.target.split(".")[0]
    return None if top == PACKAGE or top in sys.stdlib_module_names else top


def test_every_room_is_in_the_table() -> None:
    rooms = {room_of(module_of(file)) for file in SOURCES}
    assert rooms <= MAY_IMPORT.keys()
    assert {"errors", "settings", "cli", "workflows", "interfaces"} <= rooms


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        free = [room for room, below in left.items() if below <= set(order)]
        assert free, f"these rooms import each other: {sorted(left)}"
        order += free
        left = {room: below for room, below in left.items() if room not in free}


def test_imports_between_rooms_run_one_way() -> None:
    wrong = []
    for found in IMPORTS:
        if found.target.split(".")[0] != PACKAGE:
            continue
        here, there = room_of(module_of(found.file)), room_of(found.target)
        if there.startswith("__") or there in ("", here):
            continue
        if there not in MAY_IMPORT[here]:
            wrong.append(f"{found}: {here or PACKAGE} may import {sorted(MAY_IMPORT[here])}")
    assert not wrong, "\n".join(wrong)


def test_method_packages_use_only_numeric_libraries() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if room_of(module_of(found.file)) in METHODS
        and third_party(found)
        not in METHODS_USE
        | {None}
        | METHODS_WRITE.get(str(found.file.relative_to(ROOT)), set())
        | METHODS_STORE.get(room_of(module_of(found.file)), set())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", sorted(BEHIND))
def test_libraries_stand_behind_their_rooms(library: str) -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if third_party(found) == library and room_of(module_of(found.file)) not in BEHIND[library]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_library_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {line.split()[0].lower().replace("_", "-") for line in project["dependencies"]}
    installed = packages_distributions()
    wrong = []
    for found in IMPORTS:
        name = third_party(found)
        if name is None or name in EXTRAS or COMES_WITH.get(name) in declared:
            continue
        distributions = {d.lower().replace("_", "-") for d in installed.get(name, [name])}
        if not distributions & declared:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_the_face_imports_nothing_heavy_at_its_top() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_top and room_of(module_of(found.file)) in LIGHT and third_party(found) in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_load_nothing_heavy(flag: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", PACKAGE, flag],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {row.rpartition("|")[2].strip().split(".")[0] for row in rows}
    assert PACKAGE in loaded
    assert not loaded & HELP_LOADS_NONE_OF
    assert not list(tmp_path.iterdir()), f"conform {flag} left files behind"


def test_the_reader_of_imports_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is worth what its reader sees: every way of writing an import, in an invented package."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / PACKAGE / "bids" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import os, torch.nn\n"
        "from conform_app import images, errors\n"
        "from . import layout\n"
        "from ..images.grid import Grid\n"
        "if TYPE_CHECKING:\n    import pandas\n"
        "try:\n    import yaml\nexcept ImportError:\n    pass\n"
        "class Reader:\n    import h5py\n"
        "def read():\n    from conform_app.workflows.fit import init\n"
    )
    seen = {(found.target, found.at_top) for found in imports_of(file)}
    assert seen == {
        ("os", True),
        ("torch.nn", True),
        ("conform_app.images", True),
        ("conform_app.errors", True),
        ("conform_app.bids", True),
        ("conform_app.images.grid", True),
        ("pandas", False),
        ("yaml", True),
        ("h5py", True),
        ("conform_app.workflows.fit", False),
    }
    assert [room_of(found.target) for found in imports_of(file)].count("workflows") == 1
