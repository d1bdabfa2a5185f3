# SPDX-License-Identifier: Apache-2.0
"""Time series interpolated to another TR, for parity with published betas that were made so.

Designs here take any onset, so data need no resampling, and it has a price: interpolation smooths noise
and correlates neighbouring volumes.  Collections published earlier did interpolate, to a TR that divides the
onsets.  Of N volumes M = floor(N TR / new TR) are made, and in the published way sample j stands for time

    j (N - 1) TR / (M - 1)      instead of      j new TR,

a stretch of well under 1 % (both ends of the two grids were put on each other).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conform_app.errors import DataError


class Resampled:
    """A run at another TR, interpolated when it is read; takes the place of the run in `fit_glmsingle`.

    Parameters
    ----------
    run : (n_voxels, n_volumes) array, or anything with ``shape`` that slices by its first axis
    tr, new_tr : float
        s.
    even : bool
        Put sample j at j new TR, where the design has it, instead of the published, stretched grid.

    Raises
    ------
    DataError
        The times make no sense, or the run is too short.
    """

    def __init__(self, run: Any, tr: float, new_tr: float, *, even: bool = False) -> None:
        if not (np.isfinite([tr, new_tr]).all() and tr > 0 and new_tr > 0):
            raise DataError(f"Repetition times of {tr} s and {new_tr} s.", "Give two positive numbers.")
        n = int(run.shape[-1])
        # 300 x 0.1 / 0.3 is 99.99...: what is whole but for rounding is whole
        m = int(np.floor(round(n * tr / new_tr, 6)))
        if n < 2 or m < 2:
            raise DataError(f"A run of {n} volumes cannot be interpolated.", "Leave this run out.")
        place = np.arange(m) * new_tr / tr if even else np.linspace(0, n - 1, m)
        self._left = np.minimum(place.astype(int), n - 2)
        self._part = np.clip(place - self._left, 0.0, 1.0)  # past the last volume its value is held
        self._run, self.shape = run, (*run.shape[:-1], m)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        block = np.asarray(self._run[rows], dtype=np.float64)
        return block[..., self._left] * (1 - self._part) + block[..., self._left + 1] * self._part
