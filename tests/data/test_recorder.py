"""A recorder writes what a writer writes, refuses what is wrong before it costs anything, and goes on where it stopped."""

import json
import signal
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import storage
from deftly.contract import Camera
from deftly.data import recording
from deftly.data.dataset import Dataset
from deftly.data.recorder import Recorder
from deftly.data.recording import RECORDING, recover
from deftly.data.video import VideoWriter
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, UsageError
from guards import guards
from robot_session import EXTRA, frame_of, length_of, record
from small_data import robot


def episode(number: int) -> EpisodeData:
    frames = [frame_of(number, i) for i in range(length_of(number))]
    return EpisodeData(
        images={camera: np.stack([images[camera] for images, *_ in frames]) for camera in ("head", "wrist")},
        state=np.stack([state for _, state, _, _ in frames]),
        action=np.stack([action for _, _, action, _ in frames]),
        task=f"task {number % 3}",
        extra_frame={"force": np.stack([force for *_, force in frames])},
        extra_episode={"seed": number},
    )


def test_recorded_is_written(tmp_path):
    with Recorder(tmp_path / "recorded", robot(), extra=EXTRA, about={"place": "kitchen"}) as recorder:
        assert [record(recorder, number) for number in range(3)] == [0, 1, 2]
        assert recorder.finish() == tmp_path / "recorded"
    with DatasetWriter(tmp_path / "written", robot(), extra=EXTRA) as writer:
        for number in range(3):
            writer.add(episode(number))
        writer.finish()
    recorded, written = Dataset.open(tmp_path / "recorded"), Dataset.open(tmp_path / "written")
    assert recorded.features == written.features
    assert recorded.tasks == written.tasks
    assert recorded.embodiment == written.embodiment
    for name in ("action", "observation.state", "force", "timestamp", "index", "task_index"):
        assert np.array_equal(recorded.column(name), written.column(name))
    for number in range(3):
        true = episode(number).images
        for camera in ("head", "wrist"):  # the key frames of the two videos lie elsewhere
            assert np.abs(recorded.frames(number, camera).astype(int) - true[camera]).mean() < 4
    assert json.loads((tmp_path / "recorded/meta/deftly.json").read_text())["place"] == "kitchen"
    assert sorted(path.name for path in (tmp_path / "recorded").iterdir()) == ["data", "meta", "videos"]


def test_what_is_discarded_leaves_no_trace(tmp_path):
    for name, attempts in (("plain", 0), ("discarded", 2)):
        with Recorder(tmp_path / name, robot(), extra=EXTRA, images={"wrist": "image"}) as recorder:
            for number in range(2):
                for _ in range(attempts):
                    images, state, action, force = frame_of(7, 0)
                    recorder.add_frame(images, state, action, {"force": force})
                    assert recorder.num_frames == 1
                    recorder.discard_episode()
                record(recorder, number)
            recorder.finish()
    assert Dataset.open(tmp_path / "plain").hash == Dataset.open(tmp_path / "discarded").hash


