# SPDX-License-Identifier: Apache-2.0
r"""Weights of a new voxel in closed form, given a learned prior.

For a voxel with responses ``y (S,)`` to images with features ``X (S, P)`` (a column of ones included)::

    y = X w + e,   e ~ N(0, s^2 d I),   w ~ N(s m_k, s^2 C_k)  with probability p(k, d, s)

k is the prior's component, s the voxel's own scale, d its noise variance in units of s^2.  With C = L L' and
the singular value decomposition X L = U diag(q) V', one rotation ``U'y`` serves all voxels, and for every
(k, d, s) the evidence, the mean and the variance are sums over the r singular values:

    log p(y) = -1/2 [ sum_i log(s^2 (q_i^2 + d)) + (S - r) log(s^2 d) + A/s^2 - 2 B/s + C ] + const
    w|y      = s m + L V diag(q / (q^2 + d)) (U'y - s U'Xm)

(A, B, C: the quadratic forms of y and Xm under the inverse covariance at s = 1).  s and d are not known:
both run over a grid, p(k, d, s) is estimated from all voxels of the participant by EM (empirical Bayes),
and each voxel's answer is the average over the grid under its own evidence.  float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from conform_app.braincorl.ridge import folds_of

NOISE = np.logspace(-1.5, 2.5, 17)  # noise variance over the prior's mean signal variance
SCALE = 2.0 ** np.arange(-3.5, 3.51, 0.5)  # a voxel's scale over the participant's typical one
TINY = 1e-12
MOST_VOXELS = 1500  # voxels that p(k, d, s) is estimated from


@dataclass(frozen=True)
class Rotation:
    """One component of the prior seen through the context images."""

    mean: np.ndarray  # (P,) m
    root: np.ndarray  # (P, P) L
    u: np.ndarray  # (S, r)
    q: np.ndarray  # (r,)
    v: np.ndarray  # (P, r)
    signal: np.ndarray  # (S,) X m

    @classmethod
    def of(cls, x: np.ndarray, mean: np.ndarray, root: np.ndarray) -> Rotation:
        """Singular value decomposition of ``x @ root``; by its Gram matrix where there are many images."""
        z = x @ root
        if len(x) > x.shape[1]:
            squares, v = np.linalg.eigh(z.T @ z)
            q = np.sqrt(np.maximum(squares[::-1], 0))
            keep = q > 1e-6 * q[0]
            q, v = q[keep], v[:, ::-1][:, keep]
            return cls(mean, root, (z @ v) / q, q, v, x @ mean)
        u, q, vt = np.linalg.svd(z, full_matrices=False)
        keep = q > 1e-10 * q[0]
        return cls(mean, root, u[:, keep], q[keep], vt[keep].T, x @ mean)

    def forms(
        self, y: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A and B ``(n_voxels, n_noise)``, C and the log determinant ``(n_noise,)`` at scale 1."""
        ry, rm = y @ self.u, self.signal @ self.u
        inverse = 1 / (self.q[:, None] ** 2 + noise)  # (r, n_noise)
        outside = len(self.u) - len(self.q)
        # What lies outside the r directions is noise alone.
        left_yy = np.maximum((y**2).sum(axis=1) - (ry**2).sum(axis=1), 0) if outside else np.zeros(len(y))
        left_ym = y @ self.signal - ry @ rm if outside else np.zeros(len(y))
        left_mm = max(self.signal @ self.signal - rm @ rm, 0.0) if outside else 0.0
        a = ry**2 @ inverse + left_yy[:, None] / noise
        b = (ry * rm) @ inverse + left_ym[:, None] / noise
        c = rm**2 @ inverse + left_mm / noise
        return a, b, c, -np.log(inverse).sum(axis=0) + outside * np.log(noise)


def log_evidence(a, b, c, log_det, scale: np.ndarray, n_images: int) -> np.ndarray:
    """``log p(y | d, s)`` for every voxel, noise level and scale: (n_voxels, n_noise, n_scale)."""
    s = scale[None, None]
    quadratic = a[..., None] / s**2 - 2 * b[..., None] / s + c[None, :, None]
    return -0.5 * (log_det[None, :, None] + 2 * n_images * np.log(s) + quadratic)


def mixing_weights(evidence: np.ndarray, iterations: int = 100, pseudo: float = 2.0) -> np.ndarray:
    """p(grid point) that makes the voxels' data likely: EM from a flat start, ``pseudo`` voxels kept flat.

    Parameters
    ----------
    evidence : ndarray (n_voxels, n_points)
        Log evidence.

    Returns
    -------
    ndarray (n_points,)
        Sums to 1.
    """
    likelihood = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    n_voxels, n_points = likelihood.shape
    p = np.full(n_points, 1 / n_points)
    for _ in range(iterations):
        counts = p * (likelihood.T @ (1 / (likelihood @ p)))
        new = (counts + pseudo / n_points) / (n_voxels + pseudo)
        if np.abs(new - p).max() < 1e-5:
            return new
        p = new
    return p


