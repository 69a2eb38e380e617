"""Whatever a dying machine leaves of a run, the next one finds the newest checkpoint that was saved, or a newer whole one.

tests/crash_states.py says which states there are. The planted mistakes below each leave one of these states to be found.
"""

from __future__ import annotations

import inspect
import os
import random
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from crash_states import Recorder, Tree, lay_out, states
from deftly import storage
from deftly.training import checkpoint, saver, tracking
from deftly.training.checkpoint import Checkpoints, Snapshot, directory_name

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the recorder reads /proc")

UNREAD = r"\..*\.(tmp|pruned)"  # what recovery deletes without looking into it
BEST = {1: 1, 2: 1, 3: 1, 4: 4}  # after each step: kept beyond the last two, then replaced and deleted


class Parts:
    """The modules that write, with one line of their source changed in a mutant."""

    def __init__(self, change: tuple[Any, str, str] | None = None) -> None:
        self.storage, self.checkpoint, self.saver, self.tracking = (
            changed(module, *change[1:]) if change is not None and change[0] is module else module
            for module in (storage, checkpoint, saver, tracking)
        )
        if change is not None:
            self.checkpoint, self.tracking = (changed(module) for module in (self.checkpoint, self.tracking))
            self.checkpoint.storage = self.tracking.storage = self.storage


def changed(module: Any, old: str = "", new: str = "") -> Any:
    """A copy of a module with one place of its source replaced."""
    source = getattr(module, "source", None) or inspect.getsource(module)
    assert not old or source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    copy = types.ModuleType(module.__name__)
    copy.source = source.replace(old, new) if old else source  # type: ignore[attr-defined]
    exec(compile(copy.source, f"{module.__name__} with a planted mistake", "exec"), copy.__dict__)  # type: ignore[attr-defined]
    return copy


class Scenario:
    """What is done while it is recorded, and what must be found afterwards. `check` returns what it found; it raises AssertionError."""

    unread = UNREAD

    def run(self, root: Path, record: Recorder, parts: Parts) -> None:
        raise NotImplementedError

    def check(self, root: Path, marks: dict[str, Any]) -> Any:
        raise NotImplementedError


