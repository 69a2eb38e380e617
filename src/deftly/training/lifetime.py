"""What a run shares with the outside: its directory, which only one trainer may use, and the signals that ask it to end."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from deftly.types import UsageError

LOCK = ".lock"
_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked data worker must not keep the lock of a trainer that was killed: a flock lives as long as any copy of its descriptor."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory for this process; `UsageError` when another trainer holds it. The kernel lets go of it when we die."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise UsageError(
                f"{directory}: another trainer (process {owner or 'unknown'}) is using this run directory; stop it first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


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
