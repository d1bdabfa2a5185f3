# SPDX-License-Identifier: Apache-2.0
"""Image features: one interface, image -> unit-norm vector, whoever computes them.

An `Extractor` has a name, a length, and ``encode``; those whose network has a text tower also
``encode_text``.  `open_extractor` makes one from ``backend:model`` (see `networks`).  `read_features` takes
features that were computed elsewhere.

`extract` keeps every vector under the content of its image (SHA-256) and the extractor's name, which holds
hashes of the network's weights and of its preprocessing: the same picture under two names is computed once,
and another network never answers for this one.  A video's vector is the mean of its frames' unit vectors,
brought to unit norm.  Files are read and prepared in threads, a bounded number ahead of the network.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.braincorl.checks import check_features, unit_norm
from conform_app.braincorl.pictures import content_of, moves, read_frames
from conform_app.devices import torch_device
from conform_app.errors import CannotCreateError, DataError, FileFaultError, NoInputError, UsageError


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes
    ----------
    name : str
        Goes into the cache's keys: network, layer, weights and preprocessing.
    n_features : int
    encode : callable
        Images as ``prepare`` leaves them -> (n, E).
    encode_text : callable or None
        Prompts -> (n, E), in the images' space.
    prepare : callable or None
        One image, (height, width, 3) uint8 -> what ``encode`` takes; called in threads.  None: as it is.
    layer : str
        What of the network the vector is, in words.
    """

    name: str
    n_features: int
    encode: Callable[[Sequence[Any]], np.ndarray] = field(repr=False)
    encode_text: Callable[[Sequence[str]], np.ndarray] | None = field(default=None, repr=False)
    prepare: Callable[[np.ndarray], Any] | None = field(default=None, repr=False)
    layer: str = ""

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit-norm features (n, E), float32, of images (height, width, 3) uint8."""
        prepared = list(images) if self.prepare is None else [self.prepare(image) for image in images]
        return unit_norm(self.encode(prepared))


def open_extractor(spec: str, *, device: str = "cpu", allow_download: bool = False) -> Extractor:
    """Open ``backend:model``.

    Parameters
    ----------
    spec : str
        See `conform_app.braincorl.networks` for the backends and how each names its models.
    device : str
        "cpu", "cuda", or "auto": a GPU if there is one.
    allow_download : bool
        Whether a library may fetch weights that are not there.

    Returns
    -------
    Extractor

    Raises
    ------
    UsageError
        Unknown backend or device, or no weights named.
    MissingCommandError
        The library is not installed.
    NoInputError
        The weights are not there.
    FileFaultError
        The weights cannot be read, or are of another network.
    """
    from conform_app.braincorl.networks import open_network

    return open_network(spec, str(torch_device(device)), allow_download)


def read_features(path: Path | str, *, dataset: str = "features") -> tuple[list[str], np.ndarray]:
    """Names and features that were computed elsewhere.

    ``.npz``: arrays ``names (n,)`` and ``values`` (or ``features``) ``(n, E)``.  ``.npy``: the features, with
    the names one a line in the ``.txt`` of the same stem.  ``.h5``/``.hdf5``: data sets ``names`` and
    ``dataset``.

    Parameters
    ----------
    path : path
        ``.npz``, ``.npy`` or ``.h5``.
    dataset : str
        Of an HDF5 file: the data set that holds the features.

    Returns
    -------
    names : list of str
    features : ndarray (n, E), float32
        As they are: `unit_norm` is the caller's to apply.

    Raises
    ------
    NoInputError
        There is no such file, or no names beside a ``.npy``.
    FileFaultError
        It cannot be read.
    DataError
        Other numbers of names and rows.
    UsageError
        Another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise NoInputError(f"There is no features file {path}.", "Give a .npz, .npy or .h5 file.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as table:
                names = table["names"]
                features = table["values" if "values" in table.files else "features"]
        elif path.suffix == ".npy":
            features = np.load(path, allow_pickle=False)
            names = np.array(path.with_suffix(".txt").read_text(encoding="utf-8").splitlines())
        elif path.suffix in (".h5", ".hdf5"):
            import h5py

            with h5py.File(path, "r") as file:
                names, features = file["names"].asstr()[:], file[dataset][:]
        else:
            raise UsageError(f"{path} is no known kind of features file.", "Give a .npz, .npy or .h5 file.")
    except FileNotFoundError as error:
        raise NoInputError(f"{path} has no names beside it: {error.filename}.", "One name a line.") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise FileFaultError(f"{path} cannot be read as features: {error}", "Write it again.") from error
    if features.ndim != 2 or len(names) != len(features):
        raise DataError(f"{path} has {len(names)} names for features {features.shape}.", "One row per name.")
    return [str(n) for n in names], np.asarray(features, np.float32)


def write_features(path: Path | str, names: Sequence[str], features: np.ndarray) -> Path:
    """Names and features as ``.npz`` (``names``, ``values``), for `read_features` and ``--features``.

    Parameters
    ----------
    path : path
        Its ending becomes ``.npz``.
    names : sequence of str
        One a row, each once.
    features : array (n, E)
        Unit norm.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        Other numbers of names and rows, a name twice, features that are not unit vectors.
    CannotCreateError
        The file cannot be written.
    """
    path = Path(path).with_suffix(".npz")
    features = check_features(features)
    if len(names) != len(features) or len(set(names)) < len(names):
        raise DataError(
            f"{len(names)} names ({len(set(names))} different ones) for {len(features)} features.",
            "Give each row a name of its own.",
        )
    part = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez(part, names=np.array(names, str), values=features)
        part.replace(path)
    except OSError as error:
        raise CannotCreateError(f"{path} cannot be written: {error}", "Give another path.") from error
    return path


def extract(
    files: Sequence[Path | str],
    extractor: Extractor,
    *,
    cache: Path | str | None = None,
    batch: int = 32,
    n_frames: int = 8,
    n_threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Unit-norm features of image and video files.

    Parameters
    ----------
    files : sequence of path
        Images, videos, folders of frames, ``.npy`` arrays (see `read_frames`).
    extractor : Extractor
    cache : path, optional
        Folder of one ``.npy`` per content and extractor.
    batch : int
        Images that the network gets at a time.
    n_frames : int
        Frames of a video, evenly spaced.
    n_threads : int
        Threads that read and prepare images.  At most ``2 n_threads`` files are read ahead, so that memory
        holds at most ``batch + (2 n_threads + 1) n_frames`` images.
    progress : callable (done, total), optional

    Returns
    -------
    ndarray (n_files, E), float32

    Raises
    ------
    NoInputError, FileFaultError
        A file is not there, or cannot be read; named.
    DataError
        The network gave zeros or values that are not finite.
    UsageError
        ``batch``, ``n_frames`` or ``n_threads`` below 1.
    """
    if batch < 1 or n_frames < 1 or n_threads < 1:
        raise UsageError(
            f"A batch of {batch}, {n_frames} frames and {n_threads} threads were asked for.",
            "At least 1 each.",
        )
    files = [Path(file) for file in files]
    out = np.full((len(files), extractor.n_features), np.nan, np.float32)
    rows: dict[str, list[int]] = {}
    with ThreadPoolExecutor(n_threads) as pool:
        for i, key in enumerate(pool.map(lambda file: _key(file, extractor, n_frames), files)):
            rows.setdefault(key, []).append(i)
    todo = {}
    for key, own in rows.items():
        kept = _kept(cache, key, extractor.n_features)
        if kept is None:
            todo[key] = files[own[0]]
        else:
            out[own] = kept
    for done, (key, vector) in enumerate(_vectors(todo, extractor, batch, n_frames, n_threads), start=1):
        out[rows[key]] = vector
        _keep(cache, key, vector)
        if progress:
            progress(done, len(todo))
    if not files:
        return out
    return check_features(out, extractor.n_features, what="Extracted features")


def _vectors(
    todo: dict[str, Path], extractor: Extractor, batch: int, n_frames: int, n_threads: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Key and vector of each file; frames of neighbouring files share batches."""
    waiting: list[tuple[str, Any]] = []
    left: dict[str, int] = {}
    sums: dict[str, np.ndarray] = {}

    def encode(part: list[tuple[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
        found = np.asarray(extractor.encode([image for _, image in part]))
        if found.shape != (len(part), extractor.n_features):
            raise DataError(
                f"{extractor.name} gave {found.shape}, not {(len(part), extractor.n_features)}.",
                "Encode one row per image.",
            )
        for (key, _), vector in zip(part, found, strict=True):
            if not np.isfinite(vector).all() or not np.any(vector):
                raise DataError(
                    f"Features of {todo[key]} are zero or not finite.", "Check the network's weights."
                )
            sums[key] = sums.get(key, 0) + unit_norm(vector[None].astype(np.float64))[0].astype(np.float64)
            left[key] -= 1
            if left[key] == 0:
                del left[key]
                yield key, unit_norm(sums.pop(key)[None])[0]

    for key, frames in _read_ahead(todo, extractor, n_frames, n_threads):
        left[key] = len(frames)
        waiting += [(key, frame) for frame in frames]
        while len(waiting) >= batch:
            part, waiting = waiting[:batch], waiting[batch:]
            yield from encode(part)
    if waiting:
        yield from encode(waiting)


def _read_ahead(
    todo: dict[str, Path], extractor: Extractor, n_frames: int, n_threads: int
) -> Iterator[tuple[str, list[Any]]]:
    """Prepared frames of each file, in order, at most ``2 n_threads`` files ahead."""

    def read(file: Path) -> list[Any]:
        frames = read_frames(file, n_frames)
        return frames if extractor.prepare is None else [extractor.prepare(frame) for frame in frames]

    ahead: deque[tuple[str, Future]] = deque()
    pool = ThreadPoolExecutor(n_threads)
    try:
        for key, file in todo.items():
            ahead.append((key, pool.submit(read, file)))
            if len(ahead) >= 2 * n_threads:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _key(file: Path, extractor: Extractor, n_frames: int) -> str:
    frames = n_frames if moves(file) else 1
    return hashlib.sha256(f"{content_of(file)} {extractor.name} {frames}".encode()).hexdigest()


def _kept(cache, key: str, n_features: int) -> np.ndarray | None:
    if cache is None:
        return None
    path = Path(cache) / key[:2] / f"{key}.npy"
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or broken: computed again
        return None
    return vector if vector.shape == (n_features,) and np.isfinite(vector).all() else None


def _keep(cache, key: str, vector: np.ndarray) -> None:
    if cache is None:
        return
    path = Path(cache) / key[:2] / f"{key}.npy"
    part = path.with_name(f".{key}.{os.getpid()}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, vector.astype(np.float32))
        part.replace(path)
    except OSError as error:
        raise CannotCreateError(
            f"Features cannot be kept in {cache}: {error}", "Give another cache folder."
        ) from error
