# SPDX-License-Identifier: Apache-2.0
"""Carrying a fit to a surface that preprocessing did not write: what it takes, found and checked.

Volumes in T1w space lie on the participant's own surfaces.  Those on the run's own grid do so through the
run's transform.  For volumes in MNI space only the average fsaverage surfaces are right: an approximation
that knows nothing of this person's folds, and is called so wherever it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.bids.inputs import Fit
from conform_app.bids.subcortex import find_subcortex, template_files
from conform_app.bids.surfaceplan import HemiPlan, SurfacePlan
from conform_app.bids.surfaces import HEMISPHERES, HemiFiles, SubjectSurfaces
from conform_app.errors import DataError, NoInputError
from conform_app.images import templates
from conform_app.images.densities import FSLR_VERTICES
from conform_app.images.gifti import STRUCTURES, structure_of
from conform_app.images.surfaces import read_surface, read_vertices
from conform_app.images.transforms import Affine, PointMap, read_points

_REGISTRATION = {
    "msmsulc": "MSMSulc sphere in fsLR",
    "fsLR": "desc-reg sphere in fsLR",
    "fsaverage": "sphere registered to fsaverage",
    "approx": "the group average's own sphere: nothing of this person was registered",
}
_APART = 0.25  # widths of a hemisphere that the middles of the two are apart at least; a human's are 0.8


def plan_surface(fit: Fit, of: str, *, images: Sequence[Any]) -> tuple[SurfacePlan, list[str]]:
    """Plan how a fit comes from its volumes to its surface.

    Parameters
    ----------
    fit : Fit
        With ``volume``, the space it is carried from.
    of : {"timeseries", "betas"}
        What is carried.
    images : sequence of BoldRun
        The opened volumes of its runs.

    Returns
    -------
    SurfacePlan
    list of str
        Warnings.

    Raises
    ------
    NoInputError
        A surface, sphere or template is missing.
    DataError
        Surfaces and spheres of different vertex counts, hemispheres swapped, a volume elsewhere.
    """
    density = templates.check_target(fit.space, fit.den)
    if of == "betas" and len(fit.runs) > 1 and fit.runs[0].transform is not None:
        raise DataError(
            f"{fit.name}: the runs are on grids of their own, so no betas of all runs can be fitted there.",
            "Carry the time series (--surface-of timeseries), or preprocess into T1w space.",
        )
    warnings: list[str] = []
    if fit.surfaces is None:
        halves, coordinates, how, mesh = _group_halves(fit, density)
        warnings.append(
            f"{fit.volume} volumes are sampled on fsaverage's average surfaces{mesh}: group-average "
            "registration, which knows nothing of this person's folds. BOLD in T1w space does better, or the "
            f"participant's own surfaces with the transform from-{fit.volume.space}_to-T1w_mode-image_xfm.h5."
        )
    else:
        halves, coordinates, how = _own_halves(fit, density, warnings)
    if fit.kind == "cifti" and any(half.wall is None for half in halves):
        raise templates.missing("fsLR's medial wall, which says what vertices are grayordinates,")
    warnings += _remarks(fit, halves)
    to_t1w = fit.surfaces.to_t1w if fit.surfaces is not None else None
    to_template = fit.surfaces.to_template if fit.surfaces is not None else None
    subcortex = find_subcortex(fit, images, warnings) if fit.kind == "cifti" else None
    inputs = [str(path) for run in fit.runs for path in (*run.bold, *run.mask)]
    surface = SurfacePlan(
        of=of,
        volume=fit.volume.space,
        inputs=tuple([*inputs, *template_files(fit)] if subcortex else inputs),
        hemispheres=tuple(halves),
        registration=how,
        coordinates=coordinates,
        group_average=fit.surfaces is None,
        approximate=fit.surfaces is not None and fit.surfaces.desc == "approx",
        to_volume=None if to_t1w is None else str(to_t1w),
        to_template=None if to_template is None else str(to_template),
        subcortex=subcortex,
    )
    _check(surface, fit, images)
    return surface, warnings


def _remarks(fit: Fit, halves: Sequence[HemiPlan]) -> list[str]:
    """What a user has to know of the surfaces."""
    told = []
    if fit.surfaces is not None and fit.surfaces.desc == "approx":
        told.append(
            f"The surfaces of sub-{fit.subject} are approximate (desc-approx in their names): a warped "
            "group average, not this person's cortex."
        )
    if fit.surfaces is not None and fit.surfaces.to_t1w is None and not halves[0].white.endswith(".gii"):
        told.append(
            f"The surfaces in {fit.surfaces.left.white.parent} are taken to lie in T1w space: there is "
            "no *_from-fsnative_to-T1w_mode-image_xfm.txt among the preprocessed data."
        )
    if any(half.cortex is None and half.wall is None for half in halves):
        told.append(
            f"No mask tells the cortex of {halves[0].white} from its medial wall, which has values like the "
            "rest. One would be hemi-L_desc-cortex_mask.label.gii beside it, or lh.cortex.label in a "
            "FreeSurfer folder named with -d freesurfer=PATH."
        )
    return told


def _own_halves(fit: Fit, density: str, warnings: list[str]) -> tuple[list[HemiPlan], str, str]:
    """Both hemispheres on the participant's surfaces."""
    pair = _own_files(fit.surfaces)
    if fit.space == "fsnative":
        return [_half(hemi, files, None, None, 0) for hemi, files in pair.items()], "", ""
    pair = _without_copies(pair, warnings)
    other = {"fsLR": "fsaverage", "fsaverage": "fsLR"}[fit.space]
    order = [name for name in (fit.space, other) if all(name in f.registered for f in pair.values())]
    if not order:
        left = next(hemi for hemi, f in pair.items() if fit.space not in f.registered)
        raise NoInputError(
            f"{pair[left].white.parent} has no registration sphere of hemisphere {left} that leads to "
            f"{fit.space} (hemi-{left}_space-fsLR_desc-reg_sphere.surf.gii, hemi-{left}_desc-reg_sphere"
            f".surf.gii, {'lr'['LR'.index(left)]}h.sphere.reg).",
            "Preprocess with surfaces, name the FreeSurfer folder with -d freesurfer=PATH, or choose "
            "fsnative.",
        )
    coordinates = order[0]
    name = pair["L"].registered[coordinates].name
    kind = "approx" if fit.surfaces.desc == "approx" else "msmsulc" if "msmsulc" in name else coordinates
    how = _REGISTRATION[kind]
    if coordinates != fit.space:
        how += f", and from there to {fit.space} by HCP's atlas spheres"
    halves = [
        _half(hemi, files, coordinates, templates.target_sphere(fit.space, density, coordinates, hemi), None)
        for hemi, files in pair.items()
    ]
    return halves, coordinates, how


