"""Is this loss a spike? Judged against the median and the spread of the losses before it, which no single value can move."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

WINDOW = 64
FEWEST = 32  # losses before anything is judged: the median of fewer moves with the first descent
MAD_TO_STD = 1.4826  # of a normal distribution
LEAST_SPREAD = 0.25  # of the median: batches of a mixture differ by that much without anything being wrong


class SpikeDetector:
    """A loss is a spike when it lies more than `threshold` robust standard deviations above the median of the last `WINDOW` finite ones.

    With the least spread and the default threshold of 20 that is at least six times the median. Spikes enter the window as well, so that a
    level that stays becomes the new normal; what is not finite never does.
    """

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.window: deque[float] = deque(maxlen=WINDOW)

    def judges(self, loss: float) -> bool:
        """Whether `loss` is a spike; remembers it."""
        if not math.isfinite(loss):
            return False
        is_spike = self.threshold is not None and len(self.window) >= FEWEST and loss > self.limit(self.threshold)
        self.window.append(loss)
        return is_spike

    def limit(self, threshold: float) -> float:
        middle = statistics.median(self.window)
        spread = MAD_TO_STD * statistics.median(abs(loss - middle) for loss in self.window)
        return middle + threshold * max(spread, LEAST_SPREAD * abs(middle))

    def forget(self) -> None:
        """What comes from here on is another level."""
        self.window.clear()

    def state(self) -> list[float]:
        return list(self.window)

    def load_state(self, state: Any) -> None:
        self.window = deque(map(float, state), maxlen=WINDOW)
