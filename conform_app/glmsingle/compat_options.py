# SPDX-License-Identifier: Apache-2.0
"""The published option names: defaults, checks, and their translation into `GLMsingleOptions`."""

from __future__ import annotations

from typing import Any

import numpy as np

from conform_app.errors import ConformError
from conform_app.glmsingle.options import DEFAULT_FRACS, GLMsingleOptions

DEFAULTS: dict[str, Any] = {
    "wantlibrary": 1,
    "wantglmdenoise": 1,
    "wantfracridge": 1,
    "wantlss": 0,
    "wantfileoutputs": [1, 1, 1, 1],
    "wantmemoryoutputs": [1, 1, 1, 1],
    "wanthdf5": 0,
    "chunklen": 50000,
    "xvalscheme": None,  # one run at a time
    "sessionindicator": None,  # one session
    "extra_regressors": False,
    "maxpolydeg": None,  # from each run's length
    "wantpercentbold": 1,
    "hrftoassume": None,  # the canonical HRF
    "hrflibrary": None,  # the 20 HRFs
    "n_pcs": 10,
    "brainthresh": [99.0, 0.1],
    "brainR2": [],
    "brainexclude": False,
    "pcR2cutoff": [],
    "pcR2cutoffmask": 1,
    "pcstop": 1.05,
    "fracs": list(DEFAULT_FRACS),
    "wantautoscale": 1,
    "firdelay": 30,
    "firpct": 99,
}
"""Options that have an effect, with the published defaults; None: made from the data."""

IGNORED = frozenset(
    "numforhrf hrfthresh hrffitmask R2thresh hrfmodel n_jobs n_boots wantparametric lambda seed "
    "suppressoutput".split()
)
"""Accepted, as published, and without effect, as published."""


def merge(params: dict[str, Any] | None) -> dict[str, Any]:
    """The given options over the defaults.

    Raises
    ------
    ValueError
        An option has no known name, or its value makes no sense.
    """
    params = {} if params is None else dict(params)
    unknown = sorted(set(params) - set(DEFAULTS) - IGNORED)
    if unknown:
        raise ValueError(f"Input parameter not recognized: {', '.join(map(repr, unknown))}")
    merged = {name: value.copy() if isinstance(value, list) else value for name, value in DEFAULTS.items()}
    merged.update(params)
    for name in ("wantfileoutputs", "wantmemoryoutputs"):
        flags = np.ravel(merged[name])
        if flags.size != 4 or not np.isin(flags, (0, 1)).all():
            raise ValueError(f"{name} must be four values of 0 or 1, for types A to D; got {merged[name]!r}")
        merged[name] = [int(flag) for flag in flags]
    for name, letters in (("wantglmdenoise", "C or D"), ("wantfracridge", "D")):
        first = 2 if name == "wantglmdenoise" else 3
        asked = merged["wantfileoutputs"][first:] + merged["wantmemoryoutputs"][first:]
        if merged[name] and not any(asked):
            raise ValueError(f"{name} is set, but no output of type {letters} is asked for")
    method_options(merged)
    return merged


def kept(merged: dict[str, Any]) -> str:
    """Letters of the types whose betas are wanted in files or memory."""
    pairs = zip("ABCD", merged["wantfileoutputs"], merged["wantmemoryoutputs"], strict=True)
    return "".join(letter for letter, in_file, in_memory in pairs if in_file or in_memory)


def given(value: Any) -> bool:
    """Whether an option was given: not None, False, zero or empty."""
    return value is not None and value is not False and np.size(value) > 0 and bool(np.any(value))


def method_options(merged: dict[str, Any]) -> GLMsingleOptions:
    """The same choices for `fit_glmsingle`, with the quirks of the published code.

    Raises
    ------
    ValueError
        A value makes no sense.
    """
    mask = merged["pcR2cutoffmask"]
    more: dict[str, Any] = {}
    for name in ("maxpolydeg", "hrftoassume", "hrflibrary", "xvalscheme"):
        if merged[name] is not None and not (hasattr(merged[name], "__len__") and len(merged[name]) == 0):
            more[name] = merged[name]
    for name in ("brainR2", "pcR2cutoff"):
        if given(merged[name]):
            more[name] = float(np.ravel(merged[name])[0])
    if given(merged["brainexclude"]) and np.size(merged["brainexclude"]) > 1:
        more["brainexclude"] = merged["brainexclude"]
    if np.size(mask) > 1:
        more["pcR2cutoffmask"] = mask
    for name in ("wantlibrary", "wantglmdenoise", "wantfracridge", "wantlss", "wantpercentbold"):
        more[name] = bool(merged[name])
    try:
        return GLMsingleOptions(
            n_pcs=merged["n_pcs"],
            brainthresh=merged["brainthresh"],
            pcstop=merged["pcstop"],
            fracs=merged["fracs"],
            wantautoscale=bool(merged["wantautoscale"]),
            chunklen=int(merged["chunklen"]),
            keep=kept(merged),
            reference=True,
            **more,
        )
    except ConformError as error:
        raise ValueError(str(error)) from error