def _own_files(surfaces: SubjectSurfaces) -> dict[str, HemiFiles]:
    """Files of both hemispheres; what is missing from FreeSurfer's folder, if that has the same mesh."""
    pair = dict(zip(HEMISPHERES, (surfaces.left, surfaces.right), strict=True))
    if surfaces.freesurfer is None:
        return pair
    spare = dict(zip(HEMISPHERES, (surfaces.freesurfer.left, surfaces.freesurfer.right), strict=True))
    for hemi, files in spare.items():
        mesh = files.registered.get("fsaverage") or files.sphere
        if mesh is None or not np.array_equal(_read(str(mesh))[1], _read(str(pair[hemi].white))[1]):
            return pair
    return {
        hemi: replace(
            files,
            cortex=files.cortex or spare[hemi].cortex,
            sphere=files.sphere or spare[hemi].sphere,
            registered=spare[hemi].registered | files.registered,
        )
        for hemi, files in pair.items()
    }


def _without_copies(pair: dict[str, HemiFiles], warnings: list[str]) -> dict[str, HemiFiles]:
    """The same without spheres of fsLR that are copies of those of fsaverage.

    fMRIPrep 23.1.0 and 23.1.1 wrote FreeSurfer's ``sphere.reg`` under both names; taken for a registration to
    fsLR it would put every vertex where the two atlases differ.
    """

    def copied(files: HemiFiles) -> bool:
        spheres = [files.registered.get(name) for name in ("fsLR", "fsaverage")]
        return None not in spheres and np.array_equal(*(_read(str(path))[0] for path in spheres))

    copies = [files.registered["fsLR"].name for files in pair.values() if copied(files)]
    if not copies:
        return pair
    warnings.append(
        f"{copies[0]} is a copy of the sphere registered to fsaverage, as fMRIPrep 23.1.0 and 23.1.1 wrote "
        "it: not used as a registration to fsLR."
    )
    return {
        hemi: replace(f, registered={name: path for name, path in f.registered.items() if name != "fsLR"})
        for hemi, f in pair.items()
    }


