# SPDX-License-Identifier: Apache-2.0
"""Content of stimulus files: hashes of files, of decoded pictures, and of the frames of a movie.

A movie has two identities: that of its file (any change of container or codec makes another) and that of its
frames, each hashed as decoded pixels.  Two movies that share frames are cuts of one recording: a stimulus of
one in train and of the other in test would be a leak that neither names nor file hashes show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from conform_app.errors import FileFaultError, NoInputError
from conform_app.mosaic.video import is_video, video_frames

_FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Parameters
    ----------
    path : path

    Returns
    -------
    str

    Raises
    ------
    NoInputError
        If there is no such file.
    FileFaultError
        If it cannot be read to the end.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise NoInputError(f"There is no stimulus file {path}.", "Correct the name or the folder.") from error
    except OSError as error:
        raise FileFaultError(
            f"{path} cannot be read: {error.strerror}.", "Check the file's rights."
        ) from error


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of a decoded picture: shape, type and values.

    Parameters
    ----------
    pixels : ndarray
        (height, width) or (height, width, channels).

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(f"{pixels.shape}{pixels.dtype.str}".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def frame_hashes(frames: Iterable[np.ndarray] | Sequence[str | Path] | str | Path) -> list[str]:
    """Hash of each frame of a movie.

    Parameters
    ----------
    frames : video file, folder, sequence of picture files, or iterable of arrays
        A folder's pictures are taken in the order of their names (``STEM_frame-0001_0090.jpg``).  Videos
        need PyAV.

    Returns
    -------
    list of str
        Of the decoded pixels for arrays and videos, of the bytes for files.

    Raises
    ------
    NoInputError
        There is no such folder, or PyAV is not installed.
    FileFaultError
        A video cannot be decoded.
    """
    if isinstance(frames, str | Path) and is_video(frames) and Path(frames).is_file():
        return [pixel_hash(frame) for frame in video_frames(frames)]
    if isinstance(frames, str | Path):
        folder = Path(frames)
        if not folder.is_dir():
            raise NoInputError(f"{folder} is no folder of frames.", "Give a folder, files or arrays.")
        frames = sorted(p for p in folder.iterdir() if p.suffix.lower() in _FRAME_SUFFIXES)
    return [content_hash(f) if isinstance(f, str | Path) else pixel_hash(f) for f in frames]


def movie_hash(frames: Sequence[str]) -> str:
    """One hash for a movie's frames in their order: equal for two files that decode to the same frames.

    Parameters
    ----------
    frames : sequence of str
        From `frame_hashes`, in order.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return hashlib.sha256("".join(frames).encode()).hexdigest()


def shared_frames(a: Sequence[str], b: Sequence[str]) -> float:
    """Share of the shorter movie's distinct frames that the other one has too, from 0 to 1.

    Parameters
    ----------
    a, b : sequence of str
        Hashes of the two movies' frames.

    Returns
    -------
    float
        0 where either has none.
    """
    one, other = set(a), set(b)
    return len(one & other) / min(len(one), len(other)) if one and other else 0.0


def overlapping_movies(movies: dict[str, Sequence[str]], least: float = 0.0) -> list[tuple[str, str, float]]:
    """Pairs of movies that share frames.

    Parameters
    ----------
    movies : dict
        Frame hashes of each movie.
    least : float, default 0
        Pairs that share no more than this are left out.

    Returns
    -------
    list of (str, str, float)
        The two movies and what `shared_frames` says, in the order of the dict.
    """
    where: dict[str, list[str]] = {}
    for name, frames in movies.items():
        for frame in set(frames):
            where.setdefault(frame, []).append(name)
    order = {name: i for i, name in enumerate(movies)}
    pairs = {(a, b) for names in where.values() for a in names for b in names if order[a] < order[b]}
    found = [(a, b, shared_frames(movies[a], movies[b])) for a, b in pairs]
    return sorted((p for p in found if p[2] > least), key=lambda p: (order[p[0]], order[p[1]]))
