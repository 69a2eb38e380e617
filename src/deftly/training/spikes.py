"""Is this loss an accident? Judged against the median and the spread of the losses before it, which no single value can move.

What comes again is no accident but data: a small dataset of a mixture, a hard task, another stage of a curriculum. Were it skipped every
time, it would never be learnt, and nobody would know. So a detector skips few steps, and what it saw twice it lets pass.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW = 64
FEWEST = 32  # losses before anything is judged: the median of fewer moves with the first descent
MAD_TO_STD = 1.4826  # of a normal distribution
# Of the median. With the default threshold of 20 a loss below 21 times the median passes: a dataset of a mixture that is ten times as hard
# as the rest is common, and at the accidents that are worth a lost step (a batch that is broken) the loss is 100 times the usual and more.
# For losses above zero no spread lifts the limit past 31 times the median: half of them lie within one median of it.
LEAST_SPREAD = 1.0
SEEN = 2  # high losses after which one like them is data
SLACK = 1.0  # of the lower of these: batches have more and fewer of the hard samples, and the skipped ones are not learnt
MEMORY = 1000  # steps; after more of them without a high loss those before are forgotten, and so many earn one skip
MOST = 3  # skips that can be saved up; so n steps see no more than 3 + n / 1000 of them


class SpikeDetector:
    """A loss is high when it lies more than `threshold` robust standard deviations above the median of the last `WINDOW` finite ones.

    A high loss is a spike, except where `SEEN` others that were as high or nearly so came before it, with no more than `MEMORY` steps from
    one high loss to the next, and where no skip is left. High losses enter the window as well, so that a level that stays becomes the new
    normal; what is not finite never does.
    """

    def __init__(self, threshold: float | None, most: int = MOST) -> None:
        self.threshold = threshold
        self.most = most
        self.window: deque[float] = deque(maxlen=WINDOW)
        self.heights: list[float] = []  # the `SEEN` greatest of those that are remembered, falling
        self.calm = 0  # steps since the last high loss
        self.credit = most * MEMORY  # each step earns 1, a skip costs `MEMORY`
        self.is_told = False
        self.is_news = False  # whether the last loss is the first high one of the run that passed as data

    def judges(self, loss: float) -> bool:
        """Whether `loss` is a spike; remembers it."""
        if not math.isfinite(loss):
            return False
        is_high = self.threshold is not None and len(self.window) >= FEWEST and loss > self.limit(self.threshold)
        self.window.append(loss)
        self.credit = min(self.credit + 1, self.most * MEMORY)
        self.calm = 0 if is_high else self.calm + 1
        if self.calm == MEMORY:
            self.heights = []
        is_spike = is_high and not self.recurs(loss) and self.credit >= MEMORY
        if is_high:
            self.heights = sorted([*self.heights, loss], reverse=True)[:SEEN]
        if is_spike:
            self.credit -= MEMORY
        self.is_news = is_high and not is_spike and not self.is_told
        self.is_told |= self.is_news
        return is_spike

    def limit(self, threshold: float) -> float:
        middle = statistics.median(self.window)
        spread = MAD_TO_STD * statistics.median(abs(loss - middle) for loss in self.window)
        return middle + threshold * max(spread, LEAST_SPREAD * abs(middle))

    def recurs(self, loss: float) -> bool:
        """Whether enough of those that are remembered were as high."""
        return len(self.heights) == SEEN and loss <= self.heights[-1] + SLACK * abs(self.heights[-1])

    def state(self) -> dict[str, Any]:
        return {
            "window": list(self.window),
            "heights": list(self.heights),
            "calm": self.calm,
            "credit": self.credit,
            "is_told": self.is_told,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.window = deque(map(float, state["window"]), maxlen=WINDOW)
        # The rest is not in checkpoints of before there was a memory.
        self.heights = [float(height) for height in state.get("heights", ())]
        self.calm = state.get("calm", 0)
        self.credit = min(state.get("credit", self.most * MEMORY), self.most * MEMORY)
        self.is_told = state.get("is_told", False)
