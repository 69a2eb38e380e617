"""Norms by module are those of the tensors, and looking changes nothing."""

import math

import pytest
import torch
from torch import nn

from deftly.training.norms import Norms, group
from deftly.training.optim import AdamWConfig
from deftly.training.precision import LossScaler
from deftly.training.schedule import ConstantConfig
from deftly.types import Clock
from training.toys import ToyObjective, ToyPolicy, ToyStream, log_lines, make_trainer, small_config


def test_norms_of_a_step_are_those_of_its_tensors(tmp_path):
    trainer = make_trainer(tmp_path, config=small_config(clip_norm=1e-3, log_every=2))
    assert trainer.update(trainer.stream.next(), Clock(0, 30)).modules is not None  # what the weights began as
    assert trainer.update(trainer.stream.next(), Clock(4, 30)).modules is None
    before = {name: parameter.detach().clone() for name, parameter in trainer.objective.named_parameters()}
    taken = trainer.update(trainer.stream.next(), Clock(1, 30))
    assert taken.modules is not None
    assert math.sqrt(sum((part["gradient"] or 0.0) ** 2 for part in taken.modules.values())) == pytest.approx(
        taken.numbers["gradient_norm"], rel=1e-5
    )  # of before clipping
    for name, found in taken.modules.items():
        own = [key for key in before if key.startswith(f"{name}.")]
        weight = math.hypot(*(before[key].norm().item() for key in own))
        update = math.hypot(
            *((parameter - before[key]).norm().item() for key, parameter in trainer.objective.named_parameters() if key in own)
        )
        assert found["weight"] == pytest.approx(weight, rel=1e-5)
        assert found["update"] == pytest.approx(update, rel=1e-4)
        assert found["ratio"] == pytest.approx(update / weight, rel=1e-4)
        assert found["size"] == sum(before[key].numel() for key in own)


def test_frozen_and_unreached_modules_are_told_apart(tmp_path):
    objective = ToyObjective(ToyPolicy())
    objective.policy.norm.requires_grad_(False)
    objective.policy.unused = nn.Linear(2, 2)
    make_trainer(tmp_path, objective=objective, config=small_config(steps=4)).fit()
    line = next(line for line in log_lines(tmp_path) if line["kind"] == "modules")["modules"]
    assert line["policy.norm"]["gradient"] is None
    assert line["policy.norm"]["update"] is None
    assert line["policy.unused"]["gradient"] is None
    assert line["policy.unused"]["update"] == 0.0
    assert line["policy.first"]["update"] > 0


def test_groups_are_as_deep_as_their_number_allows():
    deep = nn.ModuleDict({f"block{i}": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for i in range(3)})
    assert list(group(deep, most=6)) == ["block0.0", "block0.2", "block1.0", "block1.2", "block2.0", "block2.2"]
    assert list(group(deep, most=5)) == ["block0", "block1", "block2"]
    assert list(group(deep, ("block1",), most=5)) == ["block0.0", "block0.2", "block2.0", "block2.2"]
    assert list(group(nn.ParameterDict({"a": nn.Parameter(torch.zeros(1))}))) == ["a"]


def test_what_is_not_finite_is_null():
    layer = nn.Linear(2, 2)
    norms = Norms(nn.ModuleDict({"layer": layer}))
    layer.weight.grad = torch.full((2, 2), math.nan)
    norms.remember()
    assert norms.measure()["layer"]["gradient"] is None


def test_a_step_that_is_not_logged_measures_nothing(tmp_path):
    make_trainer(tmp_path, stream=ToyStream(), config=small_config(steps=9, log_every=4)).fit()
    assert [line["step"] for line in log_lines(tmp_path) if line["kind"] == "modules"] == [1, 4, 8, 9]


def test_updates_that_16_bits_round_away_are_counted(tmp_path):
    objective = ToyObjective(ToyPolicy(dropout=0.0, batch_norm=False))
    assert isinstance(objective.policy.first, nn.Linear)
    coarse = objective.policy.first.to(torch.bfloat16)
    coarse.register_forward_pre_hook(lambda module, given: given[0].bfloat16())
    coarse.register_forward_hook(lambda module, given, output: output.float())
    config = small_config(optimizer=AdamWConfig(learning_rate=2e-4), clip_norm=None, schedule=ConstantConfig())
    trainer = make_trainer(tmp_path, objective=objective, config=config)
    before = [parameter.detach().clone() for parameter in coarse.parameters()]
    taken = trainer.update(trainer.stream.next(), Clock(0, 30))
    stayed = [(one == now) & (now.grad != 0) for one, now in zip(before, coarse.parameters(), strict=True)]
    has_gradient = sum(int((parameter.grad != 0).sum()) for parameter in coarse.parameters() if parameter.grad is not None)
    assert taken.modules is not None
    lost = taken.modules["policy.first"].get("lost", 0.0)
    assert lost == sum(int(one.sum()) for one in stayed) / has_gradient
    assert 0.2 < lost < 1.0
    assert "lost" not in taken.modules["policy.last"]  # float32 holds every update


@pytest.mark.parametrize(("scale", "least", "most"), [(2.0**16, 0.0, 0.01), (2.0**-20, 0.9, 1.0)])
def test_gradients_that_float16_cannot_hold_are_counted(tmp_path, monkeypatch, scale, least, most):
    monkeypatch.setattr(LossScaler, "FIRST", scale)
    trainer = make_trainer(tmp_path, config=small_config(precision="fp16"))
    modules = trainer.update(trainer.stream.next(), Clock(0, 30)).modules
    assert modules is not None
    assert least <= modules["policy.last"].get("vanished", math.nan) <= most
    assert "lost" not in modules["policy.last"]
