"""A folder of images and metadata.json becomes a dataset: every value, in order of time, and no file from outside of it."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deftly.data import images
from deftly.data.dataset import Dataset
from deftly.data.importers.folder import import_folder, measured_rate, read_metadata
from deftly.data.importers.hdf5 import import_hdf5
from deftly.data.importers.rlds import import_rlds
from deftly.types import DataError, UsageError
from guards import guards
from small_data import picture


def frames(lengths: tuple[int, ...] = (4, 6, 3), rate: float = 10.0) -> list[dict[str, Any]]:
    """Entries of metadata.json, shuffled; image i is picture i."""
    rows, draw = [], np.random.default_rng(0)
    for sequence, length in enumerate(lengths):
        start = float(draw.uniform(0, 1e6))
        for i in range(length):
            number = len(rows)
            values = {"image_id": f"{number:04d}", "instruction": f"task {sequence}", "action": draw.normal(size=3).tolist()}
            values |= {
                "language_tokens": [1, 2],
                "sequence_id": 10 * sequence,
                "timestamp": start + i / rate,
                "state": [float(number), 0.5],
            }
            rows.append(values)
    return [rows[i] for i in draw.permutation(len(rows))]


def write_folder(root: Path, rows: list[dict[str, Any]]) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "metadata.json").write_text(json.dumps(rows))
    for row in rows:
        Image.fromarray(picture(int(row["image_id"]), "head", 16, 24)).save(root / "images" / f"{row['image_id']}.jpg")
    return root


def test_every_value_arrives_in_order_of_time(tmp_path):
    rows = frames()
    source = write_folder(tmp_path / "src", rows)
    report = import_folder(source, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert (report.episodes, report.frames, report.left_out, dataset.fps) == (3, 13, ["language_tokens"], 10)
    for episode, name in enumerate(dataset.extra("source")):
        expected = sorted((row for row in rows if str(row["sequence_id"]) == name), key=lambda row: row["timestamp"])
        at = slice(*dataset.episode_start[episode : episode + 2])
        assert np.array_equal(dataset.action[at], np.float32([row["action"] for row in expected]))
        assert np.array_equal(dataset.state[at], np.float32([row["state"] for row in expected]))
        assert dataset.tasks[dataset.task_of_frame[at][0]] == expected[0]["instruction"]
        seen = dataset.frames(episode, "camera")
        for i, row in enumerate(expected):
            data = (source / "images" / f"{row['image_id']}.jpg").read_bytes()
            assert np.array_equal(seen[i], np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_the_rate_may_be_told_and_then_times_are_only_an_order(tmp_path):
    rows = frames((3, 3))
    for row in rows:
        row["timestamp"] = row["timestamp"] ** 2 % 977
    source = write_folder(tmp_path / "src", rows)
    with pytest.raises(UsageError, match="as in --fps 10"):
        import_folder(source, tmp_path / "out")
    import_folder(source, tmp_path / "out", rate_hz=5)
    assert Dataset.open(tmp_path / "out").fps == 5


@given(
    rate=st.integers(1, 240),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    jitter=st.floats(0, 0.01),
    seed=st.integers(0, 99),
)
def test_the_rate_is_found_under_jitter(rate, lengths, jitter, seed):
    draw = np.random.default_rng(seed)
    sequences = {
        str(i): [{"timestamp": float(j / rate + draw.uniform(-jitter, jitter) / rate / 2)} for j in range(length)]
        for i, length in enumerate(lengths)
    }
    if max(lengths) == 1:
        with pytest.raises(UsageError, match="do not say a rate"):
            measured_rate(sequences, "x")
    else:
        assert abs(measured_rate(sequences, "x") - rate) <= 1 + 0.01 * rate


def change(**values: Any) -> Callable[[Path], None]:
    """Change one frame, the last of the first sequence."""

    def damage(source: Path) -> None:
        rows = json.loads((source / "metadata.json").read_text())
        row = max((row for row in rows if row["sequence_id"] == 0), key=lambda row: row["timestamp"])
        for name, value in values.items():
            row[name] = value(row, rows) if callable(value) else value
        (source / "metadata.json").write_text(json.dumps(rows))

    return damage


def image(make: Callable[[Path, Path], object]) -> Callable[[Path], None]:
    """Replace the image of a frame that is not the first of its sequence."""

    def damage(source: Path) -> None:
        rows = json.loads((source / "metadata.json").read_text())
        row = max((row for row in rows if row["sequence_id"] == 0), key=lambda row: row["timestamp"])
        path = source / "images" / f"{row['image_id']}.jpg"
        path.unlink()
        make(path, source)

    return damage


def saved(size: tuple[int, int], kind: str = "JPEG") -> Callable[[Path, Path], object]:
    return lambda path, source: Image.new("RGB", size).save(path, kind)


def linked(path: Path, source: Path) -> None:
    Image.new("RGB", (24, 16)).save(source.parent / "secret.jpg")
    path.symlink_to(source.parent / "secret.jpg")


def large(path: Path, source: Path) -> None:
    path.touch()
    os.truncate(path, (64 << 20) + 1)


def before(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    return sorted(other["timestamp"] for other in rows if other["sequence_id"] == 0)[-2]


DAMAGE = {
    "path": (change(image_id="../metadata.json"), "cannot be the name of a file"),
    "absolute": (change(image_id="/etc/passwd"), "cannot be the name of a file"),
    "hidden": (change(image_id=".."), "cannot be the name of a file"),
    "nul": (change(image_id="a\0b"), "cannot be the name of a file"),
    "long in bytes": (change(image_id="é" * 126), "cannot be the name of a file"),
    "link": (image(linked), "leads outside of the directory"),
    "missing": (image(lambda path, source: None), r"there is no images/\d+\.jpg"),
    "empty": (image(lambda path, source: path.write_bytes(b"")), "holds no bytes"),
    "not an image": (image(lambda path, source: path.write_bytes(b"\x80\x04pickle")), "cannot be decoded"),
    "gif": (image(saved((24, 16), "GIF")), "cannot be decoded"),
    "other size": (image(saved((24, 18))), "is 18 x 24, expected 16 x 24"),
    "large file": (image(large), "an image has at most"),
    "nan": (change(action=[0.0, float("nan"), 0.0]), "expected a list of finite numbers"),
    "too large": (change(action=[0.0, 1e39, 0.0]), "expected a list of finite numbers"),
    "text": (change(action=["0", "1", "2"]), "expected a list of finite numbers"),
    "dimensions": (change(action=[0.0, 1.0]), "has 2 numbers, most sequences have 3"),
    "state": (change(state=None), "state is None"),
    "instruction": (change(instruction=" "), "the instruction is ' '"),
    "instruction with NUL": (change(instruction="open\0it"), r"the instruction is 'open\\x00it'"),
    "half a character": (change(instruction="open \ud83d"), "the instruction is 'open \ufffd'"),
    "twice": (change(timestamp=before), "occurs twice"),
    "gap": (change(timestamp=lambda row, rows: row["timestamp"] + 0.2), r"0\.3 s after the one before, at 10 frames per second"),
}


@guards(
    "data.folder.image_id",
    "data.folder.repeated_time",
    "data.folder.step",
    "data.folder.dimensions",
    "data.folder.instruction",
    "data.folder.image_bytes",
)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_sequence_is_named_or_left_out_as_if_it_had_never_been_there(tmp_path, damage):
    spoil, message = DAMAGE[damage]
    source = write_folder(tmp_path / "src", frames())
    spoil(source)
    with pytest.raises(DataError, match=message) as caught:
        import_folder(source, tmp_path / "out")
    assert "sequence '0'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    report = import_folder(source, tmp_path / "out", budget=0.5)
    assert (report.episodes, len(report.broken)) == (2, 1)
    whole = write_folder(tmp_path / "whole/src", [row for row in frames() if row["sequence_id"] != 0])
    import_folder(whole, tmp_path / "plain")
    assert Dataset.open(tmp_path / "out").hash == Dataset.open(tmp_path / "plain").hash


@guards("data.folder.sequence_id")
def test_a_sequence_whose_name_is_no_text_is_left_out(tmp_path):
    rows = [row | {"sequence_id": "\ud800"} if row["sequence_id"] == 0 else row | {"more \udfff": 1} for row in frames()]
    source = write_folder(tmp_path / "src", rows)
    with pytest.raises(DataError, match="sequence '\ufffd': its sequence_id holds what is not text"):
        import_folder(source, tmp_path / "out")
    report = import_folder(source, tmp_path / "out", budget=0.5)
    assert (report.episodes, len(report.broken), report.left_out) == (2, 1, ["language_tokens", "more \ufffd"])


@guards("data.folder.same_name")
def test_a_number_and_a_text_that_look_alike_are_not_joined_into_one_sequence(tmp_path):
    """Their frames would lie between each other, at twice the rate."""
    rows = [row | {"sequence_id": "0"} if row["sequence_id"] == 10 else row for row in frames()]
    source = write_folder(tmp_path / "src", rows)
    with pytest.raises(DataError, match="the number 0 and the text '0' are both a sequence_id") as caught:
        import_folder(source, tmp_path / "out", budget=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", [[0], [10], [0, 10], [10, 20]])
def test_a_state_that_some_lack_is_never_dropped_in_silence(tmp_path, missing):
    rows = frames()
    for row in rows:
        if row["sequence_id"] in missing:
            del row["state"]
    report = import_folder(write_folder(tmp_path / "src", rows), tmp_path / "out", budget=0.5)
    dataset = Dataset.open(tmp_path / "out")
    if len(missing) == 1:
        assert (report.episodes, len(report.broken), dataset.state.shape[1]) == (2, 1, 2)
        assert f"sequence '{missing[0]}' frame 0: state is None" in report.broken[0]
    else:
        assert (report.episodes, dataset.state.shape[1]) == (3, 0)
        assert report.left_out == ["language_tokens", "state (in 1 of 3 sequences)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not valid JSON"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ("{}", "expected a list of frames"),
        ("[]", "expected a list of frames"),
        ("[3]", "expected a list of frames"),
        ('[{"image_id": 1}]', "entry 0: sequence_id is 'None'"),
        ('[{"sequence_id": 1, "timestamp": NaN}]', "entry 0: timestamp is 'nan'"),
        ('[{"sequence_id": true, "timestamp": 1}]', "entry 0: sequence_id is 'True'"),
        ("\x80\x04K\x01.", "not valid JSON"),
    ],
)
def test_metadata_that_cannot_be_read_is_said(tmp_path, text, message):
    (tmp_path / "metadata.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message) as caught:
        read_metadata(tmp_path / "metadata.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        import_folder(tmp_path / "nowhere", tmp_path / "out")


@guards("data.images.pixels")
def test_a_bomb_is_refused_by_its_header(tmp_path):
    source = write_folder(tmp_path / "src", frames((2,)))
    for path in (source / "images").iterdir():
        Image.new("1", (8000, 8000)).save(path, "PNG")
    with pytest.raises(DataError, match="8000 x 8000 pixels are more than"):
        import_folder(source, tmp_path / "out")
    assert images.MAX_PIXELS >= 7680 * 4320


@pytest.mark.parametrize("rate", [0, -3, 10_001])
@pytest.mark.parametrize("take", [import_folder, import_hdf5, import_rlds])
def test_a_rate_that_no_recording_has_is_refused_in_one_line(tmp_path, take, rate):
    with pytest.raises(UsageError, match=rf"--fps {rate}: give frames per second from 1 to 10000") as caught:
        take(write_folder(tmp_path / "src", frames((2,))), tmp_path / "out", rate_hz=rate)
    assert "\n" not in str(caught.value)
