# SPDX-License-Identifier: Apache-2.0
r"""A prior over voxels' encoding weights, learned in closed form from other participants.

The weights of a voxel (bias last) are ``w = s v`` with its own scale s and ``v ~ sum_k pi_k N(m_k, C_k)``.

From weights: scale each voxel to unit signal, split the voxels into K groups (Gaussian mixture on the leading
principal axes), and take each group's mean and covariance; a group's covariance is shrunk towards the pooled
one, the pooled one towards the identity (oracle-approximating shrinkage, Chen et al. 2010).

From features and betas: EM, starting under the isotropic prior, where posteriors are ridge regressions: the
posterior of every voxel under the current prior (`posterior`), and from posterior means *plus posterior
covariances* the next prior, so that the noise of the betas does not pass for variety of voxels, nor the
penalty's shrinkage for lack of it.

With two participants or more, it is also found out how much of the signal n images leave in the estimated
noise (what lies in directions that the prior thinks small): for the participants themselves, and for half
of them under a prior from the others.  The truth is between; `adapting` needs it for the predictive
variance.

One more component, mean zero and isotropic, is always there: to it go voxels that are unlike all the
learned ones, and there the posterior is ridge regression with evidence-chosen penalty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.braincorl.participants import Participant, as_participants, is_participants
from conform_app.braincorl.posterior import Posterior, Rotation, fit_posterior
from conform_app.errors import DataError, FileFaultError, NoInputError, UsageError

AXES = 20  # principal axes that the voxels are grouped on
LEAST_PER_COMPONENT = 100
CONTEXTS = (10, 20, 50, 100, 200, 500, 1000)  # images at which the prior is tried on those left out
LEFT_OUT_VOXELS = 500
REPEATS = 3
MOST_IN_NOISE = 0.9


@dataclass(frozen=True)
class Prior:
    """Mixture of Gaussians over scaled weights; the last component is the isotropic one.

    Attributes
    ----------
    means : ndarray (K, E + 1)
        Bias last.
    covariances : ndarray (K, E + 1, E + 1)
    shares : ndarray (K,)
        Share of the training voxels in each.
    card : dict
        What it was learned from.
    """

    means: np.ndarray = field(repr=False)
    covariances: np.ndarray = field(repr=False)
    shares: np.ndarray
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        """E, the length of a feature vector."""
        return self.means.shape[1] - 1

    def signal_in_noise(self, n_images: int) -> float:
        """Share of a new participant's signal variance that, with so many images, is taken for noise.

        As `fit_prior` found it with training participants; 0 where that is not known.

        Parameters
        ----------
        n_images : int

        Returns
        -------
        float
            From 0 to 1.
        """
        table = self.card.get("signal_in_noise")
        if not table:
            return 0.0
        sizes, shares = np.array(table, np.float64).T
        return float(np.interp(np.log(n_images), np.log(sizes), shares))

    def condition(self, features: np.ndarray, betas: np.ndarray, *, seed: int = 0) -> Posterior:
        """Posterior of voxels' weights from context images.

        Offsets of betas are a convention of each study, so the bias is held loosely: its variance is the
        learned one twice, plus its squared mean, plus the variance of the signal.

        Parameters
        ----------
        features : ndarray (S, E)
            Unit norm.
        betas : ndarray (n_voxels, S)
        seed : int

        Returns
        -------
        Posterior
        """
        x = with_ones(features)
        return fit_posterior(x, betas, self.means, self._roots(x), seed=seed)

    def _roots(self, x: np.ndarray) -> np.ndarray:
        free = np.array(self.covariances)
        spread = x - x.mean(axis=0)
        for c, mean in zip(free, self.means, strict=True):
            c[-1, -1] += c[-1, -1] + mean[-1] ** 2 + ((spread @ c) * spread).sum(axis=1).mean()
        return np.linalg.cholesky(free)

    def save(self, path: Path | str) -> Path:
        """Write as safetensors (float32) with the card in the header.

        Parameters
        ----------
        path : path

        Returns
        -------
        Path
        """
        from safetensors.numpy import save_file

        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        arrays = {k: np.ascontiguousarray(getattr(self, k), np.float32) for k in ARRAYS}
        save_file(
            arrays, part, metadata={"card": json.dumps({**self.card, "model": "Prior"}, sort_keys=True)}
        )
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: Path | str) -> Prior:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path

        Returns
        -------
        Prior

        Raises
        ------
        NoInputError
            There is no such file.
        FileFaultError
            It is no prior.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise NoInputError(f"There is no prior {path}.", "Give the path of a file that Prior.save wrote.")
        try:
            with safe_open(path, framework="np") as file:
                arrays = {k: file.get_tensor(k).astype(np.float64) for k in ARRAYS}
                card = json.loads((file.metadata() or {}).get("card", "{}"))
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise FileFaultError(f"{path} is not a prior: {error}", "Fit or fetch it again.") from error
        return cls(**arrays, card=card)


ARRAYS = ("means", "covariances", "shares")


def fit_prior(
    weights_or_collection: Any,
    *,
    n_components: int = 4,
    features: np.ndarray | None = None,
    iterations: int = 4,
    max_voxels: int = 4000,
    max_images: int = 4000,
    seed: int = 0,
    left_out: bool = True,
) -> Prior:
    """Learn the prior over voxel weights from training participants.

    Parameters
    ----------
    weights_or_collection : ndarray, sequence of ndarray, or participants
        Weights ``(n_voxels, E + 1)``, bias last, of one or several participants; or features and betas per
        participant: ``name -> (features (n_images, E), betas (n_voxels, n_images))``, or an iterable.
    n_components : int
        Groups of voxels; fewer are used where there are too few voxels.
    features : ndarray (n_images, E), optional
        With weights: typical features, by whose responses voxels are brought to one scale (default: by the
        norm of the weights).
    iterations : int
        With betas: EM steps.
    max_voxels, max_images : int
        With betas: how many voxels and images per participant are used (drawn once).
    seed : int
    left_out : bool
        With betas of two participants or more: also try priors from one half of them on the other half, which
        the predictive standard deviation of `adapt` needs; takes about as long again.

    Returns
    -------
    Prior

    Raises
    ------
    DataError
        Weights of different lengths or too few voxels; for betas see `as_participants`.
    UsageError
        Fewer than one component.
    """
    if n_components < 1:
        raise UsageError(f"A prior of {n_components} components was asked for.", "Give at least 1.")
    if is_participants(weights_or_collection):
        people = as_participants(weights_or_collection)
        limits = (max_voxels, max_images)
        prior = _from_betas(people, n_components, iterations, *limits, seed)
        if len(people) < 2 or not left_out:
            return prior
        halves = [people[i::2] for i in range(2)]
        fits = [
            (_from_betas(a, n_components, iterations, *limits, seed), b) for a, b in (halves, halves[::-1])
        ]
        tried = [_signal_in_noise(p, b, max_images, seed) for p, b in ((prior, people), *fits)]
        return replace(prior, card={**prior.card, **_mean_tables(tried)})
    given = weights_or_collection
    several = [given] if isinstance(given, np.ndarray) and given.ndim == 2 else list(given)
    weights = _check_weights(several)
    card = {"source": "weights", "n_voxels": [len(w) for w in several]}
    prior = _from_weights(_unit_scale(weights, features), n_components, seed)
    return replace(prior, card={**card, "n_components": len(prior.shares) - 1})


def with_ones(features: np.ndarray) -> np.ndarray:
    """Features with a column of ones for the bias, float64 (n_images, E + 1)."""
    return np.column_stack([np.asarray(features, np.float64), np.ones(len(features))])


def _check_weights(several: Sequence[np.ndarray]) -> np.ndarray:
    several = [np.asarray(w, np.float64) for w in several]
    widths = {w.shape[1] if w.ndim == 2 else None for w in several}
    if len(widths) != 1 or None in widths:
        raise DataError(
            f"Weights have shapes {[w.shape for w in several]}.",
            "Give (voxels, features + 1) per participant.",
        )
    weights = np.concatenate(several)
    weights = weights[np.isfinite(weights).all(axis=1) & (np.abs(weights[:, :-1]).max(axis=1) > 0)]
    if len(weights) < 2:
        raise DataError(
            "Fewer than two voxels have weights that are finite and not zero.", "Give more voxels."
        )
    return weights


def _unit_scale(weights: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    if features is None:
        return weights / np.linalg.norm(weights[:, :-1], axis=1, keepdims=True)
    signal = (weights[:, :-1] @ np.asarray(features, np.float64).T).std(axis=1, keepdims=True)
    return weights / np.maximum(signal, 1e-12 * signal.max())


def _from_weights(weights: np.ndarray, n_components: int, seed: int) -> Prior:
    """Mixture from weights of one scale."""
    member = _groups(weights, n_components, seed)
    sums = member.sum(axis=0)
    means = (member.T @ weights) / sums[:, None]
    scatter = []
    for k, mean in enumerate(means):
        left = (weights - mean) * np.sqrt(member[:, [k]])
        scatter.append(left.T @ left)
    return _assemble(means, np.array(scatter), sums)


def _groups(weights: np.ndarray, n_components: int, seed: int) -> np.ndarray:
    """Membership (n_voxels, K) by a Gaussian mixture on the leading principal axes."""
    n_components = min(n_components, max(1, len(weights) // LEAST_PER_COMPONENT))
    if n_components == 1:
        return np.ones((len(weights), 1))
    from sklearn.mixture import GaussianMixture

    centred = weights - weights.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    scores = centred @ axes[:, ::-1][:, :AXES]
    scores /= scores[:, 0].std()
    mixture = GaussianMixture(n_components, covariance_type="diag", reg_covar=1e-5, random_state=seed)
    member = mixture.fit(scores).predict_proba(scores)
    return member[:, member.sum(axis=0) >= LEAST_PER_COMPONENT / 4]


def _assemble(means: np.ndarray, scatter: np.ndarray, sums: np.ndarray) -> Prior:
    """Shrunk covariances from scatter matrices, and the isotropic component."""
    n_dim = means.shape[1]
    pooled = shrink_covariance(scatter.sum(axis=0) / sums.sum(), sums.sum())
    own = (sums / (sums + n_dim))[:, None, None]
    covariances = own * (scatter / sums[:, None, None]) + (1 - own) * pooled
    flat = np.eye(n_dim) * ((np.trace(pooled) + (means[:, :-1] ** 2).sum(axis=1).mean()) / n_dim)
    return Prior(
        np.vstack([means, np.zeros(n_dim)]),
        np.concatenate([covariances, flat[None]]),
        np.append(sums / sums.sum(), 0.0),
    )


def shrink_covariance(covariance: np.ndarray, n: float) -> np.ndarray:
    """Oracle-approximating shrinkage towards the identity (Chen et al. 2010) of a covariance from n draws."""
    p = len(covariance)
    size, square = np.trace(covariance), (covariance**2).sum()
    below = (n + 1 - 2 / p) * (square - size**2 / p)
    rho = 1.0 if below <= 0 else min(1.0, ((1 - 2 / p) * square + size**2) / below)
    rho = max(rho, 1e-4)  # never singular
    return (1 - rho) * covariance + rho * size / p * np.eye(p)


def _from_betas(
    people: list[Participant], n_components: int, iterations: int, max_voxels: int, max_images: int, seed: int
) -> Prior:
    rng = np.random.default_rng(seed)
    data = []
    for person in people:
        betas = person.some(max_voxels, rng)
        images = np.sort(rng.permutation(len(person.features))[:max_images])
        betas = betas[:, images]
        betas = betas[np.ptp(betas, axis=1) > 0].astype(np.float64)
        data.append((with_ones(person.features[images]), betas))
    flat = flat_prior(data[0][0].shape[1])
    start = [_unit_scale(flat.condition(x[:, :-1], y, seed=seed).weights(), x[:, :-1]) for x, y in data]
    prior = _from_weights(_check_weights(start), n_components, seed)
    for _ in range(iterations):
        prior = _em_step(prior, data, seed)
    card = {
        "source": "betas",
        "participants": [person.name for person in people],
        "n_voxels": [len(y) for _, y in data],
        "n_images": [len(x) for x, _ in data],
        "n_components": len(prior.shares) - 1,
        "iterations": iterations,
    }
    return replace(prior, card=card)


def _signal_in_noise(
    prior: Prior, people: list[Participant], max_images: int, seed: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """Per participant: signal's share of the variance, and (images, share of the signal in the noise).

    ``estimate(n) = noise + share(n) signal``, where the noise is the estimate from all images.
    """
    rng = np.random.default_rng(seed)
    out = []
    for person in people:
        y = person.some(LEFT_OUT_VOXELS, rng).astype(np.float64)
        images = rng.permutation(len(person.features))[:max_images]
        x, y = person.features[images], y[:, images]
        noise = prior.condition(x, y, seed=seed).noise_variance().mean()
        total = y.var(axis=1, ddof=1).mean()
        signal = max(total - noise, 0.02 * noise)
        rows = []
        for n in (n for n in CONTEXTS if 3 * n <= len(x)):
            found = []
            for start in range(0, min(REPEATS, len(x) // n) * n, n):
                some = y[:, start : start + n]
                some = some[np.ptp(some, axis=1) > 0]
                found.append(prior.condition(x[start : start + n], some, seed=seed).noise_variance().mean())
            rows.append((n, float(np.clip((np.mean(found) - noise) / signal, 0, MOST_IN_NOISE))))
        out.append((float(signal / total), rows))
    return out


def _mean_tables(tried: list) -> dict[str, Any]:
    """Mean over participants learned from, and over those left out, then of the two.

    A prior is better than one from half the participants, and worse than it looks on its own.
    """
    inside, outside = tried[0], [person for half in tried[1:] for person in half]
    table = []
    for n in sorted({n for _, rows in outside for n, _ in rows}):
        means = [np.mean([v for _, rows in side for m, v in rows if m == n]) for side in (inside, outside)]
        table.append([n, float(np.mean(means))])
    return {"signal_in_noise": table, "signal_share": float(np.mean([share for share, _ in outside]))}


def flat_prior(n_dim: int) -> Prior:
    """The isotropic component alone: ridge regression whose penalty and noise the evidence chooses."""
    return Prior(np.zeros((1, n_dim)), np.eye(n_dim)[None], np.ones(1))


def _em_step(prior: Prior, data: list[tuple[np.ndarray, np.ndarray]], seed: int) -> Prior:
    """One EM step: every voxel at its most probable noise and mean scale, its component soft."""
    n_learned = len(prior.shares) - 1
    n_dim = prior.means.shape[1]
    sums = np.zeros(n_learned)
    first, second = np.zeros((n_learned, n_dim)), np.zeros((n_learned, n_dim, n_dim))
    roots = [np.linalg.cholesky(c) for c in prior.covariances[:n_learned]]
    for x, y in data:
        posterior = prior.condition(x[:, :-1], y, seed=seed)
        best = posterior.moments[..., 0].sum(axis=1).argmax(axis=1)
        noise, scale = posterior.noise[best], posterior.moments[..., 1].sum(axis=(1, 2)).astype(np.float64)
        for k in range(n_learned):
            member = posterior.moments[:, k, :, 0].sum(axis=1).astype(np.float64)
            rotation = Rotation.of(x, prior.means[k], roots[k])
            gain = rotation.q / (rotation.q**2 + noise[:, None])
            z = gain * (y / scale[:, None] @ rotation.u - rotation.signal @ rotation.u)
            map_back = rotation.root @ rotation.v
            v = rotation.mean + z @ map_back.T
            lost = member @ (gain * rotation.q)  # what the data took off the prior's variance, per direction
            covariance = member.sum() * (rotation.root @ rotation.root.T) - (map_back * lost) @ map_back.T
            sums[k] += member.sum()
            first[k] += member @ v
            second[k] += (v * member[:, None]).T @ v + covariance
    sums = np.maximum(sums, 1e-3)
    means = first / sums[:, None]
    scatter = second - sums[:, None, None] * means[:, :, None] * means[:, None, :]
    return _assemble(means, (scatter + scatter.transpose(0, 2, 1)) / 2, sums)
