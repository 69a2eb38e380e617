"""Jobs over processes: in order, with names in errors, and never a hang."""

import functools
import os
import signal
import time
from collections.abc import Callable

import pytest

from deftly.sim.processes import JobFailed, WorkerDied, run, usable_cores
from deftly.types import UsageError


def work(job: int) -> int:
    if job == 100:
        raise UsageError("too much")
    if job == 200:
        raise KeyError("lost")
    if job == 300:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02 * (job % 3))  # later jobs finish before earlier ones
    return job * job


def sleep(job: float) -> int:
    time.sleep(job)
    return os.getpid()


def sleeper() -> Callable[[float], int]:
    return sleep


def worker() -> Callable[[int], int]:
    return work


def broken() -> Callable[[int], int]:
    raise RuntimeError("no world today")


def adder(amount: int) -> Callable[[int], int]:
    return functools.partial(int.__add__, amount)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_a_generator_may_be_left(workers: int) -> None:
    results = run(worker, range(1000), workers=workers)
    assert [next(results) for _ in range(9)] == [i * i for i in range(9)]
    results.close()


def test_make_may_be_bound_to_arguments() -> None:
    assert list(run(functools.partial(adder, 5), [1, 2])) == [6, 7]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_the_job(workers: int) -> None:
    name = "episode {}".format
    results = run(worker, [1, 100], workers=workers, name=name)
    assert next(results) == 1
    with pytest.raises(UsageError, match=r"^episode 100: too much$") as caught:
        next(results)
    assert workers == 0 or "in work" in str(caught.value.__cause__)


def test_other_errors_keep_their_kind_and_their_traceback() -> None:
    with pytest.raises(JobFailed, match=r"^episode 200: KeyError: 'lost'$") as caught:
        list(run(worker, [200], name="episode {}".format))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(JobFailed, match=r"^1: RuntimeError: no world today$"):
        list(run(broken, [1]))


def test_a_killed_worker_is_an_error() -> None:
    results = run(worker, [1, 300, 4], workers=1)
    assert next(results) == 1
    with pytest.raises(WorkerDied, match="a worker process died while 300"):
        next(results)


def test_what_nobody_waits_for_is_not_finished() -> None:
    results = run(sleeper, [0.0, 600.0], workers=1)
    pid = next(results)
    start = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 60
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_what_cannot_be_pickled_is_an_error_with_a_name() -> None:
    with pytest.raises(JobFailed, match=r"^job: "):
        list(run(worker, [lambda: 1], workers=1, name=lambda _: "job"))


def test_no_jobs_and_wrong_numbers() -> None:
    assert list(run(worker, [], workers=2)) == []
    with pytest.raises(UsageError, match="0 or more"):
        run(worker, [1], workers=-1)


@pytest.mark.parametrize(("quota", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)])
def test_usable_cores_respect_a_container(tmp_path, quota, most):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota)
    unlimited = usable_cores(tmp_path / "nowhere")
    assert unlimited >= 1
    assert usable_cores(tmp_path) == (most or unlimited)
