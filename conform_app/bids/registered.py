# SPDX-License-Identifier: Apache-2.0
"""Files of a registration: transforms and middle surfaces (anat), maps of coverage and distortion (func)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.bids.layout import parse_name
from conform_app.bids.naming import anat_name, sidecar_name
from conform_app.bids.provenance import bids_uri, write_json
from conform_app.images.arrays import load_arrays, load_meta, save_arrays
from conform_app.images.surfaces import write_surface

if TYPE_CHECKING:
    from conform_app.bids.derivatives import FitWriter

MAPS = ("coverage", "arealdistortion", "edgedistortion")


def read_transform(path: Path) -> dict[str, np.ndarray]:
    """Read an ``xfm.h5``: what ``SphereResampler.from_arrays`` takes."""
    words = {name: np.array(text) for name, text in load_meta(path).items()}
    return load_arrays(path) | words


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
    if surface.coordinates and not surface.group_average:
        for half in surface.hemispheres:
            _write_anat(writer, half, arrays, meta["xfm"])
    return meta


def _write_anat(
    writer: FitWriter, half: Any, arrays: Mapping[str, np.ndarray], words: Mapping[str, str]
) -> None:
    """Write the transform and the middle surface of one hemisphere."""
    plan, own = writer.plan, parse_name(Path(half.white)).entities
    labels = {
        "sub": plan.subject,
        "ses": own.get("session"),
        "hemi": half.hemi,
        "space": plan.space,
        "den": "32k" if plan.den == "91k" else plan.den,
        "desc": own.get("desc"),
    }
    prefix = f"{half.hemi}_xfm_"
    xfm = {n.removeprefix(prefix): values for n, values in arrays.items() if n.startswith(prefix)}
    files = {"resampling": anat_name("resampling", labels), "midthickness": anat_name("midthickness", labels)}
    for name in files.values():
        (writer.root / name).parent.mkdir(parents=True, exist_ok=True)
    save_arrays(writer.root / files["resampling"], xfm, words)
    mesh = arrays[f"{half.hemi}_coordinates"], arrays[f"{half.hemi}_triangles"]
    write_surface(writer.root / files["midthickness"], mesh, half.hemi, "midthickness")
    texts = {
        "resampling": "Sparse matrix (CSR) that takes values of the vertices of the participant's mesh to "
        "those of the target, with both spheres and vertex areas.",
        "midthickness": "The participant's middle surface on the target mesh.",
    }
    for key, name in files.items():
        sources = [bids_uri(path, writer.dataset["roots"], writer.root) for path in half.files()]
        content = {
            "Description": texts[key],
            "Sources": sorted(set(sources)),
            "Density": f"{half.n_target} vertices",
            "Registration": plan.surface.registration,
            "ConfigurationHash": writer.dataset["digest"],
        }
        write_json(writer.root / sidecar_name(name), content)
        writer.products.setdefault(key, []).append(name)
