# SPDX-License-Identifier: Apache-2.0
"""Pieces of the cortex within which participants are aligned: regions, and compact blocks elsewhere.

A structure (a hemisphere, a nucleus, a volume) is halved at the median of its longest axis until every block
is small: positions are voxels' centres, or vertices' on the template's sphere.  Where no sphere is at hand,
blocks are runs of consecutive vertices.  A map between two pieces has bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.encode.given import open_grid, read_regions
from conform_app.errors import NoInputError, UsageError
from conform_app.images.surfaces import read_surface
from conform_app.images.templates import check_target, target_sphere

if TYPE_CHECKING:
    from conform_app.encode.job import EncodeJob, EncodePlan

BLOCK_POINTS = 512
REGION_POINTS = 2048
_CORTEX = {"CIFTI_STRUCTURE_CORTEX_LEFT": "L", "CIFTI_STRUCTURE_CORTEX_RIGHT": "R"}


def pieces_of(job: EncodeJob, plan: EncodePlan) -> tuple[np.ndarray, str]:
    """Pieces of the collection, see `alignment_pieces`."""
    from conform_app.mosaic.collection import Collection

    collection = Collection.open(job.store)
    valid = np.zeros(collection.n_vertices, bool)
    for key in plan.people:
        valid[collection.valid_vertices([key])] = True
    return alignment_pieces(job, valid, collection.space)


def alignment_pieces(job: EncodeJob, valid: np.ndarray, space: str) -> tuple[np.ndarray, str]:
    """Number of the piece of every vertex of the collection, and what the pieces are.

    Parameters
    ----------
    job : EncodeJob
    valid : ndarray (n_vertices,) of bool
        Vertices that anybody has data at.
    space : str
        Of the collection.

    Returns
    -------
    pieces : ndarray (n_vertices,) of int
        From 0; -1 where nobody has data.
    about : str
    """
    regions = read_regions(job.settings.encode_regions, len(valid), job.geometry)
    of = np.zeros(len(valid), int)
    for number, mask in enumerate(regions.values(), 1):
        of[mask] = number
    pieces, n = np.full(len(valid), -1), 0
    by_position = True
    for points, positions in _structures(open_grid(job.geometry, len(valid)), space):
        by_position &= positions is not None
        for number in np.unique(of[points]):
            rows = np.flatnonzero((of[points] == number) & valid[points])
            most = REGION_POINTS if number else BLOCK_POINTS
            for block in _blocks(rows, None if positions is None else positions[rows], most):
                pieces[points[block]] = n
                n += 1
    blocks = f"compact blocks of at most {BLOCK_POINTS} points"
    if not by_position:
        blocks = f"runs of at most {BLOCK_POINTS} consecutive points"
    return pieces, f"regions, and {blocks} elsewhere" if regions else blocks


def _structures(grid: Any, space: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Points of each structure, and their positions where these are known."""
    if grid.kind == "volume":
        index = np.stack(np.unravel_index(np.arange(grid.n_points), grid.shape), axis=1)
        yield np.arange(grid.n_points), _placed(index, grid.affine)
    elif grid.kind == "gifti":
        start = 0
        for name, n in zip(grid.structures, grid.shape, strict=True):
            sphere = _sphere(space, "L" if name.endswith("Left") else "R")
            yield np.arange(start, start + n), sphere if sphere is not None and len(sphere) == n else None
            start += n
    else:
        every = np.arange(grid.n_points)
        for name, where, axis in grid.brain_models.iter_structures():
            if name in _CORTEX:
                sphere = _sphere(space, _CORTEX[name])
                there = sphere is not None and len(sphere) == axis.nvertices[name]
                yield every[where], sphere[axis.vertex] if there else None
            elif name in axis.nvertices:
                yield every[where], None
            else:
                yield every[where], _placed(axis.voxel, axis.affine)


def _placed(index: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    return index @ np.asarray(affine)[:3, :3].T if affine is not None else index.astype(float)


def _sphere(space: str, hemi: str) -> np.ndarray | None:
    """Vertices of the template's sphere; None where it is not at hand."""
    name, _, density = space.partition("_den-")
    if name not in ("fsaverage", "fsLR"):
        return None
    try:
        file = target_sphere(name, check_target(name, density or None), name, hemi)
    except (NoInputError, UsageError):
        return None
    return read_surface(file.path)[0][: file.n_vertices]


def _blocks(rows: np.ndarray, positions: np.ndarray | None, most: int) -> list[np.ndarray]:
    """Halves of halves, until each is small; ties by number, so that the answer is always the same."""
    if len(rows) <= most:
        return [rows] if len(rows) else []
    if positions is None:
        return np.array_split(rows, -(-len(rows) // most))
    axis = int(np.ptp(positions, axis=0).argmax())
    order = np.argsort(positions[:, axis], kind="stable")
    halves = (np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :]))
    return [block for half in halves for block in _blocks(rows[half], positions[half], most)]