def _half(
    hemi: str, files: HemiFiles, coordinates: str | None, target: Any, n_target: int | None
) -> HemiPlan:
    wall = templates.medial_wall(coordinates, hemi) if coordinates else None
    sphere = files.registered[coordinates] if coordinates else None

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return HemiPlan(
        hemi=hemi,
        white=str(files.white),
        pial=str(files.pial),
        midthickness=text(files.midthickness),
        cortex=text(files.cortex),
        native_sphere=text(files.sphere),
        sphere=text(sphere),
        target=target,
        wall=wall[0] if wall else None,
        wall_sphere=wall[1] if wall else None,
        n_target=target.n_vertices if target is not None else len(_read(str(files.white))[0]),
        n_source=len(_read(str(files.white))[0]),
    )


def _group_halves(fit: Fit, density: str) -> tuple[list[HemiPlan], str, str, str]:
    """Both hemispheres on fsaverage's average surfaces; last, which mesh that is where it is a coarse one."""
    if fit.space == "fsnative":
        raise NoInputError(
            f"sub-{fit.subject} has BOLD in {fit.volume} only, which does not lie on its own surfaces.",
            "Preprocess into T1w space for fsnative, or choose fsaverage or fsLR.",
        )
    own = density if fit.space == "fsaverage" else "164k"
    mesh, pair = _group_mesh(dict.fromkeys([own, "164k", "41k", "10k"]))
    halves = []
    for hemi, files in pair.items():
        wall = templates.medial_wall("fsaverage", hemi)
        n_source = len(_read(files["white"])[0])
        if (fit.space, density) == ("fsaverage", mesh):
            target = templates.SphereFile(files["sphere"], n_source)
        else:
            target = templates.target_sphere(fit.space, density, "fsaverage", hemi)
        halves.append(
            HemiPlan(
                hemi=hemi,
                white=files["white"],
                pial=files["pial"],
                sphere=files["sphere"],
                target=target,
                wall=wall[0] if wall else None,
                wall_sphere=wall[1] if wall else None,
                n_target=target.n_vertices,
                n_source=n_source,
            )
        )
    coarse = f" (den-{mesh}, coarser than the target)" if n_source < target.n_vertices else ""
    return halves, "fsaverage", f"group average: {fit.volume} to fsaverage by coordinates", coarse


