import errno
import json
import os
import pickle
import sys
import threading

import numpy as np
import pytest

from deftly.data.columns import Columns
from deftly.data.dataset import Dataset
from small_data import FakeDataset, robot, write_dataset


class Counted(FakeDataset):
    """Counts how often its numbers are read."""

    read = 0

    def __getattribute__(self, name):
        if name == "action" and "action" in self.__dict__:
            Counted.read += 1
        return super().__getattribute__(name)


def leftover(home):
    """What a writer that was killed leaves behind."""
    folder = home.with_name(f".{home.name}.1234.tmp")
    folder.mkdir()
    return folder


def home(cache):
    return next(path for path in (cache / "columns").iterdir() if path.is_dir())


def test_columns_hold_the_raw_numbers(tmp_path):
    dataset = FakeDataset()
    columns = Columns.prepare(dataset, tmp_path)
    assert np.array_equal(columns.state, dataset.state)
    assert np.array_equal(columns.action, dataset.action)
    assert np.array_equal(columns.task, dataset.task_of_frame)
    assert not columns.state.flags.writeable
    assert np.array_equal(pickle.loads(pickle.dumps(columns)).action, dataset.action)
    assert len(pickle.dumps(columns)) < 1000


def test_a_real_dataset_and_its_columns_agree(tmp_path):
    dataset = Dataset.open(write_dataset(tmp_path / "data"))
    columns = Columns.prepare(dataset, tmp_path / "cache")
    assert np.array_equal(columns.state, dataset.state)
    assert np.array_equal(columns.action, dataset.action)
    assert np.array_equal(columns.task, dataset.task_of_frame)


@pytest.mark.parametrize("damage", [None, "truncate", "manifest", "gone", "garbage", "killed"])
def test_columns_are_written_once_and_damaged_ones_again(tmp_path, damage):
    dataset = Counted()
    Columns.prepare(dataset, tmp_path)
    before = Counted.read
    file, manifest = home(tmp_path) / "action.bin", home(tmp_path) / "manifest.json"
    if damage == "truncate":
        os.truncate(file, 3)
    elif damage == "manifest":
        manifest.unlink()
    elif damage == "gone":
        file.unlink()
    elif damage == "garbage":
        manifest.write_text("[1]")
    elif damage == "killed":
        manifest.unlink()
        file.rename(leftover(home(tmp_path)) / "action.bin")
    columns = Columns.prepare(dataset, tmp_path)
    assert Counted.read - before == (0 if damage is None else 1)
    assert np.array_equal(columns.action, dataset.action)
    assert json.loads(manifest.read_text())["frames"] == 21
    assert list((tmp_path / "columns").glob(".*.tmp")) == []


def test_other_data_is_another_directory(tmp_path):
    one, two = Columns.prepare(FakeDataset(), tmp_path), Columns.prepare(FakeDataset(lengths=(3,), hash="other"), tmp_path)
    assert (len(one.state), len(two.state)) == (21, 3)


def test_writers_at_the_same_time_write_once(tmp_path):
    dataset = Counted()
    before = Counted.read
    threads = [threading.Thread(target=Columns.prepare, args=(dataset, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counted.read - before == 1


def test_a_robot_without_state_and_a_dataset_without_frames(tmp_path):
    assert Columns.prepare(FakeDataset(embodiment=robot(state=0)), tmp_path / "a").state.shape == (21, 0)
    assert Columns.prepare(FakeDataset(lengths=(0,)), tmp_path / "b").action.shape == (0, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="space is reserved on Linux")
def test_a_full_disk_is_an_error_that_names_the_file_before_anything_is_mapped(tmp_path, monkeypatch):
    """The space of a mapped file is taken beforehand: a page that finds no room kills the process (SIGBUS)."""
    taken = []

    def full(descriptor, offset, length):
        taken.append(length)
        raise OSError(errno.ENOSPC, "No space left on device")

    dataset = FakeDataset()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"No space left on device: .*state\.bin"):
            Columns.prepare(dataset, tmp_path)
    assert taken == [dataset.num_frames * len(dataset.embodiment.state) * 4]
    assert np.array_equal(Columns.prepare(dataset, tmp_path).state, dataset.state)