@dataclass(frozen=True)
class Posterior:
    """Posterior of many voxels' weights from one set of context images.

    Attributes
    ----------
    rotations : list of Rotation
        One per component.
    noise : ndarray (n_noise,)
        The grid of d, in the prior's units.
    moments : ndarray (n_voxels, K, n_noise, 3), float32
        Posterior probability of (k, d), and with it the mean of s and of s^2.
    y : ndarray (n_voxels, S)
    """

    rotations: list[Rotation] = field(repr=False)
    noise: np.ndarray
    moments: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)

    def weights(self) -> np.ndarray:
        """Posterior mean weights (n_voxels, P)."""
        total = 0.0
        for k, rotation in enumerate(self.rotations):
            one, scaled = self.moments[:, k, :, 0], self.moments[:, k, :, 1]
            gain = rotation.q[:, None] / (rotation.q[:, None] ** 2 + self.noise)  # (r, n_noise)
            ry, rm = self.y @ rotation.u, rotation.signal @ rotation.u
            z = (one @ gain.T) * ry - (scaled @ gain.T) * rm
            total = total + z @ (rotation.root @ rotation.v).T + scaled.sum(axis=1)[:, None] * rotation.mean
        return total

    def noise_variance(self) -> np.ndarray:
        """Posterior mean of the noise variance ``s^2 d`` (n_voxels,)."""
        return self.moments[..., 2].sum(axis=1) @ self.noise

    def variance(self, x: np.ndarray) -> np.ndarray:
        """Posterior variance of the noise-free response to features ``x (Q, P)``: (n_voxels, Q).

        Within each (k, d), plus the spread of the means between them.
        """
        first = second = 0.0
        for k, rotation in enumerate(self.rotations):
            g = x @ rotation.root @ rotation.v  # (Q, r)
            size = ((x @ rotation.root) ** 2).sum(axis=1)  # (Q,)
            ry, rm = self.y @ rotation.u, rotation.signal @ rotation.u
            for j, d in enumerate(self.noise):
                r0, r1, r2 = self.moments[:, k, j].T.astype(np.float64)[..., None]
                if r0.max() < 1e-6:
                    continue
                gain = rotation.q / (rotation.q**2 + d)
                within = np.maximum(size - g**2 @ (gain * rotation.q), 0)
                mean_y = (ry * gain) @ g.T  # mean = mean_y + s mean_m
                mean_m = x @ rotation.mean - g @ (gain * rm)
                first = first + r0 * mean_y + r1 * mean_m
                second = second + r0 * mean_y**2 + 2 * r1 * mean_y * mean_m + r2 * (mean_m**2 + within)
        return np.maximum(second - first**2, 0)


def fit_posterior(
    x: np.ndarray,
    y: np.ndarray,
    means: np.ndarray,
    roots: np.ndarray,
    *,
    block: int = 2000,
    seed: int = 0,
) -> Posterior:
    """Posterior of voxels ``y (n_voxels, S)`` for images ``x (S, P)`` under components ``means``, ``roots``.

    The grid of scales is laid around the participant's own: the median variance of the voxels is matched to
    that of the prior, so betas may be in any unit.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rotations = [Rotation.of(x, mean, root) for mean, root in zip(means, roots, strict=True)]
    # Signal variance over images, an overall offset aside: what the grid's units refer to.
    signal = np.mean([((x - x.mean(axis=0)) @ root).var(axis=0).sum() for root in roots])
    power = np.mean([((x @ root) ** 2).mean(axis=0).sum() for root in roots])
    if signal <= TINY * power:  # all images are one to the features: the offset alone can be learned
        signal = power
    noise = NOISE * signal
    scale = SCALE * np.sqrt(np.median(y.var(axis=1)) / (4 * signal))
    few = y if len(y) <= MOST_VOXELS else y[folds_of(len(y), -(-len(y) // MOST_VOXELS), seed)[0]]
    prior = mixing_weights(_evidence(rotations, few, noise, scale).reshape(len(few), -1))
    moments = np.empty((len(y), len(rotations), len(noise), 3), np.float32)
    powers = scale[:, None] ** np.arange(3)
    for start in range(0, len(y), block):
        part = slice(start, start + block)
        logs = _evidence(rotations, y[part], noise, scale).reshape(len(y[part]), -1) + np.log(prior)
        share = np.exp(logs - logs.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        moments[part] = share.reshape(-1, len(rotations), len(noise), len(scale)) @ powers
    return Posterior(rotations, noise, moments, y)


def _evidence(rotations: list[Rotation], y, noise, scale) -> np.ndarray:
    return np.stack([log_evidence(*r.forms(y, noise), scale, y.shape[1]) for r in rotations], axis=1)
