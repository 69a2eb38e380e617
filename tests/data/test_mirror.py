import numpy as np
import pytest
import torch

from deftly.cli import data as command
from deftly.contract import Camera, DepthCamera, Embodiment, Mirror, Vector
from deftly.data.dataset import Dataset
from deftly.data.depth import partner
from deftly.data.mirror import draw_mirrored, mirror_action, mirror_by_names, mirror_state
from deftly.sim import robot
from deftly.types import UsageError
from small_data import robot as toy
from small_data import write_dataset

PAIR = Mirror(
    state_order=(1, 0, 2), state_sign=(-1, -1, 1), action_order=(0, 1), action_sign=(1, -1), cameras={"left": "right", "right": "left"}
)


def two_handed(**changes: object) -> Embodiment:
    values = {
        "name": "two-handed",
        "rate_hz": 10,
        "cameras": tuple(Camera(name=name, height=8, width=8) for name in ("left", "right")),
        "state": Vector(names=("left_y", "right_y", "z"), units=("m",) * 3),
        "action": Vector(names=("x", "y"), units=("m",) * 2),
        "mirror": PAIR,
    }
    return Embodiment.parse({**values, **changes}, "test")


def test_twice_is_nothing_and_shapes_and_types_stay():
    draw = np.random.default_rng(0)
    state, action = draw.normal(size=(4, 2, 3)).astype(np.float32), draw.normal(size=(4, 5, 2)).astype(np.float32)
    assert np.array_equal(mirror_state(mirror_state(state, PAIR), PAIR), state)
    assert np.array_equal(mirror_action(mirror_action(action, PAIR), PAIR), action)
    assert mirror_state(state, PAIR).dtype == np.float32
    assert np.array_equal(mirror_state(np.array([1.0, 2.0, 3.0]), PAIR), [-2, -1, 3])
    assert np.array_equal(mirror_action(np.array([1.0, 2.0]), PAIR), [1, -2])


def test_draws_belong_to_the_sample():
    key = torch.arange(5000)
    mirrored = draw_mirrored(key, 0.3)
    assert abs(mirrored.mean() - 0.3) < 0.02
    assert np.array_equal(mirrored[100:200], draw_mirrored(key[100:200], 0.3))
    assert not draw_mirrored(key, 0).any()
    assert draw_mirrored(key, 1).all()
    assert (mirrored <= draw_mirrored(key, 0.6)).all(), "a larger share keeps the smaller one's samples"


def test_an_embodiment_takes_a_mirror_that_fits():
    assert two_handed().mirror == PAIR
    assert Embodiment.parse(two_handed().to_dict(), "round trip") == two_handed()
    assert two_handed(mirror=None).mirror is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_order": (1, 2, 0)}, "twice"),
        ({"state_order": (0, 0, 2)}, "every dimension once"),
        ({"state_sign": (-1, 1, 1)}, "twice"),
        ({"state_sign": (-1, -2, 1)}, "state_sign"),
        ({"action_sign": (1,)}, "each its sign"),
        ({"cameras": {"left": "right", "right": "right"}}, "must show"),
        ({"cameras": {"left": "left"}}, "the robot's are left, right"),
        ({"action_order": (0, 1, 2), "action_sign": (1, 1, 1)}, "3 entries for 2 dimensions"),
    ],
)
def test_a_mirror_that_is_none_is_refused(change: dict, message: str):
    with pytest.raises(UsageError, match=message):
        two_handed(mirror={**PAIR.to_dict(), **change})


def test_cameras_that_show_each_other_are_alike():
    cameras = (Camera(name="left", height=8, width=8), Camera(name="right", height=9, width=8))
    with pytest.raises(UsageError, match="differ in size or role"):
        two_handed(cameras=cameras)


def test_the_tabletop_robot_declares_its_mirror_for_any_choice_of_cameras():
    for cameras in (("head",), ("head", "wrist")):
        body = robot.embodiment(32, cameras)
        assert body.mirror is not None
        assert set(body.mirror.cameras) == set(cameras)
        flipped = [name for name, sign in zip(body.state.names, body.mirror.state_sign, strict=True) if sign < 0]
        assert flipped == ["base_yaw", "forearm_roll", "tool_roll", "tip_y"]
        assert body.mirror.action_sign == (1, -1, 1, 1)


