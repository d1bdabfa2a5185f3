# SPDX-License-Identifier: Apache-2.0
"""Sentences of the methods text on fits that were carried from volumes to a surface."""

from __future__ import annotations

from typing import Any

from conform_app.reports.wording import joined, number


def surface_sentences(records: list[dict[str, Any]]) -> list[str]:
    """One sentence a way in which volumes came to a surface.

    Parameters
    ----------
    records : list of dict
        Fit records; those without ``surface`` count nothing.
    """
    ways: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        facts = record.get("surface")
        if facts:
            names = ("of", "volume", "registration", "group_average", "approximate", "warped", "subcortex")
            ways.setdefault(tuple(facts.get(name) for name in names), []).append(record)
    return [_sentence(own) for own in ways.values()]


def _sentence(records: list[dict[str, Any]]) -> str:
    facts = records[0]["surface"]
    fits = [record["fit"] for record in records]
    spaces = [f"`{fit['space']}`" + (f" ({fit['den']})" if fit.get("den") else "") for fit in fits]
    where = joined(list(dict.fromkeys(spaces)))
    what = "Single-trial responses fitted in" if facts["of"] == "betas" else "Time series of"
    text = (
        f"{what} the volumes in `{facts['volume']}` space were sampled between the white and pial surfaces, "
        "each voxel weighted by its share of the cortical ribbon [@hcppipelines]"
    )
    if facts["group_average"]:
        text += (
            ", which were averages over other people (fsaverage): a group-average registration that knows "
            "nothing of a participant's folds"
        )
    elif facts["approximate"]:
        text += (
            ", which were approximate: a group average warped to the participant's image, not the "
            "participant's own cortex"
        )
    if facts.get("warped"):
        text += f", brought to `{facts['volume']}` space by the participant's own nonlinear normalization"
    if facts["registration"]:
        text += f", and carried to {where} by adaptive resampling weighted by vertex areas"
        if not (facts["group_average"] or facts["approximate"]):
            text += f" ({facts['registration']})"
    covered = sorted(float(record["surface"]["covered_percent"]) for record in records)
    span = (
        number(covered[0]) if covered[0] == covered[-1] else f"{number(covered[0])} to {number(covered[-1])}"
    )
    text = f"{text}. The volumes covered {span} % of the cortex."
    if facts.get("subcortex"):
        text += " Subcortical grayordinates are voxels of the same runs in `MNI152NLin6Asym` space"
        text += ", fitted by themselves in the whole brain." if facts["of"] == "betas" else "."
    elif any(fit.get("den") == "91k" for fit in fits):
        text += " Grayordinates are those of the cortex alone."
    return text
