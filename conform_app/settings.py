# SPDX-License-Identifier: Apache-2.0
"""Every setting of CONFORM, once: command line, TOML file and docs are made from these dataclasses.

A setting is a dataclass field.  Its default is the field's default; its help text, flags and parser are the
field's metadata; its group is the section of the TOML file.  Fields marked ``alters`` change results: they
make up the configuration hash, which every output carries and which keeps results of two settings out of one
folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from conform_app.errors import UsageError

ENTITY_LABELS = {
    "participant_label": "sub-",
    "session_label": "ses-",
    "task_label": "task-",
    "run_label": "run-",
}


def option(
    default: Any,
    text: str,
    *,
    flags: tuple[str, ...] = (),
    kind: str = "str",
    many: bool = False,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    alters: bool = False,
) -> Any:
    """Declare one setting: its default, its help text and how the command line reads it.

    Parameters
    ----------
    default : object
        Value when neither the TOML file nor the command line gives one.
    text : str
        Help text; also the entry of the docs.
    flags : tuple of str, optional
        Spellings besides ``--name-with-dashes``.
    kind : {"str", "int", "float", "bool", "path", "count", "memory", "label", "derivative"}
        How a word of the command line becomes a value.
    many : bool
        The option takes one or more words.
    choices : tuple of str, optional
        Words allowed.
    metavar : str, optional
        Stand-in for the value in the help text.
    alters : bool
        The setting changes results, so it is part of the configuration hash.

    Returns
    -------
    dataclasses.Field
    """
    meta = {"text": text, "flags": flags, "kind": kind, "many": many}
    meta |= {"choices": choices, "metavar": metavar, "alters": alters}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class InputSettings:
    """What to read."""

    participant_label: tuple[str, ...] = option(
        (),
        "participants, with or without 'sub-', or a text file with one label a line (default: all)",
        flags=("--participant_label", "--subject-label"),
        kind="label",
        many=True,
        metavar="LABEL",
    )
    session_label: tuple[str, ...] = option(
        (), "sessions (a file without the ses entity is kept)", kind="label", many=True, metavar="LABEL"
    )
    task_label: tuple[str, ...] = option(
        (), "tasks", flags=("-t", "--task-id"), kind="label", many=True, metavar="LABEL"
    )
    run_label: tuple[str, ...] = option((), "runs", kind="label", many=True, metavar="LABEL")
    bids_filter_file: str | None = option(
        None,
        "JSON file that narrows the search: {'bold': {'acquisition': 'x'}, 'events': {...}}; null means "
        "the entity must be absent, '*' that it must be there",
        kind="path",
        metavar="FILE",
    )
    derivatives: tuple[tuple[str, str], ...] = option(
        (),
        "folders with preprocessed data, as NAME=PATH or PATH (default: those in BIDS_DIR/derivatives)",
        flags=("-d",),
        kind="derivative",
        many=True,
        metavar="NAME=PATH",
    )
    output_spaces: tuple[str, ...] = option(
        (),
        "spaces to work in, as SPACE[:res-x][:den-y], for example MNI152NLin2009cAsym:res-2, T1w, "
        "fsaverage:den-10k, fsLR:den-91k (default: the best one that the preprocessed data come in)",
        many=True,
        metavar="SPACE",
    )
    bids_database_dir: str | None = option(
        None, "folder of a pybids database to use or to make", kind="path", metavar="DIR"
    )
    skip_bids_validation: bool = option(
        False,
        "do not run the BIDS validator on BIDS_DIR (it is run when it is installed)",
        flags=("--skip_bids_validation", "--skip_bids_validator"),
        kind="bool",
    )


@dataclass(frozen=True)
class EventSettings:
    """How events become trials."""

    stim_column: str | None = option(
        None,
        "column of the events files that names the stimulus; trials with one name are repeats of one "
        "condition (default: the first present of stim_id, stim_file, trial_type)",
        metavar="COLUMN",
        alters=True,
    )
    block_column: str | None = option(
        None,
        "column that numbers blocks: rows of one run with the same value become one trial, from the first "
        "onset to the last offset",
        metavar="COLUMN",
        alters=True,
    )
    ignore_trials: str | None = option(
        None,
        "rows of the events files to drop, as a pandas query, for example \"trial_type == 'blank'\"",
        metavar="QUERY",
        alters=True,
    )
    stim_duration: float | None = option(
        None,
        "duration of every trial in seconds (default: the duration column, trial by trial)",
        kind="float",
        metavar="SECONDS",
        alters=True,
    )


@dataclass(frozen=True)
class ModelSettings:
    """What is estimated."""

    fit_level: tuple[str, ...] = option(
        ("session",),
        "what one fit pools: 'session' (each session by itself), 'subject' (all sessions), or "
        "groups of sessions such as 01,02 03,04",
        many=True,
        metavar="LEVEL",
        alters=True,
    )
    confounds: tuple[str, ...] = option(
        ("none",),
        "confounds to model: none, motion6, motion12, motion24, names or patterns of columns "
        "(cosine*), or a_comp_cor:5 for the first five",
        many=True,
        metavar="COLUMN",
        alters=True,
    )
    hrf_model: str = option(
        "library",
        "haemodynamic response: chosen per voxel from the library of 20, or the canonical one",
        choices=("library", "canonical"),
        alters=True,
    )
    glm_types: tuple[str, ...] = option(
        ("D",),
        "single-trial betas to write: A (canonical HRF), B (fitted HRF), C (plus noise regressors), "
        "D (plus ridge). All are estimated and compared in the report",
        choices=("A", "B", "C", "D"),
        many=True,
    )
    no_repeats: str = option(
        "typeB",
        "when no condition repeats across runs: stop at type B, or use a fixed number of noise "
        "regressors and one fixed ridge fraction (see --fixed-pcs, --fixed-fraction)",
        choices=("typeB", "fixed", "error"),
        alters=True,
    )
    fixed_pcs: int = option(
        3, "noise regressors under --no-repeats fixed", kind="int", metavar="N", alters=True
    )
    fixed_fraction: float = option(
        0.5, "ridge fraction under --no-repeats fixed", kind="float", metavar="F", alters=True
    )
    n_pcs: int = option(10, "largest number of noise regressors tried", kind="int", metavar="N", alters=True)
    pcstop: float = option(
        1.05,
        "stop adding noise regressors when the gain is within this factor of the best",
        kind="float",
        metavar="X",
        alters=True,
    )
    fracs: tuple[float, ...] = option(
        (),
        "ridge fractions tried (default: 0.05 to 1 in steps of 0.05)",
        kind="float",
        many=True,
        metavar="F",
        alters=True,
    )
    psn: str = option(
        "cv",
        "PSN denoising of the condition averages: cross-validated cut, or a preset of the method, or off",
        choices=("off", "cv", "standard", "conservative", "aggressive", "compare", "wiener"),
        alters=True,
    )
    psn_level: str = option(
        "population",
        "the cross-validated cut is one for all voxels, or one for each",
        choices=("population", "unit"),
        alters=True,
    )
    random_seed: int = option(0, "seed of everything random", kind="int", metavar="N", alters=True)
    sloppy: bool = option(
        False, "TESTING ONLY: 5 ridge fractions and at most 2 noise regressors", kind="bool", alters=True
    )


@dataclass(frozen=True)
class ResourceSettings:
    """What the run may use."""

    nprocs: int | None = option(
        None,
        "processes at once (default: the CPUs that this process may use)",
        flags=("--nthreads", "--n-cpus", "--n_cpus"),
        kind="int",
        metavar="N",
    )
    omp_nthreads: int | None = option(
        None,
        "threads of one process (default: all CPUs when there is one fit, else 1)",
        kind="int",
        metavar="N",
    )
    mem: int | None = option(
        None,
        "memory to stay within, with K, M, G or T (default: 80 %% of what is free)",
        flags=("--mem-mb", "--mem_mb"),
        kind="memory",
        metavar="SIZE",
    )
    device: str = option(
        "auto", "where arrays are computed: cuda if there is one, else cpu", choices=("auto", "cpu", "cuda")
    )
    work_dir: str | None = option(
        None,
        "folder for intermediate results, kept for the next run (default: in the system's temporary folder)",
        flags=("-w",),
        kind="path",
        metavar="DIR",
    )
    use_plugin: str | None = option(
        None,
        "YAML file with the Nipype plugin to run with ({plugin: SLURM, plugin_args: {...}})",
        flags=("--nipype-plugin-file",),
        kind="path",
        metavar="FILE",
    )
    stop_on_first_crash: bool = option(False, "stop at the first fit that fails", kind="bool")


@dataclass(frozen=True)
class RunSettings:
    """What this call does."""

    dry_run: bool = option(
        False, "list the fits (sessions, runs, trials, conditions, repeats, memory) and stop", kind="bool"
    )
    reports_only: bool = option(
        False, "make the reports and the methods text anew, compute nothing", kind="bool"
    )
    overwrite: bool = option(
        False,
        "write over results of other settings in OUTPUT_DIR, and compute finished fits again",
        kind="bool",
    )
    save_residuals: bool = option(False, "also write the noise that PSN took out of each trial", kind="bool")
    verbose: int = option(0, "say more (-v: steps, -vv: details of Nipype)", flags=("-v",), kind="count")
    notrack: bool = option(
        False, "no effect: nothing is ever tracked (kept for cluster scripts)", kind="bool"
    )


GROUPS: dict[str, type] = {
    "inputs": InputSettings,
    "events": EventSettings,
    "model": ModelSettings,
    "resources": ResourceSettings,
    "run": RunSettings,
}


@dataclass(frozen=True)
class Settings:
    """All settings of one run.

    Attributes
    ----------
    bids_dir, output_dir : Path
        Absolute paths.
    analysis_level : {"participant", "group"}
    inputs, events, model, resources, run : dataclass
        The groups above.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = "participant"
    inputs: InputSettings = InputSettings()
    events: EventSettings = EventSettings()
    model: ModelSettings = ModelSettings()
    resources: ResourceSettings = ResourceSettings()
    run: RunSettings = RunSettings()

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


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "memory": (int,),
    "count": (int,),
    "float": (int, float),
    "bool": (bool,),
}


