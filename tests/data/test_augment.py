import colorsys
import math

import numpy as np
import pytest
import torch

from deftly.contract import Camera, Mirror
from deftly.data.augment import (
    GRAY,
    OFF,
    AugmentConfig,
    apply_colour,
    augment_colour,
    colour_maps,
)
from deftly.data.warp import draw_maps
from deftly.types import Batch
from small_data import random_images, robot

KEYS = torch.arange(1000, 1064)
ONLY = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "noise"), 0.0)


def batch_of(images: dict[str, torch.Tensor], key: torch.Tensor) -> Batch:
    from batches import random_batch  # the other fields do not matter here

    batch = random_batch(len(key))
    batch.key, batch.images = key, images
    return batch


def test_no_change_is_exact():
    images = random_images(3, 2, 9)
    assert torch.equal(apply_colour(images, torch.eye(3).expand(3, 3, 3), torch.zeros(3)), images)
    batch = batch_of({"head": images}, KEYS[:3])
    assert augment_colour(batch, OFF) is batch


@pytest.mark.parametrize("size", [8, 5, 112])  # with and without pixels in groups, and in more pieces than one
def test_the_fused_map_equals_the_arithmetic_in_float64(size):
    images = random_images(8, 2, size)
    matrix, offset = colour_maps(KEYS[:8], "head", AugmentConfig(hue=0.1))
    result = apply_colour(images, matrix, offset)
    exact = torch.einsum("bij,btjhw->btihw", matrix.double(), images.double()) + offset.double().view(-1, 1, 1, 1, 1)
    assert (result.double() - exact.clamp(0, 255)).abs().max() <= 0.5 + 1e-3
    assert result.shape == images.shape
    assert result.dtype == torch.uint8


def test_the_result_keeps_the_memory_layout_of_the_loader():
    images = random_images(2, 1, 8)
    assert apply_colour(images, torch.eye(3).expand(2, 3, 3), torch.zeros(2)).stride() == images.stride()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_part_does_what_it_says_and_no_more(name):
    matrix, offset = (part.double() for part in colour_maps(KEYS, "head", AugmentConfig(**{**ONLY, name: 0.3, "shift_pixels": 0})))
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
    third = list(colour_maps(KEYS, "head", AugmentConfig(**{**ONLY, "hue": 0.5}))[0])
    angles = [math.atan2(float(m[1, 0] - m[0, 1]), float(2 * m[0, 0] - m[1, 0] - m[0, 1])) for m in third]
    assert max(angles) > 2.5 > -2.5 > min(angles), "half a turn to both sides"
    matrix = third[int(np.argmax([float(m[1, 0]) for m in third]))]
    hue = colorsys.rgb_to_hsv(*(matrix @ torch.tensor([0.5, 0.0, 0.0])).clamp(0, 1).tolist())[0]
    assert abs(hue - 1 / 3) < 0.05


def test_augmentation_is_a_function_of_the_sample_not_of_its_batch():
    images = {"head": random_images(6, 2, 8), "wrist": random_images(6, 2, 8, seed=1)}
    config = AugmentConfig(noise=0.05, blur=0.5, erase=0.5)
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


