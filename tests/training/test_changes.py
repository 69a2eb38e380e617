"""Every field of the config, changed between two sessions of a run: free, gone on with when it is named, or refused at once with what to do
instead. What a refusal offers is never refused in its turn.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from deftly.recipes import RECIPES
from deftly.run import Run, train
from deftly.training import update
from deftly.training.checkpoint import read
from deftly.training.config import TrainingConfig
from deftly.training.groups import Group
from deftly.training.lora import LoraConfig
from deftly.training.measures import MeasuresConfig
from deftly.training.resume import FREE
from deftly.training.schedule import ConstantConfig
from deftly.training.start import StartConfig
from deftly.training.stopping import EarlyStop, EarlyStopConfig
from deftly.training.tensorboard import TensorBoardConfig
from deftly.training.trainer import Trainer
from deftly.types import DataError, UsageError
from guards import guards
from small_data import TASKS, write_dataset
from training.toys import StackedPolicy, ToyObjective, ToyStream, make_trainer, small_config

BASE: dict[str, Any] = {"steps": 3, "checkpoint_every": None, "validate_every": 2, "log_every": 2, "count_flops": False}
TRAINING: dict[str, Any] = {
    "steps": 5,
    "accumulation": 2,
    "memory_share": {"memory_share": 0.5, "accumulation": "auto"},
    "precision": "bf16",
    "optimizer.learning_rate": 3e-3,
    "optimizer.weight_decay": 0.2,
    "optimizer.betas": (0.8, 0.9),
    "optimizer.epsilon": 1e-6,
    "schedule": ConstantConfig(),
    "schedule.warmup_fraction": 0.5,
    "schedule.floor_fraction": 0.5,
    "groups": (Group(parameters=r"policy\.first\..*", schedule=None), Group(parameters=".*", rate_factor=0.5)),
    "lora": LoraConfig(modules=r"policy\.last", rank=2),
    "clip_norm": None,
    "ema_decay": None,
    "max_bad_steps": 2,
    "max_rollbacks": 0,
    "start": StartConfig(path=Path("."), weights=(".*",)),
    "trackers": (TensorBoardConfig(),),
    "spike_threshold": None,
    "log_every": 1,
    "count_flops": True,
    "validate_every": None,
    "measures": MeasuresConfig(action_tolerance=None),
    "early_stop": EarlyStopConfig(),
    "checkpoint_every": 2,
    "keep_last": 3,
    "threads": torch.get_num_threads(),
    "channels_last": True,
    "activation_checkpointing": True,
    "compile": True,
    "parallel": "ddp",
    "rank_timeout_s": 5.0,
    "deterministic": False,
}
BACK = ("schedule", "lora", "ema_decay", "trackers", "early_stop")  # of which the way back is tried every time
REFUSED = {"lora", "start"}  # that cannot be changed on the way


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def changed(config: TrainingConfig, name: str, value: Any) -> TrainingConfig:
    if isinstance(value, dict):
        return config.replace(**value)
    part, _, field = name.partition(".")
    return config.replace(**{part: getattr(config, part).replace(**{field: value}) if field else value})


def trainer(directory: Path, config: TrainingConfig, stop_at: int | None = None) -> Trainer:
    stream = ToyStream(calls={} if stop_at is None else {stop_at: stop})
    return make_trainer(directory, config=config, stream=stream, objective=ToyObjective(StackedPolicy()))


def go_on(directory: Path, config: TrainingConfig, allow: Sequence[str] = ()) -> dict[str, Any]:
    return trainer(directory, config).fit(resume=True, allow_change=allow)


def offered(text: str) -> list[str]:
    return re.findall(r"--allow-change ([\w.]+)", text)


def begun(directory: Path, config: TrainingConfig) -> Path:
    with pytest.raises(SystemExit):
        trainer(directory, config, stop_at=1).fit()
    return directory


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begun(tmp_path_factory.mktemp("without"), small_config(**BASE))


def test_every_field_of_training_is_tried() -> None:
    assert {name.partition(".")[0] for name in TRAINING} == set(TrainingConfig.model_fields)
    for name in ("optimizer", "schedule"):
        fields = {field for field in type(getattr(small_config(), name)).model_fields if field != "kind"}
        assert {entry.partition(".")[2] for entry in TRAINING if entry.startswith(f"{name}.")} == fields


@guards("training.resume.never", "training.resume.misfit")
@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(
    ("name", "back"),
    [(name, False) for name in TRAINING]
    + [pytest.param(name, True, marks=[] if name in BACK else pytest.mark.slow) for name in TRAINING if name != "start"],
)
def test_a_field_of_training_changes_or_is_refused_at_once(
    tmp_path: Path, without: Path, monkeypatch: pytest.MonkeyPatch, name: str, back: bool
) -> None:
    base = small_config(**BASE)
    first, second = base, changed(base, name, TRAINING[name])
    monkeypatch.setattr(update, "cannot_compile", lambda device: "it takes minutes")
    if back:
        first, second = second, base
        directory = begun(tmp_path / "run", first)
    else:
        directory = Path(shutil.copytree(without, tmp_path / "run"))
    try:
        summary = go_on(directory, second)
        assert f"training.{name}" in FREE
    except UsageError as error:
        text = str(error)
        assert "\n" not in text
        assert f"training.{name.partition('.')[0]}" in text
        flags = offered(text)
        assert bool(flags) != (name in REFUSED), text
        if not flags:
            assert "new run" in text
            with pytest.raises(UsageError) as again:
                go_on(directory, second, ["training"])  # nor is it done halfway
            assert offered(str(again.value)) == []
            return
        summary = go_on(directory, second, flags)
    assert summary["steps"] == second.steps
    newest = read(directory / "checkpoints" / f"step-{second.steps:08d}")
    assert (newest.raw is not None) == (second.ema_decay is not None)
    assert go_on(directory, second)["steps"] == second.steps  # the same command again: the change is no change any more


def test_an_average_begins_with_the_weights_that_are_there(tmp_path: Path) -> None:
    plain = small_config(**BASE, ema_decay=None)
    begun(tmp_path, plain)
    saved = read(tmp_path / "checkpoints" / "step-00000002").objective
    go_on(tmp_path, plain.replace(ema_decay=0.5), ["training.ema_decay"])
    found = read(tmp_path / "checkpoints" / "step-00000003")
    assert found.raw is not None
    assert found.trainer["ema_updates"] == 1
    name = "policy.first.weight"  # after one update: (1 + 0) / (10 + 0) of what was there, the rest of what is
    torch.testing.assert_close(found.objective[name], 0.1 * saved[name] + 0.9 * found.raw[name])


# -- the other parts of a run --------------------------------------------------------------------------------------------------------------

OTHERS: dict[str, Any] = {
    "name": "other",
    "seed": 1,
    "executed_steps": 2,
    "folds": 2,
    "data.path": "ELSEWHERE",
    "data.cameras": ["head"],
    "data.image_size": 24,
    "data.check.full": True,
    "data.check.budget": 0.5,
    "data.check.allow_missing_files": True,
    "data.check.allow_long_episodes": True,
    "data.check.allow_empty_instruction": True,
    "data.window.frames": 2,
    "data.window.chunk": 6,
    "data.window.past_actions": True,
    "data.normalization": "mean_std",
    "data.mixture": [{"path": "OTHERS"}],
    "data.balance": "episode",
    "data.validation_fraction": 0.5,
    "data.validation_samples": 4,
    "data.batch_size": 2,
    "data.frames": "video",
    "data.shuffled_together": 512,
    "data.workers": 1,
    "data.augmentation.brightness": 0.0,
    "data.augmentation.contrast": 0.0,
    "data.augmentation.saturation": 0.0,
    "data.augmentation.hue": 0.0,
    "data.augmentation.noise": 0.1,
    "data.augmentation.blur": 0.1,
    "data.augmentation.blur_sigma": [0.1, 1.0],
    "data.augmentation.erase": 0.1,
    "data.augmentation.erase_area": [0.1, 0.2],
    "data.augmentation.shift_pixels": 0,
    "data.augmentation.crop_scale": [0.8, 1.0],
    "data.augmentation.crop_ratio": [0.9, 1.1],
    "data.augmentation.rotation_degrees": 3.0,
    "data.augmentation.geometry_on_wrist": True,
    "data.augmentation.mixup": 0.2,
    "data.augmentation.mixup_distance": 0.5,
    "data.language.probability": 0.5,
    "data.language.synonyms": 0.1,
    "data.language.phrases": 0.1,
    "data.language.insertions": 0.1,
    "data.language.deletions": 0.1,
    "data.language.paraphrases": 0.1,
    "data.language.typos": 0.2,
    "data.language.typo_characters": 0.1,
    "data.language.typo_slots": True,
    "data.language.variants": 8,
    "data.disk_share": 0.3,
    "data.text_length": 12,
    "policy.vision.stem_stride": 2,
    "policy.vision.widths": [8],
    "policy.vision.blocks": 2,
    "policy.vision.keypoints": 4,
    "policy.wrist": {"widths": [4], "keypoints": 2},
    "policy.text.dim": 12,
    "policy.text.heads": 2,
    "policy.text.layers": 2,
    "policy.width": 24,
    "policy.depth": 2,
    "policy.dropout": 0.1,
    "policy.residual": True,
    "policy.robot_dim": 8,
    "policy.head": {"kind": "regression"},
    "policy.head.width": 12,
    "policy.head.blocks": 2,
    "policy.head.euler_steps": 3,
    "policy.head.draws": 2,
}
NOT_BY_ITSELF = {
    "data.depth": "needs a dataset with depth",
    "data.actions": "needs a robot whose actions are positions of its state",
    "data.augmentation.mirror": "needs a robot that declares its mirror",
    "data.language.bank": "a file of the user's",
    "world": "must be that of the dataset",
    "policy.kind": "a tag", "policy.head.kind": "a tag", "objective.kind": "a tag",
}  # fmt: skip
QUICK = ("seed", "executed_steps", "data.workers", "data.language.probability", "policy.width")


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield from leaves(value, f"{path}{name}.") if isinstance(value, dict) and value else [f"{path}{name}"]


def small_run(data: Path) -> Run:
    values = RECIPES["imitate"](True).to_dict()
    values["data"] |= {"path": str(data), "image_size": 16, "batch_size": 4, "validation_fraction": 0.25}
    values["data"]["window"]["chunk"] = 4
    values["policy"] |= {"width": 16, "depth": 1, "vision": {"widths": [4], "keypoints": 2}, "text": {"dim": 8, "heads": 1}}
    values["policy"]["head"] |= {"width": 8, "blocks": 1, "euler_steps": 2, "draws": 1}
    values["training"] |= {"steps": 2, "checkpoint_every": 1, "precision": "fp32", "count_flops": False}
    return Run.parse({**values, "executed_steps": 4}, "test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_dataset(root / "data")
    write_dataset(root / "others", lengths=(5, 6, 4))
    shutil.copytree(root / "data", root / "moved")
    train(small_run(root / "data"), root / "run", device="cpu")
    return root


def test_every_other_field_of_a_run_is_tried_or_excused(whole: Path) -> None:
    every = {name for name in leaves(small_run(whole / "data").to_dict()) if not name.startswith("training.")}
    excused = tuple(NOT_BY_ITSELF)
    assert {name for name in every if not name.startswith(excused)} == OTHERS.keys() - {"policy.head"}
    assert not [name for name in OTHERS if name.startswith(excused)]


def with_field(run: Run, name: str, value: Any, whole: Path) -> Run:
    values = run.to_dict()
    *parts, last = name.split(".")
    place = values
    for part in parts:
        place = place[part]
    place[last] = value
    text = Run.model_validate(values).to_json().replace("ELSEWHERE", str(whole / "moved")).replace("OTHERS", str(whole / "others"))
    return Run.model_validate_json(text)


@guards("training.resume.words")
def test_a_word_that_has_another_number_is_refused_at_once(tmp_path: Path, whole: Path) -> None:
    """As many words as before, so every weight fits: the embedding of one would be taken for another's."""
    renamed = {"red": "zinc", "blue": "amber", "green": "black"}
    others = tuple(" ".join(renamed.get(word, word) for word in task.split()) for task in TASKS)
    data = write_dataset(tmp_path / "data", tasks=others)
    directory = Path(shutil.copytree(whole / "run", tmp_path / "run"))
    for allowed in ([], ["data", "dataset"]):
        with pytest.raises((UsageError, DataError), match="its words have other numbers") as caught:
            train(small_run(data), directory, resume=True, device="cpu", allow_change=allowed)
        assert offered(str(caught.value)) == []


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OTHERS])
def test_any_other_field_changes_or_is_refused_at_once(tmp_path: Path, whole: Path, name: str) -> None:
    directory = tmp_path / "run"
    shutil.copytree(whole / "run", directory)
    shutil.rmtree(directory / "checkpoints" / "step-00000002")  # as if it had been interrupted after one step
    run = with_field(small_run(whole / "data"), name, OTHERS[name], whole)
    try:
        summary = train(run, directory, resume=True, device="cpu")
        assert name in FREE
    except (UsageError, DataError) as error:
        text = str(error)
        assert "\n" not in text
        flags = offered(text)
        if not flags:
            assert re.search("new run|another directory|set data|set policy|leave", text), text
            for blanket in (["data", "policy", "dataset", "name", "executed_steps"], [name]):
                with pytest.raises((UsageError, DataError)) as again:
                    train(run, directory, resume=True, device="cpu", allow_change=blanket)
                assert offered(str(again.value)) == []
            return
        summary = train(run, directory, resume=True, device="cpu", allow_change=flags)
    assert summary["steps"] == 2
    assert train(run, directory, resume=True, device="cpu")["steps"] == 2