def checked(spec: Field, value: Any, where: str) -> Any:
    """Return a value in the form that its field holds.

    Raises
    ------
    UsageError
        The value has another type than the setting, or is none of its choices.
    """
    meta = spec.metadata
    if value is None and spec.default is None:
        return None
    if meta["many"]:
        if meta["kind"] == "derivative" and isinstance(value, Mapping):
            value = list(value.items())
        items = [value] if isinstance(value, (str, int, float)) else list(value)
        if meta["kind"] == "derivative":
            return tuple((str(name), str(path)) for name, path in items)
        return tuple(_one(meta, item, where) for item in items)
    return _one(meta, value, where)


def _one(meta: Mapping[str, Any], value: Any, where: str) -> Any:
    """Check one word or number."""
    if meta["kind"] == "memory" and isinstance(value, str):
        value = parse_memory(value, where)
    allowed = _KINDS.get(meta["kind"], (str, Path))
    if meta["kind"] == "label" and isinstance(value, int):
        value = str(value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise UsageError(f"{where}: {value!r} is not of the kind '{meta['kind']}'.", "See conform --help.")
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"{where}: '{value}' is none of {', '.join(meta['choices'])}.")
    if meta["kind"] == "float":
        return float(value)
    return str(value) if isinstance(value, Path) else value


def parse_memory(text: str, where: str = "--mem") -> int:
    """Return bytes from text such as ``8G`` or ``16000`` (plain numbers are megabytes).

    Raises
    ------
    UsageError
        The text is not a positive number with an optional K, M, G or T.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    body = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = units.get(body[-1:], None)
    try:
        size = int(float(body[:-1] if unit else body) * (unit or units["M"]))
    except ValueError:
        size = 0
    if size <= 0:
        raise UsageError(
            f"{where}: '{text}' is not an amount of memory.", "Write for example 8G or 16000 (megabytes)."
        )
    return size


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
