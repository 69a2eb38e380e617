"""Blocks that are computed twice have the same gradients; compiled ones nearly; neither changes a name."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from deftly.training import blocks as module
from deftly.training.blocks import blocks, recompute
from deftly.types import UsageError
from guards import guards
from training.ranks import run_ranks
from training.toys import StackedPolicy, ToyObjective, ToyPolicy, fingerprint, make_trainer, small_config


class Dropping(StackedPolicy):
    """Blocks with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3), nn.Tanh()) for _ in range(3))


class Counted(StackedPolicy):
    """Counts how often a block runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def features(self, batch):
        for block in self.blocks:
            block[0].register_forward_hook(self.count)
        return super().features(batch)

    def count(self, *_):
        self.runs += 1


def test_blocks_are_the_composite_items_of_module_lists():
    model = nn.Module()
    model.stages = nn.ModuleList([nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)]), nn.ModuleList()])
    model.leaves = nn.ModuleList([nn.Linear(2, 2)])
    model.layers = nn.ModuleList([nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU())]), nn.Linear(2, 2))])
    assert [name for name, _ in blocks(model)] == ["stages.0.0", "stages.0.1", "layers.0"]


def run(directory, policy=Dropping, **changes):
    torch.manual_seed(3)
    trainer = make_trainer(directory, objective=ToyObjective(policy()), config=small_config(steps=12, **changes), run_json={"name": "toy"})
    trainer.fit()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_recomputing_changes_no_bit_and_no_name(tmp_path, accumulation):
    plain = run(tmp_path / "plain", accumulation=accumulation)
    again = run(tmp_path / "again", accumulation=accumulation, activation_checkpointing=True)
    assert fingerprint(plain) == fingerprint(again)
    assert plain.snapshot().objective.keys() == again.snapshot().objective.keys()


def test_blocks_are_computed_twice_in_training_and_once_without_gradients(tmp_path):
    policy = Counted()
    objective = ToyObjective(policy)
    recompute(objective)
    batch = make_trainer(tmp_path).stream.next()
    features = policy.features(batch)
    once = policy.runs
    features.sum().backward()
    assert policy.runs == 2 * once
    with torch.no_grad():
        policy.runs = 0
        StackedPolicy.features(policy, batch)
    assert policy.runs == once
    other = copy.deepcopy(objective)
    nn.init.zeros_(other.policy.blocks[0][1].weight)
    assert not torch.equal(other.policy.features(batch), policy.features(batch)), "a copy computes with its own weights"


def test_torch_is_told_whose_generator_the_second_pass_needs(monkeypatch):
    """It looks for devices in what a block is given by place, and this block is given nothing there."""

    class Named(nn.Sequential):
        def forward(self, *, given):
            return super().forward(given)

    seen = []
    real = module.checkpoint
    monkeypatch.setattr(module, "checkpoint", lambda *given, **named: (seen.append(given[1:]), real(*given, **named))[1])
    policy = StackedPolicy()
    policy.blocks = nn.ModuleList([Named(nn.Linear(6, 6), nn.Dropout(0.5))])
    recompute(ToyObjective(policy))
    plain = copy.deepcopy(policy.blocks[0])
    del plain.forward
    given, results = torch.ones(2, 6), []
    for block in (policy.blocks[0], plain):
        torch.manual_seed(0)
        block(given=given).sum().backward()
        results.append(block[0].weight.grad)
    assert torch.equal(*results)
    assert [[type(item) for item in items] for items in seen] == [[torch.Tensor]]
    assert seen[0][0].device == policy.blocks[0][0].weight.device


@guards("training.blocks.none", "training.blocks.twice")
def test_what_cannot_be_computed_twice_is_refused():
    with pytest.raises(UsageError, match="ToyObjective has no repeated blocks"):
        recompute(ToyObjective(ToyPolicy()))
    policy = StackedPolicy()
    policy.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(2))
    with pytest.raises(UsageError, match=r"policy\.blocks\.0\.1 \(BatchNorm1d\) would count every batch twice"):
        recompute(ToyObjective(policy))
    recompute(ToyObjective(policy.eval()))


def test_without_a_compiler_training_goes_on_in_eager_mode(tmp_path, monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("No working C++ compiler found")

    plain = run(tmp_path / "plain")
    monkeypatch.setattr(module.torch, "compile", broken)
    tried = run(tmp_path / "tried", compile=True)
    assert fingerprint(plain) == fingerprint(tried)
    said = capsys.readouterr()
    assert "torch.compile does not work here (No working C++ compiler found); not compiled" in said.out + said.err


def compiled_run(folder: str) -> None:
    """With and without; then a run without goes on from the checkpoint of one with."""
    root, config = Path(folder), {"activation_checkpointing": True}
    plain, compiled = run(root / "plain", StackedPolicy, **config), run(root / "compiled", StackedPolicy, compile=True, **config)
    ours, theirs = plain.snapshot(), compiled.snapshot()
    assert ours.objective.keys() == theirs.objective.keys()
    for name, tensor in ours.objective.items():
        assert torch.allclose(tensor, theirs.objective[name], atol=1e-4), name
    longer = small_config(steps=14)
    again = make_trainer(root / "compiled", objective=ToyObjective(StackedPolicy()), config=longer, run_json={"name": "toy"})
    assert again.fit(resume=True)["steps"] == 14


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_and_keeps_its_names(tmp_path):
    # In a process of its own: the shapes that these tests have checked at every call are nothing that a compiler can follow.
    codes, said = run_ranks("training.test_blocks:compiled_run", tmp_path, ranks=1, timeout=280)
    assert codes == [0], said
    assert "compiling: " in said or "does not work here" in said
