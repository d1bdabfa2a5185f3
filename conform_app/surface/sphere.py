# SPDX-License-Identifier: Apache-2.0
"""From mesh to mesh: values of one cortical mesh at the vertices of another, by way of spheres in register.

* F (n_target, n_source): barycentric weights of each target vertex in the source sphere (gather).
* S (n_target, n_source): those of each source vertex in the target sphere, transposed (scatter).

barycentric: ``W = F``.  Where the source is denser than the target it skips source vertices.

adaptive: row t is ``S_t`` if S_t holds a vertex that F_t lacks, else ``F_t``; so every source vertex counts
when going to a coarser mesh.  Then areas (a source, b target) make the integral come along:

    V_ts = b_t R_ts,    U_ts = V_ts a_s / sum_t' V_t's,    W_ts = U_ts / sum_s' U_ts'.

nearest: the source vertex with the largest barycentric weight.  A source mask takes vertices out of the rows
last, and what is left is normalised anew.

Method: ``wb_command -metric-resample`` (BARYCENTRIC, ADAP_BARY_AREA), written from its documentation and its
results; Glasser et al. (2013) NeuroImage 80:105.  float64 throughout; values are float32 unless asked for.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from conform_app.errors import DataError, UsageError
from conform_app.surface.linear import LinearMap, as_maps, normalised_rows, pack, unpack
from conform_app.surface.locate import barycentric_weights
from conform_app.surface.mesh import Surface, as_surface, vertex_areas
from conform_app.surface.space import vertex_mask_of
from conform_app.surface.stored import Stored

METHODS = ("adaptive", "barycentric", "nearest")
_RADIUS = 100.0
_ROUND = 0.02  # relative deviation of vertices from the sphere that is still a sphere


class SphereResampler(Stored):
    """Resampling of maps from one cortical mesh to another.

    Parameters
    ----------
    source_sphere, target_sphere : pair of array_like
        Spheres in register, centred on 0: coordinates (n, 3) and triangles.  The radius does not matter.
    method : {"adaptive", "barycentric", "nearest"}
        As ADAP_BARY_AREA, BARYCENTRIC, BARYCENTRIC -largest of ``wb_command -metric-resample``.
    source_area, target_area : surface or array_like (n,), optional
        Anatomical surfaces (``-area-surfs``) or vertex areas in mm² (``-area-metrics``) for the adaptive
        method, which needs both.
    source_mask : array_like, (n_source,), optional
        Source vertices with data: those above 0 (``-current-roi``).

    Attributes
    ----------
    matrix : csr_matrix, (n_target, n_source) float64
        Weights; rows sum to 1 or are empty.
    valid : ndarray, (n_target,) bool
        Target vertices that have a value.
    method : str
        As given.

    Raises
    ------
    DataError
        Surfaces that are not spheres, areas or a mask for another number of vertices, areas of different
        hemispheres, an empty mask, coordinates that are not finite.
    UsageError
        An unknown method, or the adaptive one without areas.
    """

    kind = "sphere_to_sphere"

    def __init__(
        self,
        source_sphere,
        target_sphere,
        *,
        method: str = "adaptive",
        source_area=None,
        target_area=None,
        source_mask=None,
    ):
        if method not in METHODS:
            raise UsageError(
                f"There is no resampling method {method!r}.", f"Choose from {', '.join(METHODS)}."
            )
        source, target = _sphere(source_sphere, "source sphere"), _sphere(target_sphere, "target sphere")
        areas = None
        if method == "adaptive":
            if source_area is None or target_area is None:
                raise UsageError(
                    "Adaptive resampling needs the vertex areas of both meshes.",
                    "Give source_area and target_area (midthickness surfaces), or use barycentric.",
                )
            _same_side(source_area, target_area)
            n = len(source.coordinates), len(target.coordinates)
            areas = _areas(source_area, n[0], "source"), _areas(target_area, n[1], "target")
        keep = _source_mask(source_mask, len(source.coordinates))
        weights = barycentric_weights(target.coordinates, source.coordinates, source.triangles)
        if areas is not None:
            back = barycentric_weights(source.coordinates, target.coordinates, target.triangles)
            weights = _area_corrected(_adaptive(weights, back.T.tocsr()), *areas)
        if keep is not None:
            weights = (weights @ sparse.diags(keep.astype(np.float64))).tocsr()
            weights.eliminate_zeros()
        if method == "nearest":
            weights = _largest(weights)
        matrix, _ = normalised_rows(weights)
        self._set(method, matrix, source, target, areas)

    def _set(self, method, matrix, source: Surface, target: Surface, areas) -> None:
        self.method, self._source, self._target, self._areas = method, source, target, areas
        self._map = LinearMap(matrix)
        self.matrix, self.valid = matrix, self._map.valid

    def apply(self, values, *, fill: float = np.nan, device: str = "cpu", dtype=np.float32) -> np.ndarray:
        """Maps on the target mesh.

        Parameters
        ----------
        values : array_like, (n_source,) or (n_source, T)
            Maps on the source mesh.
        fill : float
            Value of target vertices without a value.
        device : str
            "cpu" (scipy), "cuda", or "auto": a GPU if there is one.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        ndarray, (n_target,) or (n_target, T)
            In the values' units.

        Raises
        ------
        DataError
            Values for another number of vertices.
        UsageError
            No such device, or a dtype other than float32 and float64.
        """
        maps, single = as_maps(values, self.matrix.shape[1], "the source sphere")

        def gather(used: np.ndarray, start: int, stop: int) -> np.ndarray:
            return maps[used, start:stop]

        out = self._map(gather, maps.shape[1], fill=fill, device=device, dtype=dtype)
        return out[:, 0] if single else out

    def apply_labels(self, labels, *, largest: bool = False, fill: int = 0) -> np.ndarray:
        """Labels on the target mesh: for each vertex the label with the largest sum of weights.

        Parameters
        ----------
        labels : array_like, (n_source,) int
            Labels on the source mesh.
        largest : bool
            Take the label of the source vertex with the largest weight instead.
        fill : int
            Label of target vertices without a value.

        Returns
        -------
        ndarray, (n_target,)
            Labels; ties go to the lowest.

        Raises
        ------
        DataError
            Labels that are not integers, or for another number of vertices.
        """
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iub":
            raise DataError(
                f"Labels are {labels.dtype}, not integers.", "Use apply for values that are not labels."
            )
        as_maps(labels, self.matrix.shape[1], "the source sphere")
        if labels.ndim != 1:
            raise DataError(f"Labels have shape {labels.shape}.", "Give one map, (n_source,).")
        names, index = np.unique(labels, return_inverse=True)
        weights = _largest(self.matrix) if largest else self.matrix
        one_hot = sparse.csr_matrix((np.ones(len(index)), (np.arange(len(index)), index)))
        votes = (weights @ one_hot).tocsr()
        out = np.full(len(self.valid), fill, np.result_type(labels.dtype, np.min_scalar_type(fill)))
        out[self.valid] = names[_largest(votes).indices]
        return out

    def inverse(self, *, source_mask=None) -> SphereResampler:
        """The resampler from the target mesh to the source mesh, by the same method.

        Parameters
        ----------
        source_mask : array_like, (n_target,), optional
            Vertices of what was the target that have data.

        Returns
        -------
        SphereResampler
            A resampler of its own: going there and back smooths.
        """
        areas = (None, None) if self._areas is None else self._areas
        return SphereResampler(
            self._target,
            self._source,
            method=self.method,
            source_area=areas[1],
            target_area=areas[0],
            source_mask=source_mask,
        )

    def masked(self, source_mask) -> SphereResampler:
        """The resampler for data that only some source vertices have.

        Parameters
        ----------
        source_mask : array_like, (n_source,)
            Vertices with data: those above 0.

        Returns
        -------
        SphereResampler
            The weights of the others are taken out and what is left of a row is normalised anew: what
            `source_mask` does when the resampler is made.  (``nearest``: a target vertex whose source
            vertex has no data has none.)

        Raises
        ------
        DataError
            A mask for another number of vertices, an empty mask.
        """
        keep = _source_mask(source_mask, self.matrix.shape[1])
        matrix, _ = normalised_rows(self.matrix @ sparse.diags(keep.astype(np.float64)))
        other = type(self).__new__(type(self))
        other._set(self.method, matrix, self._source, self._target, self._areas)
        return other

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The transform as plain arrays, for storage; `inverse` works on what comes back."""
        arrays = {**pack(self.matrix), "kind": np.array(self.kind), "method": np.array(self.method)}
        for name, sphere in (("source", self._source), ("target", self._target)):
            arrays[f"{name}_sphere"] = sphere.coordinates
            arrays[f"{name}_triangles"] = sphere.triangles.astype(np.int32)
        if self._areas is not None:
            arrays["source_area"], arrays["target_area"] = self._areas
        return arrays

    @classmethod
    def from_arrays(cls, arrays) -> SphereResampler:
        """The transform that `to_arrays` took apart.

        Parameters
        ----------
        arrays : mapping of str to ndarray

        Returns
        -------
        SphereResampler

        Raises
        ------
        DataError
            Entries are missing or contradict each other.
        """
        matrix = unpack(arrays)
        needed = ("method", "source_sphere", "source_triangles", "target_sphere", "target_triangles")
        missing = [k for k in needed if k not in arrays]
        if missing:
            raise DataError(f"The stored transform lacks {', '.join(missing)}.", "Make it again.")
        spheres = [
            Surface(np.asarray(arrays[f"{n}_sphere"]), np.asarray(arrays[f"{n}_triangles"]).astype(np.int64))
            for n in ("source", "target")
        ]
        if matrix.shape != (len(spheres[1].coordinates), len(spheres[0].coordinates)):
            raise DataError("The stored transform contradicts itself.", "Make it again.")
        areas = None
        if "source_area" in arrays:
            areas = np.asarray(arrays["source_area"]), np.asarray(arrays["target_area"])
        self = cls.__new__(cls)
        self._set(str(np.asarray(arrays["method"])), matrix, *spheres, areas)
        return self


