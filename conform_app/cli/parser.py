# SPDX-License-Identifier: Apache-2.0
"""The command line, made from the dataclasses in :mod:`conform_app.settings`.

Values come in layers: the defaults of the fields, the recipe of a study (``--recipe``), the TOML file of
``--config-file``, the command line; each goes before those named earlier.  So the parser holds no default: an
option that is not given is absent.  Nothing heavy is imported here, and nothing is read but
the files that the arguments name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from conform_app import __version__
from conform_app.errors import UnknownLevelError, UsageError
from conform_app.settings import (
    ENTITY_LABELS,
    GROUPS,
    Settings,
    from_toml,
    merged,
    recipe_names,
    with_recipe,
)

LEVELS = ("participant", "group")

DESCRIPTION = """\
Single-trial fMRI responses from BIDS data and preprocessed derivatives: GLMsingle betas, PSN denoising, noise
ceilings, BIDS-derivatives, a visual report and the methods text."""

EPILOG = """\
examples:
  conform /data/ds /out participant --dry-run
  conform /data/ds /out participant --participant-label 01 02 -d fmriprep=/data/fmriprep
  conform /data/ds /out participant --output-spaces fsLR:den-91k --fit-level subject --nprocs 8 --mem 32G
  conform /data/ds /out participant --recipe BOLD5000
  conform /data/ds /out group -d conform_NSD=/results/nsd conform_BMD=/results/bmd

exit codes: 0 done; 1 a fit crashed; 16 invalid BIDS; 17 unknown level; 18 nothing selected; 64 usage;
65 data; 66 no input; 73 cannot write; 74 damaged file; 75 busy, try again; 127 missing program"""


class _Parser(argparse.ArgumentParser):
    """Raise our errors where argparse would exit with 2."""

    def error(self, message: str) -> NoReturn:
        """Raise a usage error, or that of an unknown analysis level."""
        if message.startswith("argument analysis_level"):
            raise UnknownLevelError(
                _sentence(message.removeprefix("argument analysis_level: ")),
                "The analysis level is 'participant' or 'group'.",
            )
        raise UsageError(_sentence(message), "See conform --help.")


def _sentence(message: str) -> str:
    """Begin with a capital and leave the rest: choices are spelled as they must be given."""
    return f"{message[:1].upper()}{message[1:]}."


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``conform``."""
    parser = _Parser(
        prog="conform",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "bids_dir", help="BIDS dataset (raw, with derivatives beside it; or a derivative dataset)"
    )
    parser.add_argument("output_dir", help="folder for the results, a BIDS-derivatives dataset")
    parser.add_argument(
        "analysis_level", choices=LEVELS, help="participant: each participant; group: all together"
    )
    parser.add_argument("--version", action="version", version=f"CONFORM {__version__}")
    parser.add_argument(
        "--config-file", metavar="FILE", help="TOML file with settings; the command line goes first"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME_OR_FILE",
        help=f"settings of a known study, below those of the config file: {', '.join(recipe_names())}, or a "
        "TOML file of one's own",
    )
    for name, cls in GROUPS.items():
        group = parser.add_argument_group(f"{name} ({cls.__doc__.rstrip('.').lower()})")
        for spec in fields(cls):
            _add(group, name, spec)
    return parser


def _add(group: argparse._ArgumentGroup, section: str, spec: Any) -> None:
    """Add the option of one field."""
    meta = spec.metadata
    flags = ["--" + spec.name.replace("_", "-"), *meta["flags"]]
    flags.sort(key=lambda flag: flag.startswith("--"))
    text = meta["text"]
    if meta["kind"] not in ("bool", "count") and "default:" not in text and spec.default not in (None, ()):
        shown = " ".join(map(str, spec.default)) if meta["many"] else spec.default
        text += f" (default: {shown})"
    kwargs: dict[str, Any] = {"dest": f"{section}.{spec.name}", "help": text}
    if meta["kind"] == "bool":
        kwargs["action"] = "store_true"
    elif meta["kind"] == "count":
        kwargs["action"] = "count"
    else:
        kwargs["type"] = {"int": int, "float": float}.get(meta["kind"], str)
        kwargs["choices"] = meta["choices"]
        kwargs["metavar"] = None if meta["choices"] else meta["metavar"]
        if meta["many"]:
            kwargs |= {"nargs": "+", "action": "extend"}
    group.add_argument(*flags, **kwargs)


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Return the settings that the arguments, and the TOML file they may name, ask for.

    Raises
    ------
    UnknownLevelError
        The analysis level is neither participant nor group.
    UsageError
        Any other mistake in the arguments or the TOML file.
    """
    given = vars(build_parser().parse_args(argv))
    base = Settings(
        bids_dir=Path(given.pop("bids_dir")).absolute(),
        output_dir=Path(given.pop("output_dir")).absolute(),
        analysis_level=given.pop("analysis_level"),
    )
    recipe = given.pop("recipe", None)
    if recipe is not None:
        base = with_recipe(base, recipe)
    config = given.pop("config_file", None)
    if config is not None:
        base = from_toml(Path(config), base)
    changes: dict[str, dict[str, Any]] = {}
    for dest, value in given.items():
        section, name = dest.split(".")
        if value is None:  # a counted flag that was not given
            continue
        if name in ENTITY_LABELS:
            value = read_labels(value, ENTITY_LABELS[name])
        elif name in ("derivatives", "stimuli"):
            value = read_derivatives(value, name)
        changes.setdefault(section, {})[name] = value
    return with_plain_labels(merged(base, changes, "command line"))


def read_labels(words: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Return labels from words, of which one alone may be a text file with a label a line."""
    if len(words) == 1 and Path(words[0]).is_file():
        lines = Path(words[0]).read_text(encoding="utf-8").splitlines()
        words = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not words:
            raise UsageError("The file of labels is empty.", "Write one label a line.")
    return tuple(dict.fromkeys(word.strip().removeprefix(prefix) for word in words))


def with_plain_labels(settings: Settings) -> Settings:
    """Return settings whose labels carry no entity prefix (those of a TOML file may)."""
    plain = {
        name: tuple(label.removeprefix(prefix) for label in getattr(settings.inputs, name))
        for name, prefix in ENTITY_LABELS.items()
    }
    return merged(settings, {"inputs": plain}, "labels")


def read_derivatives(words: Sequence[str], option: str = "derivatives") -> tuple[tuple[str, str], ...]:
    """Return (name, absolute path) pairs from ``NAME=PATH`` or ``PATH``, in the order given.

    Raises
    ------
    UsageError
        Two folders under one name, or a folder that does not exist.
    """
    pairs: dict[str, str] = {}
    for word in words:
        name, mark, path = word.partition("=")
        if not mark or "/" in name:
            name, path = Path(word).name, word
        if name in pairs:
            raise UsageError(
                f"--{option}: two folders are named '{name}'.", "Give each as NAME=PATH with its own NAME."
            )
        if not Path(path).is_dir():
            raise UsageError(f"--{option}: {path} is not a folder.", "Check the path.")
        pairs[name] = str(Path(path).absolute())
    return tuple(pairs.items())
