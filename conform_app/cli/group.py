# SPDX-License-Identifier: Apache-2.0
"""The group level: participants' outputs in, one collection, its tables and its report out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conform_app import __version__
from conform_app.cli.encode import check_encode, list_encoding, run_encode
from conform_app.cli.resources import default_work_dir, resolve_resources
from conform_app.cli.session import LOGGER, Session, conclude, replace_text
from conform_app.errors import ConformError, DataError, NothingSelectedError, UsageError
from conform_app.settings import Settings, to_toml

if TYPE_CHECKING:
    from conform_app.collect.job import GroupJob, Survey
    from conform_app.collect.plans import ParticipantPlan


def run_group(session: Session) -> int:
    """Merge participants of one or several outputs into one collection.

    Parameters
    ----------
    session : Session

    Returns
    -------
    int
        0 when everybody who can be merged is.

    Raises
    ------
    ConformError
        With the exit code to end with.
    """
    from conform_app.bids.dataset import check_output
    from conform_app.collect.job import survey

    settings = session.settings
    job = _job(settings)
    if settings.run.reports_only:
        return _report(session, job)
    _check_folders(settings)
    check_encode(settings)
    found = survey(job)
    if settings.run.dry_run:
        print("\n\n".join(filter(None, (list_members(found), list_encoding(settings)))), flush=True)
        return 0
    check_output(settings.output_dir, settings.altering(), settings.digest(), overwrite=True)
    for member in found.pool.members:
        for reason in member.reasons:
            level = LOGGER.info if member.merged else LOGGER.warning
            level("%s is %s: %s", member.key, member.status, reason)
    for text in found.gathered.account:
        LOGGER.info("%s", text)
    for text in found.gathered.warnings:
        LOGGER.warning("%s", text)
    work_dir = Path(settings.resources.work_dir or default_work_dir(settings.output_dir)).absolute()
    _remove(settings, found)
    plans = _plans(settings, job, found, work_dir)
    _tell_refused(session, found)
    log_dir = settings.output_dir / "logs" / "group" / session.run_uuid
    log_dir.mkdir(parents=True, exist_ok=True)
    replace_text(log_dir / "conform.toml", to_toml(settings))
    summaries = _execute(session, job, found, plans, work_dir, log_dir)
    for done in summaries:
        LOGGER.info("%s: %s", done["key"], done["state"])
        if done["state"] == "failed":
            note = {name: done[name] for name in ("exit_code", "message", "remedy")}
            named = str(done["message"]).startswith(done["key"])
            note["fit"] = "" if named else done["key"]
            session.notes.append({**note, "subject": "", "step": "merging"})
    if settings.group.merge_step != "participants" and not any(n["step"] == "seal" for n in session.notes):
        _describe(settings)  # first: the description of the encoding models repeats what it says
        try:
            run_encode(session)
        finally:  # what was merged is reported, whatever became of the models
            _finish(session, job, found)
    if not found.pool.merged and not session.notes:
        raise DataError(
            f"No betas could be pooled: {_why_nobody(found)}.",
            "Tables of trials, stimuli and methodology are merged; group.html says more.",
        )
    if not session.notes:
        LOGGER.info("Done: %d participants of this call are in %s", len(summaries), settings.output_dir)
        return 0
    unsealed = any(note["step"] == "seal" for note in session.notes)
    return conclude(session, 0 if unsealed else sum(done["state"] != "failed" for done in summaries))


def _tell_refused(session: Session, found: Survey) -> None:
    """Make a failure of each participant that was asked for by name and cannot be merged."""
    from conform_app.collect.job import names_of

    wanted = set(session.settings.inputs.participant_label)
    for member in found.pool.members:
        if not member.merged and wanted & names_of(member.key):
            error = DataError(
                f"it is {member.status}: {'; '.join(member.reasons)}.",
                "Run its participant level again."
                if member.status == "refused"
                else "Merge it with --pool compliant.",
            )
            session.note(error, subject="", fit=member.key, step="merging")


def _why_nobody(found: Survey) -> str:
    """The reason that most participants share."""
    reasons = [reason for member in found.pool.members for reason in member.reasons[:1]]
    return Counter(reasons).most_common(1)[0][0] if reasons else "nobody is compatible with the collection"


def _job(settings: Settings) -> GroupJob:
    from conform_app.collect.job import GroupJob

    return GroupJob(
        str(settings.output_dir), settings.inputs.derivatives, settings.study.dataset_name, settings.group
    )


def _check_folders(settings: Settings) -> None:
    """Refuse to write into one of the inputs."""
    from conform_app.bids.description import real_path

    output = real_path(settings.output_dir)
    for name, path in settings.inputs.derivatives:
        if real_path(path) == output:
            raise UsageError(
                f"The output folder {settings.output_dir} is also named with -d as {name}.",
                "Its own participants are taken anyway; leave that -d out.",
            )


def list_members(found: Survey) -> str:
    """Return a table of everybody and what would become of them."""
    rows = [("participant", "status", "merged", "fits", "trials", "why")]
    for member in found.pool.members:
        n_trials = len(found.gathered.frames.get(member.key, ()))
        merged = "yes" if member.merged else "no"
        cells = (member.key, member.status, merged, str(len(member.fits)), str(n_trials))
        rows.append((*cells, "; ".join(member.reasons) or "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]) for row in rows]
    return "\n".join([*lines, *found.gathered.account, *found.gathered.warnings])


def _remove(settings: Settings, found: Survey) -> None:
    """Take participants out of the collection."""
    from conform_app.mosaic.collection import Collection

    wanted = settings.group.remove_participant
    if not wanted:
        return
    if found.store is None or not (found.store / "collection.json").is_file():
        raise NothingSelectedError("There is no collection to remove participants from.", "Check the folder.")
    collection = Collection.open(found.store)
    unknown = sorted(set(wanted) - {*collection.keys, *collection.pending, *collection.missing})
    if unknown:
        raise NothingSelectedError(
            f"The collection has no participant {unknown[0]}.", f"It has {', '.join(collection.keys)}."
        )
    for key in wanted:
        if key not in collection.missing:
            collection.remove(key)
        _remove_exported(settings, (), key)
        LOGGER.info("%s: removed", key)


def _plans(settings: Settings, job: GroupJob, found: Survey, work_dir: Path) -> list[ParticipantPlan]:
    """Plans of the participants of this call."""
    from conform_app.collect.job import names_of, plan_participants

    if settings.group.merge_step == "seal":
        return []
    labels = settings.inputs.participant_label
    folder = work_dir / "group-plans"
    plans = plan_participants(job, found, folder, wanted=labels, replace=settings.run.overwrite)
    plans = [plan for plan in plans if plan.key not in settings.group.remove_participant]
    known = set().union(*(names_of(member.key) for member in found.pool.members))
    unknown = [label for label in labels if label not in known]
    if unknown:
        there = ", ".join(member.key for member in found.pool.members)
        raise NothingSelectedError(f"There is no participant {unknown[0]}.", f"There are {there}.")
    return plans


def _execute(
    session: Session,
    job: GroupJob,
    found: Survey,
    plans: list[ParticipantPlan],
    work_dir: Path,
    log_dir: Path,
) -> list[dict[str, Any]]:
    """Run the workflow; return how it went with each participant."""
    from conform_app.collect.job import write_job
    from conform_app.workflows.execute import read_plugin, run_workflow
    from conform_app.workflows.group import init_group_wf

    settings = session.settings
    # each call has a folder of its own: several may write participants at the same time
    folder = work_dir / f"group-{session.run_uuid}"
    resources = resolve_resources(settings.resources, max(1, len(plans)))
    workflow = init_group_wf(
        plans=plans,
        plan_dir=work_dir / "group-plans",
        job_file=write_job(job, folder / "job.json"),
        work_dir=folder,
        log_dir=log_dir,
        seal=settings.group.merge_step != "participants",
        mem_gb=_memory(found),
    )
    notes = run_workflow(
        workflow,
        plugin=read_plugin(settings.resources.use_plugin, resources.nprocs, resources.memory),
        log_dirs=[log_dir],
        stop_on_first_crash=settings.resources.stop_on_first_crash,
        verbose=settings.run.verbose,
    )
    session.notes += [{"remedy": "", **note, "fit": "", "step": "seal"} for note in notes]
    files = [
        folder / workflow.name / f"merge_{plan.key.replace('-', '_')}" / "summary.json" for plan in plans
    ]
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
    if not notes:
        shutil.rmtree(folder, ignore_errors=True)
    return summaries


def _memory(found: Survey) -> float:
    """Peak of one participant, GiB: its largest fit, and as much again for a copy."""
    sizes = [f.fit["n_trials"] * f.fit["n_points"] for m in found.pool.merged for f in m.fits]
    return 0.4 + 8 * max(sizes, default=0) / 2**30


def _describe(settings: Settings) -> None:
    """Make the folder a dataset; that of a participant level stays what it is."""
    from conform_app.bids.dataset import write_dataset

    write_dataset(
        settings.output_dir,
        version=__version__,
        configuration=settings.altering(),
        configuration_hash=settings.digest(),
        inputs={name.removeprefix("conform_"): path for name, path in settings.inputs.derivatives},
        kind="group",
    )


def _finish(session: Session, job: GroupJob, found: Survey) -> None:
    """HDF5 files and the report, and what the seal warns of."""
    from conform_app.mosaic.collection import Collection

    settings = session.settings
    stores = sorted((settings.output_dir / "group").glob("*_betas.zarr"))
    if settings.group.export_hdf5 and stores:
        written: set[Path] = set()
        for store in stores:
            try:
                files = Collection.open(store).export_hdf5(settings.output_dir / "group" / "hdf5")
                LOGGER.info("%d HDF5 files written", len(files))
                written |= set(files)
            except ConformError as error:
                session.note(error, subject="", fit=store.name, step="export")
                break
        else:  # those of participants who are gone or were replaced
            _remove_exported(settings, written)
    for text in _sealed_warnings(settings.output_dir):
        if text not in found.gathered.warnings:
            LOGGER.warning("%s", text)
    _report(session, job)


def _remove_exported(settings: Settings, kept: Container[Path], key: str = "sub-*") -> None:
    """Remove HDF5 files of earlier calls, all participants' or one's, but for those to keep."""
    for path in (settings.output_dir / "group" / "hdf5").glob(f"{key}_crc32-????????.hdf5"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _sealed_warnings(output_dir: Path) -> list[str]:
    """Warnings of the last seal."""
    from conform_app.bids.naming import group_name

    path = output_dir / group_name("summary")
    return json.loads(path.read_text(encoding="utf-8"))["warnings"] if path.is_file() else []


def _report(session: Session, job: GroupJob) -> int:
    """Write ``group.html``."""
    from conform_app.cli.groupreport import write_report

    page = write_report(session.settings.output_dir, session.notes, session.run_uuid)
    LOGGER.info("Report: %s", page)
    return 0
