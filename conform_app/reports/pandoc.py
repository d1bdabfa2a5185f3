# SPDX-License-Identifier: Apache-2.0
"""The methods text as HTML and LaTeX, where pandoc is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

LIMIT_S = 60


def convert_text(text: Path, references: Path) -> list[Path]:
    """Convert the methods text with its citations resolved.

    Parameters
    ----------
    text, references : Path
        Markdown with pandoc citations, and BibTeX.

    Returns
    -------
    list of Path
        ``CITATION.html`` and ``CITATION.tex`` beside the text; empty without pandoc, or where it fails: the
        Markdown is what counts.
    """
    program = shutil.which("pandoc")
    made = []
    for suffix in (".html", ".tex") if program else ():
        target = text.with_suffix(suffix)
        part = target.with_name(f".{target.stem}.{os.getpid()}{suffix}")
        command = [program, "--standalone", "--citeproc", "--bibliography", str(references)]
        command += ["--metadata", "pagetitle=Methods", "--output", str(part), str(text)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return made
        if done.returncode == 0:
            os.replace(part, target)
            made.append(target)
    return made
