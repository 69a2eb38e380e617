"""The next batch is made in a thread while the step before it runs, where a core is free for it: numpy and torch let go of the interpreter
while they compute.

One thread, one batch ahead, jobs one after the other. What nobody has asked for for certain is made by the caller itself: the first batch,
and the one after an error or a `close`. So worker processes are started by the thread that asks for batches, at a time when the other one
has nothing to do: a process that forks while another thread computes copies whatever lock that thread holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

NAME = "deftly-prefetch"

Job = TypeVar("Job")
Made = TypeVar("Made")


class Prefetch(Generic[Job, Made]):
    """`take` gives what `make` makes of one job after the other."""

    def __init__(self, make: Callable[[Job], Made], ahead: Callable[[], bool] = lambda: True) -> None:
        """`ahead` says, each time, whether the following job is to be made in the thread; otherwise it is made when it is asked for."""
        self.make, self.ahead = make, ahead
        self._forget()

    def take(self, job: Job, following: Job) -> Made:
        """What `make` gives for a job, most often the `following` of the call before; this call's is begun. Raises what `make` raised."""
        if self._owner != os.getpid():  # a forked process has the object, and not the thread
            self._forget()
        prepared = self._prepared
        if prepared is not None:
            prepared.exception()  # waits, and `make` is not called beside it; when that is interrupted the batch is still there
            self._prepared = None
        # whoever was interrupted between two calls asks for the same job again
        made = prepared.result() if prepared is not None and self._job == job else self.make(job)
        if not self.ahead():
            return made
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, NAME)  # ends with its owner, and before the interpreter does
            compute_alone(self._thread)
        self._job, self._prepared = following, self._thread.submit(self.make, following)
        return made

    def close(self) -> None:
        """Discard what was prepared and end the thread, after the batch that it is at; `take` goes on with any job."""
        if self._thread is not None and self._owner == os.getpid():
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._thread: ThreadPoolExecutor | None = None
        self._job: Job | None = None
        self._prepared: Future[Made] | None = None


def is_core_free(device: torch.device) -> bool:
    """Whether the thread finds a core of its own while `device` trains. Training on the CPU keeps as many as torch has threads, and at the
    end of every operation waits for the one that was disturbed (docs/log.md)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return device.type != "cpu" or torch.get_num_threads() < cores


def compute_alone(thread: ThreadPoolExecutor) -> None:
    """Keep that thread's torch operations in that thread. OpenMP gives every thread that computes a team of its own: two teams of as many
    threads as there are cores wait for each other at the end of every operation, milliseconds each.

    `torch.set_num_threads` sets OpenMP's number for the thread that calls it, and MKL's and that of later threads for the process: the
    caller, who computes nothing meanwhile, sets those back.
    """
    before = torch.get_num_threads()
    try:
        thread.submit(torch.get_num_threads).result()  # a new thread takes the process's number once, which would otherwise be later
        thread.submit(torch.set_num_threads, 1).result()
    finally:
        torch.set_num_threads(before)
