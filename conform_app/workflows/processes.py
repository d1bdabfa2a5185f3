# SPDX-License-Identifier: Apache-2.0
"""Steps in processes of their own, and what is done when one of them, or the run, is stopped.

Nipype's MultiProc keeps a pool of processes.  When one is killed (mostly by the kernel, for its memory), the
pool breaks and Nipype waits for ever; when the run itself is ended, the pool stays behind and holds the run's
locks.  Here each step has a process: one that is killed is a step that failed, and none outlives the run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, NoReturn

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

GRACE = 5.0
"""Seconds that a step has to clean up after itself when the run is stopped."""
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stop:
    """Whether a signal to stop came."""

    came = False


class StepProcessesPlugin(MultiProcPlugin):
    """Nipype's scheduler with a process a step in place of its pool.

    Attributes
    ----------
    killed : list of (node, int)
        Steps whose process ended without a result, with its exit code (negative: the signal).
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()  # it has started nothing yet
        self.killed: list[tuple[Any, int]] = []
        self._context = get_context(self.plugin_args.get("mp_context"))

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; no process is left, however it ends."""
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            self._stop()

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        receiver, sender = self._context.Pipe(duplex=False)
        work = (sender, self._cwd, node, updatehash, self._taskid)
        process = self._context.Process(target=_step, args=work)
        process.start()
        sender.close()  # so that the end of the process ends the pipe
        self._task_obj[self._taskid] = (process, receiver, node)
        return self._taskid

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        process, receiver, node = self._task_obj[taskid]
        alive = process.is_alive()  # asked first: what it sent before its end is there then
        if receiver.poll():
            try:
                result = receiver.recv()
            except EOFError:
                pass
            else:
                process.join()
                return result
        elif alive:
            return None
        process.join()
        self.killed.append((node, process.exitcode))
        return {"taskid": taskid, "result": None, "traceback": [f"{end_text(process.exitcode)}\n"]}

    def _clear_task(self, taskid: int) -> None:
        _, receiver, _ = self._task_obj.pop(taskid)
        receiver.close()

    def _postrun_check(self) -> None:
        """There is no pool to close."""

    def _stop(self) -> None:
        processes = [process for process, _, _ in self._task_obj.values() if process.is_alive()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GRACE)
            if process.is_alive():
                process.kill()
                process.join()


def _step(sender: Any, cwd: str, node: Any, updatehash: bool, taskid: int) -> None:
    """Run one node in this process and send what became of it."""
    stop = Stop()

    def leave(*_: object) -> NoReturn:
        stop.came = True
        raise SystemExit(1)

    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches the whole group: the run decides, and asks this process to leave
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, leave)
    process_initializer(cwd)
    try:
        sender.send(run_node(node, updatehash, taskid))
    except Exception:
        if not stop.came:  # else nobody waits for a result, and nobody wants to read of it
            raise
    sender.close()


def end_text(exit_code: int | None) -> str:
    """Say how a process ended that left no result."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        often = ", most often because memory ran out" if name == "SIGKILL" else ""
        return f"Its process was killed ({name}){often}."
    return f"Its process ended without a result (exit code {exit_code})."


@contextmanager
def stopping() -> Iterator[Stop]:
    """Note signals that end the run; they are then handled as they were before.

    Nipype turns the interruption of a step into an error of that step, and goes on with the others.
    """
    stop, before = Stop(), {}

    def handler(number: int, frame: Any) -> None:
        stop.came = True
        before[number](number, frame)

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before.update({n: signal.getsignal(n) for n in numbers if callable(signal.getsignal(n))})
        for number in before:
            signal.signal(number, handler)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
