# SPDX-License-Identifier: Apache-2.0
"""Run a workflow with Nipype and say in plain words how it went.

Nipype reports failures as text; the steps leave notes (see :mod:`conform_app.interfaces.base`), and those
notes are what counts here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from conform_app.errors import FileFaultError, TemporaryError, UsageError

LOGGER = logging.getLogger("conform")
STEPS = {
    "surface": "carrying to the surface",
    "glmsingle": "GLMsingle",
    "reliability": "reliability",
    "psn": "PSN",
    "write": "writing files",
}
STEPS_OF_SOMEBODY = {"average": "averaging responses", "model": "encoding model"}
"""Steps of the encoding models, whose nodes are named STEP_PARTICIPANT."""


def read_plugin(path: str | None, nprocs: int, memory: int) -> dict[str, Any]:
    """Return the plugin arguments of ``Workflow.run``.

    Parameters
    ----------
    path : str, optional
        YAML file with ``plugin`` and ``plugin_args``; without one MultiProc, or Linear for one process.
    nprocs : int
    memory : int
        Bytes.

    Raises
    ------
    UsageError
        The file cannot be read or names no plugin.
    """
    if path is None:
        if nprocs == 1:
            return {"plugin": "Linear", "plugin_args": {}}
        args = {"n_procs": nprocs, "memory_gb": memory / (1 << 30), "raise_insufficient": False}
        return {"plugin": "MultiProc", "plugin_args": args}
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"Plugin file {path} cannot be read: {first}.", "Check the file.") from error
    if not isinstance(content, dict) or "plugin" not in content:
        raise UsageError(f"Plugin file {path} names no plugin.", "Write for example 'plugin: MultiProc'.")
    return {"plugin": content["plugin"], "plugin_args": dict(content.get("plugin_args") or {})}


@contextmanager
def locked(work_dir: Path, subjects: Sequence[str]) -> Iterator[None]:
    """Hold the lock of each participant in the work folder.

    Raises
    ------
    TemporaryError
        Another run holds one of them.
    FileFaultError
        The work folder cannot be written.
    """
    import fcntl

    with ExitStack() as stack:
        for subject in subjects:
            try:
                work_dir.mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context(open(work_dir / f"sub-{subject}.lock", "w", encoding="ascii"))
            except OSError as error:
                raise FileFaultError(
                    f"The work folder {work_dir} cannot be written ({error.strerror}).",
                    "Give another one with -w.",
                ) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TemporaryError(
                    f"Another run is working on sub-{subject} in {work_dir}.",
                    "Wait for it, or give another -w.",
                ) from error
            except OSError:
                LOGGER.debug("no file locks in %s", work_dir)
        yield


def _announcer(stop: Any) -> Callable[[Any, str], None]:
    """Return a Nipype status callback that logs which step of which fit starts, and ends a stopped run."""

    def announce(node: Any, status: str) -> None:
        if stop.came:
            raise KeyboardInterrupt
        if status == "start" and node.name in STEPS:
            plan = Path(node.inputs.plan_file).stem
            LOGGER.info("%s: %s", plan, STEPS[node.name])
        step = node.name.partition("_sub_")[0]
        if status == "start" and step in STEPS_OF_SOMEBODY:
            LOGGER.info("%s: %s", node.inputs.key, STEPS_OF_SOMEBODY[step])

    return announce


def run_workflow(
    workflow: Any,
    *,
    plugin: dict[str, Any],
    log_dirs: Sequence[Path],
    stop_on_first_crash: bool = False,
    verbose: int = 0,
) -> list[dict[str, Any]]:
    """Run a workflow to its end, or to the first failure.

    Parameters
    ----------
    workflow : nipype.pipeline.engine.Workflow
    plugin : dict
        From :func:`read_plugin`.
    log_dirs : sequence of Path
        Where the steps leave notes of failures.
    stop_on_first_crash : bool
    verbose : int
        From 2 on Nipype's own messages are shown.

    Returns
    -------
    list of dict
        The notes: exit_code, message, remedy, fit, subject, step.  Empty when all went well.

    Raises
    ------
    KeyboardInterrupt
        A signal stopped the run; no process of it is left.
    """
    from nipype import config
    from nipype import logging as nipype_logging

    from conform_app.workflows.processes import StepProcessesPlugin, end_text, stopping

    config.update_config(
        {
            "execution": {
                "stop_on_first_crash": str(stop_on_first_crash).lower(),
                "crashfile_format": "txt",
                "create_report": "false",
                "check_version": "false",
                "remove_unnecessary_outputs": "false",
                "poll_sleep_duration": "0.2",
            },
            "logging": {
                "workflow_level": "INFO" if verbose > 1 else "CRITICAL",
                "interface_level": "CRITICAL",
            },
        }
    )
    nipype_logging.update_logging(config)
    workflow.config["execution"].update(config._sections["execution"])
    failure, killed = None, []
    with stopping() as stop:
        arguments = {"status_callback": _announcer(stop), **plugin["plugin_args"]}
        try:
            if plugin["plugin"] == "MultiProc":
                runner = StepProcessesPlugin(arguments)
                killed = runner.killed
                workflow.run(plugin=runner)
            else:
                workflow.run(plugin=plugin["plugin"], plugin_args=arguments)
        except (RuntimeError, OSError) as error:
            failure = error
        if stop.came:
            raise KeyboardInterrupt
    notes = [note for folder in log_dirs for note in _left_notes(folder)]
    told = {note.get("fit") for note in notes}
    left = [_note_of_killed(node, end_text(exit_code)) for node, exit_code in killed]
    notes += [note for note in left if not note["fit"] or note["fit"] not in told]
    if failure is not None and not notes:
        last = str(failure.__cause__ or failure).strip().splitlines()[-1:] or ["Nipype stopped."]
        remedy = "See the crash files; if the work folder lost files, remove all of it and run again."
        notes.append({"exit_code": 1, "message": last[0], "remedy": remedy, "fit": "", "subject": ""})
    return notes


def _left_notes(folder: Path) -> Iterator[dict[str, Any]]:
    """Notes that steps left in a log folder; one that a full disk cut off is passed over."""
    for path in sorted(folder.glob("error-*.json")):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            LOGGER.debug("%s is no note", path)


def _note_of_killed(node: Any, how: str) -> dict[str, Any]:
    """The note that a step could not leave itself."""
    note = {"exit_code": 1, "message": how, "fit": "", "subject": "", "step": node.name}
    note["remedy"] = "Give fewer --nprocs or more memory; what is finished is not computed again."
    plan_file = getattr(node.inputs, "plan_file", None)
    if plan_file is not None and Path(str(plan_file)).is_file():
        plan = json.loads(Path(plan_file).read_text(encoding="utf-8"))
        note |= {"fit": plan.get("name", ""), "subject": plan.get("subject", "")}
    return note
