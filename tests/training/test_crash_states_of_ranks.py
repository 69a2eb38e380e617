"""Two ranks write a checkpoint together: whatever dying machines leave of it, the newest one that was saved is found, or a newer whole one.

tests/crash_states.py says which states there are, and in which orders what the ranks do may come to the disk.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from crash_states import Recorder
from deftly import storage
from deftly.training import checkpoint, distributed, shards
from deftly.training.checkpoint import Rows, Snapshot
from training.test_crash_states import BEST, COMMITTED, UNREAD, Parts, Scenario, changed, check_checkpoints, enumerate_states, snapshot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the recorder reads /proc")

RANKS = 2


class Turns:
    """Ranks as threads of which one runs at a time, each as far as the next meeting, so that it is known what it did before it."""

    def __init__(self, record: Recorder) -> None:
        self.record = record
        self.changed = threading.Condition()
        self.here = threading.local()
        self.whose = self.stage = 0
        self.waiting: dict[int, int] = {}  # who has come to the meeting, with which value
        self.agreed = 0
        self.running: set[int] = set()

    def run(self, work: Callable[[int], Any]) -> None:
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            self.here.rank = rank
            try:
                self._wait(rank)
                work(rank)
            except BaseException as error:
                errors.append(error)
            finally:
                with self.changed:
                    self.running.discard(rank)
                    self._next()

        self.running, self.waiting, self.whose = set(range(RANKS)), {}, 0
        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.stage += 1
        self.record.turn(0, self.stage)
        if errors:
            raise errors[0]

    def agree(self, value: int) -> int:
        rank = self.here.rank
        with self.changed:
            self.waiting[rank] = value
            self._next()
        self._wait(rank)
        return self.agreed

    def _next(self) -> None:
        """Let the next one run; when all have come to the meeting, it is over."""
        if self.running and self.waiting.keys() >= self.running:
            self.agreed, self.waiting = max(self.waiting.values()), {}
            self.stage += 1
        ready = sorted(self.running - self.waiting.keys())
        self.whose = ready[0] if ready else -1
        self.record.turn(max(self.whose, 0), self.stage)
        self.changed.notify_all()

    def _wait(self, rank: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.whose == rank, timeout=60), f"rank {rank} waits for ever"

    def meeting(self) -> distributed.Meeting:
        return ByTurns(self)


class ByTurns(distributed.Meeting):
    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self.turns = turns

    def agree(self, value: int = 0, failed: bool = False) -> int:
        assert not failed, "nothing fails here"
        return self.turns.agree(value)


def piece(step: int, rank: int) -> Snapshot:
    """The row of a rank of every tensor."""
    whole = snapshot(step)
    assert whole.raw is not None
    rows = [{name: value[rank : rank + 1] for name, value in part.items()} for part in (whole.objective, whole.raw, whole.optimizer)]
    objective, raw, optimizer = rows
    return replace(whole, objective=objective, raw=raw, optimizer=optimizer, part=Rows(rank, RANKS, lambda name: False))


class Together(Scenario):
    """Two ranks save one checkpoint after the other; two are kept, and the best."""

    def __init__(self, steps: Sequence[int] = tuple(BEST)) -> None:
        self.steps = steps

    def run(self, root: Path, record: Recorder, parts: Parts) -> None:
        run, turns = root / "runs" / "a", Turns(record)

        def write(*words: Any) -> Path:
            file = shards.write(*words)
            record.turn(record.rank, record.stage)  # file by file
            return file

        ours = changed(parts.checkpoint)
        ours.storage, ours.distributed = parts.storage, SimpleNamespace(Meeting=turns.meeting)
        ours.shards = SimpleNamespace(**{**vars(shards), "write": write})
        checkpoints = ours.Checkpoints(run / "checkpoints", keep_last=2)

        def write_policy(folder: Path, state: dict[str, torch.Tensor]) -> None:
            safetensors.torch.save_file(state, folder / "model.safetensors")
            parts.storage.write_manifest(folder, {"kind": "policy"})

        with parts.storage.lock(run / ".lock", wait=False):
            checkpoints.sweep(pytest.fail)
            for step in self.steps:

                def save(rank: int, step: int = step) -> None:
                    checkpoints.save(piece(step, rank), {"w": torch.zeros(1)}, write_policy, BEST[step])

                record.mark("begun", step)
                turns.run(save)
                record.mark("saved", step)

    def check(self, root: Path, marks: dict[str, Any]) -> int | None:
        return check_checkpoints(root / "runs" / "a", marks)


def test_the_ranks_steps_come_in_every_order(disk: Path):
    with Recorder(disk) as record:
        Together().run(disk, record, Parts())
    orders = [order for order, _ in record.orders()]
    assert len(orders) == 1 + 6, "rank 0 writes three files before the meeting"
    assert all(sorted(order) == list(range(len(record.steps))) for order in orders)
    ranks = {tuple(record.labels[number][1] for number in order) for order in orders}
    assert len(ranks) == len(orders)
    theirs = [what for (what, _), (_, rank) in zip(record.steps, record.labels, strict=True) if rank == 1]
    each = ["create", "write"] * 3 + ["fsync"] * 3
    assert [what.split()[0] for what in theirs] == each * len(BEST)
    assert all("-00001-of-00002." in what for what in theirs)
    unread = {what.split("/")[3] for what in theirs}
    assert all(name.startswith(".step-") and name.endswith(".tmp") for name in unread), UNREAD


def test_a_crash_costs_no_checkpoint_that_ranks_have_saved_together(disk: Path):
    _, number = enumerate_states(Together(), disk, most=150)
    assert number >= 150


@pytest.mark.slow
def test_no_state_costs_a_checkpoint_that_ranks_have_saved_together(disk: Path):
    started = time.process_time()
    operations, number = enumerate_states(Together(), disk)
    print(f"\n{operations} operations of two ranks, {number} states, all opened, in {time.process_time() - started:.0f} s")
    assert number >= 2000


THEIRS = """                for file in write_tensors(path.with_name(f".{path.name}.{owner}.tmp"), snapshot):
                    storage.sync_file(file)
                meeting.agree()
"""
AGREED_FIRST = """                files = write_tensors(path.with_name(f".{path.name}.{owner}.tmp"), snapshot)
                meeting.agree()
                for file in files:
                    storage.sync_file(file)
"""
MISTAKES: dict[str, tuple[Any, str, str]] = {
    "rank 1 syncs its rows after it has agreed": (checkpoint, THEIRS, AGREED_FIRST),
    "rank 1 leaves its rows to rank 0 to sync": (checkpoint, "                    storage.sync_file(file)\n", "                    pass\n"),
    "rank 0 does not sync its files": (storage, "os.fsync(file.fileno())\n        files[", "pass\n        files["),
    "the new name is not synced": (storage, COMMITTED, ""),
}


@pytest.mark.parametrize("mutant", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_of_ranks_is_found(disk: Path, mutant: tuple[Any, str, str]):
    with pytest.raises(AssertionError, match="after `"):
        enumerate_states(Together((1,)), disk, mutant=mutant, since=1)
