"""The signals that ask a run to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Remembers the first SIGTERM or SIGINT, for the loop to act on at the next step boundary; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.owner = os.getpid()

    @property
    def exit_code(self) -> int | None:
        """128 + signal, as shells have it (143, 130), or None while nothing was asked."""
        return None if self.signal is None else 128 + self.signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None or os.getpid() != self.owner:  # a forked worker has nothing to save
            os._exit(128 + number)
        self.signal = number


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Catch SIGTERM and SIGINT while inside. Outside of the main thread, where Python allows no handlers, they are left alone."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
