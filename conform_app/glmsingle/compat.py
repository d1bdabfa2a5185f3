# SPDX-License-Identifier: Apache-2.0
"""The published interface: `GLM_single(params).fit(design, data, stimdur, tr, outputdir, figuredir)`.

Scripts written for the published Python GLMsingle run on ours: option names, dictionaries, file names and
numbers are the same, the published code's quirks included (``reference=True`` of `GLMsingleOptions`).
Different on purpose: nothing is deleted, the caller's list is not changed, options that crash there work
(folds as lists, arrays of voxels to exclude), voxels that are not finite in some run are left out (NaN), and
no figures are drawn.  New code uses `conform_app.glmsingle.fit_glmsingle`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.errors import ConformError
from conform_app.glmsingle.compat_files import NAMES, save
from conform_app.glmsingle.compat_options import given, merge, method_options
from conform_app.glmsingle.estimator import fit_glmsingle
from conform_app.glmsingle.fir import fit_fir
from conform_app.glmsingle.result import GLMsingleResult


class GLM_single:
    """Single-trial GLM under the published names.

    Parameters
    ----------
    params : dict, optional
        Options by their published names.

    Attributes
    ----------
    params : dict
        Options with the defaults filled in; after `fit` also those that follow from the data.

    Raises
    ------
    ValueError
        An option is unknown, or its value makes no sense.
    """

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = merge(params)

    def fit(
        self,
        design: Any,
        data: Any,
        stimdur: float,
        tr: float,
        outputdir: str | Path | None = None,
        figuredir: str | Path | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Fit types A to D.

        Parameters
        ----------
        design : list of (n_volumes, n_conditions) arrays of 0 and 1
            Dense or sparse; one array means one run.
        data : list of (X, Y, Z, n_volumes) or (n_voxels, n_volumes) arrays
            One array means one run.  Voxels come back as (X, Y, Z), or as (n_voxels, 1, 1).
        stimdur, tr : float
            s.
        outputdir : path, optional
            Where files go; default ``./GLMestimatesingletrialoutputs`` if any file is wanted.
        figuredir : path, optional
            Accepted; figures are part of CONFORM's report.

        Returns
        -------
        dict
            ``typea``, ``typeb``, ``typec``, ``typed``, as far as they are wanted in memory and could be made.

        Raises
        ------
        ValueError
            Data and design do not fit each other.
        """
        design, data = _as_list(design), _as_list(data)
        options = method_options(self.params)
        extra = self.params["extra_regressors"]
        extra = list(extra) if isinstance(extra, (list, tuple)) or given(extra) else None
        sessions = self.params["sessionindicator"]
        sessions = None if sessions is None else np.ravel(sessions)
        n = min(len(design), len(data))
        if len(design) != len(data):
            warnings.warn(f"{len(data)} runs of data and {len(design)} of design: {n} are used", stacklevel=2)
            design, data = design[:n], data[:n]
        lengths = [min(d.shape[0], y.shape[-1]) for d, y in zip(design, data, strict=True)]
        design = [d if d.shape[0] == n else d[:n] for d, n in zip(design, lengths, strict=True)]
        more = {"extra_regressors": extra}
        try:
            result = fit_glmsingle(data, design, stimdur, tr, options=options, sessions=sessions, **more)
            delay = {"delay": self.params["firdelay"], "percentile": self.params["firpct"]}
            fir = fit_fir(data, design, tr, options=options, **more, **delay)
        except ConformError as error:
            raise ValueError(str(error)) from error
        for text in result.warnings:
            warnings.warn(text, stacklevel=2)
        shape = tuple(data[0].shape[:-1])
        shape = shape if len(shape) == 3 else (*shape, 1, 1)
        self._fill_in(result, n)
        return self._deliver(_dictionaries(result, shape), result, fir, shape, design, stimdur, tr, outputdir)

    def _fill_in(self, result: GLMsingleResult, n_runs: int) -> None:
        """Options that the data decided."""
        params = self.params
        params["maxpolydeg"] = list(result.poly_degrees)
        params["hrflibrary"] = result.hrfs
        params["wantglmdenoise"] = int(result.type_c is not None)
        params["wantfracridge"] = int(result.type_d is not None)
        if params["sessionindicator"] is None:
            params["sessionindicator"] = np.ones((1, n_runs), int)
        if params["xvalscheme"] is None:
            params["xvalscheme"] = np.arange(n_runs)
        for name in ("brainR2", "pcR2cutoff"):
            if not given(params[name]) and np.isfinite(result.r2_threshold):
                params[name] = result.r2_threshold

    def _deliver(self, found, result, fir, shape, design, stimdur, tr, outputdir) -> dict[str, dict]:
        """Write the files wanted and return the dictionaries wanted."""
        params, hdf5 = self.params, bool(self.params["wanthdf5"])
        if outputdir is not None or any(params["wantfileoutputs"]):
            folder = Path("GLMestimatesingletrialoutputs" if outputdir is None else outputdir)
            folder.mkdir(parents=True, exist_ok=True)
            save(folder, "DESIGNINFO", _design_info(result, design, stimdur, tr, params))
            save(folder, "RUNWISEFIR", _fir(fir, shape))
            for wanted, (key, name) in zip(params["wantfileoutputs"], NAMES.items(), strict=True):
                if wanted and key in found:
                    save(folder, name, found[key], hdf5=hdf5)
        return {
            key: found[key]
            for wanted, key in zip(params["wantmemoryoutputs"], NAMES, strict=True)
            if wanted and key in found
        }


