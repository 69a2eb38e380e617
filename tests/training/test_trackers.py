"""Trackers show what the log holds, each step once whatever happened in between; none of them can end, slow or change training."""

import json
import math
import os
import threading
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deftly import storage
from deftly.training import trackers
from deftly.training.config import TrainingConfig
from deftly.training.tensorboard import TensorBoardConfig
from deftly.training.trackers import Tracker, Trackers, scalars
from deftly.training.tracking import METRICS, Metrics
from deftly.training.wandb import Wandb, WandbConfig, has_key
from deftly.types import UsageError
from guards import guards
from training.toys import ToyStream, fingerprint, log_lines, make_trainer, small_config

RUN = {"name": "toy", "training": {"steps": 6}}


class Fake(Tracker):
    """Remembers what it was told; `fails` is a method that raises, `hangs` one that waits for `release`."""

    name, where = "fake", "nowhere"

    def __init__(self, fails="", hangs=""):
        self.fails, self.hangs = fails, hangs
        self.seen, self.calls, self.release = [], [], threading.Event()

    def _called(self, name):
        self.calls.append(name)
        if name == self.hangs:
            self.release.wait(20)
        if name == self.fails:
            raise ConnectionError("the server is away")

    def begin(self, history):
        self._called("begin")
        self.seen = [(line["step"], scalars(line)) for line in history]

    def log(self, step, values):
        self._called("log")
        self.seen.append((step, values))

    def flush(self):
        self._called("flush")

    def close(self):
        self._called("close")


def write(path, steps, loss=1.0):
    metrics = Metrics(path, pytest.fail)
    for step in steps:
        metrics.write({"step": step, "kind": "train", "loss": loss * step})


def curve(directory, tag="train/loss"):
    seen = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in seen.Scalars(tag)] if tag in seen.Tags()["scalars"] else []


def session(directory, tracker, first, steps, scale=1.0):
    """One life of a run: it goes on after step `first`, logs `steps`, and is closed."""
    said = []
    metrics, shown = Metrics(directory / METRICS, said.append), Trackers([tracker], said.append)
    shown.begin(metrics.path, metrics.truncate(first))
    for step in steps:
        line = {"step": step, "kind": "train", "loss": scale * step}
        metrics.write(line)
        shown.log(line)
    shown.close()
    return said


def test_numbers_have_flat_names():
    line = {
        "step": 4,
        "kind": "validation",
        "loss": 0.5,
        "terms": {"mse": 1, "none": None},
        "is_best": True,
        "episodes": "1, 2",
        "x": math.nan,
    }
    assert scalars(line) == {"validation/loss": 0.5, "validation/terms/mse": 1.0, "validation/is_best": 1.0}


def test_norms_have_a_name_of_their_own_for_each_kind_and_module():
    norms = {"gradient": 2.0, "weight": 3.0, "update": None, "ratio": None, "size": 12}
    line = {
        "step": 4,
        "kind": "modules",
        "modules": {"policy.first": norms, "policy.last": {**norms, "update": 0.5}},
        "time": {"elapsed": 1},
    }
    assert scalars(line) == {
        "norms/gradient/policy.first": 2.0,
        "norms/weight/policy.first": 3.0,
        "norms/gradient/policy.last": 2.0,
        "norms/weight/policy.last": 3.0,
        "norms/update/policy.last": 0.5,
    }


# -- TensorBoard -------------------------------------------------------------------------------------------------------------------------


def test_tensorboard_shows_each_step_once_after_a_crash_and_a_resume(tmp_path):
    said = session(tmp_path, TensorBoardConfig().build(tmp_path, RUN), 0, range(1, 8))
    assert said == [f"tensorboard: tensorboard --logdir {tmp_path / 'tensorboard'}"]
    assert curve(tmp_path) == [(step, float(step)) for step in range(1, 8)]
    session(tmp_path, TensorBoardConfig().build(tmp_path, RUN), 4, range(5, 10), scale=2.0)
    expected = [(step, float(step)) for step in range(1, 5)] + [(step, 2.0 * step) for step in range(5, 10)]
    assert curve(tmp_path) == expected
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_tensorboard_has_no_thread_whose_errors_nobody_gets(tmp_path):
    before = set(threading.enumerate())
    tracker = TensorBoardConfig().build(tmp_path, {})
    tracker.begin([])
    assert set(threading.enumerate()) == before
    tracker.close()
    with open("/dev/full", "wb", buffering=0) as full:
        tracker.writer._writer = full
        with pytest.raises(OSError, match="No space left"):
            tracker.log(1, {"loss": 1.0})


