import itertools
import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import pytest
import torch

from deftly.data.workers import Answers, Jobs, Refusal, Workers
from deftly.types import DataError, UsageError


class Squares:
    """A source that refuses 9."""

    def __getitem__(self, job: int) -> dict[str, torch.Tensor]:
        if job == 9:
            raise DataError("frame 9 is broken")
        return {"square": torch.tensor(job**2)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_results_come_in_order_and_errors_in_one_line(count):
    workers = Workers(Squares(), 1, 2, count)
    assert [int(workers.next()["square"]) for _ in range(4)] == [1, 9, 25, 49]
    with pytest.raises(DataError, match=r"^frame 9 is broken$"):
        workers.next()
    workers.close()


def test_stopped_workers_go_on_where_they_were():
    workers = Workers(Squares(), 0, 1, 1)
    assert [int(workers.next()["square"]) for _ in range(2)] == [0, 1]
    workers.close()
    assert int(workers.next()["square"]) == 4
    workers.close()


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_leave_with_a_killed_parent():
    read, write = os.pipe()
    inherited = multiprocessing.active_children()  # of this process: a fork copies the list
    trainer = os.fork()
    if trainer == 0:
        workers = Workers(Squares(), 10, 1, 2)
        workers.next()
        os.write(write, json.dumps([child.pid for child in multiprocessing.active_children() if child not in inherited]).encode())
        time.sleep(60)
        os._exit(0)
    started = json.loads(os.read(read, 100))
    assert len(started) == 2
    assert all(map(is_alive, started))
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    for _ in range(200):
        if not any(map(is_alive, started)):
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers outlived their trainer")
    os.close(read)
    os.close(write)


def test_jobs_go_on_for_ever():
    assert list(itertools.islice(Jobs(3, 4), 3)) == [3, 7, 11]


def test_a_refusal_survives_the_way_between_processes():
    refusal = pickle.loads(pickle.dumps(Answers(Squares())[9]))
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.message) == (DataError, "frame 9 is broken")
    assert Refusal(UsageError("x")).kind is UsageError


class Slow:
    """A source that is always waited for."""

    def __getitem__(self, job: int) -> dict[str, torch.Tensor]:
        time.sleep(0.2)
        return {"job": torch.tensor(job)}


def test_t17_a_run_that_was_stopped_as_a_whole_has_waited_for_nothing(monkeypatch):
    """Ctrl-Z, or a batch system that suspends a job: however long it takes, nobody stalled."""
    monkeypatch.setattr("deftly.data.workers.STALLED_S", 1.5)
    read, write = os.pipe()
    run = os.fork()
    if run == 0:
        os.setpgid(0, 0)
        workers, found = Workers(Slow(), 0, 1, 1), b"!"
        try:
            for job in range(6):
                assert int(workers.next()["job"]) == job
                os.write(write, b".")
        except Exception as error:
            found = str(error).encode()
        os.write(write, found)
        os._exit(0)
    assert os.read(read, 1) == b"."
    os.killpg(run, signal.SIGSTOP)
    time.sleep(2.2)
    os.killpg(run, signal.SIGCONT)
    os.close(write)
    os.waitpid(run, 0)
    assert os.read(read, 500) == b"." * 5 + b"!"
    os.close(read)
