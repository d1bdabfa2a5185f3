# SPDX-License-Identifier: Apache-2.0
"""What one call found, and what went wrong in it."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from conform_app.errors import ConformError, RunFailed
from conform_app.settings import Settings, to_toml

LOGGER = logging.getLogger("conform")


@dataclass
class Session:
    """State of one call.

    Attributes
    ----------
    settings : Settings
    run_uuid : str
        Date, time and a random part: names the log folders of this call.
    roots : dict of str to str
        Input datasets by name.
    plans : list of FitPlan
    notes : list of dict
        What failed: exit_code, message, remedy, fit, subject, step.
    finished : bool
        The workflow ran to its end, whatever became of single fits.
    """

    settings: Settings
    run_uuid: str = field(default_factory=lambda: time.strftime("%Y%m%d-%H%M%S_") + str(uuid.uuid4()))
    roots: dict[str, str] = field(default_factory=dict)
    plans: list[Any] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    @property
    def subjects(self) -> list[str]:
        """Participants concerned, those whose fits could not be planned included."""
        found = [plan.subject for plan in self.plans] + [n["subject"] for n in self.notes if n["subject"]]
        return sorted(dict.fromkeys(found))

    def log_dir(self, subject: str) -> Path:
        """Folder of this call's log of one participant."""
        return self.settings.output_dir / f"sub-{subject}" / "log" / self.run_uuid

    def note(self, error: ConformError, *, subject: str, fit: str, step: str) -> None:
        """Remember an error that stops one fit but not the others."""
        content = {"exit_code": error.exit_code, "message": error.message, "remedy": error.remedy}
        self.notes.append(content | {"subject": subject, "fit": fit, "step": step})
        if self.settings.resources.stop_on_first_crash:
            raise error


def start_logging(verbose: int) -> None:
    """Send our messages to stderr: warnings and steps, with -v details too."""
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    LOGGER.propagate = False
    LOGGER.handlers[:] = [logging.StreamHandler(sys.stderr)]
    LOGGER.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Take the signals that end a process (scheduler, closed terminal) as an interruption from the keyboard.

    A signal that is ignored (``nohup``) stays so.
    """

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    changed = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, interrupt)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def write_logs(session: Session, *, final: bool) -> None:
    """Write each participant's settings, and how its fits went, into this call's log folder.

    Parameters
    ----------
    session : Session
    final : bool
        False at the start of the run, when the state is ``running``; at the end it is ``complete``,
        ``failed``, or ``interrupted`` where the run as a whole was stopped.
    """
    for subject in session.subjects:
        folder = session.log_dir(subject)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "conform.toml", to_toml(session.settings))
        # an error that names nobody may be anybody's
        own = [note for note in session.notes if note["subject"] in (subject, "")]
        status = {"state": "running", "exit_code": None, "errors": own}
        if final and (own or session.finished):
            status |= {"state": "failed" if own else "complete", "exit_code": exit_code(own, 0)}
        elif final:
            status["state"] = "interrupted"
        status["fits"] = [plan.name for plan in session.plans if plan.subject == subject]
        replace_text(folder / "status.json", json.dumps(status, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    from conform_app.bids.provenance import write_text

    write_text(path, text)


def exit_code(notes: list[dict[str, Any]], n_done: int) -> int:
    """Return the code for what failed: the errors' own when nothing was done and all agree, else 1."""
    codes = {note["exit_code"] for note in notes}
    if not codes:
        return 0
    return codes.pop() if len(codes) == 1 and n_done == 0 else 1


def conclude(session: Session, n_done: int) -> int:
    """Return 0, or raise one error that stands for all that failed.

    Parameters
    ----------
    session : Session
    n_done : int
        Fits that are complete.

    Raises
    ------
    ConformError
        With the exit code of :func:`exit_code`.
    """
    notes = session.notes
    if not notes:
        LOGGER.info("Done: %d fit%s complete in %s", n_done, "s" * (n_done != 1), session.settings.output_dir)
        return 0
    code = exit_code(notes, n_done)
    if len(notes) == 1:
        note = notes[0]
        error = RunFailed(f"{note['fit']}: {note['message']}".removeprefix(": "), note["remedy"])
    else:
        for note in notes:
            named = note["fit"] or (f"sub-{note['subject']}" if note["subject"] else "")
            LOGGER.error("%s", f"{named}: {note['message']} {note['remedy']}".removeprefix(": "))
        error = RunFailed(f"{len(notes)} fits failed, {n_done} are complete.", "The lines above say why.")
    error.exit_code = code
    raise error
