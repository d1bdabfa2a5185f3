# SPDX-License-Identifier: Apache-2.0
"""Both hemispheres and, for grayordinates, the subcortex of one fit: matrices a grid, values run by run.

Runs on one grid share a matrix.  A voxel takes part if it lies in the brain masks of the runs on its grid and
is finite and varies in each of them; a surface point is kept if it gets a value in every run, a voxel of the
subcortex if it lies in the masks of all runs in the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from conform_app.bids.carried import points_to_volume
from conform_app.bids.plan import FitPlan, RunPlan
from conform_app.bids.subcortex import template_mask
from conform_app.errors import DataError
from conform_app.images import finite_varying, open_run, read_mask
from conform_app.images.arrays import save_arrays
from conform_app.images.series import grayordinate_grid, surface_grid, voxels_of
from conform_app.interfaces.cortex import Hemisphere, open_hemisphere, sample_volume, volume_matrix
from conform_app.surface import VolumeToSurface
from conform_app.surface.linear import LinearMap


class Carrier:
    """Carries the runs of a fit.

    Parameters
    ----------
    plan : FitPlan
        With ``surface``.
    folder : Path
        Where the matrices from volumes to meshes are left.
    inside : ndarray of bool, shape (n_points,), optional
        Voxels that may contribute, where it is known already; by default see the module.

    Attributes
    ----------
    grid : Grid
        Of the surface space.
    sides : tuple of Hemisphere
    points : ndarray of bool, shape (n_surface_points,)
        Points that have values in every run whose grid was opened.
    saved : list of dict
        ``hemi``, ``place``, ``file`` (name in the folder) and ``n_vertices`` of each matrix left there.
    kept : ndarray of bool, shape (n_vertices,)
        Vertices of both hemispheres that are points: all of them, or the cortex of grayordinates.
    inside : list of ndarray of bool, shape (n_volume_points,)
        Voxels that contribute, one a grid.
    """

    def __init__(self, plan: FitPlan, folder: Path, inside: np.ndarray | None = None) -> None:
        self.plan, self.surface, self.folder = plan, plan.surface, folder
        self.sides: tuple[Hemisphere, ...] = tuple(open_hemisphere(half) for half in self.surface.hemispheres)
        walls = [side.cortex for side in self.sides]
        if plan.kind == "cifti":
            self.grid = grayordinate_grid(walls, self.surface.subcortex)
            self.kept = np.concatenate(walls)
        else:
            self.grid = surface_grid([len(wall) for wall in walls])
            self.kept = np.ones(self.grid.n_points, dtype=bool)
        self._images = [open_run(tuple(map(Path, run.bold))) for run in plan.runs]
        self._place, places = self._places()
        self.inside = [inside] if inside is not None else [self._voxels(members) for members in places]
        self.points = np.ones(self.grid.n_points, dtype=bool)
        if self.surface.subcortex is not None:
            self.points[self.n_cortex :] = self._subcortex_inside()
        self.saved: list[dict[str, Any]] = []
        self._open: tuple[int, LinearMap] | None = None

    @property
    def n_cortex(self) -> int:
        """Points of the cortex, which come before those of the subcortex."""
        return int(self.kept.sum())

    def _places(self) -> tuple[list[int], list[list[int]]]:
        """Return the place (grid and transform) of each run, and the runs of each place."""
        keys: list[tuple] = []
        for run, image in zip(self.plan.runs, self._images, strict=True):
            keys.append((image.grid.shape, image.grid.affine.round(4).tobytes(), run.transform))
        known = list(dict.fromkeys(keys))
        place = [known.index(key) for key in keys]
        return place, [[n for n, p in enumerate(place) if p == number] for number in range(len(known))]

    def _voxels(self, members: list[int]) -> np.ndarray:
        """Voxels in every mask of these runs that are finite and vary in each."""
        grid = self._images[members[0]].grid
        inside = np.ones(grid.n_points, dtype=bool)
        for number in members:
            if self.plan.runs[number].mask:
                inside &= read_mask(tuple(map(Path, self.plan.runs[number].mask)), grid)
        for number in members:
            inside[inside] = finite_varying(self._images[number].load(inside))[1]
        return inside

    def open_place(self, place: int) -> LinearMap:
        """Build what carries the runs on a grid: (n_surface_points, n_volume_points).

        One is held at a time, as each run may have a grid of its own; the points of the subcortex have empty
        rows.
        """
        if self._open is None or self._open[0] != place:
            self._open = None
            carry = LinearMap(self._matrix(place))
            self.points &= carry.valid | (np.arange(self.grid.n_points) >= self.n_cortex)
            if not self.points.any():
                raise DataError(
                    f"{self.plan.name}: no vertex gets a value from the volumes of every run.",
                    "Check that volumes and surfaces are in one space.",
                )
            self._open = place, carry
        return self._open[1]

    def _matrix(self, place: int) -> sparse.csr_matrix:
        number = self.first_of(place)
        run, grid = self.plan.runs[number], self._images[number].grid
        to_volume = points_to_volume(self.surface, run.transform)
        found = []
        for side in self.sides:
            sampling = sample_volume(side, grid, self.inside[place], to_volume, run.bold[0])
            self._save(place, side, sampling)
            found.append(volume_matrix(side, sampling))
        matrix = sparse.vstack(found, format="csr")[self.kept]
        rest = self.grid.n_points - matrix.shape[0]
        if rest:
            matrix = sparse.vstack([matrix, sparse.csr_matrix((rest, matrix.shape[1]))], format="csr")
        return matrix

    def _save(self, place: int, side: Hemisphere, sampling: VolumeToSurface) -> None:
        name = f"{side.half.hemi}_sampling-{place}.h5"
        facts = {"hemi": side.half.hemi, "place": place, "file": name, "n_vertices": len(side.white[0])}
        if facts not in self.saved:
            sampling.save(self.folder / name)
            self.saved.append(facts)

    def first_of(self, place: int) -> int:
        """Number of the first run on a grid."""
        return self._place.index(place)

    def grid_by_grid(self) -> list[int]:
        """Numbers of the runs, those on one grid together."""
        return sorted(range(len(self._place)), key=self._place.__getitem__)

    def series(self, number: int, device: str = "cpu") -> np.ndarray:
        """Values of a run on the surface: float32 (n_surface_points, n_volumes), NaN where there are none."""
        image, carry = self._images[number], self.open_place(self._place[number])
        used = np.zeros(image.grid.n_points, dtype=bool)
        used[carry.used] = True
        values = image.load(used)
        out = carry(
            lambda columns, start, stop: values[:, start:stop],
            image.n_volumes,
            fill=np.nan,
            device=device,
            dtype=np.float32,
        )
        if self.surface.subcortex is not None:
            out[self.n_cortex :] = self._subcortex(number)
            out[self.n_cortex :][~self.points[self.n_cortex :]] = np.nan
        return out

    def subcortical_voxels(self, number: int = 0) -> np.ndarray:
        """Points of a run's volume in the template at which the grayordinates lie."""
        path = Path(self.plan.runs[number].subcortex)
        try:
            return voxels_of(self.grid, open_run(path).grid)
        except DataError as error:
            raise DataError(f"{path}: {error.message}", error.remedy) from error

    def _subcortex_inside(self) -> np.ndarray:
        """Which subcortical grayordinates lie in the brain masks of all runs in the template."""
        inside = np.ones(self.grid.n_points - self.n_cortex, dtype=bool)
        for number, run in enumerate(self.plan.runs):
            mask = template_mask(run.subcortex)
            if mask:
                grid = open_run(Path(run.subcortex)).grid
                inside &= read_mask(tuple(map(Path, mask)), grid)[self.subcortical_voxels(number)]
        return inside

    def _subcortex(self, number: int) -> np.ndarray:
        image = open_run(Path(self.plan.runs[number].subcortex))
        points = self.subcortical_voxels(number)
        order = np.sort(points)
        wanted = np.zeros(image.grid.n_points, dtype=bool)
        wanted[points] = True
        return image.load(wanted)[np.searchsorted(order, points)]

    def run_files(self, folder: Path, run: RunPlan) -> list[Path]:
        """Names of a carried run."""
        stem = Path(run.bold[0]).name.split("_space-")[0].split("_desc-")[0].removesuffix("_bold")
        place = f"space-{self.plan.space}" + (f"_den-{self.plan.den}" if self.plan.den else "")
        stem = stem.split(".")[0]
        if self.grid.kind == "cifti":
            return [folder / f"{stem}_{place}_bold.dtseries.nii"]
        return [folder / f"{stem}_hemi-{hemi}_{place}_bold.func.gii" for hemi in "LR"]

    def leave_account(self, path: Path, told: Sequence[str] = ()) -> Path:
        """Write what the registration was and did (see :mod:`conform_app.interfaces.registration`)."""
        from conform_app.interfaces.registration import account, save_transforms

        arrays, meta = account(self)
        meta["account"] += told
        return save_arrays(path, arrays, meta | save_transforms(self))
