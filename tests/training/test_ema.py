"""The moving average against its recursion, and its traps: warm-up, buffers, masks of -inf, ties, putting the weights back."""

import pytest
import torch
from torch import nn

from deftly.training.ema import Ema, lerp
from deftly.types import DataError
from training.toys import ToyPolicy


def test_average_follows_its_recursion_with_warm_up():
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, 0.5)
    expected = module.weight.item()
    for update in range(12):
        with torch.no_grad():
            module.weight.fill_(float(update))
        decay = min(0.5, (1 + update) / (10 + update))
        assert ema.decay_now() == decay
        expected = decay * expected + (1 - decay) * update
        ema.update()
        assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.decay_now() == 0.5


def test_floating_buffers_are_averaged_and_the_rest_is_copied():
    policy = ToyPolicy()
    policy.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    ema = Ema(policy, 0.9)
    policy.batch_norm.running_mean += 1.0
    policy.batch_norm.num_batches_tracked += 5
    ema.update()
    assert torch.allclose(ema.average["batch_norm.running_mean"], torch.full((16,), 0.9))  # the first decay is 1 / 10
    assert ema.average["batch_norm.num_batches_tracked"].item() == 5
    assert torch.equal(ema.average["mask"], policy.mask)
    assert not any(torch.isnan(tensor).any() for tensor in ema.average.values())


def test_what_never_moves_stays_the_same_to_the_bit():
    policy = ToyPolicy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    ema = Ema(policy, 0.99)
    for _ in range(50):
        ema.update()
    assert all(torch.equal(ema.average[name], before[name]) for name in before)


def test_averages_of_narrow_weights_are_float32():
    module = nn.Linear(2, 2).to(torch.bfloat16)
    ema = Ema(module, 0.9)
    ema.update()
    assert {tensor.dtype for tensor in ema.average.values()} == {torch.float32}
    target = [torch.zeros(1)]
    lerp(target, [torch.ones(1, dtype=torch.bfloat16)], 0.25)
    assert target[0].item() == 0.25


def test_applied_shows_the_average_and_puts_the_weights_back_even_after_an_error():
    policy = ToyPolicy()
    policy.twin = nn.Linear(5, 16)
    policy.twin.weight = policy.first.weight  # tied
    ema = Ema(policy, 0.9)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += torch.randn_like(parameter)
    ema.update()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with ema.applied():
        assert all(torch.equal(tensor, ema.average[name]) for name, tensor in policy.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    with pytest.raises(RuntimeError, match="shape"), ema.applied():
        policy.first(torch.zeros(1, 99))
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_averages_come_back_strictly():
    policy = ToyPolicy()
    ema, other = Ema(policy, 0.9), Ema(ToyPolicy(), 0.9)
    ema.update()
    other.load(ema.average, ema.updates, "here")
    assert other.updates == 1
    assert all(torch.equal(other.average[name], tensor) for name, tensor in ema.average.items())
    with pytest.raises(DataError, match="here: lacks"):
        other.load({}, 1, "here")
