# SPDX-License-Identifier: Apache-2.0
"""All settings of one run: put together from layers, hashed, written as TOML and read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from conform_app.errors import UsageError
from conform_app.settings.declare import checked
from conform_app.settings.encoding import EncodeSettings
from conform_app.settings.groups import (
    GROUPS,
    EventSettings,
    GroupSettings,
    InputSettings,
    ModelSettings,
    ResourceSettings,
    RunSettings,
    StudySettings,
)


@dataclass(frozen=True)
class Settings:
    """All settings of one run.

    Attributes
    ----------
    bids_dir, output_dir : Path
        Absolute paths.
    analysis_level : {"participant", "group"}
    inputs, events, model, study, group, encode, resources, run : dataclass
        The groups above.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = "participant"
    inputs: InputSettings = field(default_factory=InputSettings)
    events: EventSettings = field(default_factory=EventSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    study: StudySettings = field(default_factory=StudySettings)
    group: GroupSettings = field(default_factory=GroupSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def altering(self) -> dict[str, dict[str, Any]]:
        """Return the settings that change results, by group (JSON types)."""
        groups = {}
        for name, cls in GROUPS.items():
            values = _plain(asdict(getattr(self, name)))
            groups[name] = {f.name: values[f.name] for f in fields(cls) if f.metadata["alters"]}
        return {name: values for name, values in groups.items() if values}

    def digest(self) -> str:
        """Return the configuration hash: 12 hexadecimal digits of BLAKE2b over :meth:`altering`."""
        text = json.dumps(self.altering(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as nested dictionaries without ``None`` (TOML has none)."""
        out: dict[str, Any] = {
            "bids_dir": str(self.bids_dir),
            "output_dir": str(self.output_dir),
            "analysis_level": self.analysis_level,
        }
        for name in GROUPS:
            values = _plain(asdict(getattr(self, name)))
            out[name] = {k: v for k, v in values.items() if v is not None}
        return out


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with tuples as lists, as JSON and TOML have them."""
    return json.loads(json.dumps(values))


def merged(base: Settings, changes: Mapping[str, Mapping[str, Any]], origin: str) -> Settings:
    """Return settings with some values replaced, checked against their declaration.

    Parameters
    ----------
    base : Settings
    changes : mapping of group to mapping of name to value
        As read from a TOML file or the command line.
    origin : str
        Where the values come from, for error messages.

    Raises
    ------
    UsageError
        An unknown group or name, a value of another type or not among the choices.
    """
    for group, values in changes.items():
        if group not in GROUPS:
            raise UsageError(
                f"{origin}: unknown section [{group}].", f"Sections are {', '.join(GROUPS)}; see --help."
            )
        if not isinstance(values, Mapping):
            raise UsageError(
                f"{origin}: [{group}] is not a section.", f"Write it as [{group}] with its settings below."
            )
        known = {f.name: f for f in fields(GROUPS[group])}
        new = {}
        for name, value in values.items():
            if name not in known:
                raise UsageError(
                    f"{origin}: unknown setting '{name}' in [{group}].", f"Known: {', '.join(known)}."
                )
            new[name] = checked(known[name], value, f"{origin}: {name}")
        base = replace(base, **{group: replace(getattr(base, group), **new)})
    return base


def from_toml(path: Path, base: Settings) -> Settings:
    """Return settings with the values of a TOML file put over the base.

    Raises
    ------
    UsageError
        The file cannot be read or parsed, or holds an unknown setting.
    """
    import tomllib

    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"Config file {path} cannot be read ({error.strerror}).", "Check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Config file {path} is not valid TOML: {error}.", "Correct that line.") from error
    groups = {k: v for k, v in content.items() if k not in ("bids_dir", "output_dir", "analysis_level")}
    return merged(base, groups, f"Config file {path}")


def to_toml(settings: Settings) -> str:
    """Return the settings as TOML text, which ``--config-file`` takes again."""
    import tomli_w

    return tomli_w.dumps(settings.to_dict())