def _group_mesh(densities: Iterable[str]) -> tuple[str, dict[str, dict[str, str]]]:
    """The first density whose average surfaces are at hand for both hemispheres, and their files."""
    *first, last = densities
    for density in first:
        try:
            return density, {hemi: templates.group_surfaces(hemi, density) for hemi in HEMISPHERES}
        except NoInputError:
            continue
    return last, {hemi: templates.group_surfaces(hemi, last) for hemi in HEMISPHERES}


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a mesh; the fits of a participant share those read last."""
    stamp = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0
    return _read_once(path, stamp)


@lru_cache(maxsize=16)
def _read_once(path: str, stamp: int) -> tuple[np.ndarray, np.ndarray]:
    return read_surface(path)


def _check(surface: SurfacePlan, fit: Fit, images: Sequence[Any]) -> None:
    """Hold the files of each hemisphere together, and against the volumes."""
    middles = {}
    for half in surface.hemispheres:
        white, pial = _read(half.white), _read(half.pial)
        _same_size(half.white, len(white[0]), half.pial, len(pial[0]))
        for path in (half.midthickness, half.sphere, half.native_sphere):
            if path:
                _same_size(half.white, len(white[0]), path, len(_read(path)[0]))
        for path in (half.white, half.pial, half.midthickness, half.sphere, half.native_sphere):
            if path:
                _own_side(path, half.hemi)
        if half.cortex:
            read_vertices(half.cortex, len(white[0]))
        if half.wall:
            read_vertices(half.wall, FSLR_VERTICES["32k"])
        middles[half.hemi] = (white[0] + pial[0]) / 2
    _side_by_side(middles, [half.white for half in surface.hemispheres])
    for run, image in zip(fit.runs, images, strict=True):
        _placed(run.bold[0], image.grid.header)
        move = points_to_volume(surface, None if run.transform is None else str(run.transform))
        if not any(_inside(image.grid, move(points)).any() for points in middles.values()):
            white = surface.hemispheres[0].white
            raise DataError(
                f"{run.bold[0]} does not overlap the cortex of {white}: no vertex lies in the volume.",
                "Check that both are in one space (affine, mm, transform), or choose another volume.",
            )


def _own_side(path: str, hemi: str) -> None:
    """Refuse a file that says of itself that it is the other hemisphere."""
    told = structure_of(path)
    if told is not None and told != STRUCTURES["LR".index(hemi)]:
        raise DataError(
            f"{path} says of itself that it is {told}: left and right are swapped, or it was copied under "
            "the name of the other hemisphere.",
            "Correct the name; or, if the name is right, what the file says (wb_command -set-structure).",
        )


def _side_by_side(middles: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Refuse hemispheres that are not one to the left of the other."""
    left, right = (float(np.median(middles[hemi][:, 0])) for hemi in HEMISPHERES)
    where = f"(middles at x = {left:.0f} and {right:.0f} mm)"
    if left > right:
        raise DataError(
            f"{names[0]} lies to the right of {names[1]} {where}: left and right are swapped, or x does not "
            "point right.",
            "Correct the names or the coordinates of the surfaces.",
        )
    if right - left < _APART * float(np.ptp(middles["L"][:, 0])):
        raise DataError(
            f"{names[0]} and {names[1]} lie in one place {where}: they are of one hemisphere.",
            "Correct the names, or write the other hemisphere again.",
        )


def _placed(path: Path, header: Any) -> None:
    """Refuse a volume whose header does not say where it lies: what libraries then make up is no place."""
    if not any(int(header[code]) > 0 for code in ("sform_code", "qform_code") if code in header):
        raise DataError(
            f"{path} does not say where it lies (sform_code and qform_code are 0), so the cortex cannot be "
            "found in it.",
            "Write it again with its affine (nibabel: image.set_sform(affine, 1)).",
        )


def _same_size(one: str, n: int, other: str, m: int) -> None:
    if n != m:
        raise DataError(
            f"{one} has {n} vertices, {other} has {m}.",
            "Take surfaces and spheres from one reconstruction and density.",
        )


def _inside(grid: Any, points: np.ndarray) -> np.ndarray:
    """Tell which points (mm) lie in the volume."""
    to_voxels = np.linalg.inv(np.asarray(grid.affine))
    voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    return ((voxels > -0.5) & (voxels < np.array(grid.shape) - 0.5)).all(axis=1)


def points_to_volume(surface: SurfacePlan, transform: str | None) -> PointMap:
    """Return what takes points (mm) of the surfaces to the coordinates of a run's volume.

    Parameters
    ----------
    surface : SurfacePlan
    transform : str or None
        The run's own, from T1w (see :class:`conform_app.bids.plan.RunPlan`).
    """
    if surface.group_average:
        return PointMap((Affine(np.array(templates.MNI305_TO_MNI152)),))
    way = PointMap()
    if surface.to_volume:
        way = _points(surface.to_volume, "fsnative", "T1w")
    if surface.to_template:
        way = way.then(_points(surface.to_template, "T1w", surface.volume))
    if transform:
        ends = dict(part.split("-", 1) for part in Path(transform).name.split("_") if "-" in part)
        native = ends["to"] if ends["from"] == "T1w" else ends["from"]
        way = way.then(_points(transform, "T1w", native))
    return way


def _points(path: str, source: str, target: str) -> PointMap:
    """Read a transform; the runs and fits of a participant share those read last."""
    stamp = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0
    return _points_once(path, source, target, stamp)


@lru_cache(maxsize=4)
def _points_once(path: str, source: str, target: str, stamp: int) -> PointMap:
    return read_points(path, source=source, target=target)
