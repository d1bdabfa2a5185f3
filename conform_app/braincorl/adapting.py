# SPDX-License-Identifier: Apache-2.0
r"""Adapting to a new participant: context images and their betas -> encoding weights per voxel.

Four estimators: ridge (the participant alone), prior (closed form), transformer, and *stacked*: for every
voxel ``w = sum_m a_m w_m`` with ``a`` on the simplex over the estimators at hand and the voxel's mean,
chosen by cross-validation within the context (`stacking`).

The predictive variance is the posterior's under the prior (under the isotropic one where there is none),
times one factor c per participant that makes it agree with the held-out errors::

    mean (y - held-out prediction)^2 = c mean(variance) + noise

With few images some of the signal cannot be told from noise, namely what lies in directions that the prior
thinks small.  The prior knows how much that was for training participants (`fit_prior`), and the noise is
lowered by as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from conform_app.braincorl.checks import check_betas, check_context_size, check_features, match_names
from conform_app.braincorl.linear import Linear
from conform_app.braincorl.posterior import Posterior
from conform_app.braincorl.prior import Prior, flat_prior, with_ones
from conform_app.braincorl.ridge import fit_ridge
from conform_app.braincorl.stacking import Estimator, choose_shares, predict_held_out
from conform_app.errors import UsageError

METHODS = ("stacked", "transformer", "prior", "ridge")
CALIBRATION = (0.25, 8.0)
LEAST_NOISE = 0.2  # of its first estimate
TYPICAL = 100  # images' worth of what the training participants' share of signal says


@dataclass(frozen=True)
class Adapted(Linear):
    """Encoding model of one participant.

    Attributes
    ----------
    method : str
    weights : ndarray (n_voxels, E + 1), float32
        Bias last; NaN for voxels that were constant or not finite.
    valid : ndarray (n_voxels,) of bool
    parts : dict of str to ndarray (n_voxels, E + 1)
        Weights of each estimator that went in ("mean": the bias alone).
    shares : dict of str to ndarray (n_voxels,)
        Share of each; sums to 1.
    cv_r2 : dict of str to ndarray (n_voxels,)
        Held-out explained variance within the context, against measured betas (empty for "transformer").
    noise_sd : ndarray (n_voxels,)
        Estimated noise of a single beta.
    calibration : float
        Factor on the posterior variance.
    context : ndarray (S, E)
        Context features, by which test images that were seen are recognised.
    posterior : Posterior
        Of all voxels that are valid; what `predictive_sd` is made from.
    """

    method: str
    weights: np.ndarray = field(repr=False)
    valid: np.ndarray = field(repr=False)
    parts: dict[str, np.ndarray] = field(repr=False)
    shares: dict[str, np.ndarray] = field(repr=False)
    cv_r2: dict[str, np.ndarray] = field(repr=False)
    noise_sd: np.ndarray = field(repr=False)
    calibration: float
    context: np.ndarray = field(repr=False)
    posterior: Posterior = field(repr=False)

    def predictive_sd(self, features, *, noise: bool = False) -> np.ndarray:
        """Standard deviation of the predicted response.

        Parameters
        ----------
        features : array (n_images, E)
        noise : bool
            Of a single measured beta: with the noise of the measurement.

        Returns
        -------
        ndarray (n_voxels, n_images), float32
            In the unit of the betas fitted; NaN for voxels without a model.
        """
        x = with_ones(check_features(features, self.weights.shape[1] - 1))
        out = np.full((len(self.weights), len(x)), np.nan, np.float32)
        variance = self.calibration * self.posterior.variance(x)
        if noise:
            variance = variance + self.noise_sd[self.valid, None] ** 2
        out[self.valid] = np.sqrt(variance)
        return out


def adapt(
    features,
    betas,
    *,
    method: str = "stacked",
    model=None,
    prior: Prior | None = None,
    feature_names: Sequence[str] | None = None,
    beta_names: Sequence[str] | None = None,
    n_folds: int = 5,
    seed: int = 0,
    block: int | None = None,
    memory: int | None = None,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Adapted:
    """Encoding model of a new participant from context images.

    Parameters
    ----------
    features : array (n_images, E)
        Unit-norm image features.
    betas : array (n_voxels, n_images)
        One column per row of ``features``; or, with names, per trial.
    method : {"stacked", "transformer", "prior", "ridge"}
        "stacked" combines ridge with whichever of ``model`` and ``prior`` are given.
    model : BraInCoRL, optional
    prior : Prior, optional
    feature_names, beta_names : sequences of str, optional
        Stimulus of each row of ``features`` and of each column of ``betas``; matched by name.
    n_folds, seed : int
        Cross-validation within the context.
    block, memory : int, optional
        Voxels at a time, or bytes, for the transformer.
    precision : {"auto", "float32", "bfloat16"}
        Of the transformer's matrix products (see `transformer_weights`).
    progress : callable (done, total), optional
        Of the transformer.

    Returns
    -------
    Adapted

    Raises
    ------
    UsageError
        An unknown method, or one whose model or prior is missing.
    DataError
        Features or betas that do not fit (see `checks`).

    References
    ----------
    Yu et al. 2025, arXiv:2505.15813.
    """
    _check_method(method, model, prior)
    features, betas, valid = _check_data(features, betas, model, prior, feature_names, beta_names)
    y = betas[valid].astype(np.float64)
    posterior = (prior or flat_prior(features.shape[1] + 1)).condition(features, y, seed=seed)
    estimators = _estimators(
        model, prior, seed, block=block, memory=memory, precision=precision, progress=progress
    )
    wanted = [method]
    if method == "stacked":
        wanted = ["mean", "ridge"] + ["prior"] * (prior is not None) + ["transformer"] * (model is not None)
    parts = {m: posterior.weights() if m == "prior" else estimators[m](features, y) for m in wanted}
    held_out = (
        {} if method == "transformer" else predict_held_out(features, y, estimators, wanted, n_folds, seed)
    )
    shares = {method: np.ones(len(y))}
    if method == "stacked":
        signal = y.var(axis=1) - posterior.noise_variance()
        shares = choose_shares(held_out, y, signal, "prior" if "prior" in wanted else None)
    noise = _noise(posterior, y, prior)
    calibration = 1.0
    if held_out:
        delivered = sum(shares[m][:, None] * held_out[m] for m in wanted)
        calibration = _calibration(features, y, delivered, posterior, noise)
    spread = np.maximum(y.var(axis=1), np.finfo(float).tiny)
    r2 = {m: 1 - ((y - p) ** 2).mean(axis=1) / spread for m, p in held_out.items()}

    def whole(values: np.ndarray) -> np.ndarray:
        out = np.full((len(valid), *np.shape(values)[1:]), np.nan, np.float32)
        out[valid] = values
        return out

    return Adapted(
        method,
        whole(sum(shares[m][:, None] * parts[m] for m in wanted)),
        valid,
        *({m: whole(v) for m, v in table.items()} for table in (parts, shares, r2)),
        whole(np.sqrt(noise)),
        calibration,
        features,
        posterior,
    )


def _check_data(features, betas, model, prior: Prior | None, feature_names, beta_names):
    """Features (one row per column of the betas), betas, and which voxels can be fitted."""
    n_features = model.sizes.features if model is not None else None
    n_features = prior.n_features if prior is not None else n_features
    features = check_features(features, n_features)
    if (feature_names is None) != (beta_names is None):
        raise UsageError("Names are given for features or for betas only.", "Give both, or none.")
    if beta_names is not None:
        features = features[match_names(feature_names, beta_names)]
    check_context_size(len(features), len(features))
    return features, *check_betas(betas, len(features))


def _estimators(model, prior: Prior | None, seed: int, **options) -> dict[str, Estimator]:
    """Functions (features, y) -> weights."""

    def transformer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        from conform_app.braincorl.inference import transformer_weights

        # A model of ours knows the spread of its training betas; a published one takes betas as they are.
        spread = getattr(model, "card", {}).get("beta_sd")
        unit = spread / np.median(y.std(axis=1)) if spread else 1.0
        return transformer_weights(model, x, y * unit, **options) / unit

    return {
        "mean": lambda x, y: np.column_stack([np.zeros((len(y), x.shape[1])), y.mean(axis=1)]),
        "ridge": lambda x, y: fit_ridge(x, y, seed=seed)[0],
        "prior": lambda x, y: prior.condition(x, y, seed=seed).weights(),
        "transformer": transformer,
    }


def _check_method(method: str, model, prior) -> None:
    if method not in METHODS:
        raise UsageError(f"There is no method {method!r}.", f"Methods are {', '.join(METHODS)}.")
    for name, given in (("transformer", model), ("prior", prior)):
        if method == name and given is None:
            raise UsageError(
                f"Method {name!r} needs a trained {'model' if name == 'transformer' else 'prior'}.",
                "Load one, or use method='ridge', which needs none.",
            )
    if model is not None and prior is not None and model.sizes.features != prior.n_features:
        raise UsageError(
            f"The model reads {model.sizes.features} features and the prior {prior.n_features}.",
            "Give a model and a prior of the same features.",
        )


def _noise(posterior: Posterior, y: np.ndarray, prior: Prior | None) -> np.ndarray:
    """Noise variance (n_voxels,): the posterior's, less the signal that passes for noise.

    For the mean over voxels, with a share k of the signal in it: ``estimate = noise + k signal``.  How much
    signal there is, few images say less well than the training participants.
    """
    noise = posterior.noise_variance()
    n = y.shape[1]
    k = prior.signal_in_noise(n) if prior is not None else 0.0
    if k == 0:
        return noise
    total = y.var(axis=1, ddof=1).mean()
    own = max(total - noise.mean(), 0.0) / (1 - k)
    signal = (n * own + TYPICAL * prior.card["signal_share"] * total) / (n + TYPICAL)
    return noise * np.clip(1 - k * signal / noise.mean(), LEAST_NOISE, 1.0)


def _calibration(features, y, delivered, posterior: Posterior, noise: np.ndarray) -> float:
    """Factor c with ``sum (y - prediction)^2 = sum (c variance + noise)`` over held-out images.

    The variance is that with all context images, the error that with a fold left out: c is a little large.
    """
    some = np.linspace(0, len(y) - 1, min(len(y), 1000)).astype(int)
    images = np.linspace(0, len(features) - 1, min(len(features), 50)).astype(int)
    part = Posterior(posterior.rotations, posterior.noise, posterior.moments[some], posterior.y[some])
    from_noise = noise[some].mean()
    expected = part.variance(with_ones(features[images])).mean()
    observed = ((y[some] - delivered[some]) ** 2).mean()
    return float(np.clip((observed - from_noise) / max(expected, np.finfo(float).tiny), *CALIBRATION))
