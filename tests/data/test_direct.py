import json

import numpy as np
import pytest
import torch

from deftly.contract import Window
from deftly.data.augment import OFF, AugmentConfig
from deftly.data.direct import BlockFeed, VideoFrames
from deftly.data.loader import Loader
from deftly.data.windows import Selection, Windows
from deftly.types import Batch, DataError
from small_data import FakeDataset, build_windows

LENGTHS = (23, 40, 0, 9, 31)
SAMPLES = sum(LENGTHS)
MOVED = AugmentConfig(shift_pixels=3, noise=0.01)


class Counting(FakeDataset):
    """Remembers what was decoded, in order."""

    def frames(self, episode, camera, indices=None):
        self.__dict__.setdefault("asked", []).append((camera, episode, [] if indices is None else indices.tolist()))
        return super().frames(episode, camera, indices)


class Setup:
    """The same windows out of a store and straight from video."""

    def __init__(self, cache, together: int = 40, frames: int = 3) -> None:
        self.dataset = Counting(lengths=LENGTHS)
        self.stored = build_windows(self.dataset, cache, Window(frames=frames, chunk=4), stored=20)
        self.dataset.__dict__["asked"] = []
        self.video = VideoFrames(self.dataset, self.stored.encoder.contract, together)
        self.direct = Windows(self.stored.columns, self.video, self.stored.encoder, self.dataset.tasks)

    def loader(self, **more) -> Loader:
        arguments = {"seed": 5, "batch_size": 8, "augmentation": MOVED, **more}
        return Loader(self.direct, Selection(self.video.episode_start, np.arange(len(LENGTHS))), **arguments)


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def rows(batch: Batch) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(LENGTHS)])[batch.episode.numpy()] + batch.frame.numpy()


def same(one: Batch, two: Batch) -> bool:
    images = all(torch.equal(one.images[name], two.images[name]) for name in one.images)
    return images and torch.equal(one.key, two.key) and torch.equal(one.state, two.state) and torch.equal(one.actions, two.actions)


def test_any_windows_are_those_of_the_store(setup):
    chosen, key = np.array([70, 3, 3, 0, 25, 102]), torch.arange(6)
    for augmentation in (OFF, MOVED):
        here, there = (windows.frames.read(chosen, key, augmentation) for windows in (setup.direct, setup.stored))
        assert all(torch.equal(here[name], there[name]) for name in ("head", "wrist"))


def test_a_pass_over_the_held_out_windows_is_that_of_the_store(setup):
    chosen = Selection(setup.video.episode_start, np.array([1, 3]), at_most=30)
    one, two = (list(Loader(windows, chosen, seed=1, batch_size=7).batches()) for windows in (setup.direct, setup.stored))
    assert len(one) == 5
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("together", [1, 10, 40, 10_000])
def test_every_sample_has_the_images_of_its_window(tmp_path, together):
    setup = Setup(tmp_path, together)
    stream, seen = setup.loader(), []
    plain = setup.loader(augmentation=OFF)
    while len(seen) < 2 * SAMPLES:
        batch, still = stream.next(), plain.next()
        wanted = setup.stored.frames.read(rows(still), still.key, OFF)
        for name, images in still.images.items():
            assert torch.equal(images.permute(0, 1, 3, 4, 2), wanted[name])
        assert np.array_equal(rows(batch), rows(still))
        seen += rows(batch).tolist()
    for epoch in range(2):
        assert sorted(seen[epoch * SAMPLES : (epoch + 1) * SAMPLES]) == list(range(SAMPLES))


def test_each_frame_is_decoded_once_per_epoch_but_for_the_ones_before_a_piece(setup):
    stream = setup.loader(batch_size=1, augmentation=OFF)
    for sample in range(SAMPLES):
        stream.make(sample)
    pieces = stream.feed.order.num_pieces
    decoded = [(episode, frame) for camera, episode, frames in setup.dataset.asked if camera == "head" for frame in frames]
    ahead = 2 * 40 + 2 * pieces  # the next epoch's first blocks, and the two frames before each piece
    assert len(set(decoded)) == SAMPLES
    assert SAMPLES <= len(decoded) <= SAMPLES + ahead
    for _, _, frames in setup.dataset.asked:
        assert frames == sorted(frames), "forward"


def test_what_waits_in_memory_is_bounded_and_decoding_is_spread_over_the_steps(tmp_path):
    setup = Setup(tmp_path, together=20, frames=1)
    stream = setup.loader(batch_size=2)
    stream.make(0)
    decoded = []
    for step in range(150):
        before = setup.dataset.decoded
        stream.make(2 * (step + 1))
        decoded.append(setup.dataset.decoded - before)
        assert len(stream.feed._blocks) <= 3
        assert sum(len(block.frames["head"]) for block in stream.feed._blocks.values()) <= 3 * (20 + 20)
    assert max(decoded) <= 2 * 2 * 20, "never a whole block in one step"
    assert np.mean(decoded) == pytest.approx(2 * 2, rel=0.2), "two cameras, two frames per step"


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_no_bit(setup, workers):
    here, there = setup.loader(), setup.loader(workers=workers)
    try:
        assert all(same(here.next(), there.next()) for _ in range(30))
    finally:
        there.close()


def test_batch_sizes_change_no_sample(setup):
    small, large = setup.loader(batch_size=3), setup.loader(batch_size=24)
    parts, whole = [small.next() for _ in range(8)], large.next()
    assert torch.equal(torch.cat([part.key for part in parts]), whole.key)
    assert torch.equal(torch.cat([part.images["head"] for part in parts]), whole.images["head"])


def test_resuming_anywhere_continues_with_exactly_the_next_batch(setup):
    straight = setup.loader()
    batches = [straight.next() for _ in range(30)]
    for cut in range(0, 30, 3):
        first = setup.loader()
        state = json.loads(json.dumps({**first.state(), "consumed": cut * 8}))
        first.next()
        first.load_state(state)
        assert all(same(first.next(), wanted) for wanted in batches[cut : cut + 3])


def test_a_state_of_another_order_is_refused(setup):
    state = setup.loader().state()
    assert "blocks of 40" in state["order"]
    selection = Selection(setup.video.episode_start, np.arange(len(LENGTHS)))
    with pytest.raises(DataError, match="the saved stream has order blocks of 40 in pieces of 32, this one shuffled"):
        Loader(setup.stored, selection, seed=5, batch_size=8).load_state(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_cannot_be_decoded_stops_the_stream_and_names_the_check(tmp_path, workers):
    setup = Setup(tmp_path)

    def broken(episode, camera, indices=None):
        raise DataError(f"episode {episode}: the video is truncated")

    setup.dataset.frames = broken
    stream = setup.loader(workers=workers)
    with pytest.raises(DataError, match=r"^episode \d: the video is truncated; `deftly data check fake` lists every") as caught:
        stream.next()
    assert "\n" not in str(caught.value)
    stream.close()


def test_a_feed_starts_at_the_block_of_its_sample(setup):
    feed = setup.loader().feed
    assert isinstance(feed, BlockFeed)
    feed.images(80, 8)
    part = feed.order.parts(80, 1)[0]
    assert min(feed._blocks) == (part.epoch, part.block)
