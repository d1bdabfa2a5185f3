# SPDX-License-Identifier: Apache-2.0
"""The choices of a PSN fit, checked: what each mode stands for, and what does not go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conform_app.errors import UsageError
from conform_app.psn.basis import ORDERINGS

CRITERIA = ("cv", "prediction", "max-tradeoff", "variance", "variance_eigenvalues", "wiener")
LEVELS = {"global": "global", "population": "global", "unit": "unit", "hybrid": "unit"}
MODES = {
    "cv": ("difference", "cv"),
    "standard": ("signal", "max-tradeoff"),
    "conservative": ("signal", "variance"),
    "aggressive": ("difference", "prediction"),
    "compare": ("compare", "max-tradeoff"),
    "wiener": ("signal", "wiener"),
    "auto": ("difference", "auto"),
}
POOLING = 0.3
PUBLISHED = "compat"
"""What stands for the mode where the published interface sets the choices (`conform_app.psn.compat`)."""


@dataclass(frozen=True, eq=False)
class PSNOptions:
    """Checked choices of a fit; see `fit_psn`."""

    mode: str
    basis: str | np.ndarray
    criterion: str
    level: str
    ordering: str
    cv_basis: str
    max_folds: int
    variance_threshold: float
    alpha: float | None
    allowed: np.ndarray | None
    groups: np.ndarray | None
    pooling: float = 0.0

    @property
    def descends(self) -> bool:
        """Whether axes come in the order in which they are kept, the null space included."""
        return self.ordering == "eigenvalues" and self.basis_name not in ("random", "custom")

    @property
    def forced(self) -> bool:
        """Whether there is only one number of dimensions to choose from."""
        return self.allowed is not None and self.allowed.size == 1

    @property
    def basis_name(self) -> str:
        """Name of the basis, "custom" for a matrix."""
        return self.basis if isinstance(self.basis, str) else "custom"


def check_options(
    n_units, mode, threshold, basis, criterion, ordering, cv_basis, max_folds, variance_threshold, alpha,
    allowable_thresholds, unit_groups, pooling,
) -> PSNOptions:  # fmt: skip
    """Fill in the mode's choices and refuse what is unknown or contradictory."""
    _one_of("mode", mode, MODES)
    if threshold is not None:
        _one_of("threshold", threshold, LEVELS)
    _one_of("ordering", ordering, ORDERINGS)
    _one_of("cv_basis", cv_basis, ("refit", "all"))
    default_basis, default_criterion = MODES[mode]
    if mode == "auto" and not (criterion is None and basis is None and cv_basis == "refit"):
        raise UsageError(
            'mode="auto" sets the basis and the criterion itself.', "Drop basis, criterion and cv_basis."
        )
    criterion = default_criterion if criterion is None else criterion
    _one_of("criterion", criterion, (*CRITERIA, "auto") if mode == "auto" else CRITERIA)
    given = basis is not None
    basis = default_basis if basis is None else basis
    if isinstance(basis, str):
        _one_of("basis", basis, ("signal", "difference", "noise", "pca", "random", "compare"))
    else:
        basis = np.asarray(basis, dtype=float)
        if basis.ndim != 2 or basis.shape[0] != n_units or not 1 <= basis.shape[1] <= n_units:
            raise UsageError(
                f"A basis of shape {basis.shape} does not go with {n_units} units.",
                "Give (n_units, 1..n_units).",
            )
    if not 0 <= variance_threshold <= 1:
        raise UsageError(f"variance_threshold = {variance_threshold} is not in 0..1.", "Give a share.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise UsageError(f"alpha = {alpha} is not in 0..1.", "Give a number from 0 to 1, or None.")
    if isinstance(max_folds, bool) or max_folds < 2:
        raise UsageError(f"max_folds = {max_folds} is too small.", "Give 2 or more.")
    if pooling is not None and not pooling >= 0:
        raise UsageError(f"pooling = {pooling} is negative.", "Give 0 or more.")
    # Presets come from a method whose cut is the population's unless asked otherwise.
    level = (
        LEVELS[threshold] if threshold is not None else "unit" if criterion in ("cv", "auto") else "global"
    )
    _refuse_clashes(criterion, level, given, basis, alpha, allowable_thresholds)
    allowed = _integers("allowable_thresholds", allowable_thresholds, None)
    groups = _integers("unit_groups", unit_groups, n_units)
    if groups is not None and level == "global":
        raise UsageError("unit_groups share cuts of units, and there are none.", 'Add threshold="unit".')
    if allowed is not None:
        allowed = np.unique(allowed)
        level = "global" if allowed.size == 1 else level
    if pooling is None:  # the published shortcut knows no pooling
        pooling = POOLING if cv_basis == "refit" else 0.0
    return PSNOptions(
        mode, basis, criterion, level, ordering, cv_basis, int(max_folds), float(variance_threshold), alpha,
        allowed, groups, float(pooling),
    )  # fmt: skip


def _refuse_clashes(
    criterion: str,
    level: str,
    given: bool,
    basis: str | np.ndarray,
    alpha: float | None,
    allowable_thresholds: np.ndarray | None,
) -> None:
    """Refuse what a criterion would silently leave unused; `given`: whether the basis was asked for."""
    if criterion == "wiener" and (
        given or level == "unit" or alpha is not None or allowable_thresholds is not None
    ):
        raise UsageError(
            "Wiener truncates nothing, so it takes no basis, level, alpha or thresholds.", "Drop them."
        )
    if criterion == "variance_eigenvalues" and (
        level == "unit" or not isinstance(basis, str) or basis == "random"
    ):
        raise UsageError(
            "variance_eigenvalues needs eigenvectors and one global cut.", 'Use criterion="variance".'
        )
    if isinstance(basis, str) and basis == "compare" and criterion == "cv":
        raise UsageError('basis="compare" goes with an analytic criterion only.', 'Use mode="compare".')
    if alpha is not None and criterion in ("cv", "auto"):
        raise UsageError(
            "alpha sets an analytic cut, and this one is cross-validated.", 'Add mode="standard", or drop it.'
        )


def _one_of(name: str, value: object, known: object) -> None:
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{name} = {value!r} is not known.", f"Choose one of {', '.join(known)}.")


def _integers(name: str, value: object, length: int | None) -> np.ndarray | None:
    if value is None:
        return None
    array = np.atleast_1d(np.asarray(value))
    whole = array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.number)
    if not whole or not np.all(np.isfinite(array)) or (array < 0).any() or (array != np.round(array)).any():
        raise UsageError(f"{name} must hold non-negative whole numbers.", "Give a vector of integers.")
    if length is not None and array.size != length:
        raise UsageError(f"{name} has {array.size} entries for {length} units.", "Give one per unit.")
    return array.astype(np.int64)
