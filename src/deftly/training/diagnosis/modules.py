"""What the norms of the modules say: who learns, who does not, and where gradients shrink or grow on their way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from deftly.training.diagnosis.curves import ratios
from deftly.training.diagnosis.record import Line, Record, middle, number, share
from deftly.training.diagnosis.verdicts import Verdict

SMALL = 0.01  # of all parameters: what stands in for a missing camera, say, may never be asked
VANISHES = 1e-5  # of the largest gradient per parameter; healthy networks span two to three orders of magnitude
EXPLODES = 1e3  # of the median module's gradient per parameter
GROWS = 10.0  # how much larger a module's weights became; decay and normalisation keep healthy ones within a factor of 2
LARGE = 3.0  # of the largest other weights: a module that began at 0 may grow as it likes below that
RATIO_HIGH, RATIO_LOW = 0.1, 1e-6  # of update to weight: the usual 1e-3 times and divided by a hundred and a thousand
DEAD_WARNING, DEAD_FAULT = 0.5, 0.9  # of a layer's units: a ReLU network loses a tenth or two without harm


class Seen(NamedTuple):
    """One module over the run: medians; None where there never was such a number."""

    gradient: float | None
    """Per parameter."""
    update: float | None
    first: float
    last: float
    """Weights per parameter."""
    size: int


def module_verdicts(record: Record) -> Iterator[Verdict]:
    lines = [line["modules"] for line in record.of("modules")]
    if lines:
        seen = {name: _seen(name, lines) for name in lines[-1]}
        yield from _learning(seen)
        yield from _gradients(seen)
        yield from _weights(seen)
        yield from _ratios(record)
    yield from _dead(record)


def _seen(name: str, lines: list[Line]) -> Seen:
    own = [line[name] for line in lines if name in line]
    size = own[-1]["size"]
    root = math.sqrt(size)
    gradients = [one["gradient"] / root for one in own if one["gradient"] is not None]
    updates = [one["update"] for one in own if one["update"] is not None]
    largest = max(gradients, default=0.0)
    return Seen(
        gradient=(middle(gradients) or largest) if gradients else None,  # 0 only where it is 0 in every line
        update=max(updates) if updates else None,
        first=own[0]["weight"] / root,
        last=own[-1]["weight"] / root,
        size=size,
    )


def _learning(seen: dict[str, Seen]) -> Iterator[Verdict]:
    """Modules that are trained in name only."""
    total = sum(one.size for one in seen.values())
    for name, one in seen.items():
        large = one.size >= SMALL * total
        part = f"{one.size:,} parameters, {share(one.size / total)} of all"
        if one.update is None:
            yield Verdict(
                code="frozen-by-choice",
                severity="note",
                what=f"{name} is frozen",
                evidence=part,
                remedy="nothing, if that is meant: see training.groups",
            )
        elif not one.gradient:
            how = "no gradient" if one.gradient is None else "a gradient of exactly 0"
            yield Verdict(
                code="frozen-module",
                severity="fault" if large else "note",
                what=f"{name} does not learn: it gets {how}",
                evidence=f"in every logged step; {part}",
                remedy="is its output used, and not detached or rounded? freeze it or leave it out if it is not meant to learn",
            )
        elif one.update == 0:
            yield Verdict(
                code="no-update",
                severity="fault" if large else "note",
                what=f"{name} has a gradient and is never updated",
                evidence=f"gradient {number(one.gradient)} per parameter, update 0 in every logged step; {part}",
                remedy="its learning rate is 0, or so small that float32 cannot add it: see training.groups",
            )


def _gradients(seen: dict[str, Seen]) -> Iterator[Verdict]:
    known = {name: one.gradient for name, one in seen.items() if one.gradient}
    if len(known) < 2:
        return
    top = max(known, key=known.__getitem__)
    bottom = min(known, key=known.__getitem__)
    usual = middle(list(known.values()))
    between = f"{number(known[bottom])} per parameter in {bottom}, {number(known[top])} in {top}, {number(usual)} in the median module"
    lost = [name for name, gradient in known.items() if gradient < VANISHES * known[top]]
    # Modules are declared from the input to the output, as a rule; gradients go the other way.
    values = list(known.values())
    grows = middle(values[: len(values) // 2]) > middle(values[(len(values) + 1) // 2 :])
    if (grows and len(lost) > 1) or (known[top] > EXPLODES * usual and not lost):
        yield Verdict(
            code="exploding-gradients",
            severity="fault",
            what=f"the gradient grows on its way to {top}",
            evidence=between,
            remedy=f"normalise before or inside {top}, or begin it with smaller weights",
        )
    elif lost:
        yield Verdict(
            code="vanishing-gradients",
            severity="fault" if len(lost) > 1 else "note",  # one alone has no effect, such as a constant before a normalisation
            what=f"the gradient is lost on its way to {', '.join(lost)}",
            evidence=between,
            remedy="residual connections, normalisation, and activations that do not saturate keep it",
        )


def _weights(seen: dict[str, Seen]) -> Iterator[Verdict]:
    for name, one in seen.items():
        others = max((other.last for key, other in seen.items() if key != name), default=math.inf)
        if one.first and one.last > GROWS * one.first and one.last > LARGE * others:
            yield Verdict(
                code="exploding-weights",
                severity="warning",
                what=f"the weights of {name} grow without end",
                evidence=f"from {number(one.first)} to {number(one.last)} per parameter; the largest elsewhere is {number(others)}",
                remedy="lower its learning rate, raise weight decay, or normalise its output",
            )


def _ratios(record: Record) -> Iterator[Verdict]:
    found = ratios(record)
    for name, ratio in found.items():
        if ratio > RATIO_HIGH or ratio < RATIO_LOW:
            yield Verdict(
                code="update-ratio",
                severity="note",
                what=f"the updates of {name} are very {'large' if ratio > RATIO_HIGH else 'small'}",
                evidence=f"{number(ratio)} of its weights at a time; about 1e-3 is usual",
                remedy=f"a {'lower' if ratio > RATIO_HIGH else 'higher'} learning rate for it: training.groups",
            )


def _dead(record: Record) -> Iterator[Verdict]:
    lines = record.of("detail")
    for name, dead in lines[-1]["dead"].items() if lines else ():
        if dead >= DEAD_WARNING:
            yield Verdict(
                code="dead-units",
                severity="fault" if dead >= DEAD_FAULT else "warning",
                what=f"units of {name} are dead: they say the same whatever the input is",
                evidence=f"{share(dead)} of them, over {lines[-1]['samples']} held-out samples at step {lines[-1]['step']}",
                remedy="lower the learning rate, warm up, begin with smaller biases, or use GELU or SiLU in place of ReLU",
            )
