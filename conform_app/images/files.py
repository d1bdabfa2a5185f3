# SPDX-License-Identifier: Apache-2.0
"""Whole files or none: what is truncated is said so, what is written appears at once.

A gzip file ends with the length of its content (ISIZE, modulo 2^32); a NIfTI header tells how long the
content must be.  Comparing the two finds a file cut off in copying without reading it.  Files are written
under a hidden name in their own folder and renamed when complete, so that a crash leaves no half file; the
gzip header carries no time and no name, so that the same arrays give the same bytes.
"""

from __future__ import annotations

import errno
import gzip
import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from conform_app.errors import CannotCreateError, ConformError, DataError, FileFaultError, NoInputError

_BROKEN = (EOFError, zlib.error, struct.error, OSError, ValueError)
COPY_AGAIN = "Copy it again from its source, or preprocess this run again."


def require(path: Path) -> Path:
    """Return the path if there is a file there.

    Raises
    ------
    NoInputError
        No file, or a link (git-annex, DataLad) whose content is not here.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.is_symlink():
        raise NoInputError(
            f"{path} is a link to content that is not on this machine.",
            "Fetch it first (datalad get, git annex get).",
        )
    raise NoInputError(f"{path} does not exist.", "Check the path.")


def truncated(path: Path, detail: str = "") -> FileFaultError:
    """Build the error for a file that ends too early or is corrupt."""
    because = f" ({detail})" if detail else ""
    return FileFaultError(f"{path} is truncated or corrupt{because}.", COPY_AGAIN)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what readers raise for broken files into `FileFaultError` naming the file."""
    from xml.parsers.expat import ExpatError

    from nibabel.cifti2 import Cifti2HeaderError
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        yield
    except ConformError:
        raise
    except ImageFileError as error:
        if not os.access(path, os.R_OK):  # nibabel hides why
            raise FileFaultError(f"{path} may not be read.", "Give yourself read permission.") from error
        raise FileFaultError(f"{path} is not an image that can be read: {error}.", COPY_AGAIN) from error
    except PermissionError as error:
        raise FileFaultError(f"{path} may not be read.", "Give yourself read permission.") from error
    except (*_BROKEN, ExpatError, HeaderDataError, Cifti2HeaderError) as error:
        raise truncated(path, " ".join(str(error).split())[:120]) from error


def check_complete(path: str | Path) -> None:
    """Check that an image file was not cut off, at next to no cost.

    A gzipped NIfTI is judged by its ISIZE (only if that disagrees, as in files of several gzip members, is
    the content counted); a plain NIfTI by its size; a GIFTI by its closing tag.

    Parameters
    ----------
    path : path to ``.nii``, ``.nii.gz`` (CIFTI included) or ``.gii``

    Raises
    ------
    FileFaultError
        The file is truncated or corrupt.
    NoInputError
        There is no file.
    """
    path = require(Path(path))
    if path.name.endswith(".gii"):
        _check_gifti_end(path)
        return
    expected = content_size(path)
    if path.name.endswith(".gz"):
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            (isize,) = struct.unpack("<I", file.read(4))
        if isize == expected % 2**32:
            return
        found = _count_gzip(path)
    else:
        found = path.stat().st_size
    if found < expected:
        raise truncated(path, f"{found} of {expected} bytes")


def content_size(path: Path) -> int:
    """Return how many bytes a NIfTI file holds, uncompressed, according to its own header."""
    import math

    import nibabel

    with reading(path):
        data = nibabel.load(path).dataobj
        return int(data.offset) + math.prod(data.shape) * data.dtype.itemsize


def _check_gifti_end(path: Path) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        if b"</GIFTI>" not in file.read():
            raise truncated(path, "no closing tag")


def _count_gzip(path: Path) -> int:
    n = 0
    with reading(path), gzip.open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            n += len(chunk)
    return n


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Give a binary file that appears under its name only when it is complete.

    Parameters
    ----------
    path : path
        Folders are made as needed; an existing file is replaced in one step.

    Raises
    ------
    CannotCreateError
        The folder cannot be written.
    FileFaultError
        The disk is full or failed while writing.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        # gone already when all went well
        if os.path.exists(temporary):
            temporary.unlink()


def _write_error(path: Path, error: OSError) -> ConformError:
    if out_of_space(error):
        return FileFaultError(f"No space left to write {path}.", "Free space there and run again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return CannotCreateError(
            f"{path.parent} cannot be written ({os.strerror(error.errno)}).", "Choose another output folder."
        )
    return FileFaultError(f"Writing {path} failed: {error}.", "Check the disk and run again.")


def out_of_space(error: BaseException) -> bool:
    """Whether the disk, or the user's share of it, is full; HDF5 says so in its text alone."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"errno = {number}," in str(error) for number in full)


@contextmanager
def compressed(file: BinaryIO, path: Path, level: int) -> Iterator[BinaryIO]:
    """Wrap in gzip without time and name if the path ends in ``.gz``; otherwise give the file itself."""
    if not path.name.endswith(".gz"):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=level, mtime=0) as packed:
        yield packed


def numeric(path: Path, dtype: object) -> None:
    """Refuse images whose values are not real numbers (RGB, complex)."""
    import numpy as np

    if np.dtype(dtype).kind not in "iufb":
        raise DataError(f"{path} holds values of type {dtype}, not real numbers.", "Convert it to float32.")
