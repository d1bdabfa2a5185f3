# SPDX-License-Identifier: Apache-2.0
"""PSN as a scikit-learn estimator.

Two forms of input.  Responses by unit, as everywhere in this package: X is (n_units, n_conditions, n_trials)
for `fit`, and (n_units, m) or (n_units, m, k) for `transform`, with the same units in the same order.  Or
single trials as scikit-learn has them: X (n_trials, n_units) with the condition of each trial in y for `fit`,
and (m, n_units) for `transform`, for pipelines such as ``make_pipeline(PSN(), LinearSVC())``.
"""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from conform_app.errors import DataError
from conform_app.psn.estimator import fit_psn


class InputError(DataError, ValueError):
    """Data that cannot be used, as scikit-learn expects to hear it."""


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
    classes_ : ndarray, (n_conditions,)
        Conditions in the order of `denoised_`; only where trials came with conditions.
    n_units_in_ : int
    n_features_in_ : int
        The same, where trials came with conditions.
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

    def __sklearn_tags__(self) -> Tags:
        """Say what scikit-learn should know: conditions are needed, 3-D data are welcome."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def fit(self, X: np.ndarray, y: np.ndarray | None = None) -> PSN:
        """Fit to repeated trials.

        Parameters
        ----------
        X : array_like, (n_units, n_conditions, n_trials) or (n_trials, n_units)
            In the first form NaN marks a missing trial.
        y : array_like, (n_trials,)
            Condition of each trial in the second form; ignored in the first.

        Returns
        -------
        PSN
            Itself.

        Raises
        ------
        InputError
            If X cannot be used; it is both a DataError and a ValueError.
        """
        # of an earlier fit to the other form
        for name in ("classes_", "n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)
        data = X if _is_3d(X) else self._by_condition(X, y)
        try:
            self.result_ = fit_psn(data, **self.get_params(deep=False))
        except DataError as error:
            raise InputError(error.message, error.remedy) from error
        self.denoised_ = self.result_.denoised
        self.n_units_in_ = len(self.denoised_)
        return self

    def _by_condition(self, X: np.ndarray, y: np.ndarray | None) -> np.ndarray:
        """Trials (n_trials, n_units) as (n_units, n_conditions, n_repeats), NaN where there are fewer."""
        if y is None:
            raise InputError(
                "This PSN requires y to be passed, but the target y is None: the condition of each trial.",
                "Give X (n_trials, n_units) with y, or X (n_units, n_conditions, n_trials).",
            )
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, condition = np.unique(y, return_inverse=True)
        order = np.argsort(condition, kind="stable")
        counts = np.bincount(condition)
        if counts.max() < 2:
            raise InputError(
                "Unknown label type: no condition is repeated.", "y must name the condition of each trial."
            )
        repeat = np.empty(len(y), dtype=int)
        repeat[order] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
        data = np.full((X.shape[1], counts.size, counts.max()), np.nan)
        data[:, condition, repeat] = X.T
        return data

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Denoise other responses of the same units.

        Parameters
        ----------
        X : array_like, (n_units, ...), or (m, n_units) after a fit to trials
            Averages in the first form, single trials in the second.

        Returns
        -------
        ndarray, as X, float64
        """
        check_is_fitted(self, "result_")
        if hasattr(self, "classes_"):
            X = validate_data(self, X, dtype=np.float64, reset=False)
            return np.ascontiguousarray(self.result_.apply(X.T, n_trials=1).T)
        return self.result_.apply(X)

    def fit_transform(self, X: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """Fit, and return what was fitted to, denoised.

        Parameters
        ----------
        X, y
            As `fit`.

        Returns
        -------
        ndarray, float64
            Averages (n_units, n_conditions), or trials (n_trials, n_units), as X was given.

        Raises
        ------
        InputError
            As `fit`.
        """
        self.fit(X, y)
        return self.denoised_ if _is_3d(X) else self.transform(X)

    def score(self, X: np.ndarray, y: np.ndarray | None = None) -> float:
        """How well the denoised averages predict other repeats of the same conditions.

        Parameters
        ----------
        X : array_like, (n_units, n_conditions), (n_units, n_conditions, n_trials), or (m, n_units)
            Repeats that the fit has not seen; the last form after a fit to trials.
        y : array_like, (m,)
            Condition of each trial in the last form.

        Returns
        -------
        float
            Explained share of the variance over conditions, summed over units; at most 1, and below it by the
            noise of X.

        Raises
        ------
        InputError
            If X holds other units or conditions than those fitted.
        """
        check_is_fitted(self, "result_")
        if hasattr(self, "classes_"):
            target, guess = self._pairs(X, y)
        else:
            X = np.asarray(X, dtype=np.float64)
            if X.ndim not in (2, 3) or X.shape[:2] != self.denoised_.shape:
                raise InputError(
                    f"Responses of shape {X.shape} are no repeats of the {self.denoised_.shape} fitted.",
                    "Give the same units and conditions in the same order.",
                )
            target, guess = X if X.ndim == 2 else np.nanmean(X, axis=2), self.denoised_
        use = np.isfinite(target) & self.result_.valid[:, None]
        error = np.where(use, target - guess, 0.0)
        mean = np.where(use, target, 0.0).sum(axis=1) / np.maximum(use.sum(axis=1), 1)
        spread = np.where(use, target - mean[:, None], 0.0)
        return float(1 - (error**2).sum() / (spread**2).sum())

    def _pairs(self, X: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Trials (n_units, m), and the denoised average of the condition of each."""
        X, y = validate_data(self, X, y, dtype=np.float64, reset=False)
        place = np.minimum(np.searchsorted(self.classes_, y), self.classes_.size - 1)
        if not np.array_equal(self.classes_[place], y):
            raise InputError("y names conditions that were not fitted.", "Leave out trials of others.")
        return X.T, self.denoised_[:, place]


def _is_3d(X: object) -> bool:
    ndim = getattr(X, "ndim", None)
    return ndim == 3 or (ndim is None and isinstance(X, (list, tuple)) and np.ndim(X) == 3)
