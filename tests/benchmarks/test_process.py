"""A side that takes too long is ended, and one that dies says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIDE = f"""
import sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from process import serve

class Side:
    def wait(self, seconds):
        time.sleep(seconds)
        return seconds

    def fail(self):
        raise RuntimeError("the reason")

serve(Side())
"""


def test_calls_are_answered_limited_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from process import Process

    (tmp_path / "side.py").write_text(SIDE)

    def start() -> Process:
        return Process(Path(sys.executable), tmp_path / "side.py", tmp_path / "log", {})

    with start() as side:
        assert side.call("wait", seconds=0) == 0
        assert side.call_within(60, "wait", seconds=0.01) == 0.01
        assert side.call_within(0.05, "wait", seconds=60) is None
        side.end()
    with start() as side, pytest.raises(SystemExit, match="the reason"):
        side.call("fail")
