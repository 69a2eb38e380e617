"""Durable writes and verified reads. Everything that must survive a crash goes through here.

A file appears whole or not at all: temp file in the same directory, fsync, rename, fsync of the directory. A directory is committed by its
`manifest.json`, written last, which lists size and sha256 of every file. What only one process may do at a time is done under `lock`.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deftly.types import DataError, UsageError

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 256 << 20
MAX_MANIFEST_BYTES = 8 << 20  # brackets alone become twenty times as many bytes of Python
LARGE_BYTES, MOST_HOLES = 256 << 20, 1000  # a file that is larger, and so many times what of it is no holes, is none of ours
MOST_EXTENTS = 10_000
MAX_TENSOR_NAMES_BYTES = 8 << 20  # a header of a safetensors file: 80 000 tensors
_held: set[int] = set()  # descriptors of the locks of this process


def _let_go_in_child() -> None:
    """A forked data worker must not keep the lock of a process that was killed: a flock lives as long as any copy of its descriptor."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def lock(path: Path, *, wait: bool, who: str = "process", remedy: str = "wait for it") -> Iterator[None]:
    """Hold the lock file `path` for this process; the kernel lets go of it when we die, and our forked children never hold it.

    While another one holds it, `wait` waits, and otherwise a `UsageError` says which `who` it is and what to do about it.
    """
    make_directory(path.parent)
    descriptor, owner_pid = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), os.getpid()
    _held.add(descriptor)  # before the lock is ours: a child of that moment must not keep it either
    try:
        if not _take(descriptor, wait):  # guard: storage.lock
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise UsageError(f"{path.parent}: another {who} (process {owner or 'unknown'}) is using it; {remedy}")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if os.getpid() == owner_pid:  # a forked child has let go already, and the number may be another file's by now
            _held.discard(descriptor)
            os.close(descriptor)


def _take(descriptor: int, wait: bool) -> bool:
    for _ in range(2):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)  # somebody may only have been looking (`is_locked`)
    return False


def is_locked(path: Path) -> bool:
    """Whether a process holds `lock(path)`. To find out takes a shared lock for a moment; nothing is written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames and new names inside a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Make a directory and its parents durably: what is synced below a name that a crash can take away is lost with it."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_directory(folder.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file durably: after a crash at any moment it holds the old bytes or the new ones."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """JSON from a file; a one-line `DataError` when it is missing, broken, or has more than `most` bytes."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # guard: storage.regular
            raise DataError(f"{path}: not a plain file, so it is not read")
        if about.st_size > min(most, MAX_JSON_BYTES):  # guard: storage.json_size
            raise DataError(f"{path}: {about.st_size} bytes of JSON is more than {min(most, MAX_JSON_BYTES)}")
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of 5000 digits, nested without end
        raise DataError(f"{path}: not valid JSON ({error})") from None


def parse_json(text: str) -> Any:
    """JSON whose text can be written as UTF-8: half a surrogate pair, which an escape can say and no file can hold, becomes U+FFFD."""
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        plain = json.dumps(value, ensure_ascii=False).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return json.loads(plain)
    return value


def append_line(path: Path, value: Any, *, durable: bool = True) -> None:
    """Append one JSON line and sync it. A torn last line is what a crash can leave; `read_lines` drops it, `mend_lines` cuts it off.

    Without `durable` the line survives the death of the process but not of the machine, until `sync_file` is called.
    """
    new = not path.exists()
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())
    if new:
        sync_directory(path.parent)


def reserve(path: Path, num_bytes: int) -> None:
    """Make a file of zeros whose space is taken already: a disk that fills up under a memory map kills the process without a word."""
    with open(path, "wb") as file:
        if sys.platform == "linux" and num_bytes:
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:  # it does not know its file's name
                raise OSError(error.errno, error.strerror, str(path)) from None
        else:
            os.ftruncate(file.fileno(), num_bytes)


