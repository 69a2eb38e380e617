"""Parameters and modules chosen by regular expressions over their whole names."""

from __future__ import annotations

import difflib
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from deftly.types import UsageError

MATCHING_S = 5.0  # names are short: what takes longer would take for ever


def check_pattern(pattern: str) -> str:
    """The pattern, for a config's validator; raises ValueError when it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    return pattern


def matching(pattern: str, names: Iterable[str], where: str, what: str) -> list[str]:
    """The names that `pattern` matches from end to end, in their order; `UsageError` names a near one when there is none.

    `where` is the config's field, `what` are the things named ("parameter of the objective").
    """
    names = list(names)
    with limited(f"{where}: matching {pattern!r} takes too long; repeat no group that itself repeats something"):
        found = [name for name in names if re.fullmatch(pattern, name)]
    if not found:  # guard: training.names.matching
        raise UsageError(f"{where}: {pattern!r} matches the whole name of no {what}{near(pattern, names)}")
    return found


@contextmanager
def limited(text: str) -> Iterator[None]:
    """`UsageError(text)` when what is inside takes longer: some expressions take exponential time. Only where the system can interrupt,
    which is in the main thread of a POSIX process; a timer that runs already goes on afterwards."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise UsageError(text)

    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, MATCHING_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def near(pattern: str, names: Iterable[str]) -> str:
    """The end of an error: a name that may have been meant."""
    found = difflib.get_close_matches(re.sub(r"\\|[.]?[*+]|[$^()]", "", pattern), list(names), n=1, cutoff=0.3)
    return f"; a name near it is {found[0]!r}" if found else ""
