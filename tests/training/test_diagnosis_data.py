"""Verdicts on a run's dataset: copies on both sides of the split, shifted labels, values far out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deftly import storage
from deftly.data.split import fold_episodes, split_episodes
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.recipes import RECIPES
from deftly.run import train
from deftly.training.diagnosis.data import data_verdicts
from deftly.training.diagnosis.examine import diagnose
from deftly.training.diagnosis.record import read_record
from small_data import robot

EPISODES, FRAMES = 12, 40


def episodes(late=0, seed=0):
    """Arms that follow their commands; labels stand `late` frames too late."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(EPISODES):
        action = draw.normal(size=(FRAMES, 4)).cumsum(0) * 0.2
        state = np.zeros((FRAMES, 5))
        for frame in range(FRAMES - 1):
            state[frame + 1, :4] = state[frame, :4] + 0.5 * (action[frame] - state[frame, :4]) + 0.01 * draw.normal(size=4)
            state[frame + 1, 4] = 0.9 * state[frame, 4] + draw.normal()
        label = np.concatenate([np.repeat(action[:1], late, axis=0), action])[:FRAMES]
        found.append((state.astype(np.float32), label.clip(-3, 3).astype(np.float32)))
    return found


def written(root, found):
    body = robot(height=16, width=16)
    images = {camera.name: np.zeros((FRAMES, 16, 16, 3), np.uint8) for camera in body.cameras}
    with DatasetWriter(root, body) as writer:
        for number, (state, action) in enumerate(found):
            picture = {name: (frames + 10 * number).astype(np.uint8) for name, frames in images.items()}
            writer.add(EpisodeData(images=picture, state=state, action=action, task="lift the cup", extra_episode={}))
        writer.finish()
    return root


def run_of(data, directory):
    """A run directory that names this dataset, without the training."""
    run = RECIPES["imitate"](True)
    run = run.replace(data=run.data.replace(path=data, validation_fraction=0.25, image_size=16))
    directory.mkdir()
    storage.write_json(directory / "run.json", run.to_dict())
    storage.append_line(directory / "metrics.jsonl", {"step": 0, "kind": "other"}, durable=False)
    return run


def verdicts(directory):
    return {one.code: one for one in data_verdicts(read_record(directory))}


def test_sound_data_raises_nothing(tmp_path):
    run_of(written(tmp_path / "data", episodes()), tmp_path / "run")
    assert not [one for one in verdicts(tmp_path / "run").values() if one.severity != "note"]


@pytest.mark.parametrize(("late", "severity"), [(1, "warning"), (3, "fault")])
def test_labels_that_come_too_late_are_named(tmp_path, late, severity):
    run_of(written(tmp_path / "data", episodes(late)), tmp_path / "run")
    found = verdicts(tmp_path / "run")["label-shift"]
    assert (found.severity, f"{late} frame" in found.what) == (severity, True)


def test_a_held_out_copy_of_a_training_episode_is_named(tmp_path):
    found = episodes()
    run = run_of(written(tmp_path / "sound", found), tmp_path / "first")
    training, held_out = split_episodes(read_dataset(tmp_path / "sound"), run.data.validation_fraction, run.seed)
    found[held_out[0]] = found[training[0]]
    run_of(written(tmp_path / "data", found), tmp_path / "run")
    leak = verdicts(tmp_path / "run")["leaking-split"]
    assert leak.severity == "fault"
    assert f"e.g. {held_out[0]} and {training[0]}" in leak.evidence
    found = episodes()
    found[training[1]] = found[training[0]]
    run_of(written(tmp_path / "twice", found), tmp_path / "other")
    assert set(verdicts(tmp_path / "other")) & {"leaking-split", "duplicate-data"} == {"duplicate-data"}


def test_a_fold_is_judged_by_what_it_held_out(tmp_path):
    found = episodes()
    splits = fold_episodes(read_dataset(written(tmp_path / "sound", found)), 3, RECIPES["imitate"](True).seed)
    training, held_out = splits[1]
    found[held_out[0]] = found[training[0]]
    data = written(tmp_path / "data", found)
    (tmp_path / "all").mkdir()
    for index in range(3):
        run = run_of(data, tmp_path / "all" / f"fold-{index}")
        storage.write_json(tmp_path / "all" / f"fold-{index}" / "run.json", run.replace(name=f"imitate fold {index}").to_dict())
    storage.write_json(tmp_path / "all" / "run.json", run.replace(folds=3, world=None).to_dict())
    leak = verdicts(tmp_path / "all" / "fold-1")["leaking-split"]
    assert f"1 of {len(held_out)} held-out episodes have a copy in training, e.g. {held_out[0]} and {training[0]}" in leak.evidence
    # Every pair is torn apart in two folds, once each way, and together in the third.
    assert sum("leaking-split" in verdicts(tmp_path / "all" / f"fold-{index}") for index in range(3)) == 2
    (tmp_path / "fold-1").mkdir()
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / "fold-1" / name).write_bytes((tmp_path / "all" / "fold-1" / name).read_bytes())
    assert set(verdicts(tmp_path / "fold-1")) & {"leaking-split", "duplicate-data"} == {"duplicate-data"}


def read_dataset(path):
    from deftly.data.dataset import Dataset

    return Dataset.open(path)


def test_a_dataset_that_is_gone_or_another_is_passed_over(tmp_path):
    run_of(written(tmp_path / "data", episodes()), tmp_path / "run")
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    for path in (str(tmp_path / "none"), str(tmp_path), 3, None):
        values["data"]["path"] = path
        storage.write_json(tmp_path / "run" / "run.json", values)
        assert verdicts(tmp_path / "run") == {}


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "code"), [("late", "label-shift"), ("leak", "leaking-split"), (None, None)])
def test_a_real_run_on_planted_data_is_judged(tmp_path, plant, code):
    found = episodes(late=3 if plant == "late" else 0)
    run = RECIPES["imitate"](True)
    run = run.replace(data=run.data.replace(path=tmp_path / "data", validation_fraction=0.25, image_size=16))
    run = run.replace(training=run.training.replace(steps=40, log_every=4, validate_every=10, checkpoint_every=None))
    if plant == "leak":
        training, held_out = split_episodes(read_dataset(written(tmp_path / "sound", found)), 0.25, run.seed)
        found[held_out[0]] = found[training[0]]
    written(tmp_path / "data", found)
    train(run, tmp_path / "run", device="cpu")
    judged = diagnose(tmp_path / "run")
    if code is not None:
        assert judged[0].code == code
    else:
        assert not [one.code for one in judged if one.severity == "fault"]
