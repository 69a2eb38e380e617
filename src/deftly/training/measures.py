"""What validation measures beside the loss: does the policy act as demonstrated, and does it listen?

action_accuracy      share of valid action elements that a sampled chunk gets right to within a tolerance
language_alignment   how much the loss of the demonstrated actions rises when the policy is told something else: 0 is a deaf policy

Both are weighted means over valid elements, like the loss. Which other sentence a sample hears is drawn from its key, so no global
generator is touched and the same weights give the same numbers.
"""

from __future__ import annotations

from dataclasses import replace

import pydantic
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from deftly import randomness
from deftly.config import Config
from deftly.training import distributed
from deftly.training.stretch import Stretch
from deftly.types import Batch, Clock, Mean, Objective, Policy, Tokens

MOST_SENTENCES = 64  # that are remembered to tell to others


class MeasuresConfig(Config):
    """Which of them, how exactly, and on how much of the held-out data."""

    action_tolerance: float | None = pydantic.Field(default=0.1, gt=0)
    """In normalised units: most of the training data spans [-1, 1], so 0.1 is 5 % of its range. null: not measured."""
    language_alignment: bool = True
    """Of objectives that read text. It costs one more forward pass."""
    every_batch: int = pydantic.Field(default=4, ge=1)
    """On the first held-out batch and every so many after it: batches are in the order of the episodes, so that is all of them, thinned."""


class Measures:
    """One pass over the held-out batches: called with each of them in order."""

    def __init__(self, config: MeasuresConfig, objective: Objective) -> None:
        self.config = config
        self.policy = objective.policy
        self.listens = config.language_alignment and "text" in objective.reads
        self.batches = 0
        self.sentences: Int64[Tensor, "n w"] | None = None

    def __call__(self, batch: Batch, clock: Clock, stretch: Stretch) -> dict[str, Mean]:
        """The means over this batch, which is the `stretch` of a larger one where there are several ranks; none where it is left out, or
        where the objective's policy cannot be asked."""
        if not isinstance(self.policy, Policy) or batch.actions is None:
            return {}
        self._remember(stretch.whole(rows(batch.text)))
        self.batches += 1
        if (self.batches - 1) % self.config.every_batch or not (self.listens or self.config.action_tolerance):
            return {}
        found: dict[str, Mean] = {}
        features, valid = self.policy.encode(batch), batch.valid_actions()
        if self.config.action_tolerance is not None:
            error = (self.policy.sample(features, batch.key) - batch.actions).abs()
            found["action_accuracy"] = mean((error <= self.config.action_tolerance).to(valid.dtype), valid)
        if self.listens:
            told, is_other = self._told_another(batch)
            heard = valid * is_other[:, None, None]
            if distributed.any_rank(bool(heard.any())):  # all do what any must do
                rise = self.policy.loss(self.policy.encode(told), told, clock) - self.policy.loss(features, batch, clock)
                found["language_alignment"] = mean(rise, heard)
        return found

    def _remember(self, seen: Int64[Tensor, "b w"]) -> None:
        """Different sentences of this pass, as rows of ids and padding."""
        if self.sentences is not None and self.sentences.shape[1] == seen.shape[1]:
            seen = torch.cat([self.sentences, seen])
        self.sentences = torch.unique(seen, dim=0)[:MOST_SENTENCES]

    def _told_another(self, batch: Batch) -> tuple[Batch, Bool[Tensor, "b"]]:
        """The same samples with the sentence of another one, and which have one: none has where there is only one sentence."""
        assert self.sentences is not None
        own = rows(batch.text)
        differs = (own[:, None] != self.sentences[None]).any(dim=2)
        draw = randomness.uniform(batch.key, "validation.other sentence", (len(self.sentences),)).masked_fill(~differs, -1.0)
        ids, is_pad = self.sentences[draw.argmax(dim=1)].chunk(2, dim=1)
        return replace(batch, text=Tokens(ids=ids.contiguous(), is_pad=is_pad.bool())), differs.any(dim=1)


def rows(text: Tokens) -> Int64[Tensor, "b w"]:
    return torch.cat([text.ids, text.is_pad.to(text.ids.dtype)], dim=1)


def mean(values: Tensor, weight: Tensor) -> Mean:
    return Mean(float((values * weight).sum()), float(weight.sum()))
