"""How long work shows that it is alive: a bar on a terminal, a plain line now and then elsewhere. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from deftly.foreign import printable

PLAIN_INTERVAL_S = 10.0


class Progress:
    """`with Progress("generate", total, "episodes") as progress: progress.advance(1, note="512 frames/s")`."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = printable(title), total, unit
        self.done = 0
        self.note = ""
        self.started = self.printed = time.monotonic()
        self.bar: RichProgress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            title_column, unit_column, note_column = (
                TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[unit]}", "{task.fields[note]}")
            )
            columns = (title_column, BarColumn(), MofNCompleteColumn(), unit_column, TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = RichProgress(*columns, note_column, console=console)
            self.task = self.bar.add_task(self.title, total=total, unit=unit, note="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """`count` more are done; `note` is a short text beside the bar (a rate, a loss)."""
        self.done += count
        self.note = self.note if note is None else printable(note)
        if self.bar is not None:
            self.bar.update(self.task, advance=count, note=self.note)
        elif time.monotonic() - self.printed >= PLAIN_INTERVAL_S:
            self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        elapsed = self.printed - self.started
        remaining = elapsed / self.done * (self.total - self.done) if self.done else float("nan")
        line = f"{self.title}: {self.done}/{self.total} {self.unit}, {elapsed:.0f} s, {remaining:.0f} s left"
        print(f"{line}  {self.note}" if self.note else line, file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif kind is None:
            self._print()
