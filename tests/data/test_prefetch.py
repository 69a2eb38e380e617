"""The next batch is made in a thread: nothing else about the stream may change."""

import os
import threading
import time

import numpy as np
import pytest
import torch

from deftly.contract import Window
from deftly.data.augment import AugmentConfig
from deftly.data.loader import Loader
from deftly.data.mixture import Mixture
from deftly.data.prefetch import NAME, Prefetch, is_core_free
from deftly.data.windows import Selection
from deftly.types import Batch, DataError
from small_data import FakeDataset, build_windows

LENGTHS = (7, 5, 9)


others: set[threading.Thread] = set()


def threads() -> set[threading.Thread]:
    """Those of this test: streams that other tests have forgotten may not be collected yet."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(NAME)} - others


@pytest.fixture(autouse=True)
def notice_others():
    others.clear()
    others.update(threads())


@pytest.fixture(autouse=True)
def free_core(monkeypatch):
    """Also where the tests have a single core."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(torch.get_num_threads() + 1)), raising=False)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    return build_windows(FakeDataset(lengths=LENGTHS), tmp_path_factory.mktemp("cache"), Window(frames=2, chunk=4))


def loader(windows, **changes) -> Loader:
    arguments = {"seed": 5, "batch_size": 4, "augmentation": AugmentConfig(noise=0.01, crop_scale=(0.7, 1.0)), **changes}
    return Loader(windows, Selection(windows.frames.episode_start, np.arange(3)), **arguments)


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def same(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


def test_jobs_are_made_once_in_order_the_first_here_and_the_others_in_one_thread():
    made = []

    def make(job: int) -> int:
        made.append((job, threading.current_thread()))
        return job**2

    here = Prefetch(make)
    assert [here.take(job, job + 1) for job in range(6)] == [0, 1, 4, 9, 16, 25]
    here.close()
    assert [job for job, _ in made] in (list(range(6)), list(range(7)))  # the seventh may not have been begun
    assert made[0][1] is threading.current_thread()
    assert len({thread for _, thread in made[1:]}) == 1
    assert not threads()


def test_an_error_comes_where_its_batch_would_have_come_and_then_the_caller_tries_again():
    failing, here = {3}, []

    def make(job: int) -> int:
        here.append(threading.current_thread() is threading.main_thread())
        if job in failing:
            raise DataError(f"job {job}")
        return job

    stream = Prefetch(make)
    assert [stream.take(job, job + 1) for job in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="job 3"):
        stream.take(3, 4)
    with pytest.raises(DataError, match="job 3"):
        stream.take(3, 4)
    assert here == [True, False, False, False, True]
    failing.clear()
    assert [stream.take(job, job + 1) for job in (3, 4)] == [3, 4]
    stream.close()


def test_close_discards_what_was_prepared_and_goes_on_from_anywhere():
    stream = Prefetch(lambda job: job)
    assert stream.take(0, 1) == 0
    stream.close()
    stream.close()
    assert not threads()
    assert stream.take(7, 8) == 7
    assert stream.take(8, 9) == 8
    stream.close()


def test_a_forgotten_stream_leaves_no_thread(windows):
    stream = Prefetch(lambda job: job)
    stream.take(0, 1)
    assert threads()
    del stream
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def test_a_forked_process_does_not_wait_for_its_parents_thread():
    stream = Prefetch(lambda job: job)
    stream.take(0, 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if [stream.take(5, 6), stream.take(6, 7)] == [5, 6] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert stream.take(1, 2) == 1
    stream.close()


def test_the_thread_keeps_its_operations_to_itself_and_leaves_the_others_theirs():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        stream = Prefetch(lambda job: torch.get_num_threads())
        assert [stream.take(job, job + 1) for job in range(3)] == [3, 1, 1]
        assert torch.get_num_threads() == 3
        later = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert later == [3]
        assert "mkl_get_max_threads() : 3" in torch.__config__.parallel_info() or not torch.backends.mkl.is_available()
        stream.close()
    finally:
        torch.set_num_threads(before)


def test_the_loaders_batches_are_those_that_are_made_one_by_one(windows):
    stream, plain = loader(windows), loader(windows)
    for start in range(0, 60, 4):
        assert stream.state()["consumed"] == start
        assert same(stream.next(), plain.make(start).batch)
    stream.close()
    assert not threads()


def test_where_training_keeps_every_core_there_is_no_thread(windows, monkeypatch):
    stream, plain = loader(windows), loader(windows)
    assert same(stream.next(), plain.make(0).batch)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(torch.get_num_threads())), raising=False)
    assert same(stream.next(), plain.make(4).batch)  # this one was prepared
    for start in (8, 12):
        assert stream._prefetch._prepared is None
        assert same(stream.next(), plain.make(start).batch)
    monkeypatch.undo()
    assert is_core_free(torch.device("cuda"))
    stream.close()


