# SPDX-License-Identifier: Apache-2.0
"""Output spaces: which of the preprocessed BOLD files to model.

The grammar is that of fMRIPrep, ``SPACE[:res-x][:den-y]``.  Three things have more than one name and are
brought to one here: ``fsaverage5`` is ``fsaverage:den-10k`` (``fsaverage6``: 41k, plain ``fsaverage``: 164k),
``func``, ``bold``, ``run`` and ``boldref`` all mean the run's own BOLD grid (so does a file without a
``space`` entity), and ``anat`` means ``T1w``.  A template's cohort is part of its name here, after a ``+``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from conform_app.errors import UsageError

FSAVERAGE_DENSITY = {"fsaverage4": "3k", "fsaverage5": "10k", "fsaverage6": "41k", "fsaverage": "164k"}
NATIVE_BOLD = frozenset({"func", "bold", "run", "boldref"})
SURFACES = frozenset({"fsnative", "fsaverage", "fsLR"})
_ALIASES = {"anat": "T1w"}
# 41k is the density closest to the resolution of BOLD; 164k only multiplies the cost.
_DENSITY_ORDER = ("91k", "41k", "10k", "164k", "32k", "59k", "170k")
_LABEL = re.compile(r"[A-Za-z0-9+]+")


@dataclass(frozen=True)
class SpaceSpec:
    """A space as asked for.

    Attributes
    ----------
    space : str
        Label of the ``space`` entity, e.g. ``MNI152NLin2009cAsym``, ``T1w``, ``fsaverage``, ``fsLR``.
    res, den : str or None
        Labels of ``res`` and ``den``; None leaves the choice open.
    """

    space: str
    res: str | None = None
    den: str | None = None

    def __str__(self) -> str:
        res = f":res-{self.res}" if self.res else ""
        den = f":den-{self.den}" if self.den else ""
        return f"{self.space}{res}{den}"


@dataclass(frozen=True)
class SpaceKey:
    """A space as found in files: `kind` is ``volume``, ``gifti`` or ``cifti``."""

    kind: str
    space: str
    res: str | None = None
    den: str | None = None

    def __str__(self) -> str:
        return str(SpaceSpec(self.space, self.res, self.den))


def parse_space(text: str) -> SpaceSpec:
    """Read ``SPACE[:res-x][:den-y]``.

    Parameters
    ----------
    text : str
        For instance ``"fsLR:den-91k"``, ``"MNI152NLin2009cAsym:res-2"``, ``"fsaverage5"``, ``"T1w"``.

    Returns
    -------
    SpaceSpec
        With ``fsaverage5`` and its like rewritten as ``fsaverage`` and a density.

    Raises
    ------
    UsageError
        The text is not of this grammar.
    """
    grammar = "The grammar is SPACE[:res-x][:den-y], for instance MNI152NLin2009cAsym:res-2 or fsLR:den-91k."
    name, *modifiers = str(text).strip().split(":")
    if not _LABEL.fullmatch(name):
        raise UsageError(f"output space {text!r}: {name!r} is not a label.", grammar)
    found: dict[str, str] = {}
    for modifier in modifiers:
        key, _, value = modifier.partition("-")
        if key not in ("res", "den", "cohort") or not _LABEL.fullmatch(value):
            raise UsageError(f"output space {text!r}: {modifier!r} is not res-x, den-y or cohort-z.", grammar)
        if key in found:
            raise UsageError(f"output space {text!r}: {key} is given twice.", grammar)
        found[key] = value
    name = _ALIASES.get(name, name)
    if "cohort" in found:
        name = f"{name}+{found['cohort']}"
    den = found.get("den")
    if name in FSAVERAGE_DENSITY and name != "fsaverage":
        if den not in (None, FSAVERAGE_DENSITY[name]):
            raise UsageError(f"output space {text!r}: {name} has density {FSAVERAGE_DENSITY[name]}.", grammar)
        name, den = "fsaverage", FSAVERAGE_DENSITY[name]
    return SpaceSpec(name, found.get("res"), den)


def space_of_file(kind: str, space: str | None, res: str | None, den: str | None) -> SpaceKey:
    """The space a BOLD file is in, from its entities (see the module's docstring for the names)."""
    space = space or "boldref"
    if kind != "volume" and space in FSAVERAGE_DENSITY:
        space, den = "fsaverage", den or FSAVERAGE_DENSITY[space]
    return SpaceKey(kind, space, res, den)


def match_space(spec: SpaceSpec, keys: Iterable[SpaceKey]) -> SpaceKey | None:
    """The space among `keys` that `spec` asks for; None when there is none.

    Where `spec` leaves the resolution open, files without ``res`` come first; where it leaves the density
    open, plain ``fsaverage`` means 164k as in fMRIPrep and ``fsLR`` means CIFTI 91k if it exists.

    Raises
    ------
    UsageError
        Several cohorts fit, or several resolutions and none is the plain one.
    """
    fits = [key for key in keys if _names_same(spec, key)]
    if not fits:
        return None
    if len(cohorts := {key.space for key in fits if key.space.startswith(f"{spec.space}+")}) > 1:
        raise UsageError(
            f"output space {spec} could be any of {', '.join(sorted(cohorts))}.", "Name it: :cohort-x."
        )
    plain = [key for key in fits if key.res is None]
    if spec.res is None and not plain and len({key.res for key in fits}) > 1:
        listed = ", ".join(sorted(map(str, fits)))
        raise UsageError(f"output space {spec} could be any of {listed}.", "Name the resolution.")
    if spec.space == "fsaverage" and spec.den is None:
        fits = [key for key in fits if key.den == "164k"] or fits
    return min(fits, key=lambda key: (key.res is not None, preference(key)))


def surface_key(spec: SpaceSpec) -> SpaceKey | None:
    """The surface space that volumes can be carried to for `spec`; None when it is no surface.

    Plain ``fsaverage`` means 164k and plain ``fsLR`` the 91k grayordinates, as in fMRIPrep.

    Raises
    ------
    UsageError
        There is no mesh of that density.
    """
    from conform_app.images.templates import check_target

    if spec.space not in SURFACES or spec.res is not None:
        return None
    den = check_target(spec.space, spec.den) or None
    return SpaceKey("cifti" if den == "91k" else "gifti", spec.space, None, den)


def carried_from(keys: Iterable[SpaceKey]) -> list[SpaceKey]:
    """Volume spaces that a surface can be sampled from, the best first: T1w, the run's own grid, MNI152."""

    def rank(key: SpaceKey) -> tuple:
        floor = 0 if key.space == "T1w" else 1 if key.space in NATIVE_BOLD else 2
        return floor, key.space != "MNI152NLin6Asym", key.res is not None, str(key)

    known = ("T1w", *NATIVE_BOLD)
    return sorted(
        (k for k in keys if k.kind == "volume" and (k.space in known or k.space.startswith("MNI152"))),
        key=rank,
    )


def preference(key: SpaceKey) -> tuple:
    """Sort key: CIFTI, fsaverage and other group surfaces, T1w, MNI152NLin*, then any other space."""
    order = _DENSITY_ORDER.index(key.den) if key.den in _DENSITY_ORDER else len(_DENSITY_ORDER)
    if key.kind == "cifti":
        floor = 0
    elif key.kind == "gifti" and key.space == "fsaverage":
        floor = 1
    elif key.kind == "gifti" and key.space != "fsnative":
        floor = 2
    elif key.kind == "volume" and key.space == "T1w":
        floor = 3
    elif key.kind == "volume" and key.space.startswith("MNI152NLin"):
        floor = 4
    else:
        floor = 5
    # Among templates the non-linear 2009c one is fMRIPrep's default.
    default = key.space != "MNI152NLin2009cAsym"
    return (
        floor,
        order,
        default,
        key.space in NATIVE_BOLD,
        key.space,
        key.res is not None,
        key.res or "",
        key.kind,
    )


def _names_same(spec: SpaceSpec, key: SpaceKey) -> bool:
    native = spec.space in NATIVE_BOLD and key.space in NATIVE_BOLD
    any_cohort = key.space.startswith(f"{spec.space}+")  # MNIPediatricAsym+5 where no cohort is named
    if spec.space != key.space and not native and not any_cohort:
        return False
    if spec.den is not None and spec.den != key.den:
        return False
    if spec.res is None:
        return True
    if spec.res == "native":
        return key.res in (None, "native")
    return key.res is not None and _plain(spec.res) == _plain(key.res)


def _plain(label: str) -> str:
    return str(int(label)) if label.isdecimal() else label
