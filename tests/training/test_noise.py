"""How much of a gradient is chance: the estimate has no bias, is made of what a step shows, and is not made up where it shows nothing."""

from __future__ import annotations

import pytest
import torch

from deftly.training.diagnosis.noise import noise_scale
from deftly.training.noise import estimate
from deftly.types import Clock
from training.toys import ToyObjective, ToyPolicy, ToyStream, log_lines, make_trainer, small_config

CLOCK = Clock(0, 30)


def still():
    """Its gradient is a function of the batch, and of no draw."""
    return ToyObjective(ToyPolicy(dropout=0.0, batch_norm=False))


def by_hand(objective, batch, parts):
    """Norms of the gradient of the whole batch, and of the mean gradient that its first part stands for."""
    counts, found = objective.counts(batch), []
    for part in (batch, batch.split(parts)[0]):
        objective.zero_grad(set_to_none=True)
        objective(part, CLOCK, counts)["mse"].value.backward()
        found.append(torch.nn.utils.get_total_norm([p.grad for p in objective.parameters() if p.grad is not None]).item())
    objective.zero_grad(set_to_none=True)
    return found[0], parts * found[1]


def test_the_estimate_has_no_bias():
    draw = torch.Generator().manual_seed(0)
    size, samples, times, deviation = 20, 12, 3, 2.0
    truth = torch.randn(size, generator=draw, dtype=torch.float64)
    each = truth + deviation * torch.randn(20_000, samples, size, generator=draw, dtype=torch.float64)
    whole, part = each.mean(1).square().sum(1).tolist(), each[:, : samples // times].mean(1).square().sum(1).tolist()
    lines = [estimate(one, other, samples, times) for one, other in zip(whole, part, strict=True)]
    signal, variance = truth.square().sum().item(), size * deviation**2
    assert sum(line["squared_norm"] for line in lines) / len(lines) == pytest.approx(signal, rel=0.02)
    assert sum(line["variance"] for line in lines) / len(lines) == pytest.approx(variance, rel=0.02)
    assert noise_scale(lines) == pytest.approx(variance / signal, rel=0.05)  # type: ignore[arg-type]


def test_no_signal_is_no_number_and_no_noise_is_none():
    noise = [{"squared_norm": value, "variance": 4.0, "samples": 8} for value in (-3.0, -3.1, -2.9, -3.0)]
    assert noise_scale(noise) == float("inf")
    assert noise_scale([{**line, "variance": -1.0} for line in noise]) == 0.0


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(("precision", "exact"), [("fp32", 1e-4), ("fp16", 0.05)])
def test_a_step_in_parts_shows_the_noise_of_its_gradient(tmp_path, parts, precision, exact):
    config = small_config(accumulation=parts, clip_norm=1e-3, precision=precision)
    trainer = make_trainer(tmp_path, objective=still(), config=config)
    batch = trainer.stream.next()
    whole, part = by_hand(trainer.objective, batch, parts)
    found = trainer.update(batch, CLOCK).noise
    assert found is not None
    expected = estimate(whole**2, part**2, 8, parts)
    assert found["samples"] == 8
    for name in ("squared_norm", "variance"):
        assert found[name] == pytest.approx(expected[name], rel=exact), name
    assert trainer.update(batch, Clock(1, 30)).noise is None  # not logged


def test_one_gradient_shows_nothing_and_nothing_is_made_up(tmp_path):
    make_trainer(tmp_path, config=small_config(steps=4)).fit()
    assert not any("noise" in line for line in log_lines(tmp_path))
    trainer = make_trainer(tmp_path / "bad", objective=still(), config=small_config(accumulation=2))
    assert trainer.update(ToyStream(poison={0: float("nan")}).next(), CLOCK).noise is None
