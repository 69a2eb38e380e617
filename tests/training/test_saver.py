"""T20: a checkpoint that is written while training goes on holds the state of its own step, and changes nothing else."""

import threading
import time

import pytest
import torch

from deftly.training.checkpoint import Checkpoints, read
from deftly.training.saver import NAME, Saver
from training.toys import ToyStream, fingerprint, log_lines, make_trainer, small_config

STEPS = 20


def config(**changes):
    return small_config(**{"steps": STEPS, "checkpoint_every": 5, "validate_every": None, "keep_last": 4, **changes})


def saved(directory, step):
    snapshot = read(directory / "checkpoints" / f"step-{step:08d}")
    assert snapshot.raw is not None
    state = {name: value for name, value in snapshot.trainer.items() if name != "seconds"}
    return {**snapshot.objective, **{f"raw.{name}": tensor for name, tensor in snapshot.raw.items()}, **snapshot.optimizer}, state


def late(monkeypatch, stream):
    """Each write begins when the trainer has taken three more steps; (step, steps taken when it had ended) of each."""
    seen: list[tuple[int, int]] = []
    real = Checkpoints.save

    def save(self, snapshot, *rest):
        deadline = time.monotonic() + 10
        while stream.position < min(snapshot.step + 3, STEPS) and time.monotonic() < deadline:
            time.sleep(0.001)
        path = real(self, snapshot, *rest)
        seen.append((snapshot.step, stream.position))
        return path

    monkeypatch.setattr(Checkpoints, "save", save)
    return seen


def at_once(monkeypatch):
    """Each write ends before training goes on."""
    begin = Saver.begin

    def waits(self, snapshot, policy):
        begin(self, snapshot, policy)
        self._under_way[1].result()

    monkeypatch.setattr(Saver, "begin", waits)


def test_t20_what_is_written_late_is_the_state_of_its_step(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_once(patch)
        plain = make_trainer(tmp_path / "plain", config=config(), stream=ToyStream(curriculum=True))
        plain.fit()
    stream = ToyStream(curriculum=True)
    seen = late(monkeypatch, stream)
    trainer = make_trainer(tmp_path / "late", config=config(), stream=stream)
    trainer.fit()
    assert [step for step, _ in seen] == [5, 10, 15, 20]
    assert all(position >= step + 3 for step, position in seen[:-1]), "training went on meanwhile"
    for step in (5, 10, 15, 20):
        (found, state), (expected, its_state) = saved(tmp_path / "late", step), saved(tmp_path / "plain", step)
        assert state == its_state
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (fingerprint(trainer), log_lines(tmp_path / "late")) == (fingerprint(plain), log_lines(tmp_path / "plain"))


def slow(monkeypatch, seconds):
    """Each write takes that much longer; their steps."""
    seen: list[int] = []
    real = Checkpoints.save

    def save(self, snapshot, *rest):
        time.sleep(seconds)
        seen.append(snapshot.step)
        return real(self, snapshot, *rest)

    monkeypatch.setattr(Checkpoints, "save", save)
    return seen


def test_a_write_that_is_slower_than_training_is_waited_for(tmp_path, monkeypatch):
    seen = slow(monkeypatch, 0.02)
    make_trainer(tmp_path, config=config(checkpoint_every=1, keep_last=2)).fit()
    assert seen == list(range(1, STEPS + 1))


def test_a_run_that_fails_leaves_no_thread_and_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    stream = ToyStream(calls={6: lambda: 1 / 0})
    slow(monkeypatch, 0.3)
    trainer = make_trainer(tmp_path, config=config(), stream=stream)
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]
    assert trainer.checkpoints.steps() == [5]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert make_trainer(tmp_path, config=config()).fit(resume=True)["steps"] == STEPS
