# SPDX-License-Identifier: Apache-2.0
"""Stimulus files -> pixels: images, videos and folders of frames, and the hash of what is in them.

Pixels are taken as CLIP's own preprocessing takes them (``Image.open(file).convert("RGB")``): grey is
repeated over the channels, CMYK and palettes are converted, an alpha channel is dropped and not blended, and
the EXIF orientation is *not* applied.  Sixteen-bit grey is scaled to eight bits (the conversion would clip
it); floating-point images have no agreed range and are refused.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from conform_app.errors import DataError, FileFaultError, MissingCommandError, NoInputError

VIDEOS = (".mp4", ".avi", ".mov", ".webm", ".mkv", ".m4v", ".mpg")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy")
ANIMATED = ("GIF", "WEBP")  # more than one page of another format is no animation


def read_frames(file: Path, n_frames: int) -> list[np.ndarray]:
    """Frames of an image (one), a video or a folder (evenly spaced), each (height, width, 3) uint8.

    Parameters
    ----------
    file : Path
        An image; an animated image; a video; a folder of frames, in the natural order of their names
        (``frame2`` before ``frame10``); a ``.npy`` of uint8, (height, width, 3) or (frames, ..., 3).
    n_frames : int
        Frames that are taken of one that moves: the middles of that many equal parts.

    Raises
    ------
    FileFaultError
        It cannot be read.
    DataError
        Its pixels have no meaning as colours of 0 to 255.
    MissingCommandError
        A video, and the package that reads videos is not installed.
    """
    if file.is_dir():
        frames = frames_of_folder(file)
        return [read_frames(frames[i], 1)[0] for i in spaced(len(frames), n_frames)]
    if file.suffix.lower() == ".npy":
        return _array(file, n_frames)
    if file.suffix.lower() in VIDEOS:
        return _video(file, n_frames)
    return _picture(file, n_frames)


def spaced(n: int, n_frames: int) -> list[int]:
    """Middles of ``n_frames`` equal parts of n frames."""
    return sorted({int((i + 0.5) * n / n_frames) for i in range(n_frames)})


def frames_of_folder(folder: Path) -> list[Path]:
    """Images of a folder, in the natural order of their names."""

    def order(file: Path) -> list:
        return [
            (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", file.name)
        ]

    frames = [f for f in folder.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
    if not frames:
        raise NoInputError(f"The folder {folder} holds no frames.", f"Give {', '.join(PICTURES)} files.")
    return sorted(frames, key=order)


def content_of(file: Path) -> str:
    """SHA-256 of a file, or of a folder's frames in order: the same content has it under any name."""
    try:
        if file.is_dir():
            inside = " ".join(content_of(frame) for frame in frames_of_folder(file))
            return hashlib.sha256(f"frames {inside}".encode()).hexdigest()
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise NoInputError(f"There is no stimulus file {file}.", "Give the files that were shown.") from error
    except OSError as error:
        raise FileFaultError(f"{file} cannot be read: {error}", "Check its permissions and disk.") from error


def moves(file: Path) -> bool:
    """Whether the number of frames can matter to what is read (a still image has one)."""
    return file.is_dir() or file.suffix.lower() in (*VIDEOS, ".npy", ".gif", ".webp")


def _array(file: Path, n_frames: int) -> list[np.ndarray]:
    try:
        array = np.load(file, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise FileFaultError(
            f"{file} is not an array that can be read: {error}", "Write it again."
        ) from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise DataError(
            f"{file} has shape {array.shape} of {array.dtype}.", "Give uint8 (..., height, width, 3)."
        )
    if array.ndim == 3:
        return [np.array(array)]
    return [np.array(array[i]) for i in spaced(len(array), n_frames)]


def _picture(file: Path, n_frames: int) -> list[np.ndarray]:
    from PIL import Image

    # What Pillow's readers are seen to raise on damaged files.
    damage = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
    try:
        with Image.open(file) as image:
            n = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
            out = []
            for i in spaced(n, n_frames) if n > 1 else [0]:
                if n > 1:
                    image.seek(i)
                out.append(_as_rgb(image, file))
            return out
    except (Image.DecompressionBombError, *damage) as error:
        raise FileFaultError(
            f"{file} is not an image that can be read: {error}", "Give a PNG or JPEG."
        ) from error


def _as_rgb(image, file: Path) -> np.ndarray:
    """Pixels of an open image, (height, width, 3) uint8."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{file} has pixels of {grey.min()} to {grey.max()}.", "Give an 8-bit image.")
        return np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError(f"{file} has floating-point pixels, whose white is unknown.", "Give an 8-bit image.")
    return np.asarray(image.convert("RGB"))


def _video(file: Path, n_frames: int) -> list[np.ndarray]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingCommandError(
            f"{file} is a video, and the Python package 'av' that reads videos is not installed.",
            "Install it, or give the frames: a folder of images, or .npy (frames, height, width, 3).",
        ) from error
    try:
        with av.open(str(file)) as video:
            n = sum(1 for _ in video.decode(video=0))  # headers give wrong numbers
        if n == 0:
            raise FileFaultError(f"{file} has no frames.", "Give another video.")
        wanted = set(spaced(n, n_frames))
        with av.open(str(file)) as video:
            return [f.to_ndarray(format="rgb24") for i, f in enumerate(video.decode(video=0)) if i in wanted]
    except (av.FFmpegError, IndexError) as error:
        raise FileFaultError(f"{file} cannot be read as a video: {error}", "Give an MP4.") from error
