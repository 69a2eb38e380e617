import numpy as np
import pytest

from deftly.data.split import check_split, fold_episodes, shuffled_scenes, split_episodes
from deftly.types import DataError, UsageError
from small_data import FakeDataset


def dataset(episodes: int, scenes: list | None = None) -> FakeDataset:
    return FakeDataset(lengths=(2,) * episodes, scenes=scenes or [])


def test_every_episode_is_on_exactly_one_side():
    training, validation = split_episodes(dataset(40), 0.1, seed=0)
    assert len(validation) == 4
    assert sorted([*training, *validation]) == list(range(40))
    assert np.array_equal(training, np.sort(training))


def test_the_split_is_a_function_of_the_seed():
    same = [split_episodes(dataset(40), 0.1, seed=3)[1].tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert split_episodes(dataset(40), 0.1, seed=4)[1].tolist() != same[0]


def test_a_scene_is_never_on_both_sides():
    scenes = [i // 4 if i < 36 else None for i in range(40)]
    data = dataset(40, scenes)
    training, validation = split_episodes(data, 0.2, seed=1)
    assert len(validation) >= 8
    known = {scenes[i] for i in training} - {None}
    assert not known & {scenes[i] for i in validation}
    check_split(data, training, validation)


def test_there_is_always_something_to_train_on_and_nothing_held_out_on_request():
    training, validation = split_episodes(dataset(3), 0.99, seed=0)
    assert (len(training), len(validation)) == (1, 2)
    assert [len(side) for side in split_episodes(dataset(3), 0, seed=0)] == [3, 0]
    with pytest.raises(UsageError, match="validation_fraction to 0"):
        split_episodes(dataset(4, ["kitchen"] * 4), 0.5, seed=0)


def test_folds_hold_every_episode_out_once_and_keep_scenes_together():
    scenes = [i // 2 for i in range(20)]
    data = dataset(20, scenes)
    folds = fold_episodes(data, 5, seed=0)
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(20))
    assert {len(held) for _, held in folds} == {4}
    for training, held in folds:
        check_split(data, training, held)
        assert len(training) + len(held) == 20
    for wrong in (1, 11):
        with pytest.raises(UsageError, match="from 2 to 10"):
            fold_episodes(data, wrong, seed=0)


def test_episodes_without_a_scene_are_scenes_of_their_own():
    groups = shuffled_scenes(dataset(4, ["a", None, "a", None]), seed=0)
    assert sorted(group.tolist() for group in groups) == [[0, 2], [1], [3]]


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        ([0, 1], [1], "episode 1 is in the training AND"),
        ([0, 2], [1], "scene 'a'"),
        ([0, 9], [1], "outside"),
        ([0, 0], [3], "twice"),
        ([], [3], "no episode to train on"),
    ],
)
def test_a_leaking_or_impossible_split_is_refused_by_name(training, validation, message):
    with pytest.raises(DataError, match=message):
        check_split(dataset(4, ["a", "a", "b", "c"]), np.array(training), np.array(validation))
