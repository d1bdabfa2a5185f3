# SPDX-License-Identifier: Apache-2.0
"""Fill a page's template: everything escaped, nothing that is undefined passes in silence."""

from __future__ import annotations

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
