# SPDX-License-Identifier: Apache-2.0
"""Voxels in blocks: how the data are read and how many voxels are worked on at once.

Data stay where they are (arrays, memory maps, HDF5 datasets, image proxies: anything with a shape that slices
by its first axis); a block is read run by run as float32.  The number of voxels in a block follows from the
memory allowed and has no effect on results beyond rounding, since every step after the choice of the noise
pool is per voxel.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from conform_app.errors import DataError, UsageError

MOST_WORK = {"cpu": 1 << 27, "cuda": 1 << 31}
"""Bytes for the working arrays of a block at most: larger blocks are not faster."""
SHARES = 4
"""Blocks come in multiples of this many on a CPU, so that two or four threads have equal shares."""
MOST_VOXELS = 32768
FEWEST_VOXELS = 256


class Series:
    """Time series of all runs, read by voxel.

    Parameters
    ----------
    data : sequence of (n_voxels, n_volumes) arrays, or of (X, Y, Z, n_volumes)
        One per run: arrays, or anything with ``shape`` that slices by its first axis.

    Raises
    ------
    DataError
        Naming the run (from 1) whose shape does not fit.
    """

    def __init__(self, data: Sequence) -> None:
        if hasattr(data, "ndim") or len(data) == 0:
            raise DataError("The data are not a list of runs.", "Give a list with one array per run.")
        self._runs = [run if hasattr(run, "shape") else np.asarray(run) for run in data]
        first = tuple(self._runs[0].shape)
        for r, run in enumerate(self._runs, 1):
            shape = tuple(run.shape)
            if len(shape) not in (2, 4) or 0 in shape:
                raise DataError(f"Run {r}: the data have shape {shape}.", "Give (n_voxels, n_volumes).")
            if shape[:-1] != first[:-1]:
                raise DataError(
                    f"Run {r}: the data have shape {shape}, run 1 has {first}.",
                    "All runs need the same voxels in the same order.",
                )
            if shape[-1] < 3:
                raise DataError(f"Run {r} has {shape[-1]} volumes.", "Leave this run out.")
        self.shape = first[:-1]
        self._runs = [
            run.reshape(-1, run.shape[-1]) if isinstance(run, np.ndarray) else run for run in self._runs
        ]
        self.n_voxels = prod(int(n) for n in first[:-1])
        self.n_volumes = tuple(int(run.shape[-1]) for run in self._runs)
        self._lock = threading.Lock()  # files behind other objects need not bear two readers

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return len(self._runs)

    def cut(self, n_volumes: Sequence[int]) -> None:
        """Keep the first volumes of each run only."""
        self.n_volumes = tuple(min(a, int(b)) for a, b in zip(self.n_volumes, n_volumes, strict=True))

    def read(self, run: int, lo: int, hi: int, rows: np.ndarray | None = None) -> np.ndarray:
        """A new float32 array of voxels lo to hi, or of ``rows`` (counted from lo) among them."""
        source = self._runs[run]
        if isinstance(source, np.ndarray):
            block = np.asarray(source[lo:hi])
        elif len(source.shape) == 2:
            with self._lock:
                block = np.asarray(source[lo:hi])
        else:  # whole slabs of the first axis hold the voxels wanted
            slab = prod(source.shape[1:-1])
            first = lo // slab
            with self._lock:
                block = np.asarray(source[first : -(-hi // slab)])
            block = block.reshape(-1, block.shape[-1])[lo - first * slab : hi - first * slab]
        block = block[:, : self.n_volumes[run]]
        block = block if rows is None else block[rows]
        return np.array(block, dtype=np.float32, order="C")


def block_length(
    bytes_per_voxel: int,
    fixed: int,
    n_voxels: int,
    max_memory,
    chunklen,
    workers: int = 1,
    device: str = "cpu",
) -> int:
    """Voxels per block; the blocks are nearly equal.

    Unless ``max_memory`` binds, the number of workers has no effect, so that neither have results.

    Parameters
    ----------
    bytes_per_voxel : int
        Working memory that grows with the block.
    fixed : int
        Bytes taken whatever the block: results and factorisations.
    n_voxels : int
    max_memory : float or None
        Bytes for the fit beyond the data that were passed in.
    chunklen : int or None
        Largest block wished for.
    workers : int
        Blocks that are worked on at the same time.
    device : {"cpu", "cuda"}

    Raises
    ------
    UsageError
        When ``max_memory`` does not even hold results and the smallest block.
    """
    work = MOST_WORK["cpu" if device == "cpu" else "cuda"]
    if max_memory is not None:
        work = min(work, (float(max_memory) - fixed) / workers)
        need = fixed + workers * FEWEST_VOXELS * bytes_per_voxel
        if work < FEWEST_VOXELS * bytes_per_voxel and n_voxels > FEWEST_VOXELS:
            raise UsageError(
                f"The fit needs at least {need / 2**30:.2f} GiB beside the data; "
                f"{float(max_memory) / 2**30:.2f} are allowed.",
                "Allow more memory, keep fewer types, or use fewer threads.",
            )
    length = int(max(FEWEST_VOXELS, min(MOST_VOXELS, work // bytes_per_voxel)))
    if chunklen is not None:
        length = min(length, int(chunklen))
    length = max(1, min(length, n_voxels))
    n_blocks = -(-n_voxels // length)
    if device == "cpu" and n_voxels >= SHARES * FEWEST_VOXELS:
        n_blocks = -(-n_blocks // SHARES) * SHARES
    return -(-n_voxels // n_blocks)


def blocks(n_voxels: int, length: int) -> Iterator[tuple[int, int]]:
    """(lo, hi) of each block."""
    for lo in range(0, n_voxels, length):
        yield lo, min(lo + length, n_voxels)
