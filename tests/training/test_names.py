"""Expressions that choose parameters: bounded in time, and whoever had a timer still has it."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from deftly.training import names
from deftly.types import UsageError


@pytest.mark.parametrize("pattern", ["(([a-z._0-9])+)+#", "(a|a|aa)*b", "(.*)*(.*)*(.*)*#"])
def test_an_expression_that_takes_for_ever_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MATCHING_S", 0.2)
    begun = time.perf_counter()
    with pytest.raises(UsageError, match=r"training\.lora\.modules: matching .* takes too long"):
        names.matching(pattern, ["a" * 64], "training.lora.modules", "module")
    assert time.perf_counter() - begun < 5


def test_a_timer_that_runs_goes_on() -> None:
    def rung(*_: object) -> None:
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, rung)
    before = signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        assert names.matching("a.*", ["ab", "b"], "here", "name") == ["ab"]
        assert signal.getsignal(signal.SIGALRM) is rung
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def test_other_threads_match_too() -> None:
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(names.matching("a.*", ["ab", "b"], "here", "name")))
    thread.start()
    thread.join()
    assert found == [["ab"]]
