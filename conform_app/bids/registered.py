# SPDX-License-Identifier: Apache-2.0
"""Files of a registration: transforms and middle surfaces (anat), maps of coverage and distortion (func)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.bids.layout import parse_name
from conform_app.bids.naming import anat_name, sidecar_name
from conform_app.bids.provenance import bids_uri, write_json
from conform_app.images.arrays import load_arrays, load_meta
from conform_app.images.densities import FSAVERAGE_VERTICES
from conform_app.images.surfaces import write_surface

if TYPE_CHECKING:
    from conform_app.bids.derivatives import FitWriter

MAPS = ("coverage", "arealdistortion", "edgedistortion")


def write_registration(writer: FitWriter, path: Path) -> dict[str, Any]:
    """Write what the surface step found.

    Parameters
    ----------
    writer : FitWriter
    path : Path
        Its file.

    Returns
    -------
    dict
        ``summary``, ``account`` and ``warnings`` for the record.
    """
    arrays, meta = load_arrays(path), load_meta(path)
    whole = replace(writer, grid=writer.grid.with_mask(None))  # shares the list of products
    for key in MAPS:
        if key in arrays:
            reference = None if key == "coverage" else meta["summary"]["reference"]
            whole.image(key, arrays[key], DistortionReference=reference)
    surface = writer.plan.surface
    for found in meta["samplings"]:
        _write_sampling(writer, path.parent, found)
    if not surface.group_average:
        for half in surface.hemispheres:
            transform = meta["resamplings"].get(half.hemi)
            _write_anat(writer, half, arrays, path.parent / transform if transform else None)
    return meta


def _write_sampling(writer: FitWriter, folder: Path, found: Mapping[str, Any]) -> None:
    """Write the matrix from the voxels of the runs on one grid to the mesh of one hemisphere."""
    plan, surface = writer.plan, writer.plan.surface
    half = next(h for h in surface.hemispheres if h.hemi == found["hemi"])
    own = parse_name(Path(half.white)).entities
    labels, volumes, ways = (
        dict(plan.entities),
        list(surface.inputs),
        [surface.to_volume, surface.to_template],
    )
    if found["run"] is not None:
        run = plan.runs[found["run"]]
        stem = Path(run.bold[0]).name.partition("_space-")[0].partition("_hemi-")[0]
        labels |= dict(pair.split("-", 1) for pair in stem.split("_") if "-" in pair)
        volumes = [path for path in volumes if Path(path).name.startswith(f"{stem}_")]
        ways.append(run.transform)
    density = {n: label for label, n in FSAVERAGE_VERTICES.items()}.get(found["n_vertices"])
    labels |= {"space": None, "res": None, "hemi": half.hemi, "from": surface.volume, "mode": "image"}
    labels |= {
        "to": "fsaverage" if surface.group_average else "fsnative",
        "den": density if surface.group_average else own.get("den"),
        "desc": own.get("desc"),
    }
    name = anat_name("sampling", labels)
    text = "Sparse matrix (CSR) that takes values of voxels to the vertices of "
    text += "fsaverage's average surfaces." if surface.group_average else "the participant's mesh."
    sources = [half.white, half.pial, half.midthickness, half.cortex, *volumes, *ways]
    _copy(folder / found["file"], writer.root / name)
    _describe(writer, "sampling", name, filter(None, sources), Description=text)


def _write_anat(
    writer: FitWriter, half: Any, arrays: Mapping[str, np.ndarray], transform: Path | None
) -> None:
    """Write the middle surface of one hemisphere and, if there is one, the transform between meshes."""
    plan, own = writer.plan, parse_name(Path(half.white)).entities
    native = transform is None
    labels = {
        "sub": plan.subject,
        "ses": own.get("session"),
        "hemi": half.hemi,
        "space": plan.space,
        "den": own.get("den") if native else "32k" if plan.den == "91k" else plan.den,
        "desc": own.get("desc"),
    }
    texts = {"midthickness": "The participant's middle surface" + ("." if native else " on the target mesh.")}
    if not native:
        texts["resampling"] = (
            "Sparse matrix (CSR) that takes values of the vertices of the participant's mesh to those of the "
            "target, with both spheres and vertex areas."
        )
        _copy(transform, writer.root / anat_name("resampling", labels))
    mesh = arrays[f"{half.hemi}_coordinates"], arrays[f"{half.hemi}_triangles"]
    write_surface(writer.root / anat_name("midthickness", labels), mesh, half.hemi, "midthickness")
    for key, text in texts.items():
        more = {"Density": f"{half.n_target} vertices"}
        more |= {} if native else {"Registration": plan.surface.registration}
        _describe(writer, key, anat_name(key, labels), half.files(), Description=text, **more)


def _describe(writer: FitWriter, key: str, name: str, sources: Iterable[str], **content: Any) -> None:
    """Write the sidecar of a file of the registration, and remember the file."""
    uris = {bids_uri(path, writer.dataset["roots"], writer.root) for path in sources}
    hashed = {"Sources": sorted(uris), "ConfigurationHash": writer.dataset["digest"]}
    write_json(writer.root / sidecar_name(name), content | hashed)
    writer.products.setdefault(key, []).append(name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file of the work folder; it appears when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)