def enumerate_states(
    scenario: Scenario, disk: Path, *, most: int | None = None, mutant: tuple[Any, str, str] | None = None, since: int = 0
) -> tuple[int, int]:
    """Check every state of a scenario, or `most` of them evenly spread; (operations, states that were checked).

    With a `mutant` it looks at the quick ones, in any order, until the first that fails. `since`: from that on which is begun.
    """
    origin = disk / "origin"
    origin.mkdir()
    with Recorder(origin) as record:
        scenario.run(origin, record, Parts(mutant))
    found = states(record, scenario.unread, quick=mutant is not None, wanted=lambda marks: marks.get("begun", 0) >= since)
    distinct = list({(held, tuple(marks.items())): what for what, marks, held in found}.items())
    if mutant is not None:
        random.Random(0).shuffle(distinct)
    stride = 1 if most is None else max(1, len(distinct) // most)
    number = 0
    for (held, values), what in distinct[::stride]:
        root, marks = disk / str(number), dict(values)
        root.mkdir()
        lay_out(held, root)
        try:
            scenario.check(root, marks)
        except Exception as error:
            raise AssertionError(f"after `{what}` of {marks} with {names(held)}: {type(error).__name__}: {error}") from error
        shutil.rmtree(root)
        number += 1
    return len(record.steps), number


def names(held: Tree) -> str:
    return ", ".join(path + ("/" if data is None else f" ({len(data)})") for path, data in held)


# -- a run ---------------------------------------------------------------------------------------------------------------------------------


def snapshot(step: int) -> Snapshot:
    best = {"step": BEST[step], "loss": 1.0}
    values = {"policy.w": torch.full((2,), float(step))}
    return Snapshot(
        objective=values,
        raw={"policy.w": -values["policy.w"]},
        optimizer={"exp_avg.policy.w": 2 * values["policy.w"]},
        trainer={"step": step, "best": best},
        run={"name": "toy"},
    )


def lines_up_to(step: int) -> list[dict[str, Any]]:
    return [{"step": number, "kind": kind, "note": "ü" * 10} for number in range(1, step + 1) for kind in ("train", "validation")]


class Training(Scenario):
    """Checkpoints one after the other, the log beside them, as a trainer writes them; two are kept, and the best."""

    def run(self, root: Path, record: Recorder, parts: Parts) -> None:
        run = root / "runs" / "a"
        log = parts.tracking.Metrics(run / "metrics.jsonl", pytest.fail)
        checkpoints = parts.checkpoint.Checkpoints(run / "checkpoints", keep_last=2)
        with parts.storage.lock(run / ".lock", wait=False):
            checkpoints.sweep(pytest.fail)
            parts.storage.write_json(run / "run.json", {"name": "toy"})
            log.truncate(0)
            for step in BEST:
                early, late = lines_up_to(step)[-2:]
                log.write(early) if step == 1 else None
                log.write(late)

                def write_policy(folder: Path, state: dict[str, torch.Tensor], step: int = step) -> None:
                    safetensors.torch.save_file(state, folder / "model.safetensors")
                    parts.storage.write_manifest(folder, {"kind": "policy"})
                    log.write(lines_up_to(step + 1)[-2])  # training goes on meanwhile

                record.mark("begun", step)
                writer = parts.saver.Saver(checkpoints, log, write_policy, pytest.fail)
                writer.begin(snapshot(step), {"w": torch.full((2,), float(step))})
                writer.settle(None)
                writer.close()
                record.mark("saved", step)

    def check(self, root: Path, marks: dict[str, Any]) -> int | None:
        run = root / "runs" / "a"
        found = check_checkpoints(run, marks)
        tracking.Metrics(run / "metrics.jsonl", pytest.fail).truncate(found or 0)
        assert list(storage.read_lines(run / "metrics.jsonl")) == lines_up_to(found or 0)
        return found


def check_checkpoints(run: Path, marks: dict[str, Any]) -> int | None:
    """The newest checkpoint that was saved, or a newer whole one, is found, and nothing else is left; its step."""
    saved, place = marks.get("saved"), run / "checkpoints"
    for name in ("last", "best"):  # those who only read follow them, and repair nothing
        if saved is not None or (place / name).exists():
            storage.verify(place / (place / name).read_text().strip())
    said: list[str] = []
    checkpoints = Checkpoints(place, keep_last=2)
    with storage.lock(run / ".lock", wait=False):
        checkpoints.sweep(said.append)
        found = checkpoints.newest(said.append)
        assert not said, "a crash is no corruption"
        step = found.step if found is not None else None
        assert step in {saved, marks.get("begun")}, f"found {step}"
        if found is None:
            return None
        expected = snapshot(found.step)
        assert found.run == expected.run
        assert found.trainer == expected.trainer
        for ours, theirs in ((found.objective, expected.objective), (found.raw, expected.raw), (found.optimizer, expected.optimizer)):
            assert ours is not None
            assert theirs is not None
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        checkpoints.settle(BEST[found.step])
        assert (place / "last").read_text() == f"{directory_name(found.step)}\n"
        assert (place / "best").read_text() == f"{directory_name(BEST[found.step])}\n"
        checkpoints.prune(BEST[found.step])
        kept = {found.step, found.step - 1, BEST[found.step]} - {0}
        there = {directory_name(step) for step in kept} | {"last", "best"}
        assert {path.name for path in place.iterdir()} == there, "nothing is left behind"
        for step in kept:
            storage.verify(place / directory_name(step))
    return found.step


class Replacing(Scenario):
    """A directory that is committed again and again under the same name, in a folder that is new."""

    unread = "$^"

    def run(self, root: Path, record: Recorder, parts: Parts) -> None:
        for version in (1, 2, 3):

            def fill(folder: Path, version: int = version) -> None:
                (folder / "sub").mkdir()
                (folder / "sub" / "a").write_text(str(version) * 6)

            record.mark("begun", version)
            parts.storage.commit(root / "new" / "part", fill, {"version": version})
            record.mark("saved", version)

    def check(self, root: Path, marks: dict[str, Any]) -> int | None:
        place = root / "new" / "part"
        storage.recover(place)
        allowed = {marks.get("saved"), marks.get("begun")}
        if not place.exists():
            assert None in allowed, "gone"
            return None
        version = storage.verify(place)["version"]
        assert version in allowed, f"found {version}"
        assert (place / "sub" / "a").read_text() == str(version) * 6
        assert os.listdir(place.parent) == ["part"], "nothing is left behind"
        return version


class Files(Scenario):
    """A file that is replaced, and lines that are appended one by one."""

    unread = "$^"

    def run(self, root: Path, record: Recorder, parts: Parts) -> None:
        for number in range(1, 4):
            record.mark("begun", number)
            parts.storage.write_json(root / "state" / "value.json", [number] * 4)
            record.mark("saved", number)
        for number in range(1, 6):
            record.mark("line", number)
            parts.storage.append_line(root / "state" / "rows.jsonl", {"row": number})
            record.mark("durable", number)

    def check(self, root: Path, marks: dict[str, Any]) -> None:
        allowed = {marks.get("saved"), marks.get("begun")}
        value = root / "state" / "value.json"
        assert (storage.read_json(value)[0] if value.exists() else None) in allowed
        rows = root / "state" / "rows.jsonl"
        before = list(storage.read_lines(rows))
        storage.mend_lines(rows)
        found = [line["row"] for line in storage.read_lines(rows)]
        assert [line["row"] for line in before] == found
        assert len(found) in {marks.get("durable", 0), marks.get("line", 0)}
        assert found == list(range(1, len(found) + 1))
        if rows.exists():
            storage.append_line(rows, {"row": "next"})
            assert len(list(storage.read_lines(rows))) == len(found) + 1


def test_a_crash_of_the_machine_costs_no_saved_checkpoint(disk: Path):
    _, number = enumerate_states(Training(), disk, most=250)
    assert number >= 250


@pytest.mark.slow
def test_no_state_of_a_run_costs_a_saved_checkpoint(disk: Path):
    started = time.process_time()
    operations, number = enumerate_states(Training(), disk)
    print(f"\n{operations} operations of a run, {number} states, all opened, in {time.process_time() - started:.0f} s")
    assert number >= 2000


def test_a_replaced_directory_is_the_old_one_or_the_new_one(disk: Path):
    assert enumerate_states(Replacing(), disk)[1] >= 100


def test_files_and_lines_are_old_or_new(disk: Path):
    assert enumerate_states(Files(), disk)[1] >= 40


# -- planted mistakes ----------------------------------------------------------------------------------------------------------------------

COMMITTED = """    sync_directory(directory.parent)
    if is_replaced:
        shutil.rmtree(retired)"""
DELETED_EARLY = """    if is_replaced:
        shutil.rmtree(retired)
    sync_directory(directory.parent)
    if 0:
        pass"""
FILLED = """        fill(temporary)
        write_manifest(temporary, about)
"""
NAMED_FIRST = """        fill(temporary)
        if not directory.exists():
            os.replace(temporary, directory)
            write_manifest(directory, about)
            sync_directory(directory.parent)
            return
"""
SYNC_NAMES = """    for folder in sorted({path.parent for path in directory.rglob("*")}):
        sync_directory(folder)
"""
WRITTEN = """            file.flush()
            os.fsync(file.fileno())
        os.replace"""
SET_ASIDE = "            os.replace(directory, retired)\n            is_replaced = True"
RETIRE = """                os.replace(self.path(step), retired)
                storage.sync_directory(self.root)
                shutil.rmtree(retired)"""
GONE = "                storage.sync_directory(self.root)\n                shutil.rmtree(retired)"
POINTED = "        self.settle(best)\n        self.prune(best)\n        return path"
PRUNED_FIRST = "        self.prune(best)\n        self.settle(best)\n        return path"

Mistake = tuple[Scenario, int, tuple[Any, str, str]]  # the number of the first save that it spoils
MISTAKES: dict[str, Mistake] = {
    "files of a directory are not synced": (Training(), 1, (storage, "os.fsync(file.fileno())\n        files[", "pass\n        files[")),
    "names in a directory are not synced": (Replacing(), 1, (storage, SYNC_NAMES, "")),
    "the new name is not synced": (Training(), 1, (storage, COMMITTED, "")),
    "new parents are not synced": (Training(), 1, (storage, "        sync_directory(folder.parent)\n", "")),
    "a directory has its name before its manifest": (Training(), 1, (storage, FILLED, NAMED_FIRST)),
    "a file is not synced": (Training(), 1, (storage, WRITTEN, "        os.replace")),
    "a file's name is not synced": (Files(), 1, (storage, "        raise\n    sync_directory(path.parent)\n", "        raise\n")),
    "the old directory goes before the new one stays": (Replacing(), 2, (storage, COMMITTED, DELETED_EARLY)),
    "the old directory is deleted and not renamed": (Replacing(), 2, (storage, SET_ASIDE, "            shutil.rmtree(directory)")),
    "a line is not synced": (Files(), 3, (storage, "        if durable:\n            os.fsync(file.fileno())\n", "")),
    "a new log's name is not synced": (Files(), 3, (storage, "    if new:\n        sync_directory(path.parent)\n", "")),
    "the log is not synced before the checkpoint": (Training(), 1, (saver, "        self.metrics.sync()", "        pass")),
    "an old checkpoint is deleted under its name": (Training(), 4, (checkpoint, RETIRE, " " * 16 + "shutil.rmtree(self.path(step))")),
    "an old checkpoint is deleted too early": (Training(), 4, (checkpoint, GONE, " " * 16 + "shutil.rmtree(retired)")),
    "the best is deleted before another is pointed at": (Training(), 4, (checkpoint, POINTED, PRUNED_FIRST)),
}


@pytest.mark.parametrize(("scenario", "since", "mutant"), MISTAKES.values(), ids=MISTAKES)
def test_a_planted_mistake_is_found(disk: Path, scenario: Scenario, since: int, mutant: tuple[Any, str, str]):
    with pytest.raises(AssertionError, match="after `"):
        enumerate_states(scenario, disk, mutant=mutant, since=since)
