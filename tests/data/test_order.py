import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.data.order import CHUNK, DRAWN_AT_ONCE, Ahead, BlockOrder, Order
from deftly.data.windows import Selection


def blocks(lengths, block, piece, seed=1, episodes=None) -> BlockOrder:
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return BlockOrder(Selection(start, np.arange(len(lengths)) if episodes is None else episodes), seed, block, piece)


def test_the_order_crosses_chunks_and_epochs():
    size = CHUNK + 700
    order = Order(size, seed=1)
    index, key = order.take(size - 10, 2 * size)
    again = [Order(size, seed=1).take(start, 1) for start in range(size - 10, size + 10)]
    assert index[:20].tolist() == [int(one[0]) for one, _ in again]
    assert key[:20].tolist() == [int(one[0]) for _, one in again]
    assert sorted(index[10 : 10 + size].tolist()) == list(range(size))
    assert len(set(key.tolist())) == len(key)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    st.integers(1, 60),
    st.integers(1, 16),
    st.integers(0, 3),
    st.integers(1, 50),
)
def test_every_window_comes_once_per_epoch_however_it_is_cut(lengths, block, piece, seed, step):
    order = blocks(lengths, block, piece, seed)
    size = sum(lengths)
    windows, keys = [], []
    for start in range(0, 3 * size, step):
        index, key = order.take(start, min(step, 3 * size - start))
        windows += index.tolist()
        keys += key.tolist()
    for epoch in range(3):
        assert sorted(windows[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert len(set(keys)) == 3 * size
    other = Order(size, seed).take(0, 3 * size)[1]
    assert keys == other.tolist(), "a sample's key does not depend on the kind of order"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any), st.integers(1, 60), st.integers(1, 16))
def test_pieces_are_stretches_of_episodes_and_blocks_are_bounded(lengths, block, piece):
    order = blocks(lengths, block, piece)
    pieces = order.pieces(0)
    size = np.diff(pieces.begin)
    assert (size > 0).all()
    assert size.max() <= min(piece, block)
    assert pieces.begin[-1] == sum(lengths)
    ends = np.cumsum(lengths)
    for first, count in zip(pieces.first, size, strict=True):
        episode = np.searchsorted(ends, first, side="right")
        assert first + count <= ends[episode], "a piece never leaves its episode"
    assert len(pieces.block) == order.num_blocks + 1
    windows = np.diff(pieces.begin[pieces.block])
    assert (windows > 0).all()
    assert windows.max() <= sum(lengths) / order.num_blocks + min(piece, block)
    for begin, end in zip(pieces.block[:-1], pieces.block[1:], strict=True):
        assert (np.diff(pieces.first[begin:end]) > 0).all(), "forward through the files"


def test_parts_name_the_piece_that_holds_each_window():
    order = blocks([50, 30, 70], 40, 8)
    for part in order.parts(100, 120):
        pieces = order.pieces(part.epoch)
        offset = part.window - pieces.first[part.piece]
        assert ((offset >= 0) & (offset < np.diff(pieces.begin)[part.piece])).all()
        assert ((part.piece >= pieces.block[part.block]) & (part.piece < pieces.block[part.block + 1])).all()


def test_seeds_and_epochs_differ_and_the_episodes_chosen_are_the_ones_shown():
    one, two = blocks([40] * 5, 50, 8, seed=1), blocks([40] * 5, 50, 8, seed=2)
    first, second = one.take(0, 200)[0], one.take(200, 200)[0]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, two.take(0, 200)[0])
    some = blocks([40] * 5, 50, 8, episodes=np.array([4, 1]))
    rows = some.selection.rows(some.take(0, 80)[0])
    assert sorted(rows.tolist()) == [*range(40, 80), *range(160, 200)]


def test_how_good_the_block_shuffle_is():
    """200 episodes of 100 windows in blocks of 2048: a batch of 64 is nearly as mixed as under a full shuffle."""
    order, size = blocks([100] * 200, 2048, 32, seed=3), 20_000
    windows = order.take(0, size)[0]
    travelled = np.abs(windows - np.arange(size)).mean()
    assert travelled == pytest.approx(size / 3, rel=0.05), "as far from home as in a full shuffle"
    batches = (windows[: size // 64 * 64] // 100).reshape(-1, 64)
    episodes = np.mean([len(set(batch)) for batch in batches])
    full = np.mean([len(set(batch)) for batch in (Order(size, 3).take(0, size)[0][: size // 64 * 64] // 100).reshape(-1, 64)])
    assert full == pytest.approx(54.9, abs=0.7)
    assert episodes > 0.7 * full


def test_what_is_held_does_not_grow_with_the_windows():
    order = blocks([10**5] * 100, 2**17, 2**13)
    order.take(5 * 10**6, 10)
    held = sum(array.nbytes for array in (*order.pieces(0), order._piece_end))
    assert held < 32 * order.num_pieces
    assert order.num_pieces == 1300
    counts = collections.Counter(order.parts(0, 2**17)[0].piece.tolist())
    assert max(counts.values()) <= 2**13
    assert torch.equal(order.take(0, 5)[1], Order(10**7, 1).take(0, 5)[1])


def test_drawing_ahead_changes_no_draw():
    order, calls = Order(100, 3), []

    def draw(key):
        calls.append(len(key))
        return key * 2

    ahead = Ahead(order, draw, lambda drawn, part: drawn[part])
    for start in (0, 7, 500, 510, 3):
        assert torch.equal(ahead.take(start, 7), order.take(start, 7)[1] * 2)
    assert calls == [DRAWN_AT_ONCE] * 3, "not for every batch"
    assert torch.equal(ahead.take(0, 2 * DRAWN_AT_ONCE), order.take(0, 2 * DRAWN_AT_ONCE)[1] * 2)
