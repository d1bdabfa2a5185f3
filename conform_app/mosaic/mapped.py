# SPDX-License-Identifier: Apache-2.0
"""Shards of local collections, mapped into memory, and asked for before they are touched.

A trial lies in 45 places of a shard.  What the kernel has in its cache is read fastest through a map; what it
has not would be fetched by one page fault after the other, each waiting for the disk.  So the first place is
looked up in the cache (a read that may not wait), and if it is not there, all places are asked for at once:
the disk sees 45 requests together instead of one at a time.

Every map holds two file handles.  A process may have a limited number of them, and a large collection has
more shards than that, so the oldest maps are given up first.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import FileFaultError

_OPEN: deque[tuple[weakref.ref, int]] = deque()
_BYTE = [bytearray(1)]  # read into, never looked at
_CAN_ASK = hasattr(os, "RWF_NOWAIT") and hasattr(mmap, "MADV_WILLNEED")
MOST = 2048


def room() -> int:
    """How many shards a process may keep mapped: a quarter of the files it may have open, two each."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(4, min(MOST, soft // 8))


class MappedShard:
    """One file, mapped for reading.

    Parameters
    ----------
    path : Path
    item : dtype
    shape : tuple of int
        Of the numbers at the beginning of the file.
    size : int
        Bytes that the file must have.

    Attributes
    ----------
    array : ndarray of `shape`
        Read only.

    Raises
    ------
    FileFaultError
        It cannot be read, or has another size.
    """

    def __init__(self, path: Path, item: np.dtype, shape: tuple[int, ...], size: int) -> None:
        self._handle, self._calm, self._hits = -1, 0, 0
        try:
            self._handle = os.open(path, os.O_RDONLY)
            found = os.fstat(self._handle).st_size
            if found != size:
                raise FileFaultError(
                    f"{path} has {found} bytes instead of {size}.",
                    "The file was damaged: remove the participant and add it again.",
                )
            self._map = mmap.mmap(self._handle, size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FileFaultError(
                f"{path} cannot be read: {error.strerror}.", "Add the participant again."
            ) from error
        n = 1
        for length in shape:
            n *= length
        self.array = np.frombuffer(self._map, item, n).reshape(shape)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def ask_for(self, starts: Iterable[int], length: int) -> None:
        """Have the kernel fetch these bytes all at once.

        Parameters
        ----------
        starts : iterable of int
            Places in the file.
        length : int
            Bytes wanted at each.
        """
        with contextlib.suppress(OSError):  # advice only
            for start in starts:
                aligned = start - start % mmap.PAGESIZE
                self._map.madvise(mmap.MADV_WILLNEED, aligned, start - aligned + length)

    def cached(self, start: int) -> bool:
        """Whether a byte can be read without waiting; also where the system cannot tell.

        To be asked once before a read: the question itself may fetch the byte.
        After hits in a row, some questions (1, 3, 7, then 15) are answered yes without asking.
        """
        if self._calm or not _CAN_ASK:
            self._calm -= 1
            return True
        try:
            os.preadv(self._handle, _BYTE, start, os.RWF_NOWAIT)
        except BlockingIOError:
            self._hits = 0
            return False
        except OSError:  # the file system has no such read
            pass
        self._calm = self._hits = min(2 * self._hits + 1, 15)
        return True


def keep(owner: Any, maps: dict[int, MappedShard], shard: int, mapped: MappedShard) -> None:
    """Keep a map for later, and give up the oldest ones of the process if there are too many.

    Parameters
    ----------
    owner : object
        Whose maps they are; it may go away at any time.
    maps : dict of int to MappedShard
        The owner's; those of other owners are found as their attribute ``maps``.
    shard : int
    mapped : MappedShard
    """
    maps[shard] = mapped
    _OPEN.append((weakref.ref(owner), shard))
    while len(_OPEN) > room():
        other, number = _OPEN.popleft()
        reader = other()
        if reader is not None:
            reader.maps.pop(number, None)