def _as_list(runs: Any) -> list[Any]:
    """One array (2-D, 4-D) becomes a list of one run."""
    if hasattr(runs, "shape") and len(runs.shape) in (2, 4):
        return [runs]
    return list(runs)


def _dictionaries(result: GLMsingleResult, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Each type's results under the published names, voxels in their shape."""

    def put(values: Any, dtype: Any = np.float32) -> np.ndarray | None:
        if values is None:
            return None
        values = np.asarray(values)
        return values.reshape(*shape, *values.shape[1:]).astype(dtype, copy=False)

    def index(values: np.ndarray) -> np.ndarray:  # 0 where there is no model, as published
        return put(np.maximum(values, 0), np.int64)

    a, b, c, d = result.type_a, result.type_b, result.type_c, result.type_d
    mean = put(result.mean_vol)
    found: dict[str, dict[str, Any]] = {}
    found["typea"] = {"onoffR2": put(a.r2, np.float64), "meanvol": mean, "betasmd": put(a.onoff_betas)}
    choice = {"HRFindex": index(b.hrf_index), "HRFindexrun": index(b.hrf_index_run)}
    found["typeb"] = {"FitHRFR2": put(b.fit_hrf_r2), "FitHRFR2run": put(b.fit_hrf_r2_run), **choice}
    found["typeb"] |= {"R2": put(b.r2), "R2run": put(b.r2_run), "betasmd": put(b.betas), "meanvol": mean}
    for key, one in (("typec", c), ("typed", d)):
        if one is None:
            continue
        found[key] = {
            **choice,
            "glmbadness": put(one.glm_badness),
            "pcvoxels": put(one.pc_voxels, bool),
            "pcnum": int(one.pcnum),
            "xvaltrend": one.xval_trend,
            "noisepool": put(one.noise_pool, bool),
            "pcregressors": list(one.pc_regressors),
            "betasmd": put(one.betas),
            "R2": put(one.r2),
            "R2run": put(one.r2_run),
        }
        if key == "typed":
            empty = np.zeros(0, np.float32)
            badness, line = put(one.rr_badness), put(one.scale_offset)
            found[key]["rrbadness"] = empty if badness is None else badness
            found[key]["FRACvalue"] = put(one.frac_value)
            found[key]["scaleoffset"] = empty if line is None else line
        found[key]["meanvol"] = mean
    return found


def _fir(fir: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    n_runs, n_lags = fir.time_courses.shape[1:]
    return {
        "firR2": fir.r2.T.reshape(n_runs, *shape).astype(np.float64),
        "firtcs": fir.time_courses.swapaxes(0, 1).reshape(n_runs, *shape, 1, n_lags),
        "firavg": fir.run_average,
        "firgrandavg": fir.average,
    }


def _design_info(result: GLMsingleResult, design, stimdur: float, tr: float, params) -> dict[str, Any]:
    """What was shown when, trial by trial."""
    order, run = result.trial_condition, result.trial_run
    n_conditions, n_runs = int(design[0].shape[1]), len(design)
    per_run = np.bincount(run, minlength=n_runs)
    pairs = np.unique(np.stack([order, run]), axis=1)[0]
    single, buffers = [], []
    for r, one in enumerate(design):
        volumes = np.nonzero(np.asarray(one.toarray() if hasattr(one, "toarray") else one))[0]
        marks = np.zeros((one.shape[0], order.size), np.float32)
        marks[volumes, np.flatnonzero(run == r)] = 1
        single.append(marks)
        buffers.append((one.shape[0] - 1 - volumes.max()) * tr)
    return {
        "design": design,
        "stimdur": stimdur,
        "tr": tr,
        "params": dict(params),
        "designSINGLE": single,
        "stimorder": order.astype(np.int64),
        "numtrialrun": per_run,
        "condcounts": np.bincount(order, minlength=n_conditions),
        "condinruns": np.bincount(pairs, minlength=n_conditions),
        "endbuffers": np.array(buffers),
    }
