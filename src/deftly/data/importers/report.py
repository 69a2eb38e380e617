"""What an import did, for people and for meta/deftly.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class ImportReport:
    """Counts, and every decision that a reader of the new dataset should know of."""

    source: str  # format
    episodes: int = 0
    frames: int = 0
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (record that was left out, record it repeats)
    left_out: list[str] = field(default_factory=list)  # features that were not taken over
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return {
            "format": self.source,
            "duplicates_left_out": [list(pair) for pair in self.duplicates],
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
        if self.left_out:
            lines.append(f"features left out: {', '.join(self.left_out)}")
        return lines + self.notes
