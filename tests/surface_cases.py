# SPDX-License-Identifier: Apache-2.0
"""Surfaces, volumes and calls of wb_command for the tests of surfaces.

``python tests/surface_cases.py`` writes what wb_command gives for `expected_cases` to
``tests/data/surface/workbench.npz``; the tests compare with it where wb_command is not installed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

WB_COMMAND = shutil.which("wb_command")
SAVED = Path(__file__).parent / "data" / "surface" / "workbench.npz"
SHAPE = (52, 66, 48)
OBLIQUE = np.array(
    [[-2.4, 0.11, 0.2, 8.0], [0.13, 2.38, -0.3, -90.0], [0.16, 0.31, 2.9, -40.0], [0.0, 0.0, 0.0, 1.0]]
)


def fsaverage5(side: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """White, pial or sphere of fsaverage5 from nilearn, float32 mm."""
    from nilearn import datasets, surface

    files = datasets.fetch_surf_fsaverage("fsaverage5")
    mesh = surface.load_surf_mesh(files[f"{name}_{'left' if side == 'L' else 'right'}"])
    return np.asarray(mesh.coordinates, np.float32), np.asarray(mesh.faces, np.int32)


def middle_of(white: tuple, pial: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Midthickness rounded to float32, as files hold it."""
    mean = (white[0].astype(np.float64) + pial[0]) / 2
    return mean.astype(np.float32), white[1]


