# SPDX-License-Identifier: Apache-2.0
"""Partitioning signal and noise in responses to repeated conditions (GSN and PSN).

`fit_gsn` estimates the covariance of signal and noise across units; `fit_psn` denoises condition averages
with them.  Arrays in, results out: data ``(n_units, n_conditions, n_trials)``, NaN = missing trial.
"""

from conform_app.psn.covariance import GSNResult, fit_gsn
from conform_app.psn.estimator import fit_psn
from conform_app.psn.result import PSNResult

__all__ = ["GSNResult", "PSNResult", "fit_gsn", "fit_psn"]
