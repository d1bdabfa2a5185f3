# SPDX-License-Identifier: Apache-2.0
"""What goes into the collection for each participant, decided before anything is written.

A plan is a JSON file and a table of trials; the steps that write participants read nothing else, so that they
can run anywhere, in any order, at the same time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.bids.outputs import FitOutput, Site
from conform_app.bids.pooling import Member, Pool, method_hash, method_of
from conform_app.bids.provenance import write_json, write_tsv
from conform_app.collect.given import (
    check_vectors,
    features_of,
    hash_stimuli,
    read_aliases,
    read_features,
    read_split,
    unmatched,
    without_features,
)
from conform_app.errors import DataError, UsageError
from conform_app.settings import GroupSettings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Unit:
    """One fit of a participant.

    Attributes
    ----------
    name : str
        The fit's name without participant and space.
    betas : tuple of str
        Paths.
    own_statistics : bool
        Scale by all its trials: it has no train trial.
    psn : tuple of str
        Paths of the denoised averages; empty when there are none.
    conditions : tuple of str
        Stimulus of each average.
    n_repeats : tuple of int
        Trials of each average.
    psn_type : str
        Type of the betas that the averages are made of.
    """

    name: str
    betas: tuple[str, ...]
    own_statistics: bool
    psn: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    n_repeats: tuple[int, ...] = ()
    psn_type: str = ""


@dataclass(frozen=True)
class ParticipantPlan:
    """One participant of a collection.

    Attributes
    ----------
    key, dataset, label : str
    dataset_id : str
        Tells two datasets of one name apart.
    store : dict
        Arguments of ``Collection.create``: path, space, n_vertices, dtype, configuration.
    trials_file : str
        Table of trials, in the order of the units' betas.
    units : tuple of Unit
    attributes, configuration : dict
    sources : tuple of str
    inputs : str
        Hash of what goes in: another one means that the participant has changed.
    replace : bool
        Whether a changed participant may replace the one that is there.
    scale_averages : bool
        Whether denoised averages are put on the scale of the betas.
    """

    key: str
    dataset: str
    label: str
    dataset_id: str
    store: dict[str, Any]
    trials_file: str
    units: tuple[Unit, ...]
    attributes: dict[str, Any]
    configuration: dict[str, Any]
    sources: tuple[str, ...]
    inputs: str
    replace: bool
    scale_averages: bool = True


@dataclass
class Gathered:
    """All trial tables, phases filled in, and what was noticed.

    Attributes
    ----------
    frames : dict of str to DataFrame
        By participant: ``stimulus``, ``alias``, ``phase``, ``unit``, ``session``, ``run``, ``onset``,
        ``duration``, ``trial_type``, ``task`` and, where the files were given, ``sha256``.
    features : dict of str to ndarray
    movies : dict of (str, str) to list of str
        Frame hashes by dataset and stimulus, where movies were given as folders of frames.
    account : list of str
    warnings : list of str
    """

    frames: dict[str, pd.DataFrame]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    movies: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    account: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def gather_trials(pool: Pool, settings: GroupSettings) -> Gathered:
    """Read every trial table and give each trial a stimulus and a phase.

    Raises
    ------
    NoInputError, DataError, UsageError
        Of the files that the user names.
    """
    aliases, given = read_aliases(settings.aliases), read_split(settings.split)
    out = Gathered({})
    if settings.features is not None:
        out.features = read_features(settings.features)
        check_vectors(settings.features, out.features)
    shown: dict[str, set[str]] = {}
    stimuli: dict[str, set[tuple[str, str]]] = {}
    for member in pool.members:
        fits = member.fits or member.tables
        if fits:
            frame = out.frames[member.key] = _frame(member, fits, aliases, given)
            names = as_shown(frame)
            shown.setdefault(member.participant.site.name, set()).update(names)
            pairs = zip(names, frame["stimulus"], strict=True)
            stimuli.setdefault(member.participant.site.name, set()).update(pairs)
    out.warnings += unmatched("aliases", aliases, shown) + unmatched("split", given, shown)
    if settings.features is not None:
        out.warnings += without_features(settings.features, out.features, stimuli)
    by_site: dict[str, list[Member]] = {}
    for member in pool.members:
        if member.key in out.frames:
            by_site.setdefault(member.participant.site.name, []).append(member)
    folders = dict(settings.stimuli)
    unknown = sorted(set(folders) - set(by_site))
    if unknown:
        raise UsageError(
            f"--stimuli names the dataset {unknown[0]}, which is not here.", f"Here are {', '.join(by_site)}."
        )
    for name, members in by_site.items():
        frames = [out.frames[member.key] for member in members]
        if name in folders:
            _add_hashes(name, folders[name], frames, out)
        _fill_phases(name, members, out, settings)
    return out


def _frame(
    member: Member, fits: Sequence[FitOutput], aliases: Mapping[tuple[str, str], str],
    given: Mapping[tuple[str, str], str],
) -> pd.DataFrame:  # fmt: skip
    """Trials of one participant over its fits."""
    import pandas as pd

    dataset = member.participant.site.name
    parts = []
    for fit in fits:
        table = fit.trials()
        stim = table["stim_id"].tolist()
        own = table["split"].tolist() if "split" in table else ["n/a"] * len(table)
        sessions = fit.fit["sessions"]
        session = (
            table["session"] if "session" in table else [sessions[0] if sessions else "n/a"] * len(table)
        )
        columns = {
            "stimulus": [aliases.get((dataset, name), name) for name in stim],
            "alias": [name if (dataset, name) in aliases else "n/a" for name in stim],
            "phase": [given.get((dataset, n), p) for n, p in zip(stim, own, strict=True)],
            "unit": unit_name(fit),
            "task": table["task"] if "task" in table else fit.fit["task"],
            "session": session,
            "run": table["run"],
            "onset": pd.to_numeric(table["onset"], errors="coerce"),
            "duration": pd.to_numeric(table.get("duration", pd.Series(np.nan, table.index)), errors="coerce"),
            "trial_type": table.get("trial_type", pd.Series("n/a", table.index)),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def as_shown(frame: pd.DataFrame) -> list[str]:
    """Stimulus of each trial as the events name it."""
    return [a if a != "n/a" else s for a, s in zip(frame["alias"], frame["stimulus"], strict=True)]


def unit_name(fit: FitOutput) -> str:
    """``ses-01_task-x``: the fit's name without what is the same for all."""
    parts = [
        part for part in fit.name.split("_") if part.partition("-")[0] not in ("sub", "space", "res", "den")
    ]
    return "_".join(parts)