def sync_file(path: Path) -> None:
    """Make what was written to a file so far durable; a file that does not exist is left alone."""
    if path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def read_lines(path: Path, *, drop_torn: bool = True) -> Iterator[Any]:
    """The JSON lines of a file. A last line that a crash of `append_line` left (`is_torn`) is dropped; without `drop_torn`, which is for
    files of others, it counts. A broken line elsewhere is an error."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        for number, line in enumerate(file, 1):
            at += len(line)
            if drop_torn and at >= size and is_torn(line):
                return
            try:
                yield parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                cut = "; its last line is cut off, the file is truncated" if not line.endswith(b"\n") else ""
                raise DataError(f"{path}:{number}: not valid JSON ({error}){cut}") from None


def is_torn(line: bytes) -> bool:
    """Whether a last line is what a crash leaves: without its end, or with zeros where a block of it never reached the disk."""
    return not line.endswith(b"\n") or b"\0" in line


def mend_lines(path: Path) -> None:
    """Cut an unfinished last line off, so that appending continues on a fresh line."""
    if not path.exists():
        return
    data = path.read_bytes()
    start = data.rfind(b"\n", 0, max(0, len(data) - 1)) + 1
    if data and is_torn(data[start:]):
        with open(path, "r+b") as file:
            file.truncate(start)
            os.fsync(file.fileno())


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit(directory: Path, fill: Callable[[Path], None], about: dict[str, Any]) -> None:
    """Make a directory appear whole: `fill` writes its files into a temporary sibling, then manifest, fsync, rename.

    `about` is stored in the manifest (format version, library versions). An existing directory of that name is replaced: a crash between
    the two renames that this takes leaves none of that name, and `recover` brings the old one back.
    """
    make_directory(directory.parent)
    temporary, retired = (directory.with_name(f".{directory.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    is_replaced = False
    try:
        fill(temporary)
        write_manifest(temporary, about)
        if directory.exists():
            shutil.rmtree(retired, ignore_errors=True)
            os.replace(directory, retired)
            is_replaced = True
        os.replace(temporary, directory)
    except BaseException:
        if is_replaced and not directory.exists():
            os.replace(retired, directory)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(directory.parent)
    if is_replaced:
        shutil.rmtree(retired)  # not before: a crash that undoes the renames would bring a half-deleted one back


def recover(directory: Path) -> None:
    """Put right what killed processes left of a directory that they were making; for who holds the lock under which it is made.

    One that was about to be replaced comes back where nothing else has its name; everything else is removed.
    """
    name = glob.escape(f".{directory.name}.")
    for retired in sorted(directory.parent.glob(f"{name}*.old")):
        if not directory.exists() and is_whole(retired):
            os.replace(retired, directory)
            sync_directory(directory.parent)
    for kind in ("tmp", "old"):
        for leftover in directory.parent.glob(f"{name}*.{kind}"):
            shutil.rmtree(leftover, ignore_errors=True)


def is_whole(directory: Path) -> bool:
    """Whether a directory is all that its manifest says."""
    try:
        verify(directory)
    except (DataError, OSError):
        return False
    return True


def write_manifest(directory: Path, about: dict[str, Any]) -> None:
    """Sync every file below a directory, then write the manifest that commits them."""
    files = {}
    for path in sorted(item for item in directory.rglob("*") if item.is_file() and item != directory / MANIFEST):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    for folder in sorted({path.parent for path in directory.rglob("*")}):
        sync_directory(folder)
    write_json(directory / MANIFEST, {**about, "files": files})


def verify(directory: Path, most: int = MAX_MANIFEST_BYTES) -> dict[str, Any]:
    """Check a committed directory against its manifest, which is returned; a one-line `DataError` names the first file that differs.

    A file that the manifest does not list is nobody's: it is no fault (a file manager leaves some), and whoever reads must not read it.
    """
    path = directory / MANIFEST
    manifest = read_json(path, most)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DataError(f"{path}: not a manifest")
    for check in (_check_size, _check_contents):  # the sizes of all, before a byte of any is read
        for name, entry in manifest["files"].items():
            try:
                place = inside(directory, name)
                if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
                    raise DataError(f"{path}: the entry of {name[:80]!r} has no bytes and sha256; the manifest is corrupt")
                check(place, entry)
            except OSError as error:
                raise DataError(f"{path}: the file {name[:80]!r} cannot be read ({error.strerror}); use an earlier one") from None
    return manifest


def _check_size(path: Path, entry: dict[str, Any]) -> None:
    """What would take hours to hash is refused by its size: another than is listed, JSON that nobody reads, a file of holes."""
    if not path.is_file():  # guard: storage.listed_is_there
        raise DataError(f"{path}: listed in {MANIFEST} but missing; the directory is incomplete, use an earlier one")
    about = path.stat()
    if about.st_size != entry["bytes"]:  # guard: storage.size
        listed = str(entry["bytes"])[:20]
        raise DataError(
            f"{path}: differs from {MANIFEST}: {about.st_size} bytes, {listed} are listed; the file is corrupt, use an earlier one"
        )
    if path.suffix == ".json" and about.st_size > MAX_JSON_BYTES:  # guard: storage.listed_json
        raise DataError(f"{path}: {about.st_size} bytes of JSON is more than {MAX_JSON_BYTES}; use an earlier one")
    held = bytes_of_data(path, about.st_size) if about.st_size > LARGE_BYTES else about.st_size
    if about.st_size > MOST_HOLES * held:  # guard: storage.holes
        raise DataError(
            f"{path}: {about.st_size} bytes, of which the disk holds {held}: nothing of ours has such holes; use an earlier one"
        )


def bytes_of_data(path: Path, size: int) -> int:
    """How much of a file of `size` bytes is no holes: all of it where the file system does not tell, or tells of too many pieces.

    Not by `st_blocks`, which some file systems (ZFS, NFS) fill in long after the file is written and synced.
    """
    if not hasattr(os, "SEEK_DATA"):
        return size
    held = at = 0
    with open(path, "rb", buffering=0) as file:
        for _ in range(MOST_EXTENTS):
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            except OSError as error:
                return held if error.errno == errno.ENXIO else size  # ENXIO: only holes from here on
            held += at - begin
            if at >= size:
                return held
    return size


def _check_contents(path: Path, entry: dict[str, Any]) -> None:
    if sha256(path) != entry["sha256"]:  # guard: storage.sha256
        raise DataError(f"{path}: differs from its sha256 in {MANIFEST}; the file is corrupt, use an earlier one")


def require_listed(directory: Path, manifest: dict[str, Any], names: Iterable[str]) -> None:
    """`DataError` for the first of these files that a verified manifest does not list: what is read has been checked."""
    for name in names:
        if name not in manifest["files"]:  # guard: storage.listed
            raise DataError(f"{directory / name}: not listed in {MANIFEST}; the directory is incomplete, use an earlier one")


def check_header(path: Path) -> None:
    """`DataError` for a safetensors file that names more tensors than any model has: listing them takes a hundred times their bytes."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_TENSOR_NAMES_BYTES:  # guard: storage.header
        raise DataError(f"{path}: not a safetensors file: its header would have {size} bytes, at most {MAX_TENSOR_NAMES_BYTES} are read")


def inside(root: Path, name: str) -> Path:
    """`root / name`, refused when it would lead out of `root` (absolute names, `..`, symbolic links)."""
    path = root / name
    real, home = (Path(os.path.realpath(place)) if "\0" not in name else None for place in (path, root))  # no error for links in a circle
    if real is None or home is None or os.path.isabs(name) or not real.is_relative_to(home):  # guard: storage.inside
        raise DataError(f"{root}: the name {name[:80]!r} leads outside of the directory")
    return path


def remove_temporaries(directory: Path) -> None:
    """Remove what processes that were killed inside `write_bytes` left in a directory; for who holds the lock under which it is written."""
    for leftover in directory.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", leftover.name) and leftover.is_file():
            leftover.unlink(missing_ok=True)
