"""Adapters learn, what they adapt does not; what acts has none of them and computes the same."""

import os
import signal
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from deftly.agent import load
from deftly.recipes import RECIPES
from deftly.run import train
from deftly.training.config import TrainingConfig
from deftly.training.groups import Group
from deftly.training.lora import LoraConfig, add_adapters, merged, targets, without_adapters
from deftly.training.optim import AdamWConfig
from deftly.training.start import StartConfig
from deftly.types import UsageError
from guards import guards
from small_data import write_dataset
from training.toys import ToyObjective, ToyPolicy, ToyStream, TwoTerms, fingerprint, held_out, make_trainer, small_config

LORA = LoraConfig(modules=r"policy\.(first|last|task)", rank=2, alpha=4, dropout=0.1)
SILENT = {"steps": 10, "validate_every": None, "checkpoint_every": None}


def config(**changes):
    return small_config(**{**SILENT, "lora": LORA, **changes})


def test_what_acts_has_no_adapters_and_computes_the_same(tmp_path):
    trainer = make_trainer(tmp_path, config=config())
    trainer.fit()
    weights = safetensors.torch.load_file(tmp_path / "checkpoints/step-00000010/policy/model.safetensors")
    plain = ToyPolicy()
    before = plain.first.weight.clone()
    plain.load_state_dict(weights)
    assert not torch.equal(plain.first.weight, before)
    batch = next(iter(held_out()))
    with trainer.update.ema.applied(), torch.no_grad():
        adapted = trainer.objective.policy.eval()
        assert (plain.eval()(batch) - adapted(batch)).abs().max() < 1e-5
        with torch.no_grad():  # not because the adapters do nothing
            adapted.last.lora_B["default"].weight.zero_()
        assert (plain(batch) - adapted(batch)).abs().max() > 1e-3


