# SPDX-License-Identifier: Apache-2.0
"""Who can be pooled with whom, and why not.

Three states.  *Refused*: the betas cannot stand in one array with the others' (another space, a missing or
contradictory file).  *Compliant*: format and space agree, but they were made another way (version of CONFORM,
preprocessing program, settings of the model), so that differences between participants may come from that.
*Compatible*: made the same way.  Settings that describe a study rather than a method (which column names the
stimulus, which sessions are one fit, which confounds) differ between studies by nature and do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from conform_app.bids.outputs import FitOutput, Participant, check_fit
from conform_app.bids.spaces import SURFACES, SpaceKey, parse_space
from conform_app.errors import ConformError
from conform_app.settings import GroupSettings

OF_THE_STUDY = frozenset(
    {"fit_level", "fit_tasks", "confounds", "no_repeats", "fixed_pcs", "fixed_fraction", "random_seed"}
)
"""Settings of the model in which studies may differ and yet be compatible."""

COMMON_SURFACES = SURFACES - {"fsnative"}


@dataclass(frozen=True)
class Member:
    """A participant and what became of it.

    Attributes
    ----------
    participant : Participant
    status : {"compatible", "compliant", "refused"}
    reasons : tuple of str
        Why not (only) compatible.
    merged : bool
        Whether its betas go into the collection.
    fits : tuple of FitOutput
        Fits in the collection's space.
    beta_type : str
        Empty when refused.
    tables : tuple of FitOutput
        One fit of each name's trials, whatever the space, whose trial table can be read.
    """

    participant: Participant
    status: str
    reasons: tuple[str, ...] = ()
    merged: bool = False
    fits: tuple[FitOutput, ...] = field(default=(), repr=False)
    beta_type: str = ""
    tables: tuple[FitOutput, ...] = field(default=(), repr=False)

    @property
    def key(self) -> str:
        """``sub-01_DATASET``."""
        return self.participant.key


@dataclass(frozen=True)
class Pool:
    """Everybody found.

    Attributes
    ----------
    members : tuple of Member
    space : SpaceKey or None
        None when no space is common to all.
    reference : dict
        What compatible participants share: ``version``, ``preprocessing``, ``settings``, ``hash``.
    account : tuple of str
    grid : str
        Hash of the points that all share (see :func:`grid_hash`); empty when there is none to hold to.
    """

    members: tuple[Member, ...]
    space: SpaceKey | None
    reference: dict[str, Any]
    account: tuple[str, ...]
    grid: str = ""

    @property
    def merged(self) -> tuple[Member, ...]:
        """Members whose betas are merged."""
        return tuple(member for member in self.members if member.merged)


def make_pool(
    participants: Sequence[Participant],
    settings: GroupSettings,
    reference: dict[str, Any] | None = None,
    grid: str | None = None,
) -> Pool:
    """Decide on every participant.

    Parameters
    ----------
    participants : sequence of Participant
    settings : GroupSettings
        ``pool_space``, ``beta_type`` and ``pool``.
    reference : dict, optional
        Of the collection that is there already: new participants are held to it.
    grid : str, optional
        Hash of the points of the collection that is there already; empty where it keeps none.

    Returns
    -------
    Pool
        In the order of the participants.
    """
    space, why = _choose_space(participants, settings.pool_space, reference)
    members = [_judge_files(person, space, why, settings.beta_type) for person in participants]
    usable = [member for member in members if member.status != "refused"]
    if reference is None:
        reference = _most_common(usable, space)
    reference.setdefault("preprocessing_version", _most_common(usable, space).get("preprocessing_version"))
    members, grid = _judge_grids([_judge_method(member, reference) for member in members], grid)
    allowed = ("compatible", "compliant") if settings.pool == "compliant" else ("compatible",)
    members = [replace(member, merged=member.status in allowed) for member in members]
    return Pool(tuple(members), space, reference, tuple(_account(members, space, why)), grid)


def method_of(member: Member) -> dict[str, Any]:
    """What makes a participant compatible with others: version, preprocessing, settings of the method."""
    fit = member.fits[0]
    model = fit.record.get("settings", {}).get("model", {})
    settings = {name: value for name, value in model.items() if name not in OF_THE_STUDY}
    program, version = fit.site.preprocessing
    return {
        "version": _short_version(fit.version),
        "preprocessing": program or "unknown",
        "preprocessing_version": _short_version(version),
        "settings": settings,
    }


def _short_version(text: str) -> str:
    """Major and minor number: what a difference in results may come from."""
    return ".".join(text.split("+")[0].split(".")[:2])


def method_hash(method: dict[str, Any]) -> str:
    """Twelve digits that are equal for compatible participants."""
    counted = {name: method[name] for name in ("version", "preprocessing", "settings")}
    text = json.dumps(counted, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _choose_space(
    participants: Sequence[Participant], asked: str | None, reference: dict[str, Any] | None
) -> tuple[SpaceKey | None, str]:
    """The collection's space, and why there is none."""
    if reference is not None and asked is None:
        asked = reference.get("space")
    having: Counter[SpaceKey] = Counter()
    for person in participants:
        having.update({fit.space for fit in person.fits})
    common = {key: n for key, n in having.items() if key.space in COMMON_SURFACES and key.kind != "volume"}
    if asked is not None:
        spec = parse_space(asked)
        for key in sorted(common, key=lambda k: (-common[k], str(k))):
            if key.space == spec.space and spec.den in (None, key.den):
                return key, ""
        return None, f"no participant has surface data in the space {asked}"
    if not common:
        listed = ", ".join(sorted({f"{key} ({key.kind})" for key in having})) or "none"
        return None, (
            f"there is no space that participants could share (found: {listed}); betas are pooled on a "
            "template surface, fsLR or fsaverage"
        )
    return min(common, key=lambda key: (-common[key], key.kind != "cifti", str(key))), ""


