"""Who learns, from which step on, and how fast; what does not learn stays as it is, to the bit."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from batches import build_policy
from deftly.models.policy import PolicyConfig
from deftly.objectives.imitation import Imitation
from deftly.training import distributed
from deftly.training.config import TrainingConfig
from deftly.training.groups import Group, Groups, layer_factors
from deftly.training.optim import AdamWConfig
from deftly.training.schedule import ConstantConfig, WarmupCosineConfig, WSDConfig
from deftly.types import Clock, UsageError
from guards import guards
from training.toys import ToyObjective, ToyStream, fingerprint, make_trainer, small_config

FIRST, NORMS, REST = r"policy\.first\..*", r"policy\.(batch_norm|norm)\..*", ".*"
FREEZE = (Group(parameters=FIRST, schedule=None), Group(parameters=NORMS, schedule=None), Group(parameters=REST))
STAGE = (
    Group(parameters=FIRST, start_fraction=0.5, rate_factor=0.1, schedule=ConstantConfig()),
    Group(parameters=NORMS, start_fraction=0.3),
    Group(parameters=REST),
)


def config(groups, **changes):
    optimizer = AdamWConfig(learning_rate=1e-2, weight_decay=0.5)
    return small_config(groups=groups, optimizer=optimizer, **{"steps": 10, "validate_every": None, "checkpoint_every": None, **changes})


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}


def step(trainer, number):
    """One update, as the loop has it."""
    return trainer.update(trainer.stream.next(), Clock(number, trainer.config.steps))


# -- freezing ----------------------------------------------------------------------------------------------------------------------------


def test_what_is_frozen_keeps_its_bits_and_has_no_moments(tmp_path):
    trainer = make_trainer(tmp_path, config=config(FREEZE), stream=ToyStream())
    before = weights(trainer)
    trainer.fit()
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # running statistics too: a frozen norm is in evaluation mode
    assert changed == {"policy.task.weight", "policy.last.weight", "policy.last.bias"}
    snapshot = trainer.snapshot()
    assert {name.partition(".")[2] for name in snapshot.optimizer} == changed
    frozen = before.keys() - changed
    assert all(torch.equal(snapshot.objective[name], before[name]) for name in frozen), "the average of what stays is what stays"


def test_the_gradients_norm_is_that_of_what_learns(tmp_path):
    trainer = make_trainer(tmp_path, config=config(FREEZE, clip_norm=None))
    norm = step(trainer, 0).numbers["gradient_norm"]
    gradients = {name: parameter.grad for name, parameter in trainer.objective.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is not None} == {
        "policy.task.weight",
        "policy.last.weight",
        "policy.last.bias",
    }
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradients.values() if g is not None]).norm().item(), rel=1e-6)


def test_a_module_that_does_not_learn_is_in_evaluation_mode_until_it_does(tmp_path):
    policy = ToyObjective().policy
    policy.first = nn.Sequential(policy.first, nn.Dropout(0.5))
    trainer = make_trainer(tmp_path, objective=ToyObjective(policy), config=config(STAGE))
    for number, expected in ((0, (False, False)), (2, (False, False)), (3, (False, True)), (4, (False, True)), (5, (True, True))):
        trainer.update.groups.enter(Clock(number, 10))
        assert (policy.first[1].training, policy.batch_norm.training) == expected
        assert policy.first[0].training == expected[0]
        assert policy.training
        assert policy.dropout.training


def test_a_teacher_that_the_objective_froze_stays_in_the_mode_it_was_given(tmp_path):
    objective = ToyObjective()
    objective.teacher = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(False).eval()
    trainer = make_trainer(tmp_path, objective=objective, config=config(STAGE))
    trainer.update.groups.enter(Clock(9, 10))
    assert not any(part.training for part in objective.teacher.modules())
    assert objective.policy.first.training


# -- staged unfreezing -------------------------------------------------------------------------------------------------------------------


def test_a_stage_begins_at_its_step_and_nothing_moves_before(tmp_path):
    trainer = make_trainer(tmp_path, config=config(STAGE))
    first = trainer.objective.policy.first
    start = first.weight.detach().clone()
    moments = []
    for number in range(10):
        assert step(trainer, number).accepted
        moments.append(first.weight in trainer.update.optimizer.state)
        if number < 5:
            assert torch.equal(first.weight, start)
            assert first.weight.grad is None
    assert moments == [False] * 5 + [True] * 5
    assert not torch.equal(first.weight, start)
    assert trainer.update.optimizer.state[first.weight]["step"] == 5, "its bias correction begins when it does"


def test_who_learns_is_a_function_of_the_step():
    groups = Groups(ToyObjective(), STAGE, WarmupCosineConfig(), 10)
    assert [sorted(groups.learning(Clock(number, 10))) for number in (0, 2, 3, 4, 5, 9)] == [[2], [2], [1, 2], [1, 2], [0, 1, 2], [0, 1, 2]]
    assert [groups.enter(Clock(number, 10)) for number in (0, 1, 3, 4, 5, 6)] == [False, False, True, False, True, False]
    late = Groups(ToyObjective(), (Group(parameters=FIRST, start_fraction=0.999), Group(parameters=REST)), WarmupCosineConfig(), 10)
    assert late.learning(Clock(9, 10)) == {0, 1}, "every stage has a step"


def test_rates_are_the_schedules_over_the_steps_that_are_left(tmp_path):
    schedule, own = WarmupCosineConfig(warmup_fraction=0.2), WSDConfig(warmup_fraction=0.0)
    entries = (Group(parameters=FIRST, start_fraction=0.5, rate_factor=0.1), Group(parameters=NORMS, schedule=own), Group(parameters=REST))
    trainer = make_trainer(tmp_path, config=config(entries, schedule=schedule, steps=20))
    for number in (0, 3, 9, 10, 11, 19):
        clock = Clock(number, 20)
        expected = [
            0.0 if number < 10 else 1e-3 * schedule.factor(number - 10, 10),
            1e-2 * own.factor(number, 20),
            1e-2 * schedule.factor(number, 20),
        ]
        rates = trainer.update.learning_rates(clock)
        assert [rates[i] for i, part in enumerate(trainer.update.groups.parts)] == [
            expected[part.group] for part in trainer.update.groups.parts
        ]
        assert trainer.update.learning_rate(clock) == max(expected)
        step(trainer, number)
        assert [group["lr"] for group in trainer.update.optimizer.param_groups] == rates


@pytest.mark.parametrize("first", [3, 5])
def test_resume_across_an_unfreezing_ends_in_the_same_bits(tmp_path, first):
    def run(name, resume=False, **changes):
        trainer = make_trainer(tmp_path / name, config=config(STAGE, accumulation=2), stream=ToyStream(**changes))
        trainer.fit(resume=resume)
        return fingerprint(trainer)

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        run("stopped", calls={first - 1: stop})
    assert run("stopped", resume=True) == run("whole")


def test_several_ranks_refuse_a_norm_that_wakes_up_later_before_the_first_step(tmp_path, monkeypatch):
    for name, value in (("active", True), ("rank", 0), ("world_size", 2)):
        monkeypatch.setattr(distributed, name, lambda value=value: value)
    with pytest.raises(UsageError, match=r"policy\.batch_norm normalises by the statistics of its batch"):
        make_trainer(tmp_path, config=config(STAGE))


def test_going_back_before_an_unfreezing_freezes_again(tmp_path):
    trainer = make_trainer(tmp_path, config=config(STAGE))
    batches = [trainer.stream.next() for _ in range(8)]
    ends = []
    for begin in (0, 3):
        for number in range(begin, 8):
            if number == 3 and begin == 0:
                kept = trainer.update.tensors(3), trainer.update.state()
            trainer.update(batches[number], Clock(number, 10))
            if number == 3:
                assert trainer.objective.policy.first.weight not in trainer.update.optimizer.state
        ends.append(weights(trainer))
        trainer.update.load(*kept, "here")
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_resumed_run_may_freeze_and_unfreeze_when_asked(tmp_path):
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        make_trainer(tmp_path, config=config(FREEZE), stream=ToyStream(calls={4: stop})).fit()
    other = (Group(parameters=r"policy\.last\..*", schedule=None), Group(parameters=REST))
    trainer = make_trainer(tmp_path, config=config(other))
    trainer.fit(resume=True, allow_change=["training.groups"])
    state = trainer.update.optimizer.state
    assert trainer.objective.policy.last.weight not in state
    assert state[trainer.objective.policy.task.weight]["step"] == 10
    assert state[trainer.objective.policy.first.weight]["step"] == 5


# -- one list, every parameter once ------------------------------------------------------------------------------------------------------


def refused(*groups, objective=None):
    with pytest.raises(UsageError) as caught:
        Groups(objective or ToyObjective(), groups, WarmupCosineConfig(), 10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@guards("training.names.matching")
def test_a_pattern_that_matches_nothing_names_what_is_near():
    text = refused(Group(parameters=r"policy\.frist\..*", schedule=None), Group(parameters=REST))
    assert text.startswith("training.groups[0]: ")
    assert "a name near it is 'policy.first." in text
    assert "training.groups[0]" in refused(Group(parameters="policy.firs"), Group(parameters=REST)), "part of a name is no match"


@guards("training.groups.once")
def test_a_parameter_in_two_entries_is_refused():
    text = refused(Group(parameters=FIRST), Group(parameters=r"policy\.f.*", schedule=None), Group(parameters=REST))
    assert r"'policy.first.weight' is matched by 'policy\\.f.*' and by 'policy\\.first\\..*'" in text


@guards("training.groups.covers")
def test_a_parameter_in_no_entry_is_refused():
    text = refused(Group(parameters=FIRST), Group(parameters=r"policy\.(norm|task|last)\..*"))
    assert "no entry matches 'policy.batch_norm.weight' (+1)" in text


@guards("training.groups.rest")
def test_there_is_one_rest():
    assert "stands at 0 and at 1" in refused(Group(parameters=REST, schedule=None), Group(parameters=REST))


@guards("training.groups.learns")
def test_an_entry_that_would_learn_nothing_is_refused():
    assert "nothing is left for it" in refused(Group(parameters=r"policy\..*"), Group(parameters=REST))
    objective = ToyObjective()
    objective.policy.first.requires_grad_(False)
    assert "keeps all that it matches frozen" in refused(Group(parameters=FIRST), Group(parameters=REST), objective=objective)
    Groups(objective, (Group(parameters=FIRST, schedule=None), Group(parameters=REST)), WarmupCosineConfig(), 10)
    assert not any(parameter.requires_grad for parameter in objective.policy.first.parameters())


@guards("training.groups.begins")
def test_something_must_learn_from_the_first_step():
    assert "nothing learns in the first step" in refused(Group(parameters=FIRST, schedule=None), Group(parameters=REST, start_fraction=0.2))


def test_a_misstated_group_is_refused_by_its_config():
    for values, text in (
        ({"parameters": "("}, "is no regular expression"),
        ({"parameters": "a", "schedule": None, "rate_factor": 0.1}, "a frozen group"),
        ({"parameters": "a", "start_fracton": 0.1}, "did you mean 'start_fraction'"),
    ):
        with pytest.raises(UsageError, match=text):
            TrainingConfig.parse({"groups": [values]}, "here")


def test_the_plan_says_who_learns(tmp_path):
    plan = make_trainer(tmp_path, config=config(STAGE)).plan()
    assert [(entry["start"], entry["rate_factor"], entry["schedule"]) for entry in plan["groups"]] == [
        (5, 0.1, "constant"), (3, 1.0, "warmup_cosine"), (0, 1.0, "warmup_cosine")
    ]  # fmt: skip
    assert sum(entry["number"] for entry in plan["groups"]) == plan["parameters"]
    assert make_trainer(tmp_path, config=config(FREEZE)).plan()["parameters_frozen"] == 96 + 64


def test_the_documented_list_fits_the_policy():
    page = Path(__file__).parents[2] / "docs/training/optimisation.md"
    names = {}
    exec(page.read_text().split("## Groups")[1].split("```python\n")[1].split("```")[0], names)
    objective = Imitation(build_policy(PolicyConfig(width=16)))
    groups = Groups(objective, names["training"].groups, WarmupCosineConfig(), 100)
    assert [len(groups.learning(Clock(number, 100))) for number in (0, 49, 50)] == [1, 1, 2]
    groups.enter(Clock(50, 100))
    frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"text"}


# -- layer-wise decay --------------------------------------------------------------------------------------------------------------------


def test_layer_decay_is_the_closed_form():
    names = [
        "vit.cls",
        "vit.patch.weight",
        *(f"vit.blocks.{i}.mlp.{j}.weight" for i in range(3) for j in range(2)),
        "vit.norm.weight",
        "head.weight",
    ]
    assert layer_factors(names, 0.5) == {
        "vit.cls": 0.5**4, "vit.patch.weight": 0.5**4,
        "vit.blocks.0.mlp.0.weight": 0.5**3, "vit.blocks.0.mlp.1.weight": 0.5**3,
        "vit.blocks.1.mlp.0.weight": 0.5**2, "vit.blocks.1.mlp.1.weight": 0.5**2,
        "vit.blocks.2.mlp.0.weight": 0.5, "vit.blocks.2.mlp.1.weight": 0.5,
        "vit.norm.weight": 1.0, "head.weight": 1.0,
    }  # fmt: skip
    upper = layer_factors(["vit.patch.weight", "vit.layers.7.weight", "vit.layers.11.weight"], 0.9)
    assert upper == {"vit.patch.weight": 0.9**6, "vit.layers.7.weight": 0.9**5, "vit.layers.11.weight": 0.9}
    assert layer_factors(["stages.0.blocks.4.w", "stages.1.blocks.0.w"], 0.5) == {"stages.0.blocks.4.w": 0.25, "stages.1.blocks.0.w": 0.5}


@guards("training.groups.stack")
def test_layer_decay_needs_numbered_blocks():
    assert "'policy.first.weight' and the others have none" in refused(Group(parameters=REST, layer_decay=0.5))


@guards("training.groups.one_stack")
def test_layer_decay_counts_along_one_stack():
    with pytest.raises(UsageError, match=r"here are 'a\.layers' and 'b\.layers'"):
        layer_factors(["a.layers.0.w", "b.layers.0.w"], 0.5)


class Deep(ToyObjective):
    """Three numbered blocks before the toy's last layer."""

    def __init__(self):
        super().__init__()
        self.policy.norm = nn.Sequential()
        self.policy.norm.layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))  # type: ignore[assignment]


def test_blocks_learn_at_their_own_rates(tmp_path):
    entries = (Group(parameters=r"policy\.norm\..*", layer_decay=0.5, rate_factor=0.1), Group(parameters=REST))
    trainer = make_trainer(tmp_path, objective=Deep(), config=config(entries, schedule=ConstantConfig(warmup_fraction=0.0)))
    step(trainer, 0)
    rate = {
        name: group["lr"]
        for part, group in zip(trainer.update.groups.parts, trainer.update.optimizer.param_groups, strict=True)
        for name in part.parameters
    }
    assert rate["policy.norm.layers.0.weight"] == rate["policy.norm.layers.0.bias"] == 1e-2 * 0.1 * 0.5**3
    assert rate["policy.norm.layers.2.weight"] == 1e-2 * 0.1 * 0.5
    assert rate["policy.last.weight"] == 1e-2
    decay = [(group["weight_decay"], len(group["params"])) for group in trainer.update.optimizer.param_groups]
    assert decay[:6] == [(0.5, 1)] * 3 + [(0.0, 1)] * 3
