# SPDX-License-Identifier: Apache-2.0
"""Arguments of the published interface: merging, defaults, and checks with its error messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PRESETS = {
    "standard": {"basis": "signal", "criterion": "max-tradeoff", "threshold_method": "global"},
    "conservative": {
        "basis": "signal",
        "criterion": "variance",
        "variance_threshold": 0.99,
        "threshold_method": "global",
    },
    "aggressive": {"basis": "difference", "criterion": "prediction", "threshold_method": "global"},
    "compare": {"basis": "compare", "criterion": "max-tradeoff", "threshold_method": "global"},
    "wiener": {"criterion": "wiener"},
}
DEFAULTS = {
    "basis": "signal",
    "basis_eigenvalues": None,
    "criterion": "max-tradeoff",
    "threshold_method": "global",
    "basis_ordering": "eigenvalues",
    "variance_threshold": 0.99,
    "alpha": None,
    "allowable_thresholds": None,
    "unit_groups": None,
    "gsn_result": None,
    "gsn_args": None,
    "device": "cpu",
}
_IGNORED_BY_WIENER = (
    "basis",
    "basis_eigenvalues",
    "criterion",
    "threshold_method",
    "basis_ordering",
    "allowable_thresholds",
    "variance_threshold",
    "alpha",
    "unit_groups",
)


def merge_arguments(mode: object, opt: object, keywords: dict) -> dict:
    """One dictionary of options from mode string, options dictionary and keywords; later ones win."""
    given: dict = {}
    preset: dict = {}
    if isinstance(mode, str):
        name = mode.lower()
        if name not in PRESETS:
            raise ValueError(
                f"Unknown mode: {mode}. Must be 'conservative', 'standard', 'aggressive', "
                "'compare', or 'wiener'"
            )
        preset = dict(PRESETS[name])
    elif isinstance(mode, dict):
        given.update(mode)
    elif mode is not None:
        raise ValueError("Second argument must be a mode string or options dict")
    if isinstance(opt, dict):
        given.update(opt)
    elif opt is not None:
        raise ValueError("Third argument must be an options dict")
    given.update(keywords)
    if given.get("basis") is not None and isinstance(given["basis"], str) and given["basis"] == "wiener":
        given = {**given, "criterion": "wiener"}
        del given["basis"]
    merged = {**DEFAULTS, **preset, **given}
    if merged["criterion"] == "wiener":
        _refuse_with_wiener(given)
    return merged


def _refuse_with_wiener(given: dict) -> None:
    def counts(name: str) -> bool:
        value = given.get(name)
        if name == "criterion":
            return value not in (None, "wiener")
        return value is not None

    clashes = [f"{name}={given[name]!r}" for name in _IGNORED_BY_WIENER if name in given and counts(name)]
    if clashes:
        raise ValueError(
            "The full-rank Wiener filter (mode/criterion 'wiener') is basis-free and applies no truncation, "
            "so it ignores the basis/criterion/threshold pipeline. Remove these conflicting options: "
            f"{', '.join(clashes)}."
        )


def check_data(data: object) -> np.ndarray:
    """The data as an array, with the published complaints."""
    if data is None:
        raise ValueError("PSN requires at least one input argument (data)")
    if not isinstance(data, np.ndarray) or data.ndim != 3 or not np.issubdtype(data.dtype, np.number):
        raise ValueError("Data must be a 3D numeric array [nunits x nconds x ntrials]")
    n_units, n_conditions, n_trials = data.shape
    if n_trials < 2:
        raise ValueError(
            f"Data must have at least 2 trials (needed to estimate noise). Got {n_trials} trials."
        )
    if n_conditions < 2:
        raise ValueError(
            "Data must have at least 2 conditions (needed to estimate covariance). "
            f"Got {n_conditions} conditions."
        )
    if n_units == 0:
        raise ValueError("cannot reshape array of size 0 into shape (0)")
    if np.isnan(data).any() and not (~np.isnan(data).any(axis=0)).any(axis=1).all():
        raise ValueError("All conditions must have at least 1 valid trial (no NaNs)")
    return data


def check_choices(opt: dict, n_units: int) -> dict:
    """Check every option and return them with arrays made of what should be arrays."""
    opt = dict(opt)
    opt["basis"] = _basis(opt["basis"], n_units)
    array_basis = not isinstance(opt["basis"], str)
    _member("criterion", opt["criterion"], "prediction, max-tradeoff, variance, variance_eigenvalues, wiener")
    _member("threshold_method", opt["threshold_method"], "global, hybrid")
    _member("basis_ordering", opt["basis_ordering"], "eigenvalues, signalvariance, prediction")
    share = opt["variance_threshold"]
    if not _is_number(share) or not 0 <= share <= 1:
        raise ValueError("variance_threshold must be a finite value between 0 and 1")
    alpha = opt["alpha"]
    if alpha is not None:
        if not _is_number(alpha):
            raise ValueError("alpha must be a scalar in [0, 1] or None")
        if not 0 <= alpha <= 1:
            raise ValueError("alpha must be a finite scalar in [0, 1] or None")
    if opt["criterion"] == "variance_eigenvalues":
        if opt["threshold_method"] != "global":
            raise ValueError(
                "criterion 'variance_eigenvalues' only compatible with threshold_method 'global'"
            )
        if array_basis or opt["basis"] == "random":
            raise ValueError(
                "criterion 'variance_eigenvalues' not compatible with custom basis or 'random' basis"
            )
    if array_basis and opt["basis_eigenvalues"] is not None:
        values = np.ravel(np.asarray(opt["basis_eigenvalues"], dtype=float))
        if values.size != opt["basis"].shape[1]:
            raise ValueError(
                f"custom_basis_eigenvalues length ({values.size}) must match basis column count "
                f"({opt['basis'].shape[1]})."
            )
        opt["basis_eigenvalues"] = values
    n_dims = opt["basis"].shape[1] if array_basis else n_units
    opt["allowable_thresholds"] = _allowed(opt["allowable_thresholds"], n_dims)
    opt["unit_groups"] = _groups(opt["unit_groups"], n_units)
    opt["gsn_result"] = _gsn_result(opt["gsn_result"], n_units)
    return opt


def _basis(basis: object, n_units: int) -> str | np.ndarray:
    if isinstance(basis, str):
        if basis not in ("signal", "difference", "noise", "pca", "random", "compare"):
            raise ValueError(
                "basis must be one of: signal, difference, noise, pca, random, wiener, compare, or a matrix"
            )
        return basis
    if not isinstance(basis, np.ndarray) or basis.ndim != 2 or not np.issubdtype(basis.dtype, np.number):
        raise ValueError("basis must be a string or numeric matrix")
    if basis.shape[0] != n_units:
        raise ValueError(f"Custom basis must have {n_units} rows (matching nunits)")
    if not 1 <= basis.shape[1] <= n_units:
        raise ValueError(f"Custom basis must have between 1 and {n_units} columns")
    return basis


def _member(name: str, value: object, names: str) -> None:
    if value not in names.split(", "):
        raise ValueError(f"{name} must be one of: {names}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _allowed(value: object, n_dims: int) -> np.ndarray | None:
    if value is None:
        return None
    array = np.asarray(value)
    name = "allowable_thresholds"
    if array.size == 0:
        return None
    if array.ndim > 1 or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name} must be a numeric scalar or 1D vector")
    array = np.ravel(array).astype(float)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must contain finite values")
    if (array < 0).any():
        raise ValueError(f"{name} must contain only non-negative values")
    if (array != np.round(array)).any():
        raise ValueError(f"{name} must contain integer dimension counts")
    if (array > n_dims).any():
        raise ValueError(f"{name} contains values exceeding number of basis dimensions ({n_dims})")
    return np.unique(array.astype(np.int64))


def _groups(value: object, n_units: int) -> np.ndarray | None:
    if value is None:
        return None
    array = np.ravel(np.asarray(value, dtype=float))
    if array.size != n_units:
        raise ValueError(f"unit_groups must have length equal to nunits ({n_units})")
    if (array != np.round(array)).any():
        raise ValueError("unit_groups must contain integer values")
    if (array < 0).any():
        raise ValueError("unit_groups must contain non-negative integers (0 is allowed for global mode)")
    return array.astype(np.int64)


def _gsn_result(value: object, n_units: int) -> dict | None:
    if value is None:
        return None
    if isinstance(value, str | Path):
        path = Path(value)
        if path.suffix != ".npz":
            raise ValueError(f"opt['gsn_result'] string path must end in .npz; got {str(value)!r}")
        if not path.exists():
            raise FileNotFoundError(f"opt['gsn_result'] points to a file that doesn't exist: {value}")
        with np.load(path) as stored:
            value = {key: stored[key] for key in stored.files}
    elif hasattr(value, "files"):
        value = {key: value[key] for key in value.files}
    if "cSb" not in value or "cNb" not in value:
        raise ValueError("gsn_result must contain 'cSb' and 'cNb' keys")
    for key in ("cSb", "cNb"):
        _covariance(key, np.asarray(value[key], dtype=float), n_units)
    for kind in ("signal", "difference"):
        vectors, values = f"eigvecs_{kind}", f"eigvals_{kind}"
        if (vectors in value) != (values in value):
            there, absent = (vectors, values) if vectors in value else (values, vectors)
            raise ValueError(
                f"gsn_result has '{there}' but not '{absent}'; "
                "cached eigvecs and eigvals must be provided together."
            )
    return dict(value)


def _covariance(key: str, c: np.ndarray, n_units: int) -> None:
    if c.shape != (n_units, n_units):
        raise ValueError(
            f"gsn_result['{key}'] must be a ({n_units}, {n_units}) matrix matching the data's unit count; "
            f"got shape {c.shape}."
        )
    if not np.isfinite(c).all():
        raise ValueError(f"gsn_result['{key}'] contains non-finite values (NaN/Inf); the cache is corrupt.")
    asymmetry, scale = np.abs(c - c.T).max(), np.abs(c).max()
    if asymmetry > 1e-6 * scale:
        raise ValueError(
            f"gsn_result['{key}'] is not symmetric (max asymmetry {asymmetry:.3e} vs scale {scale:.3e})."
        )
    lowest = c.diagonal().min()
    if lowest < -1e-8 * max(1.0, scale):
        raise ValueError(
            f"gsn_result['{key}'] has a negative diagonal value ({lowest:.3e}); "
            "a covariance has non-negative variances."
        )
