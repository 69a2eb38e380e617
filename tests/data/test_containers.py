"""Files that are kept open give the frames that freshly opened ones give, in any order of asking, and damage is an error."""

import os
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from deftly.data import containers
from deftly.data.containers import MAX_OPEN
from deftly.data.video import ENCODER_OPTIONS, decode, stream
from deftly.types import DataError
from small_data import picture

SIDE, COUNT, FPS = 48, 90, 10
CODERS = {
    "ours": ("libx264", ENCODER_OPTIONS),
    "long groups and frames out of order": ("libx264", {"g": "30", "bf": "3"}),
    "open groups": ("libx264", {"g": "15", "bf": "3", "x264-params": "open-gop=1"}),
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "lp=1"}),
}


def write(path: Path, coder: str = "ours", times: list[float] | None = None, count: int = COUNT) -> Path:
    """Frames that differ from their neighbours everywhere, at `times` seconds or on the grid."""
    name, options = CODERS[coder]
    with av.open(str(path), "w") as container:
        made = container.add_stream(name, rate=FPS, options=options)
        made.width = made.height = SIDE
        made.pix_fmt, made.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        made.codec_context.thread_count = 1
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, "head", SIDE, SIDE), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[i] if times else i / FPS)), Fraction(1, 1000)
            container.mux(made.encode(frame))
        container.mux(made.encode(None))
    return path


