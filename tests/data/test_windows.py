import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deftly.contract import Window
from deftly.data.windows import episode_of, rows_of, window_rows


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 5))
def test_windows_equal_a_reading_frame_by_frame(lengths, frames, chunk):
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = rows_of(start, np.arange(len(lengths)))
    assert rows.tolist() == list(range(sum(lengths)))
    episode = episode_of(start, rows)
    found = window_rows(rows, start[episode], start[episode + 1], Window(frames=frames, chunk=chunk))
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


def test_rows_of_some_episodes():
    start = np.array([0, 3, 3, 5])
    assert rows_of(start, np.array([2, 0])).tolist() == [3, 4, 0, 1, 2]
    assert rows_of(start, np.array([], np.int64)).tolist() == []
    assert episode_of(start, np.array([0, 2, 3, 4])).tolist() == [0, 0, 2, 2]
