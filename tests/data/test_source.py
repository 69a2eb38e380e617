import json

import numpy as np
import pytest
import torch

from deftly.contract import Mirror, Window
from deftly.data.augment import OFF
from deftly.data.dataset import Dataset
from deftly.data.language import LanguageConfig
from deftly.data.source import DataConfig
from deftly.types import DataError, UsageError
from small_data import robot, write_dataset

LENGTHS = (7, 5, 9, 6)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("source") / "data", LENGTHS)


def config(root, **changes) -> DataConfig:
    return DataConfig(path=root, **{"image_size": 16, "batch_size": 4, "validation_fraction": 0.25, "window": Window(chunk=4), **changes})


def build(root, **changes):
    return config(root, **changes).build(seed=0, device="cpu", executed_steps=2)


def test_training_and_validation_windows_cover_the_dataset_once(root):
    data = build(root)
    assert data.validation is not None
    held = [row for batch in data.validation.batches() for row in zip(batch.episode.tolist(), batch.frame.tolist(), strict=True)]
    assert len(data.split[1]) == 1
    assert held == [(int(data.split[1][0]), frame) for frame in range(LENGTHS[data.split[1][0]])]
    assert len(data.train) + len(held) == sum(LENGTHS)
    seen = {int(e) for _ in range(10) for e in data.train.next().episode}
    assert seen == set(data.split[0].tolist())
    data.close()


