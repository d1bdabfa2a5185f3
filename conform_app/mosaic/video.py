# SPDX-License-Identifier: Apache-2.0
"""Frames of video files, decoded one after the other by PyAV, where it is installed.

Frames are compared as decoded pixels, so two files agree where one was cut from the other without encoding it
anew (a copy of the stream, another container).  What was encoded again has other pixels: its likeness is for
embeddings to find.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from conform_app.errors import FileFaultError, NoInputError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


def is_video(path: str | Path) -> bool:
    """Whether a file's name is that of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def can_read_videos() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def video_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a video.

    Parameters
    ----------
    path : path

    Yields
    ------
    ndarray, (height, width, 3) uint8
        RGB, frame after frame; one is in memory at a time.

    Raises
    ------
    NoInputError
        PyAV is not installed.
    FileFaultError
        The file cannot be decoded, or holds no picture.
    """
    if not can_read_videos():
        raise NoInputError(
            f"The frames of {path} cannot be read: PyAV is not installed.",
            "Install it (pip install av), or give each movie as a folder of pictures.",
        )
    import av

    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise FileFaultError(f"{path} holds no video.", "Leave it out of the folder of stimuli.")
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError) as error:
        raise FileFaultError(
            f"{path} cannot be decoded: {error}.",
            "Replace it, or leave it out of the folder of stimuli.",
        ) from error
