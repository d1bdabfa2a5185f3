# SPDX-License-Identifier: Apache-2.0
"""Where arrays are computed: the CPU or a CUDA device, under the same names everywhere.

"cpu", "cuda", one of several GPUs as "cuda:1", or "auto": a GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conform_app.errors import RunFailed, UsageError

if TYPE_CHECKING:
    import torch

ADVICE = "Use device 'cpu', or 'auto' for a GPU if there is one."


def torch_device(wanted: str | torch.device) -> torch.device:
    """The device of a name, if it is there.

    Parameters
    ----------
    wanted : {"cpu", "cuda", "cuda:1", ..., "auto"}

    Raises
    ------
    UsageError
        An unknown name, or a device that is not there.
    """
    import torch

    name = str(wanted)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise UsageError(f"device = {wanted!r} is not known.", 'Choose "cpu", "cuda" or "auto".')
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("No CUDA device is available.", ADVICE)
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"There is no {name}.", f"Number of GPUs, counted from 0: {torch.cuda.device_count()}."
        )
    return place


def in_bfloat16(precision: str, place: torch.device) -> bool:
    """Whether "auto", "float32" or "bfloat16" means bfloat16 on a device.

    "auto" does on GPUs that multiply in it: NVIDIA's from Ampere (2020) on, AMD's.  Others would imitate it.
    """
    import torch

    if precision != "auto" or place.type != "cuda":
        return precision == "bfloat16"
    return bool(getattr(torch.version, "hip", None)) or torch.cuda.get_device_capability(place)[0] >= 8


@dataclass(frozen=True)
class CudaState:
    """What CUDA said.

    Attributes
    ----------
    fault : str or None
        Why it cannot be used; None if it can.
    free : int
        Bytes that are free on the GPU.
    """

    fault: str | None
    free: int = 0


def ask_cuda() -> CudaState:
    """Whether CUDA can be used, asked in a process of its own.

    A process that has asked CUDA anything cannot fork others that use it, and those that run fits are forked.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    import torch

    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return CudaState("this build of PyTorch is for CPUs alone")
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            state = pool.submit(_ask_here).result()
    except BrokenProcessPool:
        return CudaState("the process that tried it came to a sudden end")
    if "fork" in (state.fault or ""):  # this process had asked before: nothing is left to spare
        return _ask_here()
    return state


@contextmanager
def gpu_memory_said_plainly() -> Iterator[None]:
    """Turn what torch raises when a GPU is full into an error with a remedy.

    Raises
    ------
    RunFailed
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise RunFailed("The GPU has no memory left.", "Give fewer --nprocs, or --device cpu.") from error


def _ask_here() -> CudaState:
    import torch

    if not torch.cuda.is_available():
        return CudaState("PyTorch finds none")
    try:  # a driver that is too old, or a GPU that this build has no kernels for, shows here
        torch.ones(2, device="cuda").sum().item()
        return CudaState(None, torch.cuda.mem_get_info()[0])
    except RuntimeError as error:
        return CudaState(str(error).strip().split("\n")[0])
