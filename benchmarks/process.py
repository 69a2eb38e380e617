"""A benchmark's side as a process of its own: calls go in and answers come out as JSON lines, so that imports are never timed.

`serve(side)` runs in the process, `Process` drives it. The side's own prints go to stderr; only answers go to stdout.
"""

from __future__ import annotations

import json
import os
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
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"{self.script.name} died in {method}:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
