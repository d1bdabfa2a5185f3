# SPDX-License-Identifier: Apache-2.0
"""What an encoding model is once it is fitted, however that was: weights, and ``beta = w' x + bias``."""

from __future__ import annotations

import numpy as np

from conform_app.braincorl.checks import check_features


class Linear:
    """Encoding models by their weights.

    Attributes
    ----------
    weights : ndarray (n_voxels, E + 1), float32
        Bias last; NaN for voxels without a model.
    """

    weights: np.ndarray

    def predict(self, features) -> np.ndarray:
        """Predicted betas.

        Parameters
        ----------
        features : array (n_images, E)
            Unit norm.

        Returns
        -------
        ndarray (n_voxels, n_images), float32
            In the unit of the betas fitted; NaN for voxels without a model.

        Raises
        ------
        DataError
            Features of another length, not of unit norm, or not finite.
        """
        features = check_features(features, self.weights.shape[1] - 1)
        return self.weights[:, :-1] @ features.T + self.weights[:, -1:]
