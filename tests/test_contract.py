"""Contracts compare to the leaf, and say what differs in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly.contract import Camera, Contract, Embodiment, Vector, Window, differences, fingerprint, require_same
from deftly.types import DataError, UsageError

ARM = Embodiment(
    name="arm",
    rate_hz=10,
    cameras=(Camera(name="head", height=96, width=96), Camera(name="wrist", height=96, width=96, role="wrist")),
    state=Vector(names=("x", "y"), units=("m", "m")),
    action=Vector(names=("x", "y"), units=("m", "m"), low=(-1, -1), high=(1, 1)),
    action_kind="end_effector_target",
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def contract(**changes: object) -> Contract:
    values = {
        "embodiment": ARM,
        "cameras": ("head",),
        "image_size": 96,
        "window": Window(),
        "executed_steps": 4,
        "normalization": "quantile",
        "statistics_hash": "s",
        "tokenizer_hash": "t",
        "text_length": 8,
        "dataset_hash": "d",
    }
    return Contract.parse({**values, **changes}, where="test")


@given(PLAIN)
def test_nothing_differs_from_itself(value: object):
    assert differences(value, value) == []


@given(st.dictionaries(st.text(min_size=1, max_size=2), st.integers(), min_size=1, max_size=4), st.data())
def test_one_changed_leaf_is_one_difference_and_names_it(values: dict[str, int], data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(values)))
    lines = differences(values, {**values, name: values[name] + 1})
    assert lines == [f"{name}: expected {values[name]}, found {values[name] + 1}"]


def test_differences_descend_into_configs_and_lists():
    other = ARM.replace(cameras=(ARM.cameras[0].replace(width=64), ARM.cameras[1]))
    assert differences(ARM, other) == ["cameras[0].width: expected 96, found 64"]
    assert differences(contract(), contract(embodiment=other)) == ["embodiment.cameras[0].width: expected 96, found 64"]
    assert differences({"a": 1}, {"b": 1}) == ["a: expected 1, found null", "b: expected null, found 1"]


def test_a_long_value_is_shortened():
    (line,) = differences({"a": "x" * 500}, {"a": "y"})
    assert len(line) < 100


def test_require_same_is_one_line_with_the_remedy():
    require_same(ARM, ARM, "the dataset", "nothing to do")
    other = ARM.replace(rate_hz=20.0, name="leg", action_kind="joint_delta", state=Vector(names=("x",), units=("m",)))
    with pytest.raises(DataError) as error:
        require_same(ARM, other, "the dataset", "record at 10 Hz")
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("the dataset does not match: name: expected ")
    assert text.endswith("record at 10 Hz")
    assert "more)" in text, "the fourth difference and later ones are counted"


def test_fingerprint_ignores_order_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
    assert fingerprint("é") != fingerprint("e")


def test_a_contract_survives_its_file(tmp_path):
    path = tmp_path / "contract.json"
    path.write_text(contract().to_json())
    assert Contract.load(path) == contract()


def test_vectors_need_as_many_units_and_limits_as_names():
    assert len(ARM.action) == 2
    for field in ("units", "low", "high"):
        with pytest.raises(UsageError, match=f"{field} has 1 entries for 2 names"):
            ARM.action.replace(**{field: ("m",) if field == "units" else (0.0,)})


def test_an_unknown_camera_names_the_known_ones():
    assert ARM.camera("wrist").role == "wrist"
    with pytest.raises(DataError, match="no camera 'tail'; it has head, wrist"):
        ARM.camera("tail")


@pytest.mark.parametrize("field", ["frames", "chunk"])
def test_an_empty_window_is_refused(field: str):
    with pytest.raises(UsageError, match=field):
        Window.parse({field: 0}, where="test")


def test_a_contract_of_one_robot_has_the_robots_own_sizes_and_cameras():
    plain = contract()
    assert (plain.state_dim, plain.action_dim, plain.robot_index) == (2, 2, 0)
    assert plain.recorded_camera("head") == "head"
    assert plain.role_of("head") == "scene"


def test_a_contract_of_several_robots_has_the_policys():
    mixed = contract(
        widths=(7, 3),
        cameras=("front", "hand"),
        mixed_cameras={"front": {"recorded": "head", "role": "scene"}, "hand": {"recorded": None, "role": "wrist"}},
    )
    assert (mixed.state_dim, mixed.action_dim) == (7, 3)
    assert (mixed.recorded_camera("front"), mixed.recorded_camera("hand")) == ("head", None)
    assert mixed.role_of("hand") == "wrist"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (1, 2)}, "less than 'arm' has: 2 state, 2 action"),
        ({"mixed_cameras": {"rear": {"recorded": None, "role": "scene"}}}, "describes rear, cameras lists head"),
        ({"actions": {"kind": "relative", "state_of": (0,)}}, "1 entries for 2 action dimensions"),
        ({"actions": {"kind": "delta", "state_of": (0, 2)}}, r"outside of 0 \.\. 1"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        contract(**changes)
