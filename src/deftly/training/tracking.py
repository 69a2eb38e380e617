"""What a run tells about itself: `metrics.jsonl`, one JSON object per line.

```
{"step": 40, "kind": "train", "loss": …, "terms": {…}, "gradient_norm": …, "learning_rate": …, "samples": …, "skipped": 0, "time": {…}}
{"step": 40, "kind": "validation", "loss": …, "terms": {…}, "is_best": true, "time": {…}}
{"step": 40, "kind": "detail", "samples": …, "episodes": …, "terms": {"action": {"dimension": […], "spread": […], "horizon": […],
 "task": {"0": …}, "tasks": …,
 "standard_error": …, "mismatched": {"dimension": […], "horizon": […], "task": {…}}}}, "dead": {"policy.trunk.2": 0.1}, "time": {…}}
{"step": 40, "kind": "modules", "modules": {"policy.trunk": {"gradient": …, "weight": …, "update": …, "ratio": …, "size": …}},
 "noise": {"squared_norm": …, "variance": …, "samples": …}, "time": {…}}
{"step": 3, "kind": "overflow", "loss_scale": 32768.0, "time": {…}}
{"step": 41, "kind": "skipped", "reason": "non-finite", "loss": null, "terms": {…}, "gradient_norm": null, "episodes": "3, 5, 8",
 "keys": […], "origin": {"inputs": […], "module": …, "parameter": …, "keys": […], "episodes": […]}, "time": {…}}
{"step": 44, "kind": "recurring", "loss": …, "episodes": "3, 5, 8", "keys": […], "time": {…}}
{"step": 50, "kind": "rollback", "rollbacks": 1, "first_bad_step": 41, "last_bad_step": 50, "weights_of_step": 40, "time": {…}}
```
`step` is the number of steps done. Numbers of a train line are means over the steps since the one before it. Everything outside of
`time` (wall-clock seconds) is the same in a resumed run and in one that was never interrupted. A number that is not finite is null.
The `time` of a train line holds the seconds of each part since the one before it, and `utilization` (`utilization.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deftly import storage
from deftly.types import DataError

METRICS = "metrics.jsonl"


class Metrics:
    """The metrics file of one run. A full disk costs lines, not the run."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.failed = self._is_torn = False

    def write(self, values: dict[str, Any]) -> None:
        """Append a line; durable only after `sync`, which a checkpoint calls."""
        try:
            if self._is_torn:
                storage.mend_lines(self.path)
                self._is_torn = False
            storage.append_line(self.path, plain(values), durable=False)
        except OSError as error:
            self._is_torn = True  # mended before the next line: a disk that refuses one may refuse that too
            if not self.failed:
                self.say(f"WARNING: {self.path} cannot be written ({error.strerror}); training goes on without its log")
            self.failed = True

    def sync(self) -> None:
        storage.sync_file(self.path)

    def truncate(self, step: int) -> int:
        """Forget what was logged past `step`: those steps are about to be taken again. Returns the number of lines that are left.

        Lines with zeros in them are what the crash of a machine leaves where nothing was synced, which is past `step` too.
        """
        kept: list[bytes] = []
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        holes = [number for number, line in enumerate(lines, 1) if b"\0" in line]
        for number, line in enumerate(lines, 1):
            if b"\0" in line or not line.endswith(b"\n"):
                continue
            try:
                taken = storage.parse_json(line.decode())
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.path}:{number}: not valid JSON ({error}); move the file away to go on without its log") from None
            if not isinstance(taken, dict) or not isinstance(taken.get("step"), int):  # guard: training.log.step
                raise DataError(f"{self.path}:{number}: a line has no step; it is not the log of a training run, move it away")
            if taken["step"] <= step:
                if holes and holes[0] < number:  # guard: training.log.hole
                    raise DataError(f"{self.path}:{holes[0]}: holds zeros; the log is damaged, move it away to go on without it")
                kept.append(line)
        storage.write_bytes(self.path, b"".join(kept))
        return len(kept)


def plain(value: Any) -> Any:
    """The same data with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Running:
    """Means of each number over the steps since the last line; its state is in checkpoints, so that a resumed log has the same means."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """The means, and a fresh start."""
        values = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return values

    def state(self) -> dict[str, Any]:
        return {"sums": plain(self.sums), "count": self.count}  # a term that is only reported may have had nothing to count

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums = {name: math.nan if total is None else total for name, total in state["sums"].items()}
        self.count = state["count"]


class TimeSplit:
    """Where the time goes: `lap(name)` gives everything since the last lap to `name`, so the parts add up to the whole."""

    NAMES = ("data", "forward_backward", "optimizer", "validation", "checkpoint", "other")

    def __init__(self) -> None:
        self.total: dict[str, float] = dict.fromkeys(self.NAMES, 0.0)
        self.at_line = dict(self.total)
        self.last = time.perf_counter()

    def start(self) -> None:
        """Time from here on counts."""
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.total[name] += now - self.last
        self.last = now

    def since_line(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        parts = {name: self.total[name] - self.at_line[name] for name in self.NAMES}
        self.at_line = dict(self.total)
        return parts

    def elapsed(self) -> float:
        return sum(self.total.values())

    def state(self) -> dict[str, float]:
        return dict(self.total)

    def load_state(self, state: dict[str, float]) -> None:
        self.total = {name: float(state[name]) for name in self.NAMES}
        self.at_line = dict(self.total)
