# SPDX-License-Identifier: Apache-2.0
"""PSN as a scikit-learn estimator.

Units are the rows, as everywhere in this package: X is (n_units, n_conditions, n_trials) for `fit`, and
(n_units, m) or (n_units, m, k) for `transform`, with the same units in the same order.
"""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from conform_app.errors import DataError
from conform_app.psn.estimator import fit_psn


class PSN(TransformerMixin, BaseEstimator):
    """Partition signal and noise: fit on repeated trials, denoise averages or single trials.

    Parameters
    ----------
    mode, threshold, basis, criterion, pooling, max_folds, shrink
        As in :func:`conform_app.psn.fit_psn`.

    Attributes
    ----------
    result_ : PSNResult
    denoised_ : ndarray, (n_units, n_conditions)
        Denoised averages of the training data.
    n_units_in_ : int
    """

    def __init__(
        self,
        mode: str = "cv",
        threshold: str | None = None,
        basis: str | np.ndarray | None = None,
        criterion: str | None = None,
        pooling: float | None = None,
        max_folds: int = 12,
        shrink: bool = True,
    ) -> None:
        self.mode = mode
        self.threshold = threshold
        self.basis = basis
        self.criterion = criterion
        self.pooling = pooling
        self.max_folds = max_folds
        self.shrink = shrink

    def fit(self, X: np.ndarray, y: None = None) -> PSN:
        """Fit to repeated trials.

        Parameters
        ----------
        X : array_like, (n_units, n_conditions, n_trials)
            NaN marks a missing trial.
        y : ignored
        """
        self.result_ = fit_psn(X, **self.get_params(deep=False))
        self.denoised_ = self.result_.denoised
        self.n_units_in_ = len(self.denoised_)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Denoise responses of the same units, (n_units, ...)."""
        check_is_fitted(self, "result_")
        return self.result_.apply(X)

    def fit_transform(self, X: np.ndarray, y: None = None) -> np.ndarray:
        """Fit, and return the denoised averages (n_units, n_conditions)."""
        return self.fit(X).denoised_

    def score(self, X: np.ndarray, y: None = None) -> float:
        """How well the denoised averages predict other repeats of the same conditions.

        Parameters
        ----------
        X : array_like, (n_units, n_conditions) or (n_units, n_conditions, n_trials)
            Repeats that the fit has not seen.

        Returns
        -------
        float
            Explained share of the variance over conditions, summed over units; at most 1, and below it by the
            noise of X.
        """
        check_is_fitted(self, "result_")
        X = np.asarray(X, dtype=np.float64)
        if X.ndim not in (2, 3) or X.shape[:2] != self.denoised_.shape:
            raise DataError(
                f"Responses of shape {X.shape} are no repeats of the {self.denoised_.shape} fitted.",
                "Give the same units and conditions in the same order.",
            )
        target = X if X.ndim == 2 else np.nanmean(X, axis=2)
        use = np.isfinite(target) & self.result_.valid[:, None]
        error = np.where(use, target - self.denoised_, 0.0)
        mean = np.where(use, target, 0.0).sum(axis=1) / np.maximum(use.sum(axis=1), 1)
        spread = np.where(use, target - mean[:, None], 0.0)
        return float(1 - (error**2).sum() / (spread**2).sum())
