# SPDX-License-Identifier: Apache-2.0
"""Who is modelled, who is learned from, and which images are for what: decided before anything is fitted.

Train stimuli of the collection's split are learned from, test stimuli are predicted, and nobody's model is
fitted to anybody's test stimuli: the split is one over all participants, and it is checked here again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.bids.encoding import FOLDER, check_labels, encode_names
from conform_app.bids.provenance import write_json
from conform_app.braincorl.checks import check_disjoint
from conform_app.collect.given import read_features
from conform_app.collect.job import names_of
from conform_app.encode.earlier import earlier_models
from conform_app.encode.given import (
    digest,
    file_hash,
    match_features,
    read_categories,
    read_queries,
    read_regions,
)
from conform_app.encode.pieces import pieces_of
from conform_app.encode.sharing import ALIGNED, alignment_notes, shared_counts, usable
from conform_app.encode.usable import check_usable
from conform_app.errors import DataError, NoInputError, UsageError
from conform_app.settings import EncodeSettings

SIZES = (20, 50, 100, 300, 1000)
LEAST_TRAIN, LEAST_TEST = 10, 3
SCHEMA = 1


@dataclass(frozen=True)
class EncodeJob:
    """What to make.

    Attributes
    ----------
    output_dir, store, features : str
        Output folder, collection, file of features.
    scratch : str
        Folder for averaged responses, kept between calls.
    settings : EncodeSettings
    geometry : tuple of tuple of str
        Images on the collection's grid, any of which may be gone.
    device : str
    memory : int
        Bytes.
    """

    output_dir: str
    store: str
    features: str
    scratch: str
    settings: EncodeSettings
    geometry: tuple[tuple[str, ...], ...] = ()
    device: str = "cpu"
    memory: int = 2 << 30

    @property
    def root(self) -> Path:
        """Of the dataset of encoding models."""
        return Path(self.output_dir) / FOLDER


@dataclass(frozen=True)
class Person:
    """Stimuli of one participant.

    Attributes
    ----------
    key : str
    train, test : tuple of str
        In the order of first presentation.
    n_trials : dict of str to int
        By stimulus.
    record : str
        Hash of its record: another one means other betas.
    """

    key: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    n_trials: dict[str, int] = field(repr=False)
    record: str = ""


@dataclass(frozen=True)
class Target:
    """One participant to model.

    Attributes
    ----------
    key : str
    sizes : tuple of int
        Context sizes, rising.
    teachers : tuple of str
        Participants learned from.
    digest : str
        Hash of everything that goes in.
    done : bool
        It is there already, made from the same.
    aligned : tuple of int
        Context sizes from which there is a model through alignment.
    """

    key: str
    sizes: tuple[int, ...]
    teachers: tuple[str, ...]
    digest: str
    done: bool
    aligned: tuple[int, ...] = ()


@dataclass
class EncodePlan:
    """All of it.

    Attributes
    ----------
    people : dict of str to Person
        Everybody who can be learned from or modelled.
    targets : tuple of Target
    stimuli : list of str
        Rows of `features`.
    features : ndarray (n_stimuli, E)
    notes : list of str
        What a reader of the report must know.
    """

    people: dict[str, Person]
    targets: tuple[Target, ...]
    stimuli: list[str]
    features: np.ndarray
    notes: list[str]

    def rows(self, stimuli: Sequence[str]) -> np.ndarray:
        """Features of stimuli, (n, E)."""
        place = {name: row for row, name in enumerate(self.stimuli)}
        return self.features[[place[name] for name in stimuli]]


def plan_encoding(job: EncodeJob) -> EncodePlan:
    """Decide what is made from what.

    Raises
    ------
    NoInputError
        No sealed collection, or a file that is not there.
    UsageError
        A participant or an option that does not fit the collection.
    DataError
        Stimuli without features, features that are no unit vectors, of another length than a checkpoint's;
        test images among the train images; contexts larger than the data; nobody with a vertex to model.
    """
    from conform_app.mosaic.collection import Collection

    collection = Collection.open(job.store)
    if not collection.version:
        raise NoInputError(f"The collection {job.store} is not sealed.", "Run the group level to its end.")
    everybody = {key: _person(collection, key) for key in collection.keys}
    check_labels(everybody)
    without = _unusable(collection, job.settings)
    people = {
        key: person
        for key, person in everybody.items()
        if len(person.train) >= LEAST_TRAIN and key not in without
    }
    notes = [
        f"{key} has {len(person.train)} train images and is left out (at least {LEAST_TRAIN})."
        for key, person in everybody.items()
        if len(person.train) < LEAST_TRAIN
    ]
    notes += [f"{error.message.rstrip('.')}, and is left out." for error in without.values()]
    if without and not people:
        raise next(iter(without.values()))
    wanted = _wanted(job.settings, everybody, people, notes, without)
    stimuli = list(dict.fromkeys(name for p in people.values() for name in (*p.train, *p.test)))
    features = match_features(stimuli, collection.table("names"), read_features(job.features))
    plan = EncodePlan(people, (), stimuli, features, notes)
    inputs = _checked_inputs(job, plan, collection.n_vertices)
    _check_leakage(plan, wanted)
    align = job.settings.encode_alignment != "none"
    if align:
        inputs["pieces"] = digest(pieces_of(job, plan)[0])
    plan.targets = tuple(_target(job, plan, key, inputs, collection.space) for key in wanted)
    plan.notes += _earlier(job, plan, inputs, collection)
    if align:
        plan.notes += alignment_notes(plan, plan.targets, job.settings.encode_repeats)
    return plan


def _person(collection: Any, key: str) -> Person:
    table = collection.trials(key)
    sides = {
        side: tuple(dict.fromkeys(table["stimulus"][table["split"] == side].astype(str)))
        for side in ("train", "test")
    }
    used = table[table["split"].isin(list(sides))]
    counts = {str(name): int(n) for name, n in used["stimulus"].value_counts(sort=False).items()}
    return Person(key, sides["train"], sides["test"], counts, digest(collection.record(key)))


def _earlier(job: EncodeJob, plan: EncodePlan, inputs: dict[str, str], collection: Any) -> list[str]:
    """What is to be said of models that are there and not made in this call."""
    wanted = {target.key for target in plan.targets}
    scratch = replace(plan, notes=[])

    def same(key: str) -> bool:
        return key in plan.people and _target(job, scratch, key, inputs, collection.space).done

    return earlier_models(job.root, collection.space, [k for k in collection.keys if k not in wanted], same)


def _unusable(collection: Any, settings: EncodeSettings) -> dict[str, DataError]:
    """Participants that nothing can be modelled of, and why."""
    found = {}
    for key in collection.keys:
        try:
            check_usable(collection, key, settings.encode_min_ceiling, settings.encode_betas)
        except DataError as error:
            found[key] = error
    return found


def _wanted(
    settings: EncodeSettings, everybody, people, notes: list[str], without: dict[str, DataError]
) -> list[str]:
    """Participants to model: those named, or all that can be evaluated."""
    able = [key for key, person in people.items() if len(person.test) >= LEAST_TEST]
    if not settings.encode_target:
        notes += [
            f"{key} has {len(people[key].test)} test images: it is learned from, but not modelled."
            for key in people
            if key not in able
        ]
        if not able:
            raise DataError(
                f"No participant has {LEAST_TRAIN} train and {LEAST_TEST} test images in the collection.",
                "Give a split (--split) or other data.",
            )
        return able
    found = []
    for name in settings.encode_target:
        its = [key for key in everybody if name in names_of(key)]
        if not its:
            raise UsageError(
                f"--encode-target: the collection has no participant {name}.",
                f"It has {', '.join(everybody)}.",
            )
        for key in its:
            if key in without:
                raise without[key]
            if key not in able:
                person = everybody[key]
                raise DataError(
                    f"{key} has {len(person.train)} train and {len(person.test)} test images.",
                    f"A model needs {LEAST_TRAIN} and {LEAST_TEST}.",
                )
        found += its
    return list(dict.fromkeys(found))


def _checked_inputs(job: EncodeJob, plan: EncodePlan, n_vertices: int) -> dict[str, str]:
    """Hashes of the files given, after a look into each."""
    settings, width = job.settings, plan.features.shape[1]
    taught: dict[str, list[str]] = {}
    if settings.encode == "transformer" and settings.encode_model is None:
        raise UsageError("--encode transformer needs a network.", "Give --encode-model, or --encode stacked.")
    if settings.encode == "prior" and settings.encode_prior is None and len(plan.people) < 2:
        raise DataError(
            f"The collection has one participant, {next(iter(plan.people))}: a prior needs others.",
            "Add participants, give --encode-prior, or use --encode stacked or ridge.",
        )
    if settings.encode_model is not None:
        from conform_app.braincorl import load_model

        model = load_model(settings.encode_model)
        _same_width("--encode-model", model.sizes.features, width)
        taught["--encode-model"] = list(model.card.get("participants", []))
    if settings.encode_prior is not None:
        from conform_app.braincorl import Prior

        prior = Prior.load(settings.encode_prior)
        _same_width("--encode-prior", prior.n_features, width)
        taught["--encode-prior"] = list(prior.card.get("participants", []))
    for option, names in taught.items():
        plan.notes += [
            f"{option} was trained on {name}, who is not modelled." for name in names if name in plan.people
        ]
    if min(settings.encode_context, default=2) < 2 or settings.encode_repeats < 1:
        raise UsageError("Contexts need two images and one repeat at least.", "Correct --encode-context.")
    read_regions(settings.encode_regions, n_vertices, job.geometry)
    read_queries(settings.encode_queries, width)
    read_categories(settings.encode_categories, plan.stimuli)
    options = ("encode_model", "encode_prior", "encode_queries", "encode_categories")
    hashes = {name: file_hash(getattr(settings, name)) for name in options}
    hashes["encode_regions"] = " ".join(file_hash(path) for path in settings.encode_regions)
    return hashes | {f"taught {option}": " ".join(names) for option, names in taught.items()}


def _same_width(option: str, there: int, given: int) -> None:
    if there != given:
        raise DataError(
            f"{option} is for features of {there} numbers, --features has {given}.",
            "Use the feature extractor that it was trained with.",
        )


def _check_leakage(plan: EncodePlan, wanted: Sequence[str]) -> None:
    """Refuse test images that anybody learns from, by name or by equal features."""
    train = list(dict.fromkeys(name for person in plan.people.values() for name in person.train))
    for key in wanted:
        test = plan.people[key].test
        try:
            check_disjoint(train, test)
            check_disjoint(plan.rows(train), plan.rows(test))
        except DataError as error:
            raise DataError(
                f"{key}: {error.message}",
                "Their features are equal to those of train images: one picture under two names. Say so with "
                "--aliases, or give the images with --stimuli.",
            ) from error


def _target(job: EncodeJob, plan: EncodePlan, key: str, inputs: dict[str, str], space: str) -> Target:
    settings, n_train = job.settings, len(plan.people[key].train)
    for option in ("--encode-model", "--encode-prior"):
        if key in inputs.get(f"taught {option}", "").split():
            raise DataError(
                f"{option} {getattr(settings, option[2:].replace('-', '_'))} was trained on {key}.",
                "Name other participants with --encode-target, or train without this one.",
            )
    asked = tuple(sorted(set(settings.encode_context)))
    sizes = tuple(size for size in asked or SIZES if size <= n_train)
    if not asked and n_train < SIZES[-1] and n_train not in sizes:
        sizes = (*sizes, n_train)
    if not sizes:
        raise DataError(
            f"{key}: a context of {asked[0]} images was asked for, and there are {n_train} train images.",
            "Ask for fewer with --encode-context.",
        )
    dropped = [size for size in asked if size > n_train]
    if dropped:
        plan.notes.append(f"{key} has {n_train} train images: no context of {', '.join(map(str, dropped))}.")
    teachers = tuple(other for other in plan.people if other != key)
    chosen = {k: v for k, v in asdict(settings).items() if k in ALTERING}
    involved = [plan.people[name] for name in (key, *teachers)]
    mark = digest(
        [SCHEMA, chosen, inputs, sizes, [(p.key, p.record, p.train, p.test) for p in involved]],
        plan.rows([name for p in involved for name in (*p.train, *p.test)]),
    )
    aligned: tuple[int, ...] = ()
    if settings.encode_alignment != "none":
        counts = shared_counts(plan, key, teachers, sizes, settings.encode_repeats)
        aligned = tuple(size for size in sizes if usable(counts[size]))
    return Target(key, sizes, teachers, mark, _done(job.root, key, space, mark), aligned)


ALTERING = ("encode", "encode_repeats", "encode_betas", "encode_min_ceiling", "encode_alignment")
"""Settings that change a participant's results, beside contexts and files."""


