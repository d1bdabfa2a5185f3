# SPDX-License-Identifier: Apache-2.0
"""The published output files: one dictionary per file, pickled in .npy or as named HDF5 items.

Folders are made where they lack and never removed; a file of the same name is replaced once its successor
is complete.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "typea": "TYPEA_ONOFF",
    "typeb": "TYPEB_FITHRF",
    "typec": "TYPEC_FITHRF_GLMDENOISE",
    "typed": "TYPED_FITHRF_GLMDENOISE_RR",
}


def save(folder: Path, name: str, content: dict[str, Any], *, hdf5: bool = False) -> Path:
    """Write one dictionary; returns the file.

    Parameters
    ----------
    folder : Path
    name : str
        Without extension.
    content : dict
    hdf5 : bool
        Arrays as datasets, lists of arrays stacked or (if ragged) as groups "0", "1", ..., scalars as
        attributes, None as an empty dataset.
    """
    path = folder / f"{name}.{'hdf5' if hdf5 else 'npy'}"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if hdf5:
            import h5py

            with h5py.File(part, "w") as file:
                for key, value in content.items():
                    _put(file, key, value)
        else:
            with part.open("wb") as file:
                np.save(file, content, allow_pickle=True)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _put(file: Any, key: str, value: Any) -> None:
    import h5py

    if value is None:
        file.create_dataset(key, data=h5py.Empty("f"))
    elif isinstance(value, (list, tuple)):
        arrays = [np.asarray(one) for one in value]
        if len({one.shape for one in arrays}) <= 1:
            file.create_dataset(key, data=np.stack(arrays) if arrays else np.zeros(0))
        else:
            group = file.create_group(key)
            for number, one in enumerate(arrays):
                group.create_dataset(str(number), data=one)
    elif np.ndim(value) == 0:
        file.attrs[key] = value
    else:
        file.create_dataset(key, data=value)
