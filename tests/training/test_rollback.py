"""A run that is stuck goes back, leaves the bad batches behind, and ends when that does not help; an interruption changes none of it."""

import math
import os
import signal

import pytest
import torch

from deftly import storage
from deftly.training.checkpoint import read_tensors
from deftly.training.guard import TrainingError
from deftly.training.schedule import ConstantConfig
from deftly.training.start import StartConfig
from guards import guards
from training.toys import ToyStream, fingerprint, log_lines, make_trainer, small_config, written

BAD = dict.fromkeys(range(16, 19), math.nan)  # steps 17 to 19


def stuck(directory, poison=BAD, calls=None, **changes):
    config = small_config(**{"max_bad_steps": 3, "steps": 30, "checkpoint_every": 7, "validate_every": None, **changes})
    return make_trainer(directory, stream=ToyStream(poison=poison, calls=calls), config=config, validation=None)


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.update.tensors(0).objective.items()}


def test_weights_moments_and_averages_go_back_while_step_and_data_go_on(tmp_path, capsys):
    trainer = stuck(tmp_path)
    seen = {}
    go_back = trainer.update.go_back

    def spy(tensors, state):
        go_back(tensors, state)
        seen["now"] = trainer.update.tensors(0)
        seen["guard"] = trainer.update.guard.state()

    trainer.update.go_back = spy  # type: ignore[method-assign]
    summary = trainer.fit()
    assert (summary["steps"], summary["rollbacks"], summary["skipped"], trainer.stream.position) == (30, 1, 3, 30)  # type: ignore[attr-defined]
    before = stuck(tmp_path / "before", poison={}, steps=30)
    for _ in range(14):
        before._hooks(batch := before.stream.next(), before.update(batch, (clock := clock_of(before))), before.update.learning_rate(clock))
    expected = before.update.tensors(0)
    for ours, theirs in zip(seen["now"], expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (seen["guard"]["in_a_row"], seen["guard"]["skipped"]) == (0, 3)
    (line,) = (line for line in log_lines(tmp_path) if line["kind"] == "rollback")
    assert {name: line[name] for name in ("step", "first_bad_step", "last_bad_step", "weights_of_step")} == {
        "step": 19, "first_bad_step": 17, "last_bad_step": 19, "weights_of_step": 14
    }  # fmt: skip
    assert "steps 17 to 19 were bad, so the weights are those of step 14 again" in capsys.readouterr().err
    steps = [line["step"] for line in log_lines(tmp_path)]
    assert steps == sorted(steps)  # no step comes twice


def clock_of(trainer):
    from deftly.types import Clock

    return Clock(trainer.step, trainer.config.steps)


@pytest.mark.parametrize("stops", [(3,), (15,), (18,), (19,), (20,), (15, 17, 21), (8, 22)])
def test_an_interrupted_run_goes_back_to_the_same_weights(tmp_path, stops):
    whole = stuck(tmp_path / "whole")
    whole.fit()
    for stop in stops:
        calls = {stop: lambda: os.kill(os.getpid(), signal.SIGTERM)}
        with pytest.raises(SystemExit):
            stuck(tmp_path / "cut", calls=calls).fit(resume=True)
    cut = stuck(tmp_path / "cut")
    cut.fit(resume=True)
    assert fingerprint(cut) == fingerprint(whole)
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")


def test_after_the_last_rollback_the_run_ends_with_a_report(tmp_path):
    with pytest.raises(TrainingError, match=r"step 23: 3 steps in a row .*after 3 rollbacks; .*failure.json") as caught:
        stuck(tmp_path, poison=dict.fromkeys(range(11, 99), math.nan), steps=99).fit()
    assert "\n" not in str(caught.value)
    report = storage.read_json(tmp_path / "failure.json")
    assert (report["step"], report["reason"], len(report["rollbacks"])) == (23, "non-finite", 3)
    assert report["rollbacks"][0] == {"first_bad_step": 12, "last_bad_step": 14, "weights_of_step": 7}
    assert report["origin"]["inputs"] == ["state"]
    assert report["episodes"]
    for path in tmp_path.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in read_tensors(path).values())


def test_with_nothing_to_go_back_to_the_run_ends_at_once(tmp_path):
    with pytest.raises(TrainingError, match=r"step 5: 3 steps in a row.*no checkpoint to go back to"):
        stuck(tmp_path, poison=dict.fromkeys(range(2, 30), math.nan)).fit()
    with pytest.raises(TrainingError, match="step 19"):
        stuck(tmp_path / "never", max_rollbacks=0).fit()


