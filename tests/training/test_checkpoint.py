"""Checkpoints appear whole, are read only when they verify, and never leave a run without a good one."""

import errno
import os
import pickle
import resource
import shutil
import signal

import pytest
import safetensors.torch
import torch

from deftly import storage
from deftly.training import checkpoint
from deftly.training.checkpoint import Checkpoints, Snapshot, directory_name, fill, is_incomplete, read, read_tensors, refuse
from deftly.training.guard import TrainingError
from deftly.training.tracking import METRICS
from deftly.types import DataError, UsageError
from guards import guards
from training.toys import ToyStream, fingerprint, make_trainer, small_config, write_policy


def snapshot(step, best=None):
    return Snapshot(
        objective={"policy.w": torch.full((2,), float(step))},
        raw={"policy.w": torch.full((2,), -float(step))},
        optimizer={"exp_avg.policy.w": torch.zeros(2)},
        trainer={"step": step, "best": best},
        run={"name": "toy"},
    )


def saved(root, steps, keep_last=2, best=None):
    checkpoints = Checkpoints(root, keep_last)
    for step in steps:
        checkpoints.save(snapshot(step), {"w": torch.zeros(2)}, write_policy, best)
    return checkpoints


def test_a_checkpoint_comes_back_and_is_pointed_at(tmp_path):
    checkpoints = saved(tmp_path, [5, 10], best=5)
    assert checkpoints.steps() == [5, 10]
    assert (tmp_path / "last").read_text() == "step-00000010\n"
    assert (tmp_path / "best").read_text() == "step-00000005\n"
    found = checkpoints.newest(pytest.fail)
    assert found is not None
    assert found.step == 10
    assert torch.equal(found.objective["policy.w"], torch.full((2,), 10.0))
    assert found.raw is not None
    assert torch.equal(found.raw["policy.w"], torch.full((2,), -10.0))
    storage.verify(checkpoints.path(10) / "policy")


def test_an_empty_or_missing_directory_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "none", 2).newest(pytest.fail) is None
    assert Checkpoints(tmp_path / "none", 2).steps() == []


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = saved(tmp_path, range(1, 8), keep_last=3, best=2)
    assert checkpoints.steps() == [2, 5, 6, 7]
    checkpoints.prune(best=None)
    assert checkpoints.steps() == [5, 6, 7]


@pytest.mark.parametrize(
    "name", ["objective.safetensors", "raw.safetensors", "optimizer.safetensors", "trainer.json", "policy/model.safetensors"]
)
def test_a_flipped_bit_anywhere_falls_back_and_says_so(tmp_path, name):
    checkpoints = saved(tmp_path, [5, 10])
    path = checkpoints.path(10) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    said = []
    found = checkpoints.newest(said.append)
    assert found is not None
    assert found.step == 5
    assert name in said[0]
    assert "falling back" in said[0]
    assert (tmp_path / "corrupt-step-00000010").is_dir()


@pytest.mark.parametrize("name", ["raw.safetensors", "manifest.json", "trainer.json"])
@pytest.mark.parametrize("size", [0, 10, None])
def test_truncated_or_missing_files_fall_back(tmp_path, name, size):
    checkpoints = saved(tmp_path, [5, 10])
    path = checkpoints.path(10) / name
    path.unlink() if size is None else os.truncate(path, size)
    found = checkpoints.newest(lambda text: None)
    assert found is not None
    assert found.step == 5


def test_a_lost_optimizer_is_never_replaced_by_a_fresh_one(tmp_path):
    checkpoints = saved(tmp_path, [5, 10])
    (checkpoints.path(10) / "optimizer.safetensors").unlink()
    with pytest.raises(DataError, match=r"optimizer\.safetensors: missing; .*delete the directory step-00000010"):
        checkpoints.newest(pytest.fail)
    refuse(checkpoints.path(5))
    shutil.rmtree(checkpoints.path(10))
    found = checkpoints.newest(pytest.fail)
    assert found is not None
    assert found.step == 5


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 9)
    checkpoints = saved(tmp_path, [5])
    monkeypatch.undo()
    with pytest.raises(DataError, match="format 9 is newer than this deftly reads"):
        checkpoints.newest(pytest.fail)


def test_when_nothing_can_be_read_it_stays_an_error(tmp_path):
    checkpoints = saved(tmp_path / "run" / "checkpoints", [5])
    (checkpoints.path(5) / "trainer.json").write_text("{")
    for _ in range(2):
        with pytest.raises(DataError, match=rf"corrupt-step-00000005.*remove {tmp_path / 'run'} to start over") as caught:
            checkpoints.newest(lambda text: None)
        assert "\n" not in str(caught.value)
    saved(checkpoints.root, [6])
    found = checkpoints.newest(pytest.fail)
    assert found is not None
    assert found.step == 6


def test_what_is_set_aside_displaces_nothing(tmp_path):
    for number in ("", "-2", "-3"):
        (tmp_path / "step-00000005").mkdir()
        assert checkpoint.set_aside(tmp_path / "step-00000005", "corrupt").name == f"corrupt-step-00000005{number}"
    assert len(list(tmp_path.iterdir())) == 3


@guards("training.checkpoint.tensors")
def test_a_pickle_in_disguise_is_not_opened(tmp_path):
    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hatched"),))

    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(DataError, match="not a safetensors file"):
        read_tensors(tmp_path / "weights.safetensors")
    assert not (tmp_path / "hatched").exists()
    with pytest.raises(DataError, match="missing"):
        read_tensors(tmp_path / "nothing.safetensors")


