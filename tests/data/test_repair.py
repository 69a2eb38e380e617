"""A mended copy holds what was sound, unchanged, and passes the full check."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage import LENGTH, META, change, corrupt, cut, data, edit, edit_info, put, set_column, video, write_six
from deftly import storage
from deftly.cli.data import main
from deftly.data.check.findings import CheckConfig
from deftly.data.check.run import check
from deftly.data.dataset import Dataset
from deftly.data.files import arrow_schema
from deftly.data.repair import repair
from deftly.data.salvage import pattern_for, pattern_of, salvage
from deftly.data.schema import Feature
from deftly.data.writer import DatasetWriter
from deftly.types import DataError, UsageError
from guards import guards
from recordings import episode as recorded
from recordings import write
from recordings_v2 import LENGTHS, ROWS, VIDEO, write_v21
from recordings_v2 import lines as write_lines
from small_data import robot


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_six(tmp_path_factory.mktemp("six") / "data")


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def mended(root: Path, kept: list[tuple[int, int]], original: Path) -> list[str]:
    """Repair; the copy must hold exactly the first `length` frames of each episode of `kept`, bit for bit. Returns the report."""
    before = {path: storage.sha256(path) for path in root.rglob("*") if path.is_file()}
    report = repair(root, root.parent / "mended")
    assert {path: storage.sha256(path) for path in root.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in root.parent.iterdir()) == ["data", "mended"]
    copy, source = Dataset.open(root.parent / "mended"), Dataset.open(original)
    assert check(copy.root, CheckConfig(full=True)).refusal is None
    assert copy.episode_length.tolist() == [length for _, length in kept]
    for number, (episode, length) in enumerate(kept):
        mine, theirs = int(copy.episode_start[number]), int(source.episode_start[episode])
        for name in ("action", "observation.state", "note", "timestamp", "frame_index"):
            assert np.array_equal(copy.column(name)[mine : mine + length], source.column(name)[theirs : theirs + length])
        assert np.array_equal(copy.frames(number, "wrist"), source.frames(episode, "wrist", np.arange(length)))
        assert copy.extra("seed")[number] == source.extra("seed")[episode]
    return report.lines()


ALL = [(episode, LENGTH) for episode in range(6)]
WITHOUT_TWO = [pair for pair in ALL if pair[0] != 2]

MENDABLE: dict[str, tuple[Callable[[Path], None], list[tuple[int, int]], str]] = {
    "length": (
        lambda root: edit(root / META, lambda table: set_column(table, "length", [12, 12, 10, 12, 12, 12])),
        ALL,
        "its length was 10",
    ),
    "ranges": (lambda root: edit(root / META, lambda table: set_column(table, "dataset_from_index", [0] * 6)), ALL, "its rows 0..24"),
    "nothing": (lambda root: None, ALL, "6 episodes"),
    "d1": (lambda root: cut(root / video(2), 0.5), WITHOUT_TWO, "left out episode 2"),
    "d3": (lambda root: corrupt(root / video(2), slice(4, 6)), WITHOUT_TWO, "left out episode 2"),
    "d4": (lambda root: cut(root / data(2), 0.95), ALL, "12 rows salvaged"),
    "d4-rows-too": (lambda root: cut(root / data(2), 0.3), WITHOUT_TWO, "left out episode 2"),
    "d5": (lambda root: (root / data(2)).unlink(), WITHOUT_TWO, "left out episode 2: missing"),
    "d6": (lambda root: edit_info(root, total_episodes=8, total_frames=7), ALL, "total_episodes is 6, not 8"),
    "d6-rows": (lambda root: edit(root / data(2), lambda table: table.slice(0, 9)), [*ALL[:2], (2, 9), *ALL[3:]], "kept up to frame 8"),
    "d7": (lambda root: edit(root / META, lambda table: table.filter(np.arange(6) != 2)), WITHOUT_TWO, "renumbered 0..4"),
    "d8": (
        lambda root: edit(root / data(2), lambda table: table.take([0, 1, 1, *range(2, LENGTH)])),
        ALL,
        "1 repeated rows left out",
    ),
    "d9": (lambda root: change(root, 2, "index", put(3, 0)), ALL, "6 episodes"),
    "d11": (lambda root: change(root, 2, "action", put(3, [float("nan")] * 4)), WITHOUT_TWO, "left out episode 2"),
    "d19": (lambda root: change(root, 2, "timestamp", put(3, 0.33)), ALL, "timestamps set to frame / fps"),
    "d25": (lambda root: change(root, 2, "task_index", put(3, 9)), WITHOUT_TWO, "its task_index is 9"),
}


def lengths(values: list | None, name: str = "length", kind: pa.DataType | None = None) -> Callable[[Path], None]:
    """Puts these in the place of a column of meta/episodes, or takes it away."""
    return lambda root: edit(root / META, lambda table: set_column(table, name, values, kind) if values else table.drop_columns([name]))


def text_and_a_wrong_length(root: Path) -> None:
    change(root, 2, "episode_index", lambda _: ["two"] * LENGTH, pa.string())
    lengths([12, 12, 12, 12, 7, 12])(root)


def text_and_a_gap(root: Path) -> None:
    change(root, 3, "episode_index", lambda _: ["three"] * LENGTH, pa.string())
    edit(root / META, lambda table: table.filter(np.arange(6) != 2))


def floats(root: Path) -> None:
    for name in ("frame_index", "episode_index", "task_index"):
        change(root, 2, name, lambda values: values, pa.float64())


ANEW = "meta/episodes: length made anew, as whole numbers"
MENDABLE |= {
    "null-length": (lengths([12, None, 12, 12, 12, 12]), ALL, "episode 1: its length was unknown, its rows 12..24; the data files hold 12"),
    "null-range": (lengths([12, None, 36, 48, 60, 72], "dataset_to_index"), ALL, "its rows 12..unknown; the data files hold 12 frames"),
    "nan-length": (lengths([12.0, np.nan, 12.0, 12.0, 12.0, 12.0], kind=pa.float64()), ALL, ANEW),
    "float-length": (lengths([12.0] * 6, kind=pa.float64()), ALL, ANEW),
    "text-length": (lengths(["12"] * 6, kind=pa.string()), ALL, ANEW),
    "list-length": (lengths([[12]] * 6, kind=pa.list_(pa.int64())), ALL, ANEW),
    "no-length": (lengths(None), ALL, ANEW),
    "no-range": (lengths(None, "dataset_from_index"), ALL, "dataset_from_index made anew"),
    "text-and-a-wrong-length": (text_and_a_wrong_length, WITHOUT_TWO, "its length was 7, its rows 48..60; the data files hold 12"),
    "text-and-a-gap": (text_and_a_gap, [pair for pair in WITHOUT_TWO if pair[0] != 3], "left out episode 3"),
    "no-rows": (lambda root: edit(root / data(2), lambda table: table.slice(0, 0)), WITHOUT_TWO, "left out episode 2: holds no frames"),
    "floats": (floats, ALL, "6 episodes"),
}


@pytest.mark.parametrize("name", MENDABLE)
def test_what_can_be_mended_is(root: Path, original: Path, name: str):
    damage, kept, said = MENDABLE[name]
    damage(root)
    assert any(said in line for line in mended(root, kept, original))


def test_glued_recordings_become_episodes(tmp_path: Path):
    root = write_six(tmp_path / "data", (30, LENGTH))
    change(root, 0, "timestamp", lambda _: [i % 10 / 10 for i in range(30)])
    main(["repair", str(root), str(tmp_path / "mended")])
    copy, source = Dataset.open(tmp_path / "mended"), Dataset.open(write_six(tmp_path / "again", (30, LENGTH)))
    assert copy.episode_length.tolist() == [10, 10, 10, LENGTH]
    assert np.array_equal(copy.action, source.action)
    assert np.array_equal(copy.frames(1, "head"), source.frames(0, "head", np.arange(10, 20)))


def test_statistics_are_made_anew(root: Path):
    stats = storage.read_json(root / "meta/stats.json")
    del stats["action"]["q01"]
    storage.write_json(root / "meta/stats.json", {**stats, "observation.state": {"min": [0.0] * 5}})
    repair(root, root.parent / "mended")
    found = storage.read_json(root.parent / "mended/meta/stats.json")
    assert np.allclose(found["observation.state"]["min"], Dataset.open(root).state.min(0))
    assert "q01" in found["action"]


def test_a_further_column_that_is_not_finite_costs_no_episode(root: Path):
    change(root, 2, "note", put(4, [float("nan")] * 2))
    report = repair(root, root.parent / "mended")
    assert report.lines() == [
        "6 episodes, 72 frames in the mended copy",
        "left out the feature note: episode 2 frame 4: nan is not a finite number",
    ]
    copy, source = Dataset.open(root.parent / "mended"), Dataset.open(root)
    assert np.array_equal(copy.action, source.action)
    assert "note" not in copy.features


def test_texts_arrays_and_depth_are_kept(tmp_path: Path):
    everything = columns_of_all_kinds(tmp_path / "data")
    report = repair(everything, tmp_path / "mended")
    assert report.left_out == {}
    copy, source = Dataset.open(tmp_path / "mended"), Dataset.open(everything)
    assert copy.texts("says") == source.texts("says")
    assert copy.depth_cameras == ("depth",)
    for name in ("grid", "count", "note"):
        assert copy.features[name] == source.features[name]
        assert np.array_equal(copy.column(name), source.column(name))
    assert np.array_equal(copy.depth(1, "depth"), source.depth(1, "depth"))


def columns_of_all_kinds(root: Path) -> Path:
    depth = Feature("image", (12, 16, 1), ("height", "width", "channels"), {"video.is_depth_map": True, "depth_unit": "mm"})
    kinds = {"says": Feature("string", (1,)), "grid": Feature("float32", (2, 3)), "count": Feature("int64", (2,)), "depth": depth}
    draw = np.random.default_rng(0)
    with DatasetWriter(root, robot(), extra={"note": ("left", "right"), **kinds}) as writer:
        for number in range(2):
            item = recorded(number, 5)
            more = {
                "says": [f"step {i} of {number}: ü" for i in range(5)],
                "grid": draw.normal(size=(5, 2, 3)).astype(np.float32),
                "count": draw.integers(0, 1 << 40, (5, 2)),
                "depth": draw.integers(0, 65536, (5, 12, 16)).astype(np.uint16),
            }
            writer.add(dataclasses.replace(item, extra_frame={**item.extra_frame, **more}))
        writer.finish()
    return root


def test_an_error_names_the_source_and_no_folder_that_is_gone(root: Path):
    (root / META).write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        repair(root, root.parent / "mended")
    assert str(caught.value).startswith(f"{root}/meta/episodes")
    assert ".repair" not in str(caught.value)


def test_a_dataset_of_which_nothing_is_left_is_refused(root: Path):
    for episode in range(6):
        change(root, episode, "action", put(3, [float("nan")] * 4))
    with pytest.raises(DataError, match="nothing sound is left"):
        repair(root, root.parent / "mended")
    assert sorted(path.name for path in root.parent.iterdir()) == ["data"]


def test_episode_tables_without_rows_are_not_called_damaged(root: Path):
    edit(root / META, lambda table: table.slice(0, 0))
    with pytest.raises(DataError) as caught:
        repair(root, root.parent / "mended")
    assert str(caught.value) == f"{root}: nothing sound is left; meta/episodes has no rows"


def test_nothing_is_overwritten(root: Path):
    (root.parent / "mended").mkdir()
    (root.parent / "mended/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        repair(root, root.parent / "mended")
    assert (root.parent / "mended/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("share", [0.999, 0.9, 0.75, 0.5, 0.25, 0.1, 0.01])
def test_what_is_salvaged_is_the_beginning(tmp_path: Path, share: float):
    root = write(tmp_path / "data", (20, 5, 30, 8, 25, 12))
    path = root / "data/chunk-000/file-000.parquet"
    whole, pattern = pq.read_table(path), pattern_of(path)
    assert pattern_of(path) is not None
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for kind in (pattern, pattern_for(arrow_schema(Dataset.open(root).features))):
        found = salvage(path, kind)
        rows = 0 if found is None else found.num_rows
        ends = [0, 20, 25, 55, 63, 88, 100]
        assert rows in ends
        assert found is None or found.equals(whole.slice(0, rows))
        # a row group of whose bytes everything is there must be found
        groups = pq.ParquetFile(_with(tmp_path / "whole", content)).metadata
        closed = [groups.row_group(i) for i in range(6) if _end(groups.row_group(i)) <= int(len(content) * share)]
        assert rows == sum(group.num_rows for group in closed)


def _with(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _end(group: pq.RowGroupMetaData) -> int:
    column = group.column(group.num_columns - 1)
    begin = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    return begin + column.total_compressed_size


def test_noise_is_not_salvaged(tmp_path: Path):
    pattern = pattern_of(write(tmp_path / "data", (5,)) / "data/chunk-000/file-000.parquet")
    draw = np.random.default_rng(0)
    for size in (0, 3, 4, 100, 10_000):
        noise = _with(tmp_path / "noise.parquet", b"PAR1" + draw.integers(0, 256, size, dtype=np.uint8).tobytes())
        assert salvage(noise, pattern) is None


@guards("data.repair.inside")
@pytest.mark.parametrize("from_python", [True, False])
@pytest.mark.parametrize(("place", "message"), [("inner", "lies inside"), (".", "is the source itself"), ("deep/../inner", "lies inside")])
def test_a_copy_inside_its_source_is_refused(root: Path, place: str, message: str, from_python: bool):
    before = sorted(root.rglob("*"))
    with pytest.raises(UsageError, match=message) as caught:
        repair(root, root / place) if from_python else main(["repair", str(root), str(root / place)])
    assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_a_further_column_that_one_file_lacks_costs_no_episode(root: Path):
    edit(root / data(2), lambda table: table.drop_columns("note"))
    report = repair(root, root.parent / "mended")
    assert report.lines() == ["6 episodes, 72 frames in the mended copy", f"left out the feature note: {data(2)} has no such column"]
    copy, source = Dataset.open(root.parent / "mended"), Dataset.open(root)
    assert np.array_equal(copy.action, source.action)
    assert "note" not in copy.features


def edit_rate(root: Path, rate_hz: float) -> None:
    ours = storage.read_json(root / "meta/deftly.json")
    ours["embodiment"]["rate_hz"] = rate_hz
    storage.write_json(root / "meta/deftly.json", ours)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: edit_info(root, fps=30), "meta/info.json: fps is 10, as the timestamps run, not 30"),
        (lambda root: edit_rate(root, 30.0), "meta/deftly.json: rate_hz is 10, as the timestamps run, not 30"),
    ],
)
def test_of_two_rates_the_one_of_the_timestamps_stands(root: Path, original: Path, damage: Callable[[Path], None], said: str):
    damage(root)
    assert said in mended(root, ALL, original)
    assert Dataset.open(root.parent / "mended").embodiment == Dataset.open(original).embodiment


@guards("data.repair.rate")
def test_two_rates_of_which_neither_is_that_of_the_timestamps_are_refused(root: Path):
    edit_info(root, fps=30)
    edit_rate(root, 20.0)
    with pytest.raises(DataError, match=r"info\.json says 30 .*deftly\.json 20, the timestamps run at 10; correct") as caught:
        repair(root, root.parent / "mended")
    assert str(caught.value).startswith(f"{root}: ")
    assert sorted(path.name for path in root.parent.iterdir()) == ["data"]


def gaps_in_v21(root: Path, numbers: tuple[int, ...] = (1, 3, 7)) -> Path:
    """Three episodes of v2.1 under these numbers, and files of an episode 0 that meta/ does not list."""
    write_v21(root)
    for number, new in reversed(list(enumerate(numbers))):
        edit(root / ROWS.format(number // 2, number), lambda table, new=new: set_column(table, "episode_index", [new] * table.num_rows))
        for name in (ROWS, VIDEO):
            target = root / name.format(new // 2, new)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(root / name.format(number // 2, number), target)
    for name in (ROWS, VIDEO):
        (root / name.format(0, 0)).write_bytes(b"of an episode that was removed")
    write_lines(root / "meta/episodes.jsonl", [{"episode_index": n, "length": LENGTHS[i], "hand": f"p{n}"} for i, n in enumerate(numbers)])
    return root


def test_gaps_in_the_numbers_of_v21_are_closed(tmp_path: Path):
    root = gaps_in_v21(tmp_path / "src")
    before = {path: storage.sha256(path) for path in root.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="without gaps"):
        Dataset.open(root)
    report = repair(root, tmp_path / "mended")
    assert {path: storage.sha256(path) for path in root.rglob("*") if path.is_file()} == before
    assert report.lines() == ["3 episodes, 13 frames in the mended copy", "episodes renumbered 0..2, they were 1..7 with gaps"]
    copy = Dataset.open(tmp_path / "mended")
    assert check(copy.root, CheckConfig(full=True)).refusal is None
    assert copy.extra("hand") == ["p1", "p3", "p7"]
    whole = Dataset.open(write_v21(tmp_path / "whole"))
    assert np.array_equal(copy.action, whole.action)
    assert copy.texts("note") == whole.texts("note")
    for number in range(3):
        assert np.array_equal(copy.frames(number, "head"), whole.frames(number, "head"))
        assert np.array_equal(copy.frames(number, "wrist"), whole.frames(number, "wrist"))


def test_what_is_left_out_of_a_renumbered_dataset_is_named_as_its_source_names_it(tmp_path: Path):
    root = gaps_in_v21(tmp_path / "src")
    (root / ROWS.format(1, 3)).unlink()
    cut(root / ROWS.format(3, 7), 0.97)
    report = repair(root, tmp_path / "mended")
    assert report.dropped == {3: "missing"}
    assert f"{ROWS.format(3, 7)}: 3 rows salvaged from a table without its end" in report.mended
    copy = Dataset.open(tmp_path / "mended")
    assert (copy.episode_length.tolist(), copy.extra("hand")) == ([4, 3], ["p1", "p7"])
    about = storage.read_json(tmp_path / "mended/meta/deftly.json")
    assert list(about["repair"]["dropped"]) == ["3"]


def test_what_v21_calls_no_number_is_refused_in_one_line(tmp_path: Path):
    root = write_v21(tmp_path / "src")
    write_lines(root / "meta/episodes.jsonl", [{"episode_index": "0", "length": "4"}, {"length": None}])
    with pytest.raises(DataError, match="needs a new episode_index") as caught:
        repair(root, tmp_path / "mended")
    assert str(caught.value).startswith(f"{root}/meta/episodes.jsonl")


def test_rows_beyond_the_length_of_an_episode_are_not_left_out_in_silence(tmp_path: Path):
    root = write_v21(tmp_path / "src")
    lines = list(storage.read_lines(root / "meta/episodes.jsonl"))
    write_lines(root / "meta/episodes.jsonl", [{**line, "length": line["length"] - (line["episode_index"] == 1)} for line in lines])
    report = repair(root, tmp_path / "mended")
    assert f"episode 1: 1 rows beyond its length of {LENGTHS[1] - 1} left out" in report.lines()


@pytest.mark.parametrize("name", ["episodes", "tasks"])
def test_jsonl_without_its_last_newline_is_repaired_whole(tmp_path: Path, name: str):
    root = write_v21(tmp_path / "src")
    path = root / f"meta/{name}.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert repair(root, tmp_path / "mended").lines() == ["3 episodes, 13 frames in the mended copy"]
