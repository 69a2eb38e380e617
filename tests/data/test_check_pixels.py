"""A frozen camera is found although its video was encoded with loss; a live camera that looks at a still scene is not called one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from deftly.contract import Camera, Embodiment, Vector
from deftly.data.check import pixels
from deftly.data.check.findings import CheckConfig
from deftly.data.check.run import check
from deftly.data.dataset import Dataset
from deftly.data.video import VideoClip
from deftly.data.writer import DatasetWriter, EpisodeData, Images
from recordings import png

SIDE, LENGTH, FPS = 96, 75, 30
NAMES = Vector(names=("x", "y"), units=("m", "m"))
ROBOT = Embodiment(name="arm", rate_hz=FPS, cameras=(Camera(name="head", height=SIDE, width=SIDE),), state=NAMES, action=NAMES)


def scene() -> np.ndarray:
    """A picture with edges, colours and grain, as float."""
    draw = np.random.default_rng(0)
    coarse = np.kron(draw.uniform(20, 230, (6, 6, 3)), np.ones((16, 16, 1)))
    return coarse + draw.normal(size=(SIDE, SIDE, 3)) * 6


def film(noise: float = 0.0, moves: int = 0) -> np.ndarray:
    """Frames of the scene: with the noise of a live sensor, or with something that moves in the last `moves` of them."""
    draw = np.random.default_rng(1)
    frames = np.stack([scene() + noise * draw.normal(size=(SIDE, SIDE, 3)) for _ in range(LENGTH)]).clip(0, 255).astype(np.uint8)
    for i in range(LENGTH - moves, LENGTH):
        frames[i, 40:48, i : i + 8] = (200, 30, 30)
    return frames


def encoded(frames: np.ndarray, codec: str, options: dict[str, str], path: Path) -> VideoClip:
    with av.open(str(path), "w", format="mp4") as output:
        stream: Any = output.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return VideoClip(path)


def found(root: Path, images: Images) -> list[str]:
    """What a full check of one such episode warns of."""
    draw = np.random.default_rng(2)
    kind = "image" if isinstance(images, list) else "video"
    with DatasetWriter(root, ROBOT, images={"head": kind}) as writer:
        state = np.cumsum(draw.normal(size=(LENGTH, 2)), axis=0).astype(np.float32)
        writer.add(EpisodeData(images={"head": images}, state=state, action=state, task="go"))
        writer.finish()
    return [finding.code for finding in check(root, CheckConfig(full=True)).findings if finding.field == "head"]


def ours(frames: np.ndarray, path: Path) -> Images:
    return frames


def av1(frames: np.ndarray, path: Path) -> Images:
    """As LeRobot encodes."""
    return encoded(frames, "libsvtav1", {"crf": "30", "g": "2"}, path)


def x264(frames: np.ndarray, path: Path) -> Images:
    return encoded(frames, "libx264", {"crf": "23"}, path)


@pytest.mark.parametrize("at_once", [256, 7])
@pytest.mark.parametrize("encode", [ours, av1, x264])
def test_a_frozen_camera_is_found_behind_a_lossy_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode, at_once: int):
    monkeypatch.setattr(pixels, "AT_ONCE", at_once)
    assert found(tmp_path / "data", encode(film(), tmp_path / "clip.mp4")) == ["frozen_camera"]
    frames = Dataset.open(tmp_path / "data").frames(0, "head")
    assert (frames != frames[0]).any(), "the encoder changed nothing, so this test says nothing"


@pytest.mark.parametrize("encode", [ours, av1, x264])
@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_a_live_camera_at_a_still_scene_is_not_called_frozen(tmp_path: Path, encode, noise: float):
    assert found(tmp_path / "data", encode(film(noise), tmp_path / "clip.mp4")) == []


@pytest.mark.parametrize("encode", [ours, av1, x264])
@pytest.mark.parametrize("moves", [2, 4, 40])
def test_a_camera_that_sees_something_move_for_a_moment_is_not_called_frozen(tmp_path: Path, encode, moves: int):
    assert found(tmp_path / "data", encode(film(moves=moves), tmp_path / "clip.mp4")) == []


def test_pictures_that_are_kept_exactly_are_compared_exactly(tmp_path: Path):
    frames = film()
    assert found(tmp_path / "same", [png(frame) for frame in frames]) == ["frozen_camera"]
    frames[60, 0, 0] += 1
    assert found(tmp_path / "other", [png(frame) for frame in frames]) == []
