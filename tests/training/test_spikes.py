"""What is a spike, what is only noise, and what is a new level."""

import math
import os
import random
import signal

import pytest
from torch import nn

from deftly.training.guard import Guard
from deftly.training.spikes import FEWEST, WINDOW, SpikeDetector
from deftly.types import Clock
from training.toys import ToyStream, fingerprint, log_lines, make_trainer, small_config


def seen(detector, losses):
    return [detector.judges(loss) for loss in losses]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_hundredfold_loss_is_a_spike_at_any_scale_and_noise_is_not(scale):
    draw = random.Random(0)
    detector = SpikeDetector(20.0)
    assert not any(seen(detector, [scale * math.exp(draw.gauss(0, 0.4)) for _ in range(500)]))
    assert detector.judges(100 * scale)
    assert not any(seen(detector, [scale * math.exp(draw.gauss(0, 0.4)) for _ in range(500)]))


def test_a_descent_and_negative_losses_are_no_spikes():
    assert not any(seen(SpikeDetector(20.0), [10 * 0.97**step for step in range(400)]))
    assert not any(seen(SpikeDetector(20.0), [-step / 10 for step in range(400)]))
    assert seen(SpikeDetector(20.0), [-3.0 + 0.1 * (step % 3) for step in range(100)] + [40.0])[-1]


def test_nothing_is_judged_before_there_is_something_to_compare_with():
    detector = SpikeDetector(20.0)
    assert not any(seen(detector, [1.0] * (FEWEST - 1) + [100.0]))
    assert not any(seen(SpikeDetector(None), [1.0] * 100 + [1e9]))


def test_only_finite_losses_enter_the_window_and_it_is_kept():
    detector = SpikeDetector(20.0)
    seen(detector, [1.0, math.nan, 2.0, math.inf, -math.inf])
    assert detector.state() == [1.0, 2.0]
    seen(detector, [3.0] * 100)
    again = SpikeDetector(20.0)
    again.load_state(detector.state())
    assert again.state() == detector.state() == [3.0] * WINDOW


def test_a_level_that_stays_is_accepted():
    guard = Guard(nn.Linear(1, 1), limit=3, spike_threshold=20.0)
    assert all(guard.accepts(1.0, 1.0) for _ in range(FEWEST))
    assert [guard.accepts(100.0, 1.0) for _ in range(6)] == [False, False, True, True, True, True]
    assert guard.skipped == 2


class Spiking(ToyStream):
    """Batch 50 has targets that are far away."""

    def next(self):
        batch = super().next()
        if self.position == 50:
            batch.actions = 30 * batch.actions
        return batch


def spiking(directory, **changes):
    config = small_config(**{"steps": 60, "log_every": 10, "validate_every": None, "checkpoint_every": None, **changes})
    return make_trainer(directory, stream=Spiking(), config=config, validation=None)


def test_a_step_with_a_spike_leaves_no_trace_and_is_logged(tmp_path, capsys):
    trainer, other = spiking(tmp_path), spiking(tmp_path / "other")
    for each in (trainer, other):
        for step in range(49):
            assert each.update(each.stream.next(), Clock(step, 60)).accepted
    other.stream.position = 50  # type: ignore[attr-defined]
    assert not trainer.update(trainer.stream.next(), Clock(49, 60)).accepted
    assert trainer.update.guard.reason == "spike"
    trainer.update.guard.load_state(other.update.guard.state())
    assert fingerprint(trainer) == fingerprint(other)  # weights, averages, moments, running statistics
    summary = spiking(tmp_path / "run").fit()
    assert summary["skipped"] == 1
    (line,) = (line for line in log_lines(tmp_path / "run") if line["kind"] == "skipped")
    assert (line["step"], line["reason"]) == (50, "spike")
    assert len(line["keys"]) == 8
    assert "WARNING: step 50 skipped (spike)" in capsys.readouterr().err
    assert spiking(tmp_path / "off", spike_threshold=None).fit()["skipped"] == 0


def test_the_window_is_in_the_checkpoint(tmp_path):
    whole = spiking(tmp_path / "whole")
    whole.fit()
    first = spiking(tmp_path / "cut", checkpoint_every=40)
    first.stream.calls = {45: lambda: os.kill(os.getpid(), signal.SIGTERM)}  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        first.fit()
    second = spiking(tmp_path / "cut", checkpoint_every=40)
    assert second.fit(resume=True)["skipped"] == 1
    assert second.update.guard.state() == whole.update.guard.state()