def icosphere(levels: int, radius: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Sphere of 20 * 4^levels outward triangles."""
    g = (1 + 5**0.5) / 2
    x = np.array([[s, t * g, 0] for s in (-1, 1) for t in (-1, 1)], float)
    x = np.concatenate([np.roll(x, k, 1) for k in range(3)])
    from scipy.spatial import ConvexHull

    x /= np.linalg.norm(x, axis=1, keepdims=True)
    t = ConvexHull(x).simplices
    for _ in range(levels):
        edges = np.unique(np.sort(np.concatenate([t[:, [k, (k + 1) % 3]] for k in range(3)]), 1), axis=0)
        x = np.concatenate([x, x[edges].mean(1)])
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        t = ConvexHull(x).simplices
    a, b, c = (x[t[:, k]] for k in range(3))
    inward = np.einsum("nk,nk->n", np.cross(b - a, c - a), a) < 0
    t[inward] = t[inward][:, ::-1]
    return radius * x, t.astype(np.int64)


def waves(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A smooth volume with fine detail, float32, mean about 100."""
    i, j, k = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    values = 100 + 20 * np.sin(i / 1.7) * np.cos(j / 2.3) + 15 * np.sin(k / 1.3 + i * j / 90)
    return values.astype(np.float32)


def rotation() -> np.ndarray:
    """A turn by 0.03 rad about an axis that is no axis of the mesh."""
    from scipy.spatial.transform import Rotation

    axis = np.array([0.3, -0.5, 0.81])
    return Rotation.from_rotvec(0.03 * axis / np.linalg.norm(axis)).as_matrix()


def signal(sphere: np.ndarray) -> np.ndarray:
    """A map on a sphere of radius 100, float32, with detail of a few mm."""
    x, y, z = sphere.astype(np.float64).T
    return (3 + np.sin(x / 3) * np.cos(y / 4) + np.sin(z / 2.5)).astype(np.float32)


def holes_of(sphere: np.ndarray) -> np.ndarray:
    """A large hole and many small ones, bool."""
    x, y, z = sphere.astype(np.float64).T
    return (x > 85) | (np.sin(x) * np.sin(y) * np.sin(z) > 0.7)


class Workbench:
    """wb_command on arrays: writes them to files, calls, reads back."""

    def __init__(self, folder: Path):
        self.folder = folder

    def surface(self, surface: tuple, name: str) -> str:
        import nibabel as nib

        meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": "CortexLeft"})
        parts = [
            nib.gifti.GiftiDataArray(
                np.asarray(surface[0], np.float32), "NIFTI_INTENT_POINTSET", "NIFTI_TYPE_FLOAT32", meta=meta
            ),
            nib.gifti.GiftiDataArray(
                np.asarray(surface[1], np.int32), "NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32"
            ),
        ]
        nib.save(nib.GiftiImage(darrays=parts, meta=meta), self.folder / f"{name}.surf.gii")
        return str(self.folder / f"{name}.surf.gii")

    def metric(self, values: np.ndarray, name: str) -> str:
        import nibabel as nib

        meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": "CortexLeft"})
        part = nib.gifti.GiftiDataArray(
            np.asarray(values, np.float32), "NIFTI_INTENT_SHAPE", "NIFTI_TYPE_FLOAT32"
        )
        nib.save(nib.GiftiImage(darrays=[part], meta=meta), self.folder / f"{name}.func.gii")
        return str(self.folder / f"{name}.func.gii")

    def label(self, values: np.ndarray, name: str) -> str:
        import nibabel as nib

        meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": "CortexLeft"})
        table = nib.gifti.GiftiLabelTable()
        for key in np.unique(values):
            entry = nib.gifti.GiftiLabel(int(key), 0.1, 0.2, 0.3, 1.0)
            entry.label = f"label {key}" if key else "???"
            table.labels.append(entry)
        values = np.asarray(values, np.int32)
        part = nib.gifti.GiftiDataArray(values, "NIFTI_INTENT_LABEL", "NIFTI_TYPE_INT32")
        path = self.folder / f"{name}.label.gii"
        nib.save(nib.GiftiImage(darrays=[part], labeltable=table, meta=meta), path)
        return str(path)

    def volume(self, values: np.ndarray, affine: np.ndarray, name: str) -> str:
        import nibabel as nib

        image = nib.Nifti1Image(np.asarray(values, np.float32), affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, self.folder / f"{name}.nii")
        return str(self.folder / f"{name}.nii")

    def __call__(self, *arguments, out: str = "out.func.gii", then: tuple = ()) -> np.ndarray:
        """Result of ``wb_command *arguments OUT *then``; (n_vertices,) or (X, Y, Z)."""
        import nibabel as nib

        path = str(self.folder / out)
        command = [WB_COMMAND, *map(str, arguments), path, *map(str, then)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        image = nib.load(path)
        return image.darrays[0].data if hasattr(image, "darrays") else np.asarray(image.dataobj)


def map_volume(wb: Workbench, white, pial, volume, affine, *, method: str, mask=None) -> np.ndarray:
    """-volume-to-surface-mapping of one volume."""
    files = [wb.surface(s, n) for s, n in ((white, "white"), (pial, "pial"))]
    middle = wb.surface(middle_of(white, pial), "midthickness")
    flags: list = {
        "ribbon": ["-ribbon-constrained", *files],
        "thin": ["-ribbon-constrained", *files, "-thin-columns"],
        "nearest": ["-enclosing"],
    }.get(method, [f"-{method}"])
    if mask is not None:
        flags += ["-volume-roi", wb.volume(mask, affine, "roi")]
    return wb("-volume-to-surface-mapping", wb.volume(volume, affine, "volume"), middle, then=flags)


def resample(wb: Workbench, values, source, target, *, areas=None, mask=None, flags=()) -> np.ndarray:
    """-metric-resample of one map; areas are two surfaces (then ADAP_BARY_AREA)."""
    spheres = wb.surface(source, "source"), wb.surface(target, "target")
    then = list(flags)
    if areas is not None:
        then += ["-area-surfs", wb.surface(areas[0], "area1"), wb.surface(areas[1], "area2")]
    if mask is not None:
        then += ["-current-roi", wb.metric(mask, "roi")]
    method = "BARYCENTRIC" if areas is None else "ADAP_BARY_AREA"
    return wb("-metric-resample", wb.metric(values, "values"), *spheres, method, then=then)


def expected_cases(wb: Workbench, *, quick: bool = False) -> dict[str, np.ndarray]:
    """What wb_command gives for fsaverage5, left hemisphere: float32 (10242,) each; quick: one ribbon."""
    white, pial, sphere = (fsaverage5("L", name) for name in ("white", "pial", "sphere"))
    volume = waves()
    methods = [m for m in VOLUME_METHODS if not (quick and m in ("ribbon", "thin"))]
    out = {m: map_volume(wb, white, pial, volume, OBLIQUE, method=m) for m in methods}
    out["ribbon_mask"] = map_volume(wb, white, pial, volume, OBLIQUE, method="ribbon", mask=volume > 95)
    turned = (sphere[0] @ rotation().T).astype(np.float32), sphere[1]
    values = signal(sphere[0])
    out["barycentric"] = resample(wb, values, sphere, turned)
    out["adaptive"] = resample(wb, values, sphere, turned, areas=(white, pial))
    mask = ~holes_of(sphere[0])
    out["adaptive_mask"] = resample(wb, values, sphere, turned, areas=(white, pial), mask=mask)
    holes = wb.metric(holes_of(sphere[0]), "holes")
    middle = wb.surface(middle_of(white, pial), "midthickness")
    out["dilate"] = wb(
        "-metric-dilate", wb.metric(values, "values"), middle, 25, then=("-bad-vertex-roi", holes)
    )
    return out


VOLUME_METHODS = ("ribbon", "thin", "trilinear", "cubic", "nearest")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        SAVED.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(SAVED, **expected_cases(Workbench(Path(scratch))))
