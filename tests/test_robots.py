"""One policy for two robots: trained from one run, resumed exactly, acting for each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import deftly
from deftly import storage
from deftly.agent import ROBOTS, load
from deftly.contract import Camera, Embodiment, Vector, Window
from deftly.data.actions import ActionsConfig
from deftly.data.augment import OFF
from deftly.data.source import Source
from deftly.recipes import RECIPES
from deftly.run import Run, train
from deftly.types import DataError, Observation, UsageError
from small_data import write_dataset

LEG = Embodiment(
    name="leg",
    rate_hz=5,
    cameras=(Camera(name="front", height=24, width=32), Camera(name="foot", height=16, width=16, role="wrist")),
    state=Vector(names=tuple(f"s{i}" for i in range(7)), units=("rad",) * 7),
    action=Vector(names=("s0", "s3"), units=("rad", "rad"), low=(-9, -9), high=(9, 9)),
    action_kind="joint_target",
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("robots")
    return write_dataset(folder / "arm", (9, 7, 8, 6)), write_dataset(folder / "leg", (5, 8, 7), embodiment=LEG)


def run_of(roots: tuple[Path, Path], steps: int = 8) -> Run:
    run = RECIPES["imitate"](True)
    leg = Source(path=roots[1], cameras={"head": "front", "foot": "foot"}, actions=ActionsConfig(kind="relative"), weight=2)
    data = run.data.replace(
        path=roots[0], mixture=(leg,), validation_fraction=0.3, image_size=24, window=Window(frames=2, chunk=8, past_actions=True)
    )
    training = run.training.replace(steps=steps, checkpoint_every=4, validate_every=4, log_every=1, ema_decay=0.9, threads=1)
    return run.replace(data=data, training=training)


@pytest.fixture(scope="module")
def trained(roots, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(run_of(roots), run, device="cpu")
    return run


def observation(roots: tuple[Path, Path], trained: Path, number: int, frame: int = 3) -> tuple[Observation, np.ndarray]:
    """What robot `number` recorded in a frame of its first episode, and the action commanded before."""
    dataset = run_of(roots).data.replace(augmentation=OFF).build(seed=0, device="cpu", executed_steps=2).parts[number].dataset
    images = {camera: dataset.frames(0, camera, np.array([frame]))[0] for camera in dataset.cameras}
    task = dataset.tasks[int(dataset.task_of_frame[frame])]
    return Observation(images=images, state=dataset.state[frame], instruction=task), dataset.action[frame - 1]


@pytest.mark.parametrize(("number", "robot"), [(0, "toy"), (1, "leg")])
def test_a_policy_acts_for_each_robot_as_the_loader_showed_it(roots, trained, number, robot):
    agent = deftly.load(trained, robot=robot)
    assert agent.contract.embodiment.name == robot
    seen, before = observation(roots, trained, number)
    action = agent.act(seen)
    assert action.shape == (len(agent.contract.embodiment.action),)
    assert np.isfinite(action).all()
    data = run_of(roots).data.replace(augmentation=OFF).build(seed=0, device="cpu", executed_steps=8)
    part = data.parts[number]
    loaders = [part.train, part.validation]
    batch, i = next((b, i) for loader in loaders for b in loader.batches() for i in range(len(b)) if (b.episode[i], b.frame[i]) == (0, 3))
    earlier, _ = observation(roots, trained, number, frame=2)
    mine = agent.encode([earlier, seen], [part.dataset.action[1], before])
    for name in ("state", "past_actions", "state_dim_is_pad", "action_dim_is_pad", "embodiment"):
        assert torch.equal(getattr(mine, name)[0], getattr(batch, name)[i]), name
    for camera in batch.images:
        assert torch.equal(mine.images[camera][0], batch.images[camera][i])
        assert mine.camera_is_missing[camera][0] == batch.camera_is_missing[camera][i]


def test_the_robots_share_weights_but_not_units(trained):
    arm, leg = load(trained), load(trained, robot="leg")
    assert all(torch.equal(a, b) for a, b in zip(arm.policy.parameters(), leg.policy.parameters(), strict=True))
    assert arm.contract.statistics_hash != leg.contract.statistics_hash
    assert (arm.contract.actions, leg.contract.actions.kind) == (None, "relative")
    assert arm.contract.cameras == leg.contract.cameras == ("head", "wrist", "foot")
    assert arm.contract.recorded_cameras() == {"head": "head", "wrist": "wrist"}
    assert leg.contract.recorded_cameras() == {"head": "front", "foot": "foot"}
    leg.check(LEG)
    with pytest.raises(DataError, match="does not match"):
        arm.check(LEG)
    with pytest.raises(UsageError, match="does not act for a robot 'lge'; it knows toy, leg"):
        load(trained, robot="lge")


def test_each_robot_is_judged_in_its_own_units(trained):
    results = json.loads((trained / "offline_datasets.json").read_text())
    mean = json.loads((trained / "offline.json").read_text())
    assert len(results) == 2
    for name in ("policy", "mean_action", "repeat_last"):
        assert np.isclose(mean[name]["l1_per_spread"], np.mean([result[name]["l1_per_spread"] for result in results.values()]))
    assert [len(result["policy"]["by_dimension"]) for result in results.values()] == [4, 2]


def test_a_resumed_mixture_ends_in_the_same_bits(roots, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "checkpoints" / "last").write_text("step-00000004\n")
    (run / "checkpoints" / "best").unlink(missing_ok=True)
    train(run_of(roots), run, resume=True, device="cpu")
    for name in ("objective.safetensors", "raw.safetensors", "optimizer.safetensors"):
        assert storage.sha256(run / "checkpoints/step-00000008" / name) == storage.sha256(trained / "checkpoints/step-00000008" / name)


def test_folds_of_a_mixture_are_refused(roots):
    with pytest.raises(UsageError, match=r"leave data\.mixture out"):
        run_of(roots).replace(folds=2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v.update(robots=3), "not a list of robots"),
        (lambda v: v["robots"][0].pop("contract"), "not a list of robots"),
        (lambda v: v["robots"][0].update(statistics=3), "not statistics"),
        (lambda v: v["robots"][0]["contract"].update(robot_index=7), "robot_index 7 of 2"),
        (lambda v: v["robots"][0]["statistics"]["action"]["q99"].append(1.0), "set of statistics is not the contract's"),
    ],
)
def test_broken_robots_are_refused_in_one_line(trained, tmp_path, damage, message):
    policy = tmp_path / "policy"
    shutil.copytree(trained / "checkpoints/step-00000008/policy", policy)
    values = json.loads((policy / ROBOTS).read_text())
    damage(values)
    (policy / ROBOTS).write_text(json.dumps(values))
    about = storage.read_json(policy / "manifest.json")
    storage.write_manifest(policy, {key: value for key, value in about.items() if key != "files"})
    with pytest.raises(DataError, match=message) as caught:
        load(policy, robot="leg")
    assert "\n" not in str(caught.value)
