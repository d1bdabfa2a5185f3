# SPDX-License-Identifier: Apache-2.0
"""Every setting of CONFORM, once: command line, TOML file and docs are made from these dataclasses.

A setting is a dataclass field.  Its default is the field's default; its help text, flags and parser are the
field's metadata; its group is the section of the TOML file.  Fields marked ``alters`` change results: they
make up the configuration hash, which every output carries and which keeps results of two settings out of one
folder.
"""

from conform_app.settings.declare import parse_memory
from conform_app.settings.encoding import EncodeSettings
from conform_app.settings.groups import (
    ENTITY_LABELS,
    GROUPS,
    EventSettings,
    GroupSettings,
    InputSettings,
    ModelSettings,
    ResourceSettings,
    RunSettings,
    StudySettings,
)
from conform_app.settings.recipes import find_recipe, recipe_names, with_recipe
from conform_app.settings.whole import Settings, from_toml, merged, to_toml

__all__ = [
    "ENTITY_LABELS",
    "GROUPS",
    "EncodeSettings",
    "EventSettings",
    "GroupSettings",
    "InputSettings",
    "ModelSettings",
    "ResourceSettings",
    "RunSettings",
    "Settings",
    "StudySettings",
    "find_recipe",
    "from_toml",
    "merged",
    "parse_memory",
    "recipe_names",
    "to_toml",
    "with_recipe",
]
