"""The types in flight: what `map`, `split` and masks promise."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from batches import random_batch
from deftly.types import DataError, Mean, Term, Tokens, UsageError


def test_map_reaches_every_tensor():
    batch = random_batch(3)
    batch.labels["done"] = torch.zeros(3)
    batch.depth["head"] = torch.zeros(3, 2, 1, 4, 4)
    seen = []
    batch.map(lambda tensor: seen.append(tensor.data_ptr()) or tensor)
    assert {batch.text.ids.data_ptr(), batch.images["wrist"].data_ptr(), batch.labels["done"].data_ptr()} <= set(seen)
    tensors = sum(len(value) if isinstance(value := getattr(batch, item.name), dict) else 1 for item in fields(batch))
    assert len(seen) == tensors + 1, "ids and is_pad of the text are two"


def test_map_keeps_what_is_absent():
    acting = replace(random_batch(2), actions=None, action_is_pad=None)
    assert acting.to("cpu").actions is None
    with pytest.raises(ValueError, match="made for acting"):
        acting.valid_actions()


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_split_is_a_partition_in_order(parts: int):
    batch = random_batch(6)
    pieces = batch.split(parts)
    assert [len(piece) for piece in pieces] == [6 // parts] * parts
    assert torch.equal(torch.cat([piece.key for piece in pieces]), batch.key)
    assert torch.equal(torch.cat([piece.images["head"] for piece in pieces]), batch.images["head"])
    assert torch.equal(torch.cat([piece.text.ids for piece in pieces]), batch.text.ids)


def test_split_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="6 does not divide into 4"):
        random_batch(6).split(4)


def test_valid_actions_is_the_weight_where_nothing_is_padding():
    batch = random_batch(2)
    assert batch.action_is_pad is not None
    batch.action_is_pad[0, 3:] = True
    batch.action_dim_is_pad[:, 1] = True
    batch.weight[1] = 0.5
    valid = batch.valid_actions()
    assert valid.shape == (2, 6, 3)
    assert not valid[0, 3:].any()
    assert not valid[:, :, 1].any()
    assert (valid[0, :3, [0, 2]] == 1).all()
    assert (valid[1, :, [0, 2]] == 0.5).all()


def test_means_add_up_before_they_are_divided():
    assert (Mean(6, 3) + Mean(2, 1)).value == 2
    assert Mean(1, 2).__add__(3) is NotImplemented
    assert math.isnan(Mean(0, 0).value)


def test_a_term_counts_fully_unless_it_says_otherwise():
    assert Term(torch.tensor(1.0)).weight == 1


def test_tokens_travel_with_their_mask():
    tokens = Tokens(ids=torch.ones(1, 2, dtype=torch.int64), is_pad=torch.zeros(1, 2, dtype=torch.bool))
    assert tokens.ids.shape == tokens.is_pad.shape


def test_exit_codes():
    assert (UsageError.exit_code, DataError.exit_code) == (2, 65)
    assert issubclass(DataError, UsageError)
