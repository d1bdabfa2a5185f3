# SPDX-License-Identifier: Apache-2.0
"""A participant's cortex: white and pial surfaces, and the spheres that register it, found by name.

Two places are searched, in this order: the ``anat`` folders of the preprocessed datasets, where sMRIPrep
writes ``hemi-L_white.surf.gii`` and the like, then FreeSurfer subjects folders (``lh.white``).  Nothing is
read here but names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conform_app.bids.candidates import Candidate
from conform_app.bids.grouping import listed
from conform_app.bids.layout import BidsFile, natural, parse_name
from conform_app.bids.spaces import SpaceKey
from conform_app.errors import DataError, NoInputError

HEMISPHERES = ("L", "R")
_GEOMETRY = ("white", "pial", "midthickness")
_NATIVE = (None, "T1w", "anat")
_FS_SIDE = {"L": "lh", "R": "rh"}


@dataclass(frozen=True)
class HemiFiles:
    """Files of one hemisphere, all of one mesh.

    Attributes
    ----------
    white, pial : Path
    midthickness, cortex : Path or None
        ``cortex`` is the mask without medial wall.
    sphere : Path or None
        Before registration.
    registered : dict of str to Path
        Spheres registered to ``fsLR`` and ``fsaverage``.
    """

    white: Path
    pial: Path
    midthickness: Path | None
    cortex: Path | None
    sphere: Path | None
    registered: dict[str, Path]


@dataclass(frozen=True)
class SubjectSurfaces:
    """Both hemispheres of a participant.

    Attributes
    ----------
    left, right : HemiFiles
    root : Path
        The dataset or subjects folder.
    desc : str or None
        Label of the surfaces' ``desc``; ``approx`` says that they are not this person's own.
    density : str or None
    to_t1w : Path or None
        Transform from FreeSurfer's space to that of the T1w image.
    to_template : Path or None
        Transform from the T1w image's space to the template in which the volumes are.
    freesurfer : SubjectSurfaces or None
        Where preprocessing wrote no sphere or mask beside the surfaces: FreeSurfer's of this participant.
    session : str or None
        In whose ``anat`` folder the surfaces are.
    anatomies : tuple of str
        Sessions of the fit that have surfaces of their own.
    """

    left: HemiFiles
    right: HemiFiles
    root: Path
    desc: str | None = None
    density: str | None = None
    to_t1w: Path | None = None
    to_template: Path | None = None
    freesurfer: SubjectSurfaces | None = None
    session: str | None = None
    anatomies: tuple[str, ...] = ()


def find_surfaces(
    subject: str, sessions: Sequence[str], roots: Iterable[Path], subjects_dirs: Iterable[Path] = ()
) -> SubjectSurfaces:
    """Find a participant's surfaces.

    Parameters
    ----------
    subject : str
    sessions : sequence of str
        Of the fit: their own anatomy is preferred if there are several.
    roots : iterable of Path
        Preprocessed datasets.
    subjects_dirs : iterable of Path
        FreeSurfer subjects folders.

    Raises
    ------
    NoInputError
        There are none, or a hemisphere or surface is missing.
    """
    roots, subjects_dirs = list(roots), list(subjects_dirs)
    for root in roots:
        found = _from_anat(root, subject, sessions)
        if found is not None:
            return replace(found, freesurfer=_spare(found, subjects_dirs, subject, sessions))
    for folder in subjects_dirs:
        found = _from_freesurfer(folder, subject, sessions)
        if found is not None:
            return _placed(found, roots, subject, sessions)
    looked = [f"{root}/sub-{subject}/anat" for root in roots] + [str(folder) for folder in subjects_dirs]
    raise NoInputError(
        f"sub-{subject} has no white and pial surfaces in {', '.join(looked)}.",
        "Name the FreeSurfer subjects folder with -d freesurfer=PATH, or choose a space with --output-spaces "
        "that the preprocessed data come in.",
    )


def _anat_files(root: Path, subject: str) -> list[BidsFile]:
    home = root / f"sub-{subject}"
    paths = [*home.glob("anat/*"), *home.glob("ses-*/anat/*")]
    return [parse_name(path) for path in sorted(paths)]


def _from_anat(root: Path, subject: str, sessions: Sequence[str]) -> SubjectSurfaces | None:
    files = [f for f in _anat_files(root, subject) if f.extension.endswith(".gii") and "hemi" in f.entities]
    groups: dict[tuple, dict[tuple[str, str], Path]] = {}
    for file in files:
        get = file.entities.get
        if file.suffix in _GEOMETRY and get("space") in _NATIVE and ".surf" in file.extension:
            place = (get("session"), get("den"), get("desc"), get("space"), _rest(file))
            groups.setdefault(place, {})[file.suffix, get("hemi", "")] = file.path
    groups = {place: group for place, group in groups.items() if any(name == "white" for name, _ in group)}
    if not groups:
        return None

    def rank(place: tuple) -> tuple:
        session, den, desc, _, rest = place
        told = (session is not None, den is not None, desc is not None, bool(rest))
        return (session not in sessions, *told, str(place))

    place = min(groups, key=rank)
    session, den, desc, _, rest = place
    group = groups[place]
    own = [f for f in files if f.entities.get("session") == session and _rest(f) == rest]
    halves = [_hemisphere(group, own, hemi, den, root, subject) for hemi in HEMISPHERES]
    anatomies = sorted({place[0] for place in groups if place[0] in sessions}, key=natural)
    return SubjectSurfaces(
        *halves, root=root, desc=desc, density=den, session=session, anatomies=tuple(anatomies)
    )


def _rest(file: BidsFile) -> tuple[tuple[str, str], ...]:
    """Labels that tell reconstructions of one session apart, such as ``acq`` and ``run``."""
    common = ("subject", "session", "hemi", "space", "den", "desc")
    return tuple(sorted((name, label) for name, label in file.entities.items() if name not in common))


def _hemisphere(
    group: dict[tuple[str, str], Path], files: Sequence[BidsFile], hemi: str, den: str | None, root: Path,
    subject: str,
) -> HemiFiles:  # fmt: skip
    there = next(path for (name, _), path in group.items() if name == "white")
    for name in ("white", "pial"):
        if (name, hemi) not in group:
            raise NoInputError(
                f"{there.parent} has {there.name} but no {name} surface of hemisphere {hemi} beside it.",
                f"Add it (hemi-{hemi} ... _{name}.surf.gii), or run the anatomical preprocessing of "
                f"sub-{subject} again.",
            )

    def find(suffix: str, space: str | None, descs: tuple[str | None, ...]) -> Path | None:
        for desc in descs:
            for file in files:
                e = file.entities
                same = (e.get("hemi"), e.get("space"), e.get("desc")) == (hemi, space, desc)
                # a sphere belongs to the mesh of its density; one without is of the native mesh
                if same and file.suffix == suffix and e.get("den") in {den, None}:
                    return file.path
        return None

    registered = {"fsLR": find("sphere", "fsLR", ("msmsulc", "reg"))}
    # newer sMRIPrep names the space; older ones leave it out
    registered["fsaverage"] = find("sphere", "fsaverage", ("reg",)) or find("sphere", None, ("reg",))
    return HemiFiles(
        white=group["white", hemi],
        pial=group["pial", hemi],
        midthickness=group.get(("midthickness", hemi)),
        cortex=find("mask", None, ("cortex", "nomedialwall")) or find("dparc", None, ("nomedialwall",)),
        sphere=find("sphere", None, (None,)),
        registered={name: path for name, path in registered.items() if path is not None},
    )


def _from_freesurfer(folder: Path, subject: str, sessions: Sequence[str]) -> SubjectSurfaces | None:
    names = [f"sub-{subject}_ses-{label}" for label in sessions] + [f"sub-{subject}", subject]
    homes = [folder / name for name in names] + sorted(
        folder.glob(f"sub-{subject}_ses-*"), key=lambda path: natural(path.name)
    )
    home = next((path for path in homes if (path / "surf").is_dir()), None)
    if home is None:
        return None

    def optional(path: Path) -> Path | None:
        return path if path.is_file() else None

    halves = []
    for hemi in HEMISPHERES:
        side, surf = _FS_SIDE[hemi], home / "surf"
        # since FreeSurfer 7 ?h.pial is a link to ?h.pial.T1, which some copies lose
        pial = optional(surf / f"{side}.pial") or surf / f"{side}.pial.T1"
        for path, name in ((surf / f"{side}.white", "white"), (pial, "pial")):
            if not path.is_file():
                raise NoInputError(
                    f"{surf} has no {side}.{name}.", "Let recon-all finish, or leave the participant out."
                )
        middle = optional(surf / f"{side}.midthickness") or optional(surf / f"{side}.graymid")
        registered = optional(surf / f"{side}.sphere.reg")
        halves.append(
            HemiFiles(
                white=surf / f"{side}.white",
                pial=pial,
                midthickness=middle,
                cortex=optional(home / "label" / f"{side}.cortex.label"),
                sphere=optional(surf / f"{side}.sphere"),
                registered={} if registered is None else {"fsaverage": registered},
            )
        )
    return SubjectSurfaces(*halves, root=folder)


def _spare(
    found: SubjectSurfaces, folders: Iterable[Path], subject: str, sessions: Sequence[str]
) -> SubjectSurfaces | None:
    """FreeSurfer's files where some are missing beside the participant's own surfaces."""
    halves = (found.left, found.right)
    whole = all(half.registered and half.cortex and half.sphere for half in halves)
    if whole or found.desc is not None or found.density is not None:
        return None
    for folder in folders:
        try:
            spare = _from_freesurfer(folder, subject, sessions)
        except NoInputError:  # a reconstruction that is not finished
            continue
        if spare is not None:
            return spare
    return None


def _placed(
    found: SubjectSurfaces, roots: Sequence[Path], subject: str, sessions: Sequence[str]
) -> SubjectSurfaces:
    """Add the transform from FreeSurfer's space to the T1w image's, where preprocessing wrote one."""
    return replace(found, to_t1w=_transform(roots, subject, sessions, "from-fsnative_to-T1w"))


def _transform(roots: Sequence[Path], subject: str, sessions: Sequence[str], ends: str) -> Path | None:
    """A transform of the anatomy by its ends, of the sessions given if there are several."""
    for root in roots:
        found = [
            file
            for file in _anat_files(root, subject)
            if file.suffix == "xfm" and file.extension in (".h5", ".txt") and f"_{ends}_" in file.path.name
        ]
        if found:
            return min(found, key=lambda f: (f.entities.get("session") not in (*sessions, None), f.path)).path
    return None


def subjects_dirs(bids_dir: Path | str, roots: Iterable[Path], named: Mapping[str, Path | str]) -> list[Path]:
    """Return the FreeSurfer subjects folders to look in: those named, then where fMRIPrep puts them."""
    given = [Path(path) for name, path in named.items() if name.lower() == "freesurfer"]
    roots = list(roots)
    usual = [root / "sourcedata" / "freesurfer" for root in roots]
    usual += [root.parent / "freesurfer" for root in roots]
    usual.append(Path(bids_dir) / "derivatives" / "freesurfer")
    return list(dict.fromkeys([*given, *(path for path in usual if path.is_dir())]))


class SurfaceFinder:
    """What a fit needs besides its volumes to come to a surface.

    Parameters
    ----------
    candidates : sequence of Candidate
        Everything that could be fitted.
    roots, folders : sequence of Path
        Preprocessed datasets, FreeSurfer subjects folders.
    """

    def __init__(
        self, candidates: Sequence[Candidate], roots: Sequence[Path], folders: Sequence[Path]
    ) -> None:
        standard = [c for c in candidates if c.key.space == "MNI152NLin6Asym" and c.key.kind == "volume"]
        self.subcortex = {c.order: c.files[0].path for c in standard if c.key.res in (None, "2", "02")}
        self.roots, self.folders = roots, folders
        self.there = listed({c.key for c in candidates})

    def surfaces(
        self, subject: str, sessions: Sequence[str], volume: SpaceKey, space: SpaceKey
    ) -> SubjectSurfaces | None:
        """The participant's surfaces; None for volumes in a template's space that no transform leads to."""
        standard = volume.space.startswith("MNI152")
        try:
            found = find_surfaces(subject, sessions, self.roots, self.folders)
        except NoInputError as error:
            if standard:
                return None
            raise NoInputError(
                f"no preprocessed BOLD in space {space}; there is {self.there}, which cannot be carried "
                f"there: {error.message}",
                error.remedy,
            ) from error
        if standard:
            # ITK: the image transform from the template takes points of T1w space there
            own = sessions if found.session is None else (found.session,)
            way = _transform(self.roots, subject, own, f"from-{volume.space}_to-T1w")
            return None if way is None else replace(found, to_template=way)
        if len(found.anatomies) > 1:
            raise DataError(
                f"sub-{subject} has surfaces of its own in sessions {', '.join(found.anatomies)}: volumes of "
                "one session do not lie on the surfaces of another.",
                "Fit the sessions one by one (--fit-level session), or choose a space that the preprocessed "
                "data come in.",
            )
        return found


def places_read(found: Iterable[SubjectSurfaces | None]) -> dict[str, Path]:
    """Folders besides the datasets that carried fits read from, by the name they have in Sources."""
    from conform_app.images import packaged
    from conform_app.images.templates import packages_home, templates_home

    places: dict[str, Path] = {}
    for surfaces in found:
        places |= {"templateflow": templates_home(), "nilearn": packages_home()}
        own = packaged.home()
        if own is not None:
            places[packaged.PACKAGE] = own
        for one in (surfaces, surfaces.freesurfer if surfaces is not None else None):
            if one is not None and not (one.root / "dataset_description.json").is_file():
                places["freesurfer"] = one.root
    return places
