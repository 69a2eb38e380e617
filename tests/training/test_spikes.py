"""What is a spike, what is only noise, and what is a new level."""

import json
import math
import os
import random
import signal

import pytest
from torch import nn

from deftly.training.guard import Guard
from deftly.training.spikes import FEWEST, MEMORY, MOST, WINDOW, SpikeDetector
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
    assert seen(SpikeDetector(20.0), [-3.0 + 0.1 * (step % 3) for step in range(100)] + [100.0])[-1]


def test_nothing_is_judged_before_there_is_something_to_compare_with():
    detector = SpikeDetector(20.0)
    assert not any(seen(detector, [1.0] * (FEWEST - 1) + [100.0]))
    assert not any(seen(SpikeDetector(None), [1.0] * 100 + [1e9]))


def test_only_finite_losses_enter_the_window_and_it_is_kept():
    detector = SpikeDetector(20.0)
    seen(detector, [1.0, math.nan, 2.0, math.inf, -math.inf])
    assert detector.state()["window"] == [1.0, 2.0]
    seen(detector, [3.0] * 100)
    again = SpikeDetector(20.0)
    again.load_state(detector.state())
    assert again.state() == detector.state()
    assert again.state()["window"] == [3.0] * WINDOW


def noisy(seed, share, height, steps=3000, sigma=0.2):
    draw = random.Random(seed)
    return [(height if draw.random() < share else 1.0) * math.exp(draw.gauss(0, sigma)) for _ in range(steps)]


