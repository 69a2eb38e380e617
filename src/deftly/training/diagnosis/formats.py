"""What number formats lose: updates that 16-bit weights cannot hold, and gradients that float16 cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deftly.training.diagnosis.record import EARLY, Line, Record, middle, share
from deftly.training.diagnosis.verdicts import Severity, Verdict
from deftly.training.precision import LossScaler

LOST, LOST_FAULT = 0.5, 0.9  # of the weights with a gradient: half of them stay where they are, at the usual step
FALLS = 3  # how often the loss scale may be halved after the beginning, beside once for every time that it is doubled


def format_verdicts(record: Record) -> Iterator[Verdict]:
    yield from _lost(record)
    yield from _vanished(record)
    yield from _scale(record)


def shares(lines: list[Line], name: str) -> dict[str, float]:
    """Module -> median of the share `name` over lines that have it, and "" -> that of all parameters."""
    found: dict[str, list[float]] = {}
    for line in lines:
        known: dict[str, Any] = {module: one for module, one in line["modules"].items() if one.get(name) is not None}
        size = sum(one["size"] for one in known.values())
        for module, one in known.items():
            found.setdefault(module, []).append(one[name])
        if size:
            found.setdefault("", []).append(sum(one[name] * one["size"] for one in known.values()) / size)
    return {module: middle(values) for module, values in found.items()}


def _lost(record: Record) -> Iterator[Verdict]:
    still = {line["step"] for line in record.of("train") if not line["learning_rate"]}
    for severity, whole, worst in _worst(shares([line for line in record.settled("modules") if line["step"] not in still], "lost")):
        yield Verdict(
            code="lost-updates",
            severity=severity,
            what="updates are rounded away: weights of 16 bits are too coarse for them",
            evidence=f"at the usual step {whole} of the weights with a gradient stay as they are, {worst}",
            remedy="keep weights in float32: training.precision bf16 computes in bfloat16 and remembers in float32",
        )


def _vanished(record: Record) -> Iterator[Verdict]:
    for severity, whole, worst in _worst(shares(record.settled("modules"), "vanished")):
        yield Verdict(
            code="gradient-underflow",
            severity=severity,
            what="gradients are smaller than float16 can hold",
            evidence=f"{whole} of the gradient at the usual step, {worst}",
            remedy="train in bf16 or fp32 (training.precision), or state the loss in larger units",
        )


def _worst(found: dict[str, float]) -> Iterator[tuple[Severity, str, str]]:
    """How bad it is, the share of all parameters and that of the worst module, in words; nothing where it is little."""
    whole = found.pop("", 0.0)
    if whole >= LOST:
        worst = max(found, key=found.__getitem__)
        yield "fault" if whole >= LOST_FAULT else "warning", share(whole), f"{share(found[worst])} in {worst}"


def _scale(record: Record) -> Iterator[Verdict]:
    overflows = record.of("overflow")
    if not overflows:
        return
    late = [line["step"] for line in overflows if line["step"] > EARLY * record.steps]
    falls = len(late) > FALLS + record.steps / LossScaler.INTERVAL
    scale = overflows[-1]["loss_scale"]
    if not falls and scale > LossScaler.LEAST:
        yield Verdict(
            code="overflows",
            severity="note",
            what="gradients overflowed float16, and the loss scale was halved",
            evidence=f"{len(overflows)} times, to {scale:g}",
            remedy="nothing, where they are few: that is how the scale is found",
        )
        return
    yield Verdict(
        code="loss-scale",
        severity="warning",
        what="gradients overflow float16 again and again" if falls else "gradients overflow float16, whatever the loss is scaled by",
        evidence=f"the loss scale was halved {len(overflows)} times, {len(late)} of them after the beginning, and came to {scale:g}"
        + (", its floor" if scale <= LossScaler.LEAST else ""),
        remedy="train in bf16 or fp32 (training.precision); or find what has an immense gradient, such as a root, a logarithm or a "
        "division near 0",
    )
