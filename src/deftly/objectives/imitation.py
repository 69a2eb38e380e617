"""Behaviour cloning: the head's own loss over the valid elements of the action chunk."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from deftly.config import Config
from deftly.types import Batch, Clock, Objective, Policy, Term


class ImitationConfig(Config):
    kind: Literal["imitation"] = "imitation"

    def build(self, policy: Policy) -> Imitation:
        return Imitation(policy)


class Imitation(Objective):
    """`action` is the weighted mean of the head's loss over valid action elements; each sample counts by its `weight`."""

    reads = ("images", "state", "text", "actions", "action_is_pad")
    decomposes = True
    mixes_actions = True

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"action": batch.valid_actions().sum()}

    def forward(self, batch: Batch, clock: Clock, counts: dict[str, Tensor]) -> dict[str, Term]:
        loss = self.policy(batch, clock)
        return {"action": Term((loss * batch.valid_actions()).sum() / counts["action"])}
