"""A small convolutional vision encoder whose every stage is modulated by the sentence.

Unusual here: a strided stem instead of pooling, FiLM in each residual block (Perez et al., "FiLM: Visual Reasoning with a General
Conditioning Layer", AAAI 2018), and a spatial softmax that turns feature maps into image coordinates (Finn et al., "Deep Spatial
Autoencoders for Visuomotor Learning", ICRA 2016), so that the network says WHERE the named object is, not only whether it is there.

Letters: n images, c channels, h w pixels, d text width.
"""

from __future__ import annotations

import itertools

import pydantic
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from deftly.config import Config


class CNNConfig(Config):
    """`width[i]` channels at stage i; the stem divides the side by `stem_stride`, every further stage halves it."""

    stem_stride: int = pydantic.Field(default=4, ge=1)
    widths: tuple[int, ...] = (32, 64)
    blocks: int = pydantic.Field(default=1, ge=1)
    """Residual FiLM blocks per stage."""
    keypoints: int = pydantic.Field(default=32, ge=1)
    """Feature maps that the spatial softmax turns into coordinates."""

    def build(self, *, image_size: int, text_dim: int) -> FiLMCNN:
        side = image_size // (self.stem_stride * 2 ** (len(self.widths) - 1))
        if side < 2:
            raise ValueError(f"images of {image_size} px shrink to {side} px in this encoder; use fewer stages or a larger image_size")
        return FiLMCNN(self, text_dim)


class FiLM(nn.Module):
    """Scale and shift of every channel, as the sentence says. Starts as the identity."""

    def __init__(self, text_dim: int, channels: int) -> None:
        super().__init__()
        self.to_scale_shift = nn.Linear(text_dim, 2 * channels)
        nn.init.normal_(self.to_scale_shift.weight, std=0.02)
        nn.init.zeros_(self.to_scale_shift.bias)

    def forward(self, maps: Float[Tensor, "n c h w"], text: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        scale, shift = self.to_scale_shift(text)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(maps + shift, maps, scale)


class FiLMBlock(nn.Module):
    """conv, norm, FiLM, ReLU, conv, added to its input."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(min(8, channels), channels)
        self.film = FiLM(text_dim, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Float[Tensor, "n c h w"], text: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        return self.second(self.film(self.norm(self.first(maps)), text).relu_()).add_(maps)


class FiLMCNN(nn.Module):
    """uint8 images and sentence vectors to feature vectors of `out_dim` numbers: keypoint coordinates and mean activations."""

    def __init__(self, config: CNNConfig, text_dim: int) -> None:
        super().__init__()
        stride = config.stem_stride
        # a kernel of stride + 2 lets neighbouring cells overlap by a pixel on each side: edges on a cell border stay visible
        stem = nn.Conv2d(3, config.widths[0], stride + 2, stride, padding=1)
        downs = [nn.Conv2d(a, b, 3, 2, padding=1) for a, b in itertools.pairwise(config.widths)]
        self.entries = nn.ModuleList([stem, *downs])
        self.stages = nn.ModuleList(nn.ModuleList(FiLMBlock(width, text_dim) for _ in range(config.blocks)) for width in config.widths)
        self.to_keypoints = nn.Conv2d(config.widths[-1], config.keypoints, 1)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.out_dim = 2 * config.keypoints + config.widths[-1]

    def forward(self, images: UInt8[Tensor, "n 3 h w"], text: Float[Tensor, "n d"]) -> Float[Tensor, "n out"]:
        maps = images.to(text.dtype, memory_format=torch.channels_last, copy=True).mul_(1 / 127.5).sub_(1.0)
        for entry, stage in zip(self.entries, self.stages, strict=True):
            maps = entry(maps).relu_()
            for block in stage:  # type: ignore[union-attr]
                maps = block(maps, text)
        return torch.cat([self.keypoints(maps), maps.relu().mean((2, 3))], dim=1)

    def keypoints(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n xy"]:
        """Expected (x, y) in [-1, 1] of each keypoint map under its softmax over pixels."""
        scores = self.to_keypoints(maps)
        height, width = scores.shape[2:]
        wide = torch.promote_types(scores.dtype, torch.float32)
        share = (scores.flatten(2).to(wide) * self.log_temperature.exp()).softmax(dim=2).unflatten(2, (height, width))
        x = torch.linspace(-1, 1, width, device=maps.device, dtype=wide)
        y = torch.linspace(-1, 1, height, device=maps.device, dtype=wide)
        return torch.cat([share.sum(2) @ x, share.sum(3) @ y], dim=1).to(maps.dtype)
