# SPDX-License-Identifier: Apache-2.0
"""The group level as a job: who is there, who can be pooled, plans to merge, and the seal at the end.

Each step finds out for itself who is there (records and tables are small), so that steps can run in different
processes and on different machines, and the last one sees what is there when it runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conform_app.bids.naming import group_name
from conform_app.bids.outputs import open_sites, read_participants
from conform_app.bids.pooling import Pool, make_pool
from conform_app.bids.provenance import write_json
from conform_app.collect.plans import Gathered, ParticipantPlan, gather_trials, make_plans
from conform_app.collect.seal import seal
from conform_app.errors import NoInputError
from conform_app.settings import GroupSettings


@dataclass(frozen=True)
class GroupJob:
    """What to collect.

    Attributes
    ----------
    output_dir : str
        Where the collection goes; its own participants belong to it.
    derivatives : tuple of (str, str)
        Names and folders of other sites.
    dataset_name : str or None
        Of the dataset in `output_dir`.
    group : GroupSettings
    """

    output_dir: str
    derivatives: tuple[tuple[str, str], ...]
    dataset_name: str | None
    group: GroupSettings


@dataclass
class Survey:
    """Who is there and who can be pooled.

    Attributes
    ----------
    pool : Pool
    gathered : Gathered
    store : Path or None
        Of the collection; None when no betas can be pooled.
    """

    pool: Pool
    gathered: Gathered
    store: Path | None


def survey(job: GroupJob) -> Survey:
    """Find everybody and decide on each.

    Raises
    ------
    NoInputError
        There is no participant output at all, or none whose trial table can be read; or the library that
        harmonisation needs is not installed.
    UsageError, DataError
        See :func:`conform_app.bids.outputs.open_sites` and :func:`conform_app.collect.plans.gather_trials`.
    """
    root = Path(job.output_dir)
    if job.group.harmonise == "combat":
        from conform_app.mosaic.harmonise import check_library

        check_library()
    sites = open_sites(root, job.derivatives, job.dataset_name)
    people = [person for site in sites for person in read_participants(site)]
    if not any(person.fits for person in people):
        where = ", ".join([str(root), *(str(site.root) for site in sites if site.root != root)])
        raise NoInputError(
            f"There is no finished participant output in {where}.",
            "Run the participant level first, or name other outputs with -d conform_NAME=PATH.",
        )
    there = _there(root, job.group)
    pool = make_pool(people, job.group, _reference(there), None if there is None else _grid(there))
    gathered = gather_trials(pool, job.group)
    if not gathered.frames:
        raise NoInputError("No participant has a trial table that can be read.", "The report says why.")
    gathered.account[:0] = pool.account
    store = root / group_name("betas", str(pool.space)) if pool.space is not None else None
    return Survey(pool, gathered, store)


def _there(root: Path, settings: GroupSettings) -> Any:
    """The collection that is there; None when there is none, or not in the space asked for."""
    from conform_app.mosaic.collection import Collection

    pattern = group_name("betas", settings.pool_space or "").replace("space-none", "*")
    stores = [path for path in sorted(root.glob(pattern)) if (path / "collection.json").is_file()]
    return Collection.open(stores[0]) if len(stores) == 1 else None


def _grid(collection: Any) -> str:
    """Hash of the points of a collection; empty for one that was begun without."""
    return str(collection.common["configuration"].get("grid", ""))


def _reference(collection: Any) -> dict[str, Any] | None:
    """What a collection demands of participants; None when there is none, or it takes compliant ones."""
    if collection is None:
        return None
    demanded = collection.common["configuration"]
    if not {"version", "preprocessing", "settings"} <= demanded.keys():
        return None
    return {**demanded, "n_points": collection.n_vertices, "hash": demanded["method"]}


def plan_participants(
    job: GroupJob, found: Survey, folder: Path, *, wanted: Collection[str] = (), replace: bool = False
) -> list[ParticipantPlan]:
    """Write the plans of the participants to merge; return those wanted (all, where none is named)."""
    wanted = set(wanted)
    if found.store is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    plans = make_plans(found.pool, found.gathered, job.group, found.store, folder, replace=replace)
    return [plan for plan in plans if not wanted or wanted & names_of(plan.key)]


def names_of(key: str) -> set[str]:
    """What a participant may be called: ``01``, ``01_NSD`` or ``sub-01_NSD``."""
    return {key, key.removeprefix("sub-"), key.removeprefix("sub-").rpartition("_")[0]}


def write_job(job: GroupJob, path: Path) -> Path:
    """Write a job as JSON."""
    return write_json(path, asdict(job))


def read_job(path: Path) -> GroupJob:
    """Read a job written by :func:`write_job`."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    group = {name: _tupled(value) for name, value in content.pop("group").items()}
    derivatives = tuple((name, folder) for name, folder in content.pop("derivatives"))
    return GroupJob(derivatives=derivatives, group=GroupSettings(**group), **content)


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def seal_job(job: GroupJob, summaries: Sequence[Mapping[str, Any]]) -> Path:
    """Seal what is there and write the group's tables.

    Parameters
    ----------
    job : GroupJob
    summaries : sequence of dict
        How it went with each participant of this call.

    Returns
    -------
    Path
        In the output folder, JSON: ``account``, ``warnings``, ``version``, ``store``, numbers of the audit
        and of the split, one number a participant for noise ceiling and beta scale, where geometry is found
        (masks, and the surfaces of those who were carried to the space).
    """
    found = survey(job)
    failed = {s["key"]: str(s["message"]) for s in summaries if s["state"] == "failed"}
    store = found.store
    if store is not None and not _has_participants(store):
        store = None
    sealed = seal(found.pool, found.gathered, job.group, Path(job.output_dir), store, failed)
    decided = (sealed.identity.account, sealed.split.account, sealed.split.audit.account)
    account = [*found.gathered.account, *(sentence for said in decided for sentence in said)]
    content = {
        "account": list(dict.fromkeys(account)),
        "warnings": [*found.gathered.warnings, *_gone(found, sealed.collection)],
        "version": None if sealed.collection is None else sealed.collection.version,
        "store": None if store is None else store.relative_to(job.output_dir).as_posix(),
        "audit": sealed.split.audit.as_dict(),
        "counts": sealed.split.counts,
        "outcomes": sealed.outcomes,
        "geometry": [list(map(str, m.fits[0].files("brainmask"))) for m in found.pool.merged],
        "surfaces": [list(map(str, m.fits[0].files("midthickness"))) for m in found.pool.merged],
    }
    return write_json(Path(job.output_dir) / group_name("summary"), content)


def _has_participants(store: Path) -> bool:
    from conform_app.mosaic.collection import Collection

    if not (store / "collection.json").is_file():
        return False
    collection = Collection.open(store)
    return bool(collection.keys or collection.pending)


def _gone(found: Survey, collection: Any) -> list[str]:
    """Participants of the collection whose output this call has not seen."""
    if collection is None:
        return []
    gone = sorted(set(collection.keys) - {member.key for member in found.pool.members})
    if not gone:
        return []
    return [
        f"{', '.join(gone)}: in the collection, but not among the outputs of this call. "
        "They stay; --remove-participant takes them out."
    ]
