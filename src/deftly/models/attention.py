"""Transformer layers as DETR and ACT have them: the norm after each sum, and positions added to queries and keys but not to values.

Letters: b batch, n m tokens, d width. Where a batch of queries has size 1, it stands for the same queries in every sample.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deftly.models.dropout import Dropout


class Attention(nn.Module):
    """Multi-head attention; only the sum over values is computed, never the weights themselves."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.to_query, self.to_key, self.to_value, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self,
        queries: Float[Tensor, "q n d"],
        keys: Float[Tensor, "b m d"],
        values: Float[Tensor, "b m d"],
        is_pad: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        split = (self.heads, -1)
        query = self.to_query(queries).expand(len(keys), -1, -1).unflatten(2, split).transpose(1, 2)
        key, value = self.to_key(keys).unflatten(2, split).transpose(1, 2), self.to_value(values).unflatten(2, split).transpose(1, 2)
        mask = None if is_pad is None else ~is_pad[:, None, None]
        dropout = self.dropout if self.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.to_out(seen.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.leave, self.dropout = nn.Linear(width, hidden), nn.Linear(hidden, width), Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.leave(self.dropout(self.enter(tokens).relu_()))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads, dropout), MLP(width, hidden, dropout)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "b m d"],
        position: Float[Tensor, "m d"],
        is_pad: Bool[Tensor, "b m"] | None = None,
        first: int | None = None,
    ) -> Float[Tensor, "b n d"]:
        """With `first`, only so many tokens come out, and nothing is computed for the others but what those see of them."""
        placed, own = tokens + position, tokens[:, :first]
        own = self.attention_norm(own + self.dropout(self.attention(placed[:, :first], placed, tokens, is_pad)))
        return self.mlp_norm(own + self.dropout(self.mlp(own)))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.cross, self.mlp = (
            Attention(width, heads, dropout),
            Attention(width, heads, dropout),
            MLP(width, hidden, dropout),
        )
        self.attention_norm, self.cross_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "q n d"],
        position: Float[Tensor, "n d"],
        memory: Float[Tensor, "b m d"],
        placed_memory: Float[Tensor, "b m d"],
    ) -> Float[Tensor, "b n d"]:
        placed = queries + position
        queries = self.attention_norm(queries + self.dropout(self.attention(placed, placed, queries)))
        queries = self.cross_norm(queries + self.dropout(self.cross(queries + position, placed_memory, memory)))
        return self.mlp_norm(queries + self.dropout(self.mlp(queries)))


def sinusoids(place: Float[Tensor, "n"], width: int) -> Float[Tensor, "n d"]:
    """Sine and cosine in turn, of wavelengths from 2 pi to 10 000 times that (Vaswani et al., 2017)."""
    frequency = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = place[:, None].double() * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).float()


def sinusoids_2d(side: int, width: int) -> Float[Tensor, "n d"]:
    """Of the cells of a square map, row by row: half of the width says which row, half which column, both counted from 0 to 2 pi."""
    place = torch.arange(1, side + 1) * (2 * math.pi / (side + 1e-6))  # the first cell is 1, as in DETR
    one = sinusoids(place, width // 2)
    return torch.cat([one.repeat_interleave(side, dim=0), one.repeat(side, 1)], dim=1)
