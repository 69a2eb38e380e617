"""The real command, killed, stopped, asked to end: repeated, it ends in the bits of a run that nothing disturbed (`killing.py`).

The policy has dropout, augmented images and words, an average, two micro-batches and two data workers, and saves every seven steps in a
thread. `make proof-kill` does this to 21 runs of 300 steps.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from killing import Moment, Process, Reference, Victim, draw_moments, wait
from nursery import Nursery

STEPS = 45


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="module")
def reference(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference.make(tmp_path_factory.mktemp("undisturbed"), nursery.start, STEPS)


def drawn() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments: {seed}")
    return random.Random(seed)


def test_b1_kill_nine_twice_once_inside_a_save(nursery: Nursery, reference: Reference, tmp_path: Path) -> None:
    victim = Victim("killed", tmp_path, reference, nursery.start)
    for moment in draw_moments(drawn(), ["save", "step"], STEPS, reference.operations):
        victim.die(moment)
    assert victim.in_save == 1
    assert victim.finish() == reference.outcome


def until_step(victim: Victim, process: Process, step: int) -> None:
    assert wait(process, lambda: victim.last_step() >= step) is None, victim.output.read_text()


def test_t16_t17_stopped_continued_and_ended_by_sigterm(nursery: Nursery, reference: Reference, tmp_path: Path) -> None:
    """The group is stopped with SIGSTOP, goes on, and is asked to end as a batch system does it: by SIGTERM to all of it."""
    draw, victim = drawn(), Victim("asked", tmp_path, reference, nursery.start)
    process = victim.begin(None)
    until_step(victim, process, draw.randrange(2, 15))
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGCONT)
    until_step(victim, process, draw.randrange(20, 36))
    time.sleep(draw.uniform(0, 0.05))
    os.killpg(process.pid, signal.SIGTERM)
    asked = time.monotonic()
    assert wait(process) == 143, victim.output.read_text()
    assert time.monotonic() - asked < 10
    (line,) = [line for line in victim.output.read_text().splitlines() if "stopped by a signal" in line]
    assert f"stopped by a signal after step {victim.last_step()} of {STEPS}" in line, "what was logged is in the checkpoint"
    assert victim.finish() == reference.outcome


def test_the_moments_are_those_that_were_asked_for() -> None:
    kinds = ["save", "start", "step", "save", "end"]
    moments = draw_moments(random.Random(3), kinds, 300, 90)
    assert [moment.kind for moment in moments] == kinds
    assert all(60 * number <= moment.step < 60 * (number + 1) for number, moment in enumerate(moments))
    assert all(1 <= moment.operation <= 90 and isinstance(moment, Moment) for moment in moments)
