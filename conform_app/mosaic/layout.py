# SPDX-License-Identifier: Apache-2.0
"""Where things lie in a collection, and how files come to be there whole or not at all.

    COLLECTION/
      zarr.json  collection.json            what all participants share; written once
      manifest.json                         the current version: participants, tables, checksums, history
      tables/v0001/*.tsv *.json             tables of each version
      participants/zarr.json
      participants/sub-01_NSD/
        zarr.json  record.json  trials.tsv  trials.json
        betas/  mean/  sd/  finite/  noiseceiling/  averages/        Zarr v3 arrays

A participant is written under a name that starts with a dot, synchronised, and renamed: it is there or not.
A leftover of an interrupted writer is nobody's: the writer holds a lock on it, so a free lock means a dead
writer.  The manifest is replaced by renaming too, and names every table by its version's folder, so that a
reader of the old manifest never meets new tables.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conform_app.errors import CannotCreateError, DataError, FileFaultError, TemporaryError

SCHEMA = 1
COLLECTION, MANIFEST, RECORD = "collection.json", "manifest.json", "record.json"
PARTICIPANTS, TABLES = "participants", "tables"
_INCOMING = ".incoming-"
REPLACED = ".replaced-"
LOCK = ".lock"
_STALE_S = 86400.0
_LABEL = re.compile(r"[A-Za-z0-9]+")


def participant_key(dataset: str, participant: str) -> str:
    """Name of a participant in the collection: ``sub-01_NSD``.

    Raises
    ------
    DataError
        If the dataset's name or the participant's label holds anything but letters and digits.
    """
    label = participant.removeprefix("sub-")
    if not _LABEL.fullmatch(label) or not _LABEL.fullmatch(dataset):
        raise DataError(
            f"Participant {participant!r} of dataset {dataset!r} cannot be named in a collection.",
            "Use letters and digits only: sub-01 and NSD.",
        )
    return f"sub-{label}_{dataset}"


def to_json(value: Any) -> bytes:
    """JSON with a fixed layout: the same value gives the same bytes."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_of(value: Any) -> str:
    """SHA-256 of a value's JSON, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a small file so that readers see the old one or the new one."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with writing(path):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals into errors of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FileFaultError(
                f"No room left to write {what} ({error.strerror}); nothing that was there is harmed.",
                "Free some space and run the same command again.",
            ) from error
        raise CannotCreateError(
            f"{what} cannot be written: {error.strerror or error}.", "Check the folder and its rights."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make a folder with everything in it last."""
    for place, _, files in os.walk(folder):
        for name in files:
            handle = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(place))


@contextlib.contextmanager
def incoming(root: Path, key: str) -> Iterator[Path]:
    """Give a folder to write a participant into, locked; removed if the writer fails."""
    folder = root / PARTICIPANTS / f"{_INCOMING}{key}-{uuid.uuid4().hex[:8]}"
    with writing(folder):
        folder.mkdir(parents=True)
        lock = os.open(folder / ".lock.new", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(folder / ".lock.new", folder / LOCK)  # from here on, a free lock means a dead writer
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already where the writer renamed it
        os.close(lock)


def sweep(root: Path) -> list[str]:
    """Remove what interrupted writers left behind; return the names of what was removed."""
    gone = []
    for aside in sorted((root / PARTICIPANTS).glob(f"{REPLACED}*")):
        place = aside.with_name(aside.name.removeprefix(REPLACED))
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:  # the writer died between two renames: the earlier version goes back
            os.rename(aside, place)
    for folder in sorted((root / PARTICIPANTS).glob(f"{_INCOMING}*")):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:  # just being made, or about to be renamed; or its writer died at that moment
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _STALE_S:
                    shutil.rmtree(folder, ignore_errors=True)
                    gone.append(folder.name.removeprefix(_INCOMING))
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder.name.removeprefix(_INCOMING))
        except BlockingIOError:
            pass  # its writer lives
        finally:
            os.close(lock)
    return gone


@contextlib.contextmanager
def sealing(root: Path) -> Iterator[None]:
    """Let one process at a time change the manifest.

    Raises
    ------
    TemporaryError
        If another one is at it.
    """
    with writing(root):
        lock = os.open(root / ".seal.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise TemporaryError(
            f"Another process is sealing {root}.", "Wait until it is done and run the same command again."
        ) from error
    try:
        yield
    finally:
        os.close(lock)
