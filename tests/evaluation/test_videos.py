"""Moving pictures: replayed from actions, drawn larger, playable."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deftly.evaluation import videos
from deftly.evaluation.closed_loop import larger
from deftly.evaluation.videos import Recorded, enlarge, replay, side_by_side, write_gif, write_mp4
from deftly.rollout import rollout
from deftly.sim.tabletop import TabletopConfig
from evaluation.toy import ToyAgent, ToyConfig, embodiment


def test_a_recorded_episode_is_the_same_episode_and_can_be_replayed() -> None:
    world, agent = ToyConfig(size=8).build(), ToyAgent(embodiment())
    recorded = Recorded(agent)
    episode = rollout(recorded, world, 5)
    assert episode.state_hash == rollout(agent, world, 5).state_hash
    assert len(recorded.actions) == episode.steps
    frames = replay(ToyConfig(size=64).build(), 5, recorded.actions)
    assert len(frames) == episode.steps + 1
    assert replay(ToyConfig(size=64).build(), 5, [*recorded.actions, recorded.actions[-1]])[-1].shape == frames[0].shape  # it ended
    assert recorded.clipped == 0
    recorded.reset(0)
    assert recorded.actions == []


def test_cameras_stand_side_by_side_at_one_height() -> None:
    pictures = {"head": np.full((320, 320, 3), 1, np.uint8), "wrist": np.full((160, 320, 3), 2, np.uint8)}
    found = side_by_side({"images": pictures, "state": np.zeros(1), "instruction": ""})
    assert found.shape == (320, 320 + videos.GAP + 640, 3)
    assert found[0, 0, 0] == 1
    assert found[0, -1, 0] == 2
    with pytest.raises(ValueError, match="render=True"):
        side_by_side({"images": {}, "state": np.zeros(1), "instruction": ""})


def test_small_pictures_are_enlarged_by_whole_pixels() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarge(small, 7)
    assert large.shape == (6, 6, 3)
    assert (large[::3, ::3] == small).all()
    assert enlarge(large, 6) is not None
    assert enlarge(np.zeros((400, 300, 3), np.uint8)).shape == (400, 300, 3)


def moving(count: int = 5) -> list[np.ndarray]:
    frames = []
    for i in range(count):
        frame = np.full((49, 65, 3), 40, np.uint8)
        frame[10:30, 8 * i : 8 * i + 16] = (220, 30, 30)
        frames.append(frame)
    return frames


def test_mp4_plays_and_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, moving(), 10)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5 + 8  # the last one is held
    assert frames[0].shape == (48, 64, 3)
    assert np.abs(frames[2][:, :].astype(int) - moving()[2][:48, :64]).mean() < 12


def test_gif_keeps_colours_and_rate(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", moving(), 10)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames >= 5
        assert picture.info["duration"] == 100
        assert picture.info["loop"] == 0
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - moving()[0]).max() < 10


def test_people_get_larger_pictures_where_the_world_can() -> None:
    assert larger(TabletopConfig(image_size=96)).image_size == videos.VIDEO_SIZE
    assert larger(TabletopConfig(image_size=640)).image_size == 640
    assert larger(ToyConfig()) == ToyConfig()
