"""What a policy's statistics are measured over: whole episodes in blocks, relative actions as the policy sees them, once per content."""

import json

import numpy as np
import pytest

from deftly.contract import Mirror, RelativeActions, Window
from deftly.data import measure as module
from deftly.data.actions import features, past_to_relative, to_relative
from deftly.data.measure import Part, blocks, cached_statistics, check_numbers, measure, mirrored
from deftly.data.mirror import mirror_action, mirror_state
from deftly.types import DataError
from guards import guards
from small_data import FakeDataset, everything

RELATIVE = RelativeActions(kind="relative", state_of=(0, 2, None, 1))
DELTA = RELATIVE.replace(kind="delta")
WINDOW = Window(frames=2, chunk=3)


def part(dataset: FakeDataset, episodes: list[int]) -> Part:
    return everything(dataset)._replace(episodes=np.array(episodes, np.int64))


def test_blocks_are_the_rows_of_the_episodes_in_order():
    dataset = FakeDataset(lengths=(7, 5, 0, 9, 3))
    for episodes in ([0, 1, 2, 3, 4], [1], [0, 3], [4, 0], [2], []):
        wanted = [row for e in episodes for row in range(*dataset.episode_start[[e, e + 1]])]
        for size in (1, 4, 100):
            found = list(blocks(part(dataset, episodes), size))
            assert [row for rows in found for row in range(rows.start, rows.stop)] == wanted
            assert all(0 <= rows.stop - rows.start <= size for rows in found)


def test_state_and_action_are_those_of_the_selected_episodes():
    dataset = FakeDataset()
    found = measure([part(dataset, [0, 2])])
    rows = np.r_[0:7, 12:21]
    assert set(found) == {"observation.state", "action"}
    assert np.allclose(found["action"]["q99"], np.quantile(dataset.action[rows].astype(np.float64), 0.99, axis=0), rtol=1e-12)
    assert found["action"]["count"] == [16.0]


def test_several_datasets_of_a_robot_are_measured_as_one():
    one, two = FakeDataset(), FakeDataset(lengths=(4, 6))
    both = FakeDataset(lengths=(*one.lengths, *two.lengths))
    both.state, both.action = np.concatenate([one.state, two.state]), np.concatenate([one.action, two.action])
    assert measure([everything(one), everything(two)], RELATIVE, WINDOW) == measure([everything(both)], RELATIVE, WINDOW)
    assert measure([everything(two), everything(one)], DELTA, WINDOW) == measure([everything(both)], DELTA, WINDOW)


MIRROR = Mirror(
    state_order=(1, 0, 2, 3, 4),
    state_sign=(-1, -1, 1, 1, -1),
    action_order=(1, 0, 2, 3),
    action_sign=(1, 1, -1, 1),
    cameras={"head": "head"},
)


def test_mirrored_samples_are_measured_as_they_will_be_shown():
    dataset = FakeDataset()
    dataset.state[:, 1] *= 1e-3  # the other arm rests
    twin = FakeDataset()
    twin.state, twin.action = mirror_state(dataset.state, MIRROR), mirror_action(dataset.action, MIRROR)
    both = [part(dataset, [0, 2]), mirrored(part(dataset, [0, 2]), MIRROR)]
    assert measure(both) == measure([part(dataset, [0, 2]), part(twin, [0, 2])])
    assert measure(both, DELTA, WINDOW) == measure([part(dataset, [0, 2]), part(twin, [0, 2])], DELTA, WINDOW)
    std = measure(both)["observation.state"]["std"]
    assert std[0] == pytest.approx(std[1]), "both arms are scaled alike"
    assert std[1] > 100 * measure(both[:1])["observation.state"]["std"][1], "and the resting one as far as it moves in the mirror"


def test_mirrored_statistics_are_kept_apart(tmp_path):
    whole = everything(FakeDataset())
    plain = cached_statistics([whole], tmp_path)
    assert cached_statistics([whole, mirrored(whole, MIRROR)], tmp_path) != plain
    assert cached_statistics([whole], tmp_path) == plain


@pytest.mark.parametrize("relative", [RELATIVE, DELTA], ids=["relative", "delta"])
@pytest.mark.parametrize("block", [5, 1 << 16])
def test_relative_actions_are_measured_over_the_chunk_without_padding(monkeypatch, relative, block):
    monkeypatch.setattr(module, "BLOCK", block)
    dataset = FakeDataset()
    actions, past = [], []
    for episode in (0, 2):
        start, end = (int(row) for row in dataset.episode_start[[episode, episode + 1]])
        for now in range(start, end):
            actions.append(to_relative(dataset.action[now : min(now + 3, end)], dataset.state[now], relative))
            if now > start:
                past.append(past_to_relative(dataset.action[max(now - 2, start) : now], dataset.state[now], relative))
    found = measure([part(dataset, [0, 2])], relative, WINDOW)
    for name, values in zip(features(relative, WINDOW), (actions, past), strict=True):
        wanted = np.concatenate(values).astype(np.float32).astype(np.float64)
        assert found[name]["count"] == [len(wanted)]
        assert np.allclose(found[name]["q01"], np.quantile(wanted, 0.01, axis=0), rtol=1e-12)
        assert np.allclose(found[name]["std"], wanted.std(0), rtol=1e-12)
    assert found["action"] == measure([part(dataset, [0, 2])])["action"], "the absolute actions are there too"


def test_statistics_are_measured_once_per_content(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "measure", lambda *values: calls.append(values) or measure(*values))
    dataset = FakeDataset()
    whole = everything(dataset)
    first = cached_statistics([whole], tmp_path)
    assert cached_statistics([whole], tmp_path) == first == measure([whole])
    assert len(calls) == 1
    for other in (whole._replace(episodes=np.array([0, 1])), whole._replace(dataset_hash="other")):
        cached_statistics([other], tmp_path)
    cached_statistics([whole], tmp_path, RELATIVE, WINDOW)
    cached_statistics([whole], tmp_path, RELATIVE, Window(frames=2, chunk=4))
    assert len(calls) == 5
    cached_statistics([whole], tmp_path, RELATIVE, WINDOW)
    assert len(calls) == 5


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"statistics": {"action": {"min": [0.0]}}, "sha256": "x"}', '{"statistics": 3, "sha256": ""}']
)
def test_a_broken_cache_is_measured_again(tmp_path, damage):
    whole = everything(FakeDataset())
    first = cached_statistics([whole], tmp_path)
    (path,) = (tmp_path / "statistics").iterdir()
    path.write_text(damage)
    assert cached_statistics([whole], tmp_path) == first
    assert json.loads(path.read_text())["statistics"] == first


@guards("data.measure.finite")
def test_a_value_that_is_not_finite_is_named(tmp_path):
    dataset = FakeDataset()
    dataset.action[9, 1] = np.nan  # episode 1 starts at row 7
    with pytest.raises(DataError, match="episode 1, frame 2: action 'target_1' is nan"):
        check_numbers(tmp_path, dataset.embodiment, everything(dataset))
    check_numbers(tmp_path, dataset.embodiment, part(dataset, [0, 2]))
