# SPDX-License-Identifier: Apache-2.0
"""What is needed to carry a fit from volumes to a surface space: decided and checked before anything is read.

The volume is sampled between white and pial surface; the registered sphere of the participant's mesh and the
sphere of the target mesh, in one system of coordinates, then say which vertices of the one make up a vertex
of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from conform_app.images.templates import SphereFile


@dataclass(frozen=True)
class HemiPlan:
    """One hemisphere.

    Attributes
    ----------
    hemi : {"L", "R"}
    white, pial : str
        Paths.
    midthickness, cortex, native_sphere, sphere : str or None
        Middle surface, mask of the cortex, sphere before registration, registered sphere (None: the target
        is the mesh itself).
    target : SphereFile or None
        The sphere of the target mesh in the coordinates of `sphere`.
    wall : str or None
        Mask of the cortex of fsLR, on `wall_sphere`.
    wall_sphere : SphereFile or None
    n_target, n_source : int
        Vertices of the target mesh, and of the participant's.
    """

    hemi: str
    white: str
    pial: str
    midthickness: str | None = None
    cortex: str | None = None
    native_sphere: str | None = None
    sphere: str | None = None
    target: SphereFile | None = None
    wall: str | None = None
    wall_sphere: SphereFile | None = None
    n_target: int = 0
    n_source: int = 0

    def files(self) -> list[str]:
        """Every file."""
        own = [self.white, self.pial, self.midthickness, self.cortex, self.native_sphere, self.sphere]
        recipes = [sphere for sphere in (self.target, self.wall_sphere) if sphere is not None]
        return [path for path in (*own, self.wall, *(f for s in recipes for f in s.files)) if path]


@dataclass(frozen=True)
class SurfacePlan:
    """How a fit comes to a surface.

    Attributes
    ----------
    of : {"timeseries", "betas"}
        What is carried.
    volume : str
        Space of the volumes, such as ``T1w``.
    inputs : tuple of str
        Volumes and masks that are carried, as paths.
    hemispheres : tuple of HemiPlan
        Left, right.
    registration : str
        What the sphere is registered to and by what, in words; empty for fsnative.
    coordinates : str
        ``fsLR`` or ``fsaverage``: the coordinates of the spheres; empty for fsnative.
    group_average : bool
        The surfaces are a template's: nothing of this person's folding is known.
    approximate : bool
        The surfaces say of themselves (desc-approx) that they are not this person's.
    to_volume : str or None
        Transform from the surfaces' space (``fsnative``) to T1w.
    to_template : str or None
        Transform from T1w to the template in which the volumes are.
    subcortex : str or None
        Segmentation that says which voxels are grayordinates.
    """

    of: str
    volume: str
    inputs: tuple[str, ...]
    hemispheres: tuple[HemiPlan, ...]
    registration: str = ""
    coordinates: str = ""
    group_average: bool = False
    approximate: bool = False
    to_volume: str | None = None
    to_template: str | None = None
    subcortex: str | None = None

    def files(self) -> list[str]:
        """Every input: volumes, masks, surfaces, spheres, templates and transforms."""
        more = [path for hemi in self.hemispheres for path in hemi.files()]
        more += [path for path in (self.to_volume, self.to_template, self.subcortex) if path]
        return list(dict.fromkeys([*self.inputs, *more]))

    @property
    def n_target(self) -> int:
        """Vertices of both hemispheres of the target mesh, the medial wall included."""
        return sum(hemi.n_target for hemi in self.hemispheres)

    def summary(self) -> dict[str, Any]:
        """What the record of a fit keeps: no paths, which are in the sidecars."""
        kept = ("of", "volume", "registration", "coordinates", "group_average", "approximate")
        facts = {"subcortex": self.subcortex is not None, "warped": self.to_template is not None}
        return {name: getattr(self, name) for name in kept} | facts


def sidecar_fields(surface: SurfacePlan | None, kind: str) -> dict[str, str]:
    """What the sidecar of a map says of its way to the surface.

    Parameters
    ----------
    surface : SurfacePlan or None
        None: nothing.
    kind : {"gifti", "cifti"}
        Of the map.
    """
    if surface is None:
        return {}
    mesh = "the participant's surfaces"
    if surface.group_average:
        mesh = "fsaverage's average surfaces (group-average registration: not this person's cortex)"
    elif surface.approximate:
        mesh = "approximate surfaces (a warped group average, not this person's cortex)"
    what = {"timeseries": "time series", "betas": "what was estimated in the volumes"}[surface.of]
    way = f"{surface.volume} volumes sampled on {mesh}: {what}"
    if surface.to_template:
        way += "; surfaces brought to the volumes by the participant's normalization"
    fields = {"SurfaceSampling": way}
    if surface.registration:
        fields["Registration"] = surface.registration
    if kind == "cifti":
        below = {"timeseries": "voxels", "betas": "a fit of their own to voxels"}[surface.of]
        fields["Subcortex"] = f"{below} of MNI152NLin6Asym" if surface.subcortex else "none: cortex only"
    return fields


def from_dict(content: dict[str, Any] | None) -> SurfacePlan | None:
    """Read what ``dataclasses.asdict`` made of a plan."""
    if content is None:
        return None

    def sphere(value: dict[str, Any] | None) -> SphereFile | None:
        return None if value is None else SphereFile(**{**value, "through": tuple(value["through"])})

    def hemi(value: dict[str, Any]) -> HemiPlan:
        spheres = {name: sphere(value[name]) for name in ("target", "wall_sphere")}
        return HemiPlan(**{**value, **spheres})

    halves = tuple(hemi(value) for value in content["hemispheres"])
    known = {f.name for f in fields(SurfacePlan)}
    plain = {name: value for name, value in content.items() if name in known}
    return SurfacePlan(**{**plain, "inputs": tuple(content["inputs"]), "hemispheres": halves})
