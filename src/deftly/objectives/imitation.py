"""Behaviour cloning: the policy's own loss over the valid elements of the action chunk, and its regularizers over samples."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from deftly.config import Config
from deftly.types import Batch, Clock, Objective, Policy, PolicyLoss, Term


class ImitationConfig(Config):
    kind: Literal["imitation"] = "imitation"

    def build(self, policy: Policy) -> Imitation:
        return Imitation(policy)


class Imitation(Objective):
    """`action` is the weighted mean of the policy's loss over valid action elements; each sample counts by its `weight`.

    What the policy adds of its own (a KL divergence) is a term each, a weighted mean over samples.
    """

    reads = ("images", "state", "text", "actions", "action_is_pad")
    decomposes = True
    mixes_actions = True

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"action": batch.valid_actions().sum(), **{name: batch.weight.sum() for name in self.policy.regularizer_weights}}

    def forward(self, batch: Batch, clock: Clock, counts: dict[str, Tensor]) -> dict[str, Term]:
        loss: PolicyLoss = self.policy(batch, clock)
        terms = {"action": Term((loss.actions * batch.valid_actions()).sum() / counts["action"], elements=loss.actions)}
        for name, values in loss.regularizers.items():
            terms[name] = Term((values * batch.weight).sum() / counts[name], self.policy.regularizer_weights[name])
        return terms
