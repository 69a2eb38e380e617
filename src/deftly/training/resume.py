"""Is this still the same run? What resume compares before it touches anything."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch

from deftly.contract import Contract, differences
from deftly.training import distributed
from deftly.training.checkpoint import TRAINER, Snapshot
from deftly.training.config import TrainingConfig
from deftly.types import DataError, UsageError


@dataclass(frozen=True)
class Identity:
    """What makes a run the run that it is."""

    run: dict[str, Any]
    """The resolved config: kept in `run.json`."""
    dataset_hash: str
    contract: Contract | None
    environment: dict[str, Any]

    def fixed(self) -> dict[str, Any]:
        """`run` without the fields that cannot change a weight."""
        training = self.run.get("training", {})
        return {**self.run, "training": {name: value for name, value in training.items() if name not in TrainingConfig.FREE}}

    def to_dict(self) -> dict[str, Any]:
        """The part that `trainer.json` holds."""
        contract = self.contract.to_dict() if self.contract is not None else None
        return {"dataset_hash": self.dataset_hash, "contract": contract, "environment": self.environment}


def environment(config: TrainingConfig, device: torch.device) -> dict[str, Any]:
    """What, besides the config, decides over bits."""
    return {
        "precision": config.precision,
        "ranks": distributed.world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


FREE = tuple(f"training.{name}" for name in TrainingConfig.FREE)  # where a run's config has its training


class Best(pydantic.BaseModel):
    step: int
    loss: float


class State(pydantic.BaseModel):
    """The part of `trainer.json` that is used as it stands; the rest is checked by whom it belongs to, when it is put back."""

    model_config = pydantic.ConfigDict(strict=True)

    step: int = pydantic.Field(ge=0)
    samples: int = pydantic.Field(ge=0)
    best: Best | None
    last: dict[str, float | None]
    dataset_hash: str
    contract: dict[str, Any] | None
    environment: dict[str, Any]
    guard: dict[str, Any]
    stream: Any


@contextmanager
def reading(where: Path) -> Iterator[None]:
    """What is put back in here was read from a checkpoint: where it does not fit, the checkpoint is at fault, in one line."""
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else 'no more is known'}"
        raise DataError(f"{where / TRAINER}: does not hold what a trainer saves ({what}); use an earlier checkpoint") from error


def check_state(state: dict[str, Any], where: Path) -> None:
    """`DataError` for the first field of a trainer's state that is missing or of another kind."""
    try:
        State.model_validate(state)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where / TRAINER}: {field}: {first['msg']}; use an earlier checkpoint") from None


DATASET = "dataset"  # what `allowed` calls the data itself, as opposed to the config's fields
RANKS = "ranks"  # and the number of processes


def require_same_run(ours: Identity, snapshot: Snapshot, where: Path, allowed: Sequence[str] = ()) -> list[str]:
    """Raise one line that names the differing fields, or return notes on what keeps the resumed run from being bit-identical.

    `allowed` are fields that may have changed: `training.steps`, a whole part of the config such as `training`, `dataset`, or `ranks`.
    Those that cannot change a weight (`TrainingConfig.FREE`) always may.
    """
    check_state(snapshot.trainer, where)
    state, mine = snapshot.trainer, ours.to_dict()
    config = differences(snapshot.run, ours.run)
    changed = [line for line in config if not _is_allowed(line, (*allowed, *FREE))]
    if changed:  # guard: training.resume.config
        fields = " ".join(f"--allow-change {printable(_field(line))}" for line in changed[:8])
        remedy = f"change it back, go on with {fields}, or start a new run directory"
        raise UsageError(f"{where}: the run's config has changed: {shortened(changed)}; {remedy}")
    data = differences({"dataset_hash": state["dataset_hash"]}, {"dataset_hash": mine["dataset_hash"]})
    data += differences({"contract": state["contract"]}, {"contract": mine["contract"]})
    if data and DATASET not in allowed:  # guard: training.resume.data
        raise DataError(
            f"{where}: the data is not what the run began with: {shortened(data)}; resume with that data, go on with "
            f"--allow-change {DATASET}, or start a new run directory"
        )
    fixed = ("precision", "ranks")
    then, now = state["environment"], mine["environment"]
    changed = [
        line
        for line in differences({name: then[name] for name in fixed}, {name: now[name] for name in fixed})
        if not _is_allowed(f"training.{line}", allowed) and not (_field(line) == RANKS and RANKS in allowed)
    ]
    if changed:  # guard: training.resume.fixed
        remedy = f"go on with --allow-change {RANKS}, " if all(_field(line) == RANKS for line in changed) else ""
        raise UsageError(f"{where}: {shortened(changed)}; resume as the run began, {remedy}or start a new run directory")
    notes = [f"changed from here on: {shortened(config + data)}"] if config or data else []
    changed = differences(then, now)
    return notes + ([f"WARNING: {shortened(changed)}: the run goes on, but not bit for bit as it would have"] if changed else [])


def check_allowed(allowed: Sequence[str], run: dict[str, Any]) -> None:
    """Every name must be a field of the run, or a part of it: a typing error must not pass for a change that did not happen."""
    for name in allowed:
        value: Any = run
        for part in () if name in (DATASET, RANKS) else name.split("."):
            if not isinstance(value, dict) or part not in value:  # guard: training.resume.allowed
                known = sorted(value) if isinstance(value, dict) else []
                near = difflib.get_close_matches(part, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join([*known, DATASET, RANKS])}"
                raise UsageError(f"--allow-change {name}: the run has no such field; {hint}")
            value = value[part]


def _field(line: str) -> str:
    """The field that a line of `differences` is about."""
    return line.partition(":")[0].partition("[")[0]


def _is_allowed(line: str, allowed: Sequence[str]) -> bool:
    return any(_field(line) == name or _field(line).startswith(f"{name}.") for name in allowed)


def shortened(lines: list[str], most: int = 3) -> str:
    lines = [printable(line) for line in lines]
    return "; ".join(lines[:most]) + (f" (+{len(lines) - most} more)" if len(lines) > most else "")


def printable(text: str) -> str:
    """The beginning of what somebody else may have written, without line breaks and escapes."""
    return "".join(character if character.isprintable() else "?" for character in text[:240])