@guards("training.checkpoint.state")
def test_a_trainer_state_that_is_none_is_refused(tmp_path):
    fill(tmp_path, snapshot(3), {"w": torch.zeros(2)}, write_policy)
    storage.write_manifest(tmp_path, {})
    assert read(tmp_path).step == 3
    (tmp_path / "trainer.json").write_text("[]")
    storage.write_manifest(tmp_path, {})
    with pytest.raises(DataError, match="not a trainer's state"):
        read(tmp_path)


def test_what_a_crash_leaves_is_swept_away_and_what_it_did_not_is_kept(tmp_path):
    checkpoints = saved(tmp_path, [5, 10])
    for name in (".step-00000015.123.tmp", ".step-00000005.9.old", "step-00000003", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000003" / "precious").touch()
    assert is_incomplete(tmp_path / "step-00000003")
    said = []
    (checkpoints.root / ".last.7.tmp").write_text("step-0000")  # killed while the pointer was written
    checkpoints.sweep(said.append)
    assert not (checkpoints.root / ".last.7.tmp").exists()
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["incomplete-step-00000003", "mine", directory_name(5), directory_name(10)]
    assert (tmp_path / "incomplete-step-00000003" / "precious").exists()
    assert len(said) == 1
    assert said[0].endswith("set aside as incomplete-step-00000003")


def test_a_deletion_that_is_cut_short_leaves_no_checkpoint(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [5, 10])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            Checkpoints(tmp_path, 1).prune(best=None)
    assert checkpoints.steps() == [10]
    checkpoints.sweep(pytest.fail)
    assert not list(tmp_path.glob(".*"))


def test_what_the_disk_refuses_is_an_os_error(tmp_path):
    checkpoints, big = saved(tmp_path, [5]), snapshot(10)
    big.objective["policy.w"] = torch.zeros(100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(big, {"w": torch.zeros(2)}, write_policy, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.steps() == [5]
    assert not list(tmp_path.glob(".*"))


def test_pointers_that_lag_behind_are_set_right(tmp_path):
    checkpoints = saved(tmp_path, [5, 10], best=5)
    (tmp_path / "last").write_text("step-00000005\n")
    checkpoints.settle(best=10)
    assert (tmp_path / "last").read_text() == (tmp_path / "best").read_text() == "step-00000010\n"
    checkpoints.settle(best=99)
    assert not (tmp_path / "best").exists()


@guards("training.checkpoint.space")
def test_room_is_asked_for_all_that_are_there_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    checkpoints.require_space(1)
    with pytest.raises(UsageError, match="5 checkpoints need"):
        checkpoints.require_space(shutil.disk_usage(tmp_path).free)


# -- in a run ----------------------------------------------------------------------------------------------------------------------------


def full_disk(monkeypatch, bad_steps):
    def save_file(tensors, path, real=safetensors.torch.save_file):
        if any(directory_name(step) in str(path) for step in bad_steps):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch, capsys):
    silent = small_config(validate_every=None)
    expected = make_trainer(tmp_path / "whole", config=silent)
    expected.fit()
    full_disk(monkeypatch, bad_steps=(14, 21))
    trainer = make_trainer(tmp_path / "full", config=silent)
    summary = trainer.fit()
    assert summary["failed_saves"] == 2
    assert "WARNING: the checkpoint of step 14 could not be written (No space left on device)" in capsys.readouterr().err
    assert fingerprint(trainer) == fingerprint(expected)
    assert trainer.checkpoints.steps() == [7, 28, 30]
    assert not list((tmp_path / "full" / "checkpoints").glob(".*"))


def test_a_full_disk_at_the_end_is_an_error_and_the_one_before_is_valid(tmp_path, monkeypatch):
    full_disk(monkeypatch, bad_steps=(30,))
    trainer = make_trainer(tmp_path)
    with pytest.raises(TrainingError, match="make room, then pass --resume"):
        trainer.fit()
    monkeypatch.undo()
    again = make_trainer(tmp_path)
    assert again.fit(resume=True)["steps"] == 30


def test_a_corrupt_newest_checkpoint_costs_steps_but_no_bits(tmp_path, capsys):
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    with pytest.raises(SystemExit):
        make_trainer(tmp_path / "hurt", stream=ToyStream(calls={24: lambda: os.kill(os.getpid(), signal.SIGTERM)})).fit()
    path = tmp_path / "hurt" / "checkpoints" / "step-00000025" / "raw.safetensors"
    os.truncate(path, 100)
    again = make_trainer(tmp_path / "hurt")
    again.fit(resume=True)
    error = capsys.readouterr().err
    assert "falling back" in error
    assert "resuming at step 21" in error
    assert fingerprint(again) == fingerprint(whole)


def test_a_second_resume_does_not_start_over_either(tmp_path):
    make_trainer(tmp_path).fit()
    for path in (tmp_path / "checkpoints").glob("step-*"):
        (path / "trainer.json").write_text("{")
    log = (tmp_path / METRICS).read_bytes()
    for _ in range(2):
        with pytest.raises(DataError, match="to start over"):
            make_trainer(tmp_path).fit(resume=True)
    assert (tmp_path / METRICS).read_bytes() == log


def test_a_signal_whose_checkpoint_cannot_be_written_does_not_end_as_saved(tmp_path, monkeypatch):
    full_disk(monkeypatch, bad_steps=(25,))
    trainer = make_trainer(tmp_path, stream=ToyStream(calls={24: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    with pytest.raises(TrainingError, match=r"step 25 could not be written .*make room, then pass --resume"):
        trainer.fit()
