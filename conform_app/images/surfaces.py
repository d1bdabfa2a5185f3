# SPDX-License-Identifier: Apache-2.0
"""Surfaces <-> files: GIFTI and FreeSurfer meshes, masks of vertices.

A surface is `(coordinates (n, 3) float64 in mm, triangles (m, 3) int32)`.  Coordinates are those of the
scanner (RAS).  FreeSurfer's own ("tkRAS") have their origin in the middle of its volume: with the volume's
axes M = [x y z] and centre c, as the file gives them, and T the axes of tkRAS, p_scanner = M T^-1 p + c.

fsaverage meshes are nested: vertices 0 .. n-1 of a finer one are the coarser one.  Its triangles follow: each
vertex that is added is the middle of a coarse edge, so three added vertices that form a triangle lie within
one coarse triangle, whose corners are the ends of their edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import DataError
from conform_app.images.files import reading, require, writing
from conform_app.images.gifti import STRUCTURES

Surface = tuple[np.ndarray, np.ndarray]

_TKRAS = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # columns: its x, y and z axis
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


def read_surface(path: str | Path) -> Surface:
    """Read a mesh.

    Parameters
    ----------
    path : path
        ``.surf.gii`` (``.gii.gz`` too), or a FreeSurfer geometry such as ``lh.white``.

    Returns
    -------
    coordinates : ndarray of float64, shape (n_vertices, 3)
        mm, scanner RAS (a sphere: as it is).
    triangles : ndarray of int32, shape (n_triangles, 3)

    Raises
    ------
    NoInputError, FileFaultError
        There is no such file, or it is damaged.
    DataError
        It holds no mesh.
    """
    path = require(Path(path))
    if ".gii" in path.name:
        return _read_gifti(path)
    return _read_freesurfer(path)


def _read_freesurfer(path: Path) -> Surface:
    import warnings

    import nibabel.freesurfer as fs

    with reading(path), warnings.catch_warnings():
        # nibabel warns of files without a footer, and of newer footers that it reads all the same
        warnings.simplefilter("ignore", UserWarning)
        coordinates, triangles, info = fs.read_geometry(path, read_metadata=True)
    coordinates = np.asarray(coordinates, dtype=np.float64)
    if "sphere" not in path.name:
        axes, centre = _volume_of(path, info)
        coordinates = coordinates @ (axes @ np.linalg.inv(_TKRAS)).T + centre
    return coordinates, np.asarray(triangles, dtype=np.int32)


def _volume_of(path: Path, info: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Axes (3, 3) and centre (3,) of the volume whose tkRAS a surface is in.

    The footer of the surface has them; a footer that calls itself invalid, or none, leaves ``mri/orig.mgz``
    of the same subject, from whose geometry recon-all took them.

    Raises
    ------
    DataError
        Neither says.
    """
    if str(info.get("valid", "0")).split()[0] == "1" and len(info.get("cras", ())) == 3:
        return np.column_stack([info["xras"], info["yras"], info["zras"]]), np.asarray(info["cras"])
    from nibabel.freesurfer import MGHImage

    for name in ("orig.mgz", "brain.mgz", "T1.mgz"):
        volume = path.resolve().parent.parent / "mri" / name
        if volume.is_file():
            with reading(volume):
                header = MGHImage.load(volume).header
            if header["goodRASFlag"] > 0:
                return np.asarray(header["Mdc"], dtype=np.float64).T, np.asarray(
                    header["Pxyz_c"], dtype=float
                )
    raise DataError(
        f"{path} does not say where in the scanner it lies (no volume geometry), and there is no "
        f"{path.parent.parent / 'mri' / 'orig.mgz'} that does.",
        "Give the whole FreeSurfer subject folder, or surfaces converted with mris_convert --to-scanner.",
    )


def _read_gifti(path: Path) -> Surface:
    import nibabel

    with reading(path):
        image = nibabel.load(path)
        points = image.get_arrays_from_intent("NIFTI_INTENT_POINTSET")
        faces = image.get_arrays_from_intent("NIFTI_INTENT_TRIANGLE")
    if len(points) != 1 or len(faces) != 1:
        raise DataError(
            f"{path} holds no mesh (one set of points, one of triangles).", "Give a .surf.gii file."
        )
    coordinates = np.asarray(points[0].data, dtype=np.float64)
    # mris_convert leaves the centre of the volume to be added; a sphere has none
    centre = np.array([float(points[0].meta.get(f"VolGeomC_{axis}", 0)) for axis in "RAS"])
    round_one = "sphere" in path.name or points[0].meta.get("GeometricType", "").startswith("Spher")
    if centre.any() and not round_one and getattr(points[0].coordsys, "dataspace", 0) != _SCANNER:
        coordinates = coordinates + centre
    return coordinates, np.asarray(faces[0].data, dtype=np.int32)


