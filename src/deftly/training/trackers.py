"""Where else the numbers of `metrics.jsonl` go: TensorBoard, Weights & Biases. Off unless a run asks for them.

The log of a run is its JSONL file (`tracking.Metrics`); a tracker shows it. So every tracker begins each session with what that file holds
up to the checkpoint, and what it was told past it is taken back. It works in a thread of its own, and when it fails (a disk, a network, a
server) that is said once and training goes on, as fast as before.

How to add one: a `Config` with `kind` and `build`, a `Tracker` beside it, its name in the `TrackerConfig` union in config.py.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deftly import storage

MOST_WAITING = 4096  # lines that a slow tracker may be behind
CLOSING_S = 30.0  # how long the end of a run waits for one
NORMS = ("gradient", "weight", "update", "ratio", "lost", "vanished")  # of `norms.ModuleNorms`: what changes from step to step


class Tracker(ABC):
    """One place that shows numbers. Every method but the constructor is called in the tracker's own thread, and may raise anything."""

    name: str
    where: str
    """What a person opens or types to see it."""

    @abstractmethod
    def begin(self, history: Iterable[dict[str, Any]]) -> None:
        """Show exactly `history`, the lines of the log so far; whatever else was shown before is taken back."""

    @abstractmethod
    def log(self, step: int, values: dict[str, float]) -> None:
        """Show numbers of a step; one step may have several calls."""

    @abstractmethod
    def flush(self) -> None:
        """What was logged can be seen."""

    @abstractmethod
    def close(self) -> None: ...


class Trackers:
    """All trackers of a run behind one `log`, each in a thread of its own that starts with the first line."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
        self.background = [Background(tracker, say) for tracker in trackers]

    def begin(self, path: Path, lines: int) -> None:
        """The log at `path` has `lines` lines, which trackers show first."""
        for tracker in self.background:
            tracker.history = (path, lines)

    def log(self, line: dict[str, Any]) -> None:
        for tracker in self.background:
            tracker.put(line)

    def close(self) -> None:
        for tracker in self.background:
            tracker.close()


class Background:
    """One tracker in its thread. After its first error it is told nothing more."""

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.tracker, self.say = tracker, say
        self.history: tuple[Path, int] = (Path(os.devnull), 0)
        self.failed = False
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None

    def put(self, line: dict[str, Any]) -> None:
        if self.failed:
            return
        if self._thread is None:  # not before: data workers are forked while the first batch is made, and no other thread should run then
            self._thread = threading.Thread(target=self._work, name=f"deftly-{self.tracker.name}", daemon=True)
            self._thread.start()
            self.say(f"{self.tracker.name}: {self.tracker.where}")
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._fail(f"is {MOST_WAITING} lines behind")

    def close(self) -> None:
        """Let it end, for a while."""
        if self._thread is None:
            return
        if not self.failed:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSING_S)
            self._thread.join(CLOSING_S)
            if self._thread.is_alive():
                self._fail(f"did not end within {CLOSING_S:.0f} s")
        self._thread = None

    def _work(self) -> None:
        try:
            path, lines = self.history
            self.tracker.begin(itertools.islice(storage.read_lines(path), lines))
            line: dict[str, Any] | None = {}
            while line is not None and not self.failed:
                if self._waiting.empty():
                    self.tracker.flush()
                line = self._waiting.get()
                if line is not None:
                    self.tracker.log(line["step"], scalars(line))
            self.tracker.close()
        except BaseException as error:  # a library of others: it may raise what it likes
            self._fail(f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")

    def _fail(self, how: str) -> None:
        if not self.failed:
            self.failed = True
            self.say(f"WARNING: {self.tracker.name} {how}; training goes on without it, its numbers are in metrics.jsonl")


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line under flat names, which stay what they are from version to version.

    {"kind": "train", "loss": 1, "terms": {"action": 2}} -> train/loss, train/terms/action; norms have one name
    for each kind and module, norms/gradient/policy.trunk, of which there are at most `norms.MOST_GROUPS` modules.
    """
    if line.get("kind") == "modules":
        return dict(_norms(line["modules"])) | dict(_flat("noise", line.get("noise")))
    return dict(_flat(str(line.get("kind", "other")), {name: value for name, value in line.items() if name not in ("step", "kind")}))


def _norms(modules: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for module, norms in modules.items():
        for kind in NORMS:
            yield from _flat(f"norms/{kind}/{module}", norms.get(kind))


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{name}/{key}", item)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield name, float(value)
