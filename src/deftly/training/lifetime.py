"""The signals that ask a run to end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 10.0  # between a signal and its copies, by way of the launchers of all machines


class Interrupt:
    """Remembers the first SIGTERM or SIGINT, for the loop to act on at the next step boundary; a second one ends the process at once.

    `is_launched`: a launcher hands on what it is sent, so that a process which was sent the same signal has it twice. Then a second one
    counts from a while later on, and who sent both kills, in the end, what does not go.
    """

    def __init__(self, is_launched: bool = False) -> None:
        self.signal: int | None = None
        self.owner = os.getpid()
        self.grace_s = ECHO_S if is_launched else 0.0
        self.since = 0.0

    @property
    def exit_code(self) -> int | None:
        """128 + signal, as shells have it (143, 130), or None while nothing was asked."""
        return None if self.signal is None else 128 + self.signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a forked worker has nothing to save; with several ranks all are asked to save, and may need theirs
            if not self.grace_s:
                os._exit(128 + number)
            return
        if self.signal is None:
            self.signal, self.since = number, time.monotonic()
        elif time.monotonic() - self.since >= self.grace_s:
            os._exit(128 + number)

    def agree(self, most: Callable[[int], int]) -> bool:
        """Whether any rank was sent a signal until now, which is taken over; `most` gives the largest number of all ranks.

        One that arrives while this rank waits for the others is not of this step boundary, for they do not know of it, but of the next one.
        """
        told = most(self.signal or 0)
        if told:
            self.signal = told
        return bool(told)


@contextmanager
def interruptible(is_launched: bool = False) -> Iterator[Interrupt]:
    """Catch SIGTERM and SIGINT while inside. Outside of the main thread, where Python allows no handlers, they are left alone."""
    interrupt = Interrupt(is_launched)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
