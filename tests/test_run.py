"""What a run promises as a whole: the same bits with any number of workers, and through the agent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deftly import storage
from deftly.agent import load
from deftly.contract import Mirror
from deftly.data.augment import OFF
from deftly.models.act import ACTConfig
from deftly.recipes import RECIPES
from deftly.run import Run, build_policy, build_trainer, choose_device, offline, print_plan, train, write_policy
from deftly.training import distributed
from deftly.training.runs import look
from deftly.types import Batch, DataError, UsageError
from guards import guards
from small_data import robot, write_dataset

STEPS = 14


def small_run(data: Path, workers: int = 0) -> Run:
    run = RECIPES["imitate"](True)
    training = run.training.replace(steps=STEPS, checkpoint_every=3, validate_every=4, log_every=1, ema_decay=0.9, threads=1)
    source = run.data.replace(path=data, validation_fraction=0.3, workers=workers, image_size=24)
    return run.replace(data=source, training=training)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "set"
    write_dataset(path, lengths=(9, 7, 8, 6))
    return path


def final_hashes(run: Path) -> dict[str, str]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {path.name: storage.sha256(path) for path in newest.glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    command(data, run, 0).wait(timeout=120)
    return run


def command(data: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """Training as users start it, in a process group of its own."""
    path = out.parent / f"{out.name}.json"
    path.write_text(small_run(data, workers).to_json())
    words = [sys.executable, "-m", "deftly.cli.main", "train", str(path), "--out", str(out), "--device", "cpu"]
    return subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(data: Path, undisturbed: Path, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    assert command(data, run, workers).wait(timeout=120) == 0
    assert final_hashes(run) == final_hashes(undisturbed)


def test_the_trained_policy_acts_and_a_training_frame_is_the_loaders(data: Path, undisturbed: Path) -> None:
    agent = load(undisturbed)
    config = small_run(data).data.replace(augmentation=OFF)
    prepared = config.build(seed=0, device="cpu", executed_steps=8)
    batch = prepared.train.next()
    for row in range(3):
        episode, frame = int(batch.episode[row]), int(batch.frame[row])
        images = {camera: prepared.dataset.frames(episode, camera, np.array([frame]))[0] for camera in prepared.dataset.cameras}
        at = int(prepared.dataset.episode_start[episode]) + frame
        task = prepared.dataset.tasks[int(prepared.dataset.task_of_frame[at])]
        seen = agent.encode([{"images": images, "state": prepared.dataset.state[at], "instruction": task}])
        for camera in batch.images:
            assert torch.equal(seen.images[camera][0], batch.images[camera][row])
        assert torch.equal(seen.state[0], batch.state[row])
        assert torch.equal(seen.text.ids[0], batch.text.ids[row])
        assert torch.equal(seen.text.is_pad[0], batch.text.is_pad[row])
        agent.reset(key=row)
        action = agent.act({"images": images, "state": prepared.dataset.state[at], "instruction": task})
        assert action.shape == (len(agent.contract.embodiment.action),)
        assert bool(np.isfinite(action).all())
    prepared.close()


def test_offline_file_is_what_was_returned(data: Path, tmp_path: Path) -> None:
    run = small_run(data)
    summary = train(run.replace(training=run.training.replace(steps=2)), tmp_path / "run", device="cpu")
    assert json.loads((tmp_path / "run" / "offline.json").read_text()) == summary["offline"]
    prepared = run.data.build(seed=run.seed, device="cpu", executed_steps=run.executed_steps)
    assert offline(tmp_path / "run", prepared, torch.device("cpu")) == summary["offline"]
    prepared.close()


def test_what_needs_no_learning_is_judged_alike_with_and_without_a_mirror(tmp_path: Path) -> None:
    body = robot()
    cameras = {"head": "head", "wrist": "wrist"}
    values = {"state_order": range(5), "state_sign": (1,) * 5, "action_order": (1, 0, 2, 3), "action_sign": (1, 1, 1, -1)}
    data = write_dataset(tmp_path / "data", (9, 7, 8, 6), body.replace(mirror=Mirror.parse({**values, "cameras": cameras}, "mirror")))
    run, found = small_run(data), []
    run = run.replace(training=run.training.replace(steps=1, checkpoint_every=1, validate_every=1))
    for mirror in (0.0, 0.5):
        one = run.replace(data=run.data.replace(augmentation=OFF.replace(mirror=mirror)))
        found.append(train(one, tmp_path / f"run-{mirror}", device="cpu")["offline"])
    for name in ("mean_action", "repeat_last"):
        assert np.isclose(found[0][name]["l1_per_spread"], found[1][name]["l1_per_spread"], atol=1e-5), name


def test_plan_and_policy(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run(data)
    prepared = run.data.build(seed=0, device="cpu", executed_steps=run.executed_steps)
    first, second = build_policy(run, prepared), build_policy(run, prepared)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    plan = {"steps": STEPS, "accumulation": 1, "parameters": 12345, "precision": "fp32", "device": "cpu", "checkpoint_bytes": 3 << 20}
    frozen = {"parameters": "policy.text.*", "number": 99, "schedule": None}
    late = {"parameters": ".*", "number": 7, "schedule": "wsd", "rate_factor": 0.1, "start": 3, "layer_decay": None}
    print_plan(run, prepared, {**plan, "parameters_frozen": 99, "adapted": 7, "groups": [frozen, late]}, tmp_path)
    printed = capsys.readouterr().err
    assert "12,345 parameters that learn, 99 frozen" in printed
    assert "low-rank adapters in 7 layers" in printed
    assert "policy.text.*: 99 parameters, frozen" in printed
    assert ".*: 7 parameters, wsd, rate x 0.1, from step 3 on" in printed
    print_plan(run, prepared, {**plan, "parameters_frozen": 0, "adapted": 0, "groups": [late]}, tmp_path)
    printed = capsys.readouterr().err
    assert "wsd" not in printed
    assert f"{STEPS} steps of 8" in printed
    assert "12,345 parameters" in printed
    assert "3 MiB per checkpoint" in printed
    folder = tmp_path / "policy"
    folder.mkdir()
    write_policy(folder, first.state_dict(), run, prepared)
    assert all(torch.equal(a, b) for a, b in zip(load(folder).policy.parameters(), first.parameters(), strict=True))
    prepared.close()


@guards("run.device.count")
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match=r"device 'cuda:2': this machine has cuda:0 to cuda:1"):
        choose_device("cuda:2")


@guards("run.directory.data")
def test_a_run_is_not_written_into_a_dataset(data: Path, tmp_path: Path) -> None:
    before = sorted(data.rglob("*"))
    (tmp_path / "link").symlink_to(data)
    for out in (data, data / "runs" / "one", tmp_path / "link"):
        with pytest.raises(UsageError, match=r"in the dataset .*, which a run does not write into"):
            train(small_run(data), out, device="cpu")
    assert sorted(data.rglob("*")) == before


def test_choices_that_cannot_be() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device cpu"):
            choose_device("cuda")
        assert choose_device("auto") == torch.device("cpu")
    run = RECIPES["imitate"](True)
    with pytest.raises(UsageError, match="executed_steps 17 is more than the chunk of 16"):
        run.replace(executed_steps=17)
    with pytest.raises(UsageError, match="this world shows no depth"):
        RECIPES["demo"](True).replace(data=RECIPES["demo"](True).data.replace(depth=("head_depth",)))
    with pytest.raises(UsageError, match="judged offline"):
        RECIPES["demo"](True).replace(folds=2)


def test_act_starts_from_pretrained_weights_is_resumed_and_acts(data: Path, tmp_path: Path) -> None:
    """The file is read when training starts, and never again: what was trained acts where the file is not."""
    small = RECIPES["act"](True)
    assert isinstance(small.policy, ACTConfig)
    torch.manual_seed(3)
    given = {}
    for convolution, conv, norm in small.policy.vision.build(image_size=32).names():
        given[f"{conv}.weight"] = torch.randn_like(convolution.weight) * 0.1
        parts = {"weight": 1.0, "bias": 0.5, "running_mean": 0.0, "running_var": 1.0}
        given |= {f"{norm}.{part}": torch.full_like(convolution.scale, value) for part, value in parts.items()}
    weights = tmp_path / "resnet.safetensors"
    save_file(given, weights)
    source = small.data.replace(path=data, validation_fraction=0.3)
    training = small.training.replace(steps=2, ema_decay=None, optimizer=small.training.optimizer.replace(learning_rate=1e-9))
    run = small.replace(data=source, policy=small.policy.replace(pretrained=weights), training=training)
    summary = train(run, tmp_path / "run", device="cpu")
    assert set(summary["offline"]) == {"policy", "mean_action", "repeat_last"}
    line = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"action", "kl"} == set(next(entry for entry in line if entry["kind"] == "train")["terms"])
    weights.rename(tmp_path / "elsewhere")
    policy = load(tmp_path / "run").policy
    torch.testing.assert_close(policy.vision.stem.weight, given["conv1.weight"])
    assert bool((policy.vision.stem.shift == 0.5).all())


@guards("run.read_weights.there")
def test_pretrained_weights_that_are_not_there_are_named_before_training(data: Path, tmp_path: Path) -> None:
    small = RECIPES["act"](True)
    source = small.data.replace(path=data, validation_fraction=0.3)
    for content, error, match in ((None, UsageError, "is not there"), (b"no weights", DataError, "not a safetensors file")):
        path = tmp_path / "resnet.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(error, match=match):
            train(small.replace(data=source, policy=small.policy.replace(pretrained=path)), tmp_path / "run", device="cpu")


@guards("run.folds.ranks")
def test_folds_are_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: 2)
    with pytest.raises(UsageError, match="by a single process"):
        train(RECIPES["imitate"](True).replace(folds=2, world=None), tmp_path / "run", device="cpu")
    assert not list(tmp_path.iterdir())


@guards("run.accumulation.divides", "training.memory_share.effect", "run.device.name")
def test_what_cannot_be_is_refused_before_anything_is_read() -> None:
    run = RECIPES["imitate"](True)
    with pytest.raises(UsageError, match=r"batch_size 8 does not divide into training\.accumulation 3"):
        run.replace(training=run.training.replace(accumulation=3))
    with pytest.raises(UsageError, match=r"memory_share 0\.5 is what accumulation 'auto' plans with, not 1"):
        run.training.replace(memory_share=0.5)
    assert run.training.replace(memory_share=0.5, accumulation="auto").memory_share == 0.5
    for betas in ((1.5, 0.9), (0.9, 1.0), (-0.1, 0.9)):
        with pytest.raises(UsageError, match="betas"):
            run.training.optimizer.replace(betas=betas)
    with pytest.raises(UsageError, match="threads"):  # OpenMP dies of that many
        run.training.replace(threads=100_000)
    for name in ("quantum", "meta", "cuda:x", "cpu:1:2"):
        with pytest.raises(UsageError, match="give auto, cpu, cuda"):
            choose_device(name)


def test_a_run_that_diverges_has_a_summary(data: Path, tmp_path: Path) -> None:
    run = small_run(data)
    training = run.training.replace(steps=2, optimizer=run.training.optimizer.replace(learning_rate=1e30))
    train(run.replace(training=training), tmp_path / "run", device="cpu")
    assert storage.read_json(tmp_path / "run" / "summary.json")["validation_loss"] is None


@guards("training.begin.past")
def test_a_run_that_is_refused_leaves_the_directory_as_it_was(data: Path, tmp_path: Path) -> None:
    run = small_run(data)
    train(run, tmp_path / "run", device="cpu")

    def files() -> dict[str, tuple[bytes, int]]:
        found = {str(path): path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}
        return {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in found.items()}

    before = files()
    for other, resume, changed, error in (
        (run, False, (), "holds a run"),
        (run.replace(seed=5), True, (), "seed"),
        (run.replace(training=run.training.replace(steps=STEPS - 1)), True, ("training.steps",), f"is at step {STEPS}, past {STEPS - 1}"),
    ):
        with pytest.raises(UsageError, match=error):
            train(other, tmp_path / "run", resume=resume, device="cpu", allow_change=changed)
        assert files() == before, error


def test_what_the_last_session_came_to_holds_no_more_when_a_run_goes_on(data: Path, tmp_path: Path) -> None:
    run = small_run(data)
    train(run, tmp_path / "run", device="cpu")
    assert look(tmp_path / "run")["state"] == "finished"
    storage.write_json(tmp_path / "run" / "failure.json", {})
    longer = run.replace(training=run.training.replace(steps=STEPS + 1).resolve("cpu"))
    prepared = longer.data.build(seed=0, device="cpu", executed_steps=longer.executed_steps)
    trainer = build_trainer(longer, prepared, tmp_path / "run", torch.device("cpu"))

    def killed() -> Batch:
        raise KeyboardInterrupt

    trainer.stream.next = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(resume=True, allow_change=("training.steps",))
    prepared.close()
    assert not [name for name in ("summary.json", "offline.json", "failure.json") if (tmp_path / "run" / name).exists()]
    row = look(tmp_path / "run")
    assert (row["state"], row["offline"]) == ("stopped", None)
