"""Signatures are enforced while tests run: without this one nobody would notice that they are not."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from batches import build_policy, random_batch
from deftly.models.policy import PolicyConfig
from deftly.randomness import uniform


def test_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError, match="uniform"):
        uniform(torch.zeros(2, 2, dtype=torch.int64), "test")


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError):
        uniform(torch.zeros(2), "test")


def test_letters_must_agree_between_arguments():
    policy, batch = build_policy(PolicyConfig(width=16)), random_batch(4)
    features = policy.encode(batch)
    with pytest.raises(TypeCheckError):
        policy.head.loss(features.pooled[0], batch, None)
