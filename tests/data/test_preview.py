from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deftly.cli import data as command
from deftly.contract import Embodiment, Mirror, Vector
from deftly.data.augment import OFF, AugmentConfig
from deftly.data.dataset import Dataset
from deftly.data.images import resize_with_pad
from deftly.data.language import LanguageConfig
from deftly.data.mirror import mirror_action, mirror_state
from deftly.data.preview import Moment, planar_dimensions, preview
from deftly.types import UsageError
from small_data import robot, write_dataset


def mirrored_robot() -> Embodiment:
    body = robot()
    state, action = len(body.state), len(body.action)
    mirror = Mirror(
        state_order=tuple(range(state)),
        state_sign=(-1,) * state,
        action_order=tuple(range(action)),
        action_sign=(1,) + (-1,) * (action - 1),
        cameras={name.name: name.name for name in body.cameras},
    )
    return body.replace(action=body.action.replace(names=("x", "y", "z", "gripper")), mirror=mirror)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return Dataset.open(write_dataset(tmp_path / "data", embodiment=mirrored_robot()))


def cells(monkeypatch: pytest.MonkeyPatch, dataset: Dataset, config: AugmentConfig, **options) -> list[list[Moment]]:
    """What the sheet is drawn from."""
    seen = []
    monkeypatch.setattr("deftly.data.preview._draw", lambda dataset, cameras, table: seen.append(table) or Image.new("RGB", (1, 1)))
    preview(dataset, config, options.pop("language", None), image_size=16, **options)
    return seen[0]


def test_without_augmentation_every_sample_is_what_was_recorded(monkeypatch, dataset):
    for recorded, *variants in cells(monkeypatch, dataset, OFF):
        for moment in variants:
            assert np.array_equal(moment.images, recorded.images)
            assert np.array_equal(moment.actions, recorded.actions)
            assert moment.text == recorded.text
    table = cells(monkeypatch, dataset, AugmentConfig.strong(), rows=2)
    for (recorded, *_), episode in zip(table, (0, dataset.num_episodes - 1), strict=True):
        frame = int(dataset.episode_length[episode]) * 2 // 5
        row = int(dataset.episode_start[episode]) + frame
        assert np.array_equal(recorded.state, dataset.state[row])
        assert np.array_equal(recorded.actions[0], dataset.action[row])
        shown = resize_with_pad(dataset.frames(episode, "head", np.array([frame]))[0], 16)
        assert np.abs(recorded.images[0].astype(int) - shown).max() <= 24, "by way of the larger frames that a crop needs"


def test_a_mirrored_sample_is_mirrored_whole(monkeypatch, dataset):
    table = cells(monkeypatch, dataset, OFF.replace(mirror=0.5), variants=8)
    mirror = dataset.embodiment.mirror
    count = 0
    for recorded, *variants in table:
        for moment in variants:
            count += moment.is_mirrored
            if moment.is_mirrored:
                assert np.array_equal(moment.images, recorded.images[:, :, ::-1])
                assert np.array_equal(moment.state, mirror_state(recorded.state, mirror))
                assert np.array_equal(moment.actions, mirror_action(recorded.actions, mirror))
            else:
                assert np.array_equal(moment.images, recorded.images)
    assert 4 < count < 28


def test_the_instruction_is_reworded(monkeypatch, dataset):
    table = cells(monkeypatch, dataset, OFF, language=LanguageConfig(probability=1.0))
    assert any(moment.text != recorded.text for recorded, *variants in table for moment in variants)


def test_the_sheet_is_a_function_of_its_seed(dataset):
    first, notes = preview(dataset, AugmentConfig.strong(), LanguageConfig(), rows=2, image_size=24)
    again, _ = preview(dataset, AugmentConfig.strong(), LanguageConfig(), rows=2, image_size=24)
    other, _ = preview(dataset, AugmentConfig.strong(), LanguageConfig(), rows=2, image_size=24, seed=1)
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(first), np.asarray(other))
    assert len(notes) == 1
    assert np.asarray(first).std() > 20


def test_planar_dimensions_go_by_names():
    def of(*names: str) -> tuple[int, int] | None:
        return planar_dimensions(Vector(names=names, units=("",) * len(names)))

    assert of("tip_x", "tip_y", "tip_z") == (0, 1)
    assert of("z", "Y", "X") == (2, 1)
    assert of("left_x", "left_y", "right_x", "right_y") is None, "which hand would it be"
    assert of("action_0", "axy") is None


def width(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width


def test_the_command_writes_a_picture_and_says_what_is_off(tmp_path, capsys):
    root = write_dataset(tmp_path / "data")
    command.main(["preview", str(root), "--augment", "--rows", "2", "--image-size", "24", "--out", str(tmp_path / "sheet.png")])
    assert width(tmp_path / "sheet.png") > 6 * 150
    assert "mirror is off: robot 'toy' declares no mirror" in capsys.readouterr().out
    command.main(["preview", str(root), "--rows", "1", "--image-size", "24", "--out", str(tmp_path / "plain.png")])
    assert width(tmp_path / "plain.png") < 200
    assert capsys.readouterr().out.count("\n") == 1


def test_a_runs_own_augmentation_can_be_shown(tmp_path, capsys):
    root = write_dataset(tmp_path / "data")
    command.main(["preview", str(root), "--run", "imitate", "--rows", "1", "--out", str(tmp_path / "sheet.png")])
    assert width(tmp_path / "sheet.png") > 6 * 150
    assert capsys.readouterr().out.count("\n") == 1, "its default has nothing to say"
    with pytest.raises(UsageError, match="are the run's own with --run"):
        command.main(["preview", str(root), "--run", "imitate", "--strength", "default"])
    with pytest.raises(UsageError, match="did you mean 'imitate'"):
        command.main(["preview", str(root), "--run", "imitat"])


def test_what_cannot_be_shown_is_one_line(tmp_path, dataset):
    with pytest.raises(UsageError, match="no camera 'tail'; it has head, wrist"):
        preview(dataset, OFF, None, cameras=("tail",))
    with pytest.raises(UsageError, match="--rows 0: give 1 to 64"):
        command.main(["preview", str(dataset.root), "--rows", "0"])
