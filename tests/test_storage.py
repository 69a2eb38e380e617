"""Durable writes and verified reads: a crash between any two steps leaves the old or the new, never half."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import storage
from deftly.types import DataError, UsageError
from guards import guards

TERABYTE = 1 << 40


class Crash(BaseException):
    """What ends a process at a point of the test's choice: no `except Exception` may catch it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, *, after: bool = False) -> None:
    """The `call`-th use of `os.<name>` ends the process, before or after it took effect."""
    real: Callable = getattr(os, name)
    seen = []

    def replacement(*arguments, **keywords):
        seen.append(arguments)
        if len(seen) == call and not after:
            raise Crash
        result = real(*arguments, **keywords)
        if len(seen) == call:
            raise Crash
        return result

    monkeypatch.setattr(os, name, replacement)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_write_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "file.txt"
    storage.write_text(path, "one")
    storage.write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_old_or_new(tmp_path, monkeypatch, name: str, after: bool):
    path = tmp_path / "file.bin"
    storage.write_bytes(path, b"old" * 1000)
    with monkeypatch.context() as patch:
        crash_at(patch, name, 1, after=after)
        with pytest.raises(Crash):
            storage.write_bytes(path, b"new" * 1000)
    assert path.read_bytes() == (b"new" if (name, after) == ("replace", True) else b"old") * 1000
    assert visible(tmp_path) == {"file.bin"}
    storage.write_bytes(path, b"again")
    assert path.read_bytes() == b"again"


def test_data_is_durable_before_its_name(tmp_path, monkeypatch):
    """fsync of the file, then rename, then fsync of the directory: any other order can lose the file to a power cut."""
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (steps.append(name), real(*a))[1])
    storage.write_bytes(tmp_path / "file", b"x")
    assert steps == ["fsync", "replace", "fsync"]


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_json_round_trip(tmp_path_factory, value: object):
    path = tmp_path_factory.mktemp("json") / "value.json"
    storage.write_json(path, value)
    assert storage.read_json(path) == value


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "value.json", float("nan"))
    assert visible(tmp_path) == set()