def test_tensorboard_that_is_turned_on_later_shows_everything(tmp_path):
    write(tmp_path / METRICS, range(1, 6))
    session(tmp_path, TensorBoardConfig().build(tmp_path, RUN), 3, [4])
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4]


def test_a_file_that_a_killed_session_left_is_forgotten_by_who_is_looking(tmp_path):
    """Its START at step 0 purges what was read before, also where the older file could not be removed."""
    session(tmp_path, TensorBoardConfig().build(tmp_path, RUN), 0, range(1, 8))
    (old,) = (tmp_path / "tensorboard").iterdir()
    kept = old.read_bytes()
    session(tmp_path, TensorBoardConfig().build(tmp_path, RUN), 2, [3])
    old.write_bytes(kept)
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3]


# -- Weights & Biases --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))


def history(directory, count, tag="train/loss"):
    """Steps and values in the newest offline run, as `wandb sync` would send them."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (directory / "wandb" / "latest-run").resolve().glob("run-*.wandb")
    deadline, found = time.monotonic() + 20, []
    while len(found) < count and time.monotonic() < deadline:  # W&B's own process writes it, and an offline `finish` does not wait for that
        found = values(path, Record, tag)
    return found


def values(path, Record, tag):
    found = []
    for data in leveldb_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found += [(items["_step"], items[tag])] if tag in items else []
    return found


def leveldb_records(data):
    """Blocks of 32 KiB behind a header of 7 bytes; each piece has checksum (4), length (2), kind (1 whole, 2 first, 3 middle, 4 last)."""
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position + 7 + length > len(data):  # W&B's process is still writing
            return
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_stays_on_this_disk_and_the_newest_directory_holds_the_whole_run(tmp_path, no_key):
    said = session(tmp_path, WandbConfig(mode="online").build(tmp_path, RUN), 0, [1, 2, 3, 4])
    assert len(said) == 1
    assert "offline, for there is no API key" in said[0]
    assert f"wandb sync {tmp_path}" in said[0]
    assert history(tmp_path, 4) == [(step, float(step)) for step in (1, 2, 3, 4)]
    time.sleep(1.05)  # W&B names directories by the second
    ours = storage.read_json(tmp_path / "wandb.json")["id"]
    session(tmp_path, WandbConfig().build(tmp_path, RUN), 2, [3, 4, 5], scale=2.0)
    assert history(tmp_path, 5) == [(1, 1.0), (2, 2.0), (3, 6.0), (4, 8.0), (5, 10.0)]
    assert storage.read_json(tmp_path / "wandb.json")["id"] == ours
    assert (tmp_path / "wandb" / "latest-run").resolve().name.endswith(ours)


def test_wandb_shows_the_norms_of_a_run(tmp_path, no_key):
    make_trainer(tmp_path, config=small_config(steps=4, log_every=2, trackers=(WandbConfig(),))).fit()
    logged = [(line["step"], line["modules"]["policy.last"]) for line in log_lines(tmp_path) if line["kind"] == "modules"]
    assert [step for step, _ in logged] == [1, 2, 4]
    for kind in ("gradient", "weight", "update", "ratio"):
        assert history(tmp_path, 3, f"norms/{kind}/policy.last") == [(step, norms[kind]) for step, norms in logged]


def test_an_online_run_is_resumed_and_what_the_server_has_is_not_sent_again(tmp_path, no_key, monkeypatch):
    import wandb

    server: dict[int, dict] = {}
    asked = []

    class FakeRun:
        def __init__(self):
            self.step = max(server, default=-1) + 1

        def log(self, values, step):
            assert step >= max(server, default=0), "W&B refuses to go back"
            server.setdefault(step, {}).update(values)

        def finish(self):
            pass

    monkeypatch.setattr(wandb, "init", lambda **given: asked.append(given) or FakeRun())
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    session(tmp_path, WandbConfig(mode="online").build(tmp_path, RUN), 0, [1, 2, 3, 4, 5])
    del server[5]  # killed before it was sent
    session(tmp_path, WandbConfig(mode="online").build(tmp_path, RUN), 2, [3, 4, 5, 6])
    assert {step: values["train/loss"] for step, values in server.items()} == {step: float(step) for step in range(1, 7)}
    assert [given["mode"] for given in asked] == ["online", "online"]
    assert asked[0]["id"] == asked[1]["id"]
    assert asked[1]["resume"] == "allow"
    changed = Wandb(WandbConfig(mode="online"), tmp_path, {**RUN, "seed": 1})
    changed.begin([])
    assert asked[2]["id"] != asked[0]["id"], "another run is another curve"


def test_a_key_is_found_where_wandb_would_find_it(tmp_path, no_key, monkeypatch):
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_key()


# -- failures ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["begin", "log", "flush", "close"])
def test_a_tracker_that_fails_is_named_once(tmp_path, method):
    said = session(tmp_path, Fake(fails=method), 0, [1, 2, 3])
    warnings = [line for line in said if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert warnings[0].startswith("WARNING: fake failed (ConnectionError: the server is away); training goes on without it")
    assert [line["step"] for line in storage.read_lines(tmp_path / METRICS)] == [1, 2, 3]


def test_a_tracker_that_hangs_slows_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSING_S", 0.1)
    monkeypatch.setattr(trackers, "MOST_WAITING", 5)
    stuck, began = Fake(hangs="log"), time.monotonic()
    said = session(tmp_path, stuck, 0, range(1, 50))
    assert time.monotonic() - began < 5
    assert [line for line in said if "is 5 lines behind" in line]
    slow = Fake(hangs="close")
    assert "did not end within 0 s" in session(tmp_path, slow, 0, [1])[-1]
    stuck.release.set()
    slow.release.set()


def test_training_with_a_broken_tracker_has_the_same_weights(tmp_path, capsys):
    trainer = make_trainer(tmp_path / "without", config=small_config(steps=8))
    trainer.fit()
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "tensorboard").write_text("a file where its folder should be")
    config = small_config(steps=8, trackers=(TensorBoardConfig(),))
    other = make_trainer(tmp_path / "with", config=config)
    other.fit()
    assert "WARNING: tensorboard failed" in capsys.readouterr().err
    assert fingerprint(other) == fingerprint(trainer)


def test_a_run_is_shown_from_its_first_step_to_its_last(tmp_path):
    config = small_config(steps=12, log_every=2, trackers=(TensorBoardConfig(),))
    make_trainer(tmp_path, config=config).fit()
    assert [step for step, _ in curve(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in curve(tmp_path, "validation/loss")] == [10, 12]
    logged = {line["step"]: line["modules"]["policy.first"] for line in log_lines(tmp_path) if line["kind"] == "modules"}
    assert list(logged) == [1, 2, 4, 6, 8, 10, 12]
    for kind in ("gradient", "weight", "update", "ratio"):
        shown = curve(tmp_path, f"norms/{kind}/policy.first")
        assert shown == [(step, pytest.approx(norms[kind])) for step, norms in logged.items()]


# -- the config --------------------------------------------------------------------------------------------------------------------------


@guards("training.trackers.twice")
def test_each_tracker_once():
    with pytest.raises(UsageError, match="each tracker once"):
        TrainingConfig.parse({"trackers": [{"kind": "wandb"}, {"kind": "wandb", "mode": "online"}]}, "run.json")


def test_a_tracker_that_is_not_installed_is_refused_before_the_first_step(tmp_path, monkeypatch):
    for module, config in (("wandb", WandbConfig()), ("tensorboard", TensorBoardConfig())):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(UsageError, match=rf"{module} is not installed; pip install 'deftly\[{module}\]'"):
            config.build(tmp_path, RUN)


FREE = {
    "trackers": (TensorBoardConfig(),),
    "log_every": 3,
    "checkpoint_every": 2,
    "keep_last": 3,
    "count_flops": False,
    "rank_timeout_s": 5.0,
}


def test_what_a_resumed_run_may_change_changes_no_weight(tmp_path):
    """Every free field, changed halfway, and the end is what it would have been."""
    assert set(FREE) == set(TrainingConfig.FREE)
    config = small_config(steps=14, validate_every=7)
    whole = make_trainer(tmp_path / "whole", config=config)
    whole.fit()
    for name, value in FREE.items():
        assert getattr(config, name) != value
        directory = tmp_path / name
        with pytest.raises(SystemExit):
            make_trainer(directory, config=config, stream=ToyStream(calls={5: stop})).fit()
        trainer = make_trainer(directory, config=config.replace(**{name: value}))
        trainer.fit(resume=True)
        tensors = [snapshot.objective["policy.last.weight"].tolist() for snapshot in (trainer.snapshot(), whole.snapshot())]
        assert tensors[0] == tensors[1], name
        assert trainer.snapshot().trainer["stream"] == whole.snapshot().trainer["stream"]


def stop():
    os.kill(os.getpid(), 15)
