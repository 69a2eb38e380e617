"""Image augmentation, counted: every draw is a function of a sample's key, so it depends on no worker, device or batch size.

Photometric (pixels only): brightness, contrast, saturation and hue are one affine map of colour space, so they are fused into one 3x4
matrix per sample and camera, applied on the training device after transfer. Geometric (`warp.py`, while frames are copied out of the
store): crop, rotation and a shift of a few pixels (Yarats et al., "Image Augmentation Is All You Need", ICLR 2021) leave the action as it
is, which holds approximately while they are small, and are withheld from wrist cameras; the mirror comes with its exact map of state,
action, cameras and words (`mirror.py`). All frames of a window share their parameters.

Letters: b batch, t frames, h w pixels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Annotated

import numpy as np
import pydantic
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from deftly.config import Config
from deftly.randomness import integers, normal, uniform
from deftly.types import Batch

GRAY = (0.299, 0.587, 0.114)  # luma of BT.601
MIDDLE = 127.5
GROUP = 4  # pixels per row of the colour product: 12 numbers fill a vector register, 3 would not
CHUNK = 4  # samples per pass on a CPU: their float copies stay in the cache
ROUNDING = 2.0**23  # adding it to a float in [0, 255] leaves the nearest integer in the low bits
NOISE_BANK = 1 << 20
CROP_MARGIN = 1.15

Share = Annotated[float, pydantic.Field(ge=0.1, le=1)]
Ratio = Annotated[float, pydantic.Field(ge=0.5, le=2)]


class AugmentConfig(Config):
    """Strengths; 0 switches a part off. Never applied at validation or when acting."""

    brightness: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Colours are multiplied by 1 +- this."""
    contrast: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Distance to middle grey is multiplied by 1 +- this."""
    saturation: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Distance to the pixel's own grey is multiplied by 1 +- this."""
    hue: float = pydantic.Field(default=0.02, ge=0, le=0.5)
    """Turns around the colour circle, +- this. Keep it small: instructions name colours."""
    noise: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Standard deviation of white noise, as a share of full scale."""
    shift_pixels: int = pydantic.Field(default=2, ge=0)
    """Largest shift in pixels of the policy's image, both axes."""
    crop_scale: tuple[Share, Share] = (1.0, 1.0)
    """Smallest and largest share of the image's area that is cut out and shown at full size; frames are then stored larger."""
    crop_ratio: tuple[Ratio, Ratio] = (1.0, 1.0)
    """Narrowest and widest crop: width over height, drawn evenly on a logarithmic scale."""
    rotation_degrees: float = pydantic.Field(default=0.0, ge=0, le=10)
    """Largest turn to either side. The action is not turned with it, so more than 10 degrees would teach a wrong direction."""
    geometry_on_wrist: bool = False
    """Whether shift, crop and rotation apply to wrist cameras too. The mirror always does."""
    mirror: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of samples shown with left and right exchanged: image, state, action, words. Needs an embodiment that declares its mirror."""

    @pydantic.model_validator(mode="after")
    def check_ranges(self) -> AugmentConfig:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is a range from the smaller to the larger number, got {low} .. {high}")
        return self

    @property
    def crops(self) -> bool:
        return self.crop_scale[0] < 1 or self.crop_ratio != (1, 1)

    def stored_size(self, size: int) -> int:
        """Side of the frames to store for a policy that sees `size` pixels: 15 % larger where they are cropped: a crop has pixels then."""
        return math.ceil(size * CROP_MARGIN) if self.crops else size

    @property
    def changes_colour(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.noise))


OFF = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, noise=0, shift_pixels=0)


def draw_shifts(key: Int64[Tensor, "b"], cameras: int, pixels: int) -> Int64[np.ndarray, "cameras b 2"]:
    """(dy, dx) of each camera and sample, uniform in -pixels .. pixels."""
    return integers(key.cpu(), "augment.shift", -pixels, pixels + 1, (cameras, 2)).transpose(0, 1).numpy()


def colour_maps(
    key: Int64[Tensor, "b"], cameras: int, config: AugmentConfig
) -> tuple[Float[Tensor, "cameras b 3 3"], Float[Tensor, "cameras b"]]:
    """(matrix, offset) of each camera and sample in levels 0 .. 255: hue, then saturation, contrast, brightness.

    The offset is the same for the three channels, and a whole number of levels: see `apply_colour`.
    """
    draws = (uniform(key.cpu(), "augment.colour", (cameras, 4)) * 2 - 1).transpose(0, 1)
    brightness, contrast, saturation = (
        1 + draws[..., i] * s for i, s in enumerate((config.brightness, config.contrast, config.saturation))
    )
    angle = draws[..., 3, None, None] * (config.hue * 2 * math.pi)
    # Rodrigues' rotation about the grey axis (1, 1, 1) / sqrt(3): greys stay where they are
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    hue = angle.cos() * torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) / 3
    saturate = saturation[..., None, None] * torch.eye(3) + (1 - saturation[..., None, None]) * torch.tensor(GRAY)
    matrix = (brightness * contrast)[..., None, None] * (saturate @ hue)
    return matrix, (brightness * (1 - contrast) * MIDDLE).round()


def apply_colour(
    images: UInt8[Tensor, "b t 3 h w"],
    matrix: Float[Tensor, "b 3 3"],
    offset: Float[Tensor, "b"],
    noise: Float[Tensor, "b n"] | None = None,
) -> UInt8[Tensor, "b t 3 h w"]:
    """round(clamp(matrix @ colour + offset)) at every pixel, in the memory layout of the loader (channels last).

    The offset must be whole levels: it is added together with `ROUNDING`, where no fraction would survive. `noise` (n = t h w 3 levels) is
    added before rounding.
    """
    size = len(images)
    pixels = images.permute(0, 1, 3, 4, 2).contiguous()
    result = torch.empty_like(pixels)
    group = GROUP if pixels[0].numel() % (3 * GROUP) == 0 else 1
    weights = torch.einsum("bij,pq->bpjqi", matrix, torch.eye(group, device=matrix.device)).reshape(size, 3 * group, 3 * group)
    shifted = (offset + ROUNDING)[:, None, None]
    source, target = pixels.view(size, -1, 3 * group), result.view(size, -1, 3 * group)
    step = min(size, CHUNK) if images.device.type == "cpu" else size
    before, after = (torch.empty(step, *source.shape[1:], device=images.device) for _ in range(2))
    for i in range(0, size, step):
        part = slice(i, i + step)
        colours, levels = before[: size - i], after[: size - i]
        torch.bmm(colours.copy_(source[part]), weights[part], out=levels)
        if noise is not None:
            levels += noise[part].view_as(levels)
        levels.add_(shifted[part]).clamp_(ROUNDING, ROUNDING + 255)
        target[part].copy_(levels.view(torch.int32))  # int32 to uint8 keeps the low byte
    return result.permute(0, 1, 4, 2, 3)


@functools.lru_cache(maxsize=2)
def _noise_bank(device: torch.device) -> Float[Tensor, "n"]:
    """Fixed white noise; samples read it from drawn places, since counting every pixel's own draw would cost more than training."""
    return normal(torch.zeros(1, dtype=torch.int64), "augment.noise.bank", (NOISE_BANK,))[0].to(device)


def noise_levels(key: Int64[Tensor, "b"], camera: str, strength: float, count: int, device: torch.device) -> Float[Tensor, "b count"]:
    """White noise in levels; the bank repeats where it is too short."""
    bank = _noise_bank(device).repeat(2 + count // NOISE_BANK)
    starts = integers(key.cpu(), f"augment.noise.{camera}", 0, NOISE_BANK).tolist()
    return torch.stack([bank[start : start + count] for start in starts]).mul_(255 * strength)


def augment_colour(batch: Batch, config: AugmentConfig) -> Batch:
    """The batch with its images' colours changed, on the device that they are on; the batch itself where nothing is configured."""
    if not config.changes_colour:
        return batch
    matrices, offsets = colour_maps(batch.key, len(batch.images), config)
    images = {}
    for (camera, image), matrix, offset in zip(batch.images.items(), matrices, offsets, strict=True):
        noise = noise_levels(batch.key, camera, config.noise, image[0].numel(), image.device) if config.noise else None
        images[camera] = apply_colour(image, matrix.to(image.device), offset.to(image.device), noise)
    return replace(batch, images=images)