class Zoo(nn.Module):
    """One of each kind of layer that can be adapted, and two that cannot."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 8)
        self.linear = nn.Linear(8, 8)
        self.along = nn.Conv1d(8, 8, 3, padding=1)
        self.across = nn.Conv2d(1, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids):
        hidden = self.along(self.linear(self.words(ids)).transpose(1, 2)).transpose(1, 2)
        hidden = self.layer(self.attention(hidden, hidden, hidden, need_weights=False)[0])
        return self.across(hidden[:, None]).flatten(1)


def test_every_kind_of_layer_merges_and_torchs_own_blocks_are_left_out():
    torch.manual_seed(0)
    objective, plain = ToyObjective(Zoo()), Zoo().eval()
    state = {name: tensor.clone() for name, tensor in objective.policy.state_dict().items()}
    names = add_adapters(objective, LoraConfig(modules=r"policy\..*", rank=2), seed=0)
    assert names == ["policy.words", "policy.linear", "policy.along", "policy.across"]
    policy = objective.policy.eval()
    ids = torch.arange(10).reshape(2, 5) % 5
    plain.load_state_dict(state)
    assert (plain(ids) - policy(ids)).abs().max() < 1e-6, "new adapters change nothing"
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.5)
    adapted = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    plain.load_state_dict(merged(policy, policy.state_dict()))
    assert (plain(ids) - policy(ids)).abs().max() < 1e-5
    assert all(torch.equal(tensor, adapted[name]) for name, tensor in policy.state_dict().items())
    assert without_adapters(adapted).keys() == state.keys()


def test_only_adapters_and_what_is_named_learn(tmp_path):
    lora = LORA.model_copy(update={"full": r"policy\.norm\..*"})
    trainer = make_trainer(tmp_path, objective=TwoTerms(), config=config(lora=lora))
    before = {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}
    trainer.fit()
    changed = {name for name, tensor in trainer.objective.state_dict().items() if not torch.equal(tensor, before[name])}
    auxiliary = {"sign.weight", "sign.bias", "policy.norm.weight", "policy.norm.bias"}
    adapters = {name for name in before if ".lora_" in name and "task.lora_embedding_A" not in name}
    assert len(adapters) == 5
    assert changed - {"policy.task.lora_embedding_A.default"} == auxiliary | adapters, "frozen norms keep their statistics too"
    assert {name.partition(".")[2] for name in trainer.snapshot().optimizer} == auxiliary | {name for name in before if ".lora_" in name}
    plan = trainer.plan()
    assert plan["adapted"] == 3
    assert plan["parameters"] + plan["parameters_frozen"] == sum(parameter.numel() for parameter in trainer.objective.parameters())


@pytest.mark.parametrize("groups", [(), (Group(parameters=r"policy\.last\..*", start_fraction=0.5), Group(parameters=".*"))])
def test_resume_ends_in_the_same_bits(tmp_path, groups):
    def run(name, resume=False, **changes):
        trainer = make_trainer(tmp_path / name, config=config(groups=groups, accumulation=2), stream=ToyStream(**changes))
        trainer.fit(resume=resume)
        return fingerprint(trainer)

    with pytest.raises(SystemExit):
        run("stopped", calls={3: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert run("stopped", resume=True) == run("whole")


def test_adapters_begin_as_a_function_of_the_seed():
    def first(seed):
        torch.manual_seed(0)
        objective = ToyObjective()
        torch.rand(seed)  # the state of the global generator must not matter
        add_adapters(objective, LORA, seed=seed % 2)
        return objective.policy.first.lora_A["default"].weight

    assert torch.equal(first(1), first(3))
    assert not torch.equal(first(1), first(2))


def test_weights_of_another_run_go_below_the_adapters_and_come_out_merged(tmp_path):
    make_trainer(tmp_path / "plain", config=small_config(**SILENT)).fit()
    names = (r"policy\.(first|last|norm)\..*",)
    second = make_trainer(tmp_path / "second", config=config(start=StartConfig(path=tmp_path / "plain", weights=names)))
    second.fit()
    source = safetensors.torch.load_file(tmp_path / "plain/checkpoints/step-00000010/objective.safetensors")
    assert torch.equal(second.objective.policy.first.base_layer.weight, source["policy.first.weight"])
    still = small_config(**SILENT, optimizer=AdamWConfig(learning_rate=1e-30), start=StartConfig(path=tmp_path / "second", weights=names))
    third = make_trainer(tmp_path / "third", config=still)
    third.fit()
    acting = safetensors.torch.load_file(tmp_path / "second/checkpoints/step-00000010/policy/model.safetensors")
    assert torch.equal(third.objective.policy.first.weight, acting["first.weight"]), "whose rate moves nothing"
    assert not torch.equal(acting["first.weight"], source["policy.first.weight"])


def test_a_real_policy_is_adapted_and_loads_without_peft(tmp_path, monkeypatch):
    write_dataset(tmp_path / "data", lengths=(9, 7, 8, 6))
    run = RECIPES["imitate"](True)
    lora = LoraConfig(modules=r"policy\.(trunk|vision|text)\..*", full=r"policy\.head\..*")
    training = run.training.replace(steps=2, threads=1, lora=lora)
    source = run.data.replace(path=tmp_path / "data", validation_fraction=0.3, workers=0, image_size=24)
    summary = train(run.replace(data=source, training=training), tmp_path / "run", device="cpu")
    assert summary["validation_loss"] > 0
    monkeypatch.setitem(sys.modules, "peft", None)
    names = [name for name, _ in load(tmp_path / "run").policy.named_parameters()]
    assert not [name for name in names if "lora" in name or "base_layer" in name]


# -- refusals ----------------------------------------------------------------------------------------------------------------------------


def refused(**changes):
    with pytest.raises(UsageError) as caught:
        add_adapters(ToyObjective(), LoraConfig(**{"modules": r"policy\.first", **changes}), seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@guards("training.names.matching")
def test_a_pattern_that_matches_nothing_is_refused():
    assert "training.lora.modules: 'policy\\\\.frist' matches" in refused(modules=r"policy\.frist")
    assert "a name near it is 'policy.first'" in refused(modules=r"policy\.frist")
    assert "training.lora.full" in refused(full=r"policy\.head\..*")


@guards("training.lora.targets")
def test_modules_that_cannot_be_adapted_are_refused():
    assert "'policy.norm', which cannot be adapted" in refused(modules=r"policy\.norm")
    with pytest.raises(UsageError, match="cannot be adapted"):
        targets(ToyObjective(Zoo()), r"policy\.(attention|layer).*")


def test_lora_without_peft_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'deftly[pretrained]'" in refused()


def test_a_misstated_pattern_is_refused_by_its_config():
    for field in ("modules", "full"):
        with pytest.raises(UsageError, match="no regular expression"):
            TrainingConfig.parse({"lora": {"modules": "a", field: "("}}, "here")
