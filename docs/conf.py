# SPDX-License-Identifier: Apache-2.0
"""Sphinx: ``pip install ".[docs]" && sphinx-build docs docs/_build``."""

project = "CONFORM"
copyright = "The CONFORM developers"  # noqa: A001
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
myst_heading_anchors = 3