def _add_hashes(name: str, folder: str, frames: Sequence[pd.DataFrame], out: Gathered) -> None:
    """Add content hashes of the stimulus files."""
    names = {}  # as in the events -> as in the collection
    for frame in frames:
        for alias, stim in zip(frame["alias"], frame["stimulus"], strict=True):
            names[alias if alias != "n/a" else stim] = stim
    wanted = set(names)
    contents = hash_stimuli(folder, sorted(wanted))
    found = contents.hashes
    out.movies.update({(name, names[shown]): its for shown, its in contents.frames.items()})
    for frame in frames:
        frame["sha256"] = [found.get(stim, "n/a") for stim in as_shown(frame)]
    if contents.unread:
        out.warnings.append(
            f"{name}: {contents.unread} videos are known by their files only, not by their frames: cuts "
            "of one recording are not found. Install PyAV (pip install av), or give folders of frames."
        )
    if len(found) < len(wanted):
        first = sorted(wanted - set(found))[0]
        out.warnings.append(
            f"{name}: {len(wanted) - len(found)} of {len(wanted)} stimuli have no file in {folder}, for "
            f"instance {first}; they are known by name only."
        )


def _fill_phases(name: str, members: Sequence[Member], out: Gathered, settings: GroupSettings) -> None:
    """Give a dataset without a split one, the same for all of its participants."""
    import pandas as pd

    from conform_app.mosaic import own_split

    frames = [out.frames[member.key] for member in members]
    table = pd.concat(
        [f.assign(participant=m.key) for f, m in zip(frames, members, strict=True)], ignore_index=True
    )
    empty = (table["phase"] == "n/a").to_numpy()
    if not empty.any():
        return
    features = features_of(name, sorted(set(table["stimulus"])), out.features)
    study = _study(members)
    rule, listed = settings.split_rule, study.get("own_split_list")
    if rule == "auto":
        rule = str(study.get("own_split_rule") or "stimulus")
    where = f" The list of its test set is {listed}: give it with --split." if listed else ""
    try:
        made = own_split(table[empty], rule=rule, embeddings=features or None)
    except DataError as error:
        if rule == "farthest":  # features are missing: the user can help
            raise DataError(
                f"{name}: {error.message}", "Give --features, or another --split-rule."
            ) from error
        if rule == "shared":
            raise DataError(
                f"{name}: its test set are the stimuli that several participants saw, but of "
                f"{len(members)} participant{'s' * (len(members) != 1)} here none or all are shared.",
                "Merge more of its participants at once, or choose another --split-rule." + where,
            ) from error
        made = np.full(int(empty.sum()), "train")
        out.warnings.append(f"{name} is too small for a test set by the rule '{rule}': all is train.{where}")
    if where and rule != "shared":
        out.warnings.append(f"{name} has been given a split by the rule '{rule}', not its own.{where}")
    table.loc[empty, "phase"] = made
    start = 0
    for frame in frames:
        frame["phase"] = table["phase"].to_numpy()[start : start + len(frame)]
        start += len(frame)
    n_test = len(set(table["stimulus"][table["phase"] == "test"]))
    if not n_test:
        return
    whole = "has no split of its own" if empty.all() else f"has no split for {int(empty.sum())} trials"
    out.account.append(
        f"{name} {whole}: by the rule '{rule}' {n_test} of {len(set(table['stimulus']))} stimuli are test."
    )