@guards("data.recorder.finite", "data.recorder.camera", "data.recorder.numbers")
def test_a_wrong_frame_leaves_no_trace_and_the_episode_goes_on(tmp_path):
    images, state, action, force = frame_of(0, 0)
    wrong = np.array([0, np.nan, 0, 0])
    with Recorder(tmp_path / "data", robot(), extra=EXTRA) as recorder:
        for arguments, message in [
            ((images, state, wrong, {"force": force}), r"episode 0 frame 0: action\[1\] is nan; the frame was not recorded"),
            ((images, state[:4], action, {"force": force}), r"observation\.state has shape \[4\], expected \[5\]"),
            ((images, state, action), "force is missing"),
            ((images, ["x"] * 5, action, {"force": force}), r"observation\.state is \"\['x', .*expected numbers"),
            ((images, [[0], [1, 2]], action, {"force": force}), r"observation\.state is '\[\[0\], \[1, 2\]\]', expected numbers"),
            ((images, state, [0, 1e300, 0, 0], {"force": force}), r"action\[1\] is inf"),
            ((images, np.zeros(5) + 1j, action, {"force": force}), r"expected numbers \(numpy reads complex128"),
            ((images, [1, 2, 3, 4, "5"], action, {"force": force}), "expected numbers"),
            ((images, np.zeros(5, "datetime64[s]"), action, {"force": force}), "expected numbers"),
            ((images, [10**400] * 5, action, {"force": force}), "expected numbers"),
            ((images, [10**5000] * 5, action, {"force": force}), "observation.state is 'list', expected numbers"),
            ((images, torch.zeros(5, requires_grad=True), action, {"force": force}), r"expected numbers \(.*detach"),
            ((images, state, action, [1]), "extra is list"),
            ((images, state, action, {"force": force, 1: force, "x": force}), "'1' was not announced"),
            ((images, state, action, {"force": force, "action": action}), "extra holds 'action', which is given already"),
            ((None, state, action, {"force": force}), "images is NoneType"),
            (({**images, "hand": images["head"]}, state, action, {"force": force}), "'hand' is no camera of the embodiment"),
            ((images, state, action, {"force": force, "torque": force}), "'torque' was not announced"),
            (({"head": images["head"]}, state, action, {"force": force}), "no image of camera 'wrist'"),
            (
                ({**images, "head": images["head"][:8]}, state, action, {"force": force}),
                r"expected uint8 \[32, 32, 3\], got uint8 \[8, 32, 3\]",
            ),
            (({**images, "head": images["head"].astype(float)}, state, action, {"force": force}), "got float64"),
        ]:
            with pytest.raises(DataError, match=message) as caught:
                recorder.add_frame(*arguments)
            assert "\n" not in str(caught.value)
        record(recorder, 0)
        recorder.finish()
    assert Dataset.open(tmp_path / "data").num_frames == length_of(0)


def test_ctrl_c_waits_until_the_frame_is_whole(tmp_path, monkeypatch):
    images, state, action, force = frame_of(0, 0)
    write = VideoWriter.add_frames

    def interrupted(writer: VideoWriter, frames: list[np.ndarray]) -> int:
        signal.raise_signal(signal.SIGINT)
        return write(writer, frames)

    before = signal.getsignal(signal.SIGINT)
    with Recorder(tmp_path / "data", robot(), extra=EXTRA) as recorder:
        recorder.add_frame(images, state, action, {"force": force})
        with monkeypatch.context() as patch:
            patch.setattr(VideoWriter, "add_frames", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recorder.add_frame(images, state, action, {"force": force})
        assert recorder.num_frames == 2
        with monkeypatch.context() as patch:
            patch.setattr(storage, "sync_directory", lambda path: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                recorder.save_episode("x")
        assert recorder.num_episodes == 1
        recorder.finish()
    assert signal.getsignal(signal.SIGINT) is before
    assert Dataset.open(tmp_path / "data").episode_length.tolist() == [2]


@guards("data.provenance.value")
def test_what_cannot_be_saved_is_refused_and_not_lost(tmp_path):
    images, state, action, force = frame_of(0, 0)
    with Recorder(tmp_path / "data", robot(), extra=EXTRA) as recorder:
        with pytest.raises(UsageError, match="no episode was saved"):
            recorder.finish()
        with pytest.raises(UsageError, match="holds no frames"):
            recorder.save_episode("x")
        recorder.add_frame(images, state, action, {"force": force})
        for arguments, message in [
            ((" ",), "the instruction is ' '"),
            (("a\0b",), "the instruction is"),
            (("\ud800",), "not valid text"),
            ((None,), "the instruction is 'None'"),
            (([1],), "the instruction is '1'"),
            ((["a", "b"],), "2 instructions for 1 frames"),
            (("x", {"length": 3}), "has the name of one of the format"),
            (("x", {"a/b": 3}), "has the name of one of the format"),
            (("x", {"note": [1]}), "it may be text"),
            (("x", {"note": float("nan")}), "it may be text"),
            (("x", {"note": 1 << 63}), "a number of 64 bits"),
            (("x", {"note": 10**5000}), "a number of thousands of digits"),
            (("x", {"note": [10**5000]}), "it may be text"),
            (("x", {10**5000: 1}), "has the name of one of the format"),
            ((10**5000,), "the instruction is"),
            (([10**5000],), "the instruction is"),
            (("x", {"note": "\ud800"}), "it may be text"),
            (("x", {"\ud800": 1}), "has the name of one of the format"),
            (("x", {3: 1}), "has the name of one of the format"),
            (("x", "abc"), "extra is str, expected a name and a value"),
            (("x", {"note": np.float32("nan")}), "a finite number"),
        ]:
            with pytest.raises(UsageError, match=message):
                recorder.save_episode(*arguments)
        with pytest.raises(UsageError, match="1 frames are not saved"):
            recorder.finish()
        recorder.save_episode("x", {"seed": np.int64(3), "done": np.bool_(True)})
        recorder.finish()
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.num_frames == 1
    assert (dataset.extra("seed"), dataset.extra("done")) == ([3], [True])


KINDS = st.one_of(
    st.integers(-(1 << 64), 1 << 64),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=3),
)


@guards("data.provenance.kind")
@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), KINDS, max_size=2), min_size=1, max_size=4), resumed=st.booleans())
def test_whatever_was_saved_can_be_opened(values, resumed):
    """What `save_episode` took, `finish` takes and `Dataset.open` returns; what it refused is not there, and cost nothing."""
    embodiment = robot().replace(cameras=())
    with tempfile.TemporaryDirectory() as folder:
        root, saved = Path(folder, "data"), []
        recorder = Recorder(root, embodiment)
        for value in values:
            recorder.add_frame({}, np.zeros(5), np.zeros(4))
            try:
                recorder.save_episode("x", value)
                saved.append(value)
            except UsageError:
                assert recorder.num_frames == 1
                recorder.discard_episode()
            if resumed:
                recorder.close()
                recorder = Recorder(root, embodiment, resume=True)
        recorder.close()
        if saved:
            dataset = Dataset.open(root)
            assert dataset.num_episodes == len(saved)
            for name in dataset.extra_names:
                assert dataset.extra(name) == [value.get(name) for value in saved]


