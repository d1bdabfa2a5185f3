# SPDX-License-Identifier: Apache-2.0
"""Methods text of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_boilerplate(
    output_dir: Path,
    records: list[dict[str, Any]],
    *,
    version: str,
    inputs: list[dict[str, Any]] | None = None,
) -> tuple[Path, Path]:
    """Placeholder until the next commit."""
    raise NotImplementedError
