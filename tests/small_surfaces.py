# SPDX-License-Identifier: Apache-2.0
"""A small dataset whose cortex is two little balls, so that every value on a surface is known.

Each quarter of the volume (left or right, lower or upper) has one time series.  The registered spheres are
the balls turned by a quarter about x, so up on the participant's cortex is front or back on the target.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial import ConvexHull
from small_dataset import SHAPE, bold_files, make_dataset

from conform_app.images.surfaces import write_surface

AFFINE = np.array([[3.0, 0, 0, -7.5], [0, 3.0, 0, -6.0], [0, 0, 3.0, -4.5], [0, 0, 0, 1]])
CENTRE = {"L": np.array([-4.5, 0.0, 0.0]), "R": np.array([4.5, 0.0, 0.0])}
TURN = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # up becomes front
N_NATIVE = 400
TYPE_B = "stat-effect_desc-typeB_statmap"
COMMON = ("--skip-bids-validation", "--sloppy", "--glm-types", "B", "--nprocs", "1", "--psn", "off")
WALL = 80.0  # mm on the sphere: beyond it, towards the other hemisphere, is the made-up medial wall


def run(*argv) -> int:
    """Run the command line in this process; return its exit code."""
    from conform_app.cli import main

    return main([str(word) for word in argv])


def ball(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere of n evenly spread points, triangles outward."""
    i = np.arange(n) + 0.5
    z, turn = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z**2)
    points = np.stack([r * np.cos(turn), r * np.sin(turn), z], axis=1)
    triangles = ConvexHull(points).simplices
    a, b, c = (points[triangles[:, k]] for k in range(3))
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    return points, triangles.astype(np.int32)


def quarter(points: np.ndarray) -> np.ndarray:
    """Number of the quarter of the volume in which points (mm) lie."""
    return 2 * (points[:, 0] > 0).astype(int) + (points[:, 2] > 0)


def place(path: Path, affine: np.ndarray) -> None:
    """Give an image another affine."""
    image = nib.load(path)
    moved = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    moved.header.set_xyzt_units(*image.header.get_xyzt_units())
    if image.ndim == 4:
        moved.header.set_zooms((*moved.header.get_zooms()[:3], image.header.get_zooms()[3]))
    nib.save(moved, path)


def to_mni_alone(own: Path) -> None:
    """Rename the T1w volumes of a copy of the dataset to MNI space, as large as a head."""
    wide = np.diag([35.0, 50.0, 45.0, 1.0])
    wide[:3, 3] = [-87.5, -120.0, -55.0]
    for path in list((own / "derivatives").rglob("*_space-T1w_*")):
        new = path.rename(str(path).replace("space-T1w", "space-MNI152NLin2009cAsym"))
        if new.name.endswith(".nii.gz"):
            place(new, wide)


def voxel_quarters() -> np.ndarray:
    """Quarter of each voxel, in the shape of the volume."""
    ijk = np.indices(SHAPE).reshape(3, -1).T
    return quarter(ijk @ AFFINE[:3, :3].T + AFFINE[:3, 3]).reshape(SHAPE)


def make_surface_dataset(root: Path, *, affine=AFFINE, **options) -> Path:
    """Make the dataset with surfaces and registered spheres in anat."""
    data = make_dataset(root, **options)
    quarters = voxel_quarters()
    for path in bold_files(data):
        values = np.asarray(nib.load(path).dataobj).copy()
        for number in range(4):
            values[quarters == number] = values[tuple(np.argwhere(quarters == number)[-1])]
        image = nib.load(path)
        nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
    for path in (data / "derivatives").rglob("*.nii.gz"):
        if "brain_mask" in path.name:
            image = nib.load(path)
            nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), image.affine), path)
        place(path, affine)
    anat = data / "derivatives" / "fmriprep" / "sub-01" / "anat"
    points, triangles = ball(N_NATIVE)
    for hemi, centre in CENTRE.items():
        for name, radius in (("white", 2.5), ("pial", 4.0), ("midthickness", 3.25)):
            surface = (points * radius + centre, triangles)
            write_surface(anat / f"sub-01_hemi-{hemi}_{name}.surf.gii", surface, hemi, name)
        sphere, turned = (points * 100, triangles), (points @ TURN.T * 100, triangles)
        write_surface(anat / f"sub-01_hemi-{hemi}_sphere.surf.gii", sphere, hemi, "sphere")
        name = f"sub-01_hemi-{hemi}_space-fsLR_desc-reg_sphere.surf.gii"
        write_surface(anat / name, turned, hemi, "sphere")
        # another radius: a copy of the sphere for fsLR is none of fsaverage
        other = turned[0] * 0.99, triangles
        write_surface(anat / f"sub-01_hemi-{hemi}_desc-reg_sphere.surf.gii", other, hemi, "sphere")
    return data


def make_templates(home: Path) -> Path:
    """Write a TemplateFlow folder with a made-up fsLR mesh, the same in fsaverage's coordinates."""
    points, triangles = ball(32492)
    for hemi in "LR":
        folder = home / "tpl-fsLR"
        folder.mkdir(parents=True, exist_ok=True)
        names = (f"tpl-fsLR_hemi-{hemi}_den-32k", f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-32k")
        for name in names:
            write_surface(folder / f"{name}_sphere.surf.gii", (points * 100, triangles), hemi, "sphere")
        toward = points[:, 0] * 100 * (1 if hemi == "L" else -1)
        inside = nib.gifti.GiftiDataArray((toward < WALL).astype(np.int32), intent="NIFTI_INTENT_LABEL")
        image = nib.gifti.GiftiImage(darrays=[inside])
        nib.save(image, folder / f"tpl-fsLR_hemi-{hemi}_den-32k_desc-nomedialwall_dparc.label.gii")
    return home


def expected_quarter(points: np.ndarray, hemi: str) -> np.ndarray:
    """Quarter whose time series a target vertex must have; -1 near the border of two."""
    up = (points @ TURN)[:, 2]  # back to the participant's own cortex
    number = 2 * (hemi == "R") + (up > 0)
    return np.where(np.abs(up) > 0.35 * np.linalg.norm(points, axis=1), number, -1)


def gifti(folder: Path, space: str, hemi: str, name: str = TYPE_B, kind: str = "func") -> np.ndarray:
    """Maps of one hemisphere, (n_vertices, n_maps)."""
    image = nib.load(folder / f"sub-01_task-x_hemi-{hemi}_{space}_{name}.{kind}.gii")
    return np.stack([array.data for array in image.darrays], axis=1)
