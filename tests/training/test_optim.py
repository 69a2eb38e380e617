"""Learning rates against their closed form; parameter groups; the optimizer's state through a file and back."""

import pytest
import torch
from torch import nn

from deftly.training.groups import Groups
from deftly.training.optim import (
    AdamWConfig,
    flatten_optimizer,
    load_optimizer,
    optimizer_names,
    parameter_groups,
    set_learning_rates,
)
from deftly.training.schedule import ConstantConfig
from deftly.types import DataError, UsageError


class Zoo(nn.Module):
    """One of each kind of parameter."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm((4, 2))  # a norm whose weight has two axes
        self.words = nn.Embedding(5, 4)
        self.position_embedding = nn.Parameter(torch.zeros(3, 4))
        self.query = nn.Parameter(torch.zeros(1, 1, 4))
        self.temperature = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def parts_of(module):
    return Groups(module, (), ConstantConfig(), 10).parts


def test_only_matrices_and_kernels_decay():
    decayed, plain = parameter_groups(Zoo())
    assert set(decayed) == {"linear.weight", "conv.weight"}
    assert not any(name.startswith("frozen") for name in (*decayed, *plain))
    assert {"norm.weight", "words.weight", "position_embedding", "query", "temperature", "linear.bias", "conv.bias"} <= set(plain)


def test_each_trainable_parameter_is_in_exactly_one_group_even_when_tied():
    zoo = Zoo()
    zoo.tied = nn.Linear(4, 4)
    zoo.tied.weight = zoo.linear.weight
    optimizer = AdamWConfig(weight_decay=0.3).build(parts_of(zoo))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted({id(p) for p in zoo.parameters() if p.requires_grad})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert len(optimizer_names(parts_of(zoo))) == len(held)


def test_a_frozen_model_is_refused():
    with pytest.raises(UsageError, match="no trainable parameter"):
        parameter_groups(Zoo().requires_grad_(False))


def stepped(zoo, count):
    optimizer = AdamWConfig().build(parts_of(zoo))
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        for parameter in zoo.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(memory_format=torch.preserve_format)
        set_learning_rates(optimizer, [0.01 * (step + 1)] * 2)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_optimizer_state_comes_back_bit_for_bit(layout):
    torch.manual_seed(0)
    zoo = Zoo().to(memory_format=layout)
    optimizer = stepped(zoo, 3)
    names = optimizer_names(parts_of(zoo))
    # A file knows no memory layout.
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in flatten_optimizer(optimizer, names).items()}
    assert {"step.linear.weight", "exp_avg.linear.weight", "exp_avg_sq.query"} <= set(state)
    fresh = AdamWConfig().build(parts_of(zoo))
    load_optimizer(fresh, names, state)
    again = flatten_optimizer(fresh, names)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert fresh.state[zoo.conv.weight]["exp_avg"].stride() == zoo.conv.weight.stride()


def test_optimizer_state_of_another_model_is_refused():
    zoo = Zoo()
    optimizer = stepped(zoo, 1)
    names = optimizer_names(parts_of(zoo))
    state = flatten_optimizer(optimizer, names)
    with pytest.raises(DataError, match=r"exp_avg\.other.*no trainable parameter"):
        load_optimizer(optimizer, names, {**state, "exp_avg.other": torch.zeros(1)})
    with pytest.raises(DataError, match=r"has shape \(2, 2\), the parameter has \(4, 4\)"):
        load_optimizer(optimizer, names, {**state, "exp_avg.linear.weight": torch.zeros(2, 2)})


def test_the_fused_kernel_takes_the_steps_of_the_plain_loop():
    zoos = [Zoo(), Zoo()]
    zoos[1].load_state_dict(zoos[0].state_dict())
    optimizers = [AdamWConfig(weight_decay=0.1).build(parts_of(zoo)) for zoo in zoos]
    assert optimizers[0].defaults["fused"]
    groups = [{**group, "fused": False, "foreach": False} for group in optimizers[1].param_groups]
    optimizers[1] = torch.optim.AdamW(groups)
    for step in range(5):
        for zoo, optimizer in zip(zoos, optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for parameter in zoo.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for ours, plain in zip(*(zoo.parameters() for zoo in zoos), strict=True):
        assert (ours - plain).abs().max() < 1e-7
