"""What an import did, for people and for meta/deftly.json; and the one rule for episodes that cannot be taken over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, UsageError

BUDGET = 0.01  # share of the episodes that may be left out because they are broken
MAX_RATE_HZ = 10_000


def require_folder(source: Path) -> Path:
    """`source`, or a `DataError` that says what to do about an archive: deftly opens none."""
    if not source.is_dir():
        raise DataError(
            f"{source}: {'a file, and a folder is wanted; unpack it if it is an archive' if source.exists() else 'no such folder'}"
        )
    return source


def require_rate(rate_hz: int | None) -> None:
    """Refuse a rate that somebody gave and no recording has, which would be taken for "as the source says"; None is not given."""
    if rate_hz is not None and not 1 <= rate_hz <= MAX_RATE_HZ:
        raise UsageError(f"--fps {rate_hz}: give frames per second from 1 to {MAX_RATE_HZ}, or leave it out where the source says them")


@dataclass(kw_only=True)
class ImportReport:
    """Counts, and every decision that a reader of the new dataset should know of."""

    source: str  # format
    episodes: int = 0
    frames: int = 0
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (record that was left out, record it repeats)
    broken: list[str] = field(default_factory=list)  # why an episode was left out, one line each
    left_out: list[str] = field(default_factory=list)  # features that were not taken over
    notes: list[str] = field(default_factory=list)

    def take(self, writer: DatasetWriter, label: str, read: Callable[[], EpisodeData], budget: float, total: int) -> None:
        """Write the episode that `read` returns; one that is broken is left out as if it had never been there, and listed.

        Raises `DataError` as soon as more than `budget` of the `total` episodes are broken. `label` says where the episode stands.
        """
        try:
            writer.add(read())
        except DataError as error:
            text = str(error)
            rest = text.removeprefix(f"episode {writer.num_episodes}")  # the writer counts what it holds; who looks, looks in the source
            self.broken.append(text if label in text else label + rest if rest != text else f"{label}: {text}")
            if len(self.broken) > budget * total:  # guard: data.importers.budget
                share = math.ceil(100 * len(self.broken) / total) / 100
                more = f"; {len(self.broken)} of {total} episodes are broken, the budget is {budget:.0%}"
                remedy = f"--budget {share} leaves them out" if len(self.broken) < total else "no episode would be left"
                raise DataError(f"{self.broken[0]}{more}: mend the source, or {remedy}") from None

    def finish(self, writer: DatasetWriter) -> None:
        """Count, keep the report with the data, and put the dataset into place."""
        self.episodes, self.frames = writer.num_episodes, writer.num_frames
        writer.about["import"] = self.to_dict()
        writer.finish()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return {
            "format": self.source,
            "duplicates_left_out": [list(pair) for pair in self.duplicates],
            "broken_left_out": self.broken,
            "features_left_out": self.left_out,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """The report as text, one fact per line."""
        lines = [f"{self.episodes} episodes, {self.frames} frames imported"]
        if self.duplicates:
            shards = sorted({(dropped.split("#")[0], kept.split("#")[0]) for dropped, kept in self.duplicates})
            where = "; ".join(f"{dropped} repeats {kept}" if dropped != kept else f"within {kept}" for dropped, kept in shards)
            lines.append(f"{len(self.duplicates)} duplicated trajectories imported once ({where}): make your own split")
        if self.broken:
            lines.append(
                f"{len(self.broken)} broken episodes left out: {'; '.join(self.broken[:3])}{'; ...' if len(self.broken) > 3 else ''}"
            )
        if self.left_out:
            lines.append(f"features left out: {', '.join(self.left_out)}")
        return lines + self.notes
