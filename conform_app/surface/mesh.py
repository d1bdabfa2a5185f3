# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes: checks, areas, normals, the surface between two surfaces.

A surface is a pair ``(coordinates, triangles)``: (n_vertices, 3) mm and (n_triangles, 3) vertex numbers.
A vertex answers for one third of each of its triangles: ``A_v = sum over triangles of |ab x ac| / 6``.
All float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from conform_app.errors import DataError, UsageError

_SIDE = {"L": "left", "R": "right"}


class Surface(NamedTuple):
    """A checked mesh.

    Attributes
    ----------
    coordinates : ndarray, (n_vertices, 3) float64
        In mm.
    triangles : ndarray, (n_triangles, 3) int64
        Vertex numbers.
    """

    coordinates: np.ndarray
    triangles: np.ndarray


def as_surface(surface, name: str) -> Surface:
    """The surface as float64 coordinates and int64 triangles, checked.

    Parameters
    ----------
    surface : pair of array_like
        Coordinates (n_vertices, 3) in mm and triangles (n_triangles, 3).
    name : str
        What to call it in messages: "white", "source sphere".

    Raises
    ------
    DataError
        Arrays of another shape, coordinates that are not finite, triangles that name no vertex.
    """
    if not isinstance(surface, tuple | list) or len(surface) != 2:
        raise DataError(
            f"The {name} surface is not a pair of coordinates and triangles.",
            "Give (coordinates (n, 3), triangles (m, 3)).",
        )
    coordinates = as_coordinates(surface[0], name)
    triangles = np.asarray(surface[1])
    if triangles.ndim != 2 or triangles.shape[1] != 3 or not np.issubdtype(triangles.dtype, np.integer):
        raise DataError(
            f"The triangles of the {name} surface are {triangles.dtype} of shape {triangles.shape}.",
            "Give integers of shape (n_triangles, 3).",
        )
    triangles = triangles.astype(np.int64)
    if len(triangles) == 0 or triangles.min() < 0 or triangles.max() >= len(coordinates):
        raise DataError(
            f"Triangles of the {name} surface name vertices outside 0 to {len(coordinates) - 1}.",
            "Coordinates and triangles must come from the same file; vertices count from 0.",
        )
    return Surface(coordinates, triangles)


def as_coordinates(coordinates, name: str) -> np.ndarray:
    """Coordinates as finite float64 (n_vertices, 3).

    Raises
    ------
    DataError
        Another shape, or values that are not finite.
    """
    coordinates = np.asarray(coordinates, np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] != 3 or len(coordinates) < 3:
        raise DataError(
            f"The coordinates of the {name} surface have shape {coordinates.shape}.", "Give (n_vertices, 3)."
        )
    bad = int((~np.isfinite(coordinates)).any(1).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(coordinates)} vertices of the {name} surface have no finite coordinates.",
            "The surface file is damaged: write it again.",
        )
    return coordinates


def same_mesh(one: Surface, other: Surface, names: tuple[str, str]) -> None:
    """Check that two surfaces have the same vertices and triangles.

    Raises
    ------
    DataError
        Different numbers, or triangles that join other vertices.
    """
    n, m = len(one.coordinates), len(other.coordinates)
    if n != m:
        raise DataError(
            f"The {names[0]} surface has {n} vertices, the {names[1]} surface has {m}.",
            "Use surfaces of the same subject, hemisphere and density.",
        )
    if one.triangles.shape != other.triangles.shape or not np.array_equal(one.triangles, other.triangles):
        raise DataError(
            f"The {names[0]} and {names[1]} surfaces have different triangles.",
            "Use surfaces of the same subject and hemisphere: vertex i must be the same place on both.",
        )


