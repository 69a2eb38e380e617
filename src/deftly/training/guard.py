"""The guard: a step whose loss or gradient is not finite, or whose loss is a spike, leaves no trace in the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deftly.training.spikes import MOST, SpikeDetector
from deftly.training.state import Buffers

NON_FINITE, SPIKE = "non-finite", "spike"


class TrainingError(RuntimeError):
    """Training cannot go on. One line: what, at which step, with which episodes. Exit code 70."""

    exit_code: ClassVar[int] = 70


class Guard:
    """Judges every step before its update, counts the bad ones, and undoes what a bad forward pass did to buffers."""

    def __init__(self, objective: nn.Module, limit: int, not_saved: tuple[str, ...] = (), spike_threshold: float | None = None) -> None:
        self.limit = limit
        self.spikes = SpikeDetector(spike_threshold, min(MOST, limit - 1))  # a level that stays is nothing to go back from
        self.skipped = 0
        self.in_a_row = 0
        self.reason = ""  # of the last step that was not accepted
        # Running statistics change in the forward pass, so they are copied before it.
        self.buffers = Buffers(objective, not_saved)
        self.backup = [buffer.clone() for buffer in self.buffers.current()]

    def remember(self) -> None:
        """Before the first forward pass of a step."""
        copy(self.backup, self.buffers.current())

    def accepts(self, loss: float, gradient_norm: float) -> bool:
        """Whether the step may update the weights. If not, it is counted, `reason` says why, and the buffers are as before it."""
        is_finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        is_spike = is_finite and self.spikes.judges(loss)
        if is_finite and not is_spike:
            self.in_a_row = 0
            return True
        self.reason = SPIKE if is_spike else NON_FINITE
        self.skipped += 1
        self.in_a_row += 1
        self.restore()
        return False

    def restore(self) -> None:
        """The buffers as they were when they were remembered."""
        copy(self.buffers.current(), self.backup)

    @property
    def is_stuck(self) -> bool:
        return self.in_a_row >= self.limit

    def require_hope(self, step: int, report: Mapping[str, float], episodes: Tensor, more: str = "") -> None:
        """Raise `TrainingError` when `limit` steps in a row were bad, else return. `more` is what else there is to say."""
        if not self.is_stuck:
            return
        broken = ", ".join(f"{name} {value}" for name, value in report.items() if not math.isfinite(value))
        raise TrainingError(
            f"step {step}: {self.in_a_row} steps in a row had a non-finite loss or gradient ({broken}); the last batch is of episodes "
            f"{listed(episodes)}; the weights are those of the last good step: check the data of these episodes, or lower the learning rate"
            + (f" ({more})" if more else "")
        )

    def state(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, **self.spikes.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.spikes.load_state(state)


@torch.no_grad()
def copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]


def listed(episodes: Tensor, most: int = 16) -> str:
    """Distinct ids in order, cut after `most`."""
    ids = sorted(set(episodes.tolist()))
    return ", ".join(map(str, ids[:most])) + (f" and {len(ids) - most} more" if len(ids) > most else "")
