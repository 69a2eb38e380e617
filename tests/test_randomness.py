"""Counted randomness: known answers of Philox, bijections, moments, and independence of everything but the counter."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import randomness
from deftly.randomness import bits, generator, integers, normal, permute, sample_keys, seed_global, seed_of, stream_id, uniform

KEYS = torch.arange(2000, dtype=torch.int64) * 7919 + 3
WORD = (1 << 32) - 1


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # the known-answer vectors of the paper's reference implementation
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]):
    words = randomness._philox(*(tuple(torch.tensor([word]) for word in part) for part in (counter, key)))  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == answer


@settings(max_examples=40)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_permute_is_a_bijection(size: int, seed: int, epoch: int):
    order = permute(torch.arange(size), size, seed, epoch)
    assert torch.equal(order.sort().values, torch.arange(size))


@settings(max_examples=30)
@given(size=st.integers(1, 2000), seed=st.integers(0, 99), data=st.data())
def test_permute_of_a_part_is_the_part_of_permute(size: int, seed: int, data: st.DataObject):
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5)))
    assert torch.equal(permute(chosen, size, seed, 0), permute(torch.arange(size), size, seed, 0)[chosen])


def test_every_epoch_and_seed_has_its_own_order():
    orders = {tuple(permute(torch.arange(50), 50, seed, epoch).tolist()) for seed in range(3) for epoch in range(8)}
    assert len(orders) == 24


def test_permute_does_not_change_its_argument():
    index = torch.arange(10)
    permute(index, 10, 1, 2)
    assert torch.equal(index, torch.arange(10))


def test_permute_leaves_no_neighbours_together():
    order = permute(torch.arange(10_000), 10_000, 0, 0)
    assert ((order.diff().abs() == 1).float().mean()) < 0.001
    assert abs(torch.corrcoef(torch.stack([order.float(), torch.arange(10_000.0)]))[0, 1]) < 0.04


def test_uniform_moments_and_range():
    draws = uniform(KEYS, "test", (50,))
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / draws.numel()) ** 0.5
    assert abs(draws.var() - 1 / 12) < 0.001


def test_normal_moments_and_tails():
    draws = normal(KEYS, "test", (51,))  # an odd count: the last pair is cut
    count = draws.numel()
    assert draws.shape == (2000, 51)
    assert torch.isfinite(draws).all()
    assert abs(draws.mean()) < 4 / count**0.5
    assert abs(draws.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((draws.abs() > 1.959964).float().mean() - 0.05) < 0.003
    assert abs((draws**4).mean() - 3) < 0.15


def test_columns_and_samples_are_uncorrelated():
    draws = normal(KEYS, "test", (8,))
    correlation = torch.corrcoef(draws.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / len(KEYS) ** 0.5
    assert abs((draws[:-1] * draws[1:]).mean()) < 0.04


@given(low=st.integers(-100, 100), size=st.integers(1, 2**31 - 1))
def test_integers_stay_in_their_range(low: int, size: int):
    draws = integers(KEYS[:64], "test", low, low + size, (3,))
    assert draws.min() >= low
    assert draws.max() < low + size


def test_integers_reach_every_value_evenly():
    counts = torch.bincount(integers(KEYS, "test", 0, 10, (10,)).flatten(), minlength=10)
    assert (counts - 2000).abs().max() < 5 * 1800**0.5


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_draw_depends_on_its_own_key_stream_and_step_only(draw):
    whole = draw(KEYS[:20], "a", (4,))
    assert torch.equal(draw(KEYS[5:7], "a", (4,)), whole[5:7]), "not on its neighbours in the batch"
    assert torch.equal(draw(KEYS[:20].flip(0), "a", (4,)), whole.flip(0))
    assert torch.equal(draw(KEYS[:20], "a", (2, 2)), whole.reshape(-1, 2, 2))
    assert not torch.equal(draw(KEYS[:20], "b", (4,)), whole)
    assert not torch.equal(draw(KEYS[:20], "a", (4,), step=1), whole)
    assert draw(KEYS[:3], "a").shape == (3,)


def test_bits_of_a_shorter_draw_are_a_prefix():
    assert torch.equal(bits(KEYS[:3], "a", 9)[:, :5], bits(KEYS[:3], "a", 5))
    assert bits(KEYS, "a", 4).max() <= WORD


def test_keys_use_all_their_bits():
    high = KEYS[:4] + (1 << 40)
    assert not torch.equal(uniform(high, "a"), uniform(KEYS[:4], "a"))


@given(seed=st.integers(0, 2**62), epoch=st.integers(0, 2**40))
def test_sample_keys_are_distinct_and_not_negative(seed: int, epoch: int):
    keys = sample_keys(seed, torch.full((100,), epoch), torch.arange(100))
    assert len(keys.unique()) == 100
    assert keys.min() >= 0
    assert not torch.equal(keys, sample_keys(seed, torch.full((100,), epoch + 1), torch.arange(100)))
    assert not torch.equal(keys, sample_keys(seed + 1, torch.full((100,), epoch), torch.arange(100)))


def test_seeds_and_streams_are_stable_and_apart():
    assert seed_of("train", 1, 2) == 3619383188510075059, "a release that changes it orphans every recorded seed"
    assert len({seed_of("a"), seed_of("a", 0), seed_of("a", 0, 0), seed_of("a", 1, 11), seed_of("a", 11, 1), seed_of("b", 0)}) == 6
    assert 0 <= stream_id("noise") < 2**63
    assert stream_id("noise") != stream_id("noise ")


def test_a_generator_belongs_to_its_name():
    draws = generator("scene", 3).random(4)
    assert np.array_equal(draws, generator("scene", 3).random(4))
    assert not np.array_equal(draws, generator("scene", 4).random(4))


def test_seed_global_covers_every_global_generator():
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    seed_global("dropout", 5)
    first = draw()
    draw()
    seed_global("dropout", 5)
    assert draw() == first
    seed_global("dropout", 6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
