"""Steps that are not finite, and what becomes of them on each of several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deftly.training import distributed
from deftly.training.locate import samples_of_all
from deftly.types import Batch, Clock, Term
from training.toys import StackedPolicy, ToyStream, TwoTerms, make_trainer, small_config


class Steep(TwoTerms):
    """A term that is 0 and has an infinite gradient for samples of domain 1."""

    def forward(self, batch, clock, counts):
        terms = super().forward(batch, clock, counts)
        actions = self.policy(batch)[batch.domain == 1]
        return {**terms, "steep": Term((actions - actions.detach()).sqrt().sum())}


def faulty(fault: str) -> tuple[Batch, Batch]:
    """A good batch, and one whose sample 5 has a state that is not a number, or a gradient that is infinite."""
    stream = ToyStream(8, torch.float64)
    good, bad = stream.next(), stream.next()
    if fault == "nan":
        bad.state[5, 0, 2] = float("nan")
    else:
        bad.domain[5] = 1
    return good, bad


def skip(directory: Path, fault: str, **changes) -> dict[str, Any]:
    """What becomes of a faulty step after a good one, on this rank."""
    torch.manual_seed(1)
    config = small_config(count_flops=False, **changes)
    trainer = make_trainer(directory, objective=Steep(StackedPolicy()).double(), stream=ToyStream(), config=config)
    ranks, rank = distributed.world_size(), distributed.rank()
    good, bad = (batch.split(ranks)[rank] for batch in faulty(fault))
    assert trainer.update(good, Clock(0, 30)).accepted
    before = trainer.update.tensors(1)
    taken = trainer.update(bad, Clock(1, 30))
    after = trainer.update.tensors(1)
    assert taken.origin is not None
    same = [torch.equal(mine[name], theirs[name]) for mine, theirs in zip(before, after, strict=True) for name in mine]
    return {
        "accepted": taken.accepted,
        "unchanged": all(same) and len(same) > 30,
        "skipped": trainer.update.guard.skipped,
        "loss": str(taken.numbers["loss"]),
        "origin": taken.origin.to_dict(),
        "said": str(taken.origin),
        "keys": samples_of_all(bad)[0],
    }
