# SPDX-License-Identifier: Apache-2.0
"""What this process may use: CPUs and memory of its affinity mask and control group, folders to write in."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from conform_app.cli.session import LOGGER
from conform_app.errors import CannotCreateError, UsageError
from conform_app.settings import ResourceSettings

GPU_SHARE = 4 << 30
"""Bytes of a GPU that a fit may take: working arrays (2 GiB at most), as much again for copies and CUDA."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Resources:
    """What a run uses.

    Attributes
    ----------
    nprocs : int
        Fits at once.
    n_threads : int
        Threads of each.
    memory : int
        Bytes for all of them together.
    """

    nprocs: int
    n_threads: int
    memory: int


def resolve_resources(settings: ResourceSettings, n_fits: int, gpu_free: int | None = None) -> Resources:
    """Return what a run of so many fits uses.

    Parameters
    ----------
    settings : ResourceSettings
    n_fits : int
    gpu_free : int, optional
        Bytes that are free on the GPU that all of them use: bounds the fits at once unless the user does.

    Raises
    ------
    UsageError
        A number of processes or threads below 1.
    """
    for name in ("nprocs", "omp_nthreads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}.", "Give 1 or more.")
    cpus = settings.nprocs or available_cpus()
    at_once = max(1, min(cpus, n_fits))
    if gpu_free is not None and settings.nprocs is None:
        at_once = max(1, min(at_once, gpu_free // GPU_SHARE))
    threads = settings.omp_nthreads or max(1, cpus // at_once)
    return Resources(at_once, threads, settings.mem or int(0.8 * available_memory()))


def available_cpus() -> int:
    """CPUs that the scheduler lets this process use, bounded by the control group's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def available_memory() -> int:
    """Bytes of memory that are free now, bounded by the control group's limit."""
    free = 4 << 30
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _read(CGROUP / "memory.max").strip(), _read(CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, max(int(limit) - int(used), 1 << 28))
    return free


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def prepare_environment() -> None:
    """Give libraries that write settings a place that can be written, and keep them offline.

    HOME and the working directory may be read-only (containers, clusters).
    """
    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "0")
    home = Path(os.environ.get("HOME", "/"))
    if not os.access(home, os.W_OK):
        scratch = temporary_folder() / f"conform-home-{_user()}"
        templates = home / ".cache" / "templateflow"
        if templates.is_dir():  # readable, if not writable
            os.environ.setdefault("TEMPLATEFLOW_HOME", str(templates))
        for name in ("NIPYPE_CONFIG_DIR", "MPLCONFIGDIR", "TEMPLATEFLOW_HOME", "XDG_CACHE_HOME"):
            os.environ.setdefault(name, str(scratch / name.lower()))
        # libraries that do not know these names fall back to the home folder
        os.environ["HOME"] = str(scratch)
        scratch.mkdir(parents=True, exist_ok=True)


def default_work_dir(output_dir: Path) -> Path:
    """Folder for intermediate results: the same one for the same output folder and user."""
    import hashlib

    key = hashlib.blake2b(str(output_dir).encode(), digest_size=5).hexdigest()
    return temporary_folder() / f"conform-work-{_user()}-{key}"


def temporary_folder() -> Path:
    """Return the system's temporary folder.

    Raises
    ------
    CannotCreateError
        None can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise CannotCreateError(
            "No temporary folder can be written.",
            "Set TMPDIR to one that can (in a container: --tmpfs /tmp).",
        ) from error


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def resolve_device(wanted: str) -> tuple[str, int | None]:
    """Return ``cpu`` or ``cuda``, and the bytes that are free on the GPU.

    Raises
    ------
    UsageError
        CUDA is asked for and cannot be used.
    """
    if wanted == "cpu":
        return "cpu", None
    from conform_app.devices import ask_cuda

    state = ask_cuda()
    if state.fault is None:
        return "cuda", state.free
    if wanted == "cuda":
        raise UsageError(
            f"--device cuda: no CUDA device is available ({state.fault}).", "Use --device cpu, or auto."
        )
    LOGGER.debug("no CUDA device: %s", state.fault)
    return "cpu", None
