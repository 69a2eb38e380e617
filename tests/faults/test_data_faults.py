"""The data faults D1-D36 of the fault matrix, one test each: six episodes, one damaged, and exactly the verdict that the matrix names.

What holds for every one of them: no exception but a one-line `DataError`, done within seconds, and nothing written anywhere.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from damage import EPISODES, LENGTH, META, TASKS, change, corrupt, cut, data, edit, edit_info, put, set_column, video, write_six
from deftly import storage
from deftly.cli.main import main as deftly
from deftly.data import files
from deftly.data.check.findings import CheckConfig, Finding, Report
from deftly.data.check.run import check
from deftly.data.writer import DatasetWriter
from guards import guards
from recordings import episode as recorded
from recordings import png
from small_data import robot as small_robot

BUDGET = 0.5


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_six(tmp_path_factory.mktemp("six") / "data")


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to damage; the test may take ten seconds and must leave nothing beside it."""
    copy = shutil.copytree(original, tmp_path / "data")
    started = time.monotonic()
    yield copy
    assert time.monotonic() - started < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def tree(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): storage.sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}


def judged(root: Path, full: bool = False, **config: object) -> Report:
    """The report, after seeing that the check changed no file and that every line is one."""
    before = tree(root) if root.exists() else {}
    report = check(root, CheckConfig.parse({"full": full, "budget": BUDGET, **config}, "test"))
    assert (tree(root) if root.exists() else {}) == before
    assert all("\n" not in finding.line() for finding in report.findings)
    return report


def refused(root: Path, message: str, **config: object) -> Finding:
    """The dataset is refused, in one line that says `message`."""
    report = judged(root, **config)
    assert report.refusal is not None
    assert message in report.refusal
    with pytest.raises(SystemExit) as caught:
        deftly(["data", "check", str(root), "--fast", "--budget", str(BUDGET)])
    assert caught.value.code == 65
    return report.of("refuse")[0]


def left_out(root: Path, episodes: list[int], code: str, **config: object) -> Finding:
    """Exactly these episodes are quarantined, and nothing is refused."""
    report = judged(root, **config)
    assert report.of("refuse") == []
    assert report.quarantined.tolist() == episodes
    assert report.refusal is None
    found = [finding for finding in report.of("quarantine") if finding.code == code]
    assert sorted({finding.episode for finding in found}) == episodes
    return found[0]


def test_the_undamaged_dataset_is_sound(root: Path):
    report = judged(root, full=True)
    assert [finding for finding in report.findings if finding.verdict != "note"] == []
    deftly(["data", "check", str(root), "--json", str(root / "report.json")])
    assert storage.read_json(root / "report.json")["refused"] is None


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_d1_truncated_video(root: Path, share: float):
    cut(root / video(2), share)
    assert left_out(root, [2], "broken_video").file == video(2)


def test_d2_video_of_no_bytes(root: Path):
    (root / video(4, "wrist")).write_bytes(b"")
    assert left_out(root, [4], "broken_video").field == "observation.images.wrist"


def test_d3_frames_of_noise(root: Path):
    corrupt(root / video(2), slice(4, 6))
    assert judged(root).quarantined.tolist() == []  # nothing but decoding can tell
    assert left_out(root, [2], "broken_frame", full=True).field == "head"


def test_d4_table_without_footer(root: Path):
    cut(root / data(1), 0.7)
    assert left_out(root, [1], "broken_table").file == data(1)


@guards("data.check.missing_table")
def test_d5_missing_table(root: Path):
    (root / data(3)).unlink()
    assert refused(root, f"{data(3)}: the file of episode 3 is missing").code == "missing_file"
    left_out(root, [3], "missing_file", allow_missing_files=True)


@guards("data.check.missing_video")
def test_d5_missing_video(root: Path):
    (root / video(3)).unlink()
    assert refused(root, "the video of episode 3 is missing").file == video(3)
    left_out(root, [3], "missing_file", allow_missing_files=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_episodes": 8}, "total_episodes is 8"),
        ({"total_frames": 80}, "total_frames is 80"),
        ({"total_tasks": 9}, "total_tasks is 9"),
    ],
)
def test_d6_counts_that_disagree(root: Path, changes: dict, message: str):
    edit_info(root, **changes)
    refused(root, message)