def _sphere(surface, name: str) -> Surface:
    """The sphere with radius 100; DataError if it is none."""
    surface = as_surface(surface, name)
    radius = np.linalg.norm(surface.coordinates, axis=1)
    middle = float(np.median(radius))
    uneven = float(np.abs(radius - middle).max())
    if not middle > 0 or uneven > _ROUND * middle:
        raise DataError(
            f"The {name} is no sphere around the origin: vertices lie {radius.min():.4g} to "
            f"{radius.max():.4g} from it.",
            "Give sphere.reg of FreeSurfer or a *_sphere.surf.gii, not an anatomical or inflated surface.",
        )
    return Surface(surface.coordinates * (_RADIUS / radius[:, None]), surface.triangles)


def _same_side(source_area, target_area) -> None:
    """DataError if the area surfaces, where both are surfaces, lie in different hemispheres."""
    pair = [
        x
        for x in (source_area, target_area)
        if isinstance(x, tuple | list) and len(x) == 2 and np.ndim(x[0]) == 2
    ]
    if len(pair) < 2:
        return
    one, other = (float(np.median(as_surface(x, "area").coordinates[:, 0])) for x in pair)
    if one * other < 0:
        raise DataError(
            f"The area surfaces lie in different hemispheres (median x = {one:.1f} and {other:.1f} mm).",
            "Left and right are swapped for one of the meshes: give both meshes of the same hemisphere.",
        )


