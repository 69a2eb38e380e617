"""Early stopping: a run ends when what is measured on held-out episodes has not got better for a while.

Off by default: the best checkpoint is kept anyway, and a schedule that decays towards the last step (cosine) gains most of what it gains
near that step, so a run that is stopped before it has not been trained as planned. With a constant rate or WSD's plateau it saves time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from deftly.config import Config
from deftly.training import distributed


class EarlyStopConfig(Config):
    """When to give up. Counted in validations, so `validate_every` is the unit of time."""

    metric: Literal["loss", "action_accuracy"] = "loss"
    """The held-out loss (smaller is better), or the share of actions within tolerance (larger is)."""
    patience: int = pydantic.Field(default=10, gt=0)
    """Validations in a row without a new best of the smoothed metric."""
    min_delta: float = pydantic.Field(default=0.0, ge=0)
    """How much better than the best it must be to count."""
    smoothing: float = pydantic.Field(default=0.5, ge=0, lt=1)
    """Share of the past in the moving average that is judged; 0: each validation by itself."""


class EarlyStop:
    """Sees every validation; `why` says why the run should end. Its state is in checkpoints."""

    def __init__(self, config: EarlyStopConfig | None) -> None:
        self.config = config
        self.smoothed: float | None = None
        self.best: float | None = None
        self.best_step = self.waited = 0

    def see(self, step: int, measured: Mapping[str, float]) -> None:
        """A validation after `step` steps."""
        if self.config is None:
            return
        value = measured.get(self.config.metric, math.nan)
        if math.isfinite(value):
            past = self.config.smoothing if self.smoothed is not None else 0.0
            self.smoothed = past * (self.smoothed or 0.0) + (1 - past) * value
            if self._is_better(self.smoothed):
                self.best, self.best_step, self.waited = self.smoothed, step, -1
        self.waited += 1
        # Rank 0 decides: one rank that goes on while the others stop would wait for them forever.
        patience = self.config.patience
        is_over = distributed.any_rank(distributed.rank() == 0 and self.waited >= patience)
        self.waited = max(self.waited, patience) if is_over else min(self.waited, patience - 1)

    def _is_better(self, value: float) -> bool:
        assert self.config is not None
        if self.best is None:
            return True
        gain = value - self.best if self.config.metric == "action_accuracy" else self.best - value
        return gain > self.config.min_delta

    @property
    def why(self) -> str | None:
        """One line, or None while there is hope."""
        if self.config is None or self.waited < self.config.patience:
            return None
        best = "never finite" if self.best is None else f"best {self.best:.4g} at step {self.best_step}"
        metric = self.config.metric.replace("_", " ")
        return f"stopped early: no better validation {metric} in {self.waited} validations ({best}, smoothed)"

    def state(self) -> dict[str, Any]:
        metric = None if self.config is None else self.config.metric
        return {"metric": metric, "smoothed": self.smoothed, "best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; numbers of another metric are left, as those of a run that watched none are."""
        if self.config is None or state.get("metric", self.config.metric) != self.config.metric:
            return
        self.smoothed, self.best = state["smoothed"], state["best"]
        self.best_step, self.waited = state["best_step"], state["waited"]
