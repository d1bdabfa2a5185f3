# SPDX-License-Identifier: Apache-2.0
"""Spatial transforms of points: affines and displacement fields as ITK (ANTs, fMRIPrep) writes them.

ITK works in LPS mm, and a transform *from A to B* of images takes points of B to A.  A composite of
T_1 ... T_n, in the order of the file, takes x to T_1(T_2(... T_n(x))).  Its parts are

* affine: y = M (x - c) + c + t
* Euler angles (a, b, g): the same with M = R_z(g) R_x(a) R_y(b)
* displacement field on a grid of origin o, spacings s, directions D: y = x + d(i) with
  i = (D diag(s))^-1 (x - o), d linear between grid points; where the field does not reach, y = x.

Plain text of 4 x 4 numbers is in RAS, and *from A to B* takes points of A to B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import DataError
from conform_app.images.files import reading, require

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS <-> RAS
_MATRIX_KINDS = ("AffineTransform", "MatrixOffsetTransformBase")
_REMEDY = "Give BOLD in T1w space instead, or the transform as ITK writes affines (.txt) or composites (.h5)."


@dataclass(frozen=True, eq=False)
class Affine:
    """Points (n, 3) RAS mm -> RAS mm by a 4 x 4 matrix."""

    matrix: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Carry points."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]


@dataclass(frozen=True, eq=False)
class Displacement:
    """Points (n, 3) RAS mm, each moved by a field that is linear between the points of a grid.

    Attributes
    ----------
    field : ndarray, shape (X, Y, Z, 3)
        LPS mm.
    to_grid : ndarray, shape (4, 4)
        From LPS mm to indices of the grid.
    """

    field: np.ndarray
    to_grid: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Carry points; those outside the grid stay."""
        from scipy.ndimage import map_coordinates

        lps = points @ _FLIP[:3, :3]
        index = lps @ self.to_grid[:3, :3].T + self.to_grid[:3, 3]
        inside = ((index >= -0.5) & (index <= np.array(self.field.shape[:3]) - 0.5)).all(axis=1)
        out = np.array(lps, dtype=np.float64)
        for axis in range(3):
            part = self.field[..., axis]
            out[inside, axis] += map_coordinates(part, index[inside].T, order=1, mode="nearest")
        return out @ _FLIP[:3, :3]


