"""RLDS folders become datasets: every value, each trajectory once, and nothing at all when something is wrong."""

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deftly.data.dataset import Dataset
from deftly.data.images import encode_depth
from deftly.data.importers.report import ImportReport
from deftly.data.importers.rlds import import_rlds, read_features
from deftly.types import DataError, UsageError
from recordings import png
from rlds_files import FEATURES, STEP, nest, tensor, trajectory, write_rlds
from small_data import picture

REAL = Path(os.environ.get("DEFTLY_REAL_DATA", "")) / "bridge_sample"


def test_every_value_arrives(tmp_path):
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0), trajectory(1, 6)], [trajectory(2)]], "test": [[trajectory(3)]]})
    report = import_rlds(source, tmp_path / "out", 8)
    dataset = Dataset.open(tmp_path / "out")
    assert (report.episodes, report.frames, report.duplicates) == (4, 18, [])
    assert report.left_out == ["language_embedding"]
    assert (dataset.fps, dataset.cameras, dataset.robot_type) == (8, ("front", "side"), "toys")
    assert dataset.tasks == ("do task 0", "do task 1")
    assert dataset.extra("source") == ["train/0#0", "train/0#1", "train/1#0", "test/0#0"]
    assert dataset.extra("source_episode_id") == [0, -1, -2, -3]
    assert dataset.extra("source_path") == ["/raw/0", "/raw/1", "/raw/2", "/raw/3"]
    for number, length in enumerate((4, 6, 4, 4)):
        given, rows = trajectory(number, length), slice(*dataset.episode_start[number : number + 2])
        assert dataset.action[rows].ravel().tolist() == given["steps/action"]
        assert dataset.state[rows].ravel().tolist() == given["steps/observation/state"]
        assert dataset.column("next.reward")[rows].ravel().tolist() == given["steps/reward"]
        assert dataset.column("next.done")[rows].ravel().tolist() == given["steps/is_terminal"]
        for camera in ("front", "side"):
            assert np.array_equal(
                dataset.frames(number, camera), np.stack([picture(10 * number + i, camera, 16, 12) for i in range(length)])
            )


def test_what_occurs_twice_is_imported_once_and_reported(tmp_path):
    again = dict(reversed(trajectory(0).items()))  # the same values in another order in the file
    again["episode_metadata/episode_id"] = [77]
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0), trajectory(1)]], "val": [[trajectory(1), again]]})
    report = import_rlds(source, tmp_path / "out", 5)
    assert report.duplicates == [("val/0#0", "train/0#1"), ("val/0#1", "train/0#0")]
    assert any("2 duplicated trajectories imported once (val/0 repeats train/0)" in line for line in report.lines())
    assert Dataset.open(tmp_path / "out").num_episodes == 2
    kept = json.loads((tmp_path / "out/meta/deftly.json").read_text())["import"]
    assert kept["duplicates_left_out"] == [["val/0#0", "train/0#1"], ["val/0#1", "train/0#0"]]


def test_a_report_without_findings_is_one_line():
    assert ImportReport(source="rlds", episodes=2, frames=9).lines() == ["2 episodes, 9 frames imported"]
    within = ImportReport(source="rlds", duplicates=[("a#1", "a#0")], left_out=["x"], notes=["n"]).lines()
    assert "within a" in within[1]
    assert within[2:] == ["features left out: x", "n"]


def test_the_rate_must_be_known(tmp_path):
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0)]]})
    with pytest.raises(UsageError, match="--fps"):
        import_rlds(source, tmp_path / "out")
    bridge = write_rlds(tmp_path / "bridge", {"train": [[trajectory(0)]]}, name="bridge_dataset")
    assert any("5 frames per second, as published" in line for line in import_rlds(bridge, tmp_path / "out").lines())
    assert Dataset.open(tmp_path / "out").fps == 5


