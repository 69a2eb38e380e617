"""Where a held-out loss comes from: which action dimension, which step of the chunk, which task, which robot.

An objective takes part by giving a `Term` its `elements`, the loss of every action element before it is summed up.

A loss alone does not say what has been learnt: dimensions, tasks and objectives have scales of their own. So the first batches are judged a
second time, each observation with the actions of another one. What is as bad as that has learnt nothing from what it sees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deftly.training import distributed
from deftly.training.stretch import Stretch
from deftly.types import Batch, Clock, Mean, Objective, Term

MOST_TASKS = 64  # that a line lists: those with the largest loss
MISMATCHED_BATCHES = 4  # that are judged twice


class Sums:
    """Of one term: weighted sums by dimension and by step, and means by task, robot and episode."""

    def __init__(self) -> None:
        self.by: dict[str, dict[int, Mean]] = {name: defaultdict(lambda: Mean(0.0, 0.0)) for name in ("task", "embodiment", "episode")}
        self.total: dict[str, Tensor] = {}

    def add(self, elements: Tensor, batch: Batch) -> None:
        """`elements` [b k a], the loss of every action element."""
        valid = batch.valid_actions().double()
        loss = elements.double() * valid
        assert batch.actions is not None
        action = torch.where(valid > 0, batch.actions.double(), 0.0)
        parts = {
            "dimension": loss.sum((0, 1)),
            "dimension_count": valid.sum((0, 1)),
            "horizon": loss.sum((0, 2)),
            "horizon_count": valid.sum((0, 2)),
            "first": (action * valid).sum((0, 1)),
            "second": (action.square() * valid).sum((0, 1)),
        }
        for name, value in parts.items():
            self.total[name] = self.total[name] + value if name in self.total else value
        sums, counts = torch.stack([loss.sum((1, 2)), valid.sum((1, 2))]).tolist()
        for name, means in self.by.items():
            for number, total, count in zip(getattr(batch, name).tolist(), sums, counts, strict=True):
                means[number] += Mean(total, count)

    def plain(self) -> dict[str, Any]:
        """What other ranks are told."""
        by = {name: [(number, *mean) for number, mean in means.items()] for name, means in self.by.items()}
        return {"by": by, "total": {name: value.tolist() for name, value in self.total.items()}}

    def add_plain(self, told: dict[str, Any]) -> None:
        """What a rank told."""
        for name, value in told["total"].items():
            added = torch.tensor(value, dtype=torch.float64)
            self.total[name] = self.total[name] + added if name in self.total else added
        for name, means in told["by"].items():
            for number, total, count in means:
                self.by[name][number] += Mean(total, count)

    def to_dict(self) -> dict[str, Any]:
        total = {name: value.cpu() for name, value in self.total.items()}
        count = total["dimension_count"]
        spread = (total["second"] / count - (total["first"] / count).square()).clamp(min=0).sqrt()
        episodes = [mean.value for mean in self.by["episode"].values() if mean.count]
        found = {
            "dimension": (total["dimension"] / count).tolist(),
            "spread": spread.tolist(),
            "horizon": (total["horizon"] / total["horizon_count"]).tolist(),
            "task": named(self.by["task"]),
            "tasks": len(self.by["task"]),
            "standard_error": standard_error(episodes),
        }
        return {**found, **({"embodiment": named(self.by["embodiment"])} if len(self.by["embodiment"]) > 1 else {})}


class Detail:
    """Filled batch by batch during a validation."""

    def __init__(self) -> None:
        self.terms: dict[str, Sums] = {}
        self.mismatched: dict[str, Sums] = {}
        self.batches = 0
        self.samples = 0
        self.episodes: set[int] = set()
        self.dead: dict[str, float] = {}

    def add(self, batch: Batch, terms: dict[str, Term], stretch: Stretch) -> None:
        """`batch` is a stretch of a batch, all of it where there is one process."""
        self.samples += stretch.size
        self.episodes.update(batch.episode.tolist())
        for name, term in terms.items():
            if term.elements is not None:
                self.terms.setdefault(name, Sums()).add(term.elements.detach(), batch)

    def mismatch(self, objective: Objective, batch: Batch, clock: Clock, stretch: Stretch) -> None:
        """Judge a batch, if it is one of the first, with the actions of other samples."""
        self.batches += 1
        if not self.terms or self.batches > MISMATCHED_BATCHES or stretch.size < 2:
            return
        other = exchanged(batch, stretch)
        for name, term in objective(other, clock, objective.counts(other)).items():
            if term.elements is not None:
                self.mismatched.setdefault(name, Sums()).add(term.elements.detach(), other)

    def combine(self) -> None:
        """What all ranks have seen of their stretches, on each of them."""
        if not distributed.active():
            return
        own = [{name: sums.plain() for name, sums in terms.items()} for terms in (self.terms, self.mismatched)]
        self.terms, self.mismatched = {}, {}
        for episodes, *told in distributed.told_by_all([sorted(self.episodes), *own]):
            self.episodes.update(episodes)
            for terms, theirs in zip((self.terms, self.mismatched), told, strict=True):
                for name, sums in theirs.items():
                    terms.setdefault(name, Sums()).add_plain(sums)

    def to_dict(self) -> dict[str, Any]:
        """Means over valid elements. `spread` is the standard deviation of each action dimension, in the units of the batch;
        `standard_error` that of the mean over episodes; `mismatched` the losses with the actions of other samples; `dead` the share of
        units that do not vary, of modules that have any."""
        terms = {name: sums.to_dict() for name, sums in self.terms.items()}
        for name, sums in self.mismatched.items():
            terms[name]["mismatched"] = {part: sums.to_dict()[part] for part in ("dimension", "horizon", "task")}
        return {"samples": self.samples, "episodes": len(self.episodes), "terms": terms, "dead": self.dead}


def exchanged(batch: Batch, stretch: Stretch) -> Batch:
    """A stretch of a batch whose samples have the actions of the sample half a batch further: neighbours are of one episode, and nearly the
    same."""
    by = max(1, stretch.size // 2)
    assert batch.actions is not None
    assert batch.action_is_pad is not None

    def of_other(rows: Tensor) -> Tensor:
        return stretch.own(stretch.whole(rows).roll(by, 0))

    return replace(
        batch,
        actions=of_other(batch.actions),
        action_is_pad=of_other(batch.action_is_pad),
        action_dim_is_pad=batch.action_dim_is_pad | of_other(batch.action_dim_is_pad),
    )


def named(means: dict[int, Mean]) -> dict[str, float]:
    """The largest, by number as JSON has it."""
    values = sorted(((mean.value, number) for number, mean in means.items() if mean.count), reverse=True)[:MOST_TASKS]
    return {str(number): value for value, number in sorted(values, key=lambda item: item[1])}


def standard_error(values: list[float]) -> float | None:
    """Of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
