"""A step that is not finite names its batch, its module and its parameter, and the search leaves no trace."""

import math

import pytest
import torch
from torch import nn

from deftly.types import Clock, Term
from training.toys import ToyObjective, ToyPolicy, ToyStream, fingerprint, log_lines, make_trainer, small_config

SILENT = {"validate_every": None, "checkpoint_every": None}


class Overflowing(nn.Module):
    """Divides by zero for samples whose first state is below a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, hidden):
        return torch.where(hidden[:, :1] < self.limit, hidden / 0.0, hidden)


def test_broken_samples_of_a_batch_are_named(tmp_path, capsys):
    class Broken(ToyStream):
        def next(self):
            batch = super().next()
            if self.position == 4:
                batch.state[5] = math.nan
                batch.actions = batch.actions.clone()
                batch.actions[6, 0, 1] = math.inf
            return batch

    make_trainer(tmp_path, stream=Broken(), config=small_config(steps=6, accumulation=2, **SILENT)).fit()
    (line,) = (line for line in log_lines(tmp_path) if line["kind"] == "skipped")
    origin = line["origin"]
    assert (line["step"], line["reason"]) == (4, "non-finite")
    assert origin["inputs"] == ["state", "actions"]
    assert origin["module"] == "policy.first"
    assert origin["keys"] == [line["keys"][5], line["keys"][6]]
    assert origin["episodes"] == sorted({key % 7 for key in origin["keys"]})
    assert "state, actions of the batch not finite; first in the output of policy.first" in capsys.readouterr().err


def test_the_first_module_of_a_finite_batch_is_named_with_its_samples(tmp_path):
    policy = ToyPolicy(batch_norm=False, dropout=0.0)
    policy.batch_norm = Overflowing(limit=math.inf)  # type: ignore[assignment]
    trainer = make_trainer(tmp_path, objective=ToyObjective(policy), config=small_config(accumulation=2, **SILENT))
    batch = trainer.stream.next()
    origin = trainer.update(batch, Clock(0, 30)).origin
    assert origin is not None
    assert (origin.inputs, origin.module) == ([], "policy.batch_norm")
    assert origin.keys == batch.key[:4].tolist()  # the first micro-batch is the first to go wrong
    assert origin.parameter == "policy.last.weight"  # backward comes to it first


def test_a_gradient_behind_a_finite_loss_is_named(tmp_path):
    class Steep(ToyObjective):
        def forward(self, batch, clock, counts):
            weight = self.policy.first.weight  # type: ignore[union-attr]
            return {**super().forward(batch, clock, counts), "steep": Term((weight - weight.detach()).abs().sqrt().sum())}

    origin = (trainer := make_trainer(tmp_path, objective=Steep())).update(trainer.stream.next(), Clock(0, 30)).origin
    assert origin is not None
    assert (origin.module, origin.parameter) == (None, "policy.first.weight")
    assert str(origin) == "gradient of policy.first.weight"


def test_a_loss_of_its_own_is_told_from_its_modules(tmp_path):
    class Log(ToyObjective):
        def forward(self, batch, clock, counts):
            return {"log": Term(-(0 * self.policy(batch).sum()).log())}

    origin = (trainer := make_trainer(tmp_path, objective=Log())).update(trainer.stream.next(), Clock(0, 30)).origin
    assert origin is not None
    assert origin.module == "Log's own arithmetic"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_searching_leaves_no_trace(tmp_path, accumulation, monkeypatch):
    def after(directory):
        config = small_config(steps=8, accumulation=accumulation, **SILENT)
        trainer = make_trainer(directory, stream=ToyStream(poison={3: math.nan}), config=config)
        trainer.fit()
        return fingerprint(trainer)

    searched = after(tmp_path / "searched")
    monkeypatch.setattr("deftly.training.update.locate", lambda *_: None)
    assert after(tmp_path / "not") == searched
