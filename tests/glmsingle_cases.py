# SPDX-License-Identifier: Apache-2.0
"""Reading the GLMsingle test vectors and comparing a fit with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from conform_app.glmsingle import GLMsingleOptions, fit_glmsingle

HERE = Path(__file__).parent / "data" / "glmsingle"
RTOL, ATOL = 1e-4, 3e-4

FIELDS = {
    "onoffR2": "r2",
    "FitHRFR2": "fit_hrf_r2",
    "FitHRFR2run": "fit_hrf_r2_run",
    "HRFindex": "hrf_index",
    "HRFindexrun": "hrf_index_run",
    "R2": "r2",
    "R2run": "r2_run",
    "betasmd": "betas",
    "glmbadness": "glm_badness",
    "pcvoxels": "pc_voxels",
    "pcnum": "pcnum",
    "xvaltrend": "xval_trend",
    "noisepool": "noise_pool",
    "rrbadness": "rr_badness",
    "FRACvalue": "frac_value",
    "scaleoffset": "scale_offset",
}


def fixture(name: str):
    """One npz of the test vectors: from this folder, or from the shared ones."""
    if (HERE / f"{name}.npz").exists():
        return np.load(HERE / f"{name}.npz")
    root = os.environ.get("CONFORM_TEST_DATA")
    if not root:
        pytest.skip("CONFORM_TEST_DATA does not name the folder with the larger test vectors")
    return np.load(Path(root) / "fixtures" / "glmsingle" / f"{name}.npz")


def load_input(name: str):
    """Data (2-D), designs, stimulus duration, TR, and the raw file."""
    file = fixture(f"in_{name}")
    runs = range(int(file["nruns"]))
    data = [file[f"data_{r}"].reshape(-1, file[f"data_{r}"].shape[-1]) for r in runs]
    return data, [file[f"design_{r}"] for r in runs], float(file["stimdur"]), float(file["tr"]), file


def options_of(output) -> tuple[dict, dict]:
    """Keyword arguments of GLMsingleOptions and of fit_glmsingle from a case's parameters."""
    options, others = {}, {}
    for name, value in json.loads(str(output["params_json"])).items():
        if name.startswith(("wantfile", "wantmemory", "wanthdf5")):
            continue
        if isinstance(value, str):
            single = f"param_{name}"
            many = [k for k in output.files if k.startswith(f"param_{name}_")]
            value = output[single] if single in output.files else [output[k] for k in sorted(many)]
        if name == "extra_regressors":
            others["extra_regressors"] = value
        elif name == "sessionindicator":
            others["sessions"] = np.ravel(value)
        else:
            options[name] = bool(value) if name.startswith("want") else value
    return options, others


def fit_case(case: str, name: str, **more):
    """Fit a case and return (result, the reference's output)."""
    data, design, stimdur, tr, _ = load_input(name)
    output = fixture(f"out_{case}")
    options, others = options_of(output)
    if case == "session":
        others["sessions"] = [1, 1, 1, 2, 2, 2]
    result = fit_glmsingle(data, design, stimdur, tr, options=GLMsingleOptions(**options, **more), **others)
    return result, output


def pairs(result, output):
    """(name, ours, reference's) for every array that both have."""
    for key in output.files:
        head, _, field = key.partition("_")
        if not head.startswith("type") or field.startswith("pcregressors"):
            continue
        one = getattr(result, f"type_{head[-1]}")
        if field == "meanvol":
            ours = result.mean_vol
        elif key == "typea_betasmd":
            ours = result.type_a.onoff_betas
        elif key.startswith("typed_HRFindex"):  # kept in B here
            ours = getattr(result.type_b, FIELDS[field])
        else:
            ours = getattr(one, FIELDS[field])
        if ours is None:
            assert output[key].size == 0, key
            continue
        ours = np.asarray(ours)
        yield key, ours, np.asarray(output[key]).reshape(ours.shape)
