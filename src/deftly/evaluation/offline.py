"""How far a policy's actions are from the held-out ones, beside two answers that need no learning. No world, no robot.

The unit is each dimension's spread (standard deviation over the training split), so that metres, radians and grippers add up. Low offline
error does not mean that the robot succeeds: it says that training worked, and it is what there is where no world exists.

Letters: b batch, k chunk, a action dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deftly.types import Batch, Mean, Policy

Predictor = Callable[[Batch], Float[Tensor, "b k a"]]


class Units(Protocol):
    """From a policy's units to the robot's, for batches of one robot: an `ObservationEncoder`. Answers are on the CPU.

    Every error is one of absolute actions in raw units, however the policy counts them: two policies can then be compared.
    """

    def raw_actions(self, chunk: Float[Tensor, "b k w"], batch: Batch) -> Float[Tensor, "b k a"]: ...

    def raw_last_action(self, batch: Batch) -> Float[Tensor, "b a"]: ...


def predictors(policy: Policy, mean: Float[Tensor, "a"], units: Units) -> dict[str, Predictor]:
    """The policy and two answers that need no learning, all in raw units.

    mean_action   the mean action of the training split
    repeat_last   the action that was commanded last, held for the whole chunk; the mean where none is known yet (an episode's first frame)
    """

    def repeat_last(batch: Batch) -> Float[Tensor, "b k a"]:
        is_known = ~batch.past_action_is_pad[:, -1:].cpu()
        return _held(torch.where(is_known, units.raw_last_action(batch), mean), batch)

    return {
        "policy": lambda batch: units.raw_actions(policy.sample(policy.encode(batch), batch.key), batch),
        "mean_action": lambda batch: _held(mean.expand(len(batch), -1), batch),
        "repeat_last": repeat_last,
    }


def _held(action: Float[Tensor, "b a"], batch: Batch) -> Float[Tensor, "b k a"]:
    assert batch.actions is not None
    return action[:, None].expand(-1, batch.actions.shape[1], -1)


def l1_per_spread(
    policy: Policy,
    batches: Iterable[Batch],
    *,
    mean: Float[Tensor, "a"],
    spread: Float[Tensor, "a"],
    names: tuple[str, ...],
    units: Units,
) -> dict[str, dict[str, Any]]:
    """Mean absolute error over valid steps and moving dimensions, in units of `spread`.

    `mean` and `spread` are the training split's, in raw units; a dimension whose spread is 0 is left out.
    Returns for each of `policy`, `mean_action`, `repeat_last`: {"l1_per_spread", "by_dimension": {name: value}, "elements"}.
    """
    moves = spread > 0
    total: dict[str, Tensor] = {}
    count = torch.zeros(len(names), dtype=torch.float64)
    was_training = policy.training
    policy.eval()
    with torch.inference_mode():
        for batch in batches:
            assert batch.actions is not None
            valid = (batch.valid_actions()[:, :, : len(names)] > 0).cpu() & moves
            count += valid.sum((0, 1))
            wanted = units.raw_actions(batch.actions, batch)
            for name, predict in predictors(policy, mean, units).items():
                error = absolute_error(predict(batch), wanted, spread, valid)
                total[name] = total.get(name, torch.zeros(len(names), dtype=torch.float64)) + error.sum((0, 1))
    policy.train(was_training)
    return {name: _summary(values, count, names) for name, values in total.items()}


def absolute_error(
    predicted: Float[Tensor, "b k a"], wanted: Float[Tensor, "b k a"], spread: Float[Tensor, "a"], valid: Bool[Tensor, "b k a"]
) -> Float[Tensor, "b k a"]:
    """|error| / spread in float64, 0 where it does not count."""
    error = (predicted.double() - wanted.double()).abs() / spread.double()
    return torch.where(valid, error, torch.zeros_like(error))


def _summary(total: Tensor, count: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    by_dimension = {name: Mean(float(t), float(c)).value for name, t, c in zip(names, total, count, strict=True) if c > 0}
    return {"l1_per_spread": Mean(float(total.sum()), float(count.sum())).value, "by_dimension": by_dimension, "elements": int(count.sum())}
