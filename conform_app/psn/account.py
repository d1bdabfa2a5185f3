# SPDX-License-Identifier: Apache-2.0
"""What a PSN fit did, in sentences for a report."""

from __future__ import annotations

import numpy as np

from conform_app.psn.covariance import GSNResult
from conform_app.psn.honest import CANDIDATES, Choice
from conform_app.psn.intake import Usable
from conform_app.psn.options import PSNOptions

_FEW = 0.2  # a data covariance shrunk beyond this tells little about axes shared by units
_SCHEMES = {
    "trials": "cross-validation over trials, the axes refitted without the left-out trial",
    "conditions": "cross-validation over trials, the axes fitted to other conditions",
    "shared": "cross-validation over trials with the same axes for all",
}


def account_of(
    usable: Usable,
    options: PSNOptions,
    k: int | float | np.ndarray,
    n_axes: int,
    gsn: GSNResult,
    choice: Choice | None,
) -> tuple[str, ...]:
    """Units left out, thin data, the choice among candidates, and what was kept."""
    return (*_left_out(usable), *_thin(usable, gsn), *_candidates(choice), _kept(options, k, n_axes, choice))


def _left_out(usable: Usable) -> list[str]:
    n = int((~usable.valid).sum())
    if not n:
        return []
    return [f"{n} of {usable.valid.size} units were constant, not finite or incomplete and left as is."]


def _thin(usable: Usable, gsn: GSNResult) -> list[str]:
    """Few conditions tell little about how units vary together."""
    if gsn.shrink_data >= _FEW or len(usable.x) == 1:
        return []
    return [
        f"Axes were estimated from {usable.x.shape[1]} conditions for {len(usable.x)} units: the covariance"
        f" of the averages was shrunk by {100 * (1 - gsn.shrink_data):.0f} %, so that an axis holds few"
        " units. Compare the reliability before and after PSN before relying on patterns."
    ]


def _candidates(choice: Choice | None) -> list[str]:
    if choice is None or not choice.errors:
        return []
    words = {
        "population": "one cut for all units",
        "unit": "a cut for each unit",
        "wiener": "a Wiener filter",
    }
    used = [
        f"{words[name]} ({100 * weight:.0f} %)"
        for name, weight in zip(CANDIDATES, choice.weights, strict=True)
        if weight > 0
    ]
    errors = ", ".join(f"{words[name]} {choice.errors[name]:.4g}" for name in CANDIDATES)
    if choice.weights[CANDIDATES.index("wiener")] == 1:
        return [
            f"Cross-validation (mean squared error: {errors}) found nothing clearly better than the Wiener"
            " filter."
        ]
    if len(used) == 1:
        used[0] = used[0].removesuffix(" (100 %)")
        return [f"Cross-validation (mean squared error: {errors}) chose {used[0]}."]
    return [
        f"Cross-validation (mean squared error: {errors}) found a weighted mean of them clearly better than"
        f" the Wiener filter alone ({choice.errors['blend']:.4g}): {', '.join(used)}."
    ]


def _kept(options: PSNOptions, k: int | float | np.ndarray, n_axes: int, choice: Choice | None) -> str:
    if options.criterion == "wiener":
        return f"A Wiener filter with {k:.1f} effective dimensions was applied."
    if options.criterion == "blend":
        return f"PSN kept {k:.1f} effective dimensions of {n_axes}."
    kept = f"{k} of {n_axes} dimensions" if np.ndim(k) == 0 else (
        f"a median of {np.median(k):g} of {n_axes} dimensions per unit"
    )  # fmt: skip
    how = f"the {options.criterion} criterion" if choice is None else _SCHEMES[choice.scheme]
    level = "the population" if options.level == "global" else "each unit"
    return f"PSN kept {kept} of the {options.basis_name} basis, chosen for {level} by {how}."
