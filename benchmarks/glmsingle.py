# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a GLMsingle fit, on simulated data of any size.

Each fit runs in a process of its own: CPU time is user plus system time of the fit, memory is the highest
resident size above what the process held just before it (libraries and data).  The reference implementation
is timed as well where it can be imported (module ``glmsingle``).

    python benchmarks/glmsingle.py                      # the standard size, one and two threads
    python benchmarks/glmsingle.py --voxels 5000 10000 20000 --threads 1
"""

from __future__ import annotations

import argparse
import importlib.machinery
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from queue import Empty

import numpy as np
from simulated import Simulation, Size

QUOTED_REFERENCE = {"cpu_s": 322.0, "above_GB": 1.6}
"""Of the reference at the standard size: quoted, not measured here."""


def resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Peak(threading.Thread):
    """Follows the resident size, 200 times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._stop_now = resident(), threading.Event()

    def run(self) -> None:
        """See the class."""
        while not self._stop_now.wait(0.005):
            self.bytes = max(self.bytes, resident())

    def end(self) -> int:
        """Stop, and return the highest size seen."""
        self._stop_now.set()
        self.join()
        return self.bytes


def measure(fit) -> dict[str, float]:
    """CPU s, wall s and bytes above the start of calling ``fit``."""
    before, peak = resident(), Peak()
    peak.start()
    used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    fit()
    wall, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return {"cpu_s": cpu, "wall_s": wall, "above_GB": (peak.end() - before) / 1e9}


def data_of(simulation: Simulation) -> list[np.ndarray]:
    """All voxels' series, run by run."""
    size = simulation.size
    out = [np.empty((size.voxels, size.volumes), np.float32) for _ in range(size.runs)]
    for lo in range(0, size.voxels, 2000):
        hi = min(lo + 2000, size.voxels)
        for whole, part in zip(out, simulation.voxels(lo, hi)[0], strict=True):
            whole[lo:hi] = part
    return out


def ours(size: Size, n_threads: int, device: str, max_memory: float | None, queue) -> None:
    """Time our fit."""
    from conform_app.glmsingle import fit_glmsingle

    simulation = Simulation(size)
    data = data_of(simulation)
    more = {"n_threads": n_threads, "device": device, "max_memory": max_memory}
    # libraries (torch, scikit-learn) are loaded, and the GPU is started, by a fit of a few voxels
    fit_glmsingle([y[:300] for y in data], simulation.arrays, size.stimdur, size.tr, **more)
    queue.put(measure(lambda: fit_glmsingle(data, simulation.arrays, size.stimdur, size.tr, **more)))


def without_this_folder() -> list[str]:
    """``sys.path`` without the folder of this file, whose name is that of the reference's package."""
    here = os.path.dirname(os.path.abspath(__file__))
    return [p for p in sys.path if os.path.abspath(p or ".") != here]


def has_reference() -> bool:
    """Whether the reference can be imported."""
    return importlib.machinery.PathFinder.find_spec("glmsingle", without_this_folder()) is not None


def theirs(size: Size, queue) -> None:
    """Time the reference's fit, without its files."""
    sys.path[:] = without_this_folder()
    sys.modules.pop("glmsingle", None)
    from glmsingle.glmsingle import GLM_single

    simulation = Simulation(size)
    data = data_of(simulation)
    model = GLM_single({"wantfileoutputs": [0, 0, 0, 0], "wantmemoryoutputs": [1, 1, 1, 1]})
    with tempfile.TemporaryDirectory() as folder:
        where = [os.path.join(folder, name) for name in ("out", "figures")]
        queue.put(measure(lambda: model.fit(simulation.arrays, data, size.stimdur, size.tr, *where)))


def in_own_process(target, *args) -> dict[str, float]:
    """Run ``target(*args, queue)`` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=target, args=(*args, queue))
    child.start()
    while True:
        try:
            found = queue.get(timeout=1)
            break
        except Empty:
            if not child.is_alive():
                raise SystemExit("the timed process ended without a result") from None
    child.join()
    return found


def line(name: str, found: dict[str, float]) -> str:
    """One row of the table."""
    return f"| {name} | {found['cpu_s']:.1f} | {found['wall_s']:.1f} | {found['above_GB']:.2f} |"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    standard = Size()
    parser.add_argument("--voxels", type=int, nargs="+", default=[standard.voxels])
    for name in ("runs", "volumes", "conditions", "trials"):
        parser.add_argument(f"--{name}", type=int, default=getattr(standard, name))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-memory", type=float, default=None, help="bytes, see fit_glmsingle")
    args = parser.parse_args()
    print("| fit | CPU s | wall s | GB above the start |\n|---|---|---|---|", flush=True)
    for voxels in args.voxels:
        size = Size(voxels, args.runs, args.volumes, args.conditions, args.trials)
        rows = {}
        for n in args.threads:
            name = f"{voxels} voxels, {args.device}, {n} thread{'s' * (n > 1)}"
            rows[n] = in_own_process(ours, size, n, args.device, args.max_memory)
            print(line(name, rows[n]), flush=True)
        other, source = None, ""
        if has_reference():
            other, source = in_own_process(theirs, size), "measured"
            print(line(f"{voxels} voxels, reference", other), flush=True)
        elif size == standard:
            other, source = QUOTED_REFERENCE, "quoted"
        if other:
            best = rows[args.threads[0]]
            print(
                f"Reference ({source}): {other['cpu_s'] / best['cpu_s']:.0f} x our CPU time, "
                f"{other['above_GB'] / best['above_GB']:.1f} x our memory.",
                flush=True,
            )


if __name__ == "__main__":
    main()
