# SPDX-License-Identifier: Apache-2.0
"""Transforms <-> files: one HDF5 file a transform, each array under its name, words as JSON.

The layout is that of every array file of the app: datasets, and an attribute ``meta`` that holds ``kind`` and
``method``.  Arrays are compressed without loss (the weights of a ribbon are multiples of few numbers).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Self

import numpy as np

from conform_app.errors import DataError, FileFaultError, NoInputError

_KINDS = {"volume_to_surface": "VolumeToSurface", "sphere_to_sphere": "SphereResampler"}


def save_transform(path, transform) -> Path:
    """Write a transform, complete or not at all; equal transforms give equal bytes.

    Parameters
    ----------
    path : path
        Usually ``*_xfm.h5``.
    transform : VolumeToSurface or SphereResampler
    """
    import h5py

    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    arrays = {name: np.asarray(values) for name, values in transform.to_arrays().items()}
    words = {name: str(values) for name, values in arrays.items() if values.dtype.kind == "U"}
    try:
        with h5py.File(part, "w", track_order=True) as file:
            file.attrs["meta"] = json.dumps(words)
            for name, values in arrays.items():
                if name not in words:
                    packed = {"compression": 4, "shuffle": True} if values.size > 100 else {}
                    file.create_dataset(name, data=values, **packed)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_transform(path, kind: str | None = None) -> dict[str, np.ndarray]:
    """Arrays of a stored transform, for `from_arrays`.

    Parameters
    ----------
    path : path
    kind : {"volume_to_surface", "sphere_to_sphere"}, optional
        What it must be.

    Raises
    ------
    NoInputError
        There is no such file.
    FileFaultError
        It is damaged, or no HDF5.
    DataError
        It holds no transform of vertices, or one of the other kind.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise NoInputError(f"There is no file {path}.", "Check the name.")
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
            words = json.loads(file.attrs.get("meta", "{}"))
    except (OSError, ValueError) as error:
        raise FileFaultError(f"{path} cannot be read: {error}.", "Make it again.") from error
    found = words.get("kind")
    if found not in _KINDS or kind not in (None, found):
        wanted = f", not a {_KINDS[kind]}" if kind in _KINDS else ""
        what = f"a {_KINDS[found]}" if found in _KINDS else "no transform between voxels and vertices"
        raise DataError(f"{path} holds {what}{wanted}.", "Give a *_xfm.h5 that this program wrote.")
    return arrays | {name: np.array(text) for name, text in words.items()}


def load_transform(path):
    """Read a transform of either kind.

    Parameters
    ----------
    path : path
        A ``*_xfm.h5`` that `VolumeToSurface.save` or `SphereResampler.save` wrote.

    Returns
    -------
    VolumeToSurface or SphereResampler

    Raises
    ------
    NoInputError
        There is no such file.
    FileFaultError
        It cannot be read, or is no HDF5 file.
    DataError
        It holds something else, or contradicts itself.
    """
    from conform_app.surface.sphere import SphereResampler
    from conform_app.surface.volume import VolumeToSurface

    arrays = read_transform(path)
    classes = (VolumeToSurface, SphereResampler)
    return next(c for c in classes if c.kind == str(arrays["kind"])).from_arrays(arrays)


class Stored:
    """What is written to a file and read from it by its arrays: `kind`, `to_arrays`, `from_arrays`."""

    kind: str

    def save(self, path) -> Path:
        """Write the transform as HDF5 (``*_xfm.h5``); `load` and `load_transform` read it back.

        Parameters
        ----------
        path : path

        Returns
        -------
        Path
        """
        return save_transform(path, self)

    @classmethod
    def load(cls, path) -> Self:
        """Read a transform that `save`, or the app, wrote.

        Parameters
        ----------
        path : path

        Returns
        -------
        VolumeToSurface or SphereResampler
            As the class that is asked.

        Raises
        ------
        NoInputError, FileFaultError
            There is no such file, or it is damaged.
        DataError
            It holds another kind of transform.
        """
        return cls.from_arrays(read_transform(path, cls.kind))
