"""How much of the gradients was chance, over the run: is the batch so small that training mostly follows which samples are in it?

The noise scale tr Σ / |G|² (`training/noise.py`) is the batch size at which a gradient is half signal and half noise. A batch of a tenth of
it trains well, with steps that go in many wrong directions and cancel out: that is a note, since more devices or accumulation would then
make training faster nearly for nothing. It is a warning where the loss is seen to suffer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from deftly.training.diagnosis.curves import FEWEST_LINES, FEWEST_STEPS, trend
from deftly.training.diagnosis.record import Line, Record, number
from deftly.training.diagnosis.verdicts import Verdict

NOISY = 5.0  # noise scale / batch: of the gradient's square five parts are noise where one is signal
SURE = 2.0  # standard errors by which the signal may be larger than it seems


def noise_verdicts(record: Record) -> Iterator[Verdict]:
    lines = [line["noise"] for line in record.settled("modules") if line.get("noise")]
    steps, losses = record.losses()
    if len(lines) < FEWEST_LINES or len(losses) < FEWEST_LINES or record.steps < FEWEST_STEPS:
        return
    samples = lines[-1]["samples"]
    least = noise_scale(lines)
    if least <= NOISY * samples:
        return
    swings = trend(record, steps, losses).swing is not None
    yield Verdict(
        code="gradient-noise",
        severity="warning" if swings else "note",
        what="the batch is small: its gradient is mostly chance" + (", and the loss goes up and down" if swings else ""),
        evidence=f"the gradient noise scale is {number(least)} samples or more, the batch has {samples}: {number(least / samples)} times "
        f"as much noise as signal ({len(lines)} steps)",
        remedy="enlarge data.batch_size (training.accumulation where memory ends), or lower the learning rate; a larger average "
        "(training.ema_decay) helps too",
    )


def noise_scale(lines: list[Line]) -> float:
    """A lower bound of tr Σ / |G|² in samples, each averaged over the run first; infinite where no signal was seen at all."""
    signal = [line["squared_norm"] for line in lines]
    error = statistics.stdev(signal) / math.sqrt(len(signal))
    most = statistics.fmean(signal) + SURE * error
    variance = statistics.fmean(line["variance"] for line in lines)
    return variance / most if most > 0 else math.inf if variance > 0 else 0.0
