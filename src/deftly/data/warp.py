"""The geometry of augmentation: one affine map per sample and camera, drawn from its key, applied while frames are copied out of the store.

Crop, shift, rotation and mirror are ONE map from a pixel of the policy's image to a place in the stored frame, so that a frame is read and
resampled once. Wrist cameras, whose pixels are tied to the gripper, take part in the mirror alone. Every frame of a window gets the same
map. A map that only moves by whole pixels copies them; one that cuts out a box of whole pixels is an area-filtered resize, as `images.py`
does it; anything else is bilinear.

```
(x, y) of the policy's image, whole numbers at pixel centres -> maps[camera, sample] @ (x, y, 1) = (x, y) of the stored frame
```
Letters: b batch, t frames, s side of a stored frame, n frames in the store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from deftly.data.augment import AugmentConfig
from deftly.data.mirror import draw_mirrored
from deftly.randomness import integers, uniform

CHUNK = 8  # windows resampled at once: their float copies stay in the cache
WHOLE = 1e-3  # a box whose edges are this near to whole pixels has whole pixels


def draw_maps(
    key: Int64[Tensor, "b"], cameras: Sequence[str], roles: Sequence[str], config: AugmentConfig, size: int, stored: int
) -> Float32[np.ndarray, "cameras b 2 3"]:
    """Pixel of the policy's image (side `size`) -> place in the stored frame (side `stored`), for each camera and sample.

    With everything off it is the whole frame. A mirrored sample (`mirror.draw_mirrored`, the same draw) flips the frame first: read it from
    the camera that `Mirror.cameras` names.
    """
    mirrored = draw_mirrored(key, config.mirror)
    maps = []
    for name, role in zip(cameras, roles, strict=True):
        fixed = role == "wrist" and not config.geometry_on_wrist
        left, top, width, height = _boxes(key, name, config, size, stored) if not fixed else _whole(len(key), stored)
        turn = np.zeros(len(key))
        if config.rotation_degrees and not fixed:
            share = uniform(key.cpu(), f"augment.rotation.{name}").double().numpy() * 2 - 1
            turn = share * math.radians(config.rotation_degrees)
        maps.append(_compose(left, top, width, height, turn, mirrored, size, stored))
    return np.stack(maps) if maps else np.zeros((0, len(key), 2, 3), np.float32)


def _whole(count: int, stored: int) -> tuple[np.ndarray, ...]:
    """The box of the whole frame, for each sample: left, top, width, height in stored pixels."""
    return np.zeros(count), np.zeros(count), np.full(count, float(stored)), np.full(count, float(stored))


def _boxes(key: Tensor, camera: str, config: AugmentConfig, size: int, stored: int) -> tuple[np.ndarray, ...]:
    """What is cut out of each stored frame, in whole pixels. A crop stays inside, so that it has real pixels; a bare shift does not."""
    left, top, width, height = _whole(len(key), stored)
    if config.crops:
        draw = uniform(key.cpu(), f"augment.crop.{camera}", (4,)).double().numpy()
        (small, large), (low, high) = config.crop_scale, np.log(config.crop_ratio)
        area = (small + draw[:, 0] * (large - small)) * stored**2
        ratio = np.exp(low + draw[:, 1] * (high - low))
        width, height = (np.clip(np.rint(np.sqrt(area * r)), 1, stored) for r in (ratio, 1 / ratio))
        left, top = np.floor(draw[:, 2] * (stored - width + 1)), np.floor(draw[:, 3] * (stored - height + 1))
    if config.shift_pixels:
        pixels = config.shift_pixels
        steps = integers(key.cpu(), f"augment.shift.{camera}", -pixels, pixels + 1, (2,)).double().numpy()
        down, right = np.rint(steps * stored / size).T
        left, top = left + right, top + down
        if config.crops:
            left, top = np.clip(left, 0, stored - width), np.clip(top, 0, stored - height)
    return left, top, width, height


def _compose(
    left: np.ndarray,
    top: np.ndarray,
    width: np.ndarray,
    height: np.ndarray,
    turn: np.ndarray,
    mirrored: Bool[np.ndarray, "b"],
    size: int,
    stored: int,
) -> Float32[np.ndarray, "b 2 3"]:
    """Box, then rotation about the middle of the frame, then the flip, as one map between pixel centres; in float64 until the end."""
    middle = (stored - 1) / 2
    scale_x, scale_y = width / size, height / size
    # relative to the middle: u = scale * x + offset
    offset_x, offset_y = left + scale_x / 2 - 0.5 - middle, top + scale_y / 2 - 0.5 - middle
    cos, sin = np.cos(turn), np.sin(turn)
    sign = np.where(mirrored, -1.0, 1.0)
    rows = [
        [sign * cos * scale_x, -sign * sin * scale_y, sign * (cos * offset_x - sin * offset_y) + middle],
        [sin * scale_x, cos * scale_y, sin * offset_x + cos * offset_y + middle],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2).astype(np.float32)


def warp(
    frames: UInt8[np.ndarray, "n s s 3"], rows: Int64[np.ndarray, "b t"], maps: Float32[np.ndarray, "b 2 3"], size: int
) -> UInt8[np.ndarray, "b t {size} {size} 3"]:
    """Gather the frames of each window and resample them by its map. Beyond the frame its edge is repeated."""
    boxes, flipped, is_box = _as_boxes(maps, size, frames.shape[1])
    is_copy = is_box & (boxes[:, 2:] == size).all(axis=1)
    if is_copy.all() and not (boxes[:, :2].any() or flipped.any()):
        return np.asarray(frames[rows])
    result = np.empty((*rows.shape, size, size, 3), np.uint8)
    at, places = rows.tolist(), boxes.tolist()
    for i in np.flatnonzero(is_box).tolist():
        left, top, width, height = places[i]
        if width == height == size:
            for target, row in zip(result[i], at[i], strict=True):
                copy_shifted(frames[row], target, top, left)
        else:
            result[i] = shrink(np.stack([frames[row, top : top + height, left : left + width] for row in at[i]]), size)
        if flipped[i]:  # by torch: numpy copies pixels that stand in reverse one byte at a time
            result[i] = torch.from_numpy(result[i]).flip(2).numpy()
    others = np.flatnonzero(~is_box)
    for start in range(0, len(others), CHUNK):
        part = others[start : start + CHUNK]
        result[part] = _bilinear(frames[rows[part]], maps[part], size)
    return result


def shrink(images: UInt8[np.ndarray, "t h w 3"], size: int) -> UInt8[np.ndarray, "t {size} {size} 3"]:
    """Whole images fitted into squares of `size`, area-filtered, in integer arithmetic."""
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    return F.interpolate(planes, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()


def copy_shifted(source: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w 3"], dy: int, dx: int) -> None:
    """target[y, x] = source[y + dy, x + dx], indices clamped to the image: the edge is repeated."""
    height, width = source.shape[:2]
    dy, dx = max(-height + 1, min(height - 1, dy)), max(-width + 1, min(width - 1, dx))
    top, bottom = max(0, -dy), height - max(0, dy)
    target[top:bottom, max(0, -dx) : width - max(0, dx)] = source[top + dy : bottom + dy, max(0, dx) : width + min(0, dx)]
    if dx < 0:
        target[top:bottom, :-dx] = source[top + dy : bottom + dy, :1]
    elif dx > 0:
        target[top:bottom, width - dx :] = source[top + dy : bottom + dy, width - 1 :]
    if dy < 0:
        target[:top] = target[top]
    elif dy > 0:
        target[bottom:] = target[bottom - 1]


def _as_boxes(
    maps: Float32[np.ndarray, "b 2 3"], size: int, stored: int
) -> tuple[Int64[np.ndarray, "b 4"], Bool[np.ndarray, "b"], Bool[np.ndarray, "b"]]:
    """(left top width height, is it flipped, is the map a box of whole stored pixels at all) of each map.

    A box that leaves the frame counts only where it is copied: there the edge is repeated at no cost.
    """
    m = maps.astype(np.float64)
    flipped = m[:, 0, 0] < 0
    width, height = np.abs(m[:, 0, 0]) * size, m[:, 1, 1] * size
    left = m[:, 0, 2] + 0.5 - m[:, 0, 0] / 2 - np.where(flipped, width, 0)
    top = m[:, 1, 2] + 0.5 - m[:, 1, 1] / 2
    exact = np.stack([left, top, width, height], axis=1)
    boxes = np.rint(exact).astype(np.int64)
    is_whole = (np.abs(exact - boxes) < WHOLE).all(axis=1) & (m[:, 0, 1] == 0) & (m[:, 1, 0] == 0) & (boxes[:, 2:] > 0).all(axis=1)
    is_inside = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] <= stored).all(axis=1)
    is_copy = (boxes[:, 2:] == size).all(axis=1) & (stored == size)
    return boxes, flipped, is_whole & (is_inside | is_copy)


def _bilinear(
    images: UInt8[np.ndarray, "b t s s 3"], maps: Float32[np.ndarray, "b 2 3"], size: int
) -> UInt8[np.ndarray, "b t {size} {size} 3"]:
    """Bilinear samples at the places that the maps name, coordinates clamped to the frame."""
    count, frames, stored = images.shape[:3]
    planes = torch.from_numpy(images).flatten(0, 1).float().permute(0, 3, 1, 2)
    x = torch.arange(size, dtype=torch.float32)
    m = torch.from_numpy(maps)[:, :, :, None, None]
    places = m[:, :, 0] * x[None, :] + m[:, :, 1] * x[:, None] + m[:, :, 2]  # [b 2 y x]
    grid = ((places + 0.5) * (2 / stored) - 1).permute(0, 2, 3, 1).repeat_interleave(frames, 0)
    sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    channels = sampled.round_().to(torch.uint8).unbind(1)
    return torch.stack(channels, dim=-1).view(count, frames, size, size, 3).numpy()
