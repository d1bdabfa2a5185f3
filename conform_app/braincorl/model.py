# SPDX-License-Identifier: Apache-2.0
"""BraInCoRL: a transformer that reads a voxel's few trials and writes its encoding weights (Yu et al. 2025).

For one voxel, with context features ``X (S, E)`` and betas ``y (S,)``:

1. token s = Block([x_s, y_s]);  R learned tokens are put in front, the first is the readout;  L = R + S;
2. N times: ``h = LN(t)``, ``t += Attention(q = ln(L) h, k = v = h)``, ``t += SwiGLU(LN(t))``;
3. weights ``w (E + 1)`` = Block(t_0), the bias last;  prediction for a query ``x``: ``w[:E] . x + w[E]``.

``Block`` is LN, LeakyReLU, Linear, LN, LeakyReLU, Linear beside a linear (or no) bypass.  There is no
position code, so the order of the trials does not matter.  The factor ln(L) multiplies the *input* of the
query projection, its bias therefore not: as in the published code.

Only row 0 of the last block is read, so only that row is computed there; attention is torch's fused kernel.
``plain=True`` computes every row and the attention weights explicitly: the published form, kept for looking
at the attention and as the yardstick of the fast one.  Parameters are float32; names are the published ones.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from conform_app.errors import DataError, UsageError


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the network; those of the published models are in `PRESETS`.

    Attributes
    ----------
    features : int
        E, length of an image's feature vector.
    width : int
        D, length of a token; a multiple of ``heads``.
    layers : int
        N, transformer blocks.
    ffn : int
        H, hidden width of the SwiGLU.
    registers : int
        R, learned tokens; the first is the readout.
    heads : int
        Attention heads.
    block : int
        Hidden width of the input and output blocks.
    n_blocks : int
        Input blocks, and as many output blocks.
    """

    features: int
    width: int
    layers: int = 20
    ffn: int = 2048
    registers: int = 4
    heads: int = 10
    block: int | None = None
    n_blocks: int = 1

    def __post_init__(self) -> None:
        if self.block is None:
            object.__setattr__(self, "block", 2 * self.width)
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"Model size {name} is {value!r}.", "Give whole numbers of at least 1.")
        if self.width % self.heads:
            raise UsageError(
                f"A model of width {self.width} cannot have {self.heads} heads.",
                "Give a width that is a multiple of the number of heads.",
            )


PRESETS: dict[str, ModelSizes] = {
    "CLIP": ModelSizes(512, 560),
    "DINO": ModelSizes(768, 800),
    "SIGLIP": ModelSizes(1152, 1200),
    "vis": ModelSizes(512, 560, layers=3),
}