def _judge_files(person: Participant, space: SpaceKey | None, why: str, wanted: str) -> Member:
    """Refuse a participant whose betas cannot be read, or are elsewhere."""
    tables, problems = _tables(person)
    problems = [*person.problems, *problems]
    here = tuple(fit for fit in person.fits if fit.space == space)
    if not person.fits:
        pass
    elif space is None:
        problems.append(why)
    elif not here:
        there = ", ".join(sorted({str(fit.space) for fit in person.fits}))
        problems.append(f"its betas are in {there}, the collection is in {space}")
    beta_type = wanted
    if here and wanted == "best":
        shared = set.intersection(*(set(fit.beta_types) for fit in here))
        beta_type = max(shared, default="")
        if not beta_type:
            problems.append("its fits have no type of betas in common")
    if here and beta_type:
        for fit in here:
            problems += check_fit(fit, beta_type)
        problems += _grid_problems(here, beta_type)
    problems = list(dict.fromkeys(problems))
    if problems or not here:
        return Member(person, "refused", tuple(problems), tables=tables)
    return Member(person, "compatible", fits=here, beta_type=beta_type, tables=tables)


def _grid_problems(fits: Sequence[FitOutput], beta_type: str) -> list[str]:
    """Fits of one participant whose points are not the same."""
    points = {fit.fit.get("n_points") for fit in fits}
    return [f"its fits have {sorted(map(str, points))} points"] if len(points) > 1 else []


def _tables(person: Participant) -> tuple[tuple[FitOutput, ...], list[str]]:
    """One fit of each set of runs (the same trials in two spaces count once), and what cannot be read."""
    found: dict[tuple, FitOutput] = {}
    problems = []
    for fit in person.fits:
        place = (tuple(fit.fit["sessions"]), fit.fit["task"], str(fit.record.get("plan")))
        try:
            fit.trials()
        except ConformError as error:
            problems.append(f"{fit.name}: {error.message.rstrip('.')}")
            continue
        found.setdefault(place, fit)
    return tuple(found.values()), problems


