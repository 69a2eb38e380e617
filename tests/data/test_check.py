"""What a check says about data that is whole, but hard to learn from; and that it says nothing about data that is fine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from damage import LENGTH, META, change, cut, edit, edit_info, set_column, write_six
from deftly import storage
from deftly.cli.main import main as deftly
from deftly.data import quarantine
from deftly.data.check.findings import CheckConfig, Report
from deftly.data.check.run import check
from deftly.data.check.table import render
from deftly.data.dataset import Dataset
from deftly.data.export import export_v21
from deftly.data.repair import repair
from deftly.data.writer import DatasetWriter, EpisodeData
from guards import guards
from recordings import episode, write
from small_data import robot

FULL = CheckConfig(full=True)


def motion(number: int, length: int = 60) -> EpisodeData:
    """Smooth motion, no two episodes alike, pictures that follow it."""
    draw = np.random.default_rng(number)
    time = np.arange(length)[:, None] / 10
    state = np.sin(time * draw.uniform(0.5, 2, 5) + draw.uniform(0, 6, 5)).astype(np.float32)
    base = episode(number, length)
    texts = ("pick up the red cup", "lift the blue ball", "grab the green box")
    return dataclasses.replace(base, state=state, action=np.roll(state[:, :4], -1, axis=0), task=texts[number % 3], extra_frame={})


def record(root: Path, episodes: list[EpisodeData]) -> Path:
    with DatasetWriter(root, robot()) as writer:
        for item in episodes:
            writer.add(item)
        writer.finish()
    return root


def codes(report: Report, *verdicts: str) -> dict[str, int | None]:
    return {finding.code: finding.episode for finding in report.findings if finding.verdict in verdicts}


def test_smooth_motion_is_fine(tmp_path: Path):
    report = check(record(tmp_path / "data", [motion(number) for number in range(6)]), FULL)
    assert codes(report, "refuse", "quarantine", "warn", "note") == {}


def test_a_frame_that_jumps_out_and_back_is_a_spike(tmp_path: Path):
    episodes = [motion(number) for number in range(6)]
    episodes[3].action[20, 1] += 5
    report = check(record(tmp_path / "data", episodes), FULL)
    assert codes(report, "refuse", "quarantine", "warn") == {"spike": 3}
    assert report.findings[0].frame == 20


@pytest.mark.parametrize(("episodes", "every"), [(1, 60), (3, 59), (6, 90), (6, 30), (6, 10)])
def test_many_spikes_do_not_hide_each_other(tmp_path: Path, episodes: int, every: int):
    found = [motion(number) for number in range(episodes)]
    for number, item in enumerate(found):
        item.action[5 + every // 3 :: every, 1] += 5 if number % 2 else 7
    count = sum(len(range(5 + every // 3, 60, every)) for _ in found)
    (spike,) = (finding for finding in check(record(tmp_path / "data", found)).findings if finding.code == "spike")
    assert f"({count} such frames)" in spike.message


@pytest.mark.parametrize("kind", ["chatter", "noise", "wrapped", "flicker"])
def test_what_looks_like_spikes_and_is_none_is_not_named(tmp_path: Path, kind: str):
    draw = np.random.default_rng(0)
    episodes = [motion(number) for number in range(6)]
    for item in episodes:
        column, odd = item.action[:, 3], draw.random(60) < 0.05
        if kind == "chatter":  # a gripper with a noisy sensor that sometimes closes for a frame
            column[:] = ((np.arange(60) // 20 % 2 == 1) ^ odd) + draw.normal(0, 0.01, 60)
        elif kind == "noise":
            column[:] = draw.laplace(size=60)
        elif kind == "wrapped":
            column[:] = (np.cumsum(draw.normal(0, 0.05, 60)) + 2 * np.pi) % (2 * np.pi) - np.pi
        else:  # the last digits of a joint that rests
            column[:] = 1e-4 * odd * draw.integers(1, 9, 60)
    assert "spike" not in codes(check(record(tmp_path / "data", episodes), FULL), "warn")


def test_a_switch_and_a_step_are_no_spikes(tmp_path: Path):
    episodes = [motion(number) for number in range(6)]
    for item in episodes:
        item.action[:, 3] = np.arange(60) // 20 % 2
        item.action[30:, 2] += 2
    assert "spike" not in codes(check(record(tmp_path / "data", episodes), FULL), "warn")


def test_standing_still_for_long_is_idle(tmp_path: Path):
    episodes = [motion(number) for number in range(6)]
    episodes[2].state[10:45] = episodes[2].state[10]
    noted = check(record(tmp_path / "few", episodes), FULL)
    assert codes(noted, "note") == {"idle": 2}
    for item in episodes:
        item.state[10:45] = item.state[10]
    assert "idle" in codes(check(record(tmp_path / "many", episodes), FULL), "warn")


def test_an_episode_that_repeats_another_is_named(tmp_path: Path):
    report = check(record(tmp_path / "data", [motion(0), motion(1), motion(2), motion(0)]), FULL)
    assert codes(report, "warn") == {"duplicate_episode": 3}


def test_splits_that_share_a_trajectory_leak(tmp_path: Path):
    root = record(tmp_path / "data", [dataclasses.replace(motion(i % 3), extra_episode={}) for i in range(6)])
    edit_info(root, splits={"train": "0:3", "val": "3:6"})
    assert codes(check(root, FULL), "warn") == {"duplicate_episode": 5, "split_leak": 3}
    edit_info(root, splits={"train": "0:6"})
    assert "split_leak" not in codes(check(root, FULL), "warn")


def test_splits_that_share_a_scene_leak(tmp_path: Path):
    root = record(tmp_path / "data", [dataclasses.replace(motion(i), extra_episode={"scene": f"kitchen {i % 2}"}) for i in range(4)])
    edit_info(root, splits={"train": "0:3", "val": "3:4"})
    assert "split_leak" in codes(check(root, FULL), "warn")


def test_scenes_with_one_instruction_each_are_named(tmp_path: Path):
    episodes = [dataclasses.replace(motion(i), extra_episode={"scene": str(i % 3)}) for i in range(9)]
    assert "scene_tells" in codes(check(record(tmp_path / "data", episodes), FULL), "warn")
    mixed = [dataclasses.replace(motion(i), extra_episode={"scene": str(i // 3)}) for i in range(9)]
    assert "scene_tells" not in codes(check(record(tmp_path / "mixed", mixed), FULL), "warn")


@pytest.mark.parametrize("tells", [True, False])
def test_a_first_picture_that_gives_the_instruction_away_is_named(tmp_path: Path, tells: bool):
    draw = np.random.default_rng(0)
    episodes = []
    for number in range(24):
        item = motion(number, 6)
        colour = 60 * (number % 3) if tells else int(draw.integers(0, 180))
        images = {camera: np.clip(draw.integers(0, 20, (6, 32, 32, 3)) + colour, 0, 255).astype(np.uint8) for camera in ("head", "wrist")}
        episodes.append(dataclasses.replace(item, images=images, extra_episode={}))
    found = codes(check(record(tmp_path / "data", episodes), FULL), "warn")
    assert ("picture_tells" in found) == tells


def test_cameras_that_show_nothing_are_named(tmp_path: Path):
    dark = np.zeros((60, 32, 32, 3), np.uint8)
    episodes = [
        dataclasses.replace(item, images={"head": np.repeat(np.asarray(item.images["head"])[:1], 60, axis=0), "wrist": dark})
        for item in map(motion, range(3))
    ]
    found = check(record(tmp_path / "data", episodes), FULL)
    assert {finding.code: finding.field for finding in found.of("warn")} == {"dark_camera": "wrist", "frozen_camera": "head"}
    assert next(iter(render(found).columns[2].cells)) == "all"
    some = dataclasses.replace(found, num_episodes=25)
    assert next(iter(render(some).columns[2].cells)) == "3 of 25"
    assert found.of("warn")[0].to_dict()["count"] == 3


@guards("data.check.statistics_missing")
def test_d16_statistics_without_a_key_are_refused(tmp_path: Path):
    root = write_six(tmp_path / "data")
    stats = storage.read_json(root / "meta/stats.json")
    del stats["action"]["std"]
    storage.write_json(root / "meta/stats.json", stats)
    assert "meta/stats.json: action: 'std' is missing" in str(check(root).refusal)


@guards("data.check.statistics_differ")
def test_d17_statistics_of_another_kind_of_action_are_refused(tmp_path: Path):
    root = write_six(tmp_path / "data")
    stats = storage.read_json(root / "meta/stats.json")
    steps = np.diff(Dataset.open(root).action, axis=0)
    stats["action"] |= {"min": steps.min(0).tolist(), "max": steps.max(0).tolist(), "mean": steps.mean(0).tolist()}
    storage.write_json(root / "meta/stats.json", stats)
    assert "statistics of other data, or of another kind of action" in str(check(root).refusal)


@pytest.mark.parametrize("value", [[10**400], "text", [["a"]], None, [[]]])
def test_statistics_that_are_no_numbers_are_refused(tmp_path: Path, value: object):
    root = write_six(tmp_path / "data")
    stats = storage.read_json(root / "meta/stats.json")
    (root / "meta/stats.json").write_text(json.dumps({**stats, "action": {**stats["action"], "min": value}}))
    assert "meta/stats.json: action: 'min' has" in str(check(root).refusal)


def test_training_measures_its_own_statistics_and_the_refusal_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_six(tmp_path / "data")
    (root / "meta/stats.json").write_text("{}")
    assert len(quarantine.accept(Dataset.open(root))[0]) == 6
    with pytest.raises(SystemExit) as caught:
        deftly(["data", "check", str(root)])
    assert caught.value.code == 65
    shown = capsys.readouterr()
    assert "must not be trained on" not in shown.out
    assert "refused for what others read, training does not" in shown.out
    assert "training computes its own and never reads these, others would: `deftly data repair` computes them anew" in shown.err
    assert len(quarantine.accept(Dataset.open(root))[0]) == 6, "a check changes nothing for training"


def test_a_verdict_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_six(tmp_path / "data")
    decoded = []
    look = Dataset.frames
    monkeypatch.setattr(Dataset, "frames", lambda self, *words: decoded.append(words) or look(self, *words))
    deftly(["data", "check", str(root)])
    assert decoded
    decoded.clear()
    quarantine.open_sound(root, FULL)
    quarantine.open_sound(root)
    assert not decoded
    change(root, 2, "action", lambda rows: [[2 * x for x in row] for row in rows])
    quarantine.open_sound(root, FULL)
    assert decoded


def test_a_broken_verdict_is_made_again(tmp_path: Path):
    root = write_six(tmp_path / "data")
    quarantine.open_sound(root)
    (kept,) = (root / ".cache" / "check").glob("*.json")
    for text in ("", "[]", '{"full": true, "findings": [{"x": 1}]}'):
        kept.write_text(text)
        assert quarantine.open_sound(root)[0].num_episodes == 6
        assert json.loads(kept.read_text())["full"] is False


def test_the_table_and_the_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_six(tmp_path / "data", (LENGTH, LENGTH))
    change(root, 1, "action", lambda rows: [[float("nan")] * 4, *rows[1:]])
    with pytest.raises(SystemExit) as caught:
        deftly(["data", "check", str(root), "--json", str(tmp_path / "report.json")])
    assert caught.value.code == 65
    shown = capsys.readouterr()
    assert "quarantine" in shown.out
    assert "must not be trained on" in shown.out
    assert shown.err.strip().splitlines()[-1].startswith(f"deftly: {root}: 1 of 2 episodes (50.0%) are broken")
    report = storage.read_json(tmp_path / "report.json")
    assert report["quarantined"] == [1]
    assert report["counts"]["quarantine"] == 1
    assert report["findings"][0]["code"] == "not_finite"


def test_row_numbers_with_a_gap_are_worth_a_note(tmp_path: Path):
    root = write_six(tmp_path / "data")
    change(root, 5, "index", lambda values: [value + 7 for value in values])
    report = check(root)
    assert report.refusal is None
    assert "index_gap" in codes(report, "note")


@guards("data.check.long_episode")
def test_d10_an_episode_as_long_as_many_is_refused_unless_it_is_allowed(tmp_path: Path):
    root = write_six(tmp_path / "data", (LENGTH, LENGTH, 20 * LENGTH, LENGTH))
    assert "episode 2: has 240 frames, the median episode 12" in str(check(root).refusal)
    allowed = check(root, CheckConfig(allow_long_episodes=True))
    assert allowed.refusal is None
    assert codes(allowed, "warn") == {"long_episode": 2}


FROM, TO = (f"videos/observation.images.head/{name}_timestamp" for name in ("from", "to"))


def move(root: Path, name: str, by_s: dict[int, float]) -> None:
    """Shift when episodes begin or end in their shared video."""

    def moved(table: pa.Table) -> pa.Table:
        return set_column(table, name, [value + by_s.get(i, 0) for i, value in enumerate(table.column(name).to_pylist())])

    edit(root / META, moved)


@guards("data.check.stretch_length")
def test_a_stretch_of_a_video_that_is_not_as_long_as_its_rows_is_left_out(tmp_path: Path):
    root = write(tmp_path / "data", (LENGTH,) * 6)
    move(root, FROM, {2: 0.5})
    report = check(root, CheckConfig(full=True, budget=0.5))
    assert codes(report, "refuse", "quarantine") == {"stretch_length": 2}
    assert report.quarantined.tolist() == [2]
    assert "gives it 0.7 s of the video, its 12 rows take 1.2 s" in report.findings[0].line()
    assert repair(root, tmp_path / "mended").dropped.keys() == {2}


@guards("data.check.stretch_overlap")
@pytest.mark.parametrize("with_ends", [True, False])
def test_episodes_on_the_same_stretch_of_a_video_are_left_out(tmp_path: Path, with_ends: bool):
    root = write(tmp_path / "data", (LENGTH,) * 6)
    for name in (FROM, TO):
        move(root, name, {4: -2 * LENGTH / 10})  # at 10 frames per second: where episode 2 is
    if not with_ends:
        edit(root / META, lambda table: table.drop_columns([TO]))
    report = check(root, CheckConfig(full=True, budget=0.5))
    assert {finding.code for finding in report.of("quarantine")} == {"stretch_overlap"}
    assert report.quarantined.tolist() == [2, 4]
    assert repair(root, tmp_path / "mended").dropped.keys() == {2, 4}
    every = write(tmp_path / "every", (LENGTH,) * 6)
    edit(every / META, lambda table: set_column(table, FROM, [0.0] * 6))
    assert "more than the budget" in str(check(every, CheckConfig(full=True, budget=0.5)).refusal)


def test_stretches_that_are_half_a_frame_off_are_not_blamed(tmp_path: Path):
    root = write(tmp_path / "data", (LENGTH,) * 6)
    for by in (-0.045, 0.09):
        for name in (FROM, TO):
            move(root, name, dict.fromkeys((1, 3), by))
        assert codes(check(root, FULL), "refuse", "quarantine") == {}


def six_v21(root: Path) -> Path:
    """The six episodes as LeRobot v2.1."""
    export_v21(Dataset.open(write_six(root.parent / "v3")), root)
    return root


@pytest.mark.parametrize(
    ("damage", "code", "verdict"),
    [
        (lambda root: None, None, None),
        (lambda root: cut(root / V21_VIDEO, 0.5), "broken_video", "quarantine"),
        (lambda root: cut(root / V21_DATA, 0.5), "broken_table", "quarantine"),
        (lambda root: (root / V21_DATA).unlink(), "missing_file", "refuse"),
        (lambda root: edit(root / V21_DATA, lambda table: table.slice(0, 9)), "row_count", "refuse"),
        (lambda root: edit(root / V21_DATA, lambda table: set_column(table, "timestamp", [0.0] * LENGTH)), "time_order", "quarantine"),
        (lambda root: edit_info(root, total_frames=3), "metadata", "refuse"),
    ],
)
def test_older_datasets_are_judged_the_same(tmp_path: Path, damage, code, verdict):
    root = six_v21(tmp_path / "v21")
    damage(root)
    report = check(root, CheckConfig(full=True, budget=0.5))
    assert {finding.code for finding in report.findings if finding.verdict in ("refuse", "quarantine")} == ({code} if code else set())
    if verdict == "quarantine":
        assert report.quarantined.tolist() == [2]
        assert repair(root, tmp_path / "mended").episodes >= 5
        assert check(tmp_path / "mended", FULL).refusal is None
    else:
        assert (report.refusal is not None) == (verdict == "refuse")


V21_VIDEO = "videos/chunk-000/observation.images.head/episode_000002.mp4"
V21_DATA = "data/chunk-000/episode_000002.parquet"
