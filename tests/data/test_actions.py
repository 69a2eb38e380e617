import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deftly.contract import Camera, Embodiment, RelativeActions, Vector, Window
from deftly.data.actions import ActionsConfig, features, from_relative, past_to_relative, reference, to_relative
from deftly.types import UsageError

# within a factor of 2^29 of each other, or 0
NUMBERS = st.floats(2.0**-10, 2.0**10, width=32) | st.floats(-(2.0**10), -(2.0**-10), width=32) | st.just(0.0)
BOTH = [RelativeActions(kind=kind, state_of=(1, None, 0)) for kind in ("relative", "delta")]


def arm(action_kind: str = "joint_target") -> Embodiment:
    return Embodiment(
        name="arm",
        rate_hz=10,
        cameras=(Camera(name="head", height=8, width=8),),
        state=Vector(names=("elbow", "wrist", "width"), units=("rad", "rad", "m")),
        action=Vector(names=("wrist", "gripper", "elbow"), units=("rad", "1", "deg")),
        action_kind=action_kind,
    )


@pytest.mark.parametrize("relative", BOTH, ids=lambda r: r.kind)
@given(chunk=arrays(np.float32, (2, 5, 3), elements=NUMBERS), state=arrays(np.float32, (2, 4), elements=NUMBERS))
def test_what_is_turned_around_comes_back_to_the_bit(relative, chunk, state):
    there = to_relative(chunk, state, relative)
    assert there.dtype == np.float64
    assert np.array_equal(from_relative(there, state, relative).astype(np.float32), chunk)


def test_relative_is_minus_the_state_now_and_delta_minus_the_step_before():
    chunk, state = np.array([[1, 2, 3], [4, 6, 8], [9, 1, 5]], np.float32), np.array([10, 20, 30], np.float32)
    assert to_relative(chunk, state, BOTH[0]).tolist() == [[-19, 2, -7], [-16, 6, -2], [-11, 1, -5]]
    assert to_relative(chunk, state, BOTH[1]).tolist() == [[-19, 2, -7], [3, 6, 5], [5, 1, -3]]
    assert past_to_relative(chunk, state, BOTH[0]).tolist() == past_to_relative(chunk, state, BOTH[1]).tolist()
    assert past_to_relative(chunk, state, BOTH[1])[0].tolist() == [-19, 2, -7]
    assert reference(state, BOTH[0]).tolist() == [20, 0, 10]


@pytest.mark.parametrize("relative", BOTH, ids=lambda r: r.kind)
def test_a_robot_that_stands_elsewhere_does_the_same(relative):
    """Moving state and actions together changes nothing of what the policy sees, where the dimensions are counted from the state."""
    draw = np.random.default_rng(0)
    chunk, state = draw.integers(-9, 9, (4, 3)).astype(np.float32), draw.integers(-9, 9, 3).astype(np.float32)
    moved, place = chunk + np.array([5, 0, 7], np.float32), state + np.array([7, 5, 0], np.float32)
    assert np.array_equal(to_relative(moved, place, relative), to_relative(chunk, state, relative))


def test_statistics_of_another_way_to_count_have_another_name():
    window = Window(frames=2, chunk=4)
    assert features(None, window) == ("action", "action")
    names = {features(relative, window) for relative in BOTH}
    names |= {features(BOTH[0], window.replace(chunk=5)), features(BOTH[0].replace(state_of=(0, None, 1)), window)}
    assert len(names) == 4


def test_by_default_dimensions_of_the_same_name_and_unit_are_matched():
    assert ActionsConfig().build(arm()) is None
    assert ActionsConfig(kind="relative").build(arm()) == RelativeActions(kind="relative", state_of=(1, None, None))
    chosen = ActionsConfig(kind="delta", state_of={"gripper": "width", "wrist": None})
    assert chosen.build(arm()) == RelativeActions(kind="delta", state_of=(None, 2, None))


@pytest.mark.parametrize(
    ("config", "robot", "message"),
    [
        (ActionsConfig(kind="relative"), arm("joint_delta"), "relative already"),
        (ActionsConfig(kind="relative", state_of={"rist": "wrist"}), arm(), "no action dimension 'rist'; it has wrist, gripper, elbow"),
        (ActionsConfig(kind="relative", state_of={"wrist": "rist"}), arm(), "no state dimension 'rist'"),
        (ActionsConfig(kind="relative", state_of={"wrist": None}), arm(), "say which in actions.state_of"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_one_line(config, robot, message):
    with pytest.raises(UsageError, match=message) as caught:
        config.build(robot)
    assert "\n" not in str(caught.value)


def test_a_setting_without_effect_is_refused():
    with pytest.raises(UsageError, match="kind is recorded"):
        ActionsConfig.parse({"state_of": {"wrist": "wrist"}}, "test")
