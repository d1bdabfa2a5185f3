# SPDX-License-Identifier: Apache-2.0
"""The order of work of one call: cheap checks first, then the plans, then the workflow, then the reports.

A fit that cannot be planned or that crashes does not keep the others from running.  The last line printed
says with which exit code the run ends and why.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from conform_app import __version__
from conform_app.cli.resources import (
    default_work_dir,
    prepare_environment,
    resolve_device,
    resolve_resources,
)
from conform_app.cli.session import LOGGER, Session, conclude, start_logging, write_logs
from conform_app.errors import ConformError, NoInputError, UsageError
from conform_app.settings import Settings


def run(settings: Settings) -> int:
    """Do what the settings ask for.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    int
        0 when all requested fits and reports are done.

    Raises
    ------
    ConformError
        With the exit code to end with.
    """
    start_logging(settings.run.verbose)
    prepare_environment()
    if settings.analysis_level == "group":
        from conform_app.cli.group import run_group

        return run_group(Session(settings))
    from conform_app.bids.dataset import check_folders, check_output, write_dataset
    from conform_app.bids.record import read_records
    from conform_app.images.templates import LINKS

    work_dir = Path(settings.resources.work_dir or default_work_dir(settings.output_dir)).absolute()
    check_folders(
        settings.bids_dir, settings.output_dir, work_dir, [path for _, path in settings.inputs.derivatives]
    )
    session = Session(settings)
    if settings.run.reports_only:
        return reports_only(session)
    make_plans(session)
    if settings.run.dry_run:
        return dry_run(session)
    device, gpu_free = resolve_device(settings.resources.device)
    check_output(
        settings.output_dir, settings.altering(), settings.digest(), overwrite=settings.run.overwrite
    )
    dataset: dict[str, Any] = {
        "version": __version__,
        "configuration": settings.altering(),
        "configuration_hash": settings.digest(),
        "inputs": session.roots | {name: url for name, url in LINKS.items() if name in session.roots},
        "overwrite": settings.run.overwrite,
    }
    write_dataset(settings.output_dir, **dataset)
    write_logs(session, final=False)
    try:
        execute(session, work_dir, device, gpu_free)
        session.finished = True
    except KeyboardInterrupt:
        write_logs(session, final=True)  # reports may take longer than a scheduler waits
        raise
    finally:
        try:
            report(session, session.subjects)
        except ConformError as error:  # what was fitted is there all the same
            failure = {"exit_code": error.exit_code, "message": error.message, "remedy": error.remedy}
            session.notes.append(failure | {"subject": "", "fit": "", "step": "report"})
        write_dataset(settings.output_dir, **dataset)
        write_logs(session, final=True)
    planned, failed = {plan.name for plan in session.plans}, {note["fit"] for note in session.notes}
    finished = {r["fit"]["name"] for s in session.subjects for r in read_records(settings.output_dir, s)}
    return conclude(session, len(finished & (planned - failed)))


def make_plans(session: Session) -> None:
    """Find the fits and plan each; a fit that cannot be planned becomes a note."""
    from conform_app.bids.filters import read_filters
    from conform_app.bids.inputs import find_fits
    from conform_app.bids.planning import make_plan
    from conform_app.bids.sametable import other_trials

    settings = session.settings
    check_numbers(settings)
    filters = settings.inputs.bids_filter_file
    found = find_fits(
        bids_dir=settings.bids_dir,
        derivatives=settings.inputs.derivatives,
        subjects=settings.inputs.participant_label,
        sessions=settings.inputs.session_label,
        tasks=settings.inputs.task_label,
        runs=settings.inputs.run_label,
        filters=None if filters is None else read_filters(filters),
        output_spaces=settings.inputs.output_spaces,
        fit_level=settings.model.fit_level,
        tasks_together=settings.model.fit_tasks == "together",
        database_path=settings.inputs.bids_database_dir,
        keep_going=not settings.resources.stop_on_first_crash,
    )
    session.roots = {name: str(path) for name, path in found.datasets.items()}
    for text in found.warnings:
        LOGGER.warning("%s", text)
    validate(session)
    for failure in found.failures:
        session.note(failure.error, subject=failure.subject, fit="", step="finding files")
    for fit in found.fits:
        try:
            plan = make_plan(fit, settings.events, settings.model, roots=session.roots)
        except ConformError as error:
            session.note(error, subject=fit.subject, fit=fit.name, step="planning")
        else:
            session.plans.append(plan)
    for plan, error in other_trials(session.plans, settings.output_dir):
        session.plans.remove(plan)
        session.note(error, subject=plan.subject, fit=plan.name, step="planning")
    if not session.plans and session.notes:
        conclude(session, 0)


def check_numbers(settings: Settings) -> None:
    """Refuse numbers out of range before any file is read.

    Raises
    ------
    UsageError
        Naming the setting.
    """
    from conform_app.glmsingle import GLMsingleOptions
    from conform_app.workflows.execute import read_plugin

    model = settings.model
    if model.fixed_pcs < 0:
        raise UsageError(f"--fixed-pcs is {model.fixed_pcs}.", "Give 0 or more.")
    if not 0 < model.fixed_fraction <= 1:
        raise UsageError(f"--fixed-fraction is {model.fixed_fraction:g}.", "Give more than 0, at most 1.")
    GLMsingleOptions(
        n_pcs=model.n_pcs, pcstop=model.pcstop, **({"fracs": model.fracs} if model.fracs else {})
    )
    resolve_resources(settings.resources, 1)
    read_plugin(settings.resources.use_plugin, 1, 1)


def validate(session: Session) -> None:
    """Run the BIDS validator on the raw data when it is installed and wanted."""
    from conform_app.bids.validation import validate_dataset

    settings = session.settings
    if settings.inputs.skip_bids_validation or settings.run.dry_run or settings.run.reports_only:
        return
    for text in validate_dataset(settings.bids_dir):
        LOGGER.warning("%s", text)


def dry_run(session: Session) -> int:
    """Print the fits."""
    from conform_app.cli.listing import list_fits

    print(list_fits(session.plans), flush=True)
    return conclude(session, len(session.plans)) if session.notes else 0


def execute(session: Session, work_dir: Path, device: str, gpu_free: int | None) -> None:
    """Run the workflow of every fit that is not complete yet."""
    from conform_app.bids.derivatives import wanted_products
    from conform_app.bids.planning import BASE_MEMORY
    from conform_app.bids.psncost import psn_memory
    from conform_app.bids.record import is_complete
    from conform_app.workflows.execute import locked, read_plugin, run_workflow
    from conform_app.workflows.participant import forget_steps, init_participant_wf

    settings = session.settings
    wanted = wanted_products(settings.model.glm_types, settings.run.save_residuals)
    todo: dict[str, list[Any]] = {}
    for plan in session.plans:
        for text in plan.warnings:
            LOGGER.warning("%s: %s", plan.name, text)
        done = not settings.run.overwrite and is_complete(
            settings.output_dir, plan, digest=settings.digest(), wanted=wanted, roots=session.roots
        )
        if done:
            LOGGER.info("%s: complete, not computed again", plan.name)
        else:
            todo.setdefault(plan.subject, []).append(plan)
    if not todo:
        return
    resources = resolve_resources(settings.resources, sum(map(len, todo.values())), gpu_free)
    share = resources.memory / resources.nprocs
    for plan in (p for plans in todo.values() for p in plans):
        of_psn = psn_memory(plan, settings.model, BASE_MEMORY, resources.n_threads)
        if (peak := max(plan.memory, of_psn)) > share:
            LOGGER.warning(
                "%s may need %.1f GiB%s, its share of --mem is %.1f GiB",
                plan.name,
                peak / 2**30,
                " (PSN)" if peak > plan.memory_glm else "",
                share / 2**30,
            )
    log_dirs = {subject: session.log_dir(subject) for subject in todo}
    with locked(work_dir, sorted(todo)):
        workflow = init_participant_wf(
            plans=todo,
            work_dir=work_dir,
            log_dirs=log_dirs,
            model=settings.model,
            dataset=dataset_facts(session, wanted),
            save_residuals=settings.run.save_residuals,
            device=device,
            n_threads=resources.n_threads,
            max_memory=share,
        )
        for plan in (p for plans in todo.values() for p in plans):
            forget_steps(work_dir, plan, everything=settings.run.overwrite)
        session.notes += run_workflow(
            workflow,
            plugin=read_plugin(settings.resources.use_plugin, resources.nprocs, resources.memory),
            log_dirs=list(log_dirs.values()),
            stop_on_first_crash=settings.resources.stop_on_first_crash,
            verbose=settings.run.verbose,
        )


def dataset_facts(session: Session, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return what the files of a fit need to know of the dataset they go into."""
    settings = session.settings
    return {
        "output_dir": str(settings.output_dir),
        "digest": settings.digest(),
        "altering": settings.altering(),
        "roots": session.roots,
        "wanted": list(wanted),
        "study": {name: value for name, value in asdict(settings.study).items() if value is not None},
        "version": __version__,
    }


