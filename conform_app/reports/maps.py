# SPDX-License-Identifier: Apache-2.0
"""Map files -> one value a point, and the geometry needed to draw them.

A `Brain` knows which points exist (voxels, vertices or grayordinates, in file order), which of them were
analysed (the mask), the groups they fall into (hemispheres, subcortex) and, where a geometry is at hand, how
to draw them. Three file kinds are read: NIfTI volumes (turned to the closest RAS axes), pairs of GIFTI files
(left, right) and CIFTI dense files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conform_app.errors import FileFaultError

FSAVERAGE5_VERTICES = 10_242
#: fsaverage meshes are nested: the first 10,242 vertices of each are those of fsaverage5.
FSAVERAGE_VERTICES = (10_242, 40_962, 163_842)
FSLR_VERTICES = 32_492


@dataclass(frozen=True)
class Mesh:
    """One hemisphere to draw: vertices (n, 3) mm, faces (m, 3), relief (n,) or None, and its points."""

    side: str
    vertices: np.ndarray
    faces: np.ndarray
    relief: np.ndarray | None
    point: np.ndarray  # (n,) index of the point shown at each vertex, -1 where there is none


@dataclass(frozen=True)
class Brain:
    """Points of a fit and how to draw them.

    Attributes
    ----------
    kind : {"volume", "gifti", "cifti"}
    shape : tuple of int
        Volume shape in RAS axes; ``(n_points,)`` otherwise.
    zooms : tuple of float
        Voxel size, mm (volumes).
    affine : (4, 4) float array or None
        Of the RAS-turned volume; None when the header gives no position.
    groups : dict of str -> slice
        Hemispheres and subcortex by their range of points.
    mask : (n_points,) bool
        Points that were analysed.
    meshes : tuple of Mesh
        Surfaces to draw; empty when no geometry is at hand.
    underlay : (n_points,) float or None
        What lies under the colours: the mean image of a volume, minus the sulcal depth of a surface.
    greys : (float, float)
        Darkest and lightest grey of the underlay.
    """

    kind: str
    shape: tuple[int, ...]
    zooms: tuple[float, ...] = (1.0, 1.0, 1.0)
    affine: np.ndarray | None = None
    groups: dict[str, slice] = field(default_factory=dict)
    mask: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    meshes: tuple[Mesh, ...] = ()
    underlay: np.ndarray | None = None
    greys: tuple[float, float] = (0.30, 0.92)
    geometry: str = ""

    @property
    def unit(self) -> str:
        """What a point is called."""
        return {"volume": "voxels", "gifti": "vertices", "cifti": "grayordinates"}[self.kind]

    @property
    def drawable(self) -> bool:
        """Whether maps can be drawn as pictures."""
        return self.kind == "volume" or bool(self.meshes)


def _load(path: Path):
    import nibabel as nib

    try:
        return nib.load(path)
    except (OSError, nib.filebasedimages.ImageFileError, EOFError, ValueError) as error:
        raise FileFaultError(
            f"Cannot read the map {path}: {error}", "Run the fit again with --overwrite."
        ) from error


def file_kind(path: Path) -> str:
    """``volume``, ``gifti`` or ``cifti``, from the file name."""
    name = path.name
    if name.endswith(".gii"):
        return "gifti"
    if name.endswith((".dscalar.nii", ".dlabel.nii", ".dtseries.nii")):
        return "cifti"
    return "volume"


def read_values(paths: list[Path]) -> np.ndarray:
    """First map of a product, one value a point.

    Parameters
    ----------
    paths : list of Path
        One NIfTI or CIFTI file, or the GIFTI files of the hemispheres, left first.

    Returns
    -------
    (n_points,) float64 array
        Volumes are turned to the closest RAS axes and flattened in C order.

    Raises
    ------
    FileFaultError
        A file cannot be read.
    """
    import nibabel as nib

    kind = file_kind(paths[0])
    try:
        if kind == "gifti":
            parts = [np.asarray(_load(path).darrays[0].data, dtype=np.float64).ravel() for path in paths]
            return np.concatenate(parts)
        image = _load(paths[0])
        if kind == "cifti":
            return np.asarray(image.dataobj[0], dtype=np.float64).ravel()
        data = np.asarray(nib.as_closest_canonical(image).dataobj, dtype=np.float64)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise FileFaultError(
            f"Cannot read the map {paths[0]}: {error}", "Run the fit again with --overwrite."
        ) from error
    return (data[..., 0] if data.ndim > 3 else data).ravel()


def open_brain(
    paths: list[Path],
    *,
    space: str | None,
    mask: np.ndarray | None = None,
    underlay: np.ndarray | None = None,
    own: list[Path] | None = None,
) -> Brain:
    """Geometry behind the product in `paths`.

    Parameters
    ----------
    paths : list of Path
        Any one product of the fit.
    space : str or None
        Value of the ``space`` entity; decides which template surface fits.
    mask : (n_points,) bool, optional
        Analysed points; by default those with a finite value other than 0.
    underlay : (n_points,) float, optional
        Mean image.
    own : list of Path, optional
        The participant's middle surfaces on the mesh of the data, left and right: drawn on where no template
        is at hand.

    Returns
    -------
    Brain
    """
    import nibabel as nib

    kind = file_kind(paths[0])
    if mask is None:
        values = read_values(paths)
        mask = np.isfinite(values) & (values != 0)
    if kind == "volume":
        image = nib.as_closest_canonical(_load(paths[0]))
        header = image.header
        placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        return Brain(
            kind,
            tuple(image.shape[:3]),
            tuple(float(z) for z in header.get_zooms()[:3]),
            image.affine if placed else None,
            mask=mask,
            underlay=underlay,
        )
    if kind == "gifti":
        groups, where = _gifti_groups(paths)
    else:
        groups, where = _cifti_groups(_load(paths[0]))
    meshes, geometry = _meshes(where, space or "")
    if not meshes and own:
        from conform_app.reports.cortex import own_meshes

        meshes, geometry = (
            own_meshes(own, where),
            "the middle surface among this participant's files, inflated",
        )
    return Brain(
        kind,
        (mask.size,),
        groups=groups,
        mask=mask,
        meshes=meshes,
        underlay=_relief(meshes, mask.size),
        greys=(0.55, 0.78),
        geometry=geometry,
    )


def _relief(meshes: tuple[Mesh, ...], n_points: int) -> np.ndarray | None:
    """Gyri light, sulci dark, for every point that is drawn; None without a known relief."""
    if not meshes or any(mesh.relief is None for mesh in meshes):
        return None
    relief = np.full(n_points, np.nan)
    for mesh in meshes:
        has = mesh.point >= 0
        relief[mesh.point[has]] = np.where(mesh.relief[has] > 0, -1.0, 1.0)
    return relief


def _gifti_groups(paths: list[Path]) -> tuple[dict[str, slice], dict[str, np.ndarray]]:
    groups, where, start = {}, {}, 0
    for position, path in enumerate(paths):
        side = "right" if "hemi-R" in path.name or (position == 1 and "hemi-L" not in path.name) else "left"
        n_vertices = _load(path).darrays[0].data.shape[0]
        groups[side] = slice(start, start + n_vertices)
        where[side] = np.arange(start, start + n_vertices)
        start += n_vertices
    return groups, where


def _cifti_groups(image) -> tuple[dict[str, slice], dict[str, np.ndarray]]:
    axis = image.header.get_axis(1)
    groups, where, subcortex = {}, {}, []
    for name, span, model in axis.iter_structures():
        stop = axis.size if span.stop is None else span.stop
        side = {"CIFTI_STRUCTURE_CORTEX_LEFT": "left", "CIFTI_STRUCTURE_CORTEX_RIGHT": "right"}.get(name)
        if side is None:
            subcortex.append((span.start, stop))
            continue
        groups[side] = slice(span.start, stop)
        point = np.full(axis.nvertices[name], -1)
        point[model.vertex] = np.arange(span.start, stop)
        where[side] = point
    if subcortex:
        groups["subcortex"] = slice(min(s for s, _ in subcortex), max(s for _, s in subcortex))
    return groups, where


def _meshes(where: dict[str, np.ndarray], space: str) -> tuple[tuple[Mesh, ...], str]:
    sizes = {point.size for point in where.values()}
    if len(sizes) != 1:
        return (), ""
    size = sizes.pop()
    if space.startswith("fsaverage") and size in FSAVERAGE_VERTICES:
        geometry = "the inflated fsaverage5 surface"
        if size != FSAVERAGE5_VERTICES:
            geometry += f" (its 10,242 vertices of the {size:,} a hemisphere)"
        return tuple(_fsaverage5(side, point) for side, point in where.items()), geometry
    if size == FSLR_VERTICES and space != "fsnative":
        meshes = tuple(m for m in (_fslr(side, point) for side, point in where.items()) if m is not None)
        if len(meshes) == len(where):
            return meshes, "the fsLR 32k template surface"
    return (), ""


def _fsaverage5(side: str, point: np.ndarray) -> Mesh:
    from nilearn import surface
    from nilearn.datasets import fetch_surf_fsaverage

    template = fetch_surf_fsaverage("fsaverage5")  # ships inside nilearn: no download
    mesh = surface.load_surf_mesh(template[f"infl_{side}"])
    relief = np.asarray(surface.load_surf_data(template[f"sulc_{side}"]), dtype=np.float64)
    vertices = np.asarray(mesh.coordinates, dtype=np.float64)
    return Mesh(side, vertices, np.asarray(mesh.faces), relief, point[:FSAVERAGE5_VERTICES])


def _fslr(side: str, point: np.ndarray) -> Mesh | None:
    """FsLR surface if TemplateFlow already holds it on disk; nothing is downloaded for a picture."""
    from conform_app.images.templates import templates_home

    folder = templates_home() / "tpl-fsLR"
    for kind in ("veryinflated", "inflated", "midthickness"):
        path = folder / f"tpl-fsLR_den-32k_hemi-{side[0].upper()}_{kind}.surf.gii"
        if path.is_file() and path.stat().st_size > 0:
            image = _load(path)
            vertices, faces = image.agg_data("pointset"), image.agg_data("triangle")
            return Mesh(side, np.asarray(vertices, np.float64), np.asarray(faces), None, point)
    return None
