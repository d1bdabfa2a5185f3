# SPDX-License-Identifier: Apache-2.0
"""The pages that people read: code runs, names and options exist, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from conform_app.cli.parser import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.S | re.M)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for name, text in FENCED.findall(page.read_text(encoding="utf-8")) if name in languages]


def prose(page: Path) -> str:
    """A page without its blocks and words of code."""
    return re.sub(r"`[^`\n]+`", "", FENCED.sub("", page.read_text(encoding="utf-8")))


def test_the_quick_start_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for text in blocks(ROOT / "docs" / "python.md", "python"):
        exec(compile(text, "docs/python.md", "exec"), names)  # noqa: S102
    assert names["result"].type_d.betas.shape == (462, 96)
    assert names["fit"].denoised.shape == (462, 8)
    assert names["values"].shape == (10242,)
    assert len(names["rows"]) == 20
    assert names["accuracy"].r.mean() > 0.7
    assert "HRF" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_what_the_pages_import_is_there(page):
    for text in blocks(page, "python"):
        for line in re.findall(r"^from conform_app.*?(?:\([^)]*\)|$)", text, flags=re.M | re.S):
            [statement] = ast.parse(line).body
            module = importlib.import_module(statement.module)
            assert [n.name for n in statement.names if not hasattr(module, n.name)] == [], line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_options_in_the_pages_are_there(page):
    known = {flag for action in build_parser()._actions for flag in action.option_strings}
    commands = [text.replace("\\\n", " ") for text in blocks(page, "", "bash", "console")]
    lines = [line for text in commands for line in text.splitlines() if re.search(r"\bconform (?!:)", line)]
    words = [w for line in lines for w in re.findall(r"(?<=\s)--[a-z][\w-]*", line.partition(" conform")[2])]
    words += [word for text in re.findall(r"`(--[a-z][\w-]*)[^`\n]*`", page.read_text()) for word in [text]]
    # of other programs and of our own scripts
    others = {"--gpus", "--build-arg", "--wide", "--every", "--axes", "--whole", "--transformer", "--long"}
    others |= {"--subject-anatomical-reference", "--mode"}
    assert sorted(set(words) - known - others) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_nothing_is_taken_for_a_footnote(page):
    assert re.findall(r"(?<!\\)\[\^", prose(page)) == []


def test_every_page_is_in_the_contents():
    [listed] = re.findall(r"```\{toctree\}\n(.*?)```", (ROOT / "docs/index.md").read_text(), flags=re.S)
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {word for word in listed.split() if not word.startswith(":") and word != "1"} == pages
