# SPDX-License-Identifier: Apache-2.0
"""What a GLMsingle fit returns: one frozen record per type, A to D, and one for the whole.

Arrays have voxels first; the order of trials is run by run, and time order within a run.  Rows of voxels
that are not `GLMsingleResult.valid` hold NaN (floating point), -1 (indices) or False (masks).  ``betas`` is
an array, or what ``store`` gave for it, or None for a type that is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conform_app.errors import UsageError
from conform_app.glmsingle.conditions import ConditionMeans, condition_means
from conform_app.glmsingle.options import GLMsingleOptions
from conform_app.glmsingle.uncertainty import StandardErrors


@dataclass(frozen=True, eq=False)
class TypeA:
    """On/off model and single trials, both with the assumed HRF.

    Attributes
    ----------
    betas : (n_voxels, n_trials) float32
        Ordinary least-squares response to each trial, percent (or the data's unit).
    onoff_betas : (n_voxels, 1) float32
        Response common to all trials.
    r2 : (n_voxels,) float32
        Variance explained by the on/off model, percent.
    standard_error : StandardErrors
        Of the betas; slice it: ``standard_error[0:100]`` is (100, n_trials).
    """

    betas: Any
    onoff_betas: np.ndarray
    r2: np.ndarray
    standard_error: StandardErrors


@dataclass(frozen=True, eq=False)
class TypeB:
    """Single trials with the library's best HRF per voxel.

    Attributes
    ----------
    betas : (n_voxels, n_trials) float32
    r2 : (n_voxels,) float32
        Variance explained, percent (single-trial models explain much noise: compare types with care).
    r2_run : (n_voxels, n_runs) float32
    fit_hrf_r2 : (n_voxels, n_hrfs) float32
    fit_hrf_r2_run : (n_voxels, n_runs, n_hrfs) float32
    hrf_index : (n_voxels,) int32
        Column of the library, 0-based.
    hrf_index_run : (n_voxels, n_runs) int32
        The choice each run alone would make.
    standard_error : StandardErrors
        As in `TypeA`.
    """

    betas: Any
    r2: np.ndarray
    r2_run: np.ndarray
    fit_hrf_r2: np.ndarray
    fit_hrf_r2_run: np.ndarray
    hrf_index: np.ndarray
    hrf_index_run: np.ndarray
    standard_error: StandardErrors


@dataclass(frozen=True, eq=False)
class Denoising:
    """The noise regressors: where they come from and how many are used.

    Attributes
    ----------
    noise_pool : (n_voxels,) bool
    pc_regressors : list of (n_volumes, n_pcs + 1) float32
        One array per run, unit standard deviation, by decreasing variance.
    pcnum : int
        Number used.
    glm_badness : (n_voxels, n_pcs + 1) float32 or None
        Cross-validated squared error (z units) for 0, 1, ... regressors; None without cross-validation.
    pc_voxels : (n_voxels,) bool or None
        Voxels whose median badness decides.
    xval_trend : (n_pcs + 1,) float32 or None
        Minus that median.
    """

    noise_pool: np.ndarray
    pc_regressors: list[np.ndarray]
    pcnum: int
    glm_badness: np.ndarray | None
    pc_voxels: np.ndarray | None
    xval_trend: np.ndarray | None


@dataclass(frozen=True, eq=False)
class TypeC:
    """Type B with noise regressors (GLMdenoise).

    Attributes
    ----------
    betas, r2, r2_run, hrf_index, standard_error
        As in `TypeB`.
    noise_pool, pc_regressors, pcnum, glm_badness, pc_voxels, xval_trend
        As in `Denoising`.
    """

    betas: Any
    r2: np.ndarray
    r2_run: np.ndarray
    hrf_index: np.ndarray
    standard_error: StandardErrors
    noise_pool: np.ndarray
    pc_regressors: list[np.ndarray]
    pcnum: int
    glm_badness: np.ndarray | None
    pc_voxels: np.ndarray | None
    xval_trend: np.ndarray | None


@dataclass(frozen=True, eq=False)
class TypeD:
    """Type C with fractional ridge regression per voxel.

    Attributes
    ----------
    betas, hrf_index
        As in `TypeB`.
    standard_error : StandardErrors
        Posterior standard deviations under the prior that ridge stands for, scaled like the betas.
    r2, r2_run
        Of the ridge betas before scaling.
    frac_value : (n_voxels,) float32
        Chosen fraction.
    rr_badness : (n_voxels, n_fracs) float32 or None
        Cross-validated error per fraction; None when only one fraction was given.
    scale_offset : (n_voxels, 2) float32 or None
        Slope and offset (data's unit) applied to the ridge betas; None without autoscale.
    noise_pool, pc_regressors, pcnum, glm_badness, pc_voxels, xval_trend
        As in `Denoising`; None, [] and 0 when type C was not asked for.
    """

    betas: Any
    r2: np.ndarray
    r2_run: np.ndarray
    hrf_index: np.ndarray
    standard_error: StandardErrors
    frac_value: np.ndarray
    rr_badness: np.ndarray | None
    scale_offset: np.ndarray | None
    noise_pool: np.ndarray | None
    pc_regressors: list[np.ndarray]
    pcnum: int
    glm_badness: np.ndarray | None
    pc_voxels: np.ndarray | None
    xval_trend: np.ndarray | None


@dataclass(frozen=True, eq=False)
class GLMsingleResult:
    """The whole fit.

    Attributes
    ----------
    type_a, type_b, type_c, type_d
        C and D are None when not asked for or when no condition repeats across folds.
    trial_condition, trial_run : (n_trials,) int32
        Condition index and run (0-based) of each trial.
    mean_vol : (n_voxels,) float32
        Mean over all volumes of all runs.
    valid : (n_voxels,) bool
        False: constant or non-finite in some run; not fitted.
    r2_threshold : float
        On/off R2 (percent) that separates signal from noise voxels; NaN when it was not needed.
    hrfs : (n_samples, n_hrfs) float32
        The library, peak 1, for the (median) trial duration.
    hrf_times : (n_samples,) float64
        Seconds from trial onset.
    designs : list of (n_volumes, n_trials of the run) float32
        Regressors of the assumed HRF, one column per trial of the run, before drifts are removed.
    fracs : tuple of float
        Fractions that `TypeD.rr_badness` refers to.
    poly_degrees : tuple of int
        Polynomial degree of each run.
    options : GLMsingleOptions
    account : list of str
        What was chosen and why, in plain sentences.
    warnings : list of str
        What the user should look at.
    """

    type_a: TypeA
    type_b: TypeB
    type_c: TypeC | None
    type_d: TypeD | None
    trial_condition: np.ndarray
    trial_run: np.ndarray
    mean_vol: np.ndarray
    valid: np.ndarray
    r2_threshold: float
    hrfs: np.ndarray
    hrf_times: np.ndarray
    designs: list[np.ndarray]
    fracs: tuple[float, ...]
    poly_degrees: tuple[int, ...]
    options: GLMsingleOptions
    account: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def conditions(self, letter: str | None = None) -> ConditionMeans:
        """Means over each condition's trials, with standard errors and t, of one type.

        Parameters
        ----------
        letter : {"a", "b", "c", "d"}, optional
            Default the last type whose betas were kept.

        Returns
        -------
        ConditionMeans

        Raises
        ------
        UsageError
            The fit has no betas of this type.
        """
        types = {name: getattr(self, f"type_{name}") for name in "abcd"}
        kept = [name for name, one in types.items() if one is not None and one.betas is not None]
        letter = (kept[-1] if kept else "d") if letter is None else letter.lower()
        if letter not in kept:
            have = ", ".join(kept).upper() or "none"
            raise UsageError(
                f"The fit has no betas of type {letter.upper()} (it has {have}).", "Ask for a type it has."
            )
        return condition_means(types[letter].betas, self.trial_condition)
