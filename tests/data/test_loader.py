import json
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

from deftly.contract import Window
from deftly.data import loader as module
from deftly.data.augment import AugmentConfig
from deftly.data.loader import Loader
from deftly.data.order import Order
from deftly.data.stored import OrderedFrames, StoreFeed
from deftly.data.windows import Selection
from deftly.data.workers import WorkerError, Workers
from deftly.types import Batch, DataError
from guards import guards
from small_data import FakeDataset, build_windows

LENGTHS = (7, 5, 9)
SAMPLES = sum(LENGTHS)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    return build_windows(FakeDataset(lengths=LENGTHS), tmp_path_factory.mktemp("cache"), Window(frames=2, chunk=4, past_actions=True))


def loader(windows, **changes) -> Loader:
    arguments = {"seed": 5, "batch_size": 4, "augmentation": AugmentConfig(noise=0.01), **changes}
    return Loader(windows, Selection(windows.frames.episode_start, np.arange(3)), **arguments)


def flat(batch: Batch) -> dict[str, torch.Tensor]:
    """Every tensor of a batch by name."""
    found: dict[str, torch.Tensor] = {}
    for name in Batch.__dataclass_fields__:
        value = getattr(batch, name)
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            found.update({f"{name}.{key}": item for key, item in value.items()})
        elif value is not None:
            found.update(ids=value.ids, is_pad=value.is_pad)
    return found


