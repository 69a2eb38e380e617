"""A forked process inherits the recorder of its parent, and must leave the recording alone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deftly import storage
from deftly.data.dataset import Dataset
from deftly.data.recorder import Recorder
from deftly.types import UsageError
from guards import guards
from robot_session import EXTRA, frame_of
from small_data import robot


def in_child(work: Callable[[], object]) -> int:
    """Exit status of a forked process: 0 when `work` came back, 2 after a `UsageError`, 1 after any other error."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except UsageError:
            status = 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def add(recorder: Recorder, frame: int) -> None:
    images, state, action, force = frame_of(0, frame)
    recorder.add_frame(images, state, action, {"force": force})


WORK: dict[str, tuple[Callable[[Recorder], object], int]] = {
    "close": (Recorder.close, 0),
    "leave": (lambda recorder: recorder.__exit__(None, None, None), 0),
    "discard": (Recorder.discard_episode, 0),
    "add": (lambda recorder: add(recorder, 3), 2),
    "save": (lambda recorder: recorder.save_episode("x"), 2),
    "finish": (Recorder.finish, 2),
}


@guards("data.recorder.discard_in_child", "data.recorder.child")
@pytest.mark.parametrize("name", WORK)
def test_what_a_forked_process_does_costs_its_parent_nothing(tmp_path: Path, name: str):
    work, status = WORK[name]
    with Recorder(tmp_path / "r", robot(), extra=EXTRA) as recorder:
        for frame in range(3):
            add(recorder, frame)
        assert in_child(lambda: work(recorder)) == status
        recorder.save_episode("x")
        recorder.finish()
    assert Dataset.open(tmp_path / "r").num_frames == 3


def test_leaving_a_lock_in_a_forked_process_closes_no_file_of_that_process(tmp_path: Path):
    held = storage.lock(tmp_path / ".lock", wait=False)
    held.__enter__()

    def leave() -> None:
        number = os.open(tmp_path / "mine", os.O_RDWR | os.O_CREAT)  # the number that the lock had
        held.__exit__(None, None, None)
        os.write(number, b"x")

    assert in_child(leave) == 0
    assert (tmp_path / "mine").read_bytes() == b"x"
    held.__exit__(None, None, None)