HEALTHY = {
    "smooth": noisy(0, 0, 1),
    "falling": [1e4 * math.exp(-step / 50) + loss for step, loss in enumerate(noisy(1, 0, 1))],
    "falling to nothing": [math.exp(-step / 200) * loss for step, loss in enumerate(noisy(2, 0, 1, sigma=0.8))],
    "a dataset that is eight times as hard": noisy(3, 0.05, 8),
    "stages, 1 and 10": [(1.0 if step // 40 % 2 else 10.0) * loss for step, loss in enumerate(noisy(4, 0, 1))],
    "likelihoods below and above zero": [math.log(loss) - 1 for loss in noisy(5, 0, 1, sigma=0.5)],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_loses_no_step(name):
    assert not any(seen(SpikeDetector(20.0), HEALTHY[name]))


RECURRING = {
    "a hundred times as hard": noisy(0, 0.05, 100),
    "five hundred times as hard": noisy(1, 0.05, 500),
    "one step in a hundred": noisy(2, 0.01, 100),
    "heavy tails": noisy(3, 0, 1, sigma=1.3),
    "mostly nothing": [0.001 * loss for loss in noisy(4, 0.05, 500)],
    "stages, 1 and 100": [(1.0 if step // 40 % 2 else 100.0) * loss for step, loss in enumerate(noisy(5, 0, 1))],
    "nothing, then something": [0.0] * 100 + noisy(6, 0, 1),
}


@pytest.mark.parametrize("name", RECURRING)
def test_what_recurs_is_data_after_three_steps_at_most(name):
    judged = seen(SpikeDetector(20.0), RECURRING[name])
    assert 1 <= sum(judged) <= 3
    assert not any(judged[1500:])


CALM = [1.0] * 100


@pytest.mark.parametrize(("loss", "is_spike"), [(99.0, False), (150.0, False), (200.0, False), (201.0, True), (10_000.0, True)])
def test_two_as_high_or_nearly_so_make_a_third_one_data_and_no_higher_one(loss, is_spike):
    detector = SpikeDetector(20.0)
    assert seen(detector, [*CALM, 100.0, *CALM, 100.0, *CALM, loss]) == [False] * 100 + ([True] + [False] * 100) * 2 + [is_spike]


def test_the_lower_of_the_two_highest_counts():
    detector = SpikeDetector(20.0)
    assert seen(detector, [*CALM, 1e6, 30.0, 1e6, 50.0])[-4:] == [True, True, True, False]
    detector = SpikeDetector(20.0)
    assert seen(detector, [*CALM, 1e6, 100.0, 30.0])[-3:] == [True, True, False]


@pytest.mark.parametrize(("calm", "is_spike"), [(MEMORY - 1, False), (MEMORY, True)])
def test_what_was_seen_is_forgotten_after_a_calm(calm, is_spike):
    detector = SpikeDetector(20.0)
    seen(detector, [*CALM, 100.0, 100.0, 100.0])
    assert detector.state()["heights"] == [100.0, 100.0]
    assert seen(detector, [1.0] * calm + [100.0]) == [False] * calm + [is_spike]
    assert len(detector.state()["heights"]) == (1 if is_spike else 2)


def test_few_steps_are_skipped_whatever_comes():
    """Each one higher than all before it, and each time far enough apart to be high: nothing of it recurs."""
    detector = SpikeDetector(20.0)
    judged = seen(detector, [10.0 ** (step // 40) if step % 40 == 39 else 1.0 for step in range(12_000)])
    assert MOST + 11 <= sum(judged) <= MOST + 12
    steps = [step for step, spike in enumerate(judged) if spike]
    assert all(after - before >= MEMORY for before, after in zip(steps[MOST:], steps[MOST + 1 :], strict=False))


def test_skips_are_earned_up_to_three():
    detector = SpikeDetector(20.0)
    seen(detector, [1.0] * 10 * MEMORY)
    assert seen(detector, [10.0**power for power in range(2, 9)]) == [True] * MOST + [False] * 4
    assert seen(detector, [1.0] * MEMORY + [1e9, 1e10]) == [False] * MEMORY + [True, False]


def test_that_data_recurs_is_news_once():
    detector = SpikeDetector(20.0)
    news = []
    for loss in [*CALM, 100.0, 100.0, 100.0, 100.0, *CALM, 100.0]:
        detector.judges(loss)
        news.append(detector.is_news)
        again = SpikeDetector(20.0)
        again.load_state(json.loads(json.dumps(detector.state())))
        detector = again
    assert [step for step, is_news in enumerate(news) if is_news] == [102]


def test_a_detector_goes_on_where_it_was():
    losses = noisy(7, 0.02, 100)
    whole, part = SpikeDetector(20.0), SpikeDetector(20.0)
    judged = seen(whole, losses)
    for cut in range(0, 3000, 50):
        again = SpikeDetector(20.0)
        again.load_state(json.loads(json.dumps(part.state())))
        part = again
        assert seen(part, losses[cut : cut + 50]) == judged[cut : cut + 50]
    assert part.state() == whole.state()
    seen(part, [1e9])
    again = SpikeDetector(20.0)
    again.load_state(part.state())
    assert again.state() == part.state()
    assert again.credit == (MOST - 1) * MEMORY
    old = SpikeDetector(20.0)
    old.load_state({"window": [1.0] * WINDOW})
    assert seen(old, [100.0, 100.0, 100.0]) == [True, True, False]


@pytest.mark.parametrize(("limit", "skipped"), [(1, 0), (2, 1), (3, 2), (10, 3)])
def test_spikes_alone_never_fill_the_limit(limit, skipped):
    """A level that stays, and one that rises, are no reason to go back to a checkpoint."""
    for losses in ([100.0] * 40, [10.0**power for power in range(2, 42)]):
        guard = Guard(nn.Linear(1, 1), limit=limit, spike_threshold=20.0)
        assert all(guard.accepts(1.0, 1.0) for _ in range(FEWEST))
        for loss in losses:
            guard.accepts(loss, 1.0)
            assert not guard.is_stuck
        assert guard.skipped == min(skipped, 2 if losses[1] == 100.0 else 3)


class Spiking(ToyStream):
    """Some batches have targets that are far away."""

    far = (50,)

    def next(self):
        batch = super().next()
        if self.position in self.far:
            assert batch.actions is not None
            batch.actions = 30 * batch.actions
        return batch


def spiking(directory, far=(50,), **changes):
    config = small_config(**{"steps": 60, "log_every": 10, "validate_every": None, "checkpoint_every": None, **changes})
    stream = Spiking()
    stream.far = far
    return make_trainer(directory, stream=stream, config=config, validation=None)


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


def test_what_recurs_is_learnt_and_said_once_also_in_a_resumed_run(tmp_path, capsys):
    far = (35, 37, 41, 43)
    whole = spiking(tmp_path / "whole", far, steps=44)
    assert whole.fit()["skipped"] == 2
    lines = [line for line in log_lines(tmp_path / "whole") if line["kind"] in ("skipped", "recurring")]
    assert [(line["step"], line["kind"]) for line in lines] == [(35, "skipped"), (37, "skipped"), (41, "recurring")]
    assert lines[-1]["loss"] > 100
    assert len(lines[-1]["keys"]) == 8
    assert capsys.readouterr().err.count("come again and again, so they are learnt from") == 1
    for kill in (39, 42):
        first = spiking(tmp_path / f"cut {kill}", far, steps=44, checkpoint_every=10)
        first.stream.calls = {kill: lambda: os.kill(os.getpid(), signal.SIGTERM)}  # type: ignore[attr-defined]
        with pytest.raises(SystemExit):
            first.fit()
        second = spiking(tmp_path / f"cut {kill}", far, steps=44, checkpoint_every=10)
        assert second.fit(resume=True)["skipped"] == 2
        assert second.update.guard.state() == whole.update.guard.state()
        assert fingerprint(second) == fingerprint(whole)
        again = [line for line in log_lines(tmp_path / f"cut {kill}") if line["kind"] in ("skipped", "recurring")]
        assert [(line["step"], line["kind"]) for line in again] == [(35, "skipped"), (37, "skipped"), (41, "recurring")]