def same(one: Batch, two: Batch) -> bool:
    a, b = flat(one), flat(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(batch: Batch) -> list[int]:
    start = np.concatenate([[0], np.cumsum(LENGTHS)])
    return [int(start[e]) + f for e, f in zip(batch.episode.tolist(), batch.frame.tolist(), strict=True)]


def test_a_batch_holds_what_its_rows_say(windows):
    dataset = FakeDataset(lengths=LENGTHS)
    encoder = windows.encoder
    for batch in (loader(windows).next(), next(loader(windows).batches())):
        assert batch.images["head"].shape == (4, 2, 3, 16, 16)
        for i, row in enumerate(rows(batch)):
            episode = int(batch.episode[i])
            first, end = (int(at) for at in dataset.episode_start[episode : episode + 2])
            assert np.allclose(encoder.state.unnormalize(batch.state[i, 1].numpy()), dataset.state[row], atol=1e-5)
            for j in range(4):
                assert bool(batch.action_is_pad[i, j]) == (row + j >= end)
                wanted = dataset.action[min(row + j, end - 1)]
                assert np.allclose(encoder.action.unnormalize(batch.actions[i, j].numpy()), wanted, atol=1e-5)
            for j, at in enumerate((row - 1, row)):
                assert bool(batch.observation_is_pad[i, j]) == (at < first)
                assert bool(batch.past_action_is_pad[i, j]) == (at - 1 < first)
                if at - 1 >= first:
                    assert np.allclose(encoder.action.unnormalize(batch.past_actions[i, j].numpy()), dataset.action[at - 1], atol=1e-5)
                else:
                    assert (batch.past_actions[i, j] == 0).all()
            assert int(batch.task[i]) == dataset.task_of_frame[row]
            assert torch.equal(batch.text.ids[i], encoder.tokens([dataset.tasks[int(batch.task[i])]]).ids[0])
        assert not any(mask.any() for mask in batch.camera_is_missing.values())
        assert batch.weight.tolist() == [1] * 4


def test_every_window_comes_exactly_once_per_epoch_and_every_batch_is_full(windows):
    stream = loader(windows)
    seen: list[int] = []
    keys = set()
    while len(seen) < 4 * SAMPLES:  # 4 epochs in batches of 4: 21 windows do not divide
        batch = stream.next()
        assert len(batch) == 4
        seen += rows(batch)
        keys |= set(batch.key.tolist())
    epochs = [seen[i * SAMPLES : (i + 1) * SAMPLES] for i in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(SAMPLES))
    assert epochs[0] != epochs[1]
    assert len(keys) == len(seen), "every (epoch, window) has a key of its own"
    assert stream.epoch == pytest.approx(4)


def test_order_and_augmentation_are_functions_of_the_seed(windows):
    one, two, other = loader(windows), loader(windows), loader(windows, seed=6)
    for _ in range(3):
        assert same(one.next(), two.next())
    assert rows(one.next()) != rows(other.next())


def test_the_batch_size_does_not_change_what_a_sample_is(windows):
    small, large = loader(windows, batch_size=3), loader(windows, batch_size=12)
    parts = [small.next() for _ in range(4)]
    whole = large.next()
    for name, tensor in flat(whole).items():
        assert torch.equal(tensor, torch.cat([flat(part)[name] for part in parts])), name


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_no_bit(windows, workers):
    here, there = loader(windows), loader(windows, workers=workers)
    try:
        for _ in range(12):  # more than two epochs
            assert same(here.next(), there.next())
    finally:
        there.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_at_any_batch_continues_with_exactly_the_next_one(windows, workers):
    straight = loader(windows)
    batches = [straight.next() for _ in range(8)]
    for cut in range(0, 8, 1 if workers == 0 else 5):
        first = loader(windows)
        for _ in range(cut):
            first.next()
        state = json.loads(json.dumps(first.state()))
        resumed = loader(windows, workers=workers)
        resumed.next()  # a stream that had begun elsewhere
        resumed.load_state(state)
        for wanted in batches[cut:]:
            assert same(resumed.next(), wanted)
        resumed.close()


def test_a_state_of_another_stream_is_refused(windows):
    stream = loader(windows)
    state = stream.state()
    for change in (
        {"windows": 22},
        {"seed": 6},
        {"order": "blocks"},
        {"consumed": -1},
        {"consumed": "3"},
        {"consumed": None},
    ):
        with pytest.raises(DataError):
            stream.load_state({**state, **change})
    with pytest.raises(DataError):
        stream.load_state({})


def test_validation_is_finite_ordered_and_never_augmented(windows):
    stream = loader(windows)
    one, two = list(stream.batches()), list(stream.batches())
    assert [len(batch) for batch in one] == [4, 4, 4, 4, 4, 1]
    assert [row for batch in one for row in rows(batch)] == list(range(SAMPLES))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    plain = windows.frames.store.frames["head"]
    for batch in one:
        for i, row in enumerate(rows(batch)):
            assert np.array_equal(batch.images["head"][i, -1].permute(1, 2, 0).numpy(), plain[row])
    assert same(stream.next(), loader(windows).next()), "a pass does not move the stream"


def test_wrist_cameras_are_only_shifted_on_request(windows):
    off = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    plain = windows.frames.store.frames
    for shift_wrist in (False, True):
        batch = loader(windows, batch_size=21, augmentation=AugmentConfig(**off, shift_pixels=3, geometry_on_wrist=shift_wrist)).next()
        moved = {
            name: sum(not np.array_equal(image[i, -1].permute(1, 2, 0).numpy(), plain[name][row]) for i, row in enumerate(rows(batch)))
            for name, image in batch.images.items()
        }
        assert moved["head"] > 15
        assert (moved["wrist"] > 15) == shift_wrist


def test_global_generators_are_left_alone(windows):
    stream = loader(windows, workers=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stream.next()
    stream.close()
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_large_is_pickled_for_a_worker(windows):
    big = Selection(np.arange(0, 10**8 + 1, 10**6), np.arange(100))
    assert len(big) == 10**8
    assert len(pickle.dumps(OrderedFrames(windows.frames, big, Order(10**8, 0), 4, AugmentConfig()))) < 10_000
    assert len(pickle.dumps(windows.frames.store)) < 2_000
    assert len(pickle.dumps(windows.columns)) < 2_000


def test_t5_a_killed_worker_is_a_typed_error_and_the_stream_can_go_on(windows):
    stream = loader(windows, workers=1)
    handler = signal.getsignal(signal.SIGCHLD)
    before = set(multiprocessing.active_children())
    first = stream.next()
    assert signal.getsignal(signal.SIGCHLD) == handler, "nothing may raise in the middle of an optimizer step"
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    more: list[Batch] = []
    began = time.monotonic()
    with pytest.raises(WorkerError, match="lower `workers`") as caught:
        more.extend(iter(stream.next, None))
    assert time.monotonic() - began < 10
    done = 1 + len(more)
    assert "\n" not in str(caught.value)
    assert stream.state()["consumed"] == 4 * done, "what was not given is not counted"
    straight = loader(windows)
    assert same(straight.next(), first)
    for _ in range(done - 1):
        straight.next()
    assert same(stream.next(), straight.next())
    stream.close()


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), EOFError(), RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")]
)
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_the_same_error(windows, error):
    class Dying:
        def __iter__(self):
            return self

        def __next__(self):
            raise error

    stream = loader(windows, workers=1)
    feed = stream.feed
    assert isinstance(feed, StoreFeed)
    feed._processes, feed._at = Workers(feed.source, 0, 4, 1), 0
    feed._processes._results = Dying()
    with pytest.raises(WorkerError, match="a data worker process died") as caught:
        stream.next()
    assert "\n" not in str(caught.value)
    assert same(stream.next(), loader(windows).next())
    stream.close()


