# SPDX-License-Identifier: Apache-2.0
"""Encoding models at the end of the group level: from the sealed collection to maps and tables."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conform_app.cli.resources import default_work_dir, resolve_device, resolve_resources
from conform_app.cli.session import LOGGER, Session
from conform_app.errors import NoInputError, UsageError
from conform_app.settings import Settings

if TYPE_CHECKING:
    from conform_app.encode.job import EncodeJob

FILES = ("encode_features", "encode_model", "encode_prior", "encode_queries", "encode_categories")


def check_encode(settings: Settings) -> None:
    """Refuse what can be seen to be wrong before anything is merged.

    Raises
    ------
    UsageError
        Options that do not go together, or a device that is not there.
    NoInputError, DataError
        A file that is not there; features that cannot be read.
    """
    chosen = settings.encode
    if chosen.encode == "none":
        return
    if settings.group.features is None and chosen.encode_features is None:
        raise UsageError(
            "--encode needs features of the stimuli.", "Give --features or --encode-features FILE."
        )
    if chosen.encode == "transformer" and chosen.encode_model is None:
        raise UsageError("--encode transformer needs a network.", "Give --encode-model, or --encode stacked.")
    given = [(name, getattr(chosen, name)) for name in FILES]
    given += [("encode_regions", path) for path in chosen.encode_regions]
    for name, path in given:
        if path is not None and not Path(path).is_file():
            raise NoInputError(f"--{name.replace('_', '-')}: there is no {path}.", "Correct the path.")
    if chosen.encode_features is not None:
        from conform_app.collect.given import read_features

        read_features(chosen.encode_features)
    if settings.resources.device == "cuda":
        resolve_device("cuda")


def list_encoding(settings: Settings) -> str:
    """Text of what would be made, for ``--dry-run``; empty when nothing would."""
    if settings.encode.encode == "none":
        return ""
    store = _store(settings)
    if store is None:
        return "Encoding models follow once the collection is there."
    from conform_app.encode.job import listing, plan_encoding

    job = _job(settings, store)
    return listing(job, plan_encoding(job))


def run_encode(session: Session) -> None:
    """Make the encoding models that are not there yet; what fails is noted.

    Raises
    ------
    ConformError
        Nothing can be made from what was given.
    """
    settings = session.settings
    store = _store(settings)
    if settings.encode.encode == "none" or settings.group.merge_step == "participants" or store is None:
        return
    from conform_app.encode.given import digest, open_grid
    from conform_app.encode.job import plan_encoding, write_job
    from conform_app.encode.prepare import prepared_folder
    from conform_app.encode.seal import describe_dataset
    from conform_app.mosaic.collection import Collection
    from conform_app.workflows.encode import init_encode_wf
    from conform_app.workflows.execute import read_plugin, run_workflow

    device, gpu_free = resolve_device(settings.resources.device)
    job = _job(settings, store, device)
    plan = plan_encoding(job)
    collection = Collection.open(store)
    open_grid(job.geometry, collection.n_vertices)  # what every participant would fail at
    chosen = {k: v for k, v in asdict(settings.encode).items() if k not in ("encode_target", *FILES)}
    chosen |= {name: Path(getattr(settings.encode, name) or "none").name for name in FILES}
    chosen["encode_regions"] = [Path(path).name for path in settings.encode.encode_regions]
    chosen["space"] = collection.space
    describe_dataset(job, chosen, digest(chosen), settings.run.overwrite)
    for note in plan.notes:
        LOGGER.info("%s", note)
    todo = [t for t in plan.targets if settings.run.overwrite or not t.done]
    for target in plan.targets:
        if target not in todo:
            LOGGER.info("%s: its encoding model is there", target.key)
    needed = {key: None for target in todo for key in (target.key, *target.teachers)}
    log_dir = settings.output_dir / "logs" / "group" / session.run_uuid
    log_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(job.scratch).parent / f"encode-{session.run_uuid}"
    folder.mkdir(parents=True, exist_ok=True)
    resources = resolve_resources(settings.resources, max(1, len(todo)), gpu_free)
    people = [key for key in needed if not (prepared_folder(job, plan, key) / "done.json").is_file()]
    workflow = init_encode_wf(
        people=people,
        targets=[target.key for target in todo],
        job_file=write_job(job, _again(plan, todo), folder),
        work_dir=folder,
        log_dir=log_dir,
        n_threads=resources.n_threads,
        mem_gb=_memory(job, plan.features.shape[1]),
    )
    notes = run_workflow(
        workflow,
        plugin=read_plugin(settings.resources.use_plugin, resources.nprocs, resources.memory),
        log_dirs=[log_dir],
        stop_on_first_crash=settings.resources.stop_on_first_crash,
        verbose=settings.run.verbose,
    )
    session.notes += [{"remedy": "", **note, "fit": "", "step": "encoding"} for note in notes]
    for path in sorted((folder / workflow.name).glob("*/outcome.json")):
        done = json.loads(path.read_text(encoding="utf-8"))
        if done["state"] == "failed":
            note = {name: done[name] for name in ("exit_code", "message", "remedy")}
            named = str(done["message"]).startswith(done["key"])
            session.notes.append(
                {**note, "fit": "" if named else done["key"], "subject": "", "step": "encoding"}
            )
    if not notes:
        LOGGER.info("Encoding models of %d participants are in %s", len(todo), job.root)
        shutil.rmtree(folder, ignore_errors=True)


def _again(plan: Any, todo: list[Any]) -> Any:
    """The plan with these participants to be made, also those that are there."""
    from dataclasses import replace

    marked = tuple(replace(target, done=target not in todo) for target in plan.targets)
    return replace(plan, targets=marked)


def _store(settings: Settings) -> Path | None:
    """The sealed collection; None when there is none."""
    from conform_app.bids.naming import group_name

    path = settings.output_dir / group_name("summary")
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("store")
    except (OSError, ValueError):
        return None
    store = settings.output_dir / name if name else None
    return store if store is not None and (store / "manifest.json").is_file() else None


def _job(settings: Settings, store: Path, device: str = "cpu") -> EncodeJob:
    from conform_app.bids.naming import group_name
    from conform_app.encode.job import EncodeJob

    summary = json.loads((settings.output_dir / group_name("summary")).read_text(encoding="utf-8"))
    work_dir = Path(settings.resources.work_dir or default_work_dir(settings.output_dir)).absolute()
    return EncodeJob(
        output_dir=str(settings.output_dir),
        store=str(store),
        features=str(settings.encode.encode_features or settings.group.features),
        scratch=str(work_dir / "encode-responses"),
        settings=settings.encode,
        geometry=tuple(tuple(files) for files in summary.get("geometry") or ()),
        device=device,
        memory=settings.resources.mem or (2 << 30),
    )


def _memory(job: EncodeJob, n_features: int) -> float:
    """Peak of one participant, GiB: a block of vertices with its test images, and the prior's matrices."""
    from conform_app.encode.prepare import BLOCK

    block = 12 * 8 * BLOCK * 1000
    return 0.5 + (block + 40 * 8 * n_features**2) / 2**30