def test_statistics_and_words_come_from_the_training_split_alone(root):
    data = build(root)
    rows = np.concatenate([np.arange(*data.dataset.episode_start[[e, e + 1]]) for e in data.split[0]])
    actions = data.dataset.action[rows].astype(np.float64)
    assert np.allclose(data.statistics["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert np.allclose(data.statistics["observation.state"]["max"], data.dataset.state[rows].max(0))
    others = DataConfig.build(config(root), seed=0, device="cpu", executed_steps=2, episodes=(np.array([0, 3]), np.array([1])))
    assert "blue" not in others.tokenizer.words
    assert "red" in others.tokenizer.words
    assert "blue" in others.summary()["words_only_held_out"]
    assert others.contract.statistics_hash != data.contract.statistics_hash


def test_training_hears_other_words_and_validation_does_not(root):
    plain = build(root)
    data = build(root, language=LanguageConfig(probability=1, typos=0))
    assert data.tokenizer.size > plain.tokenizer.size
    assert data.summary()["augmentation_notes"] == []
    recorded = {tuple(ids) for ids in data.encoder.tokens(data.dataset.tasks).ids.tolist()}
    heard = {tuple(ids) for _ in range(5) for ids in data.train.next().text.ids.tolist()}
    assert len(heard - recorded) > 5
    for side in (data.validation, data.train):
        assert side is not None
        assert {tuple(ids) for batch in side.batches() for ids in batch.text.ids.tolist()} <= recorded


def test_the_contract_carries_what_the_data_is(root):
    data = build(root, cameras=("wrist",))
    contract = data.contract
    assert contract.embodiment == robot()
    assert contract.cameras == ("wrist",)
    assert contract.dataset_hash == Dataset.open(root).hash
    assert (contract.image_size, contract.executed_steps, contract.normalization) == (16, 2, "quantile")
    assert list(data.train.next().images) == ["wrist"]


def test_without_a_held_out_part_there_is_no_validation(root):
    data = build(root, validation_fraction=0)
    assert data.validation is None
    assert len(data.train) == sum(LENGTHS)
    data.close()


def test_a_long_validation_is_thinned_evenly(root):
    data = build(root, validation_samples=3)
    assert data.validation is not None
    assert len(data.validation) == 3


def test_the_summary_is_plain_data(root):
    summary = json.loads(json.dumps(build(root).summary()))
    assert summary["episodes"] == 4
    assert summary["frames"] == sum(LENGTHS)
    assert summary["training_windows"] + summary["validation_windows"] == sum(LENGTHS)
    assert summary["adjusted_dimensions"] == []
    assert summary["words_only_held_out"] == []


def test_a_config_survives_json(root):
    first = config(root)
    assert DataConfig.parse(json.loads(first.to_json()), "here") == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ("wirst",)}, "did you mean 'wrist'"),
        ({"cameras": ("head", "head")}, "each once"),
        ({"cameras": ()}, "at least one camera"),
        ({"text_length": 3}, "set text_length to"),
        ({"window": Window(chunk=1)}, "executed_steps 2 is more than the chunk of 1"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_in_one_line(root, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(root, **changes)
    assert "\n" not in str(caught.value)


def test_a_leaking_split_is_refused(root):
    with pytest.raises(DataError, match="episode 1 is in the training AND"):
        config(root).build(seed=0, device="cpu", executed_steps=2, episodes=(np.array([0, 1]), np.array([1])))


def test_scenes_are_kept_together(tmp_path):
    data = build(write_dataset(tmp_path / "data", (3,) * 8, scenes=[i // 2 for i in range(8)]))
    assert {i // 2 for i in data.split[0]}.isdisjoint({i // 2 for i in data.split[1]})


def test_a_robot_without_state_trains_all_the_same(tmp_path):
    data = build(write_dataset(tmp_path / "data", LENGTHS, embodiment=robot(state=0)))
    assert data.train.next().state.shape == (4, 1, 0)
    assert set(data.statistics) == {"action"}


def test_training_straight_from_video_shows_every_window_and_needs_no_store(root, tmp_path):
    kept = build(root)
    config_of_video = config(root, frames="video", shuffled_together=10)
    data = config_of_video.build(seed=0, device="cpu", executed_steps=2, cache_dir=tmp_path)
    assert not (tmp_path / "frames").exists()
    assert data.summary()["decoded_bytes"] == 0 < kept.summary()["decoded_bytes"]
    assert data.contract == kept.contract
    assert data.validation is not None
    assert kept.validation is not None
    for one, two in zip(data.validation.batches(), kept.validation.batches(), strict=True):
        assert all(torch.equal(one.images[name], two.images[name]) for name in one.images)
    seen = [data.train.next() for _ in range(len(data.train))]
    places = sorted((int(e), int(f)) for batch in seen for e, f in zip(batch.episode, batch.frame, strict=True))
    assert len(set(places)) == len(data.train)
    data.close()


def test_a_mirror_changes_what_is_measured_where_the_robot_declares_one(tmp_path):
    body = robot()
    values = {"state_order": range(5), "state_sign": (-1, 1, 1, 1, 1), "action_order": range(4), "action_sign": (1, 1, 1, -1)}
    mirror = Mirror.parse({**values, "cameras": {"head": "head", "wrist": "wrist"}}, "mirror")
    root = write_dataset(tmp_path / "data", LENGTHS, body.replace(mirror=mirror))
    data = build(root, augmentation=OFF.replace(mirror=0.5))
    found = data.statistics["observation.state"]
    assert found["min"][0] == -found["max"][0], "as far to one side as to the other"
    assert found["min"][1] != -found["max"][1]
    assert data.summary()["augmentation_notes"] == []
    plain = build(root, augmentation=OFF)
    assert plain.statistics["observation.state"]["min"][0] != -plain.statistics["observation.state"]["max"][0]
    assert data.parts[0].own_statistics == plain.parts[0].own_statistics == plain.statistics, "it is judged by what was recorded"


def test_a_mirror_that_nobody_declared_is_off_and_the_plan_says_so(root):
    data = build(root, augmentation=OFF.replace(mirror=0.5))
    assert data.train.augmentation.mirror == 0
    assert data.summary()["augmentation_notes"] == ["mirror is off: robot 'toy' declares no mirror"]


def test_editing_the_dataset_during_training_stops_it(tmp_path):
    place = write_dataset(tmp_path / "data", LENGTHS)
    data = build(place, validation_fraction=0)
    data.train.next()
    video = next(place.rglob("*.mp4"))
    video.write_bytes(video.read_bytes() + b"x")
    data.parts[0].train._watch_next = 0
    with pytest.raises(DataError, match=rf"{video.name}.*the dataset changed while it was trained on"):
        data.train.next()
    data.close()