def _study(members: Sequence[Member]) -> dict[str, Any]:
    """What the records say of the study; of several answers the first."""
    found: dict[str, Any] = {}
    for member in members:
        for fit in member.participant.fits:
            found = {**fit.record.get("study", {}), **found}
    return found


def make_plans(
    pool: Pool, gathered: Gathered, settings: GroupSettings, store: Path, folder: Path, *, replace: bool
) -> list[ParticipantPlan]:
    """Write the plan of every participant whose betas are merged, and return them.

    Parameters
    ----------
    pool : Pool
    gathered : Gathered
    settings : GroupSettings
    store : Path
        Of the collection.
    folder : Path
        For the plans.
    replace : bool
        Whether participants that have changed may replace those that are there.
    """
    plans = []
    for member in pool.merged:
        frame = gathered.frames[member.key]
        method = method_of(member)
        configuration = {"space": str(pool.space), **({"grid": pool.grid} if pool.grid else {})}
        if settings.pool == "compatible":
            configuration["method"] = method_hash(method)
        units = tuple(_unit(member, fit, frame) for fit in member.fits)
        trials_file = folder / f"{member.key}.tsv"
        write_tsv(trials_file, {str(name): frame[name].tolist() for name in frame.columns})
        plan = ParticipantPlan(
            key=member.key,
            dataset=member.participant.site.name,
            label=member.participant.label,
            dataset_id=dataset_id(member.participant.site),
            store={
                "path": str(store),
                "space": str(pool.space).replace(":", "_"),
                "n_vertices": pool.reference["n_points"],
                "dtype": settings.beta_dtype,
                "configuration": {**configuration, **_reference(pool, settings)},
            },
            trials_file=str(trials_file),
            units=units,
            attributes=_attributes(member, method),
            configuration={**configuration, **_reference(pool, settings)},
            sources=tuple(f"{member.participant.site.name}:{fit.name}" for fit in member.fits),
            inputs=_inputs(units, trials_file, f"{settings.beta_dtype} {settings.average_scale}"),
            replace=replace,
            scale_averages=settings.average_scale == "z",
        )
        write_json(folder / f"{member.key}.json", asdict(plan))
        plans.append(plan)
    return plans


