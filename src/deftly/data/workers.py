"""Worker processes that do numbered jobs ahead of time, in order; or the same jobs done here, when there are none."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from deftly.types import DataError, UsageError

PARENT_CHECK_S = 1.0
STALLED_S = 300.0  # processes that live and give nothing for so long: a disk that hangs, a stopped process
LOOKS = 20  # at a wait, in so long


class WorkerError(RuntimeError):
    """A data worker died. One line with the likely cause."""


class Source(Protocol):
    """What a job number stands for: tensors, by name."""

    def __getitem__(self, job: int) -> dict[str, torch.Tensor]: ...


class Workers:
    """`next()` gives the result of jobs start, start + step, ... for ever."""

    def __init__(self, source: Source, start: int, step: int, count: int) -> None:
        """`count` processes; with 0 each job is done when its result is asked for."""
        self.source, self.count, self.step = source, count, step
        self._next = start
        self._results: Iterator[Any] | None = None
        self._waits = 0  # calls of `next` that have begun to wait
        self._is_waiting = self._is_stalled = False

    def next(self) -> dict[str, torch.Tensor]:
        """The next job's result. Raises what the job raised, and `WorkerError` when a process died."""
        result = self._from_process() if self.count else self.source[self._next]
        self._next += self.step
        return result

    def _from_process(self) -> dict[str, torch.Tensor]:
        try:
            if self._results is None:
                self._results = self._start()
                threading.Thread(target=_watch, args=(weakref.ref(self), weakref.ref(self._results)), daemon=True).start()
            self._waits, self._is_waiting = self._waits + 1, True
            result = next(self._results)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while it was handing a result over
            if str(error).startswith("Caught "):  # raised in the worker, which is well
                raise
            is_stalled = self._is_stalled
            self.close()
            if is_stalled:
                remedy = "the disk that it reads may hang, or the process was stopped: see to it, then resume"
                raise WorkerError(f"a data worker process gave nothing for {STALLED_S:g} s; {remedy}") from None
            what = f"a data worker process died ({' '.join(str(error).split()) or type(error).__name__})"
            raise WorkerError(f"{what}; most often memory ran out: lower `workers` or `batch_size`, then resume") from None
        finally:
            self._is_waiting = False
        if isinstance(result, Refusal):
            raise result.kind(result.message)
        return result

    def kill(self) -> None:
        """End the processes, stopped ones too; from any thread. One that waits for them in `next` gets a `WorkerError`."""
        for process in getattr(self._results, "_workers", ()):
            process.kill()

    def close(self) -> None:
        """Stop the processes; `next` starts new ones, at the next job."""
        self.kill()
        if isinstance(self._results, _MultiProcessingDataLoaderIter):
            _forget_processes(self._results)
        self._results, self._is_waiting, self._is_stalled = None, False, False

    def _start(self) -> Iterator[Any]:
        """The generator keeps torch from drawing the workers' seeds from the global one."""
        loader = DataLoader(
            Answers(self.source),
            batch_size=None,
            sampler=Jobs(self._next, self.step),
            num_workers=self.count,
            collate_fn=_same,
            generator=torch.Generator(),
            worker_init_fn=functools.partial(_leave_with_parent, os.getpid()),
        )
        with _own_child_handler():
            return iter(loader)


def _forget_processes(results: _MultiProcessingDataLoaderIter) -> None:
    """What torch's own shutdown does, without asking the processes to end: they were killed, and one may have held the lock of that."""
    for process in results._workers:
        process.join()  # a matter of milliseconds
    results._shutdown = True
    for queue in results._index_queues:
        queue.cancel_join_thread()
        queue.close()
    if results._worker_pids_set:
        signal_handling._remove_worker_pids(id(results))  # pyright: ignore[reportPrivateImportUsage]
        results._worker_pids_set = False


def _watch(owner: weakref.ref[Workers], results: weakref.ref[Iterator[Any]]) -> None:
    """Kill processes that live and give nothing, which is an error where they are waited for. torch's own time limit does not hold while
    it fetches the memory that a stopped process has announced.

    Looks are counted, and no clock is read: a run that was stopped as a whole (Ctrl-Z, a suspended job) goes on after any time.
    """
    wait, looks = 0, 0
    while (workers := owner()) is not None and workers._results is results() is not None:
        looks = looks + 1 if workers._is_waiting and workers._waits == wait else 0
        wait = workers._waits
        if looks > LOOKS:
            workers._is_stalled = True
            workers.kill()
        del workers
        time.sleep(STALLED_S / LOOKS)


class Jobs:
    """start, start + step, ... for ever."""

    def __init__(self, start: int, step: int) -> None:
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start, self.step)


class Refusal:
    """A one-line error on its way out of a worker: torch would turn it into a traceback."""

    def __init__(self, error: UsageError) -> None:
        self.kind: type[UsageError] = DataError if isinstance(error, DataError) else UsageError
        self.message = str(error)


class Answers(TorchDataset):
    """A source whose one-line errors are answers."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, job: int) -> dict[str, torch.Tensor] | Refusal:
        try:
            return self.source[job]
        except UsageError as error:
            return Refusal(error)


def _leave_with_parent(parent: int, worker: int) -> None:
    """A killed trainer cannot stop its workers. torch's own watch sleeps while a worker waits for a lock that died with the trainer."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _same(batch: Any) -> Any:
    return batch


class _own_child_handler:
    """Keeps the process's own SIGCHLD handler: torch installs one that raises wherever the main thread happens to be, in the middle of an
    optimizer step say. Without it a dead worker still shows, within 5 s, where its batch is waited for."""

    def __enter__(self) -> None:
        self.before = signal.getsignal(signal.SIGCHLD)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread() and self.before is not None:
            signal.signal(signal.SIGCHLD, self.before)
