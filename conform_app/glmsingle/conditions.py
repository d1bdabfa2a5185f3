# SPDX-License-Identifier: Apache-2.0
"""From trials to conditions: means, standard errors and t.

For condition c with n_c trials of mean m_c, and residuals pooled over all conditions,

    s^2 = sum_c sum_(i in c) (b_i - m_c)^2 / (N - C),     t_c = m_c / (s / sqrt(n_c)),     N - C degrees,

so that conditions seen once have a t as well.  It asks whether the mean response differs from zero given how
much repeated trials differ, whatever their cause.  Ridge betas are shrunk and their trials not independent:
their t is descriptive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 4096


@dataclass(frozen=True, eq=False)
class ConditionMeans:
    """Averages over the trials of each condition.

    Attributes
    ----------
    condition : (n_conditions,) int
        Index of each condition, ascending.
    n_trials : (n_conditions,) int
        Trials with a beta.
    mean, standard_error, t : (n_voxels, n_conditions) float32
        In the unit of the betas; NaN where there is no trial or, for the last two, no repeat anywhere.
    degrees : int
        Of freedom of t.
    """

    condition: np.ndarray
    n_trials: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray
    t: np.ndarray
    degrees: int


def condition_means(betas, trial_condition: np.ndarray) -> ConditionMeans:
    """Average betas over the trials of each condition, block of voxels by block.

    Parameters
    ----------
    betas : (n_voxels, n_trials) array, or anything that slices by its first axis
        A trial that is NaN in every voxel with betas counts as missing.
    trial_condition : (n_trials,) int

    Returns
    -------
    ConditionMeans
    """
    labels, index = np.unique(np.asarray(trial_condition), return_inverse=True)
    n_voxels = betas.shape[0]
    there = np.zeros(index.size, bool)
    for lo in range(0, n_voxels, BLOCK):
        there |= np.isfinite(np.asarray(betas[lo : lo + BLOCK])).any(axis=0)
    member = np.zeros((index.size, labels.size))
    member[np.flatnonzero(there), index[there]] = 1
    counts = member.sum(axis=0)
    degrees = int(there.sum() - (counts > 0).sum())
    mean = np.empty((n_voxels, labels.size), np.float32)
    error = np.full_like(mean, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        for lo in range(0, n_voxels, BLOCK):
            block = np.asarray(betas[lo : lo + BLOCK], dtype=np.float64)[:, there]
            means = block @ member[there] / counts
            mean[lo : lo + len(block)] = means
            if degrees > 0:
                left = np.square(block - means[:, index[there]]).sum(axis=1, keepdims=True)
                error[lo : lo + len(block)] = np.sqrt(left / degrees / counts)
        t = mean / error
    return ConditionMeans(labels, counts.astype(int), mean, error, t, degrees)