@guards("run.folds.begun")
def test_a_directory_of_folds_does_not_become_that_of_a_single_run(tmp_path: Path) -> None:
    (tmp_path / "fold-0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="choose another directory"):
        train(small_run(tmp_path / "data"), tmp_path, resume=True, device="cpu")


def test_more_changes_than_can_be_listed_are_offered_by_parts(tmp_path: Path, without: Path) -> None:
    directory = Path(shutil.copytree(without, tmp_path / "run"))
    names = ("steps", "accumulation", "clip_norm", "max_bad_steps", "max_rollbacks", "spike_threshold", "validate_every", "ema_decay")
    config = small_config(**BASE).replace(**{name: TRAINING[name] for name in names}, optimizer={"learning_rate": 0.1})
    with pytest.raises(UsageError) as caught:
        go_on(directory, config)
    assert offered(str(caught.value)) == ["training"]
    assert go_on(directory, config, ["training"])["steps"] == 5


def test_numbers_of_another_metric_do_not_stop_a_run() -> None:
    first = EarlyStop(EarlyStopConfig(patience=1, smoothing=0.0))
    for loss in (0.1, 0.2):
        first.see(1, {"loss": loss})
    assert first.why is not None
    second = EarlyStop(EarlyStopConfig(metric="action_accuracy"))
    second.load_state(first.state())
    assert (second.why, second.best, second.smoothed) == (None, None, None)
    again = EarlyStop(EarlyStopConfig(patience=1, smoothing=0.0))
    again.load_state(first.state())
    assert again.why == first.why


def test_going_back_to_before_there_was_an_average_begins_one(tmp_path: Path) -> None:
    plain = small_config(**BASE, ema_decay=None)
    begun(tmp_path, plain)
    changed = trainer(tmp_path, plain.replace(ema_decay=0.5))
    changed.fit(resume=True, allow_change=["training.ema_decay"])
    saved = read(tmp_path / "checkpoints" / "step-00000002")
    changed.update.go_back(update.Tensors(saved.objective, saved.raw, saved.optimizer), saved.trainer)
    assert changed.update.ema is not None
    assert changed.update.ema.updates == 0
    for name, tensor in changed.update.ema.average.items():
        torch.testing.assert_close(tensor, saved.objective[name].to(tensor.dtype))
