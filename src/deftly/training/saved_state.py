"""What `trainer.json` of a checkpoint holds, checked as a whole before any of it is put back: no number of it fails at a later step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch

from deftly.training.checkpoint import TRAINER
from deftly.types import DataError, UsageError

Count = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
Positive = Annotated[int, pydantic.Field(gt=0, lt=2**31)]


class Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)


class Best(Part):
    step: Count
    loss: float


class GuardState(Part):
    skipped: Count
    in_a_row: Count
    window: list[float]
    heights: list[float] = []
    calm: Count = 0
    credit: Count = 0
    is_told: bool = False


class ScalerState(Part):
    scale: Annotated[float, pydantic.Field(gt=0)]
    steps: Count
    overflows: Count


class AccumulationState(Part):
    configured: Positive | Literal["auto"]
    used: Positive | None


class EarlyStopState(Part):
    metric: str | None = None
    smoothed: float | None
    best: float | None
    best_step: Count
    waited: Count


class RunningState(Part):
    sums: dict[str, float | None]
    count: Count


class State(Part):
    """Of the stream's state only the stream knows what it must be."""

    step: Count
    samples: Count
    best: Best | None
    origin: dict[str, Any] | None
    last: dict[str, float | None]
    running: RunningState
    seconds: dict[str, float]
    dataset_hash: str
    contract: dict[str, Any] | None
    environment: dict[str, Any]
    guard: GuardState
    ema_updates: Count | None
    scaler: ScalerState | None
    accumulation: AccumulationState
    early_stop: EarlyStopState
    rollbacks: list[dict[str, Count]]
    stream: Any

    @pydantic.model_validator(mode="after")
    def check_best(self) -> State:
        if self.best is not None and self.best.step > self.step:  # guard: training.saved_state.best
            raise ValueError(f"best is of step {self.best.step}, which is still to come")
        return self


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
        field = ".".join(str(part) for part in first["loc"]) or "state"
        raise DataError(f"{where / TRAINER}: {field}: {first['msg']}; use an earlier checkpoint") from None