class ResidualBlock(nn.Module):
    """LN, LeakyReLU(0.1), Linear, LN, LeakyReLU(0.1), Linear; plus a bypass, linear where sizes differ."""

    def __init__(self, n_in: int, n_out: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(n_in),
            nn.LeakyReLU(0.1),
            nn.Dropout(dropout),
            nn.Linear(n_in, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(0.1),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_out),
        )
        self.bypass = nn.Linear(n_in, n_out) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)."""
        return self.block(x) + self.bypass(x)


class Attention(nn.Module):
    """Multi-head attention with torch's packed parameters; queries and keys may differ in number."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (V, heads, L, D / heads)

    def forward(self, query: Tensor, h: Tensor, plain: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query (V, Lq, D)`` to ``h (V, L, D)``; ``plain``: also mean weights over heads."""
        width = h.shape[-1]
        w, b = self.in_proj_weight, self.in_proj_bias
        q = self._split(functional.linear(query, w[:width], b[:width]))
        k, v = functional.linear(h, w[width:], b[width:]).chunk(2, dim=-1)
        k, v = self._split(k), self._split(v)
        weights = None
        if plain:
            weights = torch.softmax(q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1), dim=-1)
            out = weights @ v
            weights = weights.mean(dim=1)
        else:
            out = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights


class SwiGLU(nn.Module):
    """``W2 (silu(a) * b)`` with ``[a, b] = W1 x``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, 2 * hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        a, b = self.linear1(x).chunk(2, dim=-1)
        return self.linear2(functional.silu(a) * b)


class TransformerBlock(nn.Module):
    """Pre-norm attention with length-scaled queries, then pre-norm SwiGLU."""

    def __init__(self, sizes: ModelSizes, dropout: float) -> None:
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(sizes.width)
        self.attn = Attention(sizes.width, sizes.heads)
        self.layer_norm_2 = nn.LayerNorm(sizes.width)
        self.ffn = SwiGLU(sizes.width, sizes.ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tensor, rows: int | None, plain: bool) -> tuple[Tensor, Tensor | None]:
        """``t (V, L, D)`` -> its first ``rows`` rows (all: None), and the attention weights if ``plain``."""
        h = self.layer_norm_1(t)
        attended, weights = self.attn(math.log(t.shape[1]) * h[:, :rows], h, plain)
        t = t[:, :rows] + self.dropout(attended)
        return t + self.ffn(self.layer_norm_2(t)), weights


class BraInCoRL(nn.Module):
    """In-context regression of voxel weights.

    Parameters
    ----------
    sizes : ModelSizes or str
        Sizes, or the name of a preset.
    dropout : float
        Dropout in training.

    References
    ----------
    Yu et al. 2025, arXiv:2505.15813.
    """

    def __init__(self, sizes: ModelSizes | str, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.sizes = s = as_sizes(sizes)
        self.cls_token = nn.Parameter(torch.randn(1, s.registers, s.width) / math.sqrt(s.width + 1))
        widths = [s.features + 1] + [s.width] * s.n_blocks
        self.early_layers = nn.Sequential(
            *(ResidualBlock(a, b, s.block, dropout) for a, b in pairwise(widths))
        )
        self.transformer = nn.ModuleList(TransformerBlock(s, dropout) for _ in range(s.layers))
        widths = [s.width] * s.n_blocks + [s.features + 1]
        self.weight_pred = nn.Sequential(
            *(ResidualBlock(a, b, s.block, dropout) for a, b in pairwise(widths))
        )

    def weights(
        self, context_features: Tensor, context_betas: Tensor, *, plain: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Encoding weights of each voxel from its context.

        Parameters
        ----------
        context_features : Tensor (V, S, E) or (S, E)
            Unit-norm features; two axes: all voxels share them.
        context_betas : Tensor (V, S)
        plain : bool
            Compute every row of every block and return the attention.

        Returns
        -------
        weights : Tensor (V, E + 1)
            Bias last.
        attention : list of Tensor (V, L, L)
            Per block, mean over heads, register columns first; empty unless ``plain``.
        """
        self._check(context_features, context_betas)
        if context_features.ndim == 2:
            context_features = context_features.expand(len(context_betas), -1, -1)
        tokens = self.early_layers(torch.cat([context_features, context_betas.unsqueeze(-1)], dim=-1))
        t = torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        attention = []
        for block in self.transformer:
            rows = 1 if block is self.transformer[-1] and not plain else None
            t, a = block(t, rows, plain)
            if a is not None:
                attention.append(a)
        return self.weight_pred(t[:, 0]), attention

    def forward(
        self, context_features: Tensor, context_betas: Tensor, query_features: Tensor, *, plain: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predict the betas of the query images.

        Parameters
        ----------
        context_features : Tensor (V, S, E) or (S, E)
        context_betas : Tensor (V, S)
        query_features : Tensor (V, Q, E) or (Q, E)
            As the context: unit norm; two axes: shared by all voxels.
        plain : bool
            Attention written out instead of fused; the same numbers, slower.

        Returns
        -------
        predictions : Tensor (V, Q)
        weights : Tensor (V, E + 1)

        Raises
        ------
        DataError
            Shapes that do not go together or with the model.
        """
        weights, _ = self.weights(context_features, context_betas, plain=plain)
        return predict_betas(weights, query_features), weights

    def _check(self, features: Tensor, betas: Tensor) -> None:
        if features.ndim not in (2, 3) or features.shape[-1] != self.sizes.features:
            raise DataError(
                f"Context features have shape {tuple(features.shape)}, and the model reads "
                f"{self.sizes.features} features per image.",
                "Use the features that the model was trained on.",
            )
        if betas.ndim != 2 or betas.shape[1] != features.shape[-2] or len(features.shape[:-2]) > 1:
            raise DataError(
                f"Context betas have shape {tuple(betas.shape)} for {features.shape[-2]} context images.",
                "Give betas of shape (voxels, images).",
            )
        if features.ndim == 3 and len(features) != len(betas):
            raise DataError(
                f"Context features are for {len(features)} voxels, betas for {len(betas)}.",
                "Give features (images, E) where all voxels share them.",
            )


def predict_betas(weights: Tensor, features: Tensor) -> Tensor:
    """``w[:E] . x + w[E]``: weights (V, E + 1), features (Q, E) or (V, Q, E) -> (V, Q)."""
    if features.shape[-1] != weights.shape[-1] - 1:
        raise DataError(
            f"Query features have {features.shape[-1]} columns, the weights are for {weights.shape[-1] - 1}.",
            "Use the features that the weights belong to.",
        )
    if features.ndim == 2:
        return weights[:, :-1] @ features.T + weights[:, -1:]
    return (features @ weights[:, :-1, None]).squeeze(-1) + weights[:, -1:]


def as_sizes(sizes: ModelSizes | str) -> ModelSizes:
    """Sizes by name or as they are."""
    if isinstance(sizes, ModelSizes):
        return sizes
    if sizes not in PRESETS:
        raise UsageError(f"There is no model preset {sizes!r}.", f"Presets are {', '.join(PRESETS)}.")
    return PRESETS[sizes]