def write_surface(path: str | Path, surface: Surface, hemi: str, kind: str) -> Path:
    """Write a mesh as GIFTI; the same mesh gives the same bytes.

    Parameters
    ----------
    path : path
        ``.surf.gii``.
    surface : (coordinates, triangles)
    hemi : {"L", "R"}
    kind : str
        ``midthickness``, ``sphere`` ...; becomes the anatomical structure's second name.
    """
    from nibabel.gifti import GiftiCoordSystem, GiftiDataArray, GiftiImage, GiftiMetaData

    second = {"midthickness": "MidThickness", "white": "GrayWhite", "pial": "Pial"}.get(kind, "MidLayer")
    meta = {"AnatomicalStructurePrimary": STRUCTURES["LR".index(hemi)]}
    meta |= {"AnatomicalStructureSecondary": second}
    meta["GeometricType"] = "Spherical" if kind == "sphere" else "Anatomical"
    points = GiftiDataArray(
        np.ascontiguousarray(surface[0], np.float32),
        intent="NIFTI_INTENT_POINTSET",
        coordsys=GiftiCoordSystem(_SCANNER, _SCANNER),
        meta=GiftiMetaData(meta),
    )
    faces = GiftiDataArray(np.ascontiguousarray(surface[1], np.int32), intent="NIFTI_INTENT_TRIANGLE")
    faces.coordsys = None
    whole = {"AnatomicalStructurePrimary": meta["AnatomicalStructurePrimary"]}
    image = GiftiImage(darrays=[points, faces], meta=GiftiMetaData(whole))
    with writing(path) as file:
        file.write(image.to_xml())
    return Path(path)


def read_vertices(path: str | Path, n_vertices: int) -> np.ndarray:
    """Read a mask of vertices.

    Parameters
    ----------
    path : path
        GIFTI labels or metric (above 0: inside), or a FreeSurfer label such as ``lh.cortex.label``.
    n_vertices : int
        Of the mesh.

    Returns
    -------
    ndarray of bool, shape (n_vertices,)

    Raises
    ------
    DataError
        The mask is of another mesh.
    """
    path = require(Path(path))
    with reading(path):
        if ".gii" in path.name:
            import nibabel

            found = np.asarray(nibabel.load(path).darrays[0].data).ravel() > 0
            size = found.size
        else:
            import nibabel.freesurfer as fs

            vertices = np.asarray(fs.read_label(path), dtype=int)
            size = n_vertices if not vertices.size or vertices.max() < n_vertices else int(vertices.max()) + 1
            found = np.zeros(size, dtype=bool)
            found[vertices] = True
    if size != n_vertices:
        raise DataError(
            f"{path} has {size} vertices, the surface {n_vertices}.", "Take both from one reconstruction."
        )
    return found


def first_vertices(surface: Surface, n_vertices: int) -> Surface:
    """Return a coarser fsaverage mesh: the first vertices of a finer one.

    Raises
    ------
    DataError
        The mesh has fewer vertices, or is not nested.
    """
    coordinates, triangles = surface
    while len(coordinates) > n_vertices:
        n_coarse = (len(coordinates) - 2) // 4 + 2
        added = (triangles >= n_coarse).all(axis=1)
        if n_coarse < n_vertices or 4 * int(added.sum()) != len(triangles):
            raise DataError(
                f"A mesh of {len(coordinates)} vertices does not hold one of {n_vertices}.",
                "Give the fsaverage mesh of that density.",
            )
        ends = _edge_ends(triangles, n_coarse, len(coordinates))
        corners = ends[triangles[added] - n_coarse]  # (n, 3 middles, 2 ends)
        # a corner of the coarse triangle is the end that two neighbouring middles share
        first, second = corners[:, [0, 1, 2]], corners[:, [1, 2, 0]]
        shared = np.where((first[..., :1] == second).any(axis=-1), first[..., 0], first[..., 1])
        coordinates, triangles = coordinates[:n_coarse], shared.astype(np.int32)
    return coordinates, triangles


def _edge_ends(triangles: np.ndarray, n_coarse: int, n_fine: int) -> np.ndarray:
    """Return the two coarse vertices beside each added one: (n_fine - n_coarse, 2)."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    edges = np.unique(edges[(edges[:, 0] >= n_coarse) & (edges[:, 1] < n_coarse)], axis=0)
    if len(edges) != 2 * (n_fine - n_coarse):
        raise DataError("The mesh is not nested as fsaverage is.", "Give the mesh of the density wanted.")
    return edges[:, 1].reshape(-1, 2)