def test_a_fault_inside_a_worker_is_told_as_what_it_is(windows):
    stream = loader(windows, workers=1)
    assert isinstance(stream.feed, StoreFeed)
    stream.feed.source.selection = Selection(10**6 + np.array([0, SAMPLES]), np.array([0]))  # beyond the store
    with pytest.raises(IndexError):
        stream.next()
    stream.close()


def stop_workers(before: set) -> None:
    for process in set(multiprocessing.active_children()) - before:
        os.kill(process.pid, signal.SIGSTOP)


def test_t6_a_worker_that_hangs_is_an_error_and_not_a_hang(windows, monkeypatch):
    """After a while it is said, and the stream goes on where it was."""
    monkeypatch.setattr("deftly.data.workers.STALLED_S", 1.0)
    before = set(multiprocessing.active_children())
    stream, plain = loader(windows, workers=2), loader(windows)
    assert same(stream.next(), plain.next())
    stop_workers(before)
    came: list[Batch] = []
    with pytest.raises(WorkerError, match="a data worker process gave nothing for 1 s"):
        came.extend(iter(stream.next, None))  # what they had prepared comes still
    assert all(same(batch, plain.next()) for batch in came)
    assert not (set(multiprocessing.active_children()) - before)
    assert all(same(stream.next(), plain.next()) for _ in range(4))
    stream.close()


def test_close_ends_workers_that_are_stopped(windows):
    before = set(multiprocessing.active_children())
    stream = loader(windows, workers=2)
    for _ in range(2):
        stream.next()
    stop_workers(before)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 4
    assert not (set(multiprocessing.active_children()) - before)


def test_close_stops_the_workers(windows):
    before = set(multiprocessing.active_children())
    stream = loader(windows, workers=2)
    stream.next()
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    stream.close()
    assert not (set(multiprocessing.active_children()) - before)


@guards("data.loader.changed")
def test_a_dataset_that_changes_stops_the_stream(windows, monkeypatch):
    said: list[str | None] = [None, None, "data/file-000.parquet: another size"]
    stream = loader(windows, watch=lambda: said.pop(0))
    stream.next()
    stream.next()  # not asked again so soon
    assert len(said) == 2
    stream._watch_next = 0
    stream.next()
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    with pytest.raises(DataError, match=r"^data/file-000.parquet: another size; the dataset changed while it was trained on"):
        stream.next()
    assert stream.state()["consumed"] == 3 * 4


def test_a_split_without_frames_is_refused(windows):
    with pytest.raises(DataError, match="no window"):
        Loader(windows, Selection(windows.frames.episode_start, np.zeros(0, np.int64)), seed=0, batch_size=4)
