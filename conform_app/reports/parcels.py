# SPDX-License-Identifier: Apache-2.0
"""Which points PSN denoised together, in words."""

from __future__ import annotations

from typing import Any

from conform_app.reports.wording import joined


def together(choices: list[dict[str, Any]], n_blocks: list[int], many: str) -> str:
    """What PSN was applied to, as the rest of a sentence that starts with "applied to".

    Parameters
    ----------
    choices : list of dict
        ``choices["psn"]`` of fit records.
    n_blocks : list of int
        Populations that each fit was denoised in.
    many : str
        What the points are called, in the plural.

    Returns
    -------
    str
        Empty where each fit was one population for no special reason.
    """
    parts = []
    kinds = [(c.get("parcels") or {}).get("kind", "blocks") for c in choices]
    atlas = [c["parcels"] for c, kind in zip(choices, kinds, strict=True) if kind == "atlas"]
    if atlas:
        names = joined(sorted({name for p in atlas for name in p.get("files", ())}))
        regions = _range([int(p.get("n_labels", 0)) for p in atlas], "region")
        part = f"each of {regions} of the atlas {names} by itself"
        free = [int(p.get("n_unlabelled", 0)) for p in atlas]
        if max(free):
            part += f" (the {_range(free)} {many} without a label in compact blocks)"
        parts.append(part)
    if "none" in kinds:
        parts.append(f"all {many} at once{_estimator(choices)}")
    plain = [n for n, kind in zip(n_blocks, kinds, strict=True) if kind == "blocks"]
    if plain and max(plain) > 1:
        parts.append(f"{_range(plain, 'block')} of neighbouring {many}, each by itself")
    return joined(parts)


def _estimator(choices: list[dict[str, Any]]) -> str:
    """How covariances of so many points were handled."""
    texts = {(c.get("parcels") or {}).get("estimator", "") for c in choices}
    if not any("span of" in text for text in texts):
        return ""
    return (
        ", in the span of the single trials (covariances shrunk towards their diagonals and carried into it)"
    )


def _range(values: list[int], noun: str = "") -> str:
    low, high = min(values), max(values)
    text = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return text if not noun else f"{text} {noun}{'s' * (high != 1)}"