def test_a_fresh_run_that_is_stuck_says_what_happened(tmp_path):
    with pytest.raises(TrainingError, match=r"to go back to: the first is due at step 7\b") as caught:
        stuck(tmp_path / "early", poison=dict.fromkeys(range(2, 30), math.nan)).fit()
    assert "nothing has been learnt" not in str(caught.value)
    with pytest.raises(TrainingError, match="no step of this run was good, so nothing has been learnt"):
        stuck(tmp_path / "never", poison=dict.fromkeys(range(30), math.nan)).fit()
    with pytest.raises(TrainingError, match=r"to go back to: training\.checkpoint_every is null"):
        stuck(tmp_path / "none", checkpoint_every=None).fit()


def test_a_checkpoint_that_is_there_by_chance_is_none_that_cannot_be_read(tmp_path):
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    poison = dict.fromkeys(range(4, 30), math.nan)
    with pytest.raises(SystemExit):
        stuck(tmp_path, poison=poison, calls={3: stop}).fit()
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()
    with pytest.raises(TrainingError, match=r"to go back to: the first is due at step 7\b"):
        stuck(tmp_path, poison=poison).fit(resume=True)


def moved(tmp_path, name, calls=None):
    """Goes on from step 14 of another run, and is stuck at once."""
    change = {"start": StartConfig(path=tmp_path / "first"), "schedule": ConstantConfig()}
    return stuck(tmp_path / name, poison=dict.fromkeys(range(14, 17), math.nan), calls=calls, **change)


def test_a_run_that_went_on_elsewhere_goes_back_to_where_it_began(tmp_path):
    first = stuck(tmp_path / "first", poison={}, steps=14, schedule=ConstantConfig())
    first.fit()
    whole, seen = moved(tmp_path, "moved"), []
    go_back = whole.update.go_back
    whole.update.go_back = lambda tensors, state: (go_back(tensors, state), seen.append(whole.update.tensors(0)))  # type: ignore[method-assign]
    assert whole.fit(allow_change=["training.steps"])["rollbacks"] == 1
    for ours, theirs in zip(seen[0], first.update.tensors(0), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (line,) = (line for line in log_lines(tmp_path / "moved") if line["kind"] == "rollback")
    assert (line["first_bad_step"], line["last_bad_step"], line["weights_of_step"]) == (15, 17, 14)
    with pytest.raises(SystemExit):
        moved(tmp_path, "cut", calls={16: lambda: os.kill(os.getpid(), signal.SIGTERM)}).fit(allow_change=["training.steps"])
    cut = moved(tmp_path, "cut")
    cut.fit(resume=True)
    assert fingerprint(cut) == fingerprint(whole)


@guards("training.rollback.beginning")
def test_it_does_not_go_back_to_what_is_no_longer_where_it_began(tmp_path, capsys):
    stuck(tmp_path / "first", poison={}, steps=14, schedule=ConstantConfig()).fit()

    def change():
        path = tmp_path / "first" / "checkpoints" / "step-00000014" / storage.MANIFEST
        path.write_text(path.read_text() + "\n")

    with pytest.raises(TrainingError, match="no checkpoint to go back to: the first is due at step 21"):
        moved(tmp_path, "moved", calls={15: change}).fit(allow_change=["training.steps"])
    assert "is no longer the checkpoint that this run began with; not going back to it" in capsys.readouterr().err


def test_a_checkpoint_that_is_broken_is_passed_over(tmp_path, capsys):
    def break_it():
        written(trainer)
        (tmp_path / "checkpoints" / "step-00000014" / "raw.safetensors").write_bytes(b"broken")

    trainer = stuck(tmp_path, calls={17: break_it})
    trainer.fit()
    (line,) = (line for line in log_lines(tmp_path) if line["kind"] == "rollback")
    assert line["weights_of_step"] == 7
    assert "not going back to it" in capsys.readouterr().err


def test_the_checkpoints_that_a_rollback_needs_are_kept_beside_those_of_interruptions(tmp_path):
    for stop in (15, 16, 17):
        with pytest.raises(SystemExit):
            stuck(tmp_path, poison={}, calls={stop: lambda: os.kill(os.getpid(), signal.SIGTERM)}).fit(resume=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000007", "step-00000014", "step-00000018"]
