"""Every schedule is its closed form, warms up above zero, and never rises again after the end."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftly.training.config import TrainingConfig
from deftly.training.groups import Group
from deftly.training.schedule import ConstantConfig, WarmRestartsConfig, WarmupCosineConfig, WSDConfig
from guards import guards


@pytest.mark.parametrize(("total", "warmup", "floor"), [(100, 0.1, 0.05), (7, 0.0, 0.0), (10, 0.5, 1.0), (1, 0.0, 0.1), (2, 0.9, 0.1)])
def test_schedule_is_its_closed_form(total, warmup, floor):
    schedule = WarmupCosineConfig(warmup_fraction=warmup, floor_fraction=floor)
    factors = [schedule.factor(step, total) for step in range(total + 3)]
    first = round(warmup * total)
    for step, factor in enumerate(factors[:total]):
        if step < first:
            assert factor == (step + 1) / (first + 1)
        else:
            progress = min(1.0, (step - first) / max(1, total - 1 - first))
            assert factor == pytest.approx(floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    assert factors[0] > 0
    assert max(factors[:total]) == factors[min(first, total - 1)]
    assert all(factor == pytest.approx(floor) for factor in factors[max(total, first + 2) :])  # it never rises again after the end


def test_schedule_warms_up_to_exactly_one_then_falls_to_the_floor():
    schedule = WarmupCosineConfig(warmup_fraction=0.25, floor_fraction=0.1)
    factors = [schedule.factor(step, 40) for step in range(40)]
    assert factors[10] == 1.0
    assert factors[39] == pytest.approx(0.1)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)


SCHEDULES = [WarmupCosineConfig(), ConstantConfig(), WSDConfig(), WarmRestartsConfig(), WarmRestartsConfig(cycles=7, growth=2.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
@given(total=st.integers(1, 400), warmup=st.sampled_from([0.0, 0.05, 0.5, 0.99]))
def test_every_schedule_stays_within_its_bounds_and_ends_at_its_floor(schedule, total, warmup):
    schedule = schedule.replace(warmup_fraction=warmup)
    factors = [schedule.factor(step, total) for step in range(total + 5)]
    assert all(0 < factor <= 1 for factor in factors)
    first = round(warmup * total)
    assert len(set(factors[max(total, first + 2) :])) <= 1  # nothing rises after the end
    assert factors[:first] == [(step + 1) / (first + 1) for step in range(first)]
    if first < total:
        assert factors[first] == 1.0 or total - first <= getattr(schedule, "cycles", 0)
    if total - first > 1 and schedule.kind in ("warmup_cosine", "wsd"):
        assert factors[total - 1] == pytest.approx(schedule.floor_fraction)
        assert factors[first:total] == sorted(factors[first:total], reverse=True)


def test_wsd_is_flat_and_then_falls_as_one_minus_a_square_root():
    schedule = WSDConfig(warmup_fraction=0.1, decay_fraction=0.25, floor_fraction=0.2)
    factors = [schedule.factor(step, 1000) for step in range(1000)]
    assert factors[100:775] == [1.0] * 675  # 900 steps after the warm-up, a quarter of them falls: 225
    assert factors[775:] == pytest.approx([0.2 + 0.8 * (1 - math.sqrt(i / 225)) for i in range(1, 226)])


@pytest.mark.parametrize(("cycles", "growth", "length"), [(4, 1, 25), (3, 2, 20), (1, 1, 30)])
def test_warm_restarts_are_torchs_cosine_over_and_over(cycles, growth, length):
    """Each cycle is torch's cosine whose last step is the floor. (Its own warm restarts end one step before the floor.)"""
    total = sum(length * growth**cycle for cycle in range(cycles))
    schedule = WarmRestartsConfig(warmup_fraction=0.0, cycles=cycles, growth=growth, floor_fraction=0.1)
    mine = [schedule.factor(step, total) for step in range(total)]
    begin = 0
    for cycle in range(cycles):
        steps = length * growth**cycle
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - 1, eta_min=0.1)
        expected = []
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert mine[begin : begin + steps] == pytest.approx(expected)
        begin += steps


def test_a_schedule_is_read_back_as_what_it_was():
    for schedule in SCHEDULES:
        config = TrainingConfig(schedule=schedule)
        assert TrainingConfig.parse(config.to_dict(), where="test") == config


@guards("training.schedule.cycles")
def test_more_cycles_than_fit_are_refused():
    for cycles, growth, fits in ((5, 1.0, True), (6, 1.0, False), (2, 4.0, True), (2, 10.0, False), (100, 10.0, False)):
        schedule = WarmRestartsConfig(warmup_fraction=0.0, cycles=cycles, growth=growth)
        if fits:
            factors = [schedule.factor(step, 10) for step in range(10)]
            assert TrainingConfig(steps=10, schedule=schedule).schedule == schedule
            assert factors[-1] == pytest.approx(schedule.floor_fraction)
            assert factors.count(1.0) == cycles
            continue
        with pytest.raises(ValueError, match=f"{cycles} cycles in 10 steps"):
            TrainingConfig(steps=10, schedule=schedule)
    with pytest.raises(ValueError, match="4 cycles in 5 steps"):
        TrainingConfig(steps=10, groups=(Group(parameters=".*", start_fraction=0.5, schedule=WarmRestartsConfig()),))
    with pytest.raises(ValueError, match="4 cycles in 5 steps"):
        TrainingConfig(steps=10, schedule=WarmRestartsConfig(), groups=(Group(parameters=".*", start_fraction=0.5),))
