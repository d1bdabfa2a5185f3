# SPDX-License-Identifier: Apache-2.0
"""What the tests of the rooms on a GPU share: the device, simulated or real, and how results are compared."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from simulated_gpu import simulated_gpu

KINDS = ("simulated", "cuda") if torch.cuda.is_available() else ("simulated",)


@contextmanager
def device(kind: str):
    """A device named cuda; fails a test that does not use it."""
    if kind == "simulated":
        with simulated_gpu() as state:
            yield kind
            assert state.sent, "nothing went to the device"
            assert state.fetched, "nothing came back from the device"
        return
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    yield kind
    assert torch.cuda.memory_stats()["allocation.all.allocated"] > before, "nothing went to the device"


def same(there, here, rtol: float, atol: float = 0.0, what: str = "") -> None:
    """Arrays, and whatever holds arrays, agree."""
    if isinstance(here, np.ndarray) and here.dtype.kind == "f":
        np.testing.assert_allclose(there, here, rtol=rtol, atol=atol, err_msg=what)
    elif isinstance(here, np.ndarray):
        np.testing.assert_array_equal(there, here, err_msg=what)
    elif isinstance(here, list | tuple):
        for number, (a, b) in enumerate(zip(there, here, strict=True)):
            same(a, b, rtol, atol, f"{what}[{number}]")
    elif hasattr(here, "__dataclass_fields__"):
        for name in here.__dataclass_fields__:
            same(getattr(there, name), getattr(here, name), rtol, atol, f"{what}.{name}")