@guards("data.check.row_count")
def test_d6_rows_that_disagree(root: Path):
    edit(root / data(2), lambda table: table.slice(0, 10))
    assert refused(root, "10 rows, its episodes have 12 frames by meta/episodes (-2)").file == data(2)


def test_d7_gap_in_the_episode_numbers(root: Path):
    edit(root / META, lambda table: set_column(table, "episode_index", [0, 1, 2, 4, 5, 6]))
    refused(root, "episode_index")


@guards("data.check.strange_episode")
def test_d7_gap_in_the_rows(root: Path):
    change(root, 3, "episode_index", lambda values: [7] * LENGTH)
    assert refused(root, "row 0 is of episode 7").code == "episode_gap"


@guards("data.check.duplicate_frame")
def test_d8_duplicate_frame(root: Path):
    change(root, 3, "frame_index", put(5, 4))
    assert refused(root, "repeat the (episode_index, frame_index)").frame == 4


@guards("data.check.missing_frame")
def test_d8_frame_that_is_not_there(root: Path):
    change(root, 3, "frame_index", put(5, 40))
    refused(root, "frame 5 has no row")


@guards("data.check.duplicate_index")
def test_d9_duplicate_row_number(root: Path):
    change(root, 3, "index", put(5, 4))
    assert refused(root, "row number 4 occurs twice").field == "index"


@guards("data.check.collapsed")
def test_d10_recordings_collapsed_into_one_episode(tmp_path: Path):
    root = write_six(tmp_path / "data", (200, 100, 100))
    change(root, 0, "timestamp", lambda _: [i % 10 / 10 for i in range(200)])
    assert refused(root, "20 recordings are stored as one episode").episode == 0


@guards("data.check.not_finite")
def test_d11_action_that_is_not_a_number(root: Path):
    change(root, 2, "action", put(7, [0.0, float("nan"), 0.0, 0.0]))
    finding = left_out(root, [2], "not_finite")
    assert (finding.frame, finding.field) == (7, "action")
    assert "target_1" in finding.message


def test_d11_action_that_is_missing(root: Path):
    change(root, 2, "action", put(7, None))
    left_out(root, [2], "not_finite")


def test_d12_state_that_is_infinite(root: Path):
    change(root, 5, "observation.state", put(0, [0.0, 0.0, float("inf"), 0.0, 0.0]))
    assert left_out(root, [5], "not_finite").field == "observation.state"


def test_d13_outlier_is_worth_a_warning(root: Path):
    change(root, 2, "action", put(7, [1e30, 0.0, 0.0, 1e-42]))
    report = judged(root)
    assert report.refusal is None
    assert [(item.code, item.episode, item.frame) for item in report.of("warn") if item.code == "outlier"] == [("outlier", 2, 7)]


def test_d14_d15_constant_and_nearly_constant_dimensions_are_listed(root: Path):
    for episode in range(EPISODES):
        change(root, episode, "action", lambda rows: [[*row[:2], 3.0, 1e-3 * np.tanh(row[3])] for row in rows])
    report = judged(root)
    assert report.refusal is None
    assert [(item.code, item.message.split()[0]) for item in report.of("note")] == [
        ("constant", "'target_2'"),
        ("near_constant", "'target_3'"),
    ]


@guards("data.check.rate")
def test_d18_timestamps_of_another_rate(root: Path):
    for episode in range(EPISODES):
        change(root, episode, "timestamp", lambda values: [i / 9.5 for i in range(len(values))])
    refused(root, "the timestamps run at 9.5 frames per second, info.json says 10")


@guards("data.check.video_rate")
def test_d18_videos_of_another_rate(root: Path, original: Path):
    from deftly.data.dataset import Dataset
    from deftly.data.video import VideoWriter

    frames = {camera: Dataset.open(original).frames(0, camera) for camera in ("head", "wrist")}
    for episode in range(EPISODES):
        for camera, pixels in frames.items():
            with VideoWriter(root / video(episode, camera), 9, 32, 32) as writer:
                writer.add_frames(pixels)
    refused(root, "the videos run at 9 frames per second, info.json says 10")


@guards("data.check.time_jitter")
def test_d19_jitter_of_one_frame(root: Path):
    change(root, 1, "timestamp", put(6, 0.63))
    assert left_out(root, [1], "time_jitter").frame == 6


@guards("data.check.time_order")
def test_d20_time_that_goes_back(root: Path):
    change(root, 1, "timestamp", lambda values: [*values[:6], *values[3:9]])
    assert left_out(root, [1], "time_order").frame == 6


