import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftly.data.augment import OFF, AugmentConfig
from deftly.data.mirror import draw_mirrored
from deftly.data.warp import copy_shifted, draw_maps, shrink, warp
from deftly.types import UsageError

KEYS = torch.arange(1000, 1064)
CROP = OFF.replace(crop_scale=(0.8, 1.0), crop_ratio=(0.75, 4 / 3))
EVERYTHING = CROP.replace(rotation_degrees=10, shift_pixels=3, mirror=0.5)
SCENE = (("head",), ("scene",))


def stored_frames(size: int, count: int = 5, seed: int = 0) -> np.ndarray:
    frames = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    frames.flags.writeable = False  # as a mapped store is
    return frames


def smooth_frames(size: int, count: int = 5) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    phase = np.arange(count)[:, None, None]
    return np.stack([127 + 100 * np.sin(4 * x + phase), 127 + 100 * np.cos(5 * y + phase), 255 * x * y + 0 * phase], -1).astype(np.uint8)


def one(frames: np.ndarray, config: AugmentConfig, size: int, keys: torch.Tensor = KEYS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, maps, images [b t size size 3]) of the scene camera."""
    rows = np.random.default_rng(1).integers(0, len(frames), (len(keys), 2))
    maps = draw_maps(keys, *SCENE, config, size, frames.shape[1])[0]
    return rows, maps, warp(frames, rows, maps, size)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(-9, 9), st.integers(-9, 9))
def test_a_shift_reads_clamped_coordinates(height, width, dy, dx):
    source = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    target = np.full_like(source, 77)
    copy_shifted(source, target, dy, dx)
    y, x = (np.clip(np.arange(size) + shift, 0, size - 1) for size, shift in ((height, dy), (width, dx)))
    assert np.array_equal(target, source[y][:, x])


def test_nothing_configured_is_a_copy():
    frames = stored_frames(12)
    rows, maps, images = one(frames, OFF, 12)
    assert np.array_equal(maps, np.broadcast_to(np.eye(3, dtype=np.float32)[:2], maps.shape))
    assert np.array_equal(images, frames[rows])


def test_a_shift_and_a_mirror_copy_pixels_exactly():
    frames = stored_frames(12)
    rows, maps, images = one(frames, OFF.replace(shift_pixels=4, mirror=0.5), 12)
    mirrored = draw_mirrored(KEYS, 0.5)
    assert 10 < mirrored.sum() < 54
    for image, row, matrix, flip in zip(images, rows, maps, mirrored, strict=True):
        frame = frames[row][:, :, ::-1] if flip else frames[row]
        dx = round(float(matrix[0, 2] - 11) * -1 if flip else float(matrix[0, 2]))
        x, y = np.clip(np.arange(12) + dx, 0, 11), np.clip(np.arange(12) + round(float(matrix[1, 2])), 0, 11)
        assert np.array_equal(image, frame[:, y][:, :, x])


def test_shifts_are_uniform_and_differ_between_cameras():
    maps = draw_maps(torch.arange(4000), ("a", "b"), ("scene", "scene"), OFF.replace(shift_pixels=3), 32, 32)
    for value in range(-3, 4):
        assert abs((maps[:, :, :, 2] == value).mean() - 1 / 7) < 0.02
    assert not np.array_equal(maps[0], maps[1])


def test_draws_belong_to_the_sample_and_the_camera_alone():
    whole = draw_maps(KEYS, ("a", "b"), ("scene", "scene"), EVERYTHING, 32, 37)
    part = draw_maps(KEYS[10:20], ("b",), ("scene",), EVERYTHING, 32, 37)
    assert np.array_equal(whole[1, 10:20], part[0]), "neither the batch nor the other cameras matter"
    frames = stored_frames(37)
    rows = np.zeros((64, 1), np.int64)
    assert np.array_equal(warp(frames, rows, whole[1], 32)[10:20], warp(frames, rows[10:20], part[0], 32))


def test_wrist_cameras_take_part_in_the_mirror_alone():
    head, wrist = draw_maps(KEYS, ("head", "wrist"), ("scene", "wrist"), EVERYTHING, 32, 37)
    mirrored = draw_mirrored(KEYS, EVERYTHING.mirror)
    plain = draw_maps(KEYS, ("wrist",), ("wrist",), OFF.replace(mirror=EVERYTHING.mirror), 32, 37)[0]
    assert np.array_equal(wrist, plain)
    assert np.array_equal(wrist[:, 0, 0] < 0, mirrored)
    assert np.array_equal(head[:, 0, 0] < 0, mirrored), "one draw for all cameras"
    moved = draw_maps(KEYS, ("wrist",), ("wrist",), EVERYTHING.replace(geometry_on_wrist=True), 32, 37)[0]
    assert not np.array_equal(wrist, moved)


def test_crops_have_the_declared_area_and_ratio_and_real_pixels():
    maps = draw_maps(torch.arange(3000), *SCENE, CROP, 100, 115)[0].astype(np.float64)
    width, height = maps[:, 0, 0] * 100, maps[:, 1, 1] * 100
    area, ratio = width * height / 115**2, width / height
    assert 0.72 < area.min() < 0.82, "a side that does not fit is cut to the frame"
    assert 0.98 < area.max() <= 1 + 1e-6
    assert 0.74 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.35
    left, top = maps[:, 0, 2] + 0.5 - maps[:, 0, 0] / 2, maps[:, 1, 2] + 0.5 - maps[:, 1, 1] / 2
    assert min(left.min(), top.min()) > -1e-4
    assert max((left + width).max(), (top + height).max()) < 115 + 1e-4


def test_a_crop_is_an_area_filtered_resize_of_its_box():
    frames = stored_frames(37)
    rows, maps, images = one(frames, CROP, 32)
    for image, row, matrix in zip(images, rows, maps.astype(np.float64), strict=True):
        width, height = round(matrix[0, 0] * 32), round(matrix[1, 1] * 32)
        left, top = round(matrix[0, 2] + 0.5 - matrix[0, 0] / 2), round(matrix[1, 2] + 0.5 - matrix[1, 1] / 2)
        cut = torch.from_numpy(frames[row][:, top : top + height, left : left + width]).permute(0, 3, 1, 2).float()
        exact = torch.nn.functional.interpolate(cut, (32, 32), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
        assert np.abs(image - exact).max() <= 1.01


def test_a_rotation_turns_the_picture_about_its_middle():
    size = 65
    frame = np.zeros((1, size, size, 3), np.uint8)
    frame[0, 32, 52:60] = 255  # a bar to the right of the middle
    config = OFF.replace(rotation_degrees=10)
    maps = draw_maps(KEYS, *SCENE, config, size, size)[0]
    angle = np.degrees(np.arcsin(maps[:, 1, 0]))
    assert 8 < angle.max() <= 10 + 1e-4
    assert -10 - 1e-4 <= angle.min() < -8
    images = warp(frame, np.zeros((64, 1), np.int64), maps, size)[:, 0, :, :, 0].astype(float)
    y, x = np.mgrid[:size, :size]
    for image, turn in zip(images, angle, strict=True):
        at = math.degrees(math.atan2((image * (y - 32)).sum(), (image * (x - 32)).sum()))
        assert abs(at + turn) < 0.6, "the map goes from the new picture to the old one"


def test_a_general_map_is_bilinear_with_the_edge_repeated():
    size, stored = 24, 29
    frames = stored_frames(stored)
    rows, maps, images = one(frames, EVERYTHING, size)
    y, x = np.mgrid[:size, :size]
    points = np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    for image, row, matrix in zip(images[:12], rows, maps, strict=False):
        u, v = np.clip(matrix.astype(np.float64) @ points, 0, stored - 1)
        x0, y0 = np.minimum(np.floor(u), stored - 2).astype(int), np.minimum(np.floor(v), stored - 2).astype(int)
        a, b = (u - x0)[:, None], (v - y0)[:, None]
        f = frames[row].astype(np.float64)
        top = f[:, y0, x0] * (1 - a) + f[:, y0, x0 + 1] * a
        bottom = f[:, y0 + 1, x0] * (1 - a) + f[:, y0 + 1, x0 + 1] * a
        exact = (top * (1 - b) + bottom * b).reshape(2, size, size, 3)
        assert np.abs(image - exact).max() <= 0.52


def test_flipping_the_frame_and_flipping_the_map_agree():
    frames = smooth_frames(37)
    rows = np.arange(5)[:, None]
    plain = draw_maps(KEYS[:5], *SCENE, EVERYTHING.replace(mirror=0), 32, 37)[0]
    flipped = draw_maps(KEYS[:5], *SCENE, EVERYTHING.replace(mirror=1), 32, 37)[0]
    direct = warp(frames, rows, flipped, 32).astype(int)
    assert np.abs(direct - warp(frames[:, :, ::-1].copy(), rows, plain, 32)).max() <= 1


def test_threads_change_no_bit():
    frames = stored_frames(37)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append([one(frames, config, 32)[2] for config in (CROP, EVERYTHING)])
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_shrink_keeps_a_flat_picture():
    assert (shrink(np.full((2, 37, 41, 3), 93, np.uint8), 32) == 93).all()


def test_frames_are_stored_larger_only_for_crops():
    assert CROP.stored_size(96) == 111
    assert OFF.replace(shift_pixels=4, rotation_degrees=10, mirror=0.5).stored_size(96) == 96
    assert OFF.replace(crop_ratio=(0.9, 1.1)).stored_size(96) == 111


def test_ranges_are_checked():
    for wrong in (
        {"crop_scale": (0.9, 0.8)},
        {"crop_scale": (0.9, 1.1)},
        {"rotation_degrees": 20},
        {"mirror": 1.5},
        {"crop_ratio": (0.1, 1)},
    ):
        with pytest.raises(UsageError):
            OFF.replace(**wrong)
