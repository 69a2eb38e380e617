"""A benchmark's side as a process of its own: calls go in and answers come out as JSON lines, so that imports are never timed.

`serve(side)` runs in the process, `Process` drives it. The side's own prints go to stderr; only answers go to stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def serve(side: object) -> None:
    """Answer calls until stdin ends. A call is {"method", "arguments"}; what it raises ends the process with its traceback on stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(getattr(side, call["method"])(**call["arguments"])) + "\n")
        answers.flush()


class Process:
    """`with Process(python, script, log) as side: side.call("open", root=...)`."""

    def __init__(self, python: Path, script: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.script, self.log = script, log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-u", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )

    def call(self, method: str, /, **arguments: Any) -> Any:
        """The answer; `SystemExit` with the end of the log when the process died."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer(method)

    def _answer(self, method: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.script.name} died in {method}:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def call_within(self, seconds: float, method: str, /, **arguments: Any) -> Any:
        """The answer, or None where it takes longer: the process is then ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._process.kill()
            return None
        return self._answer(method)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let the process go; again is nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
