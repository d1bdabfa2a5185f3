# SPDX-License-Identifier: Apache-2.0
"""Numbers and reasons in words, written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from conform_app.reports.maps import Brain
    from conform_app.reports.products import Products


def count(n: int, noun: str, plural: str = "") -> str:
    """``1 run``, ``1,200 runs``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def number(value: Any) -> str:
    """Three significant digits, without an exponent for everyday magnitudes."""
    if value is None or not np.isfinite(float(value)):
        return "n/a"
    value = float(value)
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 100_000:
        digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2e}"


def range_of(values: Any) -> str:
    """``12`` or ``3 to 12``."""
    values = np.asarray(values)
    low, high = values.min(), values.max()
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def joined(words: list[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def spread(values: np.ndarray, brain: Brain, unit: str) -> str:
    """Median and the middle 90 % of a map, and of each hemisphere where there are any."""
    unit = f" {unit}" if unit else ""
    inside = values[brain.mask & np.isfinite(values)]
    if not inside.size:
        return "no finite value in the mask"
    low, middle, high = np.percentile(inside, [5, 50, 95])
    text = (
        f"Median {number(middle)}{unit}; 90 % of {inside.size:,} {brain.unit} lie between {number(low)} and"
        f" {number(high)}{unit}"
    )
    parts = []
    for name, span in brain.groups.items():
        part = values[span][brain.mask[span] & np.isfinite(values[span])]
        if part.size:
            parts.append(f"{name} {number(np.median(part))}{unit}")
    return f"{text} (medians: {', '.join(parts)})" if len(parts) > 1 else text


def shown_version(version: str) -> str:
    """Version as it is shown: a checkout that was never installed has none."""
    return "(development version)" if version.startswith("0+") else version


def why_not_cross_validated(products: Products) -> str:
    """Reason for which types C and D are missing, as a clause."""
    fit = products.fit
    if len(fit.get("runs") or []) == 1:
        return "there is only one run, so no condition repeats across runs, which cross-validation needs"
    if fit.get("n_repeated_conditions") == 0:
        return "no condition repeats across runs, which cross-validation needs"
    return "they were switched off or not possible with these data (see what was done, above)"


def why_no_reliability(products: Products) -> str:
    """Reason for which reliability and noise ceilings are missing, as a clause."""
    repeats = [int(k) for k in products.record.get("repeats") or {}]
    if repeats and max(repeats) < 2:
        return "no condition was shown more than once"
    if len(products.fit.get("runs") or []) == 1:
        return "there is only one run, so no condition repeats across runs"
    if products.fit.get("n_repeated_conditions") == 0:
        return "no condition repeats across runs"
    return "no map was written"


def psn_kept(
    choice: dict[str, Any], curves: dict[str, Any] | None = None
) -> tuple[list[float], float | None]:
    """Dimensions that PSN kept, one number a block, and how many there were, if the record says so.

    Parameters
    ----------
    choice : dict
        ``choices["psn"]`` of a fit record: either ``threshold`` (kept) and ``n_dims`` (all), or only
        ``n_dims`` (kept, one number a block of voxels).
    curves : dict, optional
        ``curves["psn"]``; the length of its spectrum tells how many dimensions a single block had.
    """
    kept, total = (
        (choice["threshold"], choice.get("n_dims")) if "threshold" in choice else (choice.get("n_dims"), None)
    )
    if total is None and choice.get("n_parcels", 1) == 1 and (curves or {}).get("signal_var"):
        total = len(curves["signal_var"])
    values = [float(v) for v in np.ravel(kept if kept is not None else []) if v is not None]
    return values, None if total is None else float(np.max(total))


def clock(seconds: Any) -> str:
    """``5 min 12 s``."""
    if seconds is None:
        return "n/a"
    seconds = round(float(seconds))
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
