"""Every start of a run is on record, with what made it and how it ended, and without anybody's secrets."""

import os
import subprocess

import pytest

from deftly import storage
from deftly.training import session
from deftly.training.guard import TrainingError
from deftly.training.session import SESSIONS, checkout, cpu_model, git, recorded, signal_of
from deftly.types import UsageError
from training.toys import ToyStream, make_trainer, small_config


def stop():
    os.kill(os.getpid(), 15)


def test_a_resumed_run_shows_every_session(tmp_path):
    config = small_config(steps=9)
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, config=config, stream=ToyStream(calls={3: stop})).fit()
    with open(tmp_path / SESSIONS, "a") as file:
        file.write('{"kind": "sta')  # killed in the middle of a line
    make_trainer(tmp_path, config=config).fit(resume=True)
    lines = list(storage.read_lines(tmp_path / SESSIONS))
    assert [(line["kind"], line["step"], line.get("how")) for line in lines] == [
        ("start", 0, None), ("end", 4, "stopped"), ("start", 4, None), ("end", 9, "finished")
    ]  # fmt: skip
    assert lines[1]["why"] == "SIGTERM"
    start = lines[0]
    assert set(start) == {
        "kind", "time", "step", "command", "versions", "git", "machine", "environment", "dataset_hash", "contract_hash"
    }  # fmt: skip
    assert start["dataset_hash"] == "data-1"
    assert set(start["versions"]) == {"deftly", "python", "torch", "numpy", "cuda", "system"}
    assert start["machine"]["cores"] >= 1
    assert start["machine"]["memory_bytes"] > 2**28


def test_a_failure_is_on_record_in_one_line(tmp_path):
    config = small_config(steps=9, max_bad_steps=2)
    with pytest.raises(TrainingError):
        make_trainer(tmp_path, config=config, stream=ToyStream(poison={n: float("nan") for n in range(9)})).fit()
    end = list(storage.read_lines(tmp_path / SESSIONS))[-1]
    assert (end["how"], end["step"]) == ("failed", 2)
    assert end["why"].startswith("TrainingError: step 2: 2 steps in a row")


def test_what_ended_a_program_has_a_name():
    for error, name in ((SystemExit(143), "SIGTERM"), (SystemExit(130), "SIGINT"), (KeyboardInterrupt(), "SIGINT")):
        assert signal_of(error) == name
    for error in (SystemExit(2), SystemExit("text"), SystemExit(), ValueError()):
        assert signal_of(error) is None


def test_a_refused_start_is_no_session(tmp_path):
    make_trainer(tmp_path, config=small_config(steps=2)).fit()
    with pytest.raises(UsageError):
        make_trainer(tmp_path, config=small_config(steps=2)).fit()
    assert len(list(storage.read_lines(tmp_path / SESSIONS))) == 2


def test_a_full_disk_at_the_end_hides_nothing(tmp_path, monkeypatch):
    said, identity = [], make_trainer(tmp_path).identity

    def refuse(path, value):
        raise OSError(28, "No space left on device")

    def fail_on_a_full_disk():
        with recorded(tmp_path, identity, lambda: 1, said.append):
            monkeypatch.setattr(storage, "append_line", refuse)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_on_a_full_disk()
    assert len(said) == 1


def test_secrets_and_the_environment_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-7351")
    monkeypatch.setattr("sys.argv", ["my.py", "--header", "Authorization: Bearer also-secret-2", "--out", "runs/very-secret-7351"])

    def fail():
        raise OSError("https://me:third-secret@host/x does not answer")

    with pytest.raises(OSError, match="does not answer"):
        make_trainer(tmp_path, config=small_config(steps=3), stream=ToyStream(calls={1: fail})).fit()
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert "secret" not in written
    lines = list(storage.read_lines(tmp_path / SESSIONS))
    assert lines[0]["command"] == ["my.py", "--header", "***", "--out", "runs/***"]
    assert lines[1]["why"] == "OSError: https://***@host/x does not answer"


def test_commit_and_dirty_flag_of_a_checkout(tmp_path, monkeypatch):
    assert checkout(tmp_path) is None
    repository = tmp_path / "repository"
    repository.mkdir()
    program = tmp_path / "fsmonitor.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    for words in (
        ["init", "-q"],
        ["config", "core.fsmonitor", str(program)],
        ["-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-q", "--allow-empty", "-m", "first"],
    ):
        subprocess.run(["git", *words], cwd=repository, check=True)
    for path in (tmp_path / "ran", repository / "new"):
        path.unlink(missing_ok=True)
    (repository / "file").write_text("1")
    commit = git(repository, "rev-parse", "HEAD")
    assert checkout(repository) == {"commit": commit, "dirty": False}, "an untracked file is no change"
    subprocess.run(["git", "add", "file"], cwd=repository, check=True)
    (tmp_path / "ran").unlink(missing_ok=True)
    checkout.cache_clear()
    assert checkout(repository) == {"commit": commit, "dirty": True}
    assert not (tmp_path / "ran").exists(), "a program named by the checkout was run"
    monkeypatch.setenv("PATH", "")
    checkout.cache_clear()
    assert checkout(repository) is None


def test_a_machine_without_procfs_has_a_processor_too(tmp_path):
    assert cpu_model(tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Toy 9000\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Toy 9000"
    assert session.machine()["gpus"] is not None
