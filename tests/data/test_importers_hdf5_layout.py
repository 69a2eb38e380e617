"""Which observation of an HDF5 file becomes what is decided by most demonstrations, and what is not taken over is named."""

import numpy as np
import pytest

from deftly.data.dataset import Dataset
from deftly.data.importers.hdf5 import import_hdf5
from deftly.types import DataError
from hdf5_files import LIBERO_NAME, demo, pixels, write_file


def without(*pairs: tuple[int, str]) -> list[dict]:
    demos = [demo(number) for number in range(3)]
    for number, key in pairs:
        del demos[number]["obs"][key]
    return demos


@pytest.mark.parametrize("key", ["eye_in_hand_rgb", "gripper_states", "joint_states"])
def test_an_observation_that_some_demonstrations_lack_is_never_dropped_in_silence(tmp_path, key):
    path = write_file(tmp_path / "a" / LIBERO_NAME, without((0, key)))
    with pytest.raises(DataError, match=f"demo_0.*{key} is missing"):
        import_hdf5(path, tmp_path / "out")
    report = import_hdf5(path, tmp_path / "out", budget=0.34)
    whole = import_hdf5(write_file(tmp_path / "b" / LIBERO_NAME, without()), tmp_path / "whole")
    assert (report.episodes, len(report.broken), report.left_out) == (2, 1, whole.left_out)
    assert Dataset.open(tmp_path / "out").features == Dataset.open(tmp_path / "whole").features
    rare = import_hdf5(write_file(tmp_path / "c" / LIBERO_NAME, without((0, key), (2, key))), tmp_path / "rare", budget=0.34)
    assert f"obs/{key} (in 1 of 3 episodes)" in rare.left_out


@pytest.mark.parametrize("odd", [0, 3])
def test_the_size_of_the_actions_is_that_of_most_demonstrations(tmp_path, odd):
    demos = [demo(i) for i in range(5)]
    demos[odd]["actions"] = demos[odd]["actions"][:, :6]
    write_file(tmp_path / LIBERO_NAME, demos)
    with pytest.raises(DataError, match=rf"demo_{odd}: action has shape \[5, 6\], expected \[5, 7\]; 1 of 5"):
        import_hdf5(tmp_path / LIBERO_NAME, tmp_path / "out")
    report = import_hdf5(tmp_path / LIBERO_NAME, tmp_path / "out", budget=0.2)
    assert (report.episodes, len(report.broken)) == (4, 1)


def test_an_observation_with_the_name_of_another_feature_is_left_out_by_name(tmp_path):
    """And never in the place of the other, nor with its labels."""
    one = demo(0)
    one["obs"] |= {"state": np.zeros((5, 2)), "environment_state": np.ones((5, 2)), "a\\b": np.zeros(5), "x" * 200: np.zeros(5)}
    one["obs"] |= {"actions": np.full((5, 3), 2.0), "rewards": np.full((5, 3), 3.0)}
    one["obs"] |= {"top_depth_rgb": pixels(0, "head", 5), "top_depth": np.ones((5, 16, 24), np.float32)}
    report = import_hdf5(write_file(tmp_path / LIBERO_NAME, [one]), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert report.left_out == ["obs/a\\b", "obs/object", "obs/state", "obs/top_depth", "obs/" + "x" * 200, "states"]
    assert dataset.state.shape == (5, 8)
    assert dataset.column("observation.environment_state").shape == (5, 2)
    assert dataset.column("observation.actions").tolist() == [[2.0] * 3] * 5
    assert dataset.column("observation.rewards").tolist() == [[3.0] * 3] * 5
    assert dataset.column("next.reward").ravel().tolist() == one["rewards"].tolist()
    assert dataset.cameras == ("agentview", "eye_in_hand", "top_depth")
    named = import_hdf5(tmp_path / LIBERO_NAME, tmp_path / "named", state=("state",))
    assert "obs/state" not in named.left_out
    assert Dataset.open(tmp_path / "named").state.shape == (5, 2)


def test_an_empty_first_demonstration_does_not_decide(tmp_path):
    demos = without()
    demos[0]["obs"] = {"object": demos[0]["obs"]["object"]}
    path = write_file(tmp_path / LIBERO_NAME, demos)
    report = import_hdf5(path, tmp_path / "out", budget=0.34)
    assert (report.episodes, len(report.broken)) == (2, 1)
    assert Dataset.open(tmp_path / "out").cameras == ("agentview", "eye_in_hand")
