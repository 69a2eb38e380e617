"""Tables and contact sheets."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deftly.data.dataset import Dataset
from deftly.data.show import SHEET_COLUMNS, contact_sheet, render, show, summary, task_counts
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import UsageError
from recordings import episode, write
from small_data import TASKS, robot


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return Dataset.open(write(tmp_path_factory.mktemp("show") / "data", (4, 6, 3, 5)))


def text(dataset: Dataset, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(dataset))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_tables_say_what_is_there(dataset):
    shown = text(dataset)
    for expected in (
        "episodes",
        "18 at 10 per second",
        "toy",
        "head 32x32 scene (video)",
        "wrist 32x32 wrist",
        "joint_4 (rad)",
        "target_3 (m)",
        "seed, scene",
    ):
        assert expected in shown, expected
    assert all(task in shown for task in TASKS)
    assert "3 |" in shown.split("episode length")[1]
    assert all(len(line) <= 80 for line in text(dataset, width=80).splitlines())


def test_the_summary_is_plain_data(dataset):
    facts = summary(dataset)
    assert (facts["episodes"], facts["frames"], facts["tasks"], facts["episode_frames"]) == (4, 18, 3, [3, 4.5, 6])
    assert facts["cameras"] == {"head": [32, 32], "wrist": [32, 32]}


def test_tasks_are_counted_by_episode(dataset):
    assert task_counts(dataset) == {TASKS[0]: 2, TASKS[1]: 1, TASKS[2]: 1}


def test_a_contact_sheet_shows_the_frames_in_time(dataset):
    sheet = np.asarray(contact_sheet(dataset, episodes=2, columns=3))
    assert sheet.shape[2] == 3
    assert sheet.std() > 20
    assert np.asarray(contact_sheet(dataset, episodes=1, columns=3)).shape[0] < sheet.shape[0]
    wide = np.asarray(contact_sheet(dataset, episodes=1, columns=SHEET_COLUMNS))
    assert wide.shape[1] > sheet.shape[1]


def test_text_from_a_dataset_is_printed_not_interpreted(tmp_path):
    data = episode(0, 3)
    task = "[red]pick[/red] " + "very " * 300 + "\n\x1b[31mlong"
    root = write(
        tmp_path / "data",
        (),
        [EpisodeData(images=data.images, state=data.state, action=data.action, task=task, extra_frame=data.extra_frame)],
    )
    dataset = Dataset.open(root)
    assert "[red]pick[/red]" in text(dataset)
    assert "\x1b[31mlong" not in text(dataset)
    assert contact_sheet(dataset).size[0] > 100


def test_show_prints_and_writes_the_sheet(dataset, tmp_path):
    out = io.StringIO()
    show(dataset, tmp_path / "sheet.png", Console(file=out, width=100))
    assert "contact sheet" in out.getvalue()
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == contact_sheet(dataset).size


def test_without_cameras_there_are_tables_but_no_sheet(tmp_path):
    blind = robot().replace(cameras=())
    with DatasetWriter(tmp_path / "data", blind) as writer:
        writer.add(EpisodeData(images={}, state=np.ones((3, 5)), action=np.zeros((3, 4)), task="x"))
        writer.finish()
    dataset = Dataset.open(tmp_path / "data")
    assert "constant" in text(dataset)
    with pytest.raises(UsageError, match="no cameras"):
        contact_sheet(dataset)
