"""Frames come back from where they were put, and what is no video is refused."""

from fractions import Fraction

import av
import numpy as np
import pytest

from deftly.data import video
from deftly.data.video import VideoClip, VideoWriter, decode, decode_all, probe, sample
from deftly.types import DataError
from small_data import picture


def pictures(count: int, first: int = 0, height: int = 32, width: int = 48) -> np.ndarray:
    return np.stack([picture(first + i, "head", height, width) for i in range(count)])


def clip(path, count: int = 9, first: int = 0, fps: int = 10) -> VideoClip:
    with VideoWriter(path, fps, 32, 48) as file:
        file.add_frames(pictures(count, first))
    return VideoClip(path)


def foreign(path, times: list[int], base: int = 1000) -> VideoClip:
    """A clip whose frames are at `times` / `base` seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, base)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i, "head", 32, 48), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return VideoClip(path)


def test_frames_survive_within_what_chroma_subsampling_costs(tmp_path):
    frames = pictures(12)
    with VideoWriter(tmp_path / "a.mp4", 10, 32, 48) as file:
        assert file.add_frames(frames) == 0
    decoded = decode(tmp_path / "a.mp4", 0.0, 10, np.arange(12), 32, 48)
    assert decoded.dtype == np.uint8
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 4


def test_every_frame_of_every_episode_is_at_its_place_over_fps(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 30, 32, 48) as file:
        starts = [file.add_frames(pictures(n, first)) for n, first in ((7, 0), (5, 50), (1, 90))]
    assert starts == [0, 7, 12]
    info = probe(tmp_path / "a.mp4", 30)
    assert (info.num_frames, info.on_grid, info.codec, info.pix_fmt) == (13, True, "h264", "yuv420p")
    everything = decode(tmp_path / "a.mp4", 0.0, 30, np.arange(13), 32, 48)
    for start, count in zip(starts, (7, 5, 1), strict=True):
        episode = decode(tmp_path / "a.mp4", start / 30, 30, np.arange(count), 32, 48)
        assert np.array_equal(episode, everything[start : start + count])


def test_indices_may_jump_repeat_and_run_backwards(tmp_path):
    clip(tmp_path / "a.mp4", 60)
    everything = decode(tmp_path / "a.mp4", 0.0, 10, np.arange(60), 32, 48)
    wanted = np.array([59, 3, 3, 40, 0, 41])
    assert np.array_equal(decode(tmp_path / "a.mp4", 0.0, 10, wanted, 32, 48), everything[wanted])
    assert decode(tmp_path / "a.mp4", 0.0, 10, np.array([], dtype=int), 32, 48).shape == (0, 32, 48, 3)
    assert np.array_equal(np.stack(list(decode_all(tmp_path / "a.mp4", 32, 48, 5))), everything[:5])


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        clip(tmp_path / name, 20)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_copied_clips_decode_to_the_same_frames(tmp_path):
    clips = [clip(tmp_path / f"{i}.mp4", count=5 + i, first=20 * i) for i in range(3)]
    with VideoWriter(tmp_path / "all.mp4", 10, 32, 48, like=clips[0]) as file:
        starts = [file.add_clip(item) for item in clips]
        assert file.describe()["video.codec"] == "h264"
    assert starts == [0, 5, 11]
    assert probe(tmp_path / "all.mp4", 10).on_grid
    for start, item in zip(starts, clips, strict=True):
        count = probe(item.path, 10).num_frames
        original = np.stack(list(decode_all(item.path, 32, 48, 100)))
        assert np.array_equal(decode(tmp_path / "all.mp4", start / 10, 10, np.arange(count), 32, 48), original)


def test_packets_off_the_grid_are_not_copied(tmp_path):
    late = foreign(tmp_path / "late.mp4", [0, 100, 207, 300])
    assert not probe(late.path, 10).on_grid
    with VideoWriter(tmp_path / "out.mp4", 10, 32, 48, like=clip(tmp_path / "a.mp4")) as file:
        with pytest.raises(ValueError, match="cannot be copied"):
            file.add_clip(late)
        with pytest.raises(ValueError, match="copied packets"):
            file.add_frames(pictures(1))
        file.add_clip(VideoClip(tmp_path / "a.mp4"))
    assert np.array_equal(sample(late, 10, np.array([1, 2]), 32, 48, "x"), np.stack(list(decode_all(late.path, 32, 48, 9)))[1:3])
    with pytest.raises(DataError, match="holds 1 of 2 sampled"):
        sample(late, 10, np.array([1, 20]), 32, 48, "x")


def test_clips_of_other_sizes_do_not_fit(tmp_path):
    a = clip(tmp_path / "a.mp4")
    with VideoWriter(tmp_path / "b.mp4", 10, 64, 48) as file:
        file.add_frames(pictures(3, height=64))
    assert not probe(a.path, 10).fits(probe(tmp_path / "b.mp4", 10))
    assert probe(a.path, 10).fits(probe(clip(tmp_path / "c.mp4", 4).path, 10))


def test_a_frame_that_is_not_there_is_an_error_with_the_times(tmp_path):
    clip(tmp_path / "a.mp4", 9)
    with pytest.raises(DataError, match=r"episode 3: .*a\.mp4 has frames for 9 of 12 times"):
        decode(tmp_path / "a.mp4", 0.0, 10, np.arange(12), 32, 48, "episode 3")
    with pytest.raises(DataError, match="0 of 2"):
        decode(tmp_path / "a.mp4", 0.05, 10, np.arange(2), 32, 48)


def test_frames_of_another_size_are_an_error(tmp_path):
    clip(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"32 x 48, info\.json says 48 x 48"):
        decode(tmp_path / "a.mp4", 0.0, 10, np.arange(2), 48, 48)
    with pytest.raises(DataError, match="32 x 48"):
        list(decode_all(tmp_path / "a.mp4", 48, 48, 3))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_an_error(tmp_path, keep):
    clip(tmp_path / "a.mp4", 40)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: int(len(data) * keep)])
    for read in (lambda p: probe(p, 10), lambda p: decode(p, 0.0, 10, np.arange(40), 32, 48), lambda p: list(decode_all(p, 32, 48, 99))):
        with pytest.raises(DataError, match=r"b\.mp4") as caught:
            read(tmp_path / "b.mp4")
        assert "\n" not in str(caught.value)


def test_damaged_bytes_never_hang_or_crash(tmp_path):
    data = bytearray(clip(tmp_path / "a.mp4", 20).path.read_bytes())
    draw = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(data)
        for place in draw.integers(0, len(data), size=20):
            damaged[place] = draw.integers(0, 256)
        (tmp_path / "b.mp4").write_bytes(damaged)
        for read in (lambda p: probe(p, 10), lambda p: decode(p, 0.0, 10, np.arange(20), 32, 48)):
            try:
                read(tmp_path / "b.mp4")
            except DataError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_a_script_that_names_other_files_is_not_followed(tmp_path):
    clip(tmp_path / "secret.mp4")
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "c.mp4").write_text("#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    for name in ("b.mp4", "c.mp4", "missing.mp4"):
        with pytest.raises(DataError):
            probe(tmp_path / name, 10)


def test_what_cannot_be_written_is_refused(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10, 32, 48) as file:
        with pytest.raises(ValueError, match="expected uint8"):
            file.add_frames(np.zeros((1, 32, 40, 3), np.uint8))
        with pytest.raises(ValueError, match="expected uint8"):
            file.add_frames(np.zeros((1, 32, 48, 3), np.float32))
        file.add_frames(pictures(1))
        assert file.num_bytes >= 0


def test_the_quality_is_what_was_promised():
    assert int(video.ENCODER_OPTIONS["crf"]) <= 18
