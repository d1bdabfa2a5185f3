# SPDX-License-Identifier: Apache-2.0
"""Both hemispheres and, for grayordinates, the subcortex of one fit: matrices a grid, values run by run.

Runs on one grid share a matrix.  A voxel takes part if it lies in the brain masks of the runs on its grid and
is finite and varies in each of them; a surface point is kept if it gets a value in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from conform_app.bids.carried import points_to_volume
from conform_app.bids.plan import FitPlan, RunPlan
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
    inside : ndarray of bool, shape (n_points,), optional
        Voxels that may contribute, where it is known already; by default see the module.

    Attributes
    ----------
    grid : Grid
        Of the surface space.
    sides : tuple of Hemisphere
    samplings : list of list of VolumeToSurface
        From the voxels of each grid to the participant's mesh, left and right.
    matrices : list of csr_matrix, shape (n_surface_points, n_volume_points)
        One a grid; the points of the subcortex have empty rows.
    points : ndarray of bool, shape (n_surface_points,)
        Points that have values in every run.
    kept : ndarray of bool, shape (n_vertices,)
        Vertices of both hemispheres that are points: all of them, or the cortex of grayordinates.
    inside : list of ndarray of bool, shape (n_volume_points,)
        Voxels that contribute, one a grid.
    """

    def __init__(self, plan: FitPlan, inside: np.ndarray | None = None) -> None:
        self.plan, self.surface = plan, plan.surface
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
        pairs = zip(places, self.inside, strict=True)
        self.samplings = [self._samplings(members[0], voxels) for members, voxels in pairs]
        self.matrices = [self._matrix(samplings) for samplings in self.samplings]
        self._maps = [LinearMap(matrix) for matrix in self.matrices]
        valid = np.logical_and.reduce([found.valid for found in self._maps])
        valid[self.n_cortex :] = True
        self.points = valid
        if not valid.any():
            raise DataError(
                f"{plan.name}: no vertex gets a value from the volumes.",
                "Check that volumes and surfaces are in one space.",
            )

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

    def _samplings(self, number: int, voxels: np.ndarray) -> list[VolumeToSurface]:
        run, grid = self.plan.runs[number], self._images[number].grid
        to_volume = points_to_volume(self.surface, run.transform)
        return [sample_volume(side, grid, voxels, to_volume, run.bold[0]) for side in self.sides]

    def _matrix(self, samplings: list[VolumeToSurface]) -> sparse.csr_matrix:
        found = [volume_matrix(*pair) for pair in zip(self.sides, samplings, strict=True)]
        matrix = sparse.vstack(found, format="csr")[self.kept]
        rest = self.grid.n_points - matrix.shape[0]
        if rest:
            matrix = sparse.vstack([matrix, sparse.csr_matrix((rest, matrix.shape[1]))], format="csr")
        return matrix

    def first_of(self, place: int) -> int:
        """Number of the first run on a grid."""
        return self._place.index(place)

    def series(self, number: int, device: str = "cpu") -> np.ndarray:
        """Values of a run on the surface: float32 (n_surface_points, n_volumes), NaN where there are none."""
        image, carry = self._images[number], self._maps[self._place[number]]
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
        return out

    def subcortical_voxels(self, number: int = 0) -> np.ndarray:
        """Points of a run's volume in the template at which the grayordinates lie."""
        path = Path(self.plan.runs[number].subcortex)
        try:
            return voxels_of(self.grid, open_run(path).grid)
        except DataError as error:
            raise DataError(f"{path}: {error.message}", error.remedy) from error

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
        return save_arrays(path, arrays, meta | save_transforms(self, path.parent))
