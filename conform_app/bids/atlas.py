# SPDX-License-Identifier: Apache-2.0
"""Which voxels PSN denoises together: the setting, checked before anything is computed.

``blocks`` cuts the voxels into compact blocks, ``none`` takes all at once, files are an atlas whose regions
are denoised each by itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from conform_app.bids.plan import FitPlan, analysis_points
from conform_app.bids.psncost import SPAN_MODES
from conform_app.errors import DataError, UsageError
from conform_app.settings import ModelSettings

MAX_WHOLE = 4000
"""Voxels that the other modes take at once: eight matrices of this size are 1.0 GB."""
MAX_SPAN = 6000
"""Trials (or voxels, if these are fewer) that span modes take at once: 13 such matrices are 3.7 GB."""


def atlas_files(words: Sequence[str]) -> tuple[str, ...]:
    """Paths of the atlas that ``--psn-parcels`` names; none for ``blocks`` and ``none``.

    Raises
    ------
    UsageError
        A word and files are mixed, or there are more than two files.
    """
    words = tuple(words)
    if words in (("blocks",), ("none",)):
        return ()
    if not words or {"blocks", "none"} & set(words) or len(words) > 2:
        raise UsageError(
            f"--psn-parcels {' '.join(words)}: one choice only.",
            "Give blocks, none, or the file of an atlas (of surfaces, one a hemisphere).",
        )
    return tuple(os.path.abspath(word) for word in words)


def with_atlas(plan: FitPlan, model: ModelSettings) -> FitPlan:
    """The plan with the atlas that PSN uses, once it is known to go with the data.

    Raises
    ------
    UsageError
        Too many voxels for one fit of the mode chosen.
    DataError
        The atlas is on another grid or has no label at the voxels to be analysed.
    NoInputError, FileFaultError
        An atlas file is missing or damaged.
    """
    if model.psn == "off":
        return plan
    files = atlas_files(model.psn_parcels)
    if not files:
        if model.psn_parcels == ("none",):
            check_whole(model.psn, plan.n_voxels, plan.n_trials, plan.name)
        return plan
    plan = replace(plan, atlas=files)
    if plan.surface is None:
        labels_of(plan, analysis_points(plan)[0])
    else:  # the grid is that of the surfaces that the data are carried to
        from conform_app.images.files import require
        from conform_app.images.runs import kind_of

        if kind_of(tuple(require(Path(path)) for path in files)) == "volume":
            raise DataError(
                f"{plan.name}: the atlas {files[0]} is a volume, and PSN works on the surface.",
                "Give an atlas of that surface (.label.gii, one a hemisphere, or .dlabel.nii).",
            )
    return plan


def check_whole(mode: str, n_voxels: int, n_trials: int, name: str) -> None:
    """Refuse more voxels at once than a mode can take.

    Raises
    ------
    UsageError
    """
    if mode not in SPAN_MODES and n_voxels > MAX_WHOLE:
        raise UsageError(
            f"{name}: --psn {mode} takes up to {MAX_WHOLE:,} voxels at once, and these are {n_voxels:,}.",
            "Use --psn wiener, or --psn-parcels blocks or an atlas.",
        )
    if min(n_voxels, n_trials) > MAX_SPAN:
        raise UsageError(
            f"{name}: all voxels at once take up to {MAX_SPAN:,} trials, and these are {n_trials:,}.",
            "Use --psn-parcels blocks or an atlas, or fit sessions apart.",
        )


def labels_of(plan: FitPlan, points: np.ndarray) -> np.ndarray:
    """Label of each analysed point, shape (n_voxels,); 0 where the atlas has none.

    Raises
    ------
    DataError
        The atlas is on another grid, or labels none of the points.
    """
    from conform_app.images import open_run
    from conform_app.images.atlas import read_labels

    grid = open_run(tuple(map(Path, plan.runs[0].bold))).grid
    labels = read_labels(plan.atlas, grid)[points]
    if not labels.any():
        raise DataError(
            f"{plan.name}: the atlas {plan.atlas[0]} labels none of the voxels to be analysed.",
            "Check that it is in the space of the data.",
        )
    return labels
