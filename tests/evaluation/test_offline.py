"""Offline error: recomputed element by element, padding left out, the baselines are what they say."""

from __future__ import annotations

import math

import numpy as np
import torch

from batches import ACTION, build_policy, random_batch
from deftly.evaluation.offline import absolute_error, l1_per_spread, predictors
from deftly.models.language import TextConfig
from deftly.models.policy import PolicyConfig
from deftly.models.vision import CNNConfig
from deftly.types import Batch

NAMES = ("x", "y", "gripper")


class Doubled:
    """A robot whose raw units are twice the policy's."""

    def raw_actions(self, chunk: torch.Tensor, batch: Batch) -> torch.Tensor:
        return 2 * chunk

    def raw_last_action(self, batch: Batch) -> torch.Tensor:
        return 2 * batch.past_actions[:, -1]


MEAN = torch.tensor([0.1, -0.2, 0.3])


def small_policy():
    return build_policy(PolicyConfig(vision=CNNConfig(widths=(8,), keypoints=2), text=TextConfig(dim=8, heads=2), width=16)).eval()


def padded_batch(seed: int):
    batch = random_batch(5, seed=seed)
    assert batch.action_is_pad is not None
    batch.action_is_pad[0, 2:] = True
    batch.past_action_is_pad[1] = True
    return batch


def test_equals_a_plain_loop() -> None:
    policy, batches = small_policy(), [padded_batch(1), padded_batch(2)]
    spread = torch.tensor([0.5, 2.0, 1.0])
    result = l1_per_spread(policy, batches, mean=MEAN, spread=spread, names=NAMES, units=Doubled())
    for name, predict in predictors(policy, MEAN, Doubled()).items():
        errors = []
        for batch in batches:
            with torch.no_grad():
                answer = predict(batch).double().numpy()
            for b in range(5):
                for k in range(batch.actions.shape[1]):
                    if not batch.action_is_pad[b, k]:
                        errors.append(np.abs(answer[b, k] - 2 * batch.actions[b, k].double().numpy()) / spread.double().numpy())
        table = np.array(errors)
        assert math.isclose(result[name]["l1_per_spread"], table.mean(), rel_tol=1e-6)
        assert np.allclose([result[name]["by_dimension"][n] for n in NAMES], table.mean(0))
        assert result[name]["elements"] == table.size


def test_a_dimension_that_never_moves_is_left_out() -> None:
    result = l1_per_spread(small_policy(), [padded_batch(1)], mean=MEAN, spread=torch.tensor([1.0, 0.0, 1.0]), names=NAMES, units=Doubled())
    assert set(result["policy"]["by_dimension"]) == {"x", "gripper"}
    assert math.isfinite(result["policy"]["l1_per_spread"])


def test_baselines_say_what_they_are_called() -> None:
    batch = padded_batch(3)
    found = predictors(small_policy(), MEAN, Doubled())
    repeated = found["repeat_last"](batch)
    assert torch.equal(repeated[0, 3], 2 * batch.past_actions[0, -1])
    assert torch.equal(repeated[1, 0], MEAN)  # nothing was commanded yet
    assert torch.equal(found["mean_action"](batch)[2, 1], MEAN)


def test_training_mode_is_given_back_and_padding_is_zero() -> None:
    policy = small_policy().train()
    batch = padded_batch(4)
    l1_per_spread(policy, [batch], mean=MEAN, spread=torch.ones(3), names=NAMES, units=Doubled())
    assert policy.training
    valid = batch.valid_actions() > 0
    error = absolute_error(batch.actions + math.inf, batch.actions, torch.ones(ACTION), valid)
    assert bool((error[~valid] == 0).all())
