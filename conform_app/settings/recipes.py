# SPDX-License-Identifier: Apache-2.0
"""Recipes: the settings that one study needs, kept under its name.

A recipe is a TOML file with sections and names of the settings themselves, so that whoever can write a
``--config-file`` can write a recipe.  It lies below both: defaults, recipe, config file, command line.  Only
what belongs to a study may stand in it (how its events are read, how it is fitted, which study it is); where
files are and what the machine may use does not.
"""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from conform_app.errors import UsageError
from conform_app.settings.whole import Settings, merged

ALLOWED = {"inputs": ("task_label", "session_label"), "events": (), "model": (), "study": ()}
"""Sections of a recipe, with the names allowed (all where none is listed)."""

_FOLDER = "data/recipes"


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with CONFORM."""
    folder = files("conform_app").joinpath(_FOLDER)
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if _is_toml(entry.name))
    )


def _is_toml(name: str) -> bool:
    return name.endswith(".toml")


def find_recipe(name_or_file: str) -> dict[str, Any]:
    """Return the content of a recipe, by name (whatever its case) or from a file.

    Raises
    ------
    UsageError
        No recipe has the name and no file the path; it is not TOML; it holds a section or setting that is
        none of a recipe's.
    """
    known = {name.lower(): name for name in recipe_names()}
    if name_or_file.lower() in known:
        name = known[name_or_file.lower()]
        text = files("conform_app").joinpath(_FOLDER, f"{name}.toml").read_text(encoding="utf-8")
        where = f"Recipe {name}"
    else:
        where = f"Recipe {name_or_file}"
        try:
            text = Path(name_or_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--recipe {name_or_file} is neither a recipe nor a file that can be read.",
                f"Recipes are {', '.join(recipe_names())}; or give the path of a TOML file.",
            ) from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not valid TOML: {error}.", "Correct that line.") from error
    for section, values in content.items():
        if section not in ALLOWED:
            raise UsageError(
                f"{where}: unknown section [{section}].", f"Sections of a recipe are {', '.join(ALLOWED)}."
            )
        names = values if isinstance(values, dict) else {}
        wrong = [name for name in names if ALLOWED[section] and name not in ALLOWED[section]]
        if wrong:
            raise UsageError(
                f"{where}: '{wrong[0]}' in [{section}] is no part of a recipe.",
                f"There it may hold {', '.join(ALLOWED[section])}.",
            )
    return content


def with_recipe(base: Settings, name_or_file: str) -> Settings:
    """Return settings with those of a recipe put over the base.

    Raises
    ------
    UsageError
        See :func:`find_recipe`; also an unknown setting or a value that it cannot have.
    """
    content = find_recipe(name_or_file)
    name = content.get("study", {}).get("dataset_name")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9]+", str(name)):
        raise UsageError(
            f"Recipe {name_or_file}: dataset_name '{name}' is not made of letters and digits.", "Shorten it."
        )
    return merged(base, content, f"Recipe {name_or_file}")