@dataclass(frozen=True, eq=False)
class PointMap:
    """Affines and displacements one after the other; the first of `steps` is applied first."""

    steps: tuple[Affine | Displacement, ...] = ()

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Carry points (n, 3), RAS mm."""
        for step in self.steps:
            points = step(points)
        return points

    def then(self, other: PointMap) -> PointMap:
        """Apply another one after it."""
        return PointMap((*self.steps, *other.steps))

    @property
    def matrix(self) -> np.ndarray | None:
        """The 4 x 4 matrix of the whole; None if a part is no affine."""
        if not all(isinstance(step, Affine) for step in self.steps):
            return None
        whole = np.eye(4)
        for step in self.steps:
            whole = step.matrix @ whole
        return whole


def read_points(path: str | Path, *, source: str, target: str) -> PointMap:
    """Read a transform that takes points from one space to another.

    Parameters
    ----------
    path : path
        ITK text (``.txt``) with one affine, ITK HDF5 (``.h5``) with affines and displacement fields, or text
        of 4 x 4 numbers.  Its name says from where to where.
    source, target : str
        Space labels of the points to take and to get.

    Raises
    ------
    NoInputError, FileFaultError
        There is no such file, or it is damaged.
    DataError
        A kind of transform that is not known here, one between other spaces, or a displacement field in the
        wrong direction.
    """
    path = require(Path(path))
    with reading(path):
        is_hdf5 = path.open("rb").read(8) == b"\x89HDF\r\n\x1a\n"
        text = "" if is_hdf5 else path.read_text(encoding="utf-8", errors="replace")
    itk = is_hdf5 or text.startswith("#Insight")
    found = _itk_hdf5(path) if is_hdf5 else _itk_text(path, text) if itk else _plain(path, text)
    parts = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
    ends = (parts.get("from"), parts.get("to"))
    if itk and parts.get("mode") != "points":
        ends = ends[::-1]
    if ends == (source, target):
        return found
    if ends == (target, source):
        if found.matrix is None:
            raise DataError(
                f"{path} takes points from {target} to {source}, and its displacement field has no inverse.",
                f"Add the transform of the other direction (from-{target}_to-{source}_mode-image_xfm.h5).",
            )
        return PointMap((Affine(np.linalg.inv(found.matrix)),))
    raise DataError(f"{path} does not lead from {source} to {target}.", _REMEDY)


def _affine(path: Path, matrix: np.ndarray | None) -> PointMap:
    if matrix is None or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-6:
        raise DataError(f"{path} holds no single affine transform.", _REMEDY)
    return PointMap((Affine(matrix),))


def _plain(path: Path, text: str) -> PointMap:
    try:
        matrix = np.array(
            [[float(word) for word in line.split()] for line in text.splitlines() if line.strip()]
        )
    except ValueError:
        matrix = np.empty(0)
    return _affine(path, matrix if matrix.shape == (4, 4) else None)


def _itk_text(path: Path, text: str) -> PointMap:
    fields: dict[str, Any] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name in fields:  # several transforms in a row
            return _affine(path, None)
        if colon:
            fields[name] = value.split()
    kind = " ".join(fields.get("Transform", ()))
    numbers = [np.array(fields.get(name, ()), dtype=float) for name in ("Parameters", "FixedParameters")]
    return PointMap((_part(path, kind, *numbers),))


def _itk_hdf5(path: Path) -> PointMap:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        group = file.get("TransformGroup")
        if not isinstance(group, h5py.Group):
            raise DataError(f"{path} is HDF5, but no transform that ITK wrote.", _REMEDY)
        parts = [_entries(group[name]) for name in sorted(group, key=int)]
    steps = [_part(path, *part) for part in parts if not part[0].startswith("CompositeTransform")]
    return PointMap(tuple(reversed(steps)))  # the last of the file is applied first


def _entries(group: Mapping[str, Any]) -> tuple[str, np.ndarray, np.ndarray]:
    """Kind, parameters and fixed parameters of one part."""
    kind = group["TransformType"][()] if "TransformType" in group else ""
    kind = kind[0] if isinstance(kind, np.ndarray) else kind
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    found = []
    for name in ("Parameters", "FixedParameters"):
        # files of ITK before 5 misspell the name
        key = next((k for k in (f"Transform{name}", f"Tranform{name}") if k in group), None)
        values = np.asarray(group[key][()] if key else []).ravel()
        # fields may be large, and are often kept in single precision
        found.append(values if values.size > 100 else values.astype(np.float64))
    return kind, found[0], found[1]


def _part(path: Path, kind: str, numbers: np.ndarray, fixed: np.ndarray) -> Affine | Displacement:
    """One part of a transform, brought from LPS to RAS."""
    name = kind.partition("_")[0]
    if not kind.endswith("_3_3"):
        raise DataError(
            f"{path} holds a transform {kind or 'without a name'}, not one of 3-D points.", _REMEDY
        )
    if name in _MATRIX_KINDS and (len(numbers), len(fixed)) == (12, 3):
        return _checked(path, numbers[:9].reshape(3, 3), numbers[9:], fixed)
    if name == "Euler3DTransform" and len(numbers) == 6 and len(fixed) in (3, 4):
        return _checked(path, _rotation(numbers[:3], bool(fixed[3:].any())), numbers[3:], fixed[:3])
    if name == "TranslationTransform" and len(numbers) == 3:
        return _checked(path, np.eye(3), numbers, np.zeros(3))
    if name == "IdentityTransform":
        return Affine(np.eye(4))
    if name == "DisplacementFieldTransform" and len(fixed) == 18:
        return _field(path, numbers, fixed)
    raise DataError(
        f"{path} holds a {kind} of {len(numbers)} numbers, which cannot be read: affine, Euler, translation "
        "and displacement field can.",
        _REMEDY,
    )


def _checked(path: Path, matrix: np.ndarray, shift: np.ndarray, centre: np.ndarray) -> Affine:
    whole = np.eye(4)
    whole[:3, :3] = matrix
    whole[:3, 3] = shift + centre - matrix @ centre
    return _affine(path, _FLIP @ whole @ _FLIP).steps[0]


def _rotation(angles: np.ndarray, zyx: bool) -> np.ndarray:
    """ITK's order of turns: z x y, or z y x where the file says so."""
    (sa, sb, sg), (ca, cb, cg) = np.sin(angles), np.cos(angles)
    x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    z = np.array([[cg, -sg, 0], [sg, cg, 0], [0, 0, 1]])
    return z @ y @ x if zyx else z @ x @ y


def _field(path: Path, numbers: np.ndarray, fixed: np.ndarray) -> Displacement:
    size, origin, spacing, direction = fixed[:3], fixed[3:6], fixed[6:9], fixed[9:].reshape(3, 3)
    shape = tuple(int(n) for n in size)
    to_mm = np.eye(4)
    to_mm[:3, :3], to_mm[:3, 3] = direction * spacing, origin
    if len(numbers) != 3 * int(np.prod(shape)) or not np.isfinite(numbers).all():
        raise DataError(f"{path}: the displacement field is not complete.", "Copy it again from its source.")
    if abs(np.linalg.det(to_mm)) < 1e-12:
        raise DataError(f"{path}: the grid of the displacement field has no extent.", _REMEDY)
    field = numbers.reshape(*shape[::-1], 3).transpose(2, 1, 0, 3)  # x runs fastest in the file
    return Displacement(field, np.linalg.inv(to_mm))
