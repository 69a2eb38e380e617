"""The demonstrator recovers, its labels depend on the state alone, and nearly all of its episodes succeed."""

import collections
import functools
from collections.abc import Callable

import numpy as np
import pytest

from deftly.sim import robot
from deftly.sim.expert import LIFT_Z, Disturbance, DisturbanceConfig, Expert
from deftly.sim.processes import run
from deftly.sim.scene import TYPES
from deftly.sim.tabletop import Tabletop, TabletopConfig


def play(world: Tabletop, seed: int, config: DisturbanceConfig) -> tuple[str, int]:
    world.reset(seed=seed)
    expert, disturb, steps = Expert(world), config.build(seed), 0
    while world.outcome() == "running":
        world.step(disturb(expert.act()))
        steps += 1
    return world.outcome(), steps


def player(kind: str, config: DisturbanceConfig) -> Callable[[int], tuple[str, int]]:
    return functools.partial(_play_seed, TabletopConfig(target_types=(kind,)).build(render=False), config)


def _play_seed(world: Tabletop, config: DisturbanceConfig, seed: int) -> tuple[str, int]:
    return play(world, seed, config)


def test_labels_are_within_the_limits_and_a_function_of_the_state() -> None:
    world = TabletopConfig().build(render=False)
    low, high = (np.array(v, np.float32) for v in (world.embodiment.action.low, world.embodiment.action.high))
    disturb = DisturbanceConfig(share=1.0).build(4)
    world.reset(seed=4)
    expert = Expert(world)
    while world.outcome() == "running":
        label = expert.act()
        assert np.array_equal(label, Expert(world).act())
        assert label.dtype == np.float32
        assert ((label >= low) & (label <= high)).all()
        world.step(disturb(label))


def test_the_label_shows_where_the_object_is_in_every_frame() -> None:
    world = TabletopConfig().build(render=False)
    for seed in range(6):
        world.reset(seed=seed)
        expert = Expert(world)
        while world.outcome() == "running":
            label = expert.act()
            assert np.abs(label[:2] - world.physics.object_poses()[world.target][:2]).max() < 0.02
            world.step(label)


def test_a_dropped_object_is_picked_up_again() -> None:
    world = TabletopConfig(target_types=("box",)).build(render=False)
    world.reset(seed=2)
    expert = Expert(world)
    while world.physics.heights()[world.target] < 0.06:
        world.step(expert.act())
    while world.physics.heights()[world.target] > 0.01:  # let go
        world.step(np.array([*world.physics.tip(), 0.0], np.float32))
    assert expert.act()[3] == 0.0
    while world.outcome() == "running":
        world.step(expert.act())
    assert world.outcome() == "success"


def test_a_closed_gripper_is_opened_before_going_down() -> None:
    world = TabletopConfig(target_types=("cup",)).build(render=False)
    world.reset(seed=3)
    expert = Expert(world)
    for _ in range(6):
        world.step(np.array([*world.physics.tip(), 1.0], np.float32))
    label = expert.act()
    assert label[3] == 0.0
    assert label[2] > 0.15


def test_disturbances_touch_what_is_executed_never_the_label() -> None:
    label = np.array([0.5, 0.0, 0.1, 0.0], np.float32)
    kept = label.copy()
    changed = collections.Counter()
    for seed in range(60):
        disturb = DisturbanceConfig().build(seed)
        executed = np.array([disturb(label) for _ in range(30)])
        assert np.array_equal(label, kept)
        assert np.abs(executed[:, :2] - label[:2]).max() < 2 * 0.05 + 0.02
        changed["any"] += bool((executed != label).any())
        changed["grip"] += bool((executed[:, 3] != label[3]).any())
        assert disturb.active == bool((executed != label).any())
    assert 12 <= changed["any"] <= 36
    assert changed["grip"] >= 2


def test_a_share_of_zero_changes_nothing() -> None:
    label = np.array([0.5, 0.0, 0.1, 1.0], np.float32)
    disturb = Disturbance(DisturbanceConfig(share=0.0), np.random.default_rng(0))
    assert all(np.array_equal(disturb(label), label) for _ in range(20))


def test_the_lift_target_is_above_what_success_needs() -> None:
    assert robot.WORKSPACE_HIGH[2] > LIFT_Z > 0.10 + 0.06


def test_disturbed_episodes_mostly_succeed() -> None:
    outcomes = [outcome for kind in TYPES for outcome, _ in map(player(kind, DisturbanceConfig(share=1.0)), range(4))]
    assert outcomes.count("success") >= 15


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, DisturbanceConfig().share])
@pytest.mark.parametrize("kind", TYPES)
def test_expert_success_is_at_least_95_percent(kind: str, share: float) -> None:
    results = list(run(functools.partial(player, kind, DisturbanceConfig(share=share)), range(200)))
    counts = collections.Counter(outcome for outcome, _ in results)
    lengths = [steps for outcome, steps in results if outcome == "success"]
    print(f"{kind}, disturbed {share:g}: {dict(counts)}, {np.mean(lengths):.1f} steps on average, {max(lengths)} at most")
    assert counts["success"] >= 190
