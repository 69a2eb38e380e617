"""T7 to T12, T14, T15, T19 and the hostile artefacts X1, X3, X4 and X8, for checkpoints, policies and configs.

T9, a crash between any two operations, is enumerated in tests/training/test_crash_states.py; T16 to T18 and T20 are in tests/training.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import deftly as package
from deftly import storage
from deftly.agent import WEIGHTS, save_policy
from deftly.cli.main import explain
from deftly.cli.main import main as deftly
from deftly.data.source import DataConfig
from deftly.models.heads import FlowMatchingConfig
from deftly.models.policy import PolicyConfig
from deftly.recipes import RECIPES
from deftly.training import checkpoint
from deftly.training.checkpoint import Checkpoints, directory_name
from deftly.training.config import TrainingConfig
from deftly.training.guard import TrainingError
from deftly.types import UsageError
from guards import guards
from small_data import write_dataset
from training.toys import ToyStream, fingerprint, make_trainer, small_config, written

STEPS, STOP = 21, 15
CONFIG = small_config(steps=STEPS, validate_every=None, checkpoint_every=7)
TENSORS = ("objective.safetensors", "raw.safetensors", "optimizer.safetensors")


def trainer(directory: Path, **changes: Any):
    return make_trainer(directory, **{"config": CONFIG, **changes})


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = trainer(tmp_path_factory.mktemp("whole"))
    run.fit()
    return fingerprint(run)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.raises(SystemExit):
        trainer(directory, stream=ToyStream(calls={STOP - 1: stop})).fit()
    assert Checkpoints(directory / "checkpoints", 2).steps() == [7, 14, STOP]
    return directory


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 14 and 15, to be damaged."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def newest(run: Path) -> Path:
    return run / "checkpoints" / directory_name(STOP)


def reseal(directory: Path) -> None:
    """Give a directory the manifest that its present files deserve, as somebody who means harm would."""
    about = storage.read_json(directory / storage.MANIFEST)
    storage.write_manifest(directory, {name: value for name, value in about.items() if name != "files"})


def refusal(call: Callable[[], object]) -> tuple[str, int]:
    """What the command line would print about what this raises, and its exit code."""
    before, started = most_memory(), time.monotonic()
    with pytest.raises(Exception) as caught:  # noqa: PT011  (which one is what the exit code tells)
        call()
    text, code = explain(caught.value)
    assert "\n" not in text
    assert not text.startswith("internal error")
    assert len(text) < 1500
    assert time.monotonic() - started < 30
    assert most_memory() - before < 400 << 10, "KiB"
    return text, code


def most_memory() -> int:
    """The most memory that this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def falls_back(run: Path, whole: str, capsys: pytest.CaptureFixture[str]) -> str:
    """It says so, and ends in the bits of the run that nothing happened to."""
    capsys.readouterr()
    again = trainer(run)
    again.fit(resume=True)
    said = capsys.readouterr().err
    assert "set aside as corrupt-step-00000015, falling back to the checkpoint before" in said
    assert "resuming at step 14 of 21" in said
    assert fingerprint(again) == whole
    assert Checkpoints(run / "checkpoints", 2).steps() == [14, STEPS]
    return said


