# SPDX-License-Identifier: Apache-2.0
r"""A network that begins as an estimator: attention as the powers of a kernel, weights set, not drawn.

Under a Gaussian prior with covariance C the posterior mean of a voxel's weights is ``C X' q(K) y`` with the
kernel ``K = X C X'`` of its context images and a function q of its eigenvalues.  A polynomial will do for q,
and a transformer can compute one exactly in the published architecture:

- input block: a token holds ``p = P (x - mean)``, where ``p . p'`` is the kernel in its r leading directions,
  and y; two entries of opposite sign and fixed size, and one that keeps the sum at zero, make layer norms
  nearly linear;
- layer t = 1 ... T: in all heads but one, ``softmax(e p_s . p_t) ~ (1 + e p_s . p_t) / L``; the last head has
  no preference and takes the 1 away.  Values are m_{t-1} (m_0 = y), so that m_t = K m_{t-1} up to a factor;
- the last head also counts the learned tokens among all, g = R / L, so that coefficients follow context size;
- SwiGLU multiplies: ``silu(a) b - silu(-a) b = a b``.  It makes ``a_s = sum_t (c_t + d_t g) m_t``, one layer
  on ``a_s p_s``; the last layer averages over tokens, and the output block maps back: ``w = P' (...)``.

c and d are fitted by least squares to voxels drawn from the prior.  What training then has left to find is
what differs between voxels: their noise, their group.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from conform_app.braincorl.model import BraInCoRL, ModelSizes, as_sizes
from conform_app.braincorl.participants import as_participants
from conform_app.braincorl.prior import Prior
from conform_app.braincorl.sampling import SyntheticVoxels
from conform_app.errors import DataError, UsageError

STEADY = 16.0  # the two fixed entries of a token
BETA = 0.25  # y as a token holds it
COUNT = 3.0  # entry of the learned tokens that is counted
LARGE = 10.0  # factor on a p, so that what follows need not be large
SHARPNESS = 0.5  # e, at 100 images
PENALTY = 1e-3
CONTEXTS = (20, 30, 50, 100, 200, 300)
SCALARS = 6  # y, g, a, the balance and the two fixed entries; m_1 ... m_T come on top


def start_from_prior(
    sizes: ModelSizes | str, prior: Prior, source, *, beta_sd: float = 1.0, n_voxels: int = 64, seed: int = 0
) -> BraInCoRL:
    """Network whose first answer is near the prior's posterior mean; to be trained on.

    Parameters
    ----------
    sizes : ModelSizes or str
        One input block, at least three layers and two heads.  The kernel keeps as many directions as there is
        width (less some ten entries) and half the SwiGLU's width.
    prior : Prior
    source : participants
        Whose images the coefficients are fitted on (see `participants`); betas are not used.
    beta_sd : float
        Standard deviation of the betas that the network will be given.
    n_voxels, seed : int
        Voxels drawn per context size for the coefficients.

    Returns
    -------
    BraInCoRL
        In training mode, float32.

    Raises
    ------
    UsageError
        Sizes in which the estimator has no place.
    DataError
        Features of another dimension than the prior's.

    References
    ----------
    von Oswald et al. 2023, Transformers learn in-context by gradient descent, ICML.
    """
    s = as_sizes(sizes)
    people = as_participants(source)
    if s.n_blocks != 1 or s.layers < 3 or s.heads < 2 or s.width < 2 * SCALARS + s.layers or s.ffn < 8:
        raise UsageError(
            f"A network of {s} cannot begin as an estimator.",
            "Give one block, at least three layers and two heads, and a width of 32 or more.",
        )
    if not prior.n_features == s.features == people[0].features.shape[1]:
        raise DataError(
            f"The model reads {s.features} features, the prior {prior.n_features}, and images have "
            f"{people[0].features.shape[1]}.",
            "Use one feature extractor for all.",
        )
    return _Layout(s, prior, np.concatenate([p.features for p in people])).build(
        people, beta_sd, n_voxels, seed
    )


class _Layout:
    """Which entry of a token holds what, and the tensors that make it so."""

    def __init__(self, sizes: ModelSizes, prior: Prior, features: np.ndarray) -> None:
        self.sizes, self.prior = sizes, prior
        self.degree = max(1, sizes.layers - 2)
        self.rank = min(
            sizes.width - SCALARS - self.degree, (sizes.ffn - 4) // 2, sizes.features, len(features) - 1
        )
        r = self.rank
        self.p = np.arange(r)
        self.y, self.m = r, [r, *range(r + 1, r + 1 + self.degree)]  # m_0 = y
        self.g, self.a, self.balance, self.steady = r + 1 + self.degree + np.arange(4)
        self.mean = features.mean(axis=0).astype(np.float64)
        self.project, self.leading = _directions(prior, features - self.mean, r)
        # Root mean square of a token: what layer norms divide by.
        self.size = math.sqrt((2 * STEADY**2 + 2 + 2 * BETA**2) / sizes.width)

    def build(self, people, beta_sd: float, n_voxels: int, seed: int) -> BraInCoRL:
        torch.manual_seed(seed)
        model = BraInCoRL(self.sizes)
        with torch.no_grad():
            self._input(model, beta_sd)
            for number, block in enumerate(model.transformer):
                for norm in (block.layer_norm_1, block.layer_norm_2):
                    norm.weight.fill_(self.size)
                    norm.weight[self.steady : self.steady + 2] = 0  # they are there for the norm alone
                block.attn.out_proj.weight.zero_()
                block.attn.out_proj.bias.zero_()
                block.ffn.linear2.weight.zero_()
                block.ffn.linear2.bias.zero_()
                if number < self.degree:
                    self._power(block.attn, number)
            self._output(model)
            c, d, gain = self._fit(
                model, SyntheticVoxels(people, self.prior, beta_sd=beta_sd), n_voxels, seed
            )
            self._combine(model.transformer[self.degree - 1].ffn, c, d)
            self._multiply(model.transformer[-2].ffn)
            self._read_out(model, gain)
        return model.train()

    def _input(self, model: BraInCoRL, beta_sd: float) -> None:
        block = model.early_layers[0]
        block.block[-1].weight.zero_()
        block.block[-1].bias.zero_()
        bypass = torch.zeros_like(block.bypass.weight)
        bypass[: self.rank, :-1] = torch.from_numpy(self.project).float()
        bypass[self.y, -1] = BETA / beta_sd
        block.bypass.weight.copy_(bypass)
        block.bypass.bias.zero_()
        block.bypass.bias[: self.rank] = -torch.from_numpy(self.project @ self.mean).float()
        self._balance(block.bypass.weight, block.bypass.bias)
        block.bypass.bias[self.steady], block.bypass.bias[self.steady + 1] = STEADY, -STEADY
        model.cls_token.zero_()
        model.cls_token[..., self.steady], model.cls_token[..., self.steady + 1] = STEADY, -STEADY
        model.cls_token[..., self.g], model.cls_token[..., self.balance] = COUNT, -COUNT

    def _power(self, attn, number: int) -> None:
        """Heads of the kernel, and the even one that takes their constant part away."""
        width, heads = self.sizes.width, self.sizes.heads
        per = width // heads
        sharp = math.sqrt(SHARPNESS * math.sqrt(per) / math.log(100 + self.sizes.registers))
        q, k, v = attn.in_proj_weight.split(width)
        attn.in_proj_bias.zero_()
        q.zero_()
        k[: width - per].zero_()
        factor = 1 / (SHARPNESS * self.leading)
        for head in range(heads - 1):
            kept = np.arange(head, self.rank, heads - 1)[:per]
            rows = head * per + np.arange(len(kept))
            q[rows, kept], k[rows, kept] = sharp, sharp
        for head in range(heads):
            v[head * per].zero_()
            v[head * per, self.m[number]] = 1
            attn.out_proj.weight[self.m[number + 1], head * per] = factor * (
                1 if head < heads - 1 else 1 - heads
            )
        if number == 0:
            v[width - per + 1].zero_()
            v[width - per + 1, self.g] = 1
            attn.out_proj.weight[self.g, width - per + 1] = 1
        self._balance(attn.out_proj.weight)

    def _balance(self, *tensors: torch.Tensor) -> None:
        """What is written to all entries together is taken off one."""
        for tensor in tensors:
            tensor[self.balance] = 0
            tensor[self.balance] = -tensor.sum(dim=0)

    def _output(self, model: BraInCoRL) -> None:
        attn, block = model.transformer[-1].attn, model.weight_pred[0]
        q, _, v = attn.in_proj_weight.split(self.sizes.width)
        q.zero_()
        attn.in_proj_bias.zero_()
        v.copy_(torch.eye(self.sizes.width))
        attn.out_proj.weight[self.p, self.p] = 1
        self._balance(attn.out_proj.weight)
        block.block[0].weight[self.steady : self.steady + 2] = 0
        block.block[-1].weight.zero_()
        block.block[-1].bias.zero_()
        block.bypass.weight.zero_()
        block.bypass.bias.zero_()

    def _fit(self, model: BraInCoRL, voxels: SyntheticVoxels, n_voxels: int, seed: int):
        """Coefficients c, d of the powers, by least squares on responses to query images without noise."""
        gram, target, squares, count = 0.0, 0.0, 0.0, 0
        for n in CONTEXTS:
            n = min(n, max(2, min(len(p.features) for p in voxels.people) - 50))
            batch = voxels.draw(np.random.default_rng([seed, n]), n_voxels, n, 50)
            x, y = torch.from_numpy(batch.context_features), torch.from_numpy(batch.context_betas)
            tokens = model.early_layers(torch.cat([x, y[..., None]], dim=-1))
            t = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
            for block in model.transformer[: self.degree]:
                t, _ = block(t, None, False)
            t = t[:, self.sizes.registers :].double().numpy()
            powers, share = t[..., self.m], t[..., [self.g]]
            terms = np.concatenate([powers, share * powers], axis=-1)  # (V, S, 2 T + 2)
            p = t[..., self.p]
            queries = (batch.query_features - self.mean) @ self.project.T
            answer = np.einsum("vsk,vsr,vqr->vqk", terms, p, queries, optimize=True) / (
                n + self.sizes.registers
            )
            answer, truth = answer.reshape(-1, answer.shape[-1]), batch.query_betas.reshape(-1)
            gram, target = gram + answer.T @ answer, target + answer.T @ truth
            terms = terms.reshape(-1, terms.shape[-1])
            squares, count = squares + terms.T @ terms, count + len(terms)
        # Powers are nearly collinear: of all coefficients that fit about as well, small ones.
        coefficients = np.linalg.solve(gram + PENALTY * np.diag(np.diag(gram)), target)
        gain = np.sqrt(coefficients @ squares @ coefficients / count)  # a is of unit size in the network
        half = len(coefficients) // 2
        return coefficients[:half] / gain, coefficients[half:] / gain, gain

    def _combine(self, ffn, c: np.ndarray, d: np.ndarray) -> None:
        """``a += sum_t c_t m_t + g sum_t d_t m_t``: a linear unit (its gate held open) and a product."""
        hidden = self.sizes.ffn
        last = hidden - 4
        ffn.linear1.weight[[*range(last, hidden), *range(hidden + last, 2 * hidden)]] = 0
        ffn.linear1.bias[[*range(last, hidden), *range(hidden + last, 2 * hidden)]] = 0
        open_gate = 8.0
        ffn.linear1.bias[last] = open_gate
        ffn.linear1.weight[hidden + last, self.m] = torch.from_numpy(c).float()
        ffn.linear2.weight[self.a, last] = 1 / (open_gate / (1 + math.exp(-open_gate)))
        for unit, sign in ((last + 1, 1), (last + 2, -1)):
            ffn.linear1.weight[unit, self.g] = sign
            ffn.linear1.weight[hidden + unit, self.m] = sign * torch.from_numpy(d).float()
            ffn.linear2.weight[self.a, unit] = 1
        self._balance(ffn.linear2.weight)

    def _multiply(self, ffn) -> None:
        """``p <- LARGE a p``."""
        hidden = self.sizes.ffn
        for sign, units in ((1, 2 * self.p), (-1, 2 * self.p + 1)):
            ffn.linear1.weight[units] = 0
            ffn.linear1.weight[hidden + units] = 0
            ffn.linear1.bias[hidden + units] = 0
            ffn.linear1.weight[units, self.a] = sign
            ffn.linear1.bias[units] = -sign / LARGE
            ffn.linear1.weight[hidden + units, self.p] = sign
            ffn.linear2.weight[self.p, units] = LARGE
        self._balance(ffn.linear2.weight)

    def _read_out(self, model: BraInCoRL, gain: float) -> None:
        weights = gain / LARGE * torch.from_numpy(self.project.T).float()  # (E, r)
        bypass = model.weight_pred[0].bypass.weight
        bypass[:-1, : self.rank] = weights
        bypass[-1, : self.rank] = -torch.from_numpy(self.mean).float() @ weights


def _directions(prior: Prior, centred: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """P ``(r, E)`` with ``P'P ~ C`` at unit trace of the kernel, and the kernel's leading eigenvalue."""
    shares = prior.shares / prior.shares.sum()
    second = np.einsum(
        "k,kij->ij", shares, prior.covariances + prior.means[:, :, None] * prior.means[:, None]
    )
    root = np.linalg.cholesky(second[:-1, :-1])
    seen = centred @ root
    values, axes = np.linalg.eigh(seen.T @ seen / len(seen))
    total = values.sum()
    return axes[:, ::-1][:, :rank].T @ root.T / np.sqrt(total), float(values[-1] / total)
