# SPDX-License-Identifier: Apache-2.0
"""The page of all settings for the docs: ``python -m conform_app.cli.document > docs/settings.md``."""

from __future__ import annotations

from dataclasses import fields

from conform_app.errors import all_errors
from conform_app.settings import GROUPS

HEAD = """\
# Settings

Made from `conform_app/settings.py` by `python -m conform_app.cli.document > docs/settings.md`; do not edit.

A setting comes from the command line, else from the TOML file of `--config-file` (each group below is a
section of it), else from its default. Settings marked ● change results: they make up the configuration hash
that every output carries, and two values of them do not go into one output folder.
"""


def settings_page() -> str:
    """Return the page as Markdown."""
    lines = [HEAD]
    for name, cls in GROUPS.items():
        lines += [
            f"## [{name}]: {cls.__doc__.rstrip('.').lower()}",
            "",
            "| option | default | meaning |",
            "|---|---|---|",
        ]
        for spec in fields(cls):
            meta = spec.metadata
            flags = ", ".join(f"`{flag}`" for flag in ("--" + spec.name.replace("_", "-"), *meta["flags"]))
            default = " ".join(map(str, spec.default)) if meta["many"] else spec.default
            shown = "" if default in (None, "", False) else f"`{default}`"
            text = meta["text"].replace("%%", "%").replace("|", "\\|")
            choices = f" Choices: {', '.join(meta['choices'])}." if meta["choices"] else ""
            mark = " ●" if meta["alters"] else ""
            lines.append(f"| {flags}{mark} | {shown} | {text[0].upper()}{text[1:]}.{choices} |")
        lines.append("")
    lines += [
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | All requested fits and reports are done. |",
    ]
    lines += [f"| {cls.exit_code} | {cls.__doc__.splitlines()[0]} |" for cls in all_errors()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_page(), end="")
