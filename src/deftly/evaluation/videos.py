"""Rollouts as moving pictures. An episode is recorded as its actions, and drawn by playing them again in a world with larger pictures.

So recording costs nothing while an episode is judged, and cannot change its outcome.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from deftly import storage
from deftly.rollout import Actor
from deftly.types import Observation, World

VIDEO_SIZE = 320
GAP = 4
_TAIL_S = 0.8  # the last frame stands still for a moment, so that a loop can be read


class Recorded:
    """An actor that remembers what it did."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.actions: list[np.ndarray] = []

    @property
    def clipped(self) -> int:
        return self._actor.clipped

    def reset(self, key: int) -> None:
        self.actions = []
        self._actor.reset(key)

    def act(self, observation: Observation) -> np.ndarray:
        action = self._actor.act(observation)
        self.actions.append(np.array(action))
        return action


def replay(world: World, seed: int, actions: Sequence[np.ndarray], options: dict[str, Any] | None = None) -> list[np.ndarray]:
    """Play `actions` again from the initial state of `seed`: frames uint8 [h w 3], the first before any action, one more than actions."""
    observation, _ = world.reset(seed=seed, options=options)
    frames = [side_by_side(observation)]
    for action in actions:
        observation, _, terminated, truncated, _ = world.step(action)
        frames.append(side_by_side(observation))
        if terminated or truncated:
            break
    return frames


def side_by_side(observation: Observation) -> np.ndarray:
    """All cameras of an observation in one picture, at the height of the first, enlarged by whole factors when they are small."""
    pictures = [enlarge(np.asarray(observation["images"][name])) for name in observation["images"]]
    if not pictures:
        raise ValueError("an observation without images cannot be drawn: build the world with render=True")
    height = pictures[0].shape[0]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    parts = [pictures[0]]
    for picture in pictures[1:]:
        if picture.shape[0] != height:
            width = round(picture.shape[1] * height / picture.shape[0])
            picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
        parts += [gap, picture]
    return np.concatenate(parts, axis=1)


def enlarge(picture: np.ndarray, size: int = VIDEO_SIZE) -> np.ndarray:
    """Whole-number enlargement of a picture whose larger side is at most half of `size`; pixels stay visible as pixels."""
    factor = max(1, size // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def hold_last(frames: Sequence[np.ndarray], rate_hz: float) -> list[np.ndarray]:
    return [*frames, *[frames[-1]] * round(_TAIL_S * rate_hz)]


def write_mp4(path: Path, frames: Sequence[np.ndarray], rate_hz: float) -> None:
    """h264 that browsers play; odd sides lose one pixel. One thread, so that the same frames give the same bytes."""
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(rate_hz), options={"crf": "24", "preset": "medium", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in hold_last(frames, rate_hz):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")))
        container.mux(stream.encode())
    storage.write_bytes(path, memory.getvalue())


def write_gif(path: Path, frames: Sequence[np.ndarray], rate_hz: float) -> None:
    """An endless GIF with one palette for all frames, so that colours do not flicker."""
    frames = hold_last(frames, rate_hz)
    sample = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]], axis=0)
    palette = Image.fromarray(sample).quantize(255, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in frames]
    memory = io.BytesIO()
    # GIF counts in hundredths of a second
    duration = 10 * max(2, round(100 / rate_hz))
    pictures[0].save(memory, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=False)
    storage.write_bytes(path, memory.getvalue())