def reports_only(session: Session) -> int:
    """Make the reports anew from the records; the input data are not read."""
    from conform_app.bids.record import recorded_subjects

    output_dir = session.settings.output_dir
    subjects = recorded_subjects(output_dir)
    wanted = session.settings.inputs.participant_label
    subjects = [subject for subject in subjects if not wanted or subject in wanted]
    if not subjects:
        raise NoInputError(
            f"{output_dir} holds no finished fit{' of these participants' if wanted else ''}.",
            "Run without --reports-only.",
        )
    records = report(session, subjects)
    LOGGER.info("Done: reports of %d participants, %d fits", len(subjects), len(records))
    return 0


def report(session: Session, subjects: list[str]) -> list[dict[str, Any]]:
    """Make the reports and the methods text; return the records of these participants' finished fits."""
    from conform_app.bids.record import read_records, recorded_subjects
    from conform_app.reports import build_report, convert_text, write_boilerplate

    output_dir = session.settings.output_dir
    records = {subject: read_records(output_dir, subject) for subject in recorded_subjects(output_dir)}
    everything = [record for own in records.values() for record in own]
    if everything:
        convert_text(*write_boilerplate(output_dir, everything, version=__version__))
    for subject in subjects:
        errors = [note for note in session.notes if note["subject"] == subject]
        info = {"run_uuid": session.run_uuid, "version": __version__}
        build_report(output_dir, subject, records=records.get(subject, []), errors=errors, run_info=info)
    return [record for subject in subjects for record in records.get(subject, [])]