def settings_hash(settings: EncodeSettings) -> str:
    """Hash of what models depend on, data aside; kept in records, so that a mixture is noticed."""
    chosen = {name: getattr(settings, name) for name in (*ALTERING, "encode_context")}
    files = [
        settings.encode_model,
        settings.encode_prior,
        settings.encode_queries,
        settings.encode_categories,
    ]
    return digest(chosen, [file_hash(path) for path in (*files, *settings.encode_regions)])


def _done(root: Path, key: str, space: str, mark: str) -> bool:
    path = root / encode_names("record", key, space)[0]
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("Digest") == mark
    except (OSError, ValueError):
        return False


def methods_of(job: EncodeJob, target: Target) -> tuple[str, ...]:
    """Estimators that are evaluated, the combined one first."""
    found = ["stacked"]
    found += ["transformer"] * (job.settings.encode_model is not None)
    found += ["prior"] * (bool(target.teachers) or job.settings.encode_prior is not None)
    found += [ALIGNED[job.settings.encode_alignment]] if target.aligned else []
    found += ["ridge", "five-fold ridge"]
    found += ["group mean"] * bool(target.teachers)
    return tuple(found)


def listing(job: EncodeJob, plan: EncodePlan) -> str:
    """Table of what would be done, for ``--dry-run``."""
    rows = [("participant", "state", "train", "test", "contexts", "learned from", "estimators")]
    for target in plan.targets:
        person = plan.people[target.key]
        rows.append(
            (
                target.key,
                "done" if target.done else "to do",
                str(len(person.train)),
                str(len(person.test)),
                " ".join(map(str, target.sizes)),
                f"{len(target.teachers)} others",
                ", ".join(methods_of(job, target)),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n".join([*lines, *plan.notes])


def write_job(job: EncodeJob, plan: EncodePlan, folder: Path) -> Path:
    """Write job and plan into a folder, for the steps of the workflow; return the job's file."""
    content = asdict(plan)
    write_json(
        folder / "plan.json", {name: content[name] for name in ("people", "targets", "stimuli", "notes")}
    )
    np.save(folder / "features.npy", plan.features)
    return write_json(folder / "job.json", asdict(job))


def read_job(path: Path) -> tuple[EncodeJob, EncodePlan]:
    """Read what :func:`write_job` wrote."""
    path = Path(path)
    its = json.loads((path.parent / "plan.json").read_text(encoding="utf-8"))
    people = {key: Person(**_tupled(person)) for key, person in its["people"].items()}
    targets = tuple(Target(**_tupled(target)) for target in its["targets"])
    plan = EncodePlan(people, targets, its["stimuli"], np.load(path.parent / "features.npy"), its["notes"])
    content = json.loads(path.read_text(encoding="utf-8"))
    settings = EncodeSettings(**_tupled(content.pop("settings")))
    geometry = tuple(tuple(files) for files in content.pop("geometry"))
    return EncodeJob(settings=settings, geometry=geometry, **content), plan


def _tupled(content: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