@pytest.mark.parametrize(("data", "message"), [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[" * 200_000, "not valid JSON")])
def test_broken_json_is_one_line(tmp_path, data: bytes, message: str):
    path = tmp_path / "value.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        storage.read_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@guards("storage.json_size")
def test_missing_and_huge_json(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="missing"):
        storage.read_json(tmp_path / "none.json")
    monkeypatch.setattr(storage, "MAX_JSON_BYTES", 10)
    storage.write_json(tmp_path / "value.json", list(range(20)))
    with pytest.raises(DataError, match="is more than 10"):
        storage.read_json(tmp_path / "value.json")


@pytest.mark.parametrize("durable", [True, False])
def test_lines_accumulate(tmp_path, durable: bool):
    path = tmp_path / "log.jsonl"
    assert list(storage.read_lines(path)) == []
    for value in ({"a": 1}, [2], "ü"):
        storage.append_line(path, value, durable=durable)
    storage.sync_file(path)
    assert list(storage.read_lines(path)) == [{"a": 1}, [2], "ü"]


@settings(max_examples=40)
@given(cut=st.integers(0, 60))
def test_a_torn_tail_is_dropped_and_mended(tmp_path_factory, cut: int):
    """Whatever prefix of the file survives: its complete lines are read, and appending goes on with a fresh line."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    for value in range(4):
        storage.append_line(path, {"value": value})
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    complete = data.count(b"\n")
    assert [row["value"] for row in storage.read_lines(path)] == list(range(complete))
    storage.mend_lines(path)
    storage.append_line(path, {"value": 99})
    assert [row["value"] for row in storage.read_lines(path)] == [*range(complete), 99]


def test_mending_nothing_changes_nothing(tmp_path):
    path = tmp_path / "log.jsonl"
    storage.mend_lines(path)
    storage.sync_file(path)
    assert not path.exists()
    storage.append_line(path, 1)
    before = path.read_bytes()
    storage.mend_lines(path)
    assert path.read_bytes() == before


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"log\.jsonl:2: not valid JSON"):
        list(storage.read_lines(path))


def fill(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text * 2)

    return write


def test_a_committed_directory_verifies(tmp_path):
    storage.commit(tmp_path / "step", fill("one"), {"format": 1})
    manifest = storage.verify(tmp_path / "step")
    assert manifest["format"] == 1
    assert set(manifest["files"]) == {"sub/a.txt", "b.txt"}
    assert manifest["files"]["b.txt"] == {"bytes": 6, "sha256": storage.sha256(tmp_path / "step" / "b.txt")}
    assert visible(tmp_path) == {"step"}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("name", "call"), [("replace", 1), ("replace", 2), ("replace", 3), ("fsync", 1), ("fsync", 4)])
def test_a_crash_while_committing_leaves_no_half_directory(tmp_path, monkeypatch, name: str, call: int, after: bool):
    """Calls of replace while an existing directory is replaced: manifest, old one aside, new one in its place."""
    target = tmp_path / "step"
    storage.commit(target, fill("old"), {})
    with monkeypatch.context() as patch:
        crash_at(patch, name, call, after=after)
        with pytest.raises(Crash):
            storage.commit(target, fill("new"), {})
    if target.exists():  # between the two renames the name is free, and the old directory lies beside it
        storage.verify(target)
        assert (target / "b.txt").read_text() in ("oldold", "newnew")
    else:
        (retired,) = tmp_path.glob(".step.*.old")
        assert (retired / "b.txt").read_text() == "oldold"
    assert visible(tmp_path) <= {"step"}
    storage.commit(target, fill("again"), {})
    assert storage.verify(target)
    assert (target / "b.txt").read_text() == "againagain"


def test_a_failing_fill_leaves_the_old_one(tmp_path):
    storage.commit(tmp_path / "step", fill("old"), {})

    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        storage.commit(tmp_path / "step", broken, {})
    assert storage.verify(tmp_path / "step")
    assert list(tmp_path.iterdir()) == [tmp_path / "step"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))


@guards("storage.sha256", "storage.listed_is_there")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder / "b.txt"), r"b\.txt: differs from its sha256"),
        (lambda folder: (folder / "b.txt").write_text("x"), r"b\.txt: differs from manifest\.json: 1 bytes, "),
        (lambda folder: (folder / "b.txt").unlink(), r"b\.txt: listed in manifest\.json but missing"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: missing"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not a manifest"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": [1]}'), "not a manifest"),
        (lambda folder: (folder / "manifest.json").write_text(json.dumps({"files": {"../x": {}}})), "leads outside"),
    ],
)
def test_damage_is_found_and_named(tmp_path, damage: Callable, message: str):
    (tmp_path / "x").write_text("outside")
    storage.commit(tmp_path / "step", fill("one"), {})
    damage(tmp_path / "step")
    with pytest.raises(DataError, match=message) as error:
        storage.verify(tmp_path / "step")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"bytes": 3}])
def test_a_manifest_with_broken_entries_is_bad_data(tmp_path, entry: object):
    storage.commit(tmp_path / "step", fill("one"), {})
    (tmp_path / "step" / "manifest.json").write_text(json.dumps({"files": {"b.txt": entry}}))
    with pytest.raises(DataError, match="manifest"):
        storage.verify(tmp_path / "step")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "link/x", ".."])
def test_names_that_lead_outside_are_refused(tmp_path, name: str):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads outside"):
        storage.inside(root, name)


@pytest.mark.parametrize("name", ["a", "a/b", "a/../b", "..a"])
def test_names_inside_are_joined(tmp_path, name: str):
    assert storage.inside(tmp_path, name) == tmp_path / name


def test_a_manifest_covers_every_file(tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    fill("one")(folder)
    storage.write_manifest(folder, {"format_version": 1})
    assert set(storage.verify(folder)["files"]) == {"sub/a.txt", "b.txt"}
    storage.sync_directory(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        storage.sync_directory(folder)


# Locks -----------------------------------------------------------------------------------------------------------------------------------


def test_a_second_holder_is_refused_by_name_and_may_come_later(tmp_path):
    place = tmp_path / "run" / ".lock"
    with storage.lock(place, wait=False):
        second = storage.lock(place, wait=False, who="trainer", remedy="stop it")
        with pytest.raises(UsageError, match=f"another trainer .process {os.getpid()}. is using it; stop it") as caught, second:
            pass
        assert str(place.parent) in str(caught.value)
    with storage.lock(place, wait=False):
        pass


def test_a_waiting_holder_comes_in_when_the_first_has_left(tmp_path):
    order = []

    def second():
        with storage.lock(tmp_path / ".lock", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with storage.lock(tmp_path / ".lock", wait=True):
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(RuntimeError), storage.lock(tmp_path / ".lock", wait=False):
        raise RuntimeError
    with storage.lock(tmp_path / ".lock", wait=False):
        pass


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_process(tmp_path):
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        with storage.lock(tmp_path / ".lock", wait=False):
            if os.fork() == 0:  # it says so itself: from then on it has let go
                os.write(write, str(os.getpid()).encode())
            time.sleep(60)
            os._exit(0)
    child = int(os.read(read, 32))
    os.close(read)
    os.close(write)
    os.kill(holder, signal.SIGKILL)  # the holder alone: its child lives on
    os.waitpid(holder, 0)
    try:
        os.kill(child, 0)
        with storage.lock(tmp_path / ".lock", wait=False):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


# What crashes leave ----------------------------------------------------------------------------------------------------------------------


def test_a_directory_that_was_about_to_be_replaced_comes_back(tmp_path, monkeypatch):
    target = tmp_path / "step[1]"
    storage.commit(target, fill("old"), {})
    with monkeypatch.context() as patch:
        crash_at(patch, "replace", 2, after=True)  # its manifest, then itself
        with pytest.raises(Crash):
            storage.commit(target, fill("new"), {})
    (tmp_path / f".{target.name}.1.old").mkdir()  # of a process before, half deleted
    assert not target.exists()
    for _ in range(2):
        storage.recover(target)
        assert storage.verify(target)
        assert (target / "b.txt").read_text() == "oldold"
        assert list(tmp_path.iterdir()) == [target]


def test_a_rename_that_is_refused_leaves_the_old_one_in_its_place(tmp_path, monkeypatch):
    target = tmp_path / "step"
    storage.commit(target, fill("old"), {})
    real, seen = os.replace, []

    def replace(source, destination):
        seen.append(destination)
        if len(seen) == 3:  # manifest, old one aside, new one in its place
            raise OSError(5, "Input/output error")
        real(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="Input/output"):
            storage.commit(target, fill("new"), {})
    assert (target / "b.txt").read_text() == "oldold"
    assert list(tmp_path.iterdir()) == [target]


def test_a_last_line_with_zeros_is_what_a_crash_leaves_and_one_elsewhere_is_damage(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n\0\0\0\0 2}\n')
    assert list(storage.read_lines(path)) == [{"a": 1}]
    storage.mend_lines(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(b'\0\0\0\0 1}\n{"a": 2}\n')
    storage.mend_lines(path)
    with pytest.raises(DataError, match=r"log\.jsonl:1: not valid JSON"):
        list(storage.read_lines(path))


@guards("storage.size", "storage.listed_json", "storage.holes")
@pytest.mark.parametrize(
    ("name", "listed", "message"),
    [("z.bin", 3, "bytes, 3 are listed"), ("z.json", TERABYTE, "bytes of JSON"), ("z.safetensors", TERABYTE, "such holes")],
)
def test_a_terabyte_of_nothing_is_refused_unread(tmp_path, monkeypatch, name: str, listed: int, message: str):
    """A hostile manifest lists it; a file of holes costs whoever made it nothing, and whoever hashes it half an hour."""
    monkeypatch.setattr(storage, "sha256", lambda path: pytest.fail(f"{path} was read"))
    (tmp_path / "a.txt").write_text("small, and first")
    with open(tmp_path / name, "wb") as file:
        file.write(b"something" * 1000)
        file.truncate(TERABYTE)
    entries = {"a.txt": {"bytes": 16, "sha256": "0"}, name: {"bytes": listed, "sha256": "0"}}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": entries}))
    started = time.perf_counter()
    with pytest.raises(DataError, match=message):
        storage.verify(tmp_path)
    assert time.perf_counter() - started < 1


def test_holes_are_what_no_byte_was_written_to(tmp_path):
    (tmp_path / "whole").write_bytes(bytes(1 << 20))
    assert storage.bytes_of_data(tmp_path / "whole", 1 << 20) == 1 << 20
    with open(tmp_path / "holes", "wb") as file:
        for place in (0, 1 << 24, 1 << 26):
            file.seek(place)
            file.write(b"x")
        file.truncate(1 << 30)
    assert 3 <= storage.bytes_of_data(tmp_path / "holes", 1 << 30) <= 3 << 16
    (tmp_path / "none").touch()
    assert storage.bytes_of_data(tmp_path / "none", 0) == 0


@guards("storage.listed")
def test_a_file_that_is_not_listed_is_no_fault_and_may_not_be_read(tmp_path):
    storage.commit(tmp_path / "step", fill("one"), {})
    (tmp_path / "step" / ".DS_Store").touch()
    manifest = storage.verify(tmp_path / "step")
    storage.require_listed(tmp_path / "step", manifest, ["b.txt", "sub/a.txt"])
    with pytest.raises(DataError, match=r"\.DS_Store: not listed in manifest\.json"):
        storage.require_listed(tmp_path / "step", manifest, ["b.txt", ".DS_Store"])


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "b.txt/c", "loop"])
def test_names_that_no_disk_can_have_are_bad_data(tmp_path, name: str):
    storage.commit(tmp_path / "step", fill("one"), {})
    (tmp_path / "step" / "loop").symlink_to("loop")
    (tmp_path / "step" / "manifest.json").write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(DataError) as caught:
        storage.verify(tmp_path / "step")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    assert not storage.is_whole(tmp_path / "step")
