# SPDX-License-Identifier: Apache-2.0
"""How fast are ribbon sampling and resampling to fsLR, against Connectome Workbench on the same files?

    CONFORM_TEST_DATA=... python benchmarks/surface.py [--vertices 65000] [--volumes 300] [--rounds 2]

Files: a measured BOLD run (its volumes repeated until there are enough), white, pial and midthickness of both
hemispheres carried to a decimated fsaverage 164k mesh (the 41k mesh and a random choice of the vertices in
between, triangulated anew), the sphere of that mesh deformed to fsLR, the fsLR 32k sphere.
Both sides start from those files in the shell and end with one GIFTI file of time series per hemisphere.
Workbench: two commands per hemisphere.  CONFORM: one Python process, its start included, a thread per
hemisphere (Workbench uses all cores as well).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial import ConvexHull

from conform_app.surface import SphereResampler, VolumeToSurface

N_COARSE = 40962  # the first vertices of the fsaverage 164k mesh are the 41k mesh
SIDES = ("L", "R")
NAMES = ("white", "pial", "midthickness")


def read_surface(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return image.agg_data("pointset"), image.agg_data("triangle")


def write_surface(path: Path, coordinates: np.ndarray, triangles: np.ndarray, side: str) -> None:
    meta = nib.gifti.GiftiMetaData(
        {"AnatomicalStructurePrimary": "CortexLeft" if side == "L" else "CortexRight"}
    )
    arrays = [
        nib.gifti.GiftiDataArray(
            coordinates.astype(np.float32), "NIFTI_INTENT_POINTSET", "NIFTI_TYPE_FLOAT32", meta=meta
        ),
        nib.gifti.GiftiDataArray(triangles.astype(np.int32), "NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32"),
    ]
    nib.save(nib.GiftiImage(darrays=arrays, meta=meta), path)


def write_series(path: Path, values: np.ndarray, side: str) -> None:
    meta = nib.gifti.GiftiMetaData(
        {"AnatomicalStructurePrimary": "CortexLeft" if side == "L" else "CortexRight"}
    )
    arrays = [
        nib.gifti.GiftiDataArray(np.ascontiguousarray(v), "NIFTI_INTENT_TIME_SERIES", "NIFTI_TYPE_FLOAT32")
        for v in values.T
    ]
    nib.save(nib.GiftiImage(darrays=arrays, meta=meta), path)


def make_files(folder: Path, n_volumes: int, n_vertices: int) -> None:
    if "CONFORM_TEST_DATA" not in os.environ:
        raise SystemExit("CONFORM_TEST_DATA must name the folder with the measured surfaces.")
    real = Path(os.environ["CONFORM_TEST_DATA"]) / "data" / "real"
    subject = real / "studyforrest-localizer-bids/derivatives/fmriprep/sub-02"
    run = nib.load(subject / "func/sub-02_task-localizer_run-1_space-T1w_desc-preproc_bold.nii.gz")
    data = np.asarray(run.dataobj, np.float32)
    data = data[..., np.arange(n_volumes) % data.shape[3]]
    image = nib.Nifti1Image(data, run.affine)
    image.header.set_zooms((*run.header.get_zooms()[:3], 2.0))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, folder / "bold.nii.gz")
    atlas = real / "surfaces/fsaverage-164k_fsLR"
    for side in SIDES:
        deformed = f"fs_{side}-to-fs_LR_fsaverage.{side}_LR.spherical_std.164k_fs_{side}.surf.gii"
        whole = read_surface(atlas / f"fsaverage.{side}.sphere.164k_fs_{side}.surf.gii")[0]
        kept = chosen(len(whole), n_vertices)
        sphere, triangles = read_surface(atlas / deformed)[0][kept], hull_triangles(whole[kept])
        target = read_surface(atlas / f"S1200.{side}.sphere.32k_fs_LR.surf.gii")
        write_surface(folder / f"{side}.source.surf.gii", sphere, triangles, side)
        write_surface(folder / f"{side}.target.surf.gii", *target, side)
        carry = SphereResampler(target, (sphere, triangles), method="barycentric")
        for name in NAMES:
            stem = f"anat/sub-02_hemi-{side}_space-T1w_den-32k_desc-approx_{name}.surf.gii"
            coordinates, own = read_surface(subject / stem)
            write_surface(folder / f"{side}.{name}.surf.gii", carry.apply(coordinates), triangles, side)
            write_surface(folder / f"{side}.{name}.target.surf.gii", coordinates, own, side)


def chosen(n_whole: int, n: int) -> np.ndarray:
    """The vertices of the 164k mesh that are kept: those of the 41k mesh, and a random choice of the rest."""
    rest = np.random.default_rng(0).permutation(np.arange(N_COARSE, n_whole))
    return np.sort(np.concatenate([np.arange(N_COARSE), rest])[:n])


def hull_triangles(sphere: np.ndarray) -> np.ndarray:
    """Triangles, outward: the convex hull of the vertices on the undeformed sphere."""
    x = sphere.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    triangles = ConvexHull(x).simplices
    a, b, c = (x[triangles[:, k]] for k in range(3))
    inward = np.einsum("nk,nk->n", np.cross(b - a, c - a), a) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    return triangles


def with_conform(folder: Path) -> None:
    start = time.perf_counter()
    image = nib.load(folder / "bold.nii.gz")
    data = np.asarray(image.dataobj, dtype=np.float32)
    print(f"  reading the volumes {time.perf_counter() - start:.1f} s")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda side: one_hemisphere(folder, side, data, image.affine), SIDES))


def one_hemisphere(folder: Path, side: str, data: np.ndarray, affine: np.ndarray) -> None:
    clock = [time.perf_counter()]
    surfaces = {name: read_surface(folder / f"{side}.{name}.surf.gii") for name in NAMES}
    spheres = [read_surface(folder / f"{side}.{name}.surf.gii") for name in ("source", "target")]
    goal = read_surface(folder / f"{side}.midthickness.target.surf.gii")
    sample = VolumeToSurface(surfaces["white"], surfaces["pial"], data.shape, affine)
    carry = SphereResampler(*spheres, source_area=surfaces["midthickness"], target_area=goal)
    clock.append(time.perf_counter())
    # Workbench gives 0 to vertices without data; the same here, so that results can be compared.
    values = carry.apply(sample.apply(data, fill=0))
    clock.append(time.perf_counter())
    write_series(folder / f"{side}.conform.func.gii", values, side)
    clock.append(time.perf_counter())
    build, apply, write = np.diff(clock)
    print(f"  {side}: building {build:.1f} s, applying {apply:.1f} s, writing {write:.1f} s")


def with_workbench(folder: Path, command: str) -> None:
    for side in SIDES:
        path = {
            name: str(folder / f"{side}.{name}.surf.gii")
            for name in (*NAMES, "source", "target", "midthickness.target")
        }
        native, out = str(folder / f"{side}.native.func.gii"), str(folder / f"{side}.workbench.func.gii")
        first = ["-volume-to-surface-mapping", str(folder / "bold.nii.gz"), path["midthickness"], native]
        first += ["-ribbon-constrained", path["white"], path["pial"]]
        second = ["-metric-resample", native, path["source"], path["target"], "ADAP_BARY_AREA", out]
        second += ["-area-surfs", path["midthickness"], path["midthickness.target"]]
        start = time.perf_counter()
        subprocess.run([command, *first], check=True)
        middle = time.perf_counter()
        subprocess.run([command, *second], check=True)
        print(f"  {side}: mapping {middle - start:.1f} s, resampling {time.perf_counter() - middle:.1f} s")


def read_series(path: Path) -> np.ndarray:
    return np.stack([part.data for part in nib.load(path).darrays], axis=1)


def largest_difference(folder: Path) -> tuple[float, float]:
    """Over both hemispheres: the largest difference over the mean, and the share of vertices over 1e-4."""
    parts = []
    for side in SIDES:
        one, other = (read_series(folder / f"{side}.{who}.func.gii") for who in ("conform", "workbench"))
        parts.append(np.abs(one - other).max(1) / np.abs(other).mean())
    relative = np.concatenate(parts)
    return float(relative.max()), float((relative > 1e-4).mean())


def clock() -> np.ndarray:
    """Wall time and CPU time of finished children, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vertices", type=int, default=65000, help="of each hemisphere")
    parser.add_argument("--volumes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--conform-on", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.conform_on:
        with_conform(options.conform_on)
        return
    command = shutil.which("wb_command")
    if command is None:
        sys.exit("wb_command is not installed: nothing to compare with.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, options.volumes, options.vertices)
        spent: dict[str, list[np.ndarray]] = {"CONFORM": [], "Workbench": []}
        for _ in range(options.rounds):
            start = clock()
            subprocess.run([sys.executable, __file__, "--conform-on", str(folder)], check=True)
            middle = clock()
            with_workbench(folder, command)
            for who, seconds in zip(spent, (middle - start, clock() - middle), strict=True):
                spent[who].append(seconds)
                print(f"{who} {seconds[0]:.1f} s, {seconds[1]:.1f} CPU s")
        worst, share = largest_difference(folder)
    best = {who: np.min(times, axis=0) for who, times in spent.items()}
    print(f"2 x {options.vertices} vertices, {options.volumes} volumes, {os.cpu_count()} cores", end="")
    print(f", best of {options.rounds}")
    for what, n in (("wall", 0), ("CPU", 1)):
        ours, theirs = best["CONFORM"][n], best["Workbench"][n]
        print(f"{what}: CONFORM {ours:.1f} s, Workbench {theirs:.1f} s, ratio {theirs / ours:.1f}")
    print(f"largest difference {worst:.1e} of the mean; {100 * share:.3f} % of vertices over 1e-4")


if __name__ == "__main__":
    main()
