"""Early stopping: when it gives up, that a resumed run gives up at the same step, and that nothing changes while it hopes."""

import math
import os

import pytest

from deftly.training import distributed
from deftly.training.config import TrainingConfig
from deftly.training.stopping import EarlyStop, EarlyStopConfig
from deftly.types import UsageError
from guards import guards
from training.toys import ToyStream, fingerprint, log_lines, make_trainer, small_config


def stops_after(values, metric="loss", **changes):
    stop = EarlyStop(EarlyStopConfig(metric=metric, **changes))
    for number, value in enumerate(values, 1):
        stop.see(10 * number, {metric: value})
        if stop.why is not None:
            return number
    return None


def test_patience_counts_validations_without_a_new_best():
    assert stops_after([3, 2, 1, 1, 1, 1], patience=3, smoothing=0) == 6
    assert stops_after([3, 2, 3, 1.9, 3, 3], patience=2, smoothing=0) == 6
    assert stops_after([3, 2, 1, 0], patience=1, smoothing=0) is None


def test_smoothing_does_not_stop_at_one_bad_validation():
    noisy = [5, 3, 3.5, 2, 2.6, 1, 1.7, 0.5]
    assert stops_after(noisy, patience=1, smoothing=0) == 3
    assert stops_after(noisy, patience=1, smoothing=0.7) is None


def test_a_gain_below_min_delta_is_none():
    assert stops_after([1.0, 0.99, 0.98, 0.97], patience=2, smoothing=0) is None
    assert stops_after([1.0, 0.99, 0.98, 0.97], patience=2, smoothing=0, min_delta=0.1) == 3


def test_accuracy_is_better_when_it_is_larger():
    assert stops_after([0.1, 0.2, 0.3, 0.4], metric="action_accuracy", patience=1, smoothing=0) is None
    assert stops_after([0.4, 0.3, 0.2], metric="action_accuracy", patience=2, smoothing=0) == 3


def test_what_is_not_finite_is_no_gain_and_no_past():
    assert stops_after([math.nan, math.inf, math.nan], patience=3) == 3
    assert stops_after([2, math.nan, 1, math.nan, 0.5], patience=2) is None


def test_every_rank_does_what_rank_0_does(monkeypatch):
    decisions = iter([False, True])
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "any_rank", lambda mine: next(decisions))
    assert stops_after([3, 2, 1], patience=9) == 2
    monkeypatch.setattr(distributed, "any_rank", lambda mine: False)
    assert stops_after([1, 2, 3], patience=1) is None


def test_a_run_that_learns_nothing_more_ends_with_a_checkpoint_and_says_why(tmp_path, capsys):
    hopeless = EarlyStopConfig(patience=2, min_delta=1e6)
    config = small_config(steps=30, log_every=50, validate_every=4, checkpoint_every=None, early_stop=hopeless)
    summary = make_trainer(tmp_path, config=config).fit()
    assert summary["steps"] == 12
    assert summary["stopped_early"].startswith("stopped early: no better validation loss in 2 validations (best")
    assert [line["kind"] for line in log_lines(tmp_path) if line["step"] == 12] == ["validation", "detail", "train"]
    assert summary["loss"] is not None, "the steps since the line before are in a last one"
    assert "stopped early" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000012\n"
    again = make_trainer(tmp_path, config=config)
    assert again.fit(resume=True)["steps"] == 12, "resumed, it is still over"
    longer = config.replace(early_stop=None)
    assert make_trainer(tmp_path, config=longer).fit(resume=True, allow_change=["training.early_stop"])["steps"] == 30


def test_a_resumed_run_stops_at_the_same_step_with_the_same_bits(tmp_path):
    config = small_config(steps=60, validate_every=3, early_stop=EarlyStopConfig(patience=3, min_delta=0.02, smoothing=0.6))
    whole = make_trainer(tmp_path / "whole", config=config)
    end = whole.fit()["steps"]
    assert 9 < end < 60
    with pytest.raises(SystemExit):
        make_trainer(tmp_path / "cut", config=config, stream=ToyStream(calls={end - 5: lambda: os.kill(os.getpid(), 15)})).fit()
    cut = make_trainer(tmp_path / "cut", config=config)
    assert cut.fit(resume=True)["steps"] == end
    assert fingerprint(cut) == fingerprint(whole)
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")


def test_while_it_hopes_it_changes_nothing(tmp_path):
    plain, hoping = (
        make_trainer(tmp_path / name, config=small_config(steps=12, early_stop=given))
        for name, given in (("plain", None), ("hoping", EarlyStopConfig(patience=100)))
    )
    plain.fit()
    assert hoping.fit()["stopped_early"] is None
    weights = [trainer.snapshot().objective["policy.last.weight"].tolist() for trainer in (plain, hoping)]
    assert weights[0] == weights[1]


@guards("training.early_stop.blind", "training.early_stop.never_looks", "training.early_stop.not_measured")
def test_a_setting_that_could_never_act_is_refused(tmp_path):
    with pytest.raises(UsageError, match="needs held-out episodes"):
        make_trainer(tmp_path, config=small_config(early_stop=EarlyStopConfig()), validation=None)
    with pytest.raises(UsageError, match="set validate_every"):
        TrainingConfig.parse({"early_stop": {}, "validate_every": None}, "run.json")
    with pytest.raises(UsageError, match="not measured"):
        TrainingConfig.parse({"early_stop": {"metric": "action_accuracy"}, "measures": {"action_tolerance": None}}, "run.json")