def _most_common(members: Sequence[Member], space: SpaceKey | None) -> dict[str, Any]:
    """The method (and the number of points) of most participants; of equals the first."""
    if not members:
        return {"space": None if space is None else str(space)}
    methods = [method_of(member) for member in members]
    places = [
        (method_hash(m), member.fits[0].fit["n_points"]) for m, member in zip(methods, members, strict=True)
    ]
    best = Counter(places).most_common(1)[0][0]
    chosen = methods[places.index(best)]
    return {"space": str(space), "n_points": best[1], **chosen, "hash": best[0]}


def _judge_method(member: Member, reference: dict[str, Any]) -> Member:
    """Tell compatible from compliant, and refuse another number of points."""
    if member.status == "refused":
        return member
    n_points = member.fits[0].fit["n_points"]
    if n_points != reference["n_points"]:
        reason = f"it has {n_points} points, the collection {reference['n_points']}"
        return replace(member, status="refused", reasons=(reason,))
    own = method_of(member)
    reasons = []
    for name, words in (("version", "CONFORM"), ("preprocessing", "preprocessed by")):
        if own[name] != reference[name]:
            reasons.append(f"{words} {own[name]}, the others {reference[name]}")
    ours, theirs = own["settings"], reference["settings"]
    differing = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    reasons += [f"{n} is {_text(ours.get(n))}, the others' {_text(theirs.get(n))}" for n in differing]
    if reasons:
        return replace(member, status="compliant", reasons=tuple(reasons))
    if own["preprocessing_version"] != reference["preprocessing_version"]:
        told = (
            f"{own['preprocessing']} {own['preprocessing_version'] or '(version unknown)'}, the others "
            f"{reference['preprocessing_version'] or '(version unknown)'}"
        )
        return replace(member, reasons=(told,))
    return member


def _judge_grids(members: Sequence[Member], held: str | None) -> tuple[list[Member], str]:
    """Refuse those whose points are others than the collection's or the first one's, though as many."""
    from conform_app.images import MapRows, grid_difference

    judged, first = [], None
    for member in members:
        if member.status != "refused":
            grid = MapRows(member.fits[0].files(f"betas_type{member.beta_type}")).grid
            reason = ""
            if first is not None and (difference := grid_difference(first[1], grid)):
                reason = f"its points are not those of {first[0]}: {difference}"
            elif held and grid_hash(grid) != held:
                reason = f"its points are not those of the collection that is there: {grid.describe()} in "
                reason += "another choice or order"
            else:
                first = first or (member.key, grid)
            if reason:
                member = replace(member, status="refused", reasons=(reason,))
        judged.append(member)
    if held is None and first is not None:
        held = grid_hash(first[1])
    return judged, held or ""


def grid_hash(grid: Any) -> str:
    """Twelve digits that are equal for grids with the same points in the same order.

    Structures, vertices and voxels count, and where voxels lie to a tenth of a millimetre.
    """
    import numpy as np

    digest = hashlib.blake2b(digest_size=6)
    axis = grid.brain_models
    plain = [grid.kind, list(map(int, grid.shape)), list(grid.structures)]
    affine = grid.affine
    if axis is not None:
        affine = axis.affine
        plain += [sorted((str(k), int(v)) for k, v in axis.nvertices.items())]
        plain += [[str(name) for name in axis.name], [int(n) for n in axis.volume_shape or ()]]
        for array in (axis.vertex, axis.voxel):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    if affine is not None:
        plain += [(np.round(np.asarray(affine, float), 1) + 0.0).tolist()]
    digest.update(json.dumps(plain).encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _account(members: Sequence[Member], space: SpaceKey | None, why: str) -> list[str]:
    counts = Counter(member.status for member in members)
    said = [f"The collection is in the space {space}." if space else f"No betas are pooled: {why}."]
    listed = ", ".join(f"{counts[name]} {name}" for name in ("compatible", "compliant", "refused"))
    said.append(f"{len(members)} participants: {listed}; {sum(m.merged for m in members)} are merged.")
    types = Counter(member.beta_type for member in members if member.merged)
    if len(types) > 1:
        shown = ", ".join(f"{n} of type {name}" for name, n in sorted(types.items()))
        said.append(f"Betas are of different types ({shown}): type B where stimuli do not repeat.")
    return said
