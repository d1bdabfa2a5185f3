# SPDX-License-Identifier: Apache-2.0
"""Fit records -> the facts of the methods text, as ranges over fits and as sentences."""

from __future__ import annotations

from collections import Counter
from typing import Any

from conform_app.reports.parcels import together
from conform_app.reports.wording import count, joined, number, psn_kept

_KINDS = {
    "volume": ("voxel", "voxels"),
    "gifti": ("vertex", "vertices"),
    "cifti": ("grayordinate", "grayordinates"),
}

#: Packages that are named with their version, in this order: key in the record -> (name, citation).
_PACKAGES = {
    "numpy": ("NumPy", "numpy"),
    "scipy": ("SciPy", "scipy"),
    "torch": ("PyTorch", "pytorch"),
    "scikit-learn": ("scikit-learn", "sklearn"),
    "sklearn": ("scikit-learn", "sklearn"),
    "nibabel": ("NiBabel", "nibabel"),
    "nilearn": ("Nilearn", "nilearn"),
    "pybids": ("PyBIDS", "pybids"),
    "nipype": ("Nipype", "nipype"),
}

_PSN_PRESETS = {
    "standard": "the dimensions that best trade recovered signal against admitted noise, estimated from"
    " the model",
    "conservative": "the smallest number of dimensions that holds 99 % of the estimated signal variance",
    "aggressive": "the dimensions whose estimated signal exceeds their noise",
    "compare": "the dimensions, of two candidate bases, that best trade signal against noise",
}


def setting(record: dict[str, Any], name: str) -> Any:
    """Value of a setting wherever in the record's settings it stands; None when it is not there."""
    settings = record.get("settings") or {}
    if name in settings and not isinstance(settings[name], dict):
        return settings[name]
    groups = [group for group in settings.values() if isinstance(group, dict)]
    return next((group[name] for group in groups if name in group), None)


def unit_names(records: list[dict[str, Any]]) -> tuple[str, str]:
    """``voxel, voxels`` or what else the points of all fits are called."""
    kinds = {str(record["fit"].get("kind") or "volume") for record in records}
    if len(kinds) == 1:
        return _KINDS.get(kinds.pop(), ("point", "points"))
    return ("point", "points") if kinds else ("voxel", "voxels")


def span(values: list[Any], noun: str = "", plural: str = "") -> str:
    """``12 runs``, ``8 to 12 runs``, ``1 run``; without a noun, the numbers only."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return f"an unknown number of {plural or noun + 's'}" if noun else "an unknown number"
    low, high = min(known), max(known)
    text = number_of(low) if low == high else f"{number_of(low)} to {number_of(high)}"
    if not noun:
        return text
    return f"{text} {noun if low == high == 1 else plural or noun + 's'}"


def number_of(value: float) -> str:
    """Whole numbers with separators, others with three digits."""
    return f"{int(value):,}" if float(value).is_integer() else number(value)


def times(values: list[int]) -> str:
    """``once``, ``12 times``, ``once to 4 times``."""
    low, high = min(values), max(values)
    words = {1: "once", 2: "twice"}
    if low == high:
        return words.get(low, f"{low} times")
    return f"{words.get(low, f'{low}')} to {words.get(high, f'{high} times')}"


def preprocessing_sentence(inputs: list[dict[str, Any]]) -> str:
    """Who preprocessed the data, as their datasets say."""
    programs: dict[str, str] = {}
    for dataset in inputs:
        for program in dataset.get("GeneratedBy") or []:
            if program.get("Name"):
                programs[str(program["Name"])] = str(program.get("Version") or "")
    ours = {name: version for name, version in programs.items() if name.lower() == "fmriprep"}
    if ours:
        version = next(iter(ours.values()))
        return (
            f"The functional images had been preprocessed with fMRIPrep{' ' + version if version else ''}"
            " [@fmriprep]."
        )
    if programs:
        named = joined([f"`{n}`{' version ' + v if v else ''}" for n, v in programs.items()])
        return (
            "The functional images were taken as they came, preprocessed according to their dataset's"
            f" description by {named}; fMRIPrep is not among the programs named there."
        )
    return (
        "The dataset's description does not say with which program the functional images had been"
        " preprocessed."
    )


def task_facts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a task, with the ranges over its fits."""
    names = list(dict.fromkeys(record["fit"].get("task") for record in records))
    return [_task([r for r in records if r["fit"].get("task") == name], name) for name in names]


