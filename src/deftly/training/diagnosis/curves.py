"""What the curves say: losses, rates, gradient norms, time. Every threshold is a ratio, so none depends on the unit of a loss."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from deftly.training.diagnosis.record import Record, middle, number, share
from deftly.training.diagnosis.verdicts import Verdict

FEWEST_LINES = 8  # of a curve: the median of fewer says nothing about a trend
FEWEST_STEPS = 50  # a run of fewer has not left its warm-up
ZERO_RATE = 1e-6  # of the peak: no schedule here has a floor that low except 0, and its last step alone reaches that
ZERO_SHARE = 0.2  # of the logged steps; a cosine to 0 has one
FELL_LITTLE = 0.15  # of the first loss: what the mean action is better than fresh weights
FELL_HALF = 0.5  # of the first loss: who gets that far is on the way, however slowly
TOO_FAST = 0.03  # update / weight: thirty times the usual 1e-3; a weight is then replaced every thirty steps
GREW = 5.0  # times, in the median module: weights that train well stay within a factor of 2 or 3 of where they began
MOVED_LITTLE = 0.05  # of the size of the weights, in a whole run: fresh weights that learn move by more than a third of it
GAVE_BACK = 0.5  # of what the loss had fallen
JUMPS, EACH_WAY = 0.25, 3  # of the changes from line to line, and how often up and down: a descent has none up, a spike is one each
SWING = 0.25  # of the level: three times what batch noise makes of a mean over 20 steps
SWING_OF_FIRST = 0.03  # of the first loss: near 0 every change is relatively large
OVERFIT_PATIENCE = 3  # validations after the best one
OVERFIT_RISE = 0.1  # over the best: validations of one run differ by about a hundredth on the same samples
OVERFIT_FAULT = 0.5
CLIPPED_SHARE, CLIPPED_FACTOR = 0.95, 10.0  # a norm of ten times the limit: only the direction of the gradient is left
DATA_SHARE = 0.5  # of the time of a step
FEWEST_TIMES = 3  # logged lines, of more than which one may be left out
DATA_LEAST_S = 1e-3  # a step: below it the share is the cost of Python, and no loader would be faster
STEADY_SPIKES = 1e-3  # of the steps


def curve_verdicts(record: Record) -> Iterator[Verdict]:
    steps, losses = record.losses()
    if record.steps < FEWEST_STEPS or len(losses) < FEWEST_LINES:
        yield Verdict(
            code="too-short",
            severity="note",
            what="the run is too short to judge its curve",
            evidence=f"{record.steps} steps, {len(losses)} logged losses",
            remedy=f"train at least {FEWEST_STEPS} steps with {FEWEST_LINES} logged lines (training.log_every)",
        )
    else:
        yield from _rate(record)
        found = trend(record, steps, losses)
        yield from _pace(record, found)
        yield from _trend(record, found)
        yield from _overfitting(record, steps, losses)
        yield from _clipping(record)
    yield from _time(record)
    yield from _average(record)


def _rate(record: Record) -> Iterator[Verdict]:
    rates = [(line["step"], line["learning_rate"]) for line in record.of("train")]
    peak = max(rate for _, rate in rates)
    wanted = record.training.get("optimizer", {}).get("learning_rate", peak)
    still = [step for step, rate in rates if rate <= ZERO_RATE * max(peak, wanted)]
    if len(still) > ZERO_SHARE * len(rates):
        yield Verdict(
            code="schedule-at-zero",
            severity="fault",
            what="the learning rate was zero for a good part of the run",
            evidence=f"{len(still)} of {len(rates)} logged steps, from step {still[0]} to {still[-1]}; the peak was {number(peak)}",
            remedy="check training.schedule: its length is training.steps, and a floor of 0 is reached at its end",
        )


def ends(losses: list[float]) -> tuple[float, float]:
    """(the level at the beginning, the level at the end), each a median of a tenth of the lines, three at least."""
    size = max(3, len(losses) // 10)
    return max(losses[0], middle(losses[:size])), middle(losses[-size:])


def smooth(losses: list[float], width: int = 5) -> list[float]:
    """Running medians: one bad line moves none."""
    return [middle(losses[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(losses))]


def ratios(record: Record) -> dict[str, float]:
    """Module -> median of update / weight, after the beginning."""
    lines = [line["modules"] for line in record.settled("modules")]
    names = {name for line in lines for name in line}
    found = {name: [line[name]["ratio"] for line in lines if name in line and line[name]["ratio"]] for name in names}
    return {name: middle(values) for name, values in found.items() if values}


def swings(values: list[float], first: float) -> tuple[float, float] | None:
    """(share of the changes that are jumps, the usual jump relative to the level), where values jump up as well as down; else None."""
    changes = [b - a for a, b in itertools.pairwise(values)]
    level = abs(middle(values))
    jumps = [change for change in changes if abs(change) > max(SWING * level, SWING_OF_FIRST * abs(first))]
    ups = sum(jump > 0 for jump in jumps)
    if len(jumps) < JUMPS * len(changes) or min(ups, len(jumps) - ups) < EACH_WAY:
        return None
    return len(jumps) / len(changes), middle([abs(jump) for jump in jumps]) / level if level else math.inf


def growth(record: Record) -> float:
    """How many times as large the weights of the median module became; 1 where that cannot be told."""
    lines = [line["modules"] for line in record.of("modules")]
    found = [one["weight"] / lines[0][name]["weight"] for name, one in lines[-1].items() if name in lines[0] and lines[0][name]["weight"]]
    return middle(found) if found else 1.0


class Trend(NamedTuple):
    """Where a training loss came from, and where it went."""

    fell: float
    """As a share of the first level."""
    gave_back: bool
    swing: tuple[float, float] | None
    path: str
    """In words."""


def trend(record: Record, steps: list[int], losses: list[float]) -> Trend:
    first, last = ends(losses)
    curve = smooth(losses)
    best = min(curve)
    noise = middle([abs(loss - level) for loss, level in zip(losses, curve, strict=True)])
    gave_back = last - best > max(GAVE_BACK * (first - best), 5 * noise, 0.5 * abs(best))
    half = [loss for step, loss in zip(steps, losses, strict=True) if step > record.steps / 2]
    held_out = [loss for step, loss in zip(*record.validations(), strict=True) if step > record.steps / 4]
    return Trend(
        fell=(first - last) / first if first > 0 else math.inf,
        gave_back=gave_back,
        swing=swings(half, first) or swings(held_out, first),
        path=f"the loss was {number(first)} at the beginning, {number(best)} at its best (step {steps[curve.index(best)]}) and "
        f"{number(last)} at the end",
    )


def _trend(record: Record, found: Trend) -> Iterator[Verdict]:
    if found.gave_back:
        yield Verdict(
            code="diverged",
            severity="fault",
            what="the loss rose again after it had fallen",
            evidence=found.path,
            remedy="lower training.optimizer.learning_rate; look at what comes at that step with `deftly data check`",
        )
    elif found.fell < FELL_LITTLE:
        yield Verdict(
            code="nothing-learnt",
            severity="warning",
            what="the loss hardly fell",
            evidence=f"by {share(max(found.fell, 0.0))}; {found.path}",
            remedy="check that actions belong to observations (`deftly data preview`), then learning rate and policy size",
        )
    if found.swing is not None:
        jumps, change = found.swing
        yield Verdict(
            code="oscillation",
            severity="warning",
            what="the loss goes up and down instead of settling",
            evidence=f"{share(jumps)} of its changes are jumps, of {share(change)} of its level; {found.path}",
            remedy="lower training.optimizer.learning_rate or enlarge data.batch_size; data that comes in blocks does this too: shuffle it",
        )


def _pace(record: Record, found: Trend) -> Iterator[Verdict]:
    """Whether the learning rate fits."""
    ratio = ratios(record)
    if not ratio:
        return
    fastest = max(ratio, key=lambda name: ratio[name])
    moved = statistics.median(ratio.values()) * record.steps
    grown = growth(record)
    is_in_trouble = found.gave_back or found.swing is not None or found.fell < FELL_HALF
    if grown > GREW or (ratio[fastest] > TOO_FAST and (found.gave_back or found.swing or found.fell < FELL_LITTLE)):
        yield Verdict(
            code="learning-rate-too-high",
            severity="fault" if is_in_trouble else "warning",
            what="the learning rate is too high: weights change faster than they can learn",
            evidence=f"the weights of the median module are {number(grown)} times as large as at first, an update is "
            f"{share(ratio[fastest])} of those of {fastest} (about 0.1 % is usual); {found.path}",
            remedy="lower training.optimizer.learning_rate by a factor of 10, or warm up for longer",
        )
    if moved < MOVED_LITTLE and found.fell < FELL_HALF:
        yield Verdict(
            code="learning-rate-too-low",
            severity="note" if record.training.get("start", {}).get("path") else "warning",
            what="the weights hardly moved in the whole run",
            evidence=f"at most {share(moved)} of their size in {record.steps} steps; {found.path}",
            remedy="raise training.optimizer.learning_rate by a factor of 10, or train for longer",
        )


def _overfitting(record: Record, steps: list[int], losses: list[float]) -> Iterator[Verdict]:
    at, held_out = record.validations()
    if not at:
        yield Verdict(
            code="no-validation",
            severity="note",
            what="no held-out loss was measured",
            evidence="metrics.jsonl has no validation line",
            remedy="set data.validation_fraction",
        )
        return
    best = min(range(len(held_out)), key=held_out.__getitem__)
    since = held_out[best + 1 :]
    rise = (middle(since[-2:]) - held_out[best]) / abs(held_out[best]) if since and held_out[best] else 0.0
    before = [loss for step, loss in zip(steps, losses, strict=True) if step <= at[best]]
    after = [loss for step, loss in zip(steps, losses, strict=True) if step > at[best]]
    fell = bool(before) and bool(after) and middle(after[-3:]) < middle(before[-3:])
    if len(since) >= OVERFIT_PATIENCE and rise > OVERFIT_RISE and fell:
        yield Verdict(
            code="overfitting",
            severity="fault" if rise > OVERFIT_FAULT else "warning",
            what="the policy learns its training episodes by heart",
            evidence=f"the held-out loss rose by {share(rise)} since its best of {number(held_out[best])} at step {at[best]}, "
            f"{len(since)} validations ago, while the training loss fell to {number(middle(after[-3:]))}",
            remedy="use checkpoints/best; train fewer steps (training.early_stop), on more episodes, with more augmentation or dropout",
        )
    tail = [loss for step, loss in zip(steps, losses, strict=True) if step > 0.8 * record.steps]
    if tail and held_out[-1] > 0 and middle(tail) > 2 * held_out[-1]:  # twice: no noise, but dropout or augmentation
        yield Verdict(
            code="regularised",
            severity="note",
            what="training is much harder than what is held out",
            evidence=f"loss {number(middle(tail))} while training, {number(held_out[-1])} held out",
            remedy="dropout or augmentation may be too strong, or the held-out episodes too easy",
        )


def _clipping(record: Record) -> Iterator[Verdict]:
    limit = record.training.get("clip_norm")
    norms = [line["gradient_norm"] for line in record.of("train") if line["gradient_norm"] is not None]
    if not limit or not norms:
        return
    over = sum(norm > limit for norm in norms) / len(norms)
    factor = middle(norms) / limit
    if over >= CLIPPED_SHARE:
        yield Verdict(
            code="always-clipped",
            severity="warning" if factor > CLIPPED_FACTOR else "note",
            what="the gradient is clipped at every step",
            evidence=f"its norm is {number(middle(norms))}, training.clip_norm is {number(limit)}",
            remedy="raise training.clip_norm above the usual norm: it is there for the unusual one",
        )


def _time(record: Record) -> Iterator[Verdict]:
    """Of the lines after the beginning, without the one that waited longest: a disk or a machine that was busy once is no habit."""
    train, settled = record.of("train"), record.settled("train")
    begins = [0, *(line["step"] for line in train)][len(train) - len(settled) :]
    parts = [(line.get("time", {}), line["step"] - begin) for line, begin in zip(settled, begins, strict=False)]
    if len(parts) > FEWEST_TIMES:
        parts.remove(max(parts, key=lambda part: part[0].get("data", 0.0)))
    waiting = sum(part.get("data", 0.0) for part, _ in parts)
    working = sum(part.get(name, 0.0) for part, _ in parts for name in ("forward_backward", "optimizer", "other"))
    steps = max(1, sum(count for _, count in parts))
    if waiting + working and waiting / (waiting + working) > DATA_SHARE and waiting / steps > DATA_LEAST_S:
        yield Verdict(
            code="data-bound",
            severity="warning",
            what="training waits for data",
            evidence=f"{share(waiting / (waiting + working))} of the time of a step, {1000 * waiting / steps:.1f} ms of "
            f"{1000 * (waiting + working) / steps:.1f} ms",
            remedy="raise data.workers, keep data.frames at store, lower data.image_size, or put the cache on a faster disk",
        )


def _average(record: Record) -> Iterator[Verdict]:
    decay, planned = record.training.get("ema_decay"), record.training.get("steps", 0)
    if decay and planned and 1 / (1 - decay) > planned / 2:  # the average then still holds weights of the first half when the run ends
        yield Verdict(
            code="slow-average",
            severity="note",
            what="the moving average is slow for a run of this length",
            evidence=f"training.ema_decay {decay} averages over {1 / (1 - decay):.0f} steps, the run has {planned}",
            remedy=f"an ema_decay of {max(0.0, 1 - 10 / planned):.3g} averages over a tenth of the run",
        )
