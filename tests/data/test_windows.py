import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftly.contract import Camera, Mirror, Window
from deftly.data.augment import OFF
from deftly.data.mirror import draw_mirrored, mirror_action, mirror_state
from deftly.data.windows import Selection, Windows, locate
from small_data import FakeDataset, build_windows, robot


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


# Samples ---------------------------------------------------------------------------------------------------------------------------------

TWO_ARMS = robot().replace(
    cameras=(Camera(name="left", height=16, width=16), Camera(name="right", height=16, width=16)),
    mirror=Mirror(
        state_order=(1, 0, 2, 3, 4),
        state_sign=(1, 1, -1, 1, 1),
        action_order=(0, 2, 1, 3),
        action_sign=(-1, 1, 1, 1),
        cameras={"left": "right", "right": "left"},
    ),
)
STILL = OFF.replace(mirror=0.5)


def two_arms(tmp_path, **more) -> Windows:
    dataset = FakeDataset(embodiment=TWO_ARMS, cameras=("left", "right"), tasks=("put the cup to the left of the bowl", "lift it"))
    return build_windows(dataset, tmp_path, **more)


def test_a_mirrored_sample_is_mirrored_in_every_part(tmp_path):
    windows = two_arms(tmp_path)
    rows, key = np.arange(21), torch.arange(21)
    plain, half = (windows.build(rows, key, windows.frames.read(rows, key, config), config) for config in (OFF, STILL))
    mirrored = draw_mirrored(key, 0.5)
    assert 0 < mirrored.sum() < 21
    raw = {name: windows.encoder.state.unnormalize(batch.state.numpy()) for name, batch in (("plain", plain), ("half", half))}
    acts = {name: windows.encoder.action.unnormalize(batch.actions.numpy()) for name, batch in (("plain", plain), ("half", half))}
    assert TWO_ARMS.mirror is not None
    assert np.allclose(raw["half"][mirrored], mirror_state(raw["plain"][mirrored], TWO_ARMS.mirror), atol=1e-5)
    assert np.allclose(acts["half"][mirrored], mirror_action(acts["plain"][mirrored], TWO_ARMS.mirror), atol=1e-5)
    for i in range(21):
        if mirrored[i]:
            assert torch.equal(half.images["left"][i], plain.images["right"][i].flip(-1))
            assert torch.equal(half.images["right"][i], plain.images["left"][i].flip(-1))
            assert torch.equal(half.text.ids[i], plain.text.ids[i]) == (plain.task[i] == 1), "only the first task names a side"
        else:
            for name in ("left", "right"):
                assert torch.equal(half.images[name][i], plain.images[name][i])
            assert torch.equal(half.state[i], plain.state[i])
            assert torch.equal(half.past_actions[i], plain.past_actions[i])
            assert torch.equal(half.text.ids[i], plain.text.ids[i])


@pytest.mark.parametrize("stored", [None, 20])
def test_unaugmented_images_are_those_that_the_agent_would_make(tmp_path, stored):
    dataset = FakeDataset()
    windows = build_windows(dataset, tmp_path, Window(frames=1, chunk=2), stored=stored)
    rows, key = np.arange(21), torch.arange(21)
    images = windows.frames.read(rows, key, OFF)
    for row in rows:
        episode = int(np.searchsorted(dataset.episode_start, row, side="right")) - 1
        shot = {name: dataset.frames(episode, name, np.array([row - dataset.episode_start[episode]]))[0] for name in dataset.cameras}
        seen = windows.encoder.images({"images": shot, "state": dataset.state[row], "instruction": ""})
        for name in dataset.cameras:
            assert np.array_equal(images[name][row, 0].numpy(), seen[name])
