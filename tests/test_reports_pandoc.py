# SPDX-License-Identifier: Apache-2.0
"""Methods text as HTML and LaTeX where pandoc is there, and nothing lost where it is not."""

import re
import shutil

import pytest

from conform_app.reports.pandoc import convert_text


@pytest.fixture
def text(tmp_path):
    path, references = tmp_path / "CITATION.md", tmp_path / "CITATION.bib"
    path.write_text("# Methods\n\nAs in @someone.\n", encoding="utf-8")
    references.write_text(
        "@article{someone, author = {Doe, Jane}, title = {A title}, year = {2020}}\n", encoding="utf-8"
    )
    return path, references


def test_without_pandoc_nothing_is_made(text, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert convert_text(*text) == []


def test_failure_of_pandoc_is_no_failure_of_the_run(text, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "false")
    assert convert_text(*text) == []
    assert sorted(p.name for p in text[0].parent.iterdir()) == ["CITATION.bib", "CITATION.md"]


@pytest.mark.skipif(shutil.which("pandoc") is None, reason="pandoc is not installed")
def test_citations_are_resolved(text):
    html, tex = convert_text(*text)
    assert re.search(r"Doe.*2020", html.read_text(encoding="utf-8"), re.DOTALL)
    assert "Doe" in tex.read_text(encoding="utf-8")
