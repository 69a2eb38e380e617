import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly.contract import Window
from deftly.data.windows import Selection, locate


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 5))
def test_windows_equal_a_reading_frame_by_frame(lengths, frames, chunk):
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(sum(lengths))
    episode, found = locate(start, rows, Window(frames=frames, chunk=chunk))
    for i, now in enumerate(rows.tolist()):
        first, end = start[episode[i]], start[episode[i] + 1]
        assert first <= now < end
        for j in range(frames):
            wanted = now - (frames - 1) + j
            assert found.observation_is_pad[i, j] == (wanted < first)
            assert found.observation[i, j] == max(wanted, first)
            assert found.past_action_is_pad[i, j] == (wanted - 1 < first)
            assert found.past_action[i, j] == max(wanted - 1, first)
        for j in range(chunk):
            assert found.action_is_pad[i, j] == (now + j >= end)
            assert found.action[i, j] == min(now + j, end - 1)
        for part in (found.observation, found.past_action, found.action):
            assert ((part[i] >= first) & (part[i] < end)).all(), "a window never leaves its episode"


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.randoms(use_true_random=False), st.integers(1, 12))
def test_a_selection_numbers_the_rows_of_its_episodes(lengths, draw, at_most):
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    episodes = np.asarray(draw.sample(range(len(lengths)), draw.randint(0, len(lengths))), np.int64)
    rows = [row for episode in episodes for row in range(start[episode], start[episode + 1])]
    whole = Selection(start, episodes)
    assert len(whole) == len(rows)
    assert whole.rows(np.arange(len(rows))).tolist() == rows
    assert whole.rows(np.arange(len(rows))[::-1]).tolist() == rows[::-1]
    thin = Selection(start, episodes, at_most=at_most)
    assert len(thin) == min(at_most, len(rows))
    some = thin.rows(np.arange(len(thin))).tolist()
    assert some == [rows[i * len(rows) // len(thin)] for i in range(len(thin))]
    assert len(set(some)) == len(thin)


def test_a_window_that_a_selection_does_not_have_is_an_error():
    selection = Selection(np.array([0, 3, 3, 5]), np.array([2, 0]))
    assert selection.rows(np.array([0, 1, 2, 4])).tolist() == [3, 4, 0, 2]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            selection.rows(np.array([0, index]))
    assert selection.rows(np.zeros(0, np.int64)).tolist() == []


def test_a_selection_holds_nothing_per_frame():
    start = np.arange(0, 10**9 + 1, 10**6)
    selection = Selection(start, np.arange(1000))
    assert len(selection) == 10**9
    held = sum(value.nbytes for value in vars(selection).values() if isinstance(value, np.ndarray))
    assert held <= 24 * 1000
    assert selection.rows(np.array([0, 123456789, 10**9 - 1])).tolist() == [0, 123456789, 10**9 - 1]
