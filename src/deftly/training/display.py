"""What a person sees while training: a live panel on a terminal, a plain line every ten seconds elsewhere. Everything goes to stderr."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deftly.foreign import printable, printable_lines

PLAIN_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.25
BARS = "▁▂▃▄▅▆▇█"


class Display:
    """`update` is called at every step and costs next to nothing between two looks; `say` prints a line above the panel."""

    def __init__(self, title: str, total: int, visible: bool = True, console: Console | None = None) -> None:
        self.title, self.total, self.visible = printable(title), total, visible
        self.console = console or Console(stderr=True)
        self.live: Live | None = None
        self.step = self.first_step = 0
        self.samples = self.first_samples = 0
        self.started = self.shown = time.monotonic()
        self.loss = self.rate = math.nan
        self.losses: list[float] = []
        self.validation = ""
        self.split = self.utilization = ""

    def __enter__(self) -> Self:
        if self.visible and self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            with contextlib.suppress(*([Exception] if kind is not None else [])):  # what ended the run is the news, not the panel
                self._close(self.live)
        elif kind is None and self.visible and self.step > self.first_step:
            self._print()

    def _close(self, live: Live) -> None:
        """Draw the panel for the last time, and give stderr back whatever happens."""
        try:
            live.update(self.panel(), refresh=True)
        except Exception:
            live.update(Text(""))  # or `stop`, which draws once more, would fail before it gives stderr back
            raise
        finally:
            live.stop()

    def begin(self, step: int, samples: int) -> None:
        """Training goes on from here: rates and the time left are of this process alone."""
        self.step, self.first_step, self.samples, self.first_samples = step, step, samples, samples
        self.started = self.shown = time.monotonic()

    def say(self, text: str) -> None:
        """One line for the reader, kept on screen."""
        if not self.visible:
            return
        if self.live is not None:
            self.console.print(printable_lines(text), highlight=False, markup=False)
        else:
            print(printable_lines(text), file=sys.stderr, flush=True)

    def update(self, step: int, samples: int, loss: float) -> None:
        """A step is done; `loss` is smoothed over about 20 steps for the eye."""
        self.step, self.samples = step, samples
        if math.isfinite(loss):
            self.loss = loss if math.isnan(self.loss) else self.loss + 0.05 * (loss - self.loss)
        now = time.monotonic()
        if now - self.shown < (LIVE_INTERVAL_S if self.live is not None else PLAIN_INTERVAL_S):
            return
        self.shown = now
        if self.live is not None:
            self.live.update(self.panel(), refresh=True)
        elif self.visible:
            self._print()

    def logged(self, loss: float, learning_rate: float, split: dict[str, float], utilization: str = "") -> None:
        """A train line was written: a point of the curve, the shares of the time, and those of data, host and device as text."""
        self.rate, self.utilization = learning_rate, utilization
        if math.isfinite(loss):
            self.losses.append(loss)
        whole = sum(split.values()) or 1.0
        shares = ((name, seconds / whole) for name, seconds in split.items())
        self.split = "  ".join(f"{name.replace('_', '+')} {share:.0%}" for name, share in shares if share >= 0.005)

    def validated(self, loss: float, best: float, best_step: int) -> None:
        self.validation = f"validation {loss:.4g}, best {best:.4g} at step {best_step}"

    def speed(self) -> tuple[float, float, float]:
        """(steps/s, samples/s, seconds left) of this process."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        steps = (self.step - self.first_step) / elapsed
        return steps, (self.samples - self.first_samples) / elapsed, (self.total - self.step) / steps if steps else math.nan

    def _print(self) -> None:
        steps, samples, left = self.speed()
        parts = [f"loss {self.loss:.4g}", *([self.validation] if self.validation else [])]
        parts += [f"{steps:.1f} steps/s", f"{samples:.0f} samples/s", f"{duration(left)} left"]
        print(f"{self.title}: {self.step}/{self.total}  " + "  ".join(parts), file=sys.stderr, flush=True)

    def panel(self) -> RenderableType:
        steps, samples, left = self.speed()
        head = Table.grid(expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right")
        head.add_row(ProgressBar(total=self.total, completed=self.step), f"  {self.step}/{self.total}  {duration(left)} left")
        numbers = f"loss {self.loss:.4g}   lr {self.rate:.1e}   {steps:.1f} steps/s   {samples:.0f} samples/s"
        lines = [Text(f"{sparkline(self.losses)}  {numbers}"), *([Text(self.validation)] if self.validation else [])]
        dim = [Text(text, style="dim") for text in (self.split, self.utilization) if text]
        return Panel(Group(head, *lines, *dim), title=Text(self.title), title_align="left")


def sparkline(values: list[float], width: int = 32) -> str:
    """A curve of one line, at most `width` characters: each is the mean of an equal share of the values."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} m" if hours else f"{minutes} m {rest:02d} s" if minutes else f"{rest} s"