def _task(records: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    fits = [record["fit"] for record in records]
    subjects = sorted({str(fit.get("subject")) for fit in fits})
    repeats = [int(k) for record in records for k in record.get("repeats") or {}]
    one, many = unit_names(records)
    return {
        "name": f"`{name}`" if name else "",
        "n_subjects": len(subjects),
        "subjects": _subjects(subjects),
        "spaces": _spaces(fits),
        "pooling": _pooling(fits),
        "n_fits": len(fits),
        "fits": "The data cover" if len(fits) == 1 else f"Each of the {len(fits)} fits covers",
        "runs": span([len(fit.get("runs") or []) for fit in fits], "run"),
        "tr": span([fit.get("tr") for fit in fits]),
        "trials": span([fit.get("n_trials") for fit in fits], "trial"),
        "conditions": span([fit.get("n_conditions") for fit in fits], "condition"),
        "repeats": times(repeats) if repeats else "an unknown number of times",
        "points": span([fit.get("n_voxels") for fit in fits], one, many),
        "stimulus": _stimulus(records),
    }


def _subjects(labels: list[str]) -> str:
    if len(labels) == 1:
        return f"one participant (sub-{labels[0]})"
    return f"{len(labels)} participants"


def _spaces(fits: list[dict[str, Any]]) -> str:
    spaces = []
    for fit in fits:
        extra = [f"{key}-{fit[key]}" for key in ("res", "den") if fit.get(key)]
        name = f"`{fit['space']}`" if fit.get("space") else "the space of acquisition"
        spaces.append(f"{name} ({', '.join(extra)})" if extra else name)
    spaces = list(dict.fromkeys(spaces))
    named = [s for s in spaces if s.startswith("`")]
    prefix = "" if not named else "the space " if len(named) == 1 else "the spaces "
    return prefix + joined(named + [s for s in spaces if not s.startswith("`")])


def _pooling(fits: list[dict[str, Any]]) -> str:
    sessions = [len(fit.get("sessions") or []) for fit in fits]
    if max(sessions) > 1:
        return f"the runs of {span(sessions, 'session')} were fitted together"
    return "each session was fitted by itself" if len(fits) > 1 and min(sessions) == 1 else ""


def _stimulus(records: list[dict[str, Any]]) -> str:
    columns = {(r.get("choices") or {}).get("stim_column") for r in records} - {None}
    rules = {setting(r, "ignore_trials") for r in records} - {None, ""}
    blocks = {setting(r, "block_column") for r in records} - {None, ""}
    text = ""
    if columns:
        text = (
            f"Conditions were told apart by the column {joined([f'`{c}`' for c in sorted(columns)], 'or')} of"
            " the events."
        )
    if blocks:
        named = joined([f"`{c}`" for c in sorted(blocks)])
        text += f" Rows with the same value in the column {named} made one trial."
    if rules:
        text += f" Rows matching {joined([f'`{r}`' for r in sorted(rules)])} were left out."
    return text.strip()


def template_spaces(records: list[dict[str, Any]]) -> set[str]:
    """Standard spaces among those of the fits."""
    spaces = {str(record["fit"].get("space") or "") for record in records}
    return {s for s in spaces if s.startswith(("MNI", "fsLR", "fsaverage", "onavg"))}


def confounds_sentence(records: list[dict[str, Any]]) -> str:
    """Which confounds were in the model."""
    chosen = {tuple(setting(r, "confounds") or ()) for r in records}
    words = {"motion6": "six motion parameters", "motion12": "six motion parameters and their derivatives"}
    words["motion24"] = "six motion parameters, their derivatives, and the squares of both"
    if len(chosen) != 1 or not (names := chosen.pop()) or names == ("none",):
        return "No confounds were added to the model."
    shown = [words.get(name, f"`{name}`") for name in names if name != "none"]
    return f"As confounds, the model held {joined(shown)} of the preprocessing."


def _scope(some: int, everything: int, start: str = "") -> str:
    """Opening words for a statement on `some` of all fits."""
    if some == everything:
        return start
    return f"In {count(some, 'fit')} of {everything},"


def full_facts(records: list[dict[str, Any]], everything: int, one: str, many: str) -> dict[str, str]:
    """Facts on cross-validated noise components and ridge."""
    choices = [record.get("choices") or {} for record in records]
    scope = _scope(len(records), everything)
    pools = [c.get("noise_pool_size") for c in choices]
    thresholds = [c.get("r2_threshold") for c in choices if c.get("r2_threshold") is not None]
    most = max((len((r.get("curves") or {}).get("xval_trend") or []) - 1 for r in records), default=0)
    fracs = sorted({float(f) for c in choices for f in c.get("fracs") or []})
    chosen = span([c.get("pcnum") for c in choices])
    single = all(len(c.get("fracs") or []) == 1 for c in choices)
    runs = {len(r["fit"].get("runs") or []) for r in records}
    if most > 0:
        components = (
            f"Of up to {most}, the number removed, the smallest close to the best by cross-validation, was"
            f" {chosen}"
        )
    else:
        components = f"Their number was {chosen}"
    fractions = f"chosen by cross-validation for each {one}"
    if single and fracs:
        fractions = f"of {span(fracs)}"
    elif fracs:
        fractions += f" among {len(fracs)} between {number(fracs[0])} and {number(fracs[-1])}"
    known = any(p is not None for p in pools)
    return {
        "scope": scope if scope else "Then",
        "pool": f"the {span(pools, one, many)}" if known else f"those {many}",
        "threshold": f" (on/off model: variance explained below {span(thresholds)} %)" if thresholds else "",
        "components": components,
        "fractions": fractions,
        "folds": (
            f"Cross-validation left out one of the {span(list(runs))} runs at a time and asked how well the"
            " responses of the other runs match those of the same condition in it."
        ),
    }


def fixed_facts(records: list[dict[str, Any]], everything: int) -> dict[str, str]:
    """Facts on values set in advance."""
    choices = [record.get("choices") or {} for record in records]
    fracs = [f for c in choices for f in c.get("fracs") or []]
    scope = _scope(len(records), everything)
    return {
        "scope": scope if scope else "In these data,",
        "components": span([c.get("pcnum") for c in choices], "component"),
        "fraction": f"a ridge fraction of {span(fracs)} [@fracridge]",
    }


def fallback_facts(records: list[dict[str, Any]], everything: int) -> dict[str, Any]:
    """Why some fits stop at type B."""
    single = all(len(r["fit"].get("runs") or []) == 1 for r in records)
    unrepeated = all(not r["fit"].get("n_repeated_conditions") for r in records)
    scope = _scope(len(records), everything)
    if single:
        reason = "there was only one run, so that no condition was repeated across runs"
    elif unrepeated:
        reason = "no condition was repeated across runs"
    else:
        reason = "types C and D were not asked for or not possible"
    return {"scope": scope if scope else "In these data,", "reason": reason, "some": bool(scope)}


def reliability_clause(records: list[dict[str, Any]], one: str) -> str:
    """Median split-half reliability is in the report; here, for which types it was computed."""
    types: set[str] = set()
    for record in records:
        types |= {key[-1] for key in record.get("products") or {} if key.startswith("reliability_type")}
    if not types:
        return ""
    return (
        f"it is given for each {one} and for the responses of type{'s' if len(types) > 1 else ''}"
        f" {joined(sorted(types))}"
    )


def psn_sentences(records: list[dict[str, Any]], many: str, one: str) -> tuple[str, str, str, str]:
    """How PSN chose, what it kept, which fits went without it, and why none had it."""
    chosen = [(r, (r.get("choices") or {}).get("psn") or {}) for r in records]
    on = [(r, c) for r, c in chosen if c.get("mode") not in (None, "off", "none")]
    if not on:
        wished = {setting(r, "psn") for r in records} - {None, "off"}
        return "", "", "", ", because no condition was repeated across runs" if wished else ""
    modes = {str(c["mode"]) for _, c in on}
    how = " ".join(_psn_how(mode, {str(c.get("level")) for _, c in on}, on, one) for mode in sorted(modes))
    found = [psn_kept(choice, (record.get("curves") or {}).get("psn")) for record, choice in on]
    kept = [value for values, _ in found for value in values]
    totals = [total for _, total in found if total]
    blocks = max(len(values) for values, _ in found)
    tail = ""
    if kept:
        verb = "effective dimensions were kept" if modes <= {"wiener", "auto"} else "dimensions were kept"
        if max(kept) == 1 and not totals:
            verb = verb.replace("dimensions were", "dimension was")
        of = f" of {span(totals)}" if totals else ""
        per_unit = {str(c.get("level")) for _, c in on} & {"unit", "parcel"}
        whose = f" by the median {one}" if per_unit else ""
        tail = f"{span(kept)}{of} {verb}{whose}{' of a block' if blocks > 1 else ''}."
    where = together([choice for _, choice in on], [max(len(values), 1) for values, _ in found], many)
    if where:
        how = f"It was applied to {where}. {how}"
    without = len(records) - len(on)
    rest = f"PSN was not applied in {count(without, 'fit')} without repeated conditions." if without else ""
    return how, tail[:1].upper() + tail[1:], rest, ""


def _psn_how(mode: str, levels: set[str], on: list[tuple[dict[str, Any], dict[str, Any]]], one: str) -> str:
    bases = sorted({str(c.get("basis")) for _, c in on if c.get("basis")})
    basis = f" of the {joined(bases, 'or')} basis" if bases else ""
    if mode == "cv":
        per = f"separately for each {one}" if levels & {"unit", "parcel"} else "one number for all"
        return (
            f"The condition averages were projected onto the leading dimensions{basis}; their number was"
            f" chosen by cross-validation over repeats ({per}), as the one with which the denoised average of"
            " the other trials predicts held-out trials best."
        )
    if mode == "auto":
        return (
            f"The condition averages were multiplied by the Wiener filter of the two covariances, unless"
            f" their projection onto leading dimensions{basis} (one number for all or one for each {one}), or"
            f" both with weights, predicted held-out trials clearly better in cross-validation over"
            f" repeats{_chosen(on, one)}."
        )
    if mode == "wiener":
        return "The condition averages were multiplied by the Wiener filter of the two covariances."
    rule = _PSN_PRESETS.get(mode, "the dimensions that the method selects")
    return f"The condition averages were projected onto {rule} (preset `{mode}`)."


def _chosen(on: list[tuple[dict[str, Any], dict[str, Any]]], one: str) -> str:
    """What PSN's `auto` decided for, as far as one choice holds for a whole fit."""
    made = [choice for _, choice in on if choice.get("mode") == "auto"]
    if any(choice.get("n_parcels", 1) > 1 for choice in made):
        return ", in each block by itself"
    if not all(choice.get("criterion") for choice in made):
        return ""
    soft = {"wiener": "the Wiener filter", "blend": "a weighted mean"}
    cuts = {"unit": f"a cut for each {one}"}
    found = Counter(soft.get(c["criterion"]) or cuts.get(c.get("level"), "one cut for all") for c in made)
    if len(found) == 1:
        return f": here {next(iter(found))}"
    return ": here " + joined([f"{name} ({count(n, 'fit')})" for name, n in found.most_common()])


def software_sentence(records: list[dict[str, Any]]) -> str:
    """Packages with their versions and citations, as far as the records name them."""
    found: dict[str, str] = {}
    for record in records:
        for key, version in (record.get("software") or {}).items():
            package = _PACKAGES.get(str(key).lower())
            if package:
                found.setdefault(package[0], f"{package[0]} {version} [@{package[1]}]")
    ordered = [found[name] for name, _ in dict.fromkeys(_PACKAGES.values()) if name in found]
    return f"Computations used {joined(ordered)}." if ordered else ""
