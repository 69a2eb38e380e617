"""The demonstrator recovers, its labels depend on the state alone, and nearly all of its episodes succeed."""

import collections
import functools
from collections.abc import Callable

import numpy as np
import pytest

from deftly.sim import robot
from deftly.sim.expert import CENTRE, HOVER_Z, LIFT_Z, Disturbance, DisturbanceConfig, Expert
from deftly.sim.processes import run
from deftly.sim.scene import TYPES, sample_scene
from deftly.sim.tabletop import Tabletop, TabletopConfig

SCENE = sample_scene(np.random.default_rng(0))


def play(world: Tabletop, seed: int, config: DisturbanceConfig) -> tuple[str, int]:
    world.reset(seed=seed)
    assert world.scene is not None
    expert, disturb, steps = Expert(world), config.build(seed, world.scene), 0
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
    world.reset(seed=4)
    assert world.scene is not None
    disturb = DisturbanceConfig(share=1.0).build(4, world.scene)
    expert = Expert(world)
    while world.outcome() == "running":
        label = expert.act()
        assert np.array_equal(label, Expert(world).act())
        assert label.dtype == np.float32
        assert ((label >= low) & (label <= high)).all()
        world.step(disturb(label))


def test_the_label_shows_where_the_object_is_until_it_is_lifted() -> None:
    world = TabletopConfig().build(render=False)
    for seed in range(6):
        world.reset(seed=seed)
        expert = Expert(world)
        while world.outcome() == "running":
            label = expert.act()
            if label[3] == 1.0 and label[2] == np.float32(LIFT_Z):
                break
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
        disturb = DisturbanceConfig(detour_share=0.0).build(seed, SCENE)
        executed = np.array([disturb(label) for _ in range(30)])
        assert np.array_equal(label, kept)
        assert np.abs(executed[:, :2] - label[:2]).max() < 2 * 0.05 + 0.02
        changed["any"] += bool((executed != label).any())
        changed["grip"] += bool((executed[:, 3] != label[3]).any())
        assert disturb.active == bool((executed != label).any())
    assert 18 <= changed["any"] <= 42
    assert changed["grip"] >= 2


def test_a_detour_leads_to_another_object_and_ends() -> None:
    label = np.array([0.4, 0.1, 0.2, 0.0], np.float32)
    config = DisturbanceConfig(share=1.0, detour_share=1.0, num_pushes=0, grip_share=0.0, noise_m=0.0)
    lowest = []
    for seed in range(40):
        disturb = config.build(seed, SCENE)
        executed = np.array([disturb(label) for _ in range(30)])
        astray = np.abs(executed[:, :2] - label[:2]).max(axis=1) > 1e-6
        assert astray[0]
        assert not astray[20:].any()
        others = [np.array([item.x, item.y]) for i, item in enumerate(SCENE.objects) if i != SCENE.target]
        assert min(np.abs(executed[0, :2] - place).max() for place in others) < 0.08
        lowest.append(executed[astray, 2].min())
    assert min(lowest) < 0.08
    assert max(lowest) == np.float32(HOVER_Z)


def test_the_lift_draws_to_the_centre() -> None:
    """Playing the label moves what is held nearer to the middle of the table, never further out."""
    world = TabletopConfig().build(render=False)
    for seed in range(6):
        world.reset(seed=seed)
        expert, away = Expert(world), []
        while world.outcome() == "running":
            label = expert.act()
            if label[3] == 1.0 and label[2] == np.float32(LIFT_Z):
                away.append(float(np.linalg.norm(world.physics.object_poses()[world.target][:2] - CENTRE)))
            world.step(label)
        assert away[-1] < max(0.75 * away[0], 0.03)


def test_a_share_of_zero_changes_nothing() -> None:
    label = np.array([0.5, 0.0, 0.1, 1.0], np.float32)
    disturb = Disturbance(DisturbanceConfig(share=0.0), np.random.default_rng(0), SCENE)
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
