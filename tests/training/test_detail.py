"""Where a held-out loss comes from, and which units never vary."""

import pytest
import torch
from torch import nn

from deftly import randomness
from deftly.training.detail import Detail, standard_error
from deftly.training.units import watching_units
from deftly.training.validation import validate
from deftly.types import Term
from training.toys import ACTION, CHUNK, ToyObjective, ToyPolicy, log_lines, make_batch, make_trainer, small_config


class Elements(ToyObjective):
    def forward(self, batch, clock, counts):
        error = (self.policy(batch) - batch.actions).square()
        return {"mse": Term((error * batch.valid_actions()).sum() / counts["mse"], elements=error)}


def batches(number=3, size=8):
    for epoch in range(number):
        batch = make_batch(randomness.sample_keys(1, torch.full((size,), epoch), torch.arange(size)))
        batch.task = batch.key % 2
        batch.embodiment = batch.key % 3
        yield batch


def test_the_parts_are_means_over_their_own_valid_elements():
    objective = Elements()
    detail = Detail()
    loss, _ = validate(objective, batches(), 30, torch.no_grad(), torch.device("cpu"), detail)
    found = detail.to_dict()
    assert (found["samples"], found["episodes"]) == (24, len({key % 7 for batch in batches() for key in batch.key.tolist()}))
    objective.eval()
    every = list(batches())
    with torch.no_grad():
        errors = torch.cat([(objective.policy(batch) - batch.actions).square() for batch in every])
    valid = torch.cat([batch.valid_actions() for batch in every])
    task, robot = (torch.cat([getattr(batch, name) for batch in every]) for name in ("task", "embodiment"))
    action = torch.cat([batch.actions for batch in every])
    term = found["terms"]["mse"]
    for index in range(ACTION):
        assert term["dimension"][index] == pytest.approx(mean(errors[:, :, index], valid[:, :, index]))
        values, weights = action[:, :, index], valid[:, :, index]
        assert term["spread"][index] == pytest.approx(mean((values - mean(values, weights)).square(), weights) ** 0.5, rel=1e-4)
    for index in range(CHUNK):
        assert term["horizon"][index] == pytest.approx(mean(errors[:, index], valid[:, index]))
    for number in (0, 1):
        assert term["task"][str(number)] == pytest.approx(mean(errors[task == number], valid[task == number]))
    assert set(term["embodiment"]) == {"0", "1", "2"}
    assert term["embodiment"]["2"] == pytest.approx(mean(errors[robot == 2], valid[robot == 2]))
    assert loss == pytest.approx(mean(errors, valid))


def mean(values, weights):
    return ((values.double() * weights.double()).sum() / weights.double().sum()).item()


def test_a_run_writes_it_beside_each_validation(tmp_path):
    make_trainer(tmp_path, objective=Elements(), config=small_config(steps=20)).fit()
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "detail"] == [line["step"] for line in lines if line["kind"] == "validation"]
    make_trainer(tmp_path / "plain", config=small_config(steps=5)).fit()
    (line,) = (line for line in log_lines(tmp_path / "plain") if line["kind"] == "detail")
    assert line["terms"] == {}  # an objective that gives no elements
    assert line["samples"] == 16


def test_the_standard_error_is_of_the_mean_over_episodes():
    assert standard_error([1.0]) is None
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.LeakyReLU(1e-4)])
def test_units_that_never_vary_are_counted(activation):
    layer = nn.Linear(4, 10)
    with torch.no_grad():
        layer.bias[:3] = -60.0
        layer.weight[:3] *= 0.1
    stack = nn.Sequential(layer, activation)
    with watching_units(stack) as units:
        for _ in range(3):
            stack(torch.randn(64, 4))
    assert units.dead() == {"1": pytest.approx(0.3)}
    assert not activation._forward_hooks


def test_a_layer_that_is_dead_as_a_whole_and_one_that_lives():
    with watching_units(stack := nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.ReLU())) as units:
        with torch.no_grad():
            stack[0].bias.fill_(-100.0)
        stack(torch.randn(2, 3, 8, 8))
    assert units.dead() == {"1": 1.0, "2": 1.0}
    with watching_units(stack := nn.Sequential(nn.Mish())) as units:
        stack(torch.randn(32, 4))
    assert units.dead() == {}


def test_a_plain_policy_has_no_dead_units(tmp_path):
    make_trainer(tmp_path, objective=Elements(ToyPolicy()), config=small_config(steps=5)).fit()
    assert next(line for line in log_lines(tmp_path) if line["kind"] == "detail")["dead"] == {}


def test_judged_with_the_actions_of_others_what_is_learnt_is_worse_and_what_is_not_is_the_same():
    class Knows(Elements):
        """Knows all dimensions but the last, for which it says 0."""

        def forward(self, batch, clock, counts):
            known = make_batch(batch.key).actions.clone()
            known[:, :, -1] = 0
            error = (known - batch.actions).square()
            return {"mse": Term((error * batch.valid_actions()).sum() / counts["mse"], elements=error)}

    detail = Detail()
    validate(Knows(), batches(6), 30, torch.no_grad(), torch.device("cpu"), detail)
    term = detail.to_dict()["terms"]["mse"]
    assert term["dimension"][:-1] == [0.0] * (ACTION - 1)
    assert all(value > 0.1 for value in term["mismatched"]["dimension"][:-1])
    assert term["mismatched"]["dimension"][-1] == pytest.approx(term["dimension"][-1], rel=0.5)
    assert detail.batches == 6
