"""How far a policy's actions are from the held-out ones, beside two answers that need no learning. No world, no robot.

The unit is each dimension's spread (standard deviation over the training split), so that metres, radians and grippers add up. Low offline
error does not mean that the robot succeeds: it says that training worked, and it is what there is where no world exists.

Letters: b batch, k chunk, a action dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deftly.types import Batch, Mean, Policy

Predictor = Callable[[Batch], Float[Tensor, "b k a"]]


def repeat_last(batch: Batch, mean: Float[Tensor, "a"]) -> Float[Tensor, "b k a"]:
    """The action that was commanded last, held for the whole chunk; `mean` where none is known yet (the first frame of an episode)."""
    assert batch.actions is not None
    last = torch.where(batch.past_action_is_pad[:, -1:], mean.expand_as(batch.past_actions[:, -1]), batch.past_actions[:, -1])
    return last[:, None].expand_as(batch.actions)


def constant(batch: Batch, mean: Float[Tensor, "a"]) -> Float[Tensor, "b k a"]:
    """The mean action of the training split."""
    assert batch.actions is not None
    return mean.expand_as(batch.actions)


def predictors(policy: Policy, mean: Float[Tensor, "a"]) -> dict[str, Predictor]:
    """The policy and its two baselines, all in normalised units."""
    return {
        "policy": lambda batch: policy.sample(policy.encode(batch), batch.key).float(),
        "mean_action": lambda batch: constant(batch, mean),
        "repeat_last": lambda batch: repeat_last(batch, mean),
    }


def l1_per_spread(
    policy: Policy,
    batches: Iterable[Batch],
    *,
    mean: Float[Tensor, "a"],
    spread: Float[Tensor, "a"],
    names: tuple[str, ...],
) -> dict[str, dict[str, Any]]:
    """Mean absolute error over valid steps and moving dimensions, in units of `spread`.

    `mean` and `spread` are the training split's, in the batches' own (normalised) units; a dimension whose spread is 0 is left out.
    Returns for each of `policy`, `mean_action`, `repeat_last`: {"l1_per_spread", "by_dimension": {name: value}, "elements"}.
    """
    moves = spread > 0
    total: dict[str, Tensor] = {}
    count = torch.zeros(len(names), dtype=torch.float64)
    was_training = policy.training
    policy.eval()
    with torch.inference_mode():
        for batch in batches:
            valid = (batch.valid_actions() > 0) & moves
            count += valid.sum((0, 1)).cpu()
            for name, predict in predictors(policy, mean).items():
                error = absolute_error(predict(batch), batch, spread, valid)
                total[name] = total.get(name, torch.zeros(len(names), dtype=torch.float64)) + error.sum((0, 1)).cpu()
    policy.train(was_training)
    return {name: _summary(values, count, names) for name, values in total.items()}


def absolute_error(
    predicted: Float[Tensor, "b k a"], batch: Batch, spread: Float[Tensor, "a"], valid: Bool[Tensor, "b k a"]
) -> Float[Tensor, "b k a"]:
    """|error| / spread in float64, 0 where it does not count."""
    assert batch.actions is not None
    error = (predicted.double() - batch.actions.double()).abs() / spread.double()
    return torch.where(valid, error, torch.zeros_like(error))


def _summary(total: Tensor, count: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    by_dimension = {name: Mean(float(t), float(c)).value for name, t, c in zip(names, total, count, strict=True) if c > 0}
    return {"l1_per_spread": Mean(float(total.sum()), float(count.sum())).value, "by_dimension": by_dimension, "elements": int(count.sum())}