@guards("data.provenance.kind")
@pytest.mark.parametrize(("first", "second"), [(1, "text"), (True, "no"), (True, 3), (2.5, 1 << 60), ("x", 1.5)])
def test_provenance_of_another_kind_is_refused_before_anything_is_written(tmp_path, first, second):
    images, state, action, force = frame_of(0, 0)
    for resumed in (False, True):
        root = tmp_path / f"resumed-{resumed}"
        recorder = Recorder(root, robot(), extra=EXTRA)
        recorder.add_frame(images, state, action, {"force": force})
        recorder.save_episode("x", {"note": first})
        if resumed:
            recorder.close()
            recorder = Recorder(root, robot(), extra=EXTRA, resume=True)
        recorder.add_frame(images, state, action, {"force": force})
        with pytest.raises(DataError, match=r"episode 1: the extra column 'note' is .*; in the episodes before it is .*use another name"):
            recorder.save_episode("x", {"note": second})
        assert (recorder.num_episodes, recorder.num_frames) == (1, 1)
        recorder.save_episode("x", {"other": second})
        recorder.finish()
        assert Dataset.open(root).extra("note") == [first, None]
        assert Dataset.open(root).extra("other") == [None, second]


@guards("data.recorder.over")
def test_a_finished_recording_is_left_alone(tmp_path):
    images, state, action, force = frame_of(0, 0)
    with Recorder(tmp_path / "data", robot(), extra=EXTRA) as recorder:
        record(recorder, 0)
        assert recorder.finish() == tmp_path / "data"
        assert recorder.finish() == tmp_path / "data"
        for call in (lambda: recorder.add_frame(images, state, action, {"force": force}), lambda: recorder.save_episode("x")):
            with pytest.raises(UsageError, match="the recording is finished; record more into another folder"):
                call()
        recorder.discard_episode()
    assert recorder.finish() == tmp_path / "data"
    with Recorder(tmp_path / "closed", robot(), extra=EXTRA) as recorder:
        record(recorder, 0)
    for call in (lambda: recorder.add_frame(images, state, action, {"force": force}), recorder.finish):
        with pytest.raises(UsageError, match="closed; a new one with resume=True"):
            call()
    assert Dataset.open(tmp_path / "data").num_episodes == Dataset.open(tmp_path / "closed").num_episodes == 1


