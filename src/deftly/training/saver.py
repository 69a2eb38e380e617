"""Checkpoints are written while training goes on: the loop copies the state, a thread takes it to the disk.

One at a time, one after the other. A thread is enough: hashing, syncing and writing let go of the interpreter, and a process that is
killed meanwhile leaves what it leaves when it is killed in the middle of a write that it waits for, the checkpoint before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from deftly.training.checkpoint import Checkpoints, Snapshot, WritePolicy
from deftly.training.guard import TrainingError
from deftly.training.tracking import Metrics

NAME = "deftly-checkpoint"


class Saver:
    """`begin` a checkpoint; `settle` it before the next one, before whatever depends on what is on the disk, and before the end."""

    def __init__(self, checkpoints: Checkpoints, metrics: Metrics, write_policy: WritePolicy, say: Callable[[str], None]) -> None:
        self.checkpoints, self.metrics, self.write_policy, self.say = checkpoints, metrics, write_policy, say
        self.saved_step: int | None = None  # of the newest checkpoint that is whole
        self.saved_best: dict[str, Any] | None = None  # the best as that one knows it
        self.failed = 0
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: tuple[Snapshot, Future[None]] | None = None

    def begin(self, snapshot: Snapshot, policy: dict[str, Tensor]) -> None:
        """Start to write. Nothing of `snapshot` or `policy` may change any more: they are copies."""
        assert self._under_way is None, "one at a time: settle the one before"
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, NAME)
        self._under_way = snapshot, self._thread.submit(self._write, snapshot, policy)

    def settle(self, best: dict[str, Any] | None, final: bool = False) -> dict[str, Any] | None:
        """Wait for the checkpoint under way, if one is, and return the best that is on the disk, which is `best` unless that failed.

        A disk that refuses does not end training, unless nothing is left to train: then it is a `TrainingError`.
        """
        if self._under_way is None:
            return best
        (snapshot, written), self._under_way = self._under_way, None
        try:
            written.result()
        except OSError as error:
            self.failed += 1
            text = f"the checkpoint of step {snapshot.step} could not be written ({error.strerror or error}); the one before is untouched"
            if final:
                raise TrainingError(f"{self.checkpoints.root.parent}: {text}: make room, then pass --resume") from None
            self.say(f"WARNING: {text}, training goes on")
            return self.saved_best  # one that is not on the disk must not displace one that is
        self.saved_step, self.saved_best = snapshot.step, best
        return best

    def close(self) -> None:
        """Let the one under way end: it holds files that only the owner of the run's lock may touch. What became of it is not asked."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._thread = self._under_way = None

    def _write(self, snapshot: Snapshot, policy: dict[str, Tensor]) -> None:
        self.metrics.sync()  # the log must be there up to this step; lines of later ones are cut off when the run goes on from here
        best = snapshot.trainer["best"]
        self.checkpoints.save(snapshot, policy, self.write_policy, best["step"] if best else None)
