"""Behaviour cloning counts valid elements only, and adds up over micro-batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from batches import build_policy, random_batch
from deftly.models.heads import FlowMatchingConfig, RegressionConfig
from deftly.models.language import TextConfig
from deftly.models.policy import PolicyConfig
from deftly.models.vision import CNNConfig
from deftly.objectives.imitation import ImitationConfig
from deftly.types import Batch, Clock, Objective

CLOCK = Clock(0, 1)


@pytest.fixture(params=[RegressionConfig(), FlowMatchingConfig(width=16, blocks=1)], ids=["regression", "flow"])
def objective(request: pytest.FixtureRequest):
    config = PolicyConfig(vision=CNNConfig(widths=(8,), keypoints=4), text=TextConfig(dim=16, heads=2), width=16, head=request.param)
    return ImitationConfig().build(build_policy(config))


def padded(seed: int = 0) -> Batch:
    batch = random_batch(4, seed=seed)
    assert batch.action_is_pad is not None
    batch.action_is_pad[0, 2:] = True
    batch.action_is_pad[3, 1:] = True
    batch.action_dim_is_pad[1, 2] = True
    return dataclasses.replace(batch, weight=torch.tensor([1.0, 0.5, 2.0, 1.0]))


def gradients(objective: Objective, batches: list[Batch]) -> dict[str, torch.Tensor]:
    counts = {"action": sum(objective.counts(batch)["action"] for batch in batches)}
    objective.zero_grad()
    for batch in batches:
        sum(term.value * term.weight for term in objective(batch, CLOCK, counts).values()).backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def test_padding_changes_neither_loss_nor_gradient(objective: Objective) -> None:
    batch = padded()
    changed = batch.map(torch.clone)
    assert changed.actions is not None
    changed.actions[changed.action_is_pad] = 77.0
    changed.actions[1, :, 2] = -33.0
    first, second = gradients(objective, [batch]), gradients(objective, [changed])
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_micro_batches_add_up_to_the_whole(objective: Objective) -> None:
    objective.double()
    batch = padded()
    batch = dataclasses.replace(batch, state=batch.state.double(), past_actions=batch.past_actions.double(), actions=batch.actions.double())
    whole, parts = gradients(objective, [batch]), gradients(objective, batch.split(2))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-5, atol=1e-7)


def test_weight_zero_is_absence(objective: Objective) -> None:
    batch = padded()
    without = batch.map(lambda tensor: tensor[:3])
    silenced = dataclasses.replace(batch, weight=torch.tensor([1.0, 0.5, 2.0, 0.0]))
    first, second = gradients(objective, [without]), gradients(objective, [silenced])
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)
