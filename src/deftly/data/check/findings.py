"""What a check finds, and what follows from it.

refuse      the dataset contradicts itself: nothing may be trained on it, exit 65
quarantine  one episode is broken: it is left out, counted and listed; too many of them refuse the dataset
warn        it can be trained on, and somebody should look
note        worth knowing
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pydantic

from deftly.config import Config

Verdict = Literal["refuse", "quarantine", "warn", "note"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FOR_OTHERS = ("statistics_missing", "statistics_differ", "statistics_stale", "split_leak")  # codes of what our training does not read


class CheckConfig(Config):
    """How a dataset is checked before it is used."""

    full: bool = False
    """Decode every frame too. The verdict is kept, so that the next training on the same files need not decode them again."""
    budget: float = pydantic.Field(default=0.01, ge=0, le=1)
    """Share of the episodes that may be left out because they are broken; more refuses the dataset."""
    allow_missing_files: bool = False
    """Leave out the episodes of a listed file that is not there; otherwise that refuses the dataset."""
    allow_long_episodes: bool = False
    """Train on episodes that are many times as long as the others; otherwise they count as recordings that were glued together."""
    allow_empty_instruction: bool = False
    """Train on episodes without an instruction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. `file` is relative to the dataset, `episode` is the number by which the dataset is asked for it."""

    code: str
    verdict: Verdict
    message: str
    remedy: str = ""
    file: str | None = None
    episode: int | None = None
    frame: int | None = None
    field: str | None = None
    count: int | None = None  # of episodes, where it is about more of them than the one that is named

    @property
    def where(self) -> str:
        """File, episode, frame and field, as far as they are known."""
        place = " ".join(f"{name} {value}" for name, value in (("episode", self.episode), ("frame", self.frame)) if value is not None)
        return ": ".join(part for part in (self.file, place, self.field) if part)

    def line(self) -> str:
        """Everything in one line."""
        return "; ".join(part for part in (": ".join(part for part in (self.where, self.message) if part), self.remedy) if part)

    def to_dict(self) -> dict[str, Any]:
        """What is known, JSON-able."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "")}

    @property
    def rank(self) -> tuple[int, str, int, int]:
        """Worst first, then by kind and place."""
        return VERDICTS.index(self.verdict), self.code, -1 if self.episode is None else self.episode, self.frame or 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one check found, worst first."""

    root: Path
    full: bool
    num_episodes: int
    num_frames: int
    findings: tuple[Finding, ...]
    budget: float
    seconds: float = 0.0

    @property
    def quarantined(self) -> np.ndarray:
        """Episodes to leave out, int64, sorted."""
        return quarantined(self.findings)

    @property
    def refusal(self) -> str | None:
        """Why nothing may be trained on this dataset, in one line; None when it may."""
        return refusal(self.findings, self.num_episodes, self.budget)

    @property
    def is_opened(self) -> bool:
        """Whether there was a dataset to look at; without, the one finding says why not."""
        return all(finding.code != "metadata" for finding in self.findings)

    @property
    def keeps_from_training(self) -> bool:
        """Whether what is refused is something that our training reads."""
        read = [finding for finding in self.findings if finding.code not in FOR_OTHERS]
        return refusal(read, self.num_episodes, self.budget) is not None

    def of(self, verdict: Verdict) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == verdict]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        counts = {verdict: len(self.of(verdict)) for verdict in VERDICTS}
        return {
            "path": str(self.root),
            "full": self.full,
            "episodes": self.num_episodes,
            "frames": self.num_frames,
            "refused": self.refusal,
            "counts": counts,
            "quarantined": self.quarantined.tolist(),
            "seconds": round(self.seconds, 3),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def quarantined(findings: Iterable[Finding]) -> np.ndarray:
    """The episodes that findings leave out, int64, sorted."""
    found = {item.episode for item in findings if item.verdict == "quarantine" and item.episode is not None}
    return np.array(sorted(found), dtype=np.int64)


def refusal(findings: Iterable[Finding], num_episodes: int, budget: float) -> str | None:
    """Why findings forbid training, in one line, or None. The worst is named, the others are counted."""
    findings = sorted(findings, key=lambda finding: finding.rank)
    fatal = [finding for finding in findings if finding.verdict == "refuse"]
    if fatal:
        more = f" (and {len(fatal) - 1} more faults)" if len(fatal) > 1 else ""
        return fatal[0].line() + more
    left_out = quarantined(findings)
    if len(left_out) > budget * num_episodes or (len(left_out) == num_episodes and num_episodes):  # guard: data.check.budget
        first = next(finding for finding in findings if finding.verdict == "quarantine")
        share = f"{len(left_out)} of {num_episodes} episodes ({len(left_out) / num_episodes:.1%})"
        return f"{share} are broken, more than the budget of {budget:.1%}; the first is {first.line()}"
    return None
