"""Everything that a run directory says about its training, read with care: it may be of a run that was killed, or that still goes on."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deftly import storage
from deftly.foreign import is_figure
from deftly.training.rollback import FAILURE_FILE
from deftly.training.tracking import METRICS
from deftly.types import DataError, UsageError

Line = dict[str, Any]
EARLY = 0.2  # of a run: where the loss falls steeply and the rate warms up
FIGURES = {
    "seed": False,
    "training.steps": False,
    "training.ema_decay": True,
    "training.clip_norm": True,
    "training.optimizer.learning_rate": False,
}
"""Of run.json, and whether they may be null."""
CONTRACT = ("policy/contract.json",)


@dataclass(frozen=True)
class Record:
    directory: Path
    lines: dict[str, list[Line]]
    """The log by kind."""
    run: dict[str, Any]
    """`run.json`."""
    failure: dict[str, Any] | None
    """`failure.json`, where the run ended by it."""
    action_names: list[str]

    def of(self, kind: str) -> list[Line]:
        return self.lines.get(kind, [])

    @property
    def steps(self) -> int:
        """Done so far."""
        return max((line["step"] for lines in self.lines.values() for line in lines), default=0)

    @property
    def training(self) -> dict[str, Any]:
        found = self.run.get("training", {})
        return found if isinstance(found, dict) else {}

    def losses(self) -> tuple[list[int], list[float]]:
        """(steps, losses) of the train lines that are finite."""
        pairs = [(line["step"], line["loss"]) for line in self.of("train") if line["loss"] is not None]
        return [step for step, _ in pairs], [loss for _, loss in pairs]

    def validations(self) -> tuple[list[int], list[float]]:
        pairs = [(line["step"], line["loss"]) for line in self.of("validation") if line["loss"] is not None]
        return [step for step, _ in pairs], [loss for _, loss in pairs]

    def settled(self, kind: str) -> list[Line]:
        """The lines after the beginning of the run."""
        return [line for line in self.of(kind) if line["step"] > EARLY * self.steps] or self.of(kind)


def read_record(directory: Path) -> Record:
    """Raises `UsageError` where there is no run, `DataError` where its files are damaged; each in one line."""
    if not directory.is_dir():  # guard: training.diagnose.directory
        raise UsageError(f"{directory}: no such directory; name a run's directory, such as runs/imitate")
    path = directory / METRICS
    if not path.is_file():  # guard: training.diagnose.log
        raise UsageError(f"{directory}: has no {METRICS}, so nothing was trained here; name the directory of a training run")
    lines: dict[str, list[Line]] = {}
    for number, line in enumerate(storage.read_lines(path), 1):
        is_line = isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("kind"), str)
        if not is_line:  # guard: training.diagnose.line
            raise DataError(f"{path}:{number}: not a line that training writes; restore the file, or train again")
        lines.setdefault(line["kind"], []).append(line)
    run = _read(directory / "run.json") or {}
    _check_run(run, directory / "run.json")
    failure = _read(directory / FAILURE_FILE)
    if failure is not None:
        _check_failure(failure, directory / FAILURE_FILE)
    last = max((line["step"] for found in lines.values() for line in found), default=0)
    if failure is not None and failure.get("step") != last:
        failure = None  # the run was resumed since, and got further
    return Record(directory, lines, run, failure, _action_names(directory))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = storage.read_json(path)
    if not isinstance(value, dict):  # guard: training.diagnose.file
        raise DataError(f"{path}: holds {type(value).__name__} where an object should be; restore the file")
    return value


def _check_run(run: dict[str, Any], path: Path) -> None:
    """Refuse a config whose fields are not what the verdicts compute with; a field that is not there has a default."""
    for name, may_be_null in FIGURES.items():
        *parts, last = name.split(".")
        where: Any = run
        for part in parts:
            where = where.get(part, {}) if isinstance(where, dict) else None
        if not isinstance(where, dict):  # guard: training.diagnose.part
            raise DataError(f"{path}: {'.'.join(parts)} is no object; restore the file")
        value = where.get(last, 0)
        if not is_figure(value) and not (value is None and may_be_null):  # guard: training.diagnose.figure
            raise DataError(f"{path}: {name} is no finite number; restore the file")
    if not isinstance(run.get("seed", 0), int):  # guard: training.diagnose.seed
        raise DataError(f"{path}: seed is no whole number; restore the file")
    training = run.get("training", {})
    if (training.get("ema_decay") or 0) >= 1:  # guard: training.diagnose.decay
        raise DataError(f"{path}: training.ema_decay is not below 1; restore the file")
    if not isinstance(training.get("start", {}), dict):  # guard: training.diagnose.start
        raise DataError(f"{path}: training.start is no object; restore the file")


def _check_failure(failure: dict[str, Any], path: Path) -> None:
    is_whole = isinstance(failure.get("rollbacks"), list) and {"step", "bad_steps_in_a_row", "remedy"} <= failure.keys()
    if not is_whole:  # guard: training.diagnose.failure
        raise DataError(f"{path}: lacks step, bad_steps_in_a_row, rollbacks or remedy; restore or remove the file")


def _action_names(directory: Path) -> list[str]:
    """Of the newest checkpoint's contract, where it has one."""
    for contract in sorted((directory / "checkpoints").glob("step-*/policy/contract.json"), reverse=True):
        value = _read(contract) or {}
        try:
            return [str(name) for name in value["embodiment"]["action"]["names"]]
        except (KeyError, TypeError):
            continue
    return []


def middle(values: list[float]) -> float:
    """The median, or NaN of nothing."""
    return statistics.median(values) if values else math.nan


def number(value: float) -> str:
    return f"{value:.3g}"


def share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 or value == 0 else f"{value:.2%}"
