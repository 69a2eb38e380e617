"""Independent jobs over worker processes, as an iterator of results in the order of the jobs. Knows nothing of worlds and policies.

`Executor` is what the users of this know of it: here it is the processes of one machine, in `sim/cluster.py` those of Ray.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from deftly.types import DataError, UsageError

IN_FLIGHT = 2  # jobs per worker that are queued or finished and not yet taken: bounds memory when the consumer is slow


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, and its container's quota (below `root`)."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(float(quota) / float(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return count


class WorkerDied(RuntimeError):
    """A worker process ended without an answer."""


class JobFailed(RuntimeError):
    """A job raised; the message names the job, the cause holds the worker's traceback."""


class RemoteTraceback(Exception):
    """The traceback of a worker, as text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a job raised, on its way out of a worker: as text, because not every exception survives pickling."""

    kind: str
    message: str
    trace: str
    exit_class: type[UsageError] | None


Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(ABC):
    """Where independent jobs are done. Results never depend on it, nor on the number of workers."""

    @abstractmethod
    def run(
        self,
        make: Callable[[], Callable[[Job], Result]],
        jobs: Iterable[Job],
        *,
        workers: int,
        name: Callable[[Job], str] = str,
        threads: int = 1,
        folder: Path | None = None,
    ) -> Iterator[Result]:
        """Results of `make()(job)` for each job, in the order of the jobs, each as soon as those before it are there; `make` runs once in
        each worker. No more than `workers * IN_FLIGHT` jobs are begun beyond the last result that was taken. The iterator may be left at
        any moment, by `close` or an exception: the workers end then.

        `folder` is where the jobs write, `threads` the torch threads of a worker. Raises what the function `run` does.
        """

    @abstractmethod
    def default_workers(self) -> int:
        """How many workers are sensible where nobody says."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what `run` holds between its calls."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Local(Executor):
    """Processes of this machine; none with `workers=0`, where this process does the jobs itself."""

    def run(
        self,
        make: Callable[[], Callable[[Job], Result]],
        jobs: Iterable[Job],
        *,
        workers: int,
        name: Callable[[Job], str] = str,
        threads: int = 1,
        folder: Path | None = None,
    ) -> Iterator[Result]:
        return run(make, jobs, workers=workers, name=name, threads=threads)

    def default_workers(self) -> int:
        return usable_cores()

    def close(self) -> None:
        pass  # processes end with their jobs


LOCAL = Local()


def run(
    make: Callable[[], Callable[[Job], Result]],
    jobs: Iterable[Job],
    *,
    workers: int = 0,
    name: Callable[[Job], str] = str,
    threads: int = 1,
) -> Iterator[Result]:
    """Results of `make()(job)` for each job, in order; `make` runs once in each process, so that a world or a policy is built once.

    `workers=0` runs everything in this process, with the same results. `make`, the jobs and the results must be picklable when there are
    workers, which are spawned: the calling script needs `if __name__ == "__main__"`. Each process uses `threads` torch threads.

    Raises:
        UsageError: a job raised one; the job's name stands in front of its message.
        JobFailed: a job, or `make`, raised anything else.
        WorkerDied: a worker was killed. Results of earlier jobs have been yielded, nothing hangs.
    """
    if workers < 0:
        raise UsageError(f"the number of workers must be 0 or more, got {workers}")
    return _run_here(make, jobs, name, threads) if workers == 0 else _run_spawned(make, jobs, workers, name, threads)


def _run_here(make: Callable[[], Callable[[Any], Any]], jobs: Iterable[Any], name: Callable[[Any], str], threads: int) -> Iterator[Any]:
    function: Callable[[Any], Any] | None = None
    for job in jobs:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)  # only while the job runs: the consumer may be training
        try:
            function = function or make()
            result = function(job)
        except Exception as error:
            raise named(name(job), failure_of(error)) from error
        finally:
            torch.set_num_threads(before)
        yield result


def _run_spawned(
    make: Callable[[], Callable[[Any], Any]], jobs: Iterable[Any], workers: int, name: Callable[[Any], str], threads: int
) -> Iterator[Any]:
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(make, threads)
    )
    remaining = iter(jobs)
    waiting: collections.deque[tuple[Any, concurrent.futures.Future]] = collections.deque()
    finished = False
    try:
        while True:
            for job in itertools.islice(remaining, workers * IN_FLIGHT - len(waiting)):
                waiting.append((job, pool.submit(_work, job)))
            if not waiting:
                finished = True
                return
            job, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                raise
            except Exception as error:  # the job or its result could not be pickled
                raise named(name(job), failure_of(error)) from error
            if isinstance(result, Failure):
                raise named(name(job), result) from RemoteTraceback(result.trace)
            yield result
    except BrokenProcessPool:
        raise WorkerDied(
            f"a worker process died while {name(job)} was waited for: it was killed, ran out of memory, or could not start "
            '(a script that spawns workers needs `if __name__ == "__main__"`)'
        ) from None
    finally:
        if not finished:  # nobody will take what the workers are at, which may be minutes of work
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


class Worker:
    """What lives in a worker: the function that `make` returns, made by the first job."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        self._make = make
        self._function: Callable[[Any], Any] | None = None
        torch.set_num_threads(threads)

    def work(self, job: Any) -> Any:
        """The job's result, or the `Failure` that it raised."""
        try:
            self._function = self._function or self._make()
            return self._function(job)
        except Exception as error:
            return failure_of(error)


_worker: Worker | None = None


def _start_worker(make: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    global _worker
    _worker = Worker(make, threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends its workers, without their tracebacks
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent cannot stop its workers, and they hold both ends of the job queue: without this they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Any) -> Any:
    assert _worker is not None
    return _worker.work(job)


def failure_of(error: Exception) -> Failure:
    """The exception that is being handled, as text."""
    exit_class = DataError if isinstance(error, DataError) else UsageError if isinstance(error, UsageError) else None
    return Failure(type(error).__name__, str(error), traceback.format_exc(), exit_class)


def named(job: str, failure: Failure) -> Exception:
    """What to raise for a failed job: a one-line error stays one, the job's name stands in front."""
    if failure.exit_class is not None:
        return failure.exit_class(f"{job}: {failure.message}")
    return JobFailed(f"{job}: {failure.kind}: {failure.message}")
