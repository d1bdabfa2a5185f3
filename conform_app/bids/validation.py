# SPDX-License-Identifier: Apache-2.0
"""The BIDS validator, where it is installed: its errors stop a run, its absence does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from conform_app.bids.layout import is_derivative, read_description
from conform_app.errors import InvalidDatasetError

LIMIT_S = 600


def find_validator() -> str | None:
    """Return the path of ``bids-validator-deno``: on PATH, or beside the running Python."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    return shutil.which("bids-validator-deno") or (str(beside) if beside.is_file() else None)


def validate_dataset(bids_dir: Path) -> list[str]:
    """Validate a raw dataset.

    Parameters
    ----------
    bids_dir : Path

    Returns
    -------
    list of str
        What the user should know when nothing stops the run.

    Raises
    ------
    InvalidDatasetError
        The validator finds errors.
    """
    if is_derivative(read_description(bids_dir)):
        return []
    program = find_validator()
    if program is None:
        return ["bids-validator-deno is not installed; the dataset was not validated."]
    command = [program, "--json", "--ignoreWarnings", "--ignoreNiftiHeaders", str(bids_dir)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError, KeyError) as error:
        return [f"The BIDS validator gave no answer ({type(error).__name__}); the dataset was not validated."]
    errors = [issue for issue in issues if issue.get("severity") == "error"]
    if not errors:
        return []
    kinds = list(dict.fromkeys(f"{e.get('code')} ({e.get('location', '?')})" for e in errors))
    more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
    raise InvalidDatasetError(
        f"{bids_dir} is not valid BIDS: {'; '.join(kinds[:3])}{more}.",
        "Correct the dataset, or go on as it is with --skip-bids-validation.",
    )
