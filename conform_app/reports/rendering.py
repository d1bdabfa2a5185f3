# SPDX-License-Identifier: Apache-2.0
"""Fill a page's template: everything escaped, nothing that is undefined passes in silence; write it whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def render(template: str, **context: Any) -> str:
    """Return a page.

    Parameters
    ----------
    template : str
        File name of the template in this package.
    **context
        What it names.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("conform_app.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def replace_text(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, and nothing beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # gone already when all went well
