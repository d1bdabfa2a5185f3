# SPDX-License-Identifier: Apache-2.0
"""Partitioning signal and noise in responses to repeated conditions (GSN and PSN).

`fit_gsn` estimates the covariance of signal and noise across units; `fit_psn` denoises condition averages
with them.  Arrays in, results out: data ``(n_units, n_conditions, n_trials)``, NaN = missing trial.
"""

from conform_app.psn.covariance import GSNResult, fit_gsn
from conform_app.psn.estimator import fit_psn
from conform_app.psn.parcels import ParcelFit, fit_parcels
from conform_app.psn.result import PSNResult
from conform_app.psn.wide import WideFit, fit_sample_space, fit_wide

__all__ = [
    "PSN",
    "GSNResult",
    "PSNResult",
    "ParcelFit",
    "WideFit",
    "fit_gsn",
    "fit_parcels",
    "fit_psn",
    "fit_sample_space",
    "fit_wide",
]


def __getattr__(name: str):
    """The scikit-learn estimator, whose import takes a second, on demand."""
    if name == "PSN":
        from conform_app.psn.transformer import PSN

        return PSN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