def test_state_and_images_are_optional(tmp_path):
    step = {"action": tensor([3]), "language_instruction": {"text": {}}, "observation": nest({})}
    features = nest({"steps": {"sequence": {"feature": nest(step)}}})
    import_rlds(write_rlds(tmp_path / "src", {"train": [[trajectory(0)]]}, features=features), tmp_path / "out", 5)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.cameras == ()
    assert dataset.state.shape == (4, 0)


def with_depth(kind: str, number: int = 0) -> tuple[dict, dict]:
    """(features.json, a trajectory) with `depth_front` as a tensor of metres or millimetres, or as images of 16 bits."""
    metres = np.random.default_rng(number).uniform(0.3, 2.1, (4, 16, 12)).astype(np.float32)
    whole = np.rint(metres * 1000).astype(np.uint16)
    features, values = {
        "float32": (tensor([16, 12, 1]), metres.ravel().tolist()),
        "uint16": (tensor([16, 12], "uint16"), whole.ravel().tolist()),
        "image": ({"image": {"shape": {"dimensions": ["16", "12", "1"]}, "dtype": "uint16"}}, [encode_depth(frame) for frame in whole]),
    }[kind]
    step = {**STEP, "observation": nest({**STEP["observation"]["featuresDict"]["features"], "depth_front": features})}
    return nest({"steps": {"sequence": {"feature": nest(step)}}}), {**trajectory(number), "steps/observation/depth_front": values}


@pytest.mark.parametrize(
    ("kind", "said"), [("float32", "read as metres, 0.30"), ("uint16", "read as millimetres, 0.30"), ("image", "16-bit images, read as")]
)
def test_depth_becomes_depth(tmp_path, kind, said):
    features, first = with_depth(kind)
    source = write_rlds(tmp_path / "src", {"train": [[first, with_depth(kind, 1)[1]]]}, features=features)
    report = import_rlds(source, tmp_path / "out", 5)
    assert "observation/depth_front" not in report.left_out
    assert any(f"observation/depth_front: {said}" in line for line in report.lines())
    dataset = Dataset.open(tmp_path / "out")
    assert (dataset.cameras, dataset.depth_cameras) == (("front", "side"), ("depth_front",))
    for number in range(2):
        metres = np.random.default_rng(number).uniform(0.3, 2.1, (4, 16, 12))
        assert np.abs(dataset.depth(number, "depth_front") - metres).max() < 0.000501


def test_depth_that_is_not_what_features_json_says_is_a_broken_trajectory(tmp_path):
    for name, kind, values, message in (
        ("short", "float32", [0.5] * 100, "holds 100 values, expected 4 steps of 192 distances"),
        ("below", "float32", [-0.5] * 768, "holds distances below 0"),
        ("wide", "uint16", [70000] * 768, "whole ones of 16 bits"),
        ("floats", "uint16", [0.5] * 768, "whole ones of 16 bits"),
        ("ints", "float32", [1] * 768, "expected distances"),
        ("bytes", "image", [png(picture(0, "front", 16, 12))] * 4, "not 16 bits"),
    ):
        features, item = with_depth(kind)
        source = write_rlds(tmp_path / name, {"train": [[{**item, "steps/observation/depth_front": values}]]}, features=features)
        with pytest.raises(DataError, match=message):
            import_rlds(source, tmp_path / "out", 5)


def test_depth_of_which_nobody_knows_the_unit_is_left_out_by_name(tmp_path):
    step = {**STEP, "observation": nest({**STEP["observation"]["featuresDict"]["features"], "depth": tensor([16, 12], "int32")})}
    features = nest({"steps": {"sequence": {"feature": nest(step)}}})
    item = {**trajectory(0), "steps/observation/depth": [7] * 768}
    report = import_rlds(write_rlds(tmp_path / "src", {"train": [[item]]}, features=features), tmp_path / "out", 5)
    assert report.left_out == ["language_embedding", "observation/depth"]


