"""Small episodes with two cameras, and datasets of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deftly.data.writer import DatasetWriter, EpisodeData
from small_data import TASKS, picture, robot


def episode(number: int, length: int) -> EpisodeData:
    """An episode whose every value is a function of its number."""
    draw = np.random.default_rng(number)
    return EpisodeData(
        images={camera: np.stack([picture(20 * number + i, camera, 32, 32) for i in range(length)]) for camera in ("head", "wrist")},
        state=draw.normal(size=(length, 5)).astype(np.float32),
        action=draw.normal(size=(length, 4)).astype(np.float32),
        task=TASKS[number % len(TASKS)],
        extra_frame={"note": draw.normal(size=(length, 2)).astype(np.float32)},
        extra_episode={"seed": number, "scene": f"scene-{number % 2}"},
    )


def write(root: Path, lengths: tuple[int, ...], more: Sequence[EpisodeData] = ()) -> Path:
    """A dataset of episodes of these lengths, and of `more`."""
    with DatasetWriter(root, robot(), extra={"note": ("left", "right")}) as writer:
        for number, length in enumerate(lengths):
            writer.add(episode(number, length))
        for item in more:
            writer.add(item)
        writer.finish()
    return root


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
