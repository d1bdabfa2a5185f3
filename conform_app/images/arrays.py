# SPDX-License-Identifier: Apache-2.0
"""Named arrays in one HDF5 file: how the steps of a workflow hand results to each other.

A file holds each array under its name, and one JSON document of all that is no array.  It is written under
a temporary name and renamed, so a file that exists is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import FileFaultError


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray | None], meta: Mapping[str, Any]) -> Path:
    """Write arrays and a JSON document; arrays that are ``None`` are left out.

    Parameters
    ----------
    path : Path
        File to write.
    arrays : mapping of str to array
        Any shape and numeric dtype.
    meta : mapping
        What JSON can hold.

    Returns
    -------
    Path
        The file.
    """
    with ArrayStore(path) as store:
        store.finish(arrays, meta)
    return Path(path)


class ArrayStore:
    """A file of named arrays that grows while its arrays are made; it exists once it is finished.

    Use as a context: leaving it without `finish` (an error) removes what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")

    def __enter__(self) -> ArrayStore:
        import h5py

        try:
            self._file = h5py.File(self._part, "w", track_order=True)
        except OSError:
            self._part.unlink(missing_ok=True)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.close()  # writes, so it may fail where the disk is full
        finally:
            self._part.unlink(missing_ok=True)

    def empty(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Return a new dataset, to be filled slice by slice."""
        return self._file.create_dataset(name, shape, dtype)

    def finish(self, arrays: Mapping[str, np.ndarray | None], meta: Mapping[str, Any]) -> None:
        """Add the arrays that are not in the file yet, and the JSON document; the file appears."""
        self._file.attrs["meta"] = json.dumps(meta)
        for name, values in arrays.items():
            if values is not None and name not in self._file:
                self._file.create_dataset(name, data=np.asarray(values))
        self._file.close()
        os.replace(self._part, self.path)


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Return the arrays named (all by default); names that the file lacks are left out.

    Raises
    ------
    FileFaultError
        The file cannot be read.
    """
    import h5py

    try:
        with h5py.File(path, "r") as store:
            wanted = names or tuple(store)
            return {name: store[name][()] for name in wanted if name in store}
    except OSError as error:
        raise FileFaultError(
            f"Intermediate file {path} cannot be read: {error}.", "Remove the work folder and run again."
        ) from error


def load_meta(path: Path) -> dict[str, Any]:
    """Return the JSON document of a file written by :func:`save_arrays`."""
    import h5py

    with h5py.File(path, "r") as store:
        return json.loads(store.attrs["meta"])