def without(name: str, number: int = 0) -> dict:
    return {key: value for key, value in trajectory(number).items() if key != name}


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (without("steps/action"), "steps/action is missing"),
        ({**trajectory(0), "steps/action": [1.0] * 4}, "holds 4 numbers, expected a multiple of 3"),
        ({**trajectory(0), "steps/action": [0.5, float("nan"), 0.5] * 4}, r"action\[1\] is nan"),
        (without("steps/observation/state"), "steps/observation/state is missing"),
        ({**trajectory(0), "steps/observation/state": [1.0] * 7}, "expected 4 steps of 2"),
        (without("steps/language_instruction"), "language_instruction holds nothing of that kind, expected 4"),
        ({**trajectory(0), "steps/language_instruction": [b"\xff"] * 4}, "not UTF-8"),
        (without("steps/observation/front"), "front holds nothing"),
        ({**trajectory(0), "steps/observation/front": [b"x"] * 3}, "front holds 3 entries, expected 4"),
        ({**trajectory(0), "steps/observation/front": [b"x"] * 4}, "cannot be decoded"),
        (
            {**trajectory(0), "steps/observation/front": [*trajectory(0)["steps/observation/front"][:3], b"\xff\xd8\xff"]},
            "frame 3: cannot be",
        ),
    ],
)
def test_a_broken_trajectory_is_named_and_leaves_nothing(tmp_path, broken, message):
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(1), broken]]})
    with pytest.raises(DataError, match=message) as caught:
        import_rlds(source, tmp_path / "out", 5)
    assert "record 1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_within_the_budget_a_broken_trajectory_is_left_out_as_if_it_had_never_been_there(tmp_path):
    broken = {**trajectory(1), "steps/action": [0.5, float("nan"), 0.5] * 4}
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0), broken, trajectory(2)]]})
    report = import_rlds(source, tmp_path / "out", 5, budget=0.34)
    assert (report.episodes, len(report.broken)) == (2, 1)
    assert any("1 broken episodes left out" in line and "record 1" in line for line in report.lines())
    import_rlds(write_rlds(tmp_path / "whole", {"train": [[trajectory(0), trajectory(2)]]}), tmp_path / "plain", 5)
    left, plain = Dataset.open(tmp_path / "out"), Dataset.open(tmp_path / "plain")
    assert left.hash == plain.hash


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "features.json").unlink(), r"features\.json: missing"),
        (lambda s: (s / "features.json").write_text("[]"), "not a feature"),
        (lambda s: (s / "features.json").write_text(json.dumps(nest({}))), "has no steps"),
        (lambda s: (s / "features.json").write_text(json.dumps({"featuresDict": {"features": 3}})), "featuresDict without features"),
        (lambda s: (s / "features.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda s: (s / "dataset_info.json").unlink(), r"dataset_info\.json: missing"),
        (lambda s: edit(s / "dataset_info.json", splits=[]), "lists no splits"),
        (lambda s: edit(s / "dataset_info.json", splits=[{"name": "train"}]), "no shardLengths"),
        (
            lambda s: edit(s / "dataset_info.json", splits=[{"name": "train", "shardLengths": ["3"]}]),
            "holds 2 records, dataset_info.json says 3",
        ),
        (
            lambda s: edit(s / "dataset_info.json", splits=[{"name": "../../x", "filepathTemplate": "{SPLIT}", "shardLengths": ["1"]}]),
            "outside",
        ),
        (
            lambda s: edit(s / "dataset_info.json", splits=[{"name": "train", "filepathTemplate": "/etc/passwd", "shardLengths": ["1"]}]),
            "outside",
        ),
        (lambda s: edit(s / "dataset_info.json", splits=[{"name": "train", "shardLengths": ["0"]}]), "holds 2 records|no traj"),
        (lambda s: next(s.glob("*.tfrecord*")).unlink(), "tfrecord-00000-of-00001: missing"),
    ],
)
def test_a_broken_folder_is_named_and_leaves_nothing(tmp_path, damage, message):
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0), trajectory(1)]]})
    damage(source)
    with pytest.raises(DataError, match=message) as caught:
        import_rlds(source, tmp_path / "out", 5)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("keep", [0.2, 0.99])