def test_a_closed_recorder_leaves_alone_what_another_records(tmp_path):
    closed = Recorder(tmp_path / "data", robot(), extra=EXTRA)
    record(closed, 0)
    closed.close()
    with Recorder(tmp_path / "data", robot(), extra=EXTRA, resume=True) as recorder:
        for i in range(length_of(1)):
            if i == 1:
                closed.discard_episode()
                closed.close()
            images, state, action, force = frame_of(1, i)
            recorder.add_frame(images, state, action, {"force": force})
        assert recorder.save_episode("x") == 1
        recorder.finish()
    assert Dataset.open(tmp_path / "data").episode_length.tolist() == [length_of(0), length_of(1)]


def test_a_recording_goes_on_only_when_asked_and_only_with_the_same_robot(tmp_path):
    root = tmp_path / "data"
    about = {"sizes": (1, 2), 3: "x"}  # JSON gives both back as something else
    with Recorder(root, robot(), extra=EXTRA, about=about, resume=True) as recorder:
        record(recorder, 0)
    with pytest.raises(UsageError, match="unfinished recording; go on with resume=True"):
        Recorder(root, robot(), extra=EXTRA)
    with pytest.raises(UsageError, match=r"records something else: embodiment\.rate_hz: expected 10"):
        Recorder(root, robot().replace(rate_hz=20), extra=EXTRA, about=about, resume=True)
    with Recorder(root, robot(), extra=EXTRA, about=about, resume=True) as recorder:
        assert recorder.num_episodes == 1
        record(recorder, 1)
        recorder.finish()
    assert Dataset.open(root).num_episodes == 2
    with pytest.raises(UsageError, match="exists already"):
        Recorder(root, robot(), extra=EXTRA, resume=True)