def check_hemisphere(surface, hemisphere: str, name: str = "given") -> None:
    """Check by its x-coordinates (R+) that an anatomical surface lies in the hemisphere it is said to be of.

    Parameters
    ----------
    surface : pair or array_like
        Surface, or coordinates (n_vertices, 3) in mm.  Not a sphere or an inflated surface: those are
        centred on 0 and tell nothing.
    hemisphere : str
        "L" or "R".
    name : str
        What to call the surface in the message.

    Raises
    ------
    DataError
        Most of the surface is on the other side.
    UsageError
        A hemisphere other than "L" and "R".
    """
    if hemisphere not in _SIDE:
        raise UsageError(f"There is no hemisphere {hemisphere!r}.", 'Give "L" or "R".')
    pair = isinstance(surface, tuple | list) and len(surface) == 2
    x = as_coordinates(surface[0] if pair else surface, name)[:, 0]
    middle = float(np.median(x))
    if middle * (-1 if hemisphere == "L" else 1) < 0:
        other = _SIDE["R" if hemisphere == "L" else "L"]
        raise DataError(
            f"The {name} surface should be the {_SIDE[hemisphere]} hemisphere but lies on the {other} side "
            f"(median x = {middle:.1f} mm, right is positive).",
            "Left and right are swapped, or the coordinates are not RAS: check the files.",
        )


def midthickness(white, pial) -> Surface:
    """The surface half way between white and pial.

    Parameters
    ----------
    white, pial : pair of array_like
        Surfaces with the same mesh.

    Returns
    -------
    Surface
        Mean coordinates, the same triangles.
    """
    inner, outer = as_surface(white, "white"), as_surface(pial, "pial")
    same_mesh(inner, outer, ("white", "pial"))
    return Surface((inner.coordinates + outer.coordinates) / 2, inner.triangles)


def triangle_normals(surface: Surface) -> np.ndarray:
    """Cross products (n_triangles, 3): outward, twice the area long."""
    a, b, c = (surface.coordinates[surface.triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def triangle_areas(surface: Surface) -> np.ndarray:
    """Areas (n_triangles,) in mm²."""
    return np.linalg.norm(triangle_normals(surface), axis=1) / 2


def to_vertices(values: np.ndarray, surface: Surface) -> np.ndarray:
    """Sum at each vertex of the values (n_triangles,) of its triangles."""
    n = len(surface.coordinates)
    return np.bincount(surface.triangles.ravel(), np.repeat(values, 3), minlength=n)


def vertex_areas(surface) -> np.ndarray:
    """Area that each vertex answers for.

    Parameters
    ----------
    surface : pair of array_like
        Coordinates in mm and triangles.

    Returns
    -------
    ndarray, (n_vertices,) float64
        mm²; equals ``wb_command -surface-vertex-areas``.
    """
    surface = as_surface(surface, "given")
    return to_vertices(triangle_areas(surface) / 3, surface)


def vertex_normals(surface) -> np.ndarray:
    """Outward unit normals: the mean of the unit normals of each vertex's triangles.

    Parameters
    ----------
    surface : pair of array_like
        Coordinates in mm and triangles.

    Returns
    -------
    ndarray, (n_vertices, 3) float64
        0 for vertices without a triangle.
    """
    surface = as_surface(surface, "given")
    flat = triangle_normals(surface)
    size = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.divide(flat, size, out=np.zeros_like(flat), where=size > 0)
    normals = np.stack([to_vertices(flat[:, k], surface) for k in range(3)], 1)
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, size, out=np.zeros_like(normals), where=size > 0)


def medial_wall_mask(labels, wall) -> np.ndarray:
    """Vertices of cortex: those whose label is not one of the wall's.

    Parameters
    ----------
    labels : array_like, (n_vertices,) int
        Parcellation, for instance FreeSurfer's annotation.
    wall : int or sequence of int
        Labels of the medial wall.

    Returns
    -------
    ndarray, (n_vertices,) bool
        True on cortex.

    Raises
    ------
    DataError
        No vertex is left.
    """
    cortex = ~np.isin(np.asarray(labels), np.atleast_1d(wall))
    if not cortex.any():
        raise DataError("Every vertex belongs to the medial wall.", "Check which labels name the wall.")
    return cortex