def test_a_truncated_shard_leaves_nothing(tmp_path, keep):
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0), trajectory(1)]]})
    shard = next(source.glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[: int(shard.stat().st_size * keep)])
    with pytest.raises(DataError, match="truncated, copy it again"):
        import_rlds(source, tmp_path / "out", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({**STEP, "action": tensor([])}, "need an `action` that is a vector"),
        ({**STEP, "action": nest({"arm": tensor([3])})}, "need an `action` that is a vector"),
        ({name: item for name, item in STEP.items() if name != "language_instruction"}, "no instruction"),
        ({**STEP, "action": tensor(["x"])}, "a shape that cannot be read"),  # type: ignore[list-item]
    ],
)
def test_features_that_cannot_be_used_are_said(tmp_path, step, message):
    features = nest({"steps": {"sequence": {"feature": nest(step)}}})
    with pytest.raises(DataError, match=message):
        import_rlds(write_rlds(tmp_path / "src", {"train": [[trajectory(0)]]}, features=features), tmp_path / "out", 5)


def test_features_are_found_by_their_paths(tmp_path):
    (tmp_path / "features.json").write_text(json.dumps(FEATURES))
    steps, episode = read_features(tmp_path / "features.json")
    assert steps["observation/front"].shape == (16, 12, 3)
    assert steps["reward"].shape == ()
    assert set(episode) == {"episode_metadata/episode_id", "episode_metadata/path"}


def naive_records(path: Path) -> list[dict[str, list]]:
    """An independent reading: no checksums, one value at a time, straight from the wire format."""

    def number(data: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at

    def parts(data: bytes):
        at = 0
        while at < len(data):
            tag, at = number(data, at)
            assert tag % 8 == 2
            length, at = number(data, at)
            yield tag // 8, data[at : at + length]
            at += length

    data, at, result = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found = {}
        ((_, features),) = parts(data[at + 12 : at + 12 + length])
        for _, entry in parts(features):
            name, content = (item for _, item in parts(entry))
            ((kind, items),) = parts(content)
            if kind == 1:
                found[name.decode()] = [item for _, item in parts(items)]
            else:
                packed = b"".join(item for _, item in parts(items))
                values = []
                if kind == 2:
                    values = [v for (v,) in struct.iter_unpack("<f", packed)]
                else:
                    place = 0
                    while place < len(packed):
                        value, place = number(packed, place)
                        values.append(value)
                found[name.decode()] = values
        result.append(found)
        at += 16 + length
    return result


@pytest.mark.skipif(not REAL.is_dir(), reason="DEFTLY_REAL_DATA does not name a folder with bridge_sample")
def test_the_real_bridge_trajectories_arrive_once_with_every_value(tmp_path):
    report = import_rlds(REAL, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    train = naive_records(REAL / "bridge_dataset-train.tfrecord-00000-of-00001")
    assert (report.episodes, report.frames, len(report.duplicates)) == (25, 250, 25)
    assert {dropped.split("/")[0] for dropped, _ in report.duplicates} == {"val"}
    assert (dataset.fps, dataset.cameras, dataset.action.shape, dataset.state.shape) == (
        5,
        tuple(f"image_{i}" for i in range(4)),
        (250, 7),
        (250, 7),
    )
    for number, given in enumerate(train):
        rows = slice(*dataset.episode_start[number : number + 2])
        assert dataset.action[rows].ravel().tolist() == given["steps/action"]
        assert dataset.state[rows].ravel().tolist() == given["steps/observation/state"]
        assert dataset.column("next.reward")[rows].ravel().tolist() == given["steps/reward"]
        assert [dataset.tasks[i].encode() for i in dataset.task_of_frame[rows]] == given["steps/language_instruction"]
        assert dataset.extra("source_episode_id")[number] == given["episode_metadata/episode_id"][0]
        for camera in dataset.cameras:
            expected = [np.asarray(Image.open(io.BytesIO(data))) for data in given[f"steps/observation/{camera}"]]
            assert np.array_equal(dataset.frames(number, camera), np.stack(expected))
