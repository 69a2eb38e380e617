"""Names and numbers from files are checked before they become paths and shapes."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.data import schema
from deftly.data.schema import (
    DEFAULT_FEATURES,
    Feature,
    Info,
    embodiment_of,
    features_of,
    fill_path,
    flat_names,
    next_file,
    parse_feature,
    read_info,
)
from deftly.types import DataError, UsageError
from guards import guards
from small_data import robot


def info() -> Info:
    features = features_of(robot(), {"head": "video", "wrist": "image"}, {"note": ("a", "b")})
    return Info(fps=10, features=features, robot_type="toy", total_episodes=3, total_frames=30, total_tasks=2)


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_info_survives_the_way_through_json(tmp_path):
    values = info().to_dict()
    read = read_info(write(tmp_path / "info.json", values))
    assert read.to_dict() == values
    assert list(read.features)[-5:] == list(DEFAULT_FEATURES)
    assert read.cameras() == {"head": "observation.images.head", "wrist": "observation.images.wrist"}
    assert values["fps"] == 10
    assert all("names" in item for item in values["features"].values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fps", 0),
        ("fps", -3),
        ("fps", "30"),
        ("fps", True),
        ("features", []),
        ("features", {"a/b": {"dtype": "float32", "shape": [1], "names": None}}),
        ("features", {"a": {"dtype": "float32", "shape": [0], "names": None}}),
        ("features", {"a": {"dtype": "float32", "shape": [1 << 40], "names": None}}),
        ("features", {"a": {"dtype": 3, "shape": [1]}}),
        ("total_frames", -1),
        ("total_frames", 10**12),
        ("total_episodes", 1.5),
        ("data_path", None),
        ("video_path", 7),
        ("robot_type", ["x"]),
        ("codebase_version", "v4.0"),
    ],
)
def test_an_info_with_a_wrong_field_is_refused_in_one_line_with_the_file(tmp_path, field, value):
    path = write(tmp_path / "info.json", {**info().to_dict(), field: value})
    with pytest.raises(DataError) as caught:
        read_info(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_older_version_names_the_import_command(tmp_path):
    with pytest.raises(DataError, match=r"deftly data import lerobot-v2\.1"):
        read_info(write(tmp_path / "info.json", {**info().to_dict(), "codebase_version": "v2.1"}))
    with pytest.raises(DataError, match="JSON object"):
        read_info(write(tmp_path / "info.json", [1]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3),
    max_leaves=4,
)


@settings(max_examples=40)
@given(field=st.sampled_from(sorted(info().to_dict())), value=JSON)
def test_any_info_is_read_or_refused(tmp_path_factory, field, value):
    path = write(tmp_path_factory.mktemp("info") / "info.json", {**info().to_dict(), field: value})
    try:
        assert read_info(path).fps > 0
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(st.text(alphabet="{}abchunk_index:03d/.~\\\0 ", max_size=40))
def test_no_path_template_leads_outside(template):
    root = Path("/nonexistent/root")
    try:
        path = fill_path(root, template, {"chunk_index": 3}, "info.json")
    except DataError as error:
        assert "\n" not in str(error).replace("\\n", "")  # noqa: PT017
    else:
        assert path.resolve().is_relative_to(root)


@pytest.mark.parametrize(
    "template",
    [
        "../{chunk_index:03d}.parquet",
        "/etc/passwd",
        "data/{chunk_index.__class__}",
        "data/{chunk_index:099999999d}",
        "{0}",
        "data/{nobody}",
        "a/../../b",
    ],
)
def test_hostile_path_templates_are_refused(tmp_path, template):
    with pytest.raises(DataError):
        fill_path(tmp_path, template, {"chunk_index": 1}, "info.json")


def test_path_templates_are_filled(tmp_path):
    path = fill_path(tmp_path, schema.VIDEO_PATH, {"video_key": "cam", "chunk_index": 2, "file_index": 1234}, "info.json")
    assert path == tmp_path / "videos/cam/chunk-002/file-1234.mp4"


def test_a_link_out_of_the_dataset_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/data").symlink_to("/etc")
    with pytest.raises(DataError, match="outside"):
        fill_path(tmp_path / "root", "data/passwd", {}, "info.json")


def test_files_roll_over_to_the_next_chunk():
    assert next_file(0, 0) == (0, 1)
    assert next_file(0, schema.CHUNKS_SIZE - 1) == (1, 0)


def test_names_come_in_every_form_that_recorders_write():
    assert flat_names(["a", "b"]) == ("a", "b")
    assert flat_names([["a", "b"]]) == ("a", "b")
    assert flat_names({"motors": ["a", "b"], "base": ["c"]}) == ("a", "b", "c")
    assert flat_names(None) is None
    assert flat_names([]) is None


def test_image_sizes_follow_the_names_of_the_axes():
    assert Feature("video", (480, 640, 3), ("height", "width", "channel")).height_width("x") == (480, 640)
    assert Feature("video", (3, 480, 640), ("channels", "height", "width")).height_width("x") == (480, 640)
    assert Feature("image", (480, 640, 1)).image_shape("x") == (480, 640, 1)
    assert Feature("image", (3, 3, 3), ("channels", "height", "width")).image_shape("x") == (3, 3, 3)
    for shape in [(480, 640), (480, 640, 2), (3, 480, 640), (1 << 20, 4, 3), (0, 4, 3)]:
        with pytest.raises(DataError):
            Feature("video", shape).height_width("x")


@guards("data.schema.pixels")
def test_an_image_of_8k_by_8k_is_refused_by_its_declaration():
    with pytest.raises(DataError, match="8192 x 8192 are more than"):
        Feature("image", (8192, 8192, 3)).height_width("x")


@guards("data.schema.depth_unit")
def test_depth_without_a_unit_is_refused():
    assert Feature("image", (8, 8, 1), info={"depth_unit": "mm"}).metres_per_unit("x") == 0.001
    for info in (None, {"depth_unit": "inch"}):
        with pytest.raises(DataError, match="depth_unit is"):
            Feature("image", (8, 8, 1), info=info).metres_per_unit("x")


def test_features_hold_the_embodiment():
    described = embodiment_of(info(), "info.json")
    assert described.cameras == robot().cameras
    assert described.state.names == robot().state.names
    assert described.action.names == robot().action.names
    assert described.action_kind == "unspecified"
    bare = Info(
        fps=5, features={"action": Feature("float32", (2,), None)}, robot_type=None, total_episodes=0, total_frames=0, total_tasks=0
    )
    assert embodiment_of(bare, "x").action.names == ("action_0", "action_1")
    assert len(embodiment_of(bare, "x").state) == 0


def test_features_that_cannot_be_written_are_refused():
    with pytest.raises(UsageError, match="even"):
        features_of(robot(height=31), {}, {})
    assert features_of(robot(height=31), {"head": "image", "wrist": "image"}, {})["observation.images.head"].shape == (31, 32, 3)
    for name in ("action", "timestamp", "a/b"):
        with pytest.raises(UsageError, match="collides"):
            features_of(robot(), {}, {name: ("x",)})


def test_what_a_feature_is():
    assert parse_feature("a", {"dtype": "float64", "shape": [2]}, "x").is_numeric
    assert parse_feature("a", {"dtype": "video", "shape": [2, 2, 3], "info": {"video.fps": 3}}, "x").is_camera