def _reference(pool: Pool, settings: GroupSettings) -> dict[str, Any]:
    """What the collection remembers, so that later participants are held to it."""
    if settings.pool != "compatible":
        return {}
    return {
        name: pool.reference[name]
        for name in ("version", "preprocessing", "settings")
        if name in pool.reference
    }


def read_plan(path: Path) -> ParticipantPlan:
    """Read a plan written by :func:`make_plans`."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    units = tuple(
        Unit(**{k: tuple(v) if isinstance(v, list) else v for k, v in u.items()}) for u in content["units"]
    )
    return ParticipantPlan(**{**content, "units": units, "sources": tuple(content["sources"])})


def dataset_id(site: Site) -> str:
    """What tells a dataset from another of the same short name: its own name and where it came from."""
    links = [str(s.get("DOI") or s.get("URL") or "") for s in site.description.get("SourceDatasets") or []]
    return " ".join([str(site.description.get("Name", "")), *filter(None, links)]).strip()


def _unit(member: Member, fit: FitOutput, frame: pd.DataFrame) -> Unit:
    name = unit_name(fit)
    phases = frame["phase"][frame["unit"] == name]
    psn, conditions, repeats = fit.files("psn"), (), ()
    if psn and all(path.is_file() for path in psn):
        columns = fit.record.get("plan", {}).get("trials", {})
        stimuli: dict[int, str] = {}
        its = frame["stimulus"][frame["unit"] == name].tolist()
        for number, stim in zip(columns.get("condition", []), its, strict=False):
            stimuli.setdefault(number, stim)
        conditions = tuple(stimuli[number] for number in sorted(stimuli))
        repeats = tuple(int(n) for n in np.bincount(columns.get("condition", [0])))
    return Unit(
        name,
        tuple(str(path) for path in fit.files(f"betas_type{member.beta_type}")),
        not (phases == "train").any(),
        tuple(map(str, psn)) if conditions else (),
        conditions,
        repeats if conditions else (),
        str((fit.record.get("choices", {}).get("psn") or {}).get("glm_type", "")),
    )


def _attributes(member: Member, method: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars kept with the participant."""
    fit = member.fits[0]
    study, person = fit.record.get("study", {}), fit.fit.get("participant", {})
    program, version = fit.site.preprocessing
    found: dict[str, Any] = {
        "long_name": study.get("dataset_long_name", fit.site.name),
        "status": member.status,
        "beta_type": member.beta_type,
        "preprocessing_pipeline": f"{program} {version}".strip() or "unknown",
        "beta_pipeline": f"CONFORM {fit.version}, GLMsingle type {member.beta_type}",
        "method": method_hash(dict(method)),
        "configuration_hash": fit.record.get("digest", ""),
        "visual_angle": study.get("visual_angle"),
        "publication_url": study.get("publication_url"),
        "github_url": study.get("code_url"),
        "owner_name": study.get("owner_name"),
        "owner_email": study.get("owner_email"),
        "sex": person.get("sex"),
        "age": _number(person.get("age")),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _number(text: Any) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def _inputs(units: Sequence[Unit], trials_file: Path, form: str) -> str:
    """Hash of trials, and of size and time of the files that betas and averages come from."""
    stamps = []
    for unit in units:
        for path in (*unit.betas, *unit.psn):
            stat = Path(path).stat()
            stamps.append([Path(path).name, stat.st_size, int(stat.st_mtime)])
    text = json.dumps([stamps, [u.own_statistics for u in units], form]).encode() + trials_file.read_bytes()
    return hashlib.blake2b(text, digest_size=8).hexdigest()
