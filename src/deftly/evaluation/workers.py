"""Jobs on processes that keep their state between jobs, and whose death is an answer like any other.

A physics engine or a graphics driver can take its process down with it; the parent then knows which job it was, says so, and goes on with
a fresh process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

JOB_LIMIT_S = 600.0
_spawn = multiprocessing.get_context("spawn")  # torch and OpenGL do not survive a fork


class Died(NamedTuple):
    """What came of a job whose process died, or was ended because it took too long."""

    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Any = None
    started: float = 0.0


def run_jobs(
    make: Callable[[], Callable[[Any], Any]], jobs: Sequence[Any], count: int, limit_s: float = JOB_LIMIT_S
) -> Iterator[tuple[Any, Any]]:
    """Yield (job, result) as jobs finish, in any order; the result is `Died` where the process did not survive the job.

    Each of `count` processes calls `make()` once and the function that it returns for each of its jobs; both must be picklable by name.
    With `count` 0 everything runs in this process, in order. An exception that a job raises is raised here.
    """
    if count == 0:
        function = make()
        for job in jobs:
            yield job, function(job)
        return
    waiting = list(reversed(jobs))
    workers: list[_Worker] = []
    try:
        workers = [_start(make) for _ in range(min(count, len(jobs)))]
        for worker in workers:
            _give(worker, waiting)
        while any(worker.job is not None for worker in workers):
            for worker in _ready(workers, limit_s):
                job, result = worker.job, _answer(worker, limit_s)
                if isinstance(result, Died):
                    _stop(worker)
                    fresh = _start(make) if waiting else None
                    worker.job = None
                    if fresh is not None:
                        worker.process, worker.pipe = fresh.process, fresh.pipe
                _give(worker, waiting)
                yield job, result
    finally:
        for worker in workers:
            _stop(worker)


def _start(make: Callable[[], Callable[[Any], Any]]) -> _Worker:
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_serve, args=(make, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the worker's death closes the pipe
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: list[Any]) -> None:
    worker.job = waiting.pop() if waiting else None
    worker.started = time.monotonic()
    if worker.job is not None:
        with contextlib.suppress(OSError):  # it died while idle: its pipe is at its end, which `_answer` will see
            worker.pipe.send(worker.job)


def _ready(workers: list[_Worker], limit_s: float) -> list[_Worker]:
    """The busy workers that have answered, died, or had their time; waits for the first of them."""
    busy = [worker for worker in workers if worker.job is not None]
    first_end = min(worker.started for worker in busy) + limit_s
    ready = set(wait([worker.pipe for worker in busy], timeout=max(0.0, first_end - time.monotonic())))
    return [worker for worker in busy if worker.pipe in ready or time.monotonic() - worker.started >= limit_s]


def _answer(worker: _Worker, limit_s: float) -> Any:
    if not worker.pipe.poll():
        return Died(f"took more than {limit_s:.0f} s")
    try:
        failed, result = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=10)
        return Died(_how(worker.process.exitcode))
    if failed:
        raise result
    return result


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"its process was ended by {signal.Signals(-exit_code).name}"
    return f"its process ended with exit code {exit_code}"


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def _serve(make: Callable[[], Callable[[Any], Any]], pipe: Connection) -> None:
    """The life of a worker: ends when the parent closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        function = None
        while True:
            job = pipe.recv()
            try:
                function = make() if function is None else function
                answer = (False, function(job))
            except Exception as error:
                answer = (True, error)
            pipe.send(answer)
    except (EOFError, OSError):
        return
