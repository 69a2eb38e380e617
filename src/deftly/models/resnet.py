"""A ResNet (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016) with frozen batch norms: uint8 images to feature maps.

Unusual here: a frozen norm is a scale and a shift of each channel, so it is folded into the convolution before it. The maps are then read
and written once instead of three times, and the result is the same up to rounding. Pretrained weights come by torchvision's names.

Letters: n images, c channels, h w pixels, y x cells of the last maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import pydantic
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from deftly.config import Config
from deftly.types import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORM_EPSILON = 1e-5  # of torchvision's FrozenBatchNorm2d


class ResNetConfig(Config):
    """ResNet-18 by default: four stages of two blocks. The maps have 1/4 of the image's side after the stem, half of it at each stage."""

    widths: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = pydantic.Field(default=(64, 128, 256, 512), min_length=1)
    blocks: int = pydantic.Field(default=2, ge=1)
    """Residual blocks per stage."""

    def build(self, *, image_size: int) -> ResNet:
        return ResNet(self, image_size)


class FrozenNormConv(nn.Module):
    """A convolution without bias and the frozen batch norm after it, as one convolution."""

    scale: Tensor  # [c]
    shift: Tensor  # [c]

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer("scale", torch.ones(outputs))
        self.register_buffer("shift", torch.zeros(outputs))
        self.stride, self.padding = stride, size // 2

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        return nn.functional.conv2d(maps, self.weight * self.scale[:, None, None, None], self.shift, self.stride, self.padding)


class Block(nn.Module):
    """Two 3 x 3 convolutions added to the input, which a 1 x 1 convolution fits where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = FrozenNormConv(inputs, outputs, 3, stride)
        self.second = FrozenNormConv(outputs, outputs, 3)
        self.shortcut = FrozenNormConv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        same = maps if self.shortcut is None else self.shortcut(maps)
        return self.second(self.first(maps).relu_()).add_(same).relu_()


class ResNet(nn.Module):
    """uint8 images to maps of `width` channels and `side` x `side` cells."""

    gain: Tensor
    offset: Tensor

    def __init__(self, config: ResNetConfig, image_size: int) -> None:
        super().__init__()
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("gain", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        self.stem = FrozenNormConv(3, config.widths[0], 7, 2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        stages, inputs = [], config.widths[0]
        for number, width in enumerate(config.widths):
            first = Block(inputs, width, stride=2 if number else 1)
            stages.append(nn.Sequential(first, *(Block(width, width, stride=1) for _ in range(config.blocks - 1))))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.width, self.side = inputs, image_size
        for _ in range(1 + len(config.widths)):
            self.side = (self.side + 1) // 2

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d y x"]:
        return self.stages(self.pool(self.stem(images * self.gain + self.offset).relu_()))

    def names(self) -> Iterator[tuple[FrozenNormConv, str, str]]:
        """Every convolution, with torchvision's name of it and of its norm."""
        yield self.stem, "conv1", "bn1"
        for i, stage in enumerate(self.stages, 1):
            for j, block in enumerate(stage):  # type: ignore[arg-type]
                at = f"layer{i}.{j}"
                yield block.first, f"{at}.conv1", f"{at}.bn1"
                yield block.second, f"{at}.conv2", f"{at}.bn2"
                if block.shortcut is not None:
                    yield block.shortcut, f"{at}.downsample.0", f"{at}.downsample.1"

    @torch.no_grad()
    def load_torchvision(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Take weights and norms by torchvision's names; its classifier (`fc`) is left. Raises `DataError` naming what does not fit."""
        unused = {name for name in tensors if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")}
        for convolution, conv, norm in self.names():
            parts = [f"{conv}.weight", *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]
            shapes = [convolution.weight.shape, *[convolution.scale.shape] * 4]
            for name, shape in zip(parts, shapes, strict=True):
                if name not in tensors:  # guard: models.resnet.missing
                    raise DataError(f"{where}: holds no {name!r}; give the weights of a ResNet of this size, by torchvision's names")
                if tensors[name].shape != shape:  # guard: models.resnet.shape
                    raise DataError(f"{where}: {name!r} has shape {tuple(tensors[name].shape)}, this ResNet has {tuple(shape)}")
            weight, gain, bias, mean, variance = (tensors[name].float() for name in parts)
            convolution.weight.copy_(weight)
            convolution.scale.copy_(gain * (variance + NORM_EPSILON).rsqrt())
            convolution.shift.copy_(bias - mean * convolution.scale)
            unused -= set(parts)
        if unused:  # guard: models.resnet.larger
            raise DataError(f"{where}: {min(unused)!r} has no place in this ResNet, which is smaller; change policy.vision to fit")
