"""With what, where and when a run was trained: `RUN/sessions.jsonl`, a line when a session begins and a line when it ends.

```
{"kind": "start", "time": …, "step": 0, "command": […], "versions": {…}, "git": {…}, "machine": {…}, "dataset_hash": …, "contract_hash": …}
{"kind": "end", "time": …, "step": 300, "how": "finished", "why": null}
```
A session without an end was killed. The config is in `run.json`. No environment variables, and no secrets (`secrets.py`).
"""

from __future__ import annotations

import functools
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deftly import __version__, storage
from deftly.contract import fingerprint
from deftly.training.resume import Identity
from deftly.training.secrets import without_known, without_secrets

SESSIONS = "sessions.jsonl"
GIT_S = 5.0


@contextmanager
def recorded(directory: Path, identity: Identity, step: Callable[[], int], say: Callable[[str], None]) -> Iterator[None]:
    """Record the session inside; `step()` is the number of steps done. A disk that refuses the line about the end does not change it."""
    path = directory / SESSIONS
    storage.mend_lines(path)
    storage.append_line(path, {"kind": "start", "time": now(), "step": step(), **describe(identity)})
    how, why = "finished", None
    try:
        yield
    except BaseException as error:
        how = "failed" if isinstance(error, Exception) else "stopped"
        why = signal_of(error) or without_known(f"{type(error).__name__}: {' '.join(str(error).split())}")[:500]
        raise
    finally:
        try:
            storage.append_line(path, {"kind": "end", "time": now(), "step": step(), "how": how, "why": why})
        except OSError as error:
            say(f"WARNING: {path} cannot be written ({error.strerror}): the end of this session is not recorded")


def signal_of(error: BaseException) -> str | None:
    """The signal that ended the program, where one did: the exit code is 128 more than its number."""
    if isinstance(error, KeyboardInterrupt):
        return "SIGINT"
    code = error.code if isinstance(error, SystemExit) else None
    return next((number.name for number in signal.Signals if code == 128 + number), None)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe(identity: Identity) -> dict[str, Any]:
    """Everything about a session but when: plain data."""
    contract = identity.contract.to_dict() if identity.contract is not None else None
    return {
        "command": without_secrets(sys.argv),
        "versions": versions(),
        "git": {"deftly": checkout_of_package(), "here": checkout(Path.cwd())},
        "machine": machine(),
        "environment": identity.environment,
        "dataset_hash": identity.dataset_hash,
        "contract_hash": fingerprint(contract) if contract is not None else None,
    }


def versions() -> dict[str, str | None]:
    return {
        "deftly": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "system": platform.platform(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, accelerators."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(errors="replace"), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


@functools.cache
def checkout_of_package() -> dict[str, Any] | None:
    """The commit of deftly's own source, where it runs from a checkout; None where it is installed, also inside of a checkout of others."""
    source = Path(storage.__file__).parent
    return checkout(source) if git(source, "ls-files", "--error-unmatch", "__init__.py") is not None else None


@functools.cache  # of the moment when this program began
def checkout(directory: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a directory is in, and whether tracked files differ from it; None outside of one or without git."""
    commit = git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = git(directory, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    return {"commit": commit, "dirty": bool(changed) if changed is not None else None}


def git(directory: Path, *words: str) -> str | None:
    """What git prints, or None where it fails. The checkout's own config may name a program as its fsmonitor: that is not run."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(directory), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_S, check=False, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
