# SPDX-License-Identifier: Apache-2.0
"""Single-trial betas on disk: a Zarr v3 array whose bytes can be found without decoding.

The array ``betas (n_trials, n_vertices)`` is cut into chunks of 32 trials x 2,048 vertices.  All chunks of
256 trials lie in one file, a *shard* (codec ``sharding_indexed``): chunk rows one after the other, in a row
the chunks from the first vertex to the last, in a chunk trial after trial, uncompressed (betas are noise to a
compressor: zstd gains 8 %), the index of offsets with its CRC-32C at the end.  So

    offset(trial t, vertex v) = ((t // 32) * n_columns + v // 2048) * chunk bytes
                                + ((t % 32) * 2048 + v % 2048) * item size          t within the shard

and both a trial (one run of bytes per chunk column) and a region over all trials (one chunk column) are read
from a memory map, or from an object store by ranges.  Any Zarr v3 library reads the same files.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import DataError, FileFaultError
from conform_app.mosaic.mapped import MappedShard, keep

CHUNK_TRIALS, CHUNK_VERTICES, SHARD_TRIALS = 32, 2048, 256
_EMPTY = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Grain:
    """How an array of betas is cut.

    Attributes
    ----------
    n_trials, n_vertices : int
    dtype : str
        ``float32`` or ``float16``, little-endian on disk.
    """

    n_trials: int
    n_vertices: int
    dtype: str

    @property
    def width(self) -> int:
        """Vertices in a chunk."""
        return min(CHUNK_VERTICES, self.n_vertices)

    @property
    def columns(self) -> int:
        """Chunks side by side."""
        return -(-self.n_vertices // self.width)

    @property
    def n_shards(self) -> int:
        """Files."""
        return -(-self.n_trials // SHARD_TRIALS)

    @property
    def item(self) -> np.dtype:
        """Type of a value on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    def rows_of(self, shard: int) -> int:
        """Chunk rows that a shard holds; the last one may hold fewer."""
        trials = min(SHARD_TRIALS, self.n_trials - shard * SHARD_TRIALS)
        return -(-trials // CHUNK_TRIALS)

    def file_size(self, shard: int) -> int:
        """Bytes of a shard."""
        data = self.rows_of(shard) * self.columns * CHUNK_TRIALS * self.width * self.item.itemsize
        return data + (SHARD_TRIALS // CHUNK_TRIALS) * self.columns * 16 + 4

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(self.file_size(shard) for shard in range(self.n_shards))

    def create(self, folder: Path) -> None:
        """Write the metadata of the Zarr array."""
        import zarr

        zarr.create_array(
            folder,
            shape=(self.n_trials, self.n_vertices),
            chunks=(CHUNK_TRIALS, self.width),
            shards=(SHARD_TRIALS, self.columns * self.width),
            dtype=self.dtype,
            compressors=None,
            filters=None,
            fill_value=float("nan"),
            dimension_names=("trial", "vertex"),
            zarr_format=3,
        )


def shard_path(shard: int) -> str:
    """Path of a shard below the array's folder."""
    return f"c/{shard}/0"


def _crc32c_table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli); for the few kilobytes of a shard's index."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


class ShardWriter:
    """Takes betas trial by trial in order, and writes shards behind the caller's back.

    One thread writes while the caller prepares the next block, another waits for the disk.  Shards carry a
    CRC-32 and not a slower hash: what it guards against is damage.

    Parameters
    ----------
    folder : Path
        Of the Zarr array.
    grain : Grain
    """

    def __init__(self, folder: Path, grain: Grain) -> None:
        self.folder, self.grain = folder, grain
        self.files: dict[str, tuple[int, str]] = {}
        self._row = 0  # chunk rows put so far
        self._writing, self._syncing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._synced: deque[Future[None]] = deque()
        shape = (grain.columns, CHUNK_TRIALS, grain.width)
        self._buffers = [np.empty(shape, grain.item) for _ in range(3)]
        self._file: Any = None
        self._crc = 0
        grain.create(folder)

    def put(self, block: np.ndarray) -> None:
        """Take the next chunk row.

        Parameters
        ----------
        block : ndarray, (CHUNK_TRIALS, n_vertices) float32
            Fewer trials only in the last row.
        """
        while len(self._pending) > 1:  # so that one of three buffers is free
            self._pending.popleft().result()
        piece = self._buffers[self._row % 3]
        if len(block) < CHUNK_TRIALS:
            piece[:, len(block) :] = np.nan
        width = self.grain.width
        for column, chunk in enumerate(piece):
            part = block[:, column * width : (column + 1) * width]
            chunk[: len(block), part.shape[1] :] = np.nan
            with np.errstate(over="ignore"):
                chunk[: len(block), : part.shape[1]] = part
        if self.grain.dtype == "float16" and np.isinf(piece).any():
            raise DataError("Betas are too large for float16.", "Write the collection as float32.")
        self._pending.append(self._writing.submit(self._write, self._row, piece))
        self._row += 1

    def _write(self, row: int, piece: np.ndarray) -> None:
        shard, within = divmod(row, SHARD_TRIALS // CHUNK_TRIALS)
        if within == 0:
            path = self.folder / shard_path(shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._crc = path.open("wb", buffering=0), 0
        self._append(piece.data)
        if within == self.grain.rows_of(shard) - 1:
            self._append(self._index(shard))
            self.files[shard_path(shard)] = (self.grain.file_size(shard), f"crc32:{self._crc:08x}")
            while len(self._synced) > 1:
                self._synced.popleft().result()
            self._synced.append(self._syncing.submit(_finish, self._file))
            self._file = None

    def _append(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        self._crc = zlib.crc32(view, self._crc)
        while view:  # a raw file may take less than all
            view = view[self._file.write(view) :]

    def _index(self, shard: int) -> bytes:
        grain = self.grain
        size = CHUNK_TRIALS * grain.width * grain.item.itemsize
        index = np.full((SHARD_TRIALS // CHUNK_TRIALS * grain.columns, 2), _EMPTY, "<u8")
        n = grain.rows_of(shard) * grain.columns
        index[:n, 0], index[:n, 1] = np.arange(n, dtype=np.uint64) * np.uint64(size), size
        data = index.tobytes()
        return data + crc32c(data).to_bytes(4, "little")

    def close(self) -> dict[str, tuple[int, str]]:
        """Wait for the last write; return size and checksum of each shard."""
        for waiting in (self._pending, self._synced):  # the first fills the second
            while waiting:
                waiting.popleft().result()
        return self.files

    def abandon(self) -> None:
        """Stop writing; what was written is the caller's to remove."""
        self._writing.shutdown(cancel_futures=True)
        self._syncing.shutdown()
        if self._file is not None:
            self._file.close()


def _finish(file: Any) -> None:
    try:
        os.fsync(file.fileno())
    finally:
        file.close()


class ShardReader:
    """Reads trials and vertices of one array of betas.

    Parameters
    ----------
    place : Path or (filesystem, path)
        Folder of the array: local, or in a file system of fsspec.
    grain : Grain
    """

    def __init__(self, place: Any, grain: Grain) -> None:
        self.place, self.grain, self.local = place, grain, isinstance(place, Path)
        self.maps: dict[int, MappedShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "maps": {}}  # maps are each process's own

    def read(self, trials: np.ndarray, vertices: np.ndarray | None) -> np.ndarray:
        """Read betas.

        Parameters
        ----------
        trials : ndarray, (n,) int
        vertices : ndarray, (m,) int, or None
            None: all.

        Returns
        -------
        ndarray, (n, m) float32
        """
        grain = self.grain
        if len(trials) == 1 and vertices is None and self.local:
            return self._row(int(trials[0]))
        n_vertices = grain.n_vertices if vertices is None else len(vertices)
        out = np.empty((len(trials), n_vertices), np.float32)
        for shard in np.unique(trials // SHARD_TRIALS):
            here = np.flatnonzero(trials // SHARD_TRIALS == shard)
            t = trials[here] % SHARD_TRIALS
            if not self.local:
                out[here] = self._remote(int(shard), t, vertices)
                continue
            mapped = self._map(int(shard))
            places, length = self._places(t, vertices)
            if not mapped.cached(places[0]):
                mapped.ask_for(places, length)
            _pick(mapped.array, t, vertices, out, here)
        return out

    def strips(self, budget: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Betas of all trials, a strip of vertices at a time, of a local array.

        Files are read, not mapped: a pass over everything would otherwise hold everything in memory.

        Parameters
        ----------
        budget : int
            Bytes that a strip may have.

        Yields
        ------
        vertices : slice
        betas : ndarray, (n_trials, n_vertices of the strip) float32
        """
        grain = self.grain
        step = max(1, min(grain.width, budget // (4 * grain.n_trials)))
        for column in range(grain.columns):
            left = column * grain.width
            for start in range(0, min(grain.width, grain.n_vertices - left), step):
                stop = min(start + step, grain.width, grain.n_vertices - left)
                yield slice(left + start, left + stop), self._strip(column, start, stop)

    def _strip(self, column: int, start: int, stop: int) -> np.ndarray:
        grain = self.grain
        out = np.empty((grain.n_trials, stop - start), np.float32)
        size = CHUNK_TRIALS * grain.width * grain.item.itemsize
        for shard in range(grain.n_shards):
            with (self.place / shard_path(shard)).open("rb", buffering=0) as file:
                for row in range(grain.rows_of(shard)):
                    data = os.pread(file.fileno(), size, (row * grain.columns + column) * size)
                    first = shard * SHARD_TRIALS + row * CHUNK_TRIALS
                    n = min(CHUNK_TRIALS, grain.n_trials - first)
                    piece = np.frombuffer(data, grain.item).reshape(-1, grain.width)
                    out[first : first + n] = piece[:n, start:stop]
        return out

    def _row(self, trial: int) -> np.ndarray:
        """One trial of a local array, ``(1, n_vertices)`` float32."""
        shard, t = divmod(trial, SHARD_TRIALS)
        mapped = self.maps.get(shard) or self._map(shard)
        grain = self.grain
        row, within = divmod(t, CHUNK_TRIALS)
        line = grain.width * grain.item.itemsize
        first = (row * grain.columns * CHUNK_TRIALS + within) * line
        if not mapped.cached(first):
            step = CHUNK_TRIALS * line
            mapped.ask_for(range(first, first + grain.columns * step, step), line)
        values = mapped.array[row, :, within].reshape(1, -1)[:, : grain.n_vertices]
        return values if values.dtype == np.float32 else values.astype(np.float32)

    def _map(self, shard: int) -> MappedShard:
        mapped = self.maps.get(shard)
        if mapped is None:
            grain, path = self.grain, self.place / shard_path(shard)
            shape = (grain.rows_of(shard), grain.columns, CHUNK_TRIALS, grain.width)
            mapped = MappedShard(path, grain.item, shape, grain.file_size(shard))
            keep(self, self.maps, shard, mapped)
        return mapped

    def _places(self, t: np.ndarray, vertices: np.ndarray | None) -> tuple[list[int], int]:
        """Where the bytes of trials and vertices lie in a shard, and how many at each place."""
        grain = self.grain
        line = grain.width * grain.item.itemsize
        columns = range(grain.columns) if vertices is None else np.unique(vertices // grain.width)
        if vertices is None and len(t) < CHUNK_TRIALS:
            rows, within, length = t // CHUNK_TRIALS, t % CHUNK_TRIALS, line
        else:  # whole chunks
            rows = np.unique(t // CHUNK_TRIALS)
            within, length = np.zeros_like(rows), CHUNK_TRIALS * line
        first = ((rows * grain.columns)[:, None] + np.asarray(columns, np.int64)) * CHUNK_TRIALS
        return ((first + within[:, None]) * line).ravel().tolist(), length

    def _remote(self, shard: int, t: np.ndarray, vertices: np.ndarray | None) -> np.ndarray:
        """By ranges: per chunk touched, the bytes from the first to the last trial wanted."""
        grain, (fs, folder) = self.grain, self.place
        wanted = np.arange(grain.n_vertices) if vertices is None else vertices
        out = np.empty((len(t), len(wanted)), np.float32)
        line = grain.width * grain.item.itemsize
        column, offset = np.divmod(wanted, grain.width)
        columns = np.unique(column)
        for row in np.unique(t // CHUNK_TRIALS):
            here = np.flatnonzero(t // CHUNK_TRIALS == row)
            within = t[here] % CHUNK_TRIALS
            first, last = int(within.min()), int(within.max()) + 1
            starts = [((int(row) * grain.columns + int(c)) * CHUNK_TRIALS + first) * line for c in columns]
            ends = [start + (last - first) * line for start in starts]
            path = f"{folder}/{shard_path(shard)}"
            try:
                parts = fs.cat_ranges([path] * len(starts), starts, ends)
            except OSError as error:
                raise FileFaultError(f"{path} cannot be read: {error}.", "Check the address.") from error
            for c, part in zip(columns, parts, strict=True):
                piece = np.frombuffer(part, grain.item).reshape(-1, grain.width)
                at = np.flatnonzero(column == c)
                out[np.ix_(here, at)] = piece[np.ix_(within - first, offset[at])]
        return out


def _pick(
    data: np.ndarray, t: np.ndarray, vertices: np.ndarray | None, out: np.ndarray, here: np.ndarray
) -> None:
    """Copy trials t of a mapped shard (chunk rows, columns, trials, vertices) to the rows ``here`` of out."""
    rows, within = np.divmod(t, CHUNK_TRIALS)
    width = data.shape[3]
    if vertices is None:
        for column in range(data.shape[1]):
            left, right = column * width, min((column + 1) * width, out.shape[1])
            out[here, left:right] = data[rows, column, within, : right - left]
        return
    column, offset = np.divmod(vertices, width)
    edges = np.flatnonzero((np.diff(column) != 0) | (np.diff(vertices) != 1)) + 1
    if len(edges) * 8 < len(vertices):  # runs of neighbours: slices
        for part in np.split(np.arange(len(vertices)), edges):
            start = offset[part[0]]
            out[here, part[0] : part[-1] + 1] = data[rows, column[part[0]], within, start : start + len(part)]
        return
    chunk = CHUNK_TRIALS * width
    at = (rows * (data.shape[1] * chunk) + within * width)[:, None] + (column * chunk + offset)[None]
    out[here] = data.reshape(-1)[at]  # one flat gather; four index arrays take four times as long
