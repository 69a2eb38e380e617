"""A step that is not finite leaves no trace."""

import math

import pytest
import torch
from torch import nn

from deftly.training.guard import Guard, TrainingError, listed


def test_only_finite_steps_are_accepted_and_the_rest_is_counted():
    guard = Guard(nn.Linear(1, 1), limit=3)
    judged = [guard.accepts(loss, norm) for loss, norm in ((1.0, 1.0), (math.nan, 1.0), (1.0, math.inf), (0.0, 0.0), (-math.inf, 1.0))]
    assert judged == [True, False, False, True, False]
    assert (guard.skipped, guard.in_a_row) == (3, 1)
    again = Guard(nn.Linear(1, 1), limit=3)
    again.load_state(guard.state())
    assert again.state() == guard.state()
    assert {name: guard.state()[name] for name in ("skipped", "in_a_row", "window")} == {"skipped": 3, "in_a_row": 1, "window": [1.0, 0.0]}


def test_buffers_that_a_bad_forward_pass_changed_are_put_back():
    norm = nn.BatchNorm1d(2)
    guard = Guard(norm, limit=3)
    guard.remember()
    norm(torch.full((4, 2), torch.nan))
    assert torch.isnan(norm.running_mean).any()
    assert not guard.accepts(math.nan, math.nan)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert norm.num_batches_tracked.item() == 0


def test_past_the_limit_the_error_names_step_numbers_and_episodes():
    guard = Guard(nn.Linear(1, 1), limit=2)
    report = {"flow": math.nan, "loss": math.nan, "gradient_norm": 2.0}
    guard.accepts(math.nan, 2.0)
    guard.require_hope(7, report, torch.tensor([3]))
    guard.accepts(math.nan, 2.0)
    with pytest.raises(TrainingError, match=r"step 8: 2 steps in a row.*flow nan, loss nan\).*episodes 3, 5;") as caught:
        guard.require_hope(8, report, torch.tensor([5, 3, 5]))
    assert "\n" not in str(caught.value)


def test_long_lists_are_cut():
    assert listed(torch.arange(20), most=3) == "0, 1, 2 and 17 more"
