"""The metrics file, means across a restart, and where the time goes."""

import errno
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly import storage
from deftly.training.tracking import Metrics, Running, TimeSplit, plain
from deftly.types import DataError
from guards import guards


def test_lines_past_the_step_are_forgotten_and_a_torn_one_too(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", pytest.fail)
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss": math.nan})
    with open(metrics.path, "a") as file:
        file.write('{"step": 4, "lo')
    metrics.truncate(2)
    metrics.sync()
    assert metrics.path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": null}\n'
    metrics.write({"step": 3})
    assert [line["step"] for line in storage.read_lines(metrics.path)] == [1, 2, 3]


@guards("training.log.step")
def test_truncating_what_is_not_there_makes_an_empty_log(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", pytest.fail)
    metrics.truncate(0)
    assert metrics.path.read_text() == ""
    metrics.path.write_text("[1]\n")
    with pytest.raises(DataError, match="not the log of a training run"):
        metrics.truncate(0)


@guards("training.log.hole")
def test_zeros_past_the_step_are_what_a_crash_leaves_and_elsewhere_are_damage(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", pytest.fail)
    kept = b'{"step": 1}\n{"step": 2}\n'
    metrics.path.write_bytes(kept + b'\0\0\0\0\0: 3}\n{"step": 4}\n\0\0\0')
    metrics.truncate(2)
    assert metrics.path.read_bytes() == kept
    for damaged, message in ((b'{"step": 1}\n\0\0\0 2}\n{"step": 2}\n', r":2: holds zeros"), (b'{"st\n', r":1: not valid JSON")):
        metrics.path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            metrics.truncate(2)
        assert metrics.path.read_bytes() == damaged


def test_a_disk_that_refuses_everything_costs_lines_only(tmp_path, monkeypatch):
    said = []
    metrics = Metrics(tmp_path / "metrics.jsonl", said.append)
    metrics.write({"step": 1})

    def refuse(*arguments, **keywords):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "append_line", refuse)
        patch.setattr(storage, "mend_lines", refuse)
        for step in (2, 3):
            metrics.write({"step": step})
    metrics.write({"step": 4})
    assert [line["step"] for line in storage.read_lines(metrics.path)] == [1, 4]
    assert len(said) == 1


def test_a_full_disk_costs_lines_and_is_said_once(tmp_path, monkeypatch):
    said = []
    metrics = Metrics(tmp_path / "metrics.jsonl", said.append)
    metrics.write({"step": 1})

    def torn(path, value, durable):
        with open(path, "a") as file:
            file.write('{"st')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "append_line", torn)
    metrics.write({"step": 2})
    metrics.write({"step": 3})
    monkeypatch.undo()
    metrics.write({"step": 4})
    assert [line["step"] for line in storage.read_lines(metrics.path)] == [1, 4]
    assert len(said) == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.data())
def test_means_survive_a_restart_bit_for_bit(values, data):
    cut = data.draw(st.integers(0, len(values)))
    whole, first, second = Running(), Running(), Running()
    for value in values:
        whole.add({"loss": value, "twice": 2 * value})
    for value in values[:cut]:
        first.add({"loss": value, "twice": 2 * value})
    second.load_state(first.state())
    for value in values[cut:]:
        second.add({"loss": value, "twice": 2 * value})
    means = whole.means()
    assert second.means() == means
    assert means["loss"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert whole.means() == {}


def test_time_parts_add_up_to_the_whole_and_survive_a_restart(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    split = TimeSplit()
    now = 107.0
    split.start()
    for name, seconds in (("data", 1.0), ("forward_backward", 5.0), ("other", 0.5)):
        now += seconds
        split.lap(name)
    assert split.elapsed() == 6.5
    assert split.since_line()["forward_backward"] == 5.0
    now += 2.0
    split.lap("data")
    assert split.since_line() == {"data": 2.0, "forward_backward": 0, "optimizer": 0, "validation": 0, "checkpoint": 0, "other": 0}
    again = TimeSplit()
    again.load_state(split.state())
    assert again.elapsed() == 8.5
    assert sum(again.since_line().values()) == 0


def test_numbers_that_json_lacks_become_null():
    given = {"a": math.inf, "b": {"c": -math.nan, "d": 1.5}, "e": "nan", "f": True}
    assert plain(given) == {"a": None, "b": {"c": None, "d": 1.5}, "e": "nan", "f": True}


def test_a_term_that_had_nothing_to_count_can_be_saved_in_a_checkpoint():
    running, again = Running(), Running()
    running.add({"loss": 1.0, "accuracy": math.nan})
    again.load_state(json.loads(json.dumps(running.state(), allow_nan=False)))
    again.add({"loss": 2.0, "accuracy": 1.0})
    assert plain(again.means()) == {"loss": 1.5, "accuracy": None}