def fresh(path: Path, indices) -> np.ndarray:
    """The same from a decoder that knows nothing of earlier calls, through PyAV alone."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[i] for i in indices])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("coder", CODERS)
def test_any_order_of_asking_gives_the_same_frames(tmp_path, coder):
    path = write(tmp_path / "a.mp4", coder)
    everything = fresh(path, range(COUNT))
    draw = np.random.default_rng(0)
    for _ in range(60):
        first = int(draw.integers(0, COUNT - 8))
        wanted = draw.permutation(np.arange(first, first + int(draw.integers(1, 8))))
        assert np.array_equal(decode(path, 0.0, FPS, wanted, SIDE, SIDE), everything[wanted])
    for first in range(0, COUNT - 10, 10):  # forward, as an epoch in sequence asks
        assert np.array_equal(decode(path, 0.0, FPS, np.arange(first, first + 10), SIDE, SIDE), everything[first : first + 10])
    assert np.array_equal(decode(path, 4.5, FPS, np.arange(9), SIDE, SIDE), everything[45:54])


def test_a_stream_is_every_frame_once(tmp_path):
    path = write(tmp_path / "a.mp4")
    times, frames = zip(*stream(path, SIDE, SIDE), strict=True)
    assert np.allclose(times, np.arange(COUNT) / FPS)
    assert np.array_equal(np.stack(frames), fresh(path, range(COUNT)))
    times, frames = zip(*stream(path, SIDE, SIDE, start_s=7.1), strict=True)
    assert np.allclose(times, np.arange(71, COUNT) / FPS)
    assert np.array_equal(frames[0], fresh(path, [71])[0])
    with pytest.raises(DataError, match=r"a\.mp4: frames are 48 x 48, info\.json says 48 x 50"):
        next(stream(path, SIDE, 50))


def test_going_on_does_not_seek(tmp_path, monkeypatch):
    path, seeks = write(tmp_path / "a.mp4"), []
    seek = containers.Reader._seek
    monkeypatch.setattr(containers.Reader, "_seek", lambda self, *a: (seeks.append(a), seek(self, *a))[1])
    for first in range(0, 80, 8):
        decode(path, 0.0, FPS, np.arange(first, first + 8), SIDE, SIDE)
    assert len(seeks) == 1
    decode(path, 0.0, FPS, np.array([79, 80, 81]), SIDE, SIDE)  # the last frame of before is still there
    decode(path, 0.0, FPS, np.array([89]), SIDE, SIDE)
    assert len(seeks) == 1
    decode(path, 0.0, FPS, np.array([5, 50]), SIDE, SIDE)
    assert len(seeks) == 3


def close_all() -> None:
    while containers._open.readers:
        containers._open.readers.popitem()[1].close()


def test_few_files_stay_open(tmp_path):
    close_all()
    paths = [write(tmp_path / f"{i}.mp4", count=3) for i in range(MAX_OPEN + 5)]
    for path in paths:
        decode(path, 0.0, FPS, np.arange(3), SIDE, SIDE)
    assert len(containers._open.readers) == MAX_OPEN
    held = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    assert sum(name.endswith(".mp4") for name in held) == MAX_OPEN
    close_all()
    assert not containers._open.readers


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = write(tmp_path / "a.mp4")
    before = decode(path, 0.0, FPS, np.arange(5), SIDE, SIDE)
    other = write(tmp_path / "b.mp4", times=[(i + 20) / FPS for i in range(COUNT - 20)], count=COUNT - 20)
    os.replace(other, path)
    with pytest.raises(DataError, match="frames for 0 of 5"):
        decode(path, 0.0, FPS, np.arange(5), SIDE, SIDE)
    assert np.array_equal(decode(path, 2.0, FPS, np.arange(5), SIDE, SIDE), before)
    path.unlink()
    with pytest.raises(DataError, match="missing video file"):
        decode(path, 0.0, FPS, np.arange(5), SIDE, SIDE)


def test_threads_and_forks_have_files_of_their_own(tmp_path):
    path = write(tmp_path / "a.mp4")
    everything = decode(path, 0.0, FPS, np.arange(COUNT), SIDE, SIDE)
    wrong: list[int] = []

    def work(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(40):
            wanted = np.sort(draw.integers(0, COUNT, 4))
            if not np.array_equal(decode(path, 0.0, FPS, wanted, SIDE, SIDE), everything[wanted]):
                wrong.append(seed)
        close_all()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    decode(path, 0.0, FPS, np.arange(5), SIDE, SIDE)
    if (child := os.fork()) == 0:
        alone = not containers._open.readers
        os._exit(0 if alone and np.array_equal(decode(path, 0.0, FPS, np.arange(5, 60), SIDE, SIDE), everything[5:60]) else 1)
    assert np.array_equal(decode(path, 0.0, FPS, np.arange(5, 80), SIDE, SIDE), everything[5:80])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_frames_off_the_grid_go_to_the_nearest_index(tmp_path):
    draw = np.random.default_rng(3)
    times = [i / FPS + float(draw.uniform(-0.4, 0.4)) / FPS for i in range(COUNT)]
    times[0] = 0.0
    path = write(tmp_path / "a.mp4", times=times)
    everything = fresh(path, range(COUNT))
    assert np.array_equal(decode(path, 0.0, FPS, np.arange(COUNT), SIDE, SIDE), everything)
    for first in draw.integers(0, COUNT - 4, 30):
        wanted = np.arange(first, first + 4)
        assert np.array_equal(decode(path, 0.0, FPS, wanted, SIDE, SIDE), everything[wanted])


def test_of_two_frames_at_one_index_the_nearer_one_counts(tmp_path):
    path = write(tmp_path / "a.mp4", times=[0.0, 0.06, 0.11, 0.2, 0.3], count=5)
    everything = fresh(path, range(5))
    assert np.array_equal(decode(path, 0.0, FPS, np.arange(4), SIDE, SIDE), everything[[0, 2, 3, 4]])


def test_a_frame_that_was_dropped_is_never_replaced_by_its_neighbour(tmp_path):
    path = write(tmp_path / "a.mp4", times=[i / FPS for i in range(COUNT) if i != 40], count=COUNT - 1)
    with pytest.raises(DataError, match="frames for 5 of 6"):
        decode(path, 0.0, FPS, np.arange(38, 44), SIDE, SIDE)
    assert len(decode(path, 0.0, FPS, np.arange(41, 44), SIDE, SIDE)) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("coder", ["ours", "av1"])
def test_a_damaged_group_is_an_error_and_never_a_stale_frame(tmp_path, coder):
    path = write(tmp_path / "a.mp4", coder)
    everything = decode(path, 0.0, FPS, np.arange(COUNT), SIDE, SIDE)
    with av.open(str(path)) as container:
        places = [(entry.pos, entry.size) for entry in container.streams.video[0].index_entries]
    data, draw, refused = path.read_bytes(), np.random.default_rng(1), 0
    for trial in range(12):
        first = int(draw.integers(10, 60))
        damaged = bytearray(data)
        for pos, size in places[first : first + 12]:  # several groups
            damaged[pos + 4 : pos + size] = bytes(size - 4) if trial % 2 else draw.bytes(size - 4)
        other = tmp_path / f"{trial}.mp4"
        other.write_bytes(damaged)
        try:
            found = decode(other, 0.0, FPS, np.arange(first, first + 12), SIDE, SIDE)
        except DataError:
            refused += 1
        else:
            stale = [(found[i] == everything[first + i - 1]).all() for i in range(12)]
            assert not any(stale)
        assert np.array_equal(decode(other, 0.0, FPS, np.arange(8), SIDE, SIDE), everything[:8])  # the others are not lost
    assert refused == 12


def test_a_file_that_is_no_video_is_named_once_and_whole(tmp_path):
    path = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 8) / "file-000.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing" * 100)
    with pytest.raises(DataError) as caught:
        containers.open_video(path)
    assert str(caught.value) == f"{path}: cannot be decoded (Invalid data found when processing input); the file is truncated or corrupt"
