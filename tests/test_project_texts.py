# SPDX-License-Identifier: Apache-2.0
"""What every file of the project keeps to, whoever wrote it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 450  # lines of a source file; the aim is 400

# Written so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:work|farm|root|Users)/|/home/(?!someone\b)\w+/|/opt/cv\b|/var/tmp/|/opt/wheels"
)
REGISTRY_HOSTS = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|deb\.debian\.org|registry\.npmjs\.org|"
    r"docker\.io|ghcr\.io|quay\.io|conda\.anaconda\.org)".replace(r"\.", r"[.]")
)
BINARY = {".gz", ".png", ".npz", ".npy", ".h5", ".hdf5", ".gii", ".nii", ".jpg", ".woff2", ".svg"}


def tracked() -> list[Path]:
    """Files under version control; all of the sources where there is none (an unpacked archive)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    rooms = ("conform_app", "tests", "benchmarks", "docs", "boilerplate")
    return [f for room in rooms for f in (ROOT / room).rglob("*") if f.is_file()] + list(ROOT.glob("*.*"))


FILES = tracked()
TEXTS = [file for file in FILES if file.suffix not in BINARY and file != Path(__file__)]
PYTHON = [file for file in FILES if file.suffix == ".py"]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for file in TEXTS:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    return found


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    assert not lines_with(MACHINE_PATHS)


def test_no_file_names_the_host_of_a_package_registry() -> None:
    """Where packages come from is the user's setting (a mirror, an index, a cache), not ours."""
    assert not lines_with(REGISTRY_HOSTS)


def test_the_patterns_find_what_they_should() -> None:
    for text in ("cd /" + "work/main", "see /root/x", "'/home/ada/data'", "in /var/tmp/x"):
        assert MACHINE_PATHS.search(text), text
    for text in ("-w /work", "https://x.org/work/y.html", "/data /out participant", "sub-01/work/"):
        assert not MACHINE_PATHS.search(text), text
    assert REGISTRY_HOSTS.search("https://py" + "pi.org/simple")


@pytest.mark.parametrize("file", PYTHON, ids=lambda f: str(f.relative_to(ROOT)))
def test_sources_open_with_their_licence(file: Path) -> None:
    head = file.read_text(encoding="utf-8").splitlines()[:2]
    assert "# SPDX-License-Identifier: Apache-2.0" in head


def test_sources_are_short_enough_to_read() -> None:
    long = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in PYTHON}
    assert {name: count for name, count in long.items() if count > LONGEST} == {}


def test_files_are_utf8_and_end_with_one_newline() -> None:
    wrong = []
    for file in TEXTS:
        text = file.read_bytes().decode("utf-8")
        if (
            text
            and (not text.endswith("\n") or "\r\n" in text)
            and "data" not in file.relative_to(ROOT).parts
        ):
            wrong.append(str(file.relative_to(ROOT)))
    assert not wrong
