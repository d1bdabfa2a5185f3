# SPDX-License-Identifier: Apache-2.0
"""What a registration did: how much of the cortex the volume covers, and how much the spheres were distorted.

Distortion compares the registered sphere with the sphere before registration: the log2 ratio of the areas at
a vertex, and the mean magnitude of that of the lengths of its edges.  Where that sphere is not at hand the
middle surface takes its place; then the unfolding of the cortex is part of the distortion, and the words say
so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.bids.carried import points_to_volume
from conform_app.images import open_run
from conform_app.images.surfaces import read_surface
from conform_app.interfaces.cortex import Hemisphere
from conform_app.surface import areal_distortion, edge_distortion, vertex_areas, volume_coverage

if TYPE_CHECKING:
    from conform_app.interfaces.carrying import Carrier

LITTLE = 90.0
"""Percent of the cortex below which the coverage is worth a warning."""


def account(carrier: Carrier) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Sum up how a fit came to its surface.

    Returns
    -------
    arrays : dict
        On the surface's points: ``coverage`` (share of the vertex's piece of cortex inside the volume and
        mask), ``arealdistortion``, ``edgedistortion`` (log2).  Per hemisphere: the middle surface on the
        target mesh as ``L_coordinates``, ``L_triangles``.
    meta : dict
        ``summary`` (numbers), ``account`` and ``warnings`` (sentences).
    """
    surface = carrier.surface
    arrays: dict[str, np.ndarray] = {}
    parts: dict[str, list[np.ndarray]] = {"coverage": [], "arealdistortion": [], "edgedistortion": []}
    reference = "sphere" if all(side.half.native_sphere for side in carrier.sides) else "midthickness"
    for number, side in enumerate(carrier.sides):
        parts["coverage"].append(side.to_target(_coverage(carrier, number)))
        if side.resampler is not None:
            areal, edge = _distortion(side, reference)
            parts["arealdistortion"].append(side.to_target(areal))
            parts["edgedistortion"].append(side.to_target(edge))
        arrays[f"{side.half.hemi}_coordinates"] = np.asarray(side.target[0], np.float32)
        arrays[f"{side.half.hemi}_triangles"] = np.asarray(side.target[1], np.int32)
    cortex = np.concatenate([side.cortex for side in carrier.sides])
    for name, values in parts.items():
        if values:
            arrays[name] = _on_points(carrier, np.where(cortex, np.concatenate(values), np.nan))
    n_reached = int(carrier.points[: carrier.n_cortex].sum())
    covered = 100.0 * n_reached / max(int(cortex.sum()), 1)
    summary = surface.summary() | {"covered_percent": round(covered, 2), "n_cortex": int(cortex.sum())}
    summary |= {"n_target": [len(side.cortex) for side in carrier.sides], "reference": reference}
    for name in ("arealdistortion", "edgedistortion"):
        if name in arrays:
            finite = np.abs(arrays[name][np.isfinite(arrays[name])])
            summary[name] = {"median": float(np.median(finite)), "p95": float(np.percentile(finite, 95))}
    told = {"account": _sentences(carrier, summary), "warnings": _warnings(summary)}
    return arrays, {"summary": summary} | told


def save_transforms(carrier: Carrier) -> dict[str, Any]:
    """Write the transforms between meshes; return the files of all transforms for the outputs.

    Returns
    -------
    dict
        ``resamplings``: file by hemisphere, for spheres; ``samplings``: ``hemi``, ``file``, ``run`` (number
        of a run on the grid, None where all runs are on one) and ``n_vertices`` of each from a volume to the
        mesh.  Files are names in the carrier's folder.
    """
    resamplings = {}
    for side in carrier.sides:
        if side.resampler is not None:
            name = f"{side.half.hemi}_resampling.h5"
            side.resampler.save(carrier.folder / name)
            resamplings[side.half.hemi] = name
    several = len(carrier.inside) > 1
    samplings = [
        found | {"run": carrier.first_of(found["place"]) if several else None} for found in carrier.saved
    ]
    return {"resamplings": resamplings, "samplings": samplings}


def _coverage(carrier: Carrier, number: int) -> np.ndarray:
    """Share of each vertex's piece of cortex in voxels with data; of several grids the least."""
    side, shares = carrier.sides[number], []
    for place, voxels in enumerate(carrier.inside):
        run = carrier.plan.runs[carrier.first_of(place)]
        grid = open_run(tuple(map(Path, run.bold))).grid
        move = points_to_volume(carrier.surface, run.transform)
        white, pial = ((move(xyz), faces) for xyz, faces in (side.white, side.pial))
        mask = np.asarray(voxels, dtype=np.uint8).reshape(grid.shape)
        shares.append(volume_coverage(white, pial, grid.shape, grid.affine, mask=mask).share)
    return np.min(shares, axis=0)


def _distortion(side: Hemisphere, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """Areal and edge distortion of the registered sphere, brought to the total area of what it was."""
    before = read_surface(side.half.native_sphere) if reference == "sphere" else side.middle
    points, triangles = read_surface(side.half.sphere)
    scale = np.sqrt(vertex_areas(before).sum() / vertex_areas((points, triangles)).sum())
    after = points * scale, triangles
    return areal_distortion(before, after), edge_distortion(before, after)


def _on_points(carrier: Carrier, values: np.ndarray) -> np.ndarray:
    """Values of all target vertices at the points of the grid; the subcortex has none."""
    out = np.full(carrier.grid.n_points, np.nan, np.float32)
    out[: carrier.n_cortex] = values[carrier.kept]
    return out


def _sentences(carrier: Carrier, summary: dict[str, Any]) -> list[str]:
    surface, plan = carrier.surface, carrier.plan
    what = {"timeseries": "time series of", "betas": "single-trial responses fitted in"}[surface.of]
    where = plan.space + (f" ({plan.den})" if plan.den else "")
    text = f"The {what} {surface.volume} volumes were sampled between the white and pial surfaces"
    if surface.group_average:
        text += " of fsaverage, an average over people: the folds of this person are not known"
    elif surface.approximate:
        text += ", which are approximate (a warped group average, not this person's cortex)"
    if summary["warped"]:
        text += f", brought to {surface.volume} by the participant's own normalization"
    text += f", and carried to {where}" if surface.coordinates else f", and stay on that mesh ({where})"
    if surface.coordinates and not surface.group_average:
        text += f" ({surface.registration}; adaptive resampling weighted by vertex areas)"
    text += f". The volume covers {summary['covered_percent']:.1f} % of the cortex."
    if plan.kind == "cifti":
        text += _below(carrier) if surface.subcortex else " The grayordinates are those of the cortex only."
    return [text]


def _below(carrier: Carrier) -> str:
    """Where the subcortex comes from, and how much of it the volumes hold."""
    below = carrier.points[carrier.n_cortex :]
    return (
        " The subcortex comes from MNI152NLin6Asym volumes, which cover "
        f"{below.sum():,} of its {below.size:,} voxels."
    )


def _warnings(summary: dict[str, Any]) -> list[str]:
    if summary["covered_percent"] >= LITTLE:
        return []
    return [
        f"The volume covers {summary['covered_percent']:.1f} % of the cortex; the rest has no values (NaN)."
    ]