def _areas(area, n: int, name: str) -> np.ndarray:
    """Vertex areas (n,) from a surface or from areas."""
    is_surface = isinstance(area, tuple | list) and len(area) == 2 and np.ndim(area[0]) == 2
    areas = vertex_areas(as_surface(area, f"{name} area")) if is_surface else np.asarray(area, np.float64)
    if areas.shape != (n,):
        raise DataError(
            f"The {name} area surface has {areas.shape[0] if areas.ndim else 0} vertices, "
            f"the {name} sphere has {n}.",
            "Sphere and surface must be of the same subject, hemisphere and density.",
        )
    if not np.isfinite(areas).all() or (areas < 0).any() or not (areas > 0).any():
        raise DataError(f"The {name} vertex areas are not all finite and positive.", "Give areas in mm².")
    return areas


def _source_mask(mask, n: int) -> np.ndarray | None:
    return None if mask is None else vertex_mask_of(mask, n, "source")


def _adaptive(gather: sparse.csr_matrix, scatter: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows of scatter where they hold a vertex that gather lacks, rows of gather elsewhere."""
    shared = (gather != 0).multiply(scatter != 0).tocsr().getnnz(axis=1)
    more = scatter.getnnz(axis=1) > shared
    pick = (sparse.diags(x.astype(np.float64)) for x in (more, ~more))
    rows = sum(p @ m for p, m in zip(pick, (scatter, gather), strict=True)).tocsr()
    rows.eliminate_zeros()
    return rows


def _area_corrected(rows: sparse.csr_matrix, source: np.ndarray, target: np.ndarray) -> sparse.csr_matrix:
    """U of the module's docstring."""
    spread = (sparse.diags(target) @ rows).tocsr()
    given = np.asarray(spread.sum(axis=0)).ravel()
    return (
        spread @ sparse.diags(np.divide(source, given, out=np.zeros_like(given), where=given > 0))
    ).tocsr()


def _largest(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The largest weight of each row alone, as 1; ties go to the lowest column."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    rows, first = np.unique(row[order], return_index=True)
    columns = matrix.indices[order[first]]
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), matrix.shape)
