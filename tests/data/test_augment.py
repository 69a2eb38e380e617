import colorsys
import math

import numpy as np
import pytest
import torch

from deftly.data.augment import (
    GRAY,
    OFF,
    AugmentConfig,
    apply_colour,
    augment_colour,
    colour_maps,
    draw_shifts,
    noise_levels,
)
from deftly.types import Batch
from small_data import random_images

KEYS = torch.arange(1000, 1064)
ONLY = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "noise"), 0.0)


def batch_of(images: dict[str, torch.Tensor], key: torch.Tensor) -> Batch:
    from batches import random_batch  # the other fields do not matter here

    batch = random_batch(len(key))
    batch.key, batch.images = key, images
    return batch


def test_shifts_are_uniform_counted_and_differ_between_cameras():
    shifts = draw_shifts(torch.arange(4000), 2, 3)
    assert shifts.shape == (2, 4000, 2)
    for value in range(-3, 4):
        assert abs((shifts == value).mean() - 1 / 7) < 0.02
    assert not np.array_equal(shifts[0], shifts[1])
    assert np.array_equal(shifts[:, 10:20], draw_shifts(torch.arange(10, 20), 2, 3)), "a draw belongs to its sample, not to its batch"


def test_no_change_is_exact():
    images = random_images(3, 2, 9)
    assert torch.equal(apply_colour(images, torch.eye(3).expand(3, 3, 3), torch.zeros(3)), images)
    batch = batch_of({"head": images}, KEYS[:3])
    assert augment_colour(batch, OFF) is batch


@pytest.mark.parametrize("size", [8, 5])  # with and without pixels in groups
def test_the_fused_map_equals_the_arithmetic_in_float64(size):
    images = random_images(8, 2, size)
    matrix, offset = colour_maps(KEYS[:8], 1, AugmentConfig(hue=0.1))
    result = apply_colour(images, matrix[0], offset[0])
    exact = torch.einsum("bij,btjhw->btihw", matrix[0].double(), images.double()) + offset[0].double().view(-1, 1, 1, 1, 1)
    assert (result.double() - exact.clamp(0, 255)).abs().max() <= 0.5 + 1e-3
    assert result.shape == images.shape
    assert result.dtype == torch.uint8


def test_the_result_keeps_the_memory_layout_of_the_loader():
    images = random_images(2, 1, 8)
    assert apply_colour(images, torch.eye(3).expand(2, 3, 3), torch.zeros(2)).stride() == images.stride()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_part_does_what_it_says_and_no_more(name):
    matrix, offset = (part[0].double() for part in colour_maps(KEYS, 1, AugmentConfig(**{**ONLY, name: 0.3, "shift_pixels": 0})))
    gray = torch.tensor(GRAY, dtype=torch.float64)
    white = matrix.sum(dim=2)  # what becomes of (1, 1, 1)
    if name == "brightness":
        assert torch.allclose(matrix, white[:, :1, None] * torch.eye(3, dtype=torch.float64), atol=1e-6)
        assert 0.7 <= white.min() < 0.8 < 1.2 < white.max() <= 1.3
    if name == "contrast":
        middle = 127.5 * white + offset[:, None]
        assert (middle - 127.5).abs().max() <= 0.5 + 1e-4, "middle grey stays, but for the rounded offset"
    if name == "saturation":
        assert torch.allclose(white, torch.ones_like(white), atol=1e-6), "greys stay"
        assert torch.allclose(gray @ matrix, gray.expand(64, 3), atol=1e-6), "and so does the luma of every colour"
    if name == "hue":
        assert torch.allclose(white, torch.ones_like(white), atol=1e-6)
        assert torch.allclose(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64).expand(64, 3, 3), atol=1e-5), "a rotation"
    assert (offset == 0).all() or name == "contrast"


def test_a_third_of_a_turn_of_hue_makes_red_green():
    third = list(colour_maps(KEYS, 1, AugmentConfig(**{**ONLY, "hue": 0.5}))[0][0])
    angles = [math.atan2(float(m[1, 0] - m[0, 1]), float(2 * m[0, 0] - m[1, 0] - m[0, 1])) for m in third]
    assert max(angles) > 2.5 > -2.5 > min(angles), "half a turn to both sides"
    matrix = third[int(np.argmax([float(m[1, 0]) for m in third]))]
    hue = colorsys.rgb_to_hsv(*(matrix @ torch.tensor([0.5, 0.0, 0.0])).clamp(0, 1).tolist())[0]
    assert abs(hue - 1 / 3) < 0.05


def test_augmentation_is_a_function_of_the_sample_not_of_its_batch():
    images = {"head": random_images(6, 2, 8), "wrist": random_images(6, 2, 8, seed=1)}
    config = AugmentConfig(noise=0.05)
    whole = augment_colour(batch_of(images, KEYS[:6]), config)
    part = augment_colour(batch_of({name: image[2:5] for name, image in images.items()}, KEYS[2:5]), config)
    for name in images:
        assert torch.equal(whole.images[name][2:5], part.images[name])
        assert not torch.equal(whole.images[name], images[name])


def test_all_frames_of_a_window_get_the_same_colours_and_other_samples_others():
    frame = random_images(1, 1, 8)
    result = augment_colour(batch_of({"head": frame.expand(4, 3, 3, 8, 8)}, KEYS[:4]), AugmentConfig()).images["head"]
    assert torch.equal(result[:, 0], result[:, 1])
    assert torch.equal(result[:, 0], result[:, 2])
    assert not torch.equal(result[0], result[1])


def test_noise_has_the_strength_asked_for_and_is_counted():
    noise = noise_levels(KEYS, "head", 0.02, 5000, torch.device("cpu"))
    assert abs(float(noise.std()) / (255 * 0.02) - 1) < 0.02
    assert abs(float(noise.mean())) < 0.1
    assert torch.equal(noise[3:5], noise_levels(KEYS[3:5], "head", 0.02, 5000, torch.device("cpu")))
    assert not torch.equal(noise[0], noise[1])
    assert noise_levels(KEYS[:1], "head", 0.02, (1 << 20) + 7, torch.device("cpu")).shape == (1, (1 << 20) + 7)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment_colour(batch_of({"head": random_images(2, 1, 8)}, KEYS[:2]), AugmentConfig(noise=0.1))
    draw_shifts(KEYS, 1, 4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu_to_one_level():
    images = random_images(6, 2, 8)
    config = AugmentConfig(noise=0.05)
    here = augment_colour(batch_of({"head": images}, KEYS[:6]), config).images["head"]
    there = augment_colour(batch_of({"head": images}, KEYS[:6]).to("cuda"), config).images["head"].cpu()
    assert (here.int() - there.int()).abs().max() <= 1
