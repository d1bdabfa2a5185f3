# SPDX-License-Identifier: Apache-2.0
"""Template surfaces: spheres of fsaverage and fsLR, the link between the two, medial walls, group averages.

Files are looked for in TemplateFlow's folder (``TEMPLATEFLOW_HOME``), then fetched by TemplateFlow if its
store can be reached.  fsaverage5 is also in nilearn's package: ``fsaverage:den-10k`` needs no network.

A mesh known in both spaces is a *bridge*: HCP's fsLR spheres in fsLR's and in fsaverage's coordinates, or the
fsaverage sphere deformed to fsLR.  A sphere that is known in one space only is taken to the other through it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from conform_app.errors import NoInputError, UsageError
from conform_app.images.surfaces import FSAVERAGE_VERTICES, FSLR_VERTICES

#: Where the datasets that hold templates live, whatever this machine's copy.
LINKS = {
    "templateflow": "https://github.com/templateflow/templateflow",
    "nilearn": "https://github.com/nilearn/nilearn",
}
#: How TemplateFlow is asked for the segmentation of the subcortex.
SUBCORTEX = "t.get('MNI152NLin6Asym', resolution=2, atlas='HCP', suffix='dseg')"
_STORE = "templateflow.s3.amazonaws.com"
_SIDE = {"L": "left", "R": "right"}
#: From FreeSurfer's MNI305 (the coordinates of fsaverage) to MNI152, mm: FreeSurfer's CoordinateSystems page.
MNI305_TO_MNI152 = (
    (0.9975, -0.0073, 0.0176, -0.0429),
    (0.0146, 1.0009, -0.0024, 1.5496),
    (-0.0130, -0.0093, 0.9971, 1.1840),
    (0.0, 0.0, 0.0, 1.0),
)


@dataclass(frozen=True)
class SphereFile:
    """How to get a sphere in the coordinates wanted.

    Attributes
    ----------
    path : str
    n_vertices : int
        The first so many vertices of the file are it (fsaverage meshes are nested).
    through : tuple of two str, or empty
        A mesh in the coordinates of `path` and the same mesh in those wanted.
    """

    path: str
    n_vertices: int
    through: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read."""
        return (self.path, *self.through)


def check_target(space: str, density: str | None) -> str:
    """Return the density of a surface space, with fMRIPrep's default where none is named.

    Raises
    ------
    UsageError
        There is no such mesh.
    """
    known = {"fsaverage": FSAVERAGE_VERTICES, "fsLR": {"32k": 0, "91k": 0}, "fsnative": {}}[space]
    density = density or {"fsaverage": "164k", "fsLR": "91k"}.get(space)
    if space == "fsnative" and density is not None:
        raise UsageError("fsnative has no density: it is the participant's own mesh.", "Write fsnative.")
    if space != "fsnative" and density not in known:
        raise UsageError(
            f"{space}:den-{density} is no mesh that data can be carried to.",
            f"Densities of {space}: {', '.join(known)}.",
        )
    return density or ""


