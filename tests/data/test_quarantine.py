"""Which episodes may be trained on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from damage import TASKS, change, cut, edit, put, set_column, video, write_six
from deftly import storage
from deftly.data import quarantine
from deftly.data.check.findings import CheckConfig
from deftly.data.dataset import Dataset
from deftly.types import DataError
from guards import guards

HALF = CheckConfig(budget=0.5)


def test_a_sound_dataset_is_accepted_whole(tmp_path: Path):
    accepted, findings = quarantine.accept(Dataset.open(write_six(tmp_path / "data")))
    assert accepted.tolist() == [0, 1, 2, 3, 4, 5]
    assert not [finding for finding in findings if finding.verdict != "note"]


def test_broken_episodes_are_left_out_and_written_down(tmp_path: Path):
    root = write_six(tmp_path / "data")
    change(root, 1, "action", put(3, [float("nan")] * 4))
    cut(root / video(4), 0.5)
    accepted, findings = quarantine.accept(Dataset.open(root), HALF)
    assert accepted.tolist() == [0, 2, 3, 5]
    quarantine.write(tmp_path / "quarantine.jsonl", [(root, findings), (tmp_path / "other", findings[:1])])
    lines = list(storage.read_lines(tmp_path / "quarantine.jsonl"))
    mine = [line for line in lines if line["dataset"] == str(root)]
    assert sorted((line["episode"], line["code"]) for line in mine) == [(1, "not_finite"), (4, "broken_video")]
    assert [line["dataset"] for line in lines if line not in mine] == [str(tmp_path / "other")], "numbers are of that dataset"


def test_a_verdict_is_not_kept_beyond_a_change_that_hides_its_time(tmp_path: Path):
    """As a copy with times kept, or a card that rots: the size and the time of the contents are as they were."""
    root = write_six(tmp_path / "data")
    dataset = Dataset.open(root)
    assert len(quarantine.accept(dataset, HALF)[0]) == 6
    path = root / video(4)
    before, content = path.stat(), bytearray(path.read_bytes())
    at = content.index(b"moov")
    content[at : at + 4] = b"xxxx"
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert quarantine.accept(dataset, HALF)[0].tolist() == [0, 1, 2, 3, 5]


@guards("data.quarantine.refusal")
def test_more_than_the_budget_stops_before_training(tmp_path: Path):
    root = write_six(tmp_path / "data")
    change(root, 1, "action", put(3, [float("nan")] * 4))
    with pytest.raises(DataError, match=r"1 of 6 episodes \(16\.7%\) are broken.*episode 1 frame 3.*data check") as caught:
        quarantine.accept(Dataset.open(root))
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_whole_dataset_stops_before_training(tmp_path: Path):
    root = write_six(tmp_path / "data")
    edit(root / TASKS, lambda table: set_column(table, "task", ["a", "b", ""]))
    with pytest.raises(DataError, match="instruction is empty"):
        quarantine.accept(Dataset.open(root), HALF)
