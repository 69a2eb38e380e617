"""kornia, given the same parameters, as the reference; it is not a dependency, because it draws from the global generator."""

import numpy as np
import pytest
import torch

from deftly.data.augment import OFF, AugmentConfig, apply_blur, apply_colour, colour_maps, draw_blur
from deftly.data.warp import draw_maps, warp
from small_data import random_images

kornia = pytest.importorskip("kornia")
KEYS = torch.arange(500, 532)


def test_rotation_crop_shift_and_flip_are_kornias_warp():
    size, stored = 32, 37
    config = OFF.replace(crop_scale=(0.7, 1.0), crop_ratio=(0.75, 4 / 3), rotation_degrees=10, shift_pixels=3, mirror=0.5)
    frames = np.random.default_rng(0).integers(0, 256, (8, stored, stored, 3), dtype=np.uint8)
    rows = np.random.default_rng(1).integers(0, 8, (len(KEYS), 1))
    maps = draw_maps(KEYS, ("head",), ("scene",), config, size, stored)[0]
    whole = torch.cat([torch.from_numpy(maps), torch.tensor([0.0, 0.0, 1.0]).expand(len(KEYS), 1, 3)], dim=1).double()
    planes = torch.from_numpy(frames[rows[:, 0]]).permute(0, 3, 1, 2).double()
    reference = kornia.geometry.warp_affine(planes, whole.inverse()[:, :2], (size, size), padding_mode="border", align_corners=True)
    images = torch.from_numpy(warp(frames, rows, maps, size))[:, 0].permute(0, 3, 1, 2)
    assert (images - reference).abs().max() <= 0.6


@pytest.mark.parametrize("name", ["brightness", "saturation"])
def test_colours_are_kornias(name: str):
    images = random_images(len(KEYS), 1, 16)
    config = OFF.replace(**{name: 0.4})
    matrix, offset = colour_maps(KEYS, "head", config)
    assert (offset == 0).all()
    factor = matrix.sum(2)[:, 0] if name == "brightness" else (matrix[:, 0, 0] - 0.299) / (1 - 0.299)
    unit = images[:, 0].double() / 255
    adjust = {
        "brightness": kornia.enhance.adjust_brightness_accumulative,
        "saturation": kornia.enhance.adjust_saturation_with_gray_subtraction,
    }[name]
    reference = adjust(unit, factor.double()) * 255
    assert (apply_colour(images, matrix, offset)[:, 0] - reference).abs().max() <= 0.6


def test_contrast_is_kornias_about_middle_grey():
    images = random_images(len(KEYS), 1, 16)
    matrix, offset = colour_maps(KEYS, "head", OFF.replace(contrast=0.4))
    factor = matrix[:, 0, 0].double()
    reference = kornia.enhance.adjust_contrast((images[:, 0].double() - 127.5) / 255, factor, clip_output=False) * 255 + 127.5
    assert (apply_colour(images, matrix, offset)[:, 0] - reference.clamp(0, 255)).abs().max() <= 1.1, "the offset is a whole level"


def test_hue_turns_as_far_as_kornias_on_saturated_colours():
    """kornia turns in HSV, we about the grey axis, which keeps the sum of the channels: the angle agrees, saturation changes slightly."""
    colours = torch.tensor([[0.6, 0.3, 0.3], [0.3, 0.6, 0.3], [0.3, 0.3, 0.6]])
    images = (colours * 255).round().to(torch.uint8).view(3, 1, 3, 1, 1).repeat(8, 1, 1, 2, 2)
    matrix, offset = colour_maps(KEYS[:24], "head", AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0.1))
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
    turn = torch.atan2((matrix[:, 1, 0] - matrix[:, 0, 1]) * 3**0.5, trace - 1)  # of a rotation about the grey axis
    ours = kornia.color.rgb_to_hsv(apply_colour(images, matrix, offset)[:, 0].double() / 255)[:, 0, 0, 0]
    theirs = kornia.color.rgb_to_hsv(kornia.enhance.adjust_hue(images[:, 0].double() / 255, turn.double()))[:, 0, 0, 0]
    gap = (ours - theirs + torch.pi) % (2 * torch.pi) - torch.pi
    assert gap.abs().max() < 0.08, "radians"


def test_blur_is_kornias():
    images = random_images(len(KEYS), 2, 16)
    config = OFF.replace(blur=1.0, blur_sigma=(0.3, 2.0))
    chosen, neighbour = draw_blur(KEYS, "head", config)
    assert chosen.all()
    share = neighbour.double()
    sigma = (1 / (2 * torch.log((1 - 2 * share) / share))).sqrt()  # from neighbour / middle = exp(-1 / (2 sigma^2))
    pairs = torch.stack([sigma, sigma], dim=1).repeat_interleave(2, 0)
    reference = kornia.filters.gaussian_blur2d(images.flatten(0, 1).double(), (3, 3), pairs, border_type="replicate")
    assert (apply_blur(images, neighbour).flatten(0, 1) - reference).abs().max() <= 0.51