def test_a_fault_does_not_shift_the_stream(windows, monkeypatch):
    stream, plain = loader(windows), loader(windows)
    stream.next()
    build, calls = stream.windows.build, []

    def fail_once(*arguments, **named):
        calls.append(None)
        if len(calls) == 2:
            raise DataError("a broken row")
        return build(*arguments, **named)

    stream.close()
    monkeypatch.setattr(stream.windows, "build", fail_once)
    assert same(stream.next(), plain.make(4).batch)
    with pytest.raises(DataError, match="a broken row"):
        stream.next()
    assert stream.state()["consumed"] == 8
    for start in (8, 12, 16):
        assert same(stream.next(), plain.make(start).batch)
    stream.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["images", "build", "finish"])
def test_an_interrupt_anywhere_does_not_shift_the_images_against_the_actions(windows, where, workers, monkeypatch):
    """A notebook's stop button: KeyboardInterrupt comes out of whatever the batch was at."""
    stream, plain = loader(windows, workers=workers), loader(windows)
    owner = {"images": stream.feed, "build": stream.windows, "finish": stream}[where]
    whole = getattr(owner, where)
    for start in range(0, 24, 4):

        def interrupted(*arguments, **named):
            whole(*arguments, **named)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, where, interrupted)
            if start in (0, 12):
                stream.close()  # then the caller makes it itself
            with pytest.raises(KeyboardInterrupt):
                [stream.next() for _ in range(3)]
        start = stream.state()["consumed"]
        assert same(stream.next(), plain.make(start).batch)
        assert same(stream.next(), plain.make(start + 4).batch)
    stream.close()


def test_a_forked_process_gets_the_images_of_its_own_samples(windows):
    stream, plain = loader(windows), loader(windows)
    stream.next()
    wanted = [plain.make(start).batch for start in (4, 8)]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(same(stream.next(), batch) for batch in wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(same(stream.next(), batch) for batch in wanted)
    stream.close()


@pytest.mark.parametrize("change", ["close", "load_state", "fault"])
def test_a_mixture_prepares_in_one_thread_and_goes_on_where_it_was(windows, change, monkeypatch):
    def mixture() -> Mixture:
        return Mixture([loader(windows), loader(windows, seed=6, batch_size=3)], [0.5, 1.5])

    straight = mixture()
    wanted = [straight.next() for _ in range(6)]
    stream = mixture()
    assert all(same(stream.next(), batch) for batch in wanted[:3])
    assert len(threads()) == 2  # one of each mixture
    if change == "close":
        stream.close()
    elif change == "load_state":
        state = stream.state()
        stream.next()
        stream.load_state(state)
    else:
        stream.close()
        with monkeypatch.context() as patch:
            patch.setattr(stream.loaders[1], "make", lambda start: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                stream.next()
    assert all(same(stream.next(), batch) for batch in wanted[3:])
    straight.close()
    stream.close()
    assert not threads()
