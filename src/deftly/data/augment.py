"""Image augmentation, counted: every draw is a function of a sample's key, so it depends on no worker, device or batch size.

Photometric (pixels only), on the training device after transfer: brightness, contrast, saturation and hue are one affine map of colour
space, fused into one 3x4 matrix per sample and camera; before it a blur, after it noise, then a patch that is greyed out.

Geometric (`warp.py`, while frames are copied out of the store): crop, rotation and a shift of a few pixels (Yarats et al., "Image
Augmentation Is All You Need", ICLR 2021) leave the action as it is, which holds approximately while they are small, and are withheld from
wrist cameras; the mirror comes with its exact map of state, action, cameras and words (`mirror.py`). All frames of a window share their
parameters.

Letters: b batch, t frames, h w pixels.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple, Self

import numpy as np
import pydantic
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from deftly.config import Config
from deftly.contract import Embodiment
from deftly.randomness import integers, normal, uniform
from deftly.types import Batch

GRAY = (0.299, 0.587, 0.114)  # luma of BT.601
MIDDLE = 127.5
GROUP = 4  # pixels per row of the colour product: 12 numbers fill a vector register, 3 would not
CHUNK = 8  # samples per pass on a CPU: their float copies stay in the cache
ROUNDING = 2.0**23  # adding it to a float in [0, 255] leaves the nearest integer in the low bits
SERIAL_ROWS, MOST_PIECES = 2304, 256  # of a product: OpenBLAS keeps to one thread up to this many rows of twelve
NOISE_BANK = 1 << 20
CROP_MARGIN = 1.15
NAMEABLE_HUE = 0.04  # turns that leave red, yellow, green and blue what they are called

Share = Annotated[float, pydantic.Field(ge=0.1, le=1)]
Ratio = Annotated[float, pydantic.Field(ge=0.5, le=2)]
Sigma = Annotated[float, pydantic.Field(gt=0, le=5)]
Patch = Annotated[float, pydantic.Field(gt=0, le=0.5)]


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
    """Largest standard deviation of white noise, as a share of full scale; each sample draws its own between 0 and this."""
    blur: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of samples that are blurred by a 3 x 3 Gaussian of standard deviation `blur_sigma`."""
    blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0)
    """Smallest and largest, in pixels of the policy's image."""
    erase: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of samples of which a rectangle is greyed out: no single patch may carry the answer."""
    erase_area: tuple[Patch, Patch] = (0.02, 0.2)
    """Smallest and largest rectangle, as a share of the image; up to three times as wide as high, and the other way round."""
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

    mixup: float = pydantic.Field(default=0.0, ge=0, le=4)
    """Samples are averaged with a partner of the same task and nearly the same actions, by weights of Beta(this, this); 0.2 is usual."""
    mixup_distance: float = pydantic.Field(default=0.1, gt=0, le=1)
    """How far apart, in root mean square of normalised actions, partners may be."""

    @pydantic.model_validator(mode="after")
    def check_ranges(self) -> AugmentConfig:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "erase_area"):
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

    @classmethod
    def strong(cls) -> Self:
        """What large policies are trained with, crops, turns, blur and the mirror, but for the hue: a tenth of the colour circle makes red
        balls orange and blue cups purple, and instructions name colours."""
        return cls(crop_scale=(0.8, 1.0), crop_ratio=(0.75, 4 / 3), rotation_degrees=10.0, shift_pixels=0, blur=0.5, mirror=0.5)

    @classmethod
    def other_cameras(cls) -> Self:
        """Another camera, lamp and lens: wide ranges of what an image sensor changes, for a policy that will see through another one."""
        return cls(brightness=0.5, contrast=0.2, saturation=0.2, hue=0.1, noise=0.05, blur=0.5)

    def fitted(self, embodiment: Embodiment, cameras: Sequence[str]) -> tuple[Self, list[str]]:
        """(what of this holds for a policy that sees `cameras` of this robot, a line for the plan about each thing that does not quite).

        A mirror without its map of state, action and cameras would teach the wrong side, so it is switched off.
        """
        notes, config = [], self
        why = ""
        if self.mirror and embodiment.mirror is None:
            why = f"robot {embodiment.name!r} declares no mirror"
        elif self.mirror and embodiment.mirror is not None:
            unseen = [(name, other) for name in cameras if (other := embodiment.mirror.cameras[name]) not in cameras]
            if unseen:
                why = f"camera {unseen[0][0]!r} would show {unseen[0][1]!r}, which the policy does not look at"
        if why:
            config = config.replace(mirror=0.0)
            notes.append(f"mirror is off: {why}")
        moves = [f"crop {self.crop_scale[0]:g} .. {self.crop_scale[1]:g}"] if self.crops else []
        moves += [f"rotation +-{self.rotation_degrees:g} degrees"] if self.rotation_degrees else []
        if moves:
            notes.append(f"{' and '.join(moves)} of scene cameras: actions stay as they are, which is approximate")
        if self.hue > NAMEABLE_HUE:
            notes.append(f"hue +-{self.hue:g}: colours may turn into others than the instruction names")
        return config, notes


OFF = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, noise=0, shift_pixels=0)


Colours = tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b"]]
"""(matrix, offset) of each sample."""


def colour_maps(key: Int64[Tensor, "b"], camera: str, config: AugmentConfig) -> Colours:
    """(matrix, offset) of each sample in levels 0 .. 255: hue, then saturation, contrast, brightness.

    The offset is the same for the three channels, and a whole number of levels: see `apply_colour`.
    """
    draws = uniform(key.cpu(), f"augment.colour.{camera}", (4,)) * 2 - 1
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


class Noise(NamedTuple):
    """White noise for each sample: where it begins in the bank, and its standard deviation in levels."""

    start: Int64[Tensor, "b"]
    level: Float[Tensor, "b"]


def draw_noise(key: Int64[Tensor, "b"], camera: str, strength: float) -> Noise:
    start = integers(key.cpu(), f"augment.noise.{camera}", 0, NOISE_BANK)
    return Noise(start, uniform(key.cpu(), f"augment.noise_level.{camera}") * (255 * strength))


def apply_colour(
    images: UInt8[Tensor, "b t 3 h w"], matrix: Float[Tensor, "b 3 3"], offset: Float[Tensor, "b"], noise: Noise | None = None
) -> UInt8[Tensor, "b t 3 h w"]:
    """round(clamp(matrix @ colour + offset + noise)) at every pixel, in the memory layout of the loader (channels last).

    The offset must be whole levels: it is added together with `ROUNDING`, where no fraction would survive.
    """
    pixels = images.permute(0, 1, 3, 4, 2).contiguous()
    result = torch.empty_like(pixels)
    group = GROUP if pixels[0].numel() % (3 * GROUP) == 0 else 1
    weights = torch.einsum("bij,pq->bpjqi", matrix, torch.eye(group, device=images.device)).reshape(len(images), 3 * group, 3 * group)
    shifted = (offset + ROUNDING)[:, None, None]
    source, target = (tensor.view(len(images), -1, 3 * group) for tensor in (pixels, result))
    if images.device.type == "cpu":
        _colour_on_cpu(source, target, weights, shifted, noise)
    else:
        levels = source.float() @ weights
        if noise is not None:
            _add_noise(levels, noise)
        target.copy_(levels.add_(shifted).clamp_(ROUNDING, ROUNDING + 255).view(torch.int32))  # int32 to uint8 keeps the low byte
    return result.permute(0, 1, 4, 2, 3)


def _colour_on_cpu(
    source: UInt8[Tensor, "b n p"],
    target: UInt8[Tensor, "b n p"],
    weights: Float[Tensor, "b p p"],
    shifted: Float[Tensor, "b 1 1"],
    noise: Noise | None,
) -> None:
    """target = source @ weights + shifted, by numpy in one thread. For so narrow a product its OpenBLAS takes half the time of torch's MKL
    (measured on Zen 4) and gives one result whatever the number of threads; and waking torch's threads five times for each eight pictures
    takes longer than the arithmetic, once training keeps them busy."""
    step = min(len(source), CHUNK)
    before, after = _scratch((step, *source.shape[1:]))
    for i in range(0, len(source), step):
        part = slice(i, i + step)
        colours, levels = (scratch[: len(source[part])] for scratch in (before, after))
        np.copyto(colours, source[part].numpy())
        _multiply(colours, weights[part].numpy(), levels)
        if noise is not None:
            _add_noise(torch.from_numpy(levels), Noise(*(drawn[part] for drawn in noise)))
        levels += shifted[part].numpy()
        np.clip(levels, ROUNDING, ROUNDING + 255, out=levels)
        np.copyto(target[part].numpy(), levels.view(np.int32), casting="unsafe")


def _scratch(shape: tuple[int, ...]) -> tuple[Float32[np.ndarray, "b n p"], Float32[np.ndarray, "b n p"]]:
    """Two arrays of this thread, kept: the system hands out fresh memory a page at a time, which takes as long as the arithmetic."""
    kept = getattr(_local, "scratch", None)
    if kept is None or kept[0].shape != shape:
        kept = _local.scratch = (np.empty(shape, np.float32), np.empty(shape, np.float32))
    return kept


_local = threading.local()


def _multiply(colours: Float32[np.ndarray, "b n p"], weights: Float32[np.ndarray, "b p p"], out: Float32[np.ndarray, "b n p"]) -> None:
    """out = colours @ weights, in pieces too small for OpenBLAS to wake threads, which training needs more."""
    count, rows, width = colours.shape
    pieces = next((n for n in range(1, MOST_PIECES) if rows % n == 0 and rows // n <= SERIAL_ROWS), 1)
    shape = (count, pieces, rows // pieces, width)
    np.matmul(colours.reshape(shape), weights[:, None], out=out.reshape(shape))


@functools.lru_cache(maxsize=2)
def _noise_bank(device: torch.device, count: int) -> Float[Tensor, "n"]:
    """Fixed white noise, repeated so that `count` numbers follow every start; samples read it from drawn places, since counting every
    pixel's own draw would cost more than training."""
    bank = normal(torch.zeros(1, dtype=torch.int64), "augment.noise.bank", (NOISE_BANK,))[0]
    return bank.repeat(2 + count // NOISE_BANK)[: NOISE_BANK + count].to(device)


def _add_noise(levels: Float[Tensor, "b n p"], noise: Noise) -> None:
    """A sample at a time: a table of places in the bank would take more memory than the images."""
    count = levels[0].numel()
    bank = _noise_bank(levels.device, count)
    for row, start, level in zip(levels.view(len(levels), -1), noise.start.tolist(), noise.level.tolist(), strict=True):
        row.add_(bank[start : start + count], alpha=level)


def draw_blur(key: Int64[Tensor, "b"], camera: str, config: AugmentConfig) -> tuple[Bool[Tensor, "b"], Float[Tensor, "b"]]:
    """(which samples are blurred, the weight of each neighbour) of a Gaussian over three pixels."""
    draw = uniform(key.cpu(), f"augment.blur.{camera}", (2,))
    low, high = config.blur_sigma
    side = torch.exp(-0.5 / (low + draw[:, 1].double() * (high - low)) ** 2)
    return draw[:, 0] < config.blur, (side / (1 + 2 * side)).float()


def apply_blur(images: UInt8[Tensor, "b t 3 h w"], neighbour: Float[Tensor, "b"]) -> UInt8[Tensor, "b t 3 h w"]:
    """Three pixels across, then three down, edges repeated; rounded once."""
    pixels = images.permute(0, 1, 3, 4, 2)
    result = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    step = CHUNK if images.device.type == "cpu" else len(images)
    for some, out, weight in zip(pixels.split(step), result.split(step), neighbour.to(images.device).split(step), strict=True):
        values = some.float()
        for dim in (3, 2):
            side = values * weight.view(-1, 1, 1, 1, 1)
            values.mul_(1 - 2 * weight.view(-1, 1, 1, 1, 1))
            size = values.shape[dim]
            values.narrow(dim, 1, size - 1).add_(side.narrow(dim, 0, size - 1))
            values.narrow(dim, 0, size - 1).add_(side.narrow(dim, 1, size - 1))
            values.narrow(dim, 0, 1).add_(side.narrow(dim, 0, 1))
            values.narrow(dim, size - 1, 1).add_(side.narrow(dim, size - 1, 1))
        out.copy_(values.add_(ROUNDING).view(torch.int32))
    return result.permute(0, 1, 4, 2, 3)


def draw_patches(
    key: Int64[Tensor, "b"], camera: str, config: AugmentConfig, height: int, width: int
) -> tuple[Bool[Tensor, "b"], Int64[Tensor, "b 4"]]:
    """(which samples lose a patch, its top, bottom, left, right in pixels, ends exclusive)."""
    draw = uniform(key.cpu(), f"augment.erase.{camera}", (5,)).double()
    low, high = config.erase_area
    area = (low + draw[:, 1] * (high - low)) * height * width
    ratio = 3.0 ** (2 * draw[:, 2] - 1)
    high_by, wide_by = (torch.sqrt(area / ratio).round().clamp(1, height), torch.sqrt(area * ratio).round().clamp(1, width))
    top, left = (draw[:, 3] * (height - high_by + 1)).floor(), (draw[:, 4] * (width - wide_by + 1)).floor()
    return draw[:, 0] < config.erase, torch.stack([top, top + high_by, left, left + wide_by], dim=1).long()


def apply_patches(images: UInt8[Tensor, "b t 3 h w"], patches: Int64[Tensor, "b 4"]) -> UInt8[Tensor, "b t 3 h w"]:
    """Middle grey inside the patch of each sample, in all of its frames."""
    result = images.clone()
    for image, (top, bottom, left, right) in zip(result, patches.tolist(), strict=True):
        image[..., top:bottom, left:right] = round(MIDDLE)
    return result


def augment_colour(batch: Batch, config: AugmentConfig, colours: Mapping[str, Colours] | None = None) -> Batch:
    """The batch with its pixels changed, on the device that they are on; the batch itself where nothing is configured.

    `colours` are each camera's `colour_maps` for the batch's keys, where somebody has drawn them already.
    """
    if not (config.changes_colour or config.blur or config.erase):
        return batch
    drawn = colours or {}
    images = {name: augment_pixels(image, batch.key, name, config, drawn.get(name)) for name, image in batch.images.items()}
    return replace(batch, images=images)


def augment_pixels(
    image: UInt8[Tensor, "b t 3 h w"], key: Int64[Tensor, "b"], camera: str, config: AugmentConfig, colours: Colours | None = None
) -> UInt8[Tensor, "b t 3 h w"]:
    """One camera's images blurred, coloured, with noise and patches, as each sample's key says. `colours`: its `colour_maps`, if drawn."""
    if config.blur:
        image = _some(image, apply_blur, *draw_blur(key, camera, config))
    if config.changes_colour:
        matrix, offset = (part.to(image.device) for part in colours or colour_maps(key, camera, config))
        image = apply_colour(image, matrix, offset, draw_noise(key, camera, config.noise) if config.noise else None)
    if config.erase:
        image = _some(image, apply_patches, *draw_patches(key, camera, config, *image.shape[-2:]))
    return image


def _some(image: Tensor, change: Callable[[Tensor, Tensor], Tensor], chosen: Bool[Tensor, "b"], values: Tensor) -> Tensor:
    """A copy of the images in which the chosen samples are changed."""
    index = chosen.nonzero()[:, 0]
    if not len(index):
        return image
    here, pixels = index.to(image.device), image.permute(0, 1, 3, 4, 2)  # in the memory layout of the loader nothing is transposed
    result = pixels.clone()
    result[here] = change(pixels[here].permute(0, 1, 4, 2, 3), values[index]).permute(0, 1, 3, 4, 2)
    return result.permute(0, 1, 4, 2, 3)
