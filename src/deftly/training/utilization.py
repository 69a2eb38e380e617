"""How much of the time of training is data, host and device, and how much of what the device can compute is used (MFU).

Device: on a GPU, from the first to the last kernel of a step's gradients, and of its update, on the GPU's own clock. Gaps in there, while
it waits for the next launch, are device too: a high share of the device with a low MFU is a step of many small kernels. On the CPU the
arithmetic runs in the host's threads, so that the device's part is `forward_backward` and `optimizer` of `TimeSplit`.
Host: the rest of the time of the steps. Validations and checkpoints are left out, and so is the counting below.

MFU (model FLOPs utilization; Chowdhery et al., "PaLM", 2022): FLOPs of the steps, over their time, over what this device reaches in a
product of square matrices in the run's precision. FLOPs are counted, not estimated, with what `activation_checkpointing` computes twice;
a multiplication and an addition are two. Of several ranks, the first tells of itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from deftly.training import distributed
from deftly.training.flops import counted, reachable
from deftly.training.precision import DTYPES
from deftly.training.tracking import TimeSplit

MOST_SPANS = 64
OF_STEPS = ("data", "forward_backward", "optimizer", "other")


class Seconds(NamedTuple):
    """What `steps` steps took. The parts add up to the whole."""

    data: float = 0.0
    host: float = 0.0
    device: float = 0.0
    steps: int = 0

    def plus(self, more: Seconds) -> Seconds:
        return Seconds(self.data + more.data, self.host + more.host, self.device + more.device, self.steps + more.steps)


class Spans:
    """Seconds of work on a GPU. The host never waits in `begin` and `end`, and they hold on to a bounded number of events."""

    def __init__(self) -> None:
        self.pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.begun: torch.cuda.Event | None = None
        self.total = 0.0

    def begin(self) -> None:
        self.begun = _recorded()

    def end(self) -> None:
        assert self.begun is not None
        self.pending.append((self.begun, _recorded()))
        if len(self.pending) > MOST_SPANS:
            self._read(2)  # all before these are over: a step reads its numbers between its two spans

    def seconds(self) -> float:
        """Since the last call; waits for the device."""
        self._read(0)
        total, self.total = self.total, 0.0
        return total

    def _read(self, kept: int) -> None:
        over, self.pending = self.pending[: len(self.pending) - kept], self.pending[len(self.pending) - kept :]
        for begin, end in over:
            end.synchronize()
            self.total += begin.elapsed_time(end) / 1000


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Utilization:
    """Of one session of a run.

    `measure` at its first step, `begin` and `end` around what a step gives to the device, `line` at train lines.
    """

    def __init__(self, split: TimeSplit, device: torch.device, precision: str) -> None:
        self.split, self.device, self.precision = split, device, precision
        self.spans = Spans() if device.type == "cuda" else None
        self.step: int | None = None
        """Steps done up to the last line; None before the first step."""
        self.aside = 0.0
        self.session = Seconds()
        self.flops: int | None = None
        """Of one step; None where they are not known."""
        self.peak: float | None = None

    def measure(self, step: int, replay: Callable[[], object] | None, times: int) -> str | None:
        """The first of the session's steps comes next, after `step`. `replay` computes a part of it and leaves traces that the caller
        removes; the step is `times` as much. Returns why FLOPs could not be counted, if so."""
        self.step = step
        if replay is None:
            return None
        self.split.lap("other")
        begun, reason = time.perf_counter(), None
        try:
            self.flops = times * counted(replay) or None
            if self.flops is not None and distributed.rank() == 0:
                self.peak = reachable(self.device, DTYPES.get(self.precision, torch.float32))
        except Exception as error:  # what is wrong with the step itself comes up again in the step
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        self.aside += time.perf_counter() - begun
        self.split.lap("other")
        return reason

    def begin(self) -> None:
        if self.spans is not None:
            self.spans.begin()

    def end(self) -> None:
        if self.spans is not None:
            self.spans.end()

    def line(self, split: dict[str, float], step: int) -> dict[str, Any]:
        """Of the steps since the last line, `split` being where their time went: shares of `data`, `host` and `device`, and `mfu`."""
        data, working, whole = split["data"], split["forward_backward"] + split["optimizer"], sum(split[name] for name in OF_STEPS)
        device = working if self.spans is None else min(self.spans.seconds(), whole - data)
        taken = Seconds(data, max(whole - data - device - self.aside, 0.0), device, step - (step if self.step is None else self.step))
        self.aside, self.step = 0.0, step
        self.session = self.session.plus(taken)
        return self._shares(taken)

    def to_dict(self) -> dict[str, Any]:
        """The same of the whole session, with the figures behind it."""
        return {**self._shares(self.session), "flops_per_step": self.flops, "peak_flops_per_s": self.peak}

    def tell(self, say: Callable[[str], None]) -> None:
        """The session in one line."""
        if text := self.describe(self._shares(self.session)):
            say(f"shares: {text}")

    def _shares(self, taken: Seconds) -> dict[str, float | None]:
        whole = taken.data + taken.host + taken.device
        if whole <= 0:  # no step, or a clock that was set back
            return dict.fromkeys(("data", "host", "device", "mfu"))
        mfu = self.flops * taken.steps / whole / self.peak if self.flops is not None and self.peak is not None else None
        return {"data": taken.data / whole, "host": taken.host / whole, "device": taken.device / whole, "mfu": mfu}

    def describe(self, shares: dict[str, Any]) -> str:
        """For the reader: `data 6 %, host 2 %, device 92 %; MFU 41 % of 88 GFLOP/s`."""
        if shares["data"] is None:
            return ""
        text = ", ".join(f"{name} {shares[name]:.0%}" for name in ("data", "host", "device"))
        if shares["mfu"] is not None and self.peak is not None:
            text += f"; MFU {shares['mfu']:.{1 if shares['mfu'] < 0.1 else 0}%} of {_rate(self.peak)}"
        return text.replace("%", " %")


def _rate(peak: float) -> str:
    return f"{peak / 1e12:.3g} TFLOP/s" if peak >= 1e12 else f"{peak / 1e9:.3g} GFLOP/s"