# -- disks that refuse ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs to be allowed")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_t7_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_bit(small_disk: Path, whole: str, capsys: pytest.CaptureFixture[str]):
    def fill() -> None:
        written(again)
        with open(small_disk / "filler", "wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017

    def make_room() -> None:
        written(again)
        (small_disk / "filler").unlink()

    calls = {9: fill, 17: make_room}
    again = trainer(small_disk / "run", stream=ToyStream(calls=calls))
    summary = again.fit()
    assert summary["failed_saves"] == 1
    assert fingerprint(again) == whole
    said = capsys.readouterr().err
    (line,) = (line for line in said.splitlines() if "checkpoint of step 14 could not be written" in line)
    assert line.startswith("WARNING: ")
    assert "No space left on device" in line
    assert "metrics.jsonl cannot be written" in said
    assert again.checkpoints.steps() == [7, STEPS]
    for step in again.checkpoints.steps():
        storage.verify(again.checkpoints.path(step))
    assert not list((small_disk / "run" / "checkpoints").glob(".*"))
    assert trainer(small_disk / "run").fit(resume=True)["steps"] == STEPS


def eio() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("kind", ["fsync", "half a file", "rename"])
def test_t8_a_write_that_fails_half_way_leaves_the_one_before(
    tmp_path: Path, whole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
):
    bad = directory_name(14)
    replace, save_file = os.replace, safetensors.torch.save_file

    def failing_fsync(descriptor: int) -> None:
        if f".{bad}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise eio()

    def failing_replace(source: Any, target: Any) -> None:
        if os.fspath(target).endswith(bad):
            raise eio()
        replace(source, target)

    def half_a_file(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        if bad in str(path):
            os.truncate(path, path.stat().st_size // 2)
            raise eio()

    if kind == "fsync":
        monkeypatch.setattr(os, "fsync", failing_fsync)
    elif kind == "rename":
        monkeypatch.setattr(os, "replace", failing_replace)
    else:
        monkeypatch.setattr(safetensors.torch, "save_file", half_a_file)
    again = trainer(tmp_path)
    assert again.fit()["failed_saves"] == 1
    assert "WARNING: the checkpoint of step 14 could not be written (Input/output error)" in capsys.readouterr().err
    assert fingerprint(again) == whole
    assert again.checkpoints.steps() == [7, STEPS]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_t8_a_checkpoint_that_the_disk_cannot_read_is_not_the_one(
    run: Path, whole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    real = storage.sha256

    def sha256(path: Path) -> str:
        if directory_name(STOP) in str(path):
            raise eio()
        return real(path)

    monkeypatch.setattr(storage, "sha256", sha256)
    assert "cannot be read (Input/output error)" in falls_back(run, whole, capsys)


# -- damage --------------------------------------------------------------------------------------------------------------------------------


@guards("storage.sha256")
@pytest.mark.parametrize(
    "name", [*TENSORS, "trainer.json", "run.json", "manifest.json", "policy/model.safetensors", "policy/manifest.json"]
)
def test_t10_a_flipped_bit_costs_steps_and_no_bits(run: Path, whole: str, capsys: pytest.CaptureFixture[str], name: str):
    path = newest(run) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    falls_back(run, whole, capsys)


@guards("storage.listed_is_there")
@pytest.mark.parametrize("size", [0, 7, 0.5, None])
@pytest.mark.parametrize("name", ["raw.safetensors", "policy/model.safetensors"])
def test_t11_a_truncated_or_missing_file_costs_steps_and_no_bits(
    run: Path, whole: str, capsys: pytest.CaptureFixture[str], name: str, size: float | None
):
    path = newest(run) / name
    if size is None:
        path.unlink()
    else:
        os.truncate(path, int(size * path.stat().st_size) if isinstance(size, float) else size)
    assert Path(name).name in falls_back(run, whole, capsys)


@guards("training.checkpoint.optimizer")
def test_t12_no_run_goes_on_without_its_optimizer(run: Path):
    (newest(run) / "optimizer.safetensors").unlink()
    before = contents(run)
    text, code = refusal(lambda: trainer(run).fit(resume=True))
    assert code == 65
    assert "optimizer.safetensors: missing; going on without the optimizer's moments would be another run" in text
    assert contents(run) == before


@guards("training.optim.whole")
def test_t12_no_parameter_goes_on_without_its_moments(run: Path):
    path = newest(run) / "optimizer.safetensors"
    moments = safetensors.torch.load_file(path)
    del moments["exp_avg_sq.policy.first.weight"]
    safetensors.torch.save_file(moments, path)
    reseal(newest(run))
    text, code = refusal(lambda: trainer(run).fit(resume=True))
    assert code == 65
    assert "'exp_avg_sq.policy.first.weight' is missing" in text


@guards("training.checkpoint.format")
def test_t14_a_newer_format_is_refused_and_not_set_aside(run: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = storage.read_json(newest(run) / storage.MANIFEST)
    storage.write_json(newest(run) / storage.MANIFEST, {**manifest, "format_version": checkpoint.FORMAT_VERSION + 1})
    before = contents(run)
    text, code = refusal(lambda: trainer(run).fit(resume=True))
    assert code == 65
    assert "is newer than this deftly reads" in text
    assert contents(run) == before


@guards("storage.lock")
def test_t15_a_second_trainer_is_refused_and_the_first_goes_on(tmp_path: Path, whole: str):
    seen: list[tuple[str, int]] = []
    first = trainer(tmp_path, stream=ToyStream(calls={9: lambda: seen.append(refusal(lambda: trainer(tmp_path).fit(resume=True)))}))
    first.fit()
    assert fingerprint(first) == whole
    ((text, code),) = seen
    assert code == 2
    assert f"another trainer (process {os.getpid()}) is using it; stop it first" in text


@guards("training.begun")
def test_t15_a_second_start_does_not_overwrite_the_first(run: Path):
    before = contents(run)
    text, code = refusal(lambda: trainer(run).fit())
    assert code == 2
    assert "holds a run at step 15; pass --resume" in text
    assert contents(run) == before


def test_t19_what_is_kept_is_the_newest_and_never_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="keep_last"):
        TrainingConfig.parse({"keep_last": 1}, "test")
    every = CONFIG.replace(checkpoint_every=1)
    real = safetensors.torch.save_file

    def save_file(tensors: Any, path: Path) -> None:
        if any(directory_name(step) in str(path) for step in range(12, STEPS + 1)):
            raise eio()
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    with pytest.raises(TrainingError, match="make room, then pass --resume"):
        trainer(tmp_path, config=every).fit()
    monkeypatch.undo()
    kept = Checkpoints(tmp_path / "checkpoints", 2)
    assert kept.steps() == [10, 11], "however many failed since"
    for step in kept.steps():
        storage.verify(kept.path(step))


@guards("training.checkpoint.none_left")
def test_when_nothing_is_left_it_does_not_begin_anew(run: Path):
    for path in (run / "checkpoints").glob("step-*"):
        os.truncate(path / "trainer.json", 3)
    for _ in range(2):
        text, code = refusal(lambda: trainer(run).fit(resume=True))
        assert code == 65
        assert "no checkpoint that can be read is left" in text


# -- made by somebody else -----------------------------------------------------------------------------------------------------------------


class Canary:
    """Whoever unpickles this makes a directory."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.nest),)


@guards("training.checkpoint.step")
def test_x1_a_checkpoint_under_a_false_name_is_not_read(run: Path, whole: str, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(newest(run))
    shutil.copytree(run / "checkpoints" / directory_name(14), newest(run))
    assert "is of step 14, the directory of step 15" in falls_back(run, whole, capsys)


@pytest.mark.parametrize("name", TENSORS)
def test_x1_a_pickle_under_another_name_is_not_opened(run: Path, whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    (newest(run) / name).write_bytes(pickle.dumps(Canary(tmp_path / "hatched")))
    reseal(newest(run))
    for beside in ("model.pt", "pytorch_model.bin", "objective.pkl"):
        (newest(run) / beside).write_bytes(pickle.dumps(Canary(tmp_path / "hatched")))
    assert "not a safetensors file" in falls_back(run, whole, capsys)
    assert not (tmp_path / "hatched").exists()


@guards("storage.listed")
def test_x1_a_file_that_the_manifest_does_not_list_is_not_read(run: Path, whole: str, capsys: pytest.CaptureFixture[str]):
    manifest = storage.read_json(newest(run) / storage.MANIFEST)
    del manifest["files"]["trainer.json"]
    storage.write_json(newest(run) / storage.MANIFEST, manifest)
    assert "trainer.json: not listed in manifest.json" in falls_back(run, whole, capsys)


def test_x1_weights_that_the_manifest_does_not_list_are_not_read(tmp_path: Path):
    config = CONFIG.replace(ema_decay=None)
    plain = trainer(tmp_path / "plain", config=config)
    plain.fit()
    with pytest.raises(SystemExit):
        trainer(tmp_path / "run", config=config, stream=ToyStream(calls={STOP - 1: stop})).fit()
    place = tmp_path / "run" / "checkpoints" / directory_name(STOP)
    tensors = safetensors.torch.load_file(place / "objective.safetensors")
    safetensors.torch.save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, place / "raw.safetensors")
    again = trainer(tmp_path / "run", config=config)
    again.fit(resume=True)
    assert fingerprint(again) == fingerprint(plain)


def edit_trainer(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = newest(run) / "trainer.json"
    state = storage.read_json(path)
    change(state)
    path.write_text(json.dumps(state))
    reseal(newest(run))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("samples"), "samples: Field required"),
        (lambda state: state.update(samples="9"), "samples: "),
        (lambda state: state.update(samples=-1), "samples: "),
        (lambda state: state.update(best={"step": "x", "loss": 1.0}), "best.step: "),
        (lambda state: state.update(best=[]), "best: "),
        (lambda state: state.update(last={"loss": "low"}), "last.loss: "),
        (lambda state: state.update(environment=None), "environment: "),
        (lambda state: state.pop("guard"), "guard: "),
        (lambda state: state.update(guard={}), "guard.skipped: Field required"),
        (lambda state: state["guard"].update(skipped="x"), "guard.skipped: "),
        (lambda state: state["guard"].update(in_a_row=[1]), "guard.in_a_row: "),
        (lambda state: state["guard"].update(calm="x"), "guard.calm: "),
        (lambda state: state["guard"].update(credit=-(10**400)), "guard.credit: "),
        (lambda state: state["guard"].update(window=[1.0, None]), "guard.window.1: "),
        (lambda state: state.update(ema_updates="x"), "ema_updates: "),
        (lambda state: state.update(ema_updates=-9), "ema_updates: "),
        (lambda state: state["accumulation"].update(used="x"), "accumulation.used: "),
        (lambda state: state["accumulation"].update(used=-1), "accumulation.used: "),
        (lambda state: state.update(scaler={"scale": 0, "steps": 1, "overflows": 0}), "scaler.scale: "),
        (lambda state: state["early_stop"].update(waited=-1), "early_stop.waited: "),
        (lambda state: state.update(rollbacks=[{"a": "b"}]), "rollbacks.0.a: "),
        (lambda state: state.update(best={"step": state["step"] + 1, "loss": -1e9}), "is of step"),
        (lambda state: state.update(running={"sums": {"loss": "x"}, "count": 1}), "running.sums.loss: "),
        (lambda state: state.update(running={"sums": 3, "count": 1}), "running.sums: "),
        (lambda state: state.update(seconds={}), "trainer.json"),
        (lambda state: state.update(stream={"where": "\n\x1b[31mhere"}), "trainer.json"),
        (lambda state: state.update(environment={}), "trainer.json"),
        (lambda state: state.update(contract={"_target_": "os.system", "a\nb\x1b[31m" * 99: 1}), "contract"),
    ],
)
@guards("training.saved_state.best")
def test_x3_a_trainers_state_with_other_fields_is_refused(run: Path, change: Callable[[dict[str, Any]], object], message: str):
    edit_trainer(run, change)
    text, code = refusal(lambda: trainer(run).fit(resume=True))
    assert code == 65
    assert message in text
    assert "\x1b" not in text


@pytest.mark.parametrize("key", ["_target_", "auto_map", "trust_remote_code", "_attn_implementation_internal", "stepz"])
def test_x3_a_config_with_a_key_that_we_do_not_know_is_refused_and_nothing_is_called(run: Path, tmp_path: Path, key: str):
    canary = {key: "os.mkdir", "_args_": [str(tmp_path / "hatched")]}
    values = RECIPES["imitate"](True).to_dict()
    for number, place in enumerate((values, values["policy"], values["training"])):
        before = dict(place)
        place.update(canary)
        path = tmp_path / f"run-{number}.json"
        path.write_text(json.dumps(values))
        with pytest.raises(UsageError, match=rf"unknown key '(\w+\.)*{key}'"):
            deftly_train(path, tmp_path)
        place.clear()
        place.update(before)
    config = newest(run) / "run.json"
    config.write_text(json.dumps({**storage.read_json(config), **canary}))
    reseal(newest(run))
    text, code = refusal(lambda: trainer(run).fit(resume=True))
    assert code == 2
    assert f"{key}: expected" in text
    assert not (tmp_path / "hatched").exists()


def deftly_train(path: Path, tmp_path: Path) -> None:
    from deftly.cli.train import main

    main([str(path), "--out", str(tmp_path / "out"), "--device", "cpu"])


DEEP, WIDE, DIGITS = b"[" * 100_000, b'{"a":[' + b"[]," * (4 << 20) + b"[]]}", b'{"step": ' + b"1" * 100_000 + b"}"


@guards("storage.json_size")
@pytest.mark.parametrize("text", [DEEP, WIDE, DIGITS, b"\xff\xfe", b"null"], ids=["deep", "wide", "digits", "bytes", "null"])
@pytest.mark.parametrize("name", ["trainer.json", "run.json", "manifest.json"])
def test_x4_json_without_end_costs_neither_time_nor_memory(
    run: Path, whole: str, capsys: pytest.CaptureFixture[str], name: str, text: bytes
):
    (newest(run) / name).write_bytes(text)
    if name != "manifest.json":
        reseal(newest(run))
    before, started = most_memory(), time.process_time()
    falls_back(run, whole, capsys)
    assert time.process_time() - started < 5
    assert most_memory() - before < 200 << 10, "KiB"


@pytest.mark.parametrize(
    ("text", "message"),
    [(DEEP, "nested deeper"), (WIDE, "more than a config may have"), (DIGITS, "not a config")],
    ids=["deep", "wide", "digits"],
)
def test_x4_a_run_without_end_is_refused(tmp_path: Path, text: bytes, message: str):
    path = tmp_path / "run.json"
    path.write_bytes(text)
    said, code = refusal(lambda: deftly_train(path, tmp_path))
    assert code == 2
    assert message in said


def test_x3_a_thousand_unknown_keys_are_not_a_thousand_lines(run: Path, tmp_path: Path):
    many = {f"_target_{number}\n\x1b": number for number in range(20_000)}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**RECIPES["imitate"](True).to_dict(), **many}))
    started = time.process_time()
    with pytest.raises(UsageError) as caught:
        deftly_train(path, tmp_path)
    assert len(str(caught.value).splitlines()) == 21
    config = newest(run) / "run.json"
    config.write_text(json.dumps({**storage.read_json(config), **many}))
    reseal(newest(run))
    text, code = refusal(lambda: trainer(run).fit(resume=True))
    assert code == 2
    assert "\x1b" not in text
    assert time.process_time() - started < 5


def crafted(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"policy.w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


HOSTILE = {
    "a header that would have 100 MB": crafted(b"{}", size=100 << 20),
    "a header that would have 2**64 bytes": crafted(b"{}", size=2**64 - 1),
    "offsets that overlap": crafted({**one("F32", [2], 8), "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    "a shape that overflows": crafted(one("F32", [2**62, 4], 8), bytes(8)),
    "a shape below zero": crafted(one("F32", [-1], 4), bytes(4)),
    "a type that nobody has": crafted(one("X9", [1], 4), bytes(4)),
    "less data than it says": crafted(one("F32", [1 << 40], 4 << 40), bytes(4)),
    "no JSON": crafted(b"{"),
    "JSON without end": crafted(b'{"a":' + DEEP),
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", ["raw.safetensors", "optimizer.safetensors"])
def test_x8_a_file_that_is_no_safetensors_file_is_not_the_one(
    run: Path, whole: str, capsys: pytest.CaptureFixture[str], name: str, data: bytes
):
    (newest(run) / name).write_bytes(data)
    reseal(newest(run))
    before = most_memory()
    assert f"{name}: not a safetensors file" in falls_back(run, whole, capsys)
    assert most_memory() - before < 200 << 10, "KiB"


@guards("storage.header")
def test_x8_a_header_of_100_mb_is_not_read(run: Path, whole: str, capsys: pytest.CaptureFixture[str]):
    """A true one, that safetensors itself would read: a million tensors without contents."""
    entry = b':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"tensor-%d"' % number + entry for number in range(200_000)) + b"}"
    (newest(run) / "raw.safetensors").write_bytes(crafted(header + b" " * ((99 << 20) - len(header))))
    reseal(newest(run))
    before, started = most_memory(), time.process_time()
    assert "its header would have" in falls_back(run, whole, capsys)
    assert time.process_time() - started < 5
    assert most_memory() - before < 200 << 10, "KiB"


def tensors_changed(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


WEIGHT = "policy.first.weight"
NAN = torch.full((16, 5), float("nan"))


@guards("training.state.names", "training.state.shapes", "training.state.types", "training.state.finite", "training.ema.finite",
        "training.optim.names", "training.optim.shapes", "training.optim.finite")  # fmt: skip
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("raw", lambda t: t.update(extra=torch.zeros(1)), "has an unknown 'extra'"),
        ("raw", lambda t: t.pop(WEIGHT), f"lacks '{WEIGHT}'"),
        ("raw", lambda t: t.update({WEIGHT: torch.zeros(5, 16)}), "has shape (5, 16), the model has (16, 5)"),
        ("raw", lambda t: t.update({WEIGHT: torch.zeros(16, 5, dtype=torch.int8)}), "is torch.int8, the model's is torch.float32"),
        ("raw", lambda t: t.update({WEIGHT: NAN}), "holds a non-finite number"),
        ("objective", lambda t: t.update(extra=torch.zeros(1)), "has an unknown 'extra'"),
        ("objective", lambda t: t.update({WEIGHT: torch.zeros(0, 2**40)}), "has shape (0, 1099511627776)"),
        ("objective", lambda t: t.update({WEIGHT: NAN}), "holds a non-finite number"),
        ("optimizer", lambda t: t.update({"exp_avg.extra": torch.zeros(1)}), "belongs to no trainable parameter"),
        ("optimizer", lambda t: t.update({f"exp_avg.{WEIGHT}": torch.zeros(16, 6)}), "has shape (16, 6)"),
        ("optimizer", lambda t: t.update({f"exp_avg.{WEIGHT}": NAN}), "is torch.float32 or not finite"),
        ("optimizer", lambda t: t.update({f"step.{WEIGHT}": torch.tensor(float("inf"))}), "is torch.float32 or not finite"),
    ],
)
def test_x8_tensors_that_are_not_the_models_are_refused(
    run: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object], message: str
):
    tensors_changed(newest(run) / f"{name}.safetensors", change)
    reseal(newest(run))
    before = contents(run)
    text, code = refusal(lambda: trainer(run).fit(resume=True))
    assert code == 65
    assert message in text
    assert contents(run) == before


# -- policies ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("policy")
    config = DataConfig(path=write_dataset(root / "data"), image_size=16, batch_size=4, validation_fraction=0.25, text_length=8)
    data = config.build(seed=0, device="cpu", executed_steps=2)
    small = PolicyConfig(width=16, depth=1, head=FlowMatchingConfig(width=8, blocks=1, euler_steps=2))
    weights = small.build(data.contract, data.tokenizer.size).state_dict()
    (root / "policy").mkdir()
    save_policy(root / "policy", data.contract, data.statistics, data.tokenizer, small, weights, {})
    data.close()
    return root / "policy"


@pytest.fixture
def policy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "policy"))


def not_loaded(policy: Path) -> str:
    reseal(policy)
    before = most_memory()
    text, code = refusal(lambda: package.load(policy))
    assert code == 65
    assert most_memory() - before < 200 << 10, "KiB"
    return text


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_x8_a_policy_whose_weights_are_no_safetensors_file_is_refused(policy: Path, data: bytes):
    (policy / WEIGHTS).write_bytes(data)
    assert "not a safetensors file" in not_loaded(policy)


def test_x1_a_policy_whose_weights_are_a_pickle_is_refused_unopened(policy: Path, tmp_path: Path):
    (policy / WEIGHTS).write_bytes(pickle.dumps(Canary(tmp_path / "hatched")))
    assert "not a safetensors file" in not_loaded(policy)
    assert not (tmp_path / "hatched").exists()


@guards("agent.names", "agent.shape", "agent.finite")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, name: t.update(extra=torch.zeros(1)), "'extra' is unknown"),
        (lambda t, name: t.pop(name), "is missing"),
        (lambda t, name: t.update({name: torch.zeros(3, 3, 3)}), "expected torch.float32"),
        (lambda t, name: t.update({name: t[name].to(torch.float16)}), "is torch.float16"),
        (lambda t, name: t.update({name: torch.full_like(t[name], float("nan"))}), "is not finite"),
    ],
)
def test_x8_a_policy_with_other_tensors_is_refused(policy: Path, change: Callable[..., object], message: str):
    name = min(safetensors.torch.load_file(policy / WEIGHTS))
    tensors_changed(policy / WEIGHTS, lambda tensors: change(tensors, name))
    assert message in not_loaded(policy)


@pytest.mark.parametrize("key", ["_target_", "auto_map", "trust_remote_code", "_attn_implementation_internal"])
@pytest.mark.parametrize("file", ["policy.json", "contract.json"])
def test_x3_a_policy_with_a_key_that_we_do_not_know_is_refused(policy: Path, tmp_path: Path, file: str, key: str):
    values = storage.read_json(policy / file)
    (policy / file).write_text(json.dumps({**values, key: "os.mkdir", "_args_": [str(tmp_path / "hatched")]}))
    assert f"unknown key '{key}'" in not_loaded(policy)
    assert not (tmp_path / "hatched").exists()


@pytest.mark.parametrize("text", [DEEP, WIDE, DIGITS], ids=["deep", "wide", "digits"])
@pytest.mark.parametrize("file", ["policy.json", "contract.json", "stats.json", "tokenizer.json"])
def test_x4_a_policy_with_json_without_end_is_refused(policy: Path, file: str, text: bytes):
    (policy / file).write_bytes(text)
    assert file in not_loaded(policy)


@guards("agent.format")
def test_t14_a_policy_of_a_newer_format_is_refused(policy: Path):
    manifest = storage.read_json(policy / storage.MANIFEST)
    storage.write_json(policy / storage.MANIFEST, {**manifest, "format_version": 9})
    text, code = refusal(lambda: package.load(policy))
    assert code == 65
    assert "policy format 9" in text


# -- the command ---------------------------------------------------------------------------------------------------------------------------


def test_the_command_says_it_in_one_line_and_one_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """T10 and T12 through `deftly train --resume`."""
    write_dataset(tmp_path / "data", lengths=(6, 7, 6))
    out = tmp_path / "run"
    fields = ["--data.path", str(tmp_path / "data"), "--training.steps", "2", "--training.checkpoint-every", "1"]
    fields += ["--data.validation-fraction", "0.3", "--data.image-size", "24"]
    deftly(["train", "imitate", "--small", "--out", str(out), "--device", "cpu", *fields])
    last = out / "checkpoints" / directory_name(2)
    data = bytearray((last / "optimizer.safetensors").read_bytes())
    data[-9] ^= 64
    (last / "optimizer.safetensors").write_bytes(data)
    capsys.readouterr()
    deftly(["train", str(out), "--resume", "--device", "cpu"])
    assert "falling back to the checkpoint before" in capsys.readouterr().err
    (last / "optimizer.safetensors").unlink()
    with pytest.raises(SystemExit) as ended:
        deftly(["train", str(out), "--resume", "--device", "cpu"])
    assert ended.value.code == 65
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("deftly: ")
    assert "optimizer.safetensors: missing" in said.splitlines()[-1]
