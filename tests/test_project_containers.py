# SPDX-License-Identifier: Apache-2.0
"""The recipes of the container, read without a container engine.

What only a build shows (that the image runs with a read-only root, no network and an unknown user) is
described in docs/containers.md.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def program(name: str) -> str:
    """A tool of the dev extra: beside the interpreter, or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed; it is in the dev extra"
    return found


def instructions() -> list[tuple[str, str]]:
    """Dockerfile as (instruction, rest), continuation lines joined, comments dropped."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest.split())) for word, _, rest in pairs]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage name -> its instructions; the last stage is called ''."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = "head"
    for word, rest in instructions():
        if word == "FROM":
            name = rest.partition(" AS ")[2]
        found.setdefault(name, []).append((word, rest))
    return found


def image_environment() -> dict[str, str]:
    pairs = [pair for word, rest in stages()[""] if word == "ENV" for pair in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def sections() -> dict[str, str]:
    """singularity.def: section -> its text; the header is ''."""
    parts = re.split(r"^%(\w+)\n", (ROOT / "singularity.def").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_hadolint_has_no_complaint() -> None:
    done = subprocess.run(
        [program("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_base_is_the_builders_choice() -> None:
    assert ("ARG", "BASE_IMAGE=debian:bookworm-slim") in stages()["head"]
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert set(bases) - set(stages()) == {"${BASE_IMAGE}"}


def test_the_image_starts_conform_as_an_ordinary_user() -> None:
    last = dict(stages()[""])
    assert json.loads(last["ENTRYPOINT"]) == ["conform"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"]), "a number, which every engine understands"


def test_the_image_holds_no_tools_and_no_history() -> None:
    commands = " ".join(rest for word, rest in [*stages()["python"], *stages()[""]] if word == "RUN")
    assert not re.search(r"\b(pip|gcc|build-essential|python3-venv|git|curl)\b", commands)
    assert "--no-install-recommends" in commands


def test_code_comes_after_the_heavy_layer() -> None:
    copied = [rest for word, rest in stages()["packages"] if word == "COPY"]
    assert copied == ["--from=requirements /src/requirements.txt ./"]
    last = [rest for word, rest in stages()[""] if word == "COPY"]
    assert [re.search(r"--from=(\w+)", rest).group(1) for rest in last] == ["packages", "templates", "app"]


def test_templates_are_fetched_again_only_when_what_fetches_them_changes() -> None:
    """Their stage has the few files that its command imports, and no others."""
    stage = stages()["templates"]
    assert stage[0] == ("FROM", "packages AS templates")
    copied = [source for word, rest in stage if word == "COPY" for source in rest.split()[:-1]]
    command = next(rest for word, rest in stage if word == "RUN")
    todo = [re.search(r"python -m (\S+)", command).group(1)]
    needed: set[str] = set()
    while todo:
        path = f"{todo.pop().replace('.', '/')}.py"
        if path not in needed:
            needed.add(path)
            for source, names in re.findall(
                r"^\s*from (conform_app[\w.]*) import (.+)$", (ROOT / path).read_text("utf-8"), re.MULTILINE
            ):
                package = (ROOT / source.replace(".", "/")).is_dir()
                todo += [f"{source}.{name.strip()}" for name in names.split(",")] if package else [source]
    assert set(copied) == needed


def test_the_build_context_has_what_is_copied() -> None:
    patterns = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
        if line and line[0] != "#"
    ]
    for word, rest in instructions():
        if word != "COPY" or "--from=" in rest:
            continue
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert not any(fnmatch.fnmatch(source, pattern) for pattern in patterns), source


def test_the_image_writes_under_tmp_only() -> None:
    environment = image_environment()
    for name in ("HOME", "MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "XDG_CACHE_HOME"):
        assert environment[name].startswith("/tmp"), name  # noqa: S108
    assert environment["TEMPLATEFLOW_HOME"].startswith("/opt/")
    assert environment["TEMPLATEFLOW_AUTOUPDATE"] == "0"
    for name in ("NO_ET", "NIPYPE_NO_ET", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE"):
        assert environment[name] == "1", name


@pytest.mark.parametrize("section", ["environment", "runscript", "test"])
def test_sections_of_the_recipe_are_shell(section: str) -> None:
    done = subprocess.run(
        ["sh", "-n"], input=sections()[section], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_recipe_is_thin_and_spython_reads_it() -> None:
    done = subprocess.run(
        [program("spython"), "recipe", str(ROOT / "singularity.def")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("FROM conform:latest")
    assert sections()["runscript"].split() == ["exec", "conform", '"$@"']
    assert not {"post", "setup", "files"} & sections().keys(), "everything is in the image already"


def test_the_recipe_sets_what_the_image_sets(tmp_path: Path) -> None:
    """Under Singularity the host's variables come in, so the recipe says them again, over anything."""
    hostile = {
        "PYTHONPATH": "/host",
        "MPLBACKEND": "TkAgg",
        "TEMPLATEFLOW_HOME": "/host",
        "TMPDIR": "/nowhere",
    }
    done = subprocess.run(
        ["sh", "-e", "-c", sections()["environment"] + "\nenv"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **hostile},
        capture_output=True,
        text=True,
        check=True,
    )
    inside = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert "PYTHONPATH" not in inside
    assert inside["PATH"].startswith("/opt/conform/bin:")
    per_user = {"MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "XDG_CACHE_HOME"}
    for name, value in image_environment().items():
        if name in per_user:
            assert inside[name].startswith("/tmp/conform-cache-"), name  # noqa: S108
        elif name == "CONFORM_DOCKER_TAG":
            assert name not in inside, "the outputs then name the .sif file"
        elif name not in ("PATH", "HOME", "USER", "LOGNAME"):  # these are the host's
            assert inside[name] == value, name
