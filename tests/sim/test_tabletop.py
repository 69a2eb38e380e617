"""The demo world: a function of its seed, fair in what counts as success, and strict about actions."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from deftly.sim import robot
from deftly.sim.expert import HOVER_Z, Expert
from deftly.sim.randomization import RandomizationConfig
from deftly.sim.scene import COLOURS, TYPES
from deftly.sim.tabletop import HOLD_S, LIFT_HEIGHT_M, Tabletop, TabletopConfig

SMALL = TabletopConfig(image_size=48)


@pytest.fixture(scope="module")
def world() -> Tabletop:
    return SMALL.build(render=False)


def digest(seed: int, world: Tabletop) -> str:
    """Everything that an episode of the expert shows, as one hash."""
    observation, info = world.reset(seed=seed)
    parts = [json.dumps({k: v for k, v in info.items() if k != "object_poses"}, sort_keys=True).encode()]
    expert = Expert(world)
    for step in range(15):
        parts += [observation["state"].tobytes(), observation["instruction"].encode()]
        if step % 7 == 0:
            parts += [image.tobytes() for image in observation["images"].values()]
        observation, *_, info = world.step(expert.act())
        parts.append(info["object_poses"].tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_same_seed_same_bytes_in_every_process() -> None:
    world = SMALL.build()
    first = [digest(seed, world) for seed in (5, 6)]
    assert first[0] != first[1]
    assert [digest(6, world), digest(5, world)] == first[::-1]  # whatever was played before
    code = "import sys; sys.path.insert(0, 'tests/sim'); import test_tabletop as t; print(t.digest(5, t.SMALL.build()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == first[0]


def test_randomisation_leaves_scene_and_sentence(world: Tabletop) -> None:
    plain = SMALL.replace(randomization=RandomizationConfig.off()).build(render=False)
    for seed in range(5):
        (first, a), (second, b) = world.reset(seed=seed), plain.reset(seed=seed)
        assert a["scene"] == b["scene"]
        assert first["instruction"] == second["instruction"]


def test_everything_stands_still_at_the_start(world: Tabletop) -> None:
    """Nothing spawns in contact with another object or sinks, slides or falls."""
    for seed in range(60):
        _, info = world.reset(seed=seed)
        assert not info["success"]
        for item, pose in zip(info["scene"]["objects"], info["object_poses"], strict=True):
            assert np.hypot(pose[0] - item["x"], pose[1] - item["y"]) < 0.002
            assert abs(pose[2] - item["z"]) < 0.002
        before = info["object_poses"]
        for _ in range(5):
            *_, info = world.step(world.idle_action())
        assert np.abs(info["object_poses"][:, :3] - before[:, :3]).max() < 0.002


def test_the_idle_action_is_idle(world: Tabletop) -> None:
    for seed in range(10):
        observation, _ = world.reset(seed=seed)
        before = observation["state"]
        for _ in range(10):
            observation, *_ = world.step(world.idle_action())
        assert np.abs(observation["state"] - before).max() < 0.01
        assert world.outcome() == "running"


def test_the_arm_goes_where_it_is_told_at_bounded_speed(world: Tabletop) -> None:
    world.reset(seed=1)
    target, last = np.array([0.60, -0.15, 0.20, 0.0], np.float32), None
    for _ in range(20):
        observation, *_ = world.step(target)
        tip = observation["state"][6:9]
        assert last is None or np.linalg.norm(tip - last) < 1.4 * robot.TIP_SPEED / robot.RATE_HZ
        last = tip
    assert np.linalg.norm(last - target[:3]) < 0.002


@pytest.mark.parametrize("kind", TYPES)
def test_the_expert_picks_what_is_named(kind: str) -> None:
    world = SMALL.replace(target_types=(kind,)).build(render=False)
    expert = Expert(world)
    for seed in range(12):
        world.reset(seed=seed)
        done = False
        while not done:
            _, reward, terminated, truncated, info = world.step(expert.act())
            done = terminated or truncated
        assert (world.outcome(), reward, info["success"], info["lifted"]) == ("success", 1.0, True, world.target)
        assert info["carried"] == world.target
        assert info["attempted"]
        assert info["clipped"] == 0


def test_success_takes_a_whole_second(world: Tabletop) -> None:
    world.reset(seed=0)
    expert, above = Expert(world), 0
    while world.outcome() == "running":
        assert above < round(HOLD_S * robot.RATE_HZ)
        *_, info = world.step(expert.act())
        above = above + 1 if world.physics.heights()[world.target] >= LIFT_HEIGHT_M else 0
        assert info["success"] == (above >= 10)
    assert (world.outcome(), above) == ("success", 10)


def test_lifting_another_object_first_ends_in_failure(world: Tabletop) -> None:
    for seed in range(3):
        _, info = world.reset(seed=seed)
        asked, other = world.target, info["scene"]["other"]
        expert, terminated = Expert(world), False
        while not terminated:
            world.target = other  # the expert is told to handle the other object ...
            label = expert.act()
            world.target = asked  # ... and judged on the one that was asked for
            _, reward, terminated, _, info = world.step(label)
        assert (world.outcome(), reward, info["success"], info["lifted"]) == ("wrong_object", 0.0, False, other)
        assert info["carried"] == other
        with pytest.raises(ValueError, match="the episode is over"):
            world.step(world.idle_action())


def test_time_over(world: Tabletop) -> None:
    short = SMALL.replace(horizon_s=1.0).build(render=False)
    short.reset(seed=0)
    ends = [short.step(short.idle_action())[2:4] for _ in range(10)]
    assert ends == [(False, False)] * 9 + [(False, True)]
    assert short.outcome() == "timeout"
    _, info = short.reset(seed=0)
    x, y, z = info["object_poses"][0][:3]
    for _ in range(10):
        *_, info = short.step(np.array([x, y, HOVER_Z, 0.0], np.float32))
    assert short.outcome() == "timeout"
    long = SMALL.replace(horizon_s=3.0).build(render=False)
    long.reset(seed=0)
    for step in range(30):  # beside the object, closing on air
        *_, info = long.step(np.array([x + 0.055, y, max(z, 0.03), float(step > 20)], np.float32))
    assert info["attempted"]
    assert long.outcome() == "missed_grasp"


@pytest.mark.parametrize("bad", [[np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [0.4, 0, 0.2], [[0.4, 0, 0.2, 0]], []])
def test_wrong_actions_are_refused(world: Tabletop, bad: list) -> None:
    world.reset(seed=0)
    with pytest.raises(ValueError, match="action") as caught:
        world.step(np.array(bad, np.float32))
    assert "\n" not in str(caught.value)


def test_actions_beyond_the_limits_are_clipped_and_counted(world: Tabletop) -> None:
    world.reset(seed=0)
    *_, info = world.step(np.array(world.embodiment.action.high, np.float32))
    assert info["clipped"] == 0  # a limit is allowed, also where its float32 is a hair beyond
    for step in range(1, 30):
        *_, info = world.step(np.array([9.0, 0.0, 0.2, 0.0], np.float32))
        assert info["clipped"] == step
    assert world.physics.tip()[0] < world.embodiment.action.high[0] + 0.005


def test_a_sentence_of_the_users_own(world: Tabletop) -> None:
    for seed in range(8):
        _, info = world.reset(seed=seed)
        other = info["scene"]["objects"][info["scene"]["other"]]
        observation, swapped = world.reset(seed=seed, options={"instruction": f"Get the {other['colour']} {other['type']}, please"})
        assert swapped["scene"]["target"] == info["scene"]["other"] == world.target
        assert swapped["scene"]["other"] == info["scene"]["target"]
        assert swapped["state_hash"] == info["state_hash"]
        assert observation["instruction"].startswith("Get the")
    absent = next(c for c in COLOURS if all(item["colour"] != c for item in info["scene"]["objects"]))
    with pytest.raises(ValueError, match=r"fits no object of this scene, which has the .*, the "):
        world.reset(seed=7, options={"instruction": f"grab the {absent} one"})
    with pytest.raises(ValueError, match="unknown reset option 'scene'"):
        world.reset(seed=1, options={"scene": {}})


def test_sentences_for_others_change_nothing(world: Tabletop) -> None:
    _, info = world.reset(seed=3)
    before = world.instruction
    texts = {world.sentence_for(index) for index in range(len(info["scene"]["objects"]))}
    assert before in texts
    assert len(texts) == len(info["scene"]["objects"])
    assert (world.instruction, world.target) == (before, info["scene"]["target"])
    with pytest.raises(ValueError, match="no object 7"):
        world.sentence_for(7)


def test_the_state_says_nothing_about_the_objects(world: Tabletop) -> None:
    observation, _ = world.reset(seed=0)
    assert len(observation["state"]) == len(world.embodiment.state) == 10
    start = world.physics._qpos[0]
    world.physics.data.qpos[start] += 0.1
    assert np.array_equal(world.observe()["state"], observation["state"])


@pytest.mark.parametrize("seed", [None, -1, 1.5, True])
def test_a_seed_is_needed(world: Tabletop, seed: object) -> None:
    with pytest.raises(ValueError, match="needs a seed"):
        world.reset(seed=seed)


def test_configs_are_checked() -> None:
    for values, part in (
        ({"num_objects": (1, 2)}, "within 2..4"),
        ({"target_types": ("cup", "spoon")}, "unknown type 'spoon'"),
        ({"cameras": ("head", "head")}, "listed twice"),
        ({"colors": ("red",)}, "colours"),
    ):
        with pytest.raises(ValueError, match=part):
            TabletopConfig.parse(values, where="world")


def test_info_is_json_but_for_arrays(world: Tabletop) -> None:
    _, info = world.reset(seed=0)
    json.dumps({name: value for name, value in info.items() if name != "object_poses"})