def noisy(strength: float, size: int = 32) -> torch.Tensor:
    """What noise alone adds to grey pictures, in levels [b n]."""
    images = torch.full((64, 1, size, size, 3), 128, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    result = augment_colour(batch_of({"head": images}, KEYS), OFF.replace(noise=strength)).images["head"]
    return result.flatten(1).double() - 128


def test_noise_is_white_and_each_sample_draws_its_strength():
    noise = noisy(0.05)
    levels = noise.std(1) / 255
    assert levels.max() < 0.052
    assert 0.018 < levels.mean() < 0.032
    assert levels.min() < 0.01
    assert noise.mean(1).abs().max() < 1
    assert (noise[:, :-1] * noise[:, 1:]).mean() < 0.1 * noise.var(), "neighbours are unrelated"
    assert abs(float(torch.corrcoef(noise[:8])[0, 1:].abs().max())) < 0.15, "and so are samples"


def test_the_noise_bank_repeats_where_it_is_too_short():
    from deftly.data.augment import NOISE_BANK, _noise_bank

    bank = _noise_bank(torch.device("cpu"), NOISE_BANK + 7)
    assert len(bank) == 2 * NOISE_BANK + 7
    assert torch.equal(bank[:7], bank[2 * NOISE_BANK :])


def test_a_blur_keeps_flat_pictures_and_the_mean():
    config = OFF.replace(blur=1.0)
    flat = torch.full((4, 1, 3, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(augment_colour(batch_of({"head": flat}, KEYS[:4]), config).images["head"], flat)
    images = random_images(64, 2, 24)
    result = augment_colour(batch_of({"head": images}, KEYS), config).images["head"]
    assert result.stride() == images.stride()
    assert (result.double().mean((1, 2, 3, 4)) - images.double().mean((1, 2, 3, 4))).abs().max() < 1.5
    shares = result.double().std((1, 2, 3, 4)) / images.double().std((1, 2, 3, 4))
    assert shares.min() < 0.4, "nine pixels of white noise averaged keep a third of their spread"
    assert shares.max() > 0.95, "sigma 0.1 leaves a picture as it is"


def test_only_the_drawn_share_is_blurred_or_erased():
    images = random_images(64, 1, 12)
    for name in ("blur", "erase"):
        result = augment_colour(batch_of({"head": images}, KEYS), OFF.replace(**{name: 0.3, "blur_sigma": (0.5, 2.0)})).images["head"]
        changed = (result != images).flatten(1).any(1)
        assert 8 <= changed.sum() <= 32, name
        assert result.stride() == images.stride()


def test_a_patch_is_grey_of_the_declared_area_and_the_same_in_all_frames():
    images = random_images(64, 2, 40)
    images[images == 128] = 127
    result = augment_colour(batch_of({"head": images}, KEYS), OFF.replace(erase=1.0, erase_area=(0.05, 0.2))).images["head"]
    erased = (result == 128).all(2)
    assert torch.equal(erased[:, 0], erased[:, 1])
    assert torch.equal(result[~erased[:, :, None].expand_as(result)], images[~erased[:, :, None].expand_as(images)])
    area = erased[:, 0].double().mean((1, 2))
    assert 0.04 < area.min() < 0.09
    assert 0.15 < area.max() < 0.22
    rows, columns = erased[:, 0].any(2).sum(1), erased[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, erased[:, 0].sum((1, 2))), "a rectangle"


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment_colour(batch_of({"head": random_images(2, 1, 8)}, KEYS[:2]), AugmentConfig(noise=0.1, blur=1.0, erase=1.0))
    draw_maps(KEYS, ("head",), ("scene",), AugmentConfig.strong(), 8, 10)
    assert torch.equal(before, torch.get_rng_state())


def test_threads_change_no_bit():
    images, config = random_images(16, 1, 96), AugmentConfig(hue=0.1, noise=0.05, blur=0.5)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(augment_colour(batch_of({"head": images}, KEYS[:16]), config).images["head"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_presets_are_valid_and_change_pixels():
    images = random_images(16, 1, 8)
    for config in (AugmentConfig.strong(), AugmentConfig.other_cameras()):
        assert not torch.equal(augment_colour(batch_of({"head": images}, KEYS[:16]), config).images["head"], images)
        assert AugmentConfig.parse(config.to_dict(), "round trip") == config


def test_what_does_not_fit_the_robot_is_switched_off_and_said():
    body = robot(32, 32)
    config, notes = AugmentConfig(mirror=0.5).fitted(body, ("head",))
    assert config.mirror == 0
    assert notes == ["mirror is off: robot 'toy' declares no mirror"]
    assert AugmentConfig().fitted(body, ("head", "wrist")) == (AugmentConfig(), [])
    state, action = len(body.state), len(body.action)
    plain = {"state_order": range(state), "state_sign": [1] * state, "action_order": range(action), "action_sign": [1] * action}
    own = body.replace(mirror=Mirror.parse({**plain, "cameras": {"head": "head", "wrist": "wrist"}}, "own"))
    assert AugmentConfig(mirror=0.5).fitted(own, ("head",)) == (AugmentConfig(mirror=0.5), [])
    twins = tuple(Camera(name=name, height=32, width=32) for name in ("left", "right"))
    pair = own.replace(cameras=twins, mirror=Mirror.parse({**plain, "cameras": {"left": "right", "right": "left"}}, "pair"))
    config, notes = AugmentConfig(mirror=0.5).fitted(pair, ("left",))
    assert config.mirror == 0
    assert notes == ["mirror is off: camera 'left' would show 'right', which the policy does not look at"]
    assert AugmentConfig(mirror=0.5).fitted(pair, ("left", "right"))[0].mirror == 0.5
    assert "colours may turn into others" in AugmentConfig.other_cameras().fitted(own, ("head",))[1][0]
    assert "approximate" in AugmentConfig.strong().fitted(own, ("head",))[1][0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu_to_one_level():
    images = random_images(6, 2, 8)
    config = AugmentConfig(noise=0.05, blur=0.5, erase=0.5)
    here = augment_colour(batch_of({"head": images}, KEYS[:6]), config).images["head"]
    there = augment_colour(batch_of({"head": images}, KEYS[:6]).to("cuda"), config).images["head"].cpu()
    assert (here.int() - there.int()).abs().max() <= 1
