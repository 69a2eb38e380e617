"""A small text encoder over a tokenizer trained on the data's own instructions: embeddings, one transformer layer, masked mean.

Padding is never attended and never averaged, so the result does not depend on the padded length. Letters: b batch, l length, d width.
"""

from __future__ import annotations

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deftly.config import Config
from deftly.types import Tokens


class TextConfig(Config):
    dim: int = pydantic.Field(default=64, ge=8)
    heads: int = pydantic.Field(default=4, ge=1)
    layers: int = pydantic.Field(default=1, ge=0)

    @pydantic.model_validator(mode="after")
    def check_heads(self) -> TextConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self

    def build(self, *, vocabulary: int, text_length: int) -> TextEncoder:
        return TextEncoder(self, vocabulary, text_length)


class TextEncoder(nn.Module):
    def __init__(self, config: TextConfig, vocabulary: int, text_length: int) -> None:
        super().__init__()
        self.dim = config.dim
        self.embedding = nn.Embedding(vocabulary, config.dim)
        self.position = nn.Parameter(torch.randn(text_length, config.dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(config.dim, config.heads, 2 * config.dim, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, text: Tokens) -> Float[Tensor, "b d"]:
        """One vector per sentence; an empty sentence gives zeros."""
        hidden = self.embedding(text.ids) + self.position[: text.ids.shape[1]]
        # a row of nothing but padding would make softmax divide zero by zero: let it attend to itself, it is not averaged below
        nothing = text.is_pad.all(dim=1, keepdim=True)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=text.is_pad & ~nothing)
        is_word = (~text.is_pad)[:, :, None].to(hidden.dtype)
        return self.norm(hidden).mul(is_word).sum(1) / is_word.sum(1).clamp(min=1)