def target_sphere(space: str, density: str, registration: str, hemi: str) -> SphereFile:
    """Return the sphere of a target mesh in the coordinates of a registration.

    Parameters
    ----------
    space : {"fsaverage", "fsLR"}
    density : str
        ``10k`` ...; ``91k`` is ``32k`` a hemisphere.
    registration : {"fsaverage", "fsLR"}
        What the participant's sphere was registered to.
    hemi : {"L", "R"}

    Raises
    ------
    NoInputError
        The template is not on this machine and cannot be fetched; the remedy is the command that does.
    """
    density = "32k" if density == "91k" else density
    if space == "fsLR":
        own, n_vertices = _fslr(density, hemi), FSLR_VERTICES[density]
        if registration == "fsLR":
            return SphereFile(_needed(own, space, density), n_vertices)
        across = _get("fsLR", f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-{density}_sphere.surf.gii")
        if across is not None:
            return SphereFile(across, n_vertices)
        return SphereFile(_needed(own, space, density), n_vertices, _bridge("fsLR", "fsaverage", hemi))
    n_vertices = FSAVERAGE_VERTICES[density]
    own = _needed(_fsaverage(density, hemi), space, density)
    if registration == "fsaverage":
        return SphereFile(own, n_vertices)
    deformed = _get(
        "fsaverage", f"tpl-fsaverage_space-fsLR_hemi-{hemi}_den-164k_sphere.surf.gii", fetch=False
    )
    if deformed is not None:
        return SphereFile(deformed, n_vertices)
    return SphereFile(own, n_vertices, _bridge("fsaverage", "fsLR", hemi))


def medial_wall(registration: str, hemi: str) -> tuple[str, SphereFile] | None:
    """Return the mask of fsLR's cortex and the sphere it lies on; None when they are not at hand.

    The mask is that of the 32k mesh.  It serves fsaverage as well, whose template has none.
    """
    mask = _get("fsLR", f"tpl-fsLR_hemi-{hemi}_den-32k_desc-nomedialwall_dparc.label.gii")
    if mask is None:
        return None
    try:
        return mask, target_sphere("fsLR", "32k", registration, hemi)
    except NoInputError:
        return None


def group_surfaces(hemi: str, density: str) -> dict[str, str]:
    """Return fsaverage's ``white``, ``pial`` and ``sphere``, and the ``density`` they are of.

    They are averages over people in MNI305 coordinates (see `MNI305_TO_MNI152`).

    Raises
    ------
    NoInputError
        See :func:`target_sphere`; never for 10k.
    """
    found = {}
    for name in ("white", "pial"):
        path = _get("fsaverage", f"tpl-fsaverage_hemi-{hemi}_den-{density}_{name}.surf.gii")
        if path is None and density == "10k":
            path = _packaged(name, hemi)
        found[name] = _needed(path, "fsaverage", density, ("sphere", "white", "pial"))
    return found | {"sphere": _needed(_fsaverage(density, hemi), "fsaverage", density)}


def subcortex_labels() -> str | None:
    """Return the segmentation that says which voxels of MNI152NLin6Asym:res-2 are grayordinates."""
    return _get("MNI152NLin6Asym", "tpl-MNI152NLin6Asym_res-02_atlas-HCP_dseg.nii.gz")


def subcortex_missing() -> str:
    """What to say, and to run, where the segmentation of the subcortex is not at hand."""
    return (
        "The segmentation of the subcortex (tpl-MNI152NLin6Asym_res-02_atlas-HCP_dseg.nii.gz) is not in "
        f"{templates_home()} (on a machine with network: {_command(SUBCORTEX)})"
    )


def templates_home() -> Path:
    """TemplateFlow's folder."""
    home = os.environ.get("TEMPLATEFLOW_HOME")
    return Path(home) if home else Path.home() / ".cache" / "templateflow"


def packages_home() -> Path:
    """Folder of the files that nilearn's package brings."""
    from importlib.util import find_spec

    return Path(find_spec("nilearn").origin).parent / "datasets" / "data"


def _fslr(density: str, hemi: str) -> str | None:
    return _get("fsLR", f"tpl-fsLR_hemi-{hemi}_den-{density}_sphere.surf.gii")


def _fsaverage(density: str, hemi: str) -> str | None:
    """The fsaverage sphere of a density, or a file whose first vertices it is."""
    names = [f"tpl-fsaverage_hemi-{hemi}_den-{density}_sphere.surf.gii"]
    names += [f"tpl-fsaverage_hemi-{hemi}_den-164k_{name}sphere.surf.gii" for name in ("", "desc-std_")]
    for name in names:
        path = _get("fsaverage", name, fetch=False)
        if path is not None:
            return path
    if density in ("10k", "3k"):
        return _packaged("sphere", hemi)
    return _get("fsaverage", names[0])


def _packaged(name: str, hemi: str) -> str | None:
    path = packages_home() / "fsaverage5" / f"{name}_{_SIDE[hemi]}.gii.gz"
    return str(path) if path.is_file() else None


def _bridge(source: str, target: str, hemi: str) -> tuple[str, str]:
    """Return a mesh in the coordinates of one space and the same mesh in those of the other."""
    pairs = [
        {
            "fsaverage": _get(
                "fsaverage", f"tpl-fsaverage_hemi-{hemi}_den-164k_{desc}sphere.surf.gii", fetch=False
            ),
            "fsLR": _get(
                "fsaverage", f"tpl-fsaverage_space-fsLR_hemi-{hemi}_den-164k_sphere.surf.gii", fetch=False
            ),
        }
        for desc in ("desc-std_", "")
    ]
    pairs += [
        {
            "fsaverage": _get("fsLR", f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-{density}_sphere.surf.gii"),
            "fsLR": _fslr(density, hemi),
        }
        for density in ("164k", "32k")
    ]
    for pair in pairs:
        if None not in pair.values():
            return pair[source], pair[target]
    raise _missing("the spheres that link fsaverage and fsLR", "fsLR", "32k")


def _needed(path: str | None, space: str, density: str, suffixes: tuple[str, ...] = ("sphere",)) -> str:
    if path is None:
        raise _missing(f"the {suffixes[0]} of {space}:den-{density}", space, density, suffixes)
    return path


def _missing(what: str, space: str, density: str, suffixes: tuple[str, ...] = ("sphere",)) -> NoInputError:
    wanted = f"t.get('{space}', density='{density}', suffix={list(suffixes)})"
    if space == "fsLR":
        wanted = f"t.get('fsLR', density='{density}', suffix=['sphere', 'dparc'])"
    return NoInputError(
        f"{what} is not in {templates_home()}, and TemplateFlow's store cannot be reached.",
        f"On a machine with network: {_command(wanted)}, and set TEMPLATEFLOW_HOME to its folder.",
    )


def _command(wanted: str) -> str:
    return f'python -c "import templateflow.api as t; {wanted}"'


def _get(template: str, name: str, *, fetch: bool = True) -> str | None:
    """Path of a template's file: on disk, else fetched; None when there is neither."""
    path = templates_home() / f"tpl-{template}" / name
    # TemplateFlow's skeleton holds empty files for what it could fetch
    if path.is_file() and path.stat().st_size > 0:
        return str(path)
    if fetch and online():
        _fetch(template, name)
        if path.is_file() and path.stat().st_size > 0:
            return str(path)
    return None


def _fetch(template: str, name: str) -> None:
    """Ask TemplateFlow for a file; what it cannot give is simply not there afterwards."""
    try:
        from templateflow import api

        stem, _, extension = name.partition(".")
        *pairs, suffix = stem.split("_")
        labels = dict(pair.split("-", 1) for pair in pairs[1:])
        long = {"den": "density", "res": "resolution"}
        query = {long.get(key, key): value for key, value in labels.items()}
        for absent in {"space", "desc"} - query.keys():
            query[absent] = None
        api.get(template, suffix=suffix, extension=f".{extension}", raise_empty=False, **query)
    except (OSError, RuntimeError, ValueError, ImportError):
        return


def wanted_files() -> list[tuple[str, str]]:
    """Return (template, file name) of all that the surface spaces may ask for."""
    files = [("MNI152NLin6Asym", "tpl-MNI152NLin6Asym_res-02_atlas-HCP_dseg.nii.gz")]
    for hemi in "LR":
        fslr = ("den-32k_sphere.surf.gii", "den-32k_desc-nomedialwall_dparc.label.gii")
        files += [("fsLR", f"tpl-fsLR_hemi-{hemi}_{name}") for name in fslr]
        files.append(("fsLR", f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-32k_sphere.surf.gii"))
        for density in ("3k", "10k", "41k", "164k"):
            names = ("sphere", "white", "pial")
            files += [("fsaverage", f"tpl-fsaverage_hemi-{hemi}_den-{density}_{n}.surf.gii") for n in names]
    return files


def fetch_all() -> list[str]:
    """Fetch every file of :func:`wanted_files`; return the names that could not be had."""
    return [name for template, name in wanted_files() if _get(template, name) is None]


def is_there(name: str) -> bool:
    """Whether a template's file is on this machine."""
    template = name.removeprefix("tpl-").partition("_")[0]
    return _get(template, name, fetch=False) is not None


@cache
def online() -> bool:
    """Whether TemplateFlow's store answers; behind a proxy it is taken to."""
    import socket

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        return True
    try:
        socket.create_connection((_STORE, 443), timeout=4).close()
    except OSError:
        return False
    return True
