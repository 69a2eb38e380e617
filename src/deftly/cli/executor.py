"""`--executor`: where a command does its independent jobs, and how SIGTERM ends them."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from deftly.sim.processes import Executor, Local
from deftly.types import UsageError


def executor_of(text: str) -> Executor:
    """`local`, the processes of this machine; `ray`, an instance that is started here; `ray=HOST:PORT` or `ray=auto`, a cluster."""
    kind, separator, address = text.partition("=")
    if text == "local":
        return Local()
    if kind != "ray" or (separator and not address):  # guard: executor.unknown
        raise UsageError(f"--executor {text!r}: give local, ray, ray=HOST:PORT or ray=auto")
    from deftly.sim.cluster import Ray

    return Ray(address or None)


@contextlib.contextmanager
def using(text: str) -> Iterator[Executor]:
    """The executor that `text` names, closed at the end. SIGTERM leaves the block as an exception, so that workers end first, then 143."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        with executor_of(text) as executor:
            yield executor
    except SystemExit:
        if not stopped:
            raise
        print("deftly: stopped by SIGTERM; the same command continues from what is saved", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None  # where it interrupts Ray, Ray replaces the code
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
