# SPDX-License-Identifier: Apache-2.0
"""What a GLMsingle fit returns: one frozen record per type, A to D, and one for the whole.

Arrays have voxels first; the order of trials is run by run, and time order within a run.  Rows of voxels
that are not `GLMsingleResult.valid` hold NaN (floating point), -1 (indices) or False (masks).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from conform_app.glmsingle.options import GLMsingleOptions


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
    """

    betas: np.ndarray | None
    onoff_betas: np.ndarray
    r2: np.ndarray


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
    """

    betas: np.ndarray | None
    r2: np.ndarray
    r2_run: np.ndarray
    fit_hrf_r2: np.ndarray
    fit_hrf_r2_run: np.ndarray
    hrf_index: np.ndarray
    hrf_index_run: np.ndarray


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
    betas, r2, r2_run, hrf_index
        As in `TypeB`.
    noise_pool, pc_regressors, pcnum, glm_badness, pc_voxels, xval_trend
        As in `Denoising`.
    """

    betas: np.ndarray | None
    r2: np.ndarray
    r2_run: np.ndarray
    hrf_index: np.ndarray
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

    betas: np.ndarray | None
    r2: np.ndarray
    r2_run: np.ndarray
    hrf_index: np.ndarray
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
    fracs: tuple[float, ...]
    poly_degrees: tuple[int, ...]
    options: GLMsingleOptions
    account: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