def humanoid(**changes: object) -> Embodiment:
    joints = ("kLeftPitch", "kLeftRoll", "kRightPitch", "kRightRoll", "waist_yaw")
    vector = Vector(names=joints, units=("rad",) * 5)
    return two_handed(**{"state": vector, "action": vector, "mirror": None, **changes})


def test_a_mirror_is_declared_by_names():
    mirror = mirror_by_names(humanoid(), ("*Roll", "waist_yaw"))
    assert mirror.state_order == mirror.action_order == (2, 3, 0, 1, 4)
    assert mirror.state_sign == (1, -1, 1, -1, -1)
    assert mirror.cameras == {"left": "right", "right": "left"}
    upper = Vector(names=("LEFT_X", "RIGHT_X", "Left", "Right", "leftmost"), units=("",) * 5)
    with pytest.raises(UsageError, match="state 'leftmost' has no partner 'rightmost'"):
        mirror_by_names(humanoid(state=upper), ())


def test_what_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"'\*Rol' fits no dimension of 'two-handed'; did you mean 'kLeftRoll'"):
        mirror_by_names(humanoid(), ("*Rol",))
    with pytest.raises(UsageError, match=r"'zzz' fits no dimension of 'two-handed'; it has kLeft.*, ") as caught:
        mirror_by_names(humanoid(), ("zzz",))
    assert "none" not in str(caught.value)
    with pytest.raises(UsageError, match="camera 'left' has no partner 'right'"):
        mirror_by_names(humanoid(cameras=(Camera(name="left", height=8, width=8),)), ())


PARTNERS = {
    "one each": ({"near": "left", "far": "right"}, {"near": "far", "far": "near"}),
    "two of a camera that is its own partner": ({"head_depth": "head", "depth_head": "head"}, {}),
    "two each": (
        {"left_depth": "left", "depth_left": "left", "right_depth": "right", "depth_right": "right"},
        {"left_depth": "right_depth", "depth_left": "depth_right", "right_depth": "left_depth", "depth_right": "depth_left"},
    ),
    "two and one": (
        {"left_depth": "left", "depth_left": "left", "right_depth": "right"},
        {"left_depth": "right_depth", "depth_left": None, "right_depth": "left_depth"},
    ),
}


@pytest.mark.parametrize(("cameras", "partners"), PARTNERS.values(), ids=list(PARTNERS))
def test_a_mirrored_sample_never_sees_the_other_depth_camera_of_the_same_camera(cameras, partners):
    """`partners` names those that are exchanged; every other one is its own partner, None where it has none."""
    found = [DepthCamera(name=name, camera=camera, height=4, width=4) for name, camera in cameras.items()]
    mirror = PAIR.replace(cameras={"left": "right", "right": "left", "head": "head"})
    assert {one.name: partner(one, found, mirror) for one in found} == {name: partners.get(name, name) for name in cameras}


def test_a_declared_mirror_stays_with_the_dataset(tmp_path, capsys):
    root = write_dataset(tmp_path / "data", embodiment=toy())
    before = Dataset.open(root)
    command.main(["mirror", str(root), "joint_0", "target_?"])
    assert "state  joint_0 = -joint_0" in capsys.readouterr().out
    after = Dataset.open(root)
    assert after.embodiment.mirror is not None
    assert after.embodiment.mirror.state_sign == (-1, 1, 1, 1, 1)
    assert after.embodiment.mirror.action_sign == (-1, -1, -1, -1)
    assert after.embodiment.replace(mirror=None) == before.embodiment
    assert after.hash != before.hash, "training on it is another training"
    assert np.array_equal(after.state, before.state)
    with pytest.raises(UsageError, match="fits no dimension"):
        command.main(["mirror", str(root), "elbow"])
    assert Dataset.open(root).embodiment == after.embodiment
