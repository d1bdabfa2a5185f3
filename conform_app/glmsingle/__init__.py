# SPDX-License-Identifier: Apache-2.0
"""GLMsingle: single-trial responses from fMRI time series (Prince et al. 2022, eLife 11:e77599).

Arrays in, arrays out: this package knows neither files nor BIDS.  `fit_glmsingle` makes four versions of
the betas: A (assumed HRF), B (best HRF of a library per voxel), C (B with noise regressors), D (C with
fractional ridge).
"""

from conform_app.glmsingle.design import RunTrials
from conform_app.glmsingle.estimator import fit_glmsingle
from conform_app.glmsingle.fir import FIR, fit_fir
from conform_app.glmsingle.options import GLMsingleOptions
from conform_app.glmsingle.resample import Resampled
from conform_app.glmsingle.result import GLMsingleResult

__all__ = [
    "FIR",
    "GLMsingleOptions",
    "GLMsingleResult",
    "Resampled",
    "RunTrials",
    "fit_fir",
    "fit_glmsingle",
]
