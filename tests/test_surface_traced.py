# SPDX-License-Identifier: Apache-2.0
"""Where ribbon weights are not those of Workbench, a piece of a voxel lies on a face, to within float32.

Workbench writes its weights; times 54 they are whole numbers: halves of the 27 pieces of a voxel.  Each place
where ours is another number is traced to the pieces of that voxel and the faces of that vertex's polyhedron.
"""

from pathlib import Path

import numpy as np
import pytest
from surface_cases import OBLIQUE, SHAPE, Workbench, fsaverage5, middle_of, waves
from test_surface_workbench import MESHES, needs_data, needs_workbench

from conform_app.surface import VolumeToSurface

HALVES = 54
ROUNDING = 4e-5  # mm: the spacing of float32 at 100 to 200 mm is 1e-5, and a plane takes several operations


def counts_of(path: Path, shape) -> dict[tuple[int, int], int]:
    """Half pieces by (vertex, voxel), from the text that Workbench writes."""
    found = {}
    for line in path.read_text().splitlines():
        numbers = line.split(",")
        vertex, rest = int(numbers[0]), numbers[2:]
        for i, j, k, weight in zip(*(rest[n::4] for n in range(4)), strict=True):
            voxel = int(np.ravel_multi_index((int(i), int(j), int(k)), shape))
            found[vertex, voxel] = round(HALVES * float(weight))
    return found


def faces_of(vertex: int, white, pial) -> np.ndarray:
    """Triangles (n, 3, 3) of the polyhedron of a vertex, both splits of its walls."""
    (inner, triangles), (outer, _) = white, pial
    faces = []
    for t in triangles[(triangles == vertex).any(1)]:
        a, b = np.roll(t, -int(np.flatnonzero(t == vertex)[0]))[1:]
        faces += [inner[t], outer[t], (inner[a], inner[b], outer[b]), (inner[a], outer[b], outer[a])]
        faces += [(inner[a], inner[b], outer[a]), (inner[b], outer[b], outer[a])]
    return np.array(faces, dtype=np.float64)


def distance(point: np.ndarray, faces: np.ndarray) -> float:
    """Distance from a point to the nearest of triangles (n, 3, 3)."""
    best = np.inf
    for a, b, c in faces:
        basis = np.stack([b - a, c - a], 1)
        uv, *_ = np.linalg.lstsq(basis, point - a, rcond=None)
        if (uv >= 0).all() and uv.sum() <= 1:
            best = min(best, np.linalg.norm(a + basis @ uv - point))
        for p, q in ((a, b), (b, c), (c, a)):
            along = np.clip((point - p) @ (q - p) / max((q - p) @ (q - p), 1e-300), 0, 1)
            best = min(best, np.linalg.norm(p + along * (q - p) - point))
    return float(best)


def traced(tmp_path, white, pial, volume, affine) -> tuple[int, list[tuple[int, int, float]]]:
    """Number of vertices, and (vertex, halves too many or few, mm to a face) of each difference."""
    wb = Workbench(tmp_path)
    files = [wb.surface(s, n) for s, n in ((white, "white"), (pial, "pial"))]
    text = tmp_path / "weights.txt"
    then = ["-ribbon-constrained", *files, "-output-weights-text", str(text)]
    middle = wb.surface(middle_of(white, pial), "middle")
    wb("-volume-to-surface-mapping", wb.volume(volume, affine, "volume"), middle, then=then)
    theirs = counts_of(text, volume.shape)
    sample = VolumeToSurface(white, pial, volume.shape, affine)
    raw = sample.matrix.multiply(sample.reach[:, None]).tocoo()
    whole = np.rint(HALVES * raw.data)
    np.testing.assert_allclose(HALVES * raw.data, whole, atol=1e-6)
    ours = dict(zip(zip(raw.row.tolist(), raw.col.tolist(), strict=True), whole.astype(int), strict=True))
    out = []
    for vertex, voxel in sorted(k for k in ours.keys() | theirs.keys() if ours.get(k, 0) != theirs.get(k, 0)):
        faces, place = faces_of(vertex, white, pial), np.array(np.unravel_index(voxel, volume.shape))
        pieces = place + (np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3) - 1) / 3
        points = pieces @ affine[:3, :3].T.astype(np.float64) + affine[:3, 3]
        away = min(distance(point, faces) for point in points)
        out.append((vertex, ours.get((vertex, voxel), 0) - theirs.get((vertex, voxel), 0), away))
    return len(white[0]), out


@needs_workbench
@pytest.mark.slow
def test_on_fsaverage5(tmp_path):
    white, pial = fsaverage5("L", "white"), fsaverage5("L", "pial")
    _, found = traced(tmp_path, white, pial, waves(SHAPE), OBLIQUE.astype(np.float32))
    assert all(away < ROUNDING for *_, away in found), found
    assert len(found) < 10


@needs_workbench
@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["studyforrest-L", "S1"])
def test_on_measured_meshes(tmp_path, mesh):
    white, pial, volume, _, affine = MESHES[mesh]()
    n_vertices, found = traced(tmp_path, white, pial, volume, affine.astype(np.float32))
    assert all(away < ROUNDING for *_, away in found), found
    assert len(found) < 3e-4 * n_vertices
    # a piece that changes sides leaves one vertex for another: it is off by its two halves at the most
    assert all(abs(change) <= 2 for _, change, _ in found)
