"""The `deftly` command with a hook at every durable operation of a checkpoint: to die at one of them, or to count them.

    python tests/save_hook.py HOOK.json train ...

HOOK.json is a `Hook` as a dictionary. Nothing of this is in the product, which knows no hook.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

How = Literal["before", "after", "torn"]


@dataclass(frozen=True)
class Hook:
    """SIGKILL to the whole process group at operation `operation` of the saves from step `step` on; without `step` nobody dies, and each
    checkpoint's number of operations and digests are noted."""

    report: str
    """The file to which a JSON line is added for each death, or for each checkpoint."""
    step: int | None = None
    operation: int = 0
    how: How = "before"
    """`torn`: after it, with half of a tensor file missing where it wrote one."""

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


class Hooked:
    """Counts what the thread that saves does to the disk."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.thread: threading.Thread | None = None
        self.step = self.count = self.count_here = 0

    def install(self) -> None:
        import safetensors.torch

        from deftly.training.checkpoint import Checkpoints

        places: list[tuple[Any, str]] = [(os, name) for name in ("fsync", "replace", "unlink", "rmdir", "mkdir")]
        for owner, name in [*places, (builtins, "open"), (safetensors.torch, "save_file")]:
            setattr(owner, name, self._watched(getattr(owner, name), name))
        save = Checkpoints.save

        def saved(checkpoints: Checkpoints, snapshot: Any, *rest: Any) -> Path:
            self.thread, self.step, self.count_here = threading.current_thread(), snapshot.step, 0
            path = save(checkpoints, snapshot, *rest)
            self.thread = None
            if self.hook.step is None:
                from killing import digests

                self._note({"step": self.step, "operations": self.count_here, "digests": digests(path)})
            return path

        setattr(Checkpoints, "save", saved)  # noqa: B010

    def _watched(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            reads = name == "open" and not set(str(given[1] if len(given) > 1 else named.get("mode", "r"))) & set("wa+x")
            if threading.current_thread() is not self.thread or reads:
                return real(*given, **named)
            self.count_here += 1
            self.count += self.hook.step is not None and self.step >= self.hook.step
            if self.hook.step is None or self.count != self.hook.operation:
                return real(*given, **named)
            if self.hook.how != "before":
                with contextlib.suppress(OSError):  # such as unlinking what is not there
                    real(*given, **named)
                if self.hook.how == "torn" and name == "save_file":
                    os.truncate(path := Path(given[-1]), path.stat().st_size // 2)
            self._die(f"{self.hook.how} {name} {named_path(given)}")

        return watched

    def _note(self, line: dict[str, Any]) -> None:
        descriptor = os.open(self.hook.report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, (json.dumps(line) + "\n").encode())
        os.close(descriptor)

    def _die(self, where: str) -> None:
        self._note({"step": self.step, "where": where})
        os.killpg(os.getpgrp(), signal.SIGKILL)


def named_path(given: tuple[Any, ...]) -> str:
    """The last two parts of the path that an operation is about, or nothing."""
    for value in reversed(given):
        if isinstance(value, int) and not isinstance(value, bool):
            value = os.readlink(f"/proc/self/fd/{value}") if Path(f"/proc/self/fd/{value}").exists() else ""
        if isinstance(value, str | Path) and "/" in str(value):
            return "/".join(Path(value).parts[-2:])
    return ""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from deftly.cli.main import main

    Hooked(Hook(**json.loads(Path(sys.argv[1]).read_text()))).install()
    main(sys.argv[2:])