def test_what_cannot_become_a_dataset_is_refused_before_the_first_frame(tmp_path):
    odd = Camera(name="head", height=33, width=32)
    for embodiment, options, message in [
        (robot().replace(rate_hz=7.5), {}, "whole number of frames"),
        (robot().replace(cameras=(odd,)), {}, "even sides"),
        (robot().replace(cameras=(odd.replace(name="a/../b"),)), {"images": {"a/../b": "image"}}, "cannot be part of a path"),
        (robot(), {"extra": {"action": ("x",)}}, "collides"),
        (robot(), {"extra": {"force": "xyz"}}, "extra 'force' is 'xyz', expected the names"),
        (robot(), {"extra": {"force": 3}}, "extra 'force' is '3', expected the names"),
        (robot(), {"extra": {3: ("x",)}}, "extra '3' is"),
        (robot(), {"images": {"hand": "image"}}, "images names 'hand', which is no camera of the embodiment; it has head, wrist"),
        (robot(), {"images": {"head": "gif"}}, "images of camera 'head' are kept as 'video' or 'image', not 'gif'"),
        (robot(), {"images": {"head": []}}, "are kept as 'video' or 'image'"),
        (robot(), {"images": "image"}, "images is str"),
        (robot(), {"about": {"place": np.zeros(3)}}, "about cannot be kept as JSON"),
        (robot(), {"about": {"place": float("nan")}}, "about cannot be kept as JSON"),
        (robot(), {"about": {"place": "\ud800"}}, "about cannot be kept as JSON"),
        (robot(), {"about": {"embodiment": {}}}, "about holds 'embodiment', which is a key of the format"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            Recorder(tmp_path / "data", embodiment, **options)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_nothing_saved_is_not_a_dataset(tmp_path):
    Recorder(tmp_path / "data", robot()).close()
    with pytest.raises(DataError, match="no episode was saved in this recording"):
        Dataset.open(tmp_path / "data")
    recover(tmp_path)  # no recording there: nothing to do


def stranger(tmp_path: Path) -> Path:
    """The last episode of an unfinished recording that keeps images as images."""
    with Recorder(tmp_path / "data", robot(), extra=EXTRA, images={"wrist": "image"}) as recorder:
        record(recorder, 0)
        record(recorder, 1)
    return tmp_path / "data" / RECORDING / "episode-00000001"


def sealed(folder: Path, table: pa.Table) -> None:
    """Rows of another's making, under a manifest that fits them."""
    pq.write_table(table, folder / "rows.parquet")
    about = {name: value for name, value in storage.read_json(folder / storage.MANIFEST).items() if name != "files"}
    (folder / storage.MANIFEST).unlink()
    storage.write_manifest(folder, about)


@guards("data.tables.twice")
def test_a_column_that_is_there_twice_is_refused_in_one_line(tmp_path):
    folder = stranger(tmp_path)
    table = pq.read_table(folder / "rows.parquet")
    sealed(folder, pa.Table.from_arrays([*table.columns, table.column("action")], names=[*table.column_names, "action"]))
    with pytest.raises(DataError, match=r"episode-00000001/rows\.parquet: has 2 columns 'action'; .*; move .*episode-00000001 away"):
        Dataset.open(tmp_path / "data")


def test_a_path_that_is_no_text_beside_an_image_is_nobodys_concern(tmp_path):
    folder = stranger(tmp_path)
    table = pq.read_table(folder / "rows.parquet")
    at, count = table.column_names.index("observation.images.wrist"), table.num_rows
    paths = pa.StringArray.from_buffers(count, pa.py_buffer(np.arange(count + 1, dtype=np.int32)), pa.py_buffer(b"\xff" * count))
    images = [value["bytes"].as_py() for value in table.column(at)]
    wrong = pa.StructArray.from_arrays([pa.array(images, pa.binary()), paths], names=["bytes", "path"])
    sealed(folder, table.set_column(at, "observation.images.wrist", wrong))
    dataset = Dataset.open(tmp_path / "data")
    assert np.array_equal(dataset.frames(1, "wrist"), np.stack([frame_of(1, i)[0]["wrist"] for i in range(count)]))


@pytest.mark.parametrize("what", ["read_episode", "finish"])
def test_what_pyarrow_refuses_is_one_line(tmp_path, monkeypatch, what):
    stranger(tmp_path)

    def refused(*_: object) -> None:
        raise pa.ArrowInvalid("a value\nthat nobody foresaw")

    monkeypatch.setattr(recording if what == "read_episode" else recording.DatasetWriter, what, refused)
    with pytest.raises(DataError, match="a value") as caught:
        Dataset.open(tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)


def test_a_plan_that_no_json_can_hold_is_refused(tmp_path):
    plan = stranger(tmp_path).parent / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "about": {"height": float("nan")}}))
    with pytest.raises(DataError, match=r"plan\.json: `about` holds numbers that are not finite"):
        Dataset.open(tmp_path / "data")


@guards("data.recording.link")
def test_a_recording_of_a_stranger_stays_in_its_folder(tmp_path):
    with Recorder(tmp_path / "data", robot(), extra=EXTRA) as recorder:
        record(recorder, 0)
    folder = tmp_path / "data" / RECORDING
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("x")
    clip = folder / "episode-00000000/camera-0.mp4"
    for link in (folder / "dataset", folder / "lock", folder / "episode-00000001", folder / "episode-00000000/more", clip):
        kept = link.read_bytes() if link.is_file() else None
        link.unlink(missing_ok=True)
        link.symlink_to(outside)
        with pytest.raises(DataError, match="a symbolic link"):
            Dataset.open(tmp_path / "data")
        link.unlink()
        if kept is not None:
            link.write_bytes(kept)
    for damage in ("[" * 100_000, "{}", '{"format_version": 1, "embodiment": {}, "images": {"a": "raw"}, "extra": {}, "about": {}}'):
        plan = (folder / "plan.json").read_text()
        (folder / "plan.json").write_text(damage)
        with pytest.raises(DataError, match=r"plan\.json"):
            Dataset.open(tmp_path / "data")
        (folder / "plan.json").write_text(plan)
    folder.rename(outside / "elsewhere")
    folder.symlink_to(outside / "elsewhere")
    with pytest.raises(DataError, match="a symbolic link"):
        Dataset.open(tmp_path / "data")
    assert (outside / "canary").exists()
    assert (outside / "elsewhere/plan.json").exists()