@guards("data.check.video_short")
def test_d21_video_shorter_than_the_table(root: Path, original: Path):
    rewrite(root, original, 4, np.arange(9) / 10)
    finding = left_out(root, [4], "video_short")
    assert "ends 3 frames before the table" in finding.message


def test_d22_variable_frame_rate_within_half_a_frame(root: Path, original: Path):
    rewrite(root, original, 4, np.arange(LENGTH) / 10 + np.tile([0, 0.03], LENGTH // 2))
    report = judged(root)
    assert report.quarantined.tolist() == []
    assert "video_grid" in {finding.code for finding in report.of("note")}


@guards("data.check.video_gap")
def test_d22_variable_frame_rate_beyond_half_a_frame(root: Path, original: Path):
    times = np.arange(LENGTH) / 10
    times[5:7] += 0.06, 0.02
    rewrite(root, original, 4, np.sort(times))
    times[5] = 0.57
    rewrite(root, original, 4, times)
    assert left_out(root, [4], "video_gap").frame == 5


def rewrite(root: Path, original: Path, episode: int, times: np.ndarray) -> None:
    """The episode's head video with its frames at these times, in seconds."""
    from fractions import Fraction

    import av

    from deftly.data.dataset import Dataset

    frames = Dataset.open(original).frames(episode, "head")
    with av.open(str(root / video(episode)), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "2", "bf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, seconds in zip(frames, times, strict=False):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@guards("data.check.empty_instruction")
def test_d23_empty_instruction(root: Path):
    rename_task(root, b" ")
    assert refused(root, "the instruction is empty").code == "empty_instruction"
    assert judged(root, allow_empty_instruction=True).refusal is None


@guards("data.check.instruction_bytes")
@pytest.mark.parametrize("text", [b"pick up\0 the cup", b"pick up the \xff\xfe cup"])
def test_d24_instruction_that_is_no_text(root: Path, text: bytes):
    rename_task(root, text)
    left_out(root, [1, 4], "instruction_bytes")


@guards("data.check.instruction_length")
def test_d24_instruction_of_a_megabyte(root: Path):
    rename_task(root, b"x" * 1_000_000)
    left_out(root, [1, 4], "instruction_length")


def test_d24_any_script_is_text(root: Path):
    rename_task(root, "ארוז את הכוס 🥤 \u202eplease".encode())
    assert [finding for finding in judged(root).findings if finding.verdict != "note"] == []


def rename_task(root: Path, text: bytes) -> None:
    """Replace the instruction of episodes 1 and 4, by bytes that need not be text."""

    def rename(table: pa.Table) -> pa.Table:
        texts = [value.encode() for value in table.column("task").to_pylist()]
        texts[1] = text
        buffers = pa.array(texts, pa.binary()).buffers()
        column = pa.Array.from_buffers(pa.string(), len(texts), buffers)  # not checked for UTF-8
        return table.set_column(table.schema.get_field_index("task"), "task", column)

    edit(root / TASKS, rename)


@guards("data.check.unknown_task")
def test_d25_unknown_task(root: Path):
    change(root, 4, "task_index", put(3, 99))
    finding = left_out(root, [4], "unknown_task")
    assert (finding.frame, finding.message) == (3, "is 99, there are 3 tasks")


@guards("data.check.empty_episode")
def test_d27_episode_without_frames(root: Path):
    edit(root / data(5), lambda table: table.slice(0, 0))

    def shorten(table: pa.Table) -> pa.Table:
        table = set_column(table, "length", [LENGTH] * 5 + [0])
        return set_column(table, "dataset_to_index", [LENGTH * (i + 1) for i in range(5)] + [LENGTH * 5])

    edit(root / META, shorten)
    edit_info(root, total_frames=LENGTH * 5)
    left_out(root, [5], "empty_episode")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six episodes of one camera whose frames are PNG files in the tables."""
    robot = small_robot().replace(cameras=(small_robot().cameras[0],))
    with pytest.MonkeyPatch.context() as patch, DatasetWriter(tmp_path / "data", robot, images={"head": "image"}) as writer:
        patch.setattr(files, "DATA_FILE_MB", 0)
        for number in range(EPISODES):
            item = recorded(number, LENGTH)
            encoded = [png(pixels) for pixels in item.images["head"]]  # type: ignore[union-attr]
            writer.add(dataclasses.replace(item, images={"head": encoded}, extra_frame={}))
        writer.finish()
    return tmp_path / "data"


def replace_image(root: Path, frame: int, image: Image.Image) -> None:
    """Another picture in episode 2."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    change(root, 2, "observation.images.head", put(frame, {"bytes": buffer.getvalue(), "path": None}))


def test_d28_image_of_another_shape(pictures: Path):
    replace_image(pictures, 5, Image.new("RGB", (32, 16)))
    assert "frame 5: is 16 x 32, expected 32 x 32" in left_out(pictures, [2], "broken_frame", full=True).message


def test_d28_the_order_of_axes_is_declared_and_never_guessed(pictures: Path):
    info = storage.read_json(pictures / "meta/info.json")
    feature = info["features"]["observation.images.head"]
    for shape, names in (([3, 32, 32], ["channels", "height", "width"]), ([32, 32, 3], ["height", "width", "channels"])):
        edit_info(pictures, features={**info["features"], "observation.images.head": {**feature, "shape": shape, "names": names}})
        assert judged(pictures, full=True).refusal is None
    edit_info(pictures, features={**info["features"], "observation.images.head": {**feature, "shape": [3, 32, 32], "names": None}})
    (pictures / "meta/deftly.json").unlink()
    assert judged(pictures, full=True).refusal is not None


@guards("data.check.image_pixels", "data.images.pixels")
def test_d29_an_enormous_image_is_refused_unread(pictures: Path):
    replace_image(pictures, 5, Image.new("L", (8192, 8192)))
    report = judged(pictures, full=True)
    assert [(item.code, item.episode, item.frame) for item in report.of("refuse")] == [("image_too_large", 2, 5)]


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P"])
def test_d30_grey_and_transparent_images_are_converted(pictures: Path, mode: str):
    replace_image(pictures, 5, Image.new("RGB", (32, 32), (9, 200, 9)).convert(mode))
    assert judged(pictures, full=True).quarantined.tolist() == []


@guards("data.images.mode")
def test_d30_sixteen_bits_are_not_cut_to_eight(pictures: Path):
    replace_image(pictures, 5, Image.fromarray(np.full((32, 32), 1000, np.uint16)))
    assert "more than 8 bits" in left_out(pictures, [2], "broken_frame", full=True).message


@guards("data.check.vector_size")
def test_d31_another_action_size_in_one_file(root: Path):
    change(root, 2, "action", lambda rows: [row[:3] for row in rows], pa.list_(pa.float32(), 3))
    finding = refused(root, "has 3 dimensions, info.json says 4")
    assert (finding.file, finding.field) == (data(2), "action")


def test_d32_a_wider_number_is_cast_and_said(root: Path):
    change(root, 2, "action", lambda rows: rows, pa.list_(pa.float64(), 4))
    report = judged(root)
    assert report.refusal is None
    assert [(item.code, item.file) for item in report.of("note") if item.code == "dtype"] == [("dtype", data(2))]


@pytest.mark.parametrize("kind", [pa.float64(), pa.string()])
@guards("data.check.key_type")
def test_d32_a_key_that_is_no_whole_number_is_refused(root: Path, kind: pa.DataType):
    change(root, 2, "frame_index", lambda values: [float(i) if kind == pa.float64() else str(i) for i in values], kind)
    refused(root, "where a whole number identifies a row")


@guards("data.check.column_type")
def test_d32_text_where_numbers_are_declared_is_refused(root: Path):
    change(root, 2, "timestamp", lambda values: [str(i) for i in values], pa.string())
    refused(root, "is string, info.json declares float32")


@guards("data.check.column_missing")
def test_d32_a_column_that_is_missing_in_one_file_is_refused(root: Path):
    edit(root / data(2), lambda table: table.drop_columns(["action"]))
    refused(root, "no column 'action'")


def test_d33_missing_camera(root: Path):
    edit(
        root / META, lambda table: table.drop_columns([name for name in table.column_names if "images.wrist" in name and "videos/" in name])
    )
    refused(root, "observation.images.wrist")


@guards("data.check.budget")
def test_more_than_the_budget_is_refused(root: Path):
    for episode in (0, 2):
        change(root, episode, "action", put(3, [float("nan")] * 4))
    assert judged(root, budget=0.34).refusal is None
    assert "2 of 6 episodes (33.3%) are broken" in str(judged(root, budget=0.3).refusal)
