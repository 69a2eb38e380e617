"""X1, X4, X6, X7 where data comes in: nothing of a source runs, whatever it pretends to be, and nothing outside of it is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import deftly
from guards import guards
from hdf5_files import LIBERO_NAME, demo, write_file

MEMORY = 200 << 20  # beyond what the imports take
SECONDS = 5  # of one core, for one source
PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
import av, h5py, pyarrow.parquet, PIL.PngImagePlugin, PIL.JpegImagePlugin
from deftly.data.dataset import Dataset
from deftly.data.importers.folder import import_folder
from deftly.data.importers.hdf5 import import_hdf5
from deftly.data.importers.lerobot_v21 import import_lerobot_v21
from deftly.data.importers.rlds import import_rlds
from deftly.types import UsageError

READERS = {
    "folder": import_folder,
    "hdf5": import_hdf5,
    "lerobot-v2.1": import_lerobot_v21,
    "rlds": import_rlds,
    "open": lambda source, target: Dataset.open(source),
}
root, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
FORBIDDEN = ("pickle.find_class", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen", "socket.connect", "ctypes.dlopen")

def watch(event, arguments):
    if event in FORBIDDEN:
        print("forbidden", event, arguments, flush=True)
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if not os.path.abspath(arguments[0]).startswith(root):
            print("forbidden write", arguments[0], flush=True)

sys.addaudithook(watch)
for line in sys.stdin:
    kind, source = line.rstrip("\\n").split(" ", 1)
    if (child := os.fork()) == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 8 * memory  # reserved is not yet used
        resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        signal.alarm(12 * seconds)  # who waits for ever uses no processor
        try:
            READERS[kind](Path(source), Path(source).parent / "out")
            said = "taken"
        except UsageError as error:
            said = f"refused {error}"
        except BaseException as error:
            said = f"failed {error!r}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(said if grown < memory else f"grew {grown}", flush=True)
        os._exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
TRAP = """
import os, pickle, sys
class Trap:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)
with open(sys.argv[1], "wb") as file:
    pickle.dump(Trap(), file)
"""


@pytest.fixture(scope="module")
def cage(tmp_path_factory):
    """Asks a process, watched and limited, what it makes of a source."""
    root = tmp_path_factory.getbasetemp()
    environment = {**os.environ, "PYTHONPATH": str(Path(deftly.__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, str(root), str(MEMORY), str(SECONDS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(kind: str, source: Path) -> str:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{kind} {source}\n")
        process.stdin.flush()
        lines = []
        while not (line := process.stdout.readline()).startswith("ended"):
            assert line, "the cage itself has ended"
            lines.append(line.rstrip("\n"))
        assert line == "ended 0\n", f"{source}: {line}"
        (said,) = lines  # more than one: something forbidden, or an error of several lines
        return said

    yield ask
    process.communicate()


def trap(tmp_path: Path) -> bytes:
    """A pickle that makes the folder `canary` when it is opened."""
    subprocess.run([sys.executable, "-c", TRAP, str(tmp_path / "trap"), str(tmp_path / "canary")], check=True)
    data = (tmp_path / "trap").read_bytes()
    (tmp_path / "trap").unlink()
    return data


def write_tar(path: Path, data: bytes) -> None:
    (path.parent / "member").write_bytes(data)
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "member", arcname="../../canary")
        for name, kind, target in (
            ("link", tarfile.SYMTYPE, "/etc"),
            ("hard", tarfile.LNKTYPE, "/etc/passwd"),
            ("null", tarfile.CHRTYPE, ""),
        ):
            item = tarfile.TarInfo(name)
            item.type, item.linkname = kind, target
            archive.addfile(item)
    (path.parent / "member").unlink()


def write_npy(path: Path, data: bytes) -> None:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 20 + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)


def write_npy_bomb(path: Path, data: bytes) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"9" * 60_000 + b",), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


DISGUISES: dict[str, Callable[[Path, bytes], object]] = {
    "pickle": lambda path, data: path.write_bytes(data),
    "tar": write_tar,
    "npy": write_npy,
    "npy bomb": write_npy_bomb,
    "empty": lambda path, data: path.touch(),
}
# What each reader opens first, in a folder; and the folder itself may be such a file.
FIRST = {
    "folder": "metadata.json",
    "hdf5": "x.hdf5",
    "lerobot-v2.1": "meta/info.json",
    "rlds": "dataset_info.json",
    "open": "meta/info.json",
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("kind", FIRST)
def test_disguised_files_are_refused_unopened(tmp_path, cage, kind, disguise):
    data = trap(tmp_path)
    for name in (FIRST[kind], ""):
        source = tmp_path / ("a" if name else "b.tar")
        path = source / name if name else source
        path.parent.mkdir(parents=True, exist_ok=True)
        DISGUISES[disguise](path, data)
        assert cage(kind, source).startswith("refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.tar"]


@guards("storage.regular")
@pytest.mark.parametrize("kind", FIRST)
def test_a_pipe_is_not_waited_for(tmp_path, cage, kind):
    path = tmp_path / "a" / FIRST[kind]
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert cage(kind, tmp_path / "a").startswith("refused")
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def deep(source: Path) -> None:
    (source / "metadata.json").write_text("[" * 100_000)


def wide(source: Path) -> None:
    """A million frames that say nothing."""
    (source / "metadata.json").write_text("[" + "{}," * 1_000_000 + "{}]")


def bomb(source: Path) -> None:
    row = {"image_id": 1, "instruction": "x", "action": [0], "sequence_id": 1, "timestamp": 0}
    (source / "metadata.json").write_text(json.dumps([row, {**row, "timestamp": 0.1}]))
    (source / "images").mkdir()
    Image.new("1", (16_000, 16_000)).save(source / "images/1.png")


def unpacks(source: Path) -> None:
    """Four megabytes in the file, four gigabytes unpacked."""
    with h5py.File(write_file(source / LIBERO_NAME, [demo(0)]), "a") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        shape = (5, 16_000, 16_000, 3)
        made = file["data/demo_0/obs"].create_dataset(
            "agentview_rgb", shape, "u1", chunks=(1, 8000, 8000, 3), compression="gzip", compression_opts=9
        )
        made[0, :8000, :8000] = np.zeros((8000, 8000, 3), np.uint8)


def hollow(source: Path) -> None:
    with h5py.File(write_file(source / LIBERO_NAME, [demo(0)]), "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0"].create_dataset("actions", (1 << 50, 7), "f8", chunks=(1024, 7))


def many(source: Path) -> None:
    with h5py.File(write_file(source / LIBERO_NAME, [demo(0)]), "a") as file:
        for i in range(3000):
            file["data"].create_group(f"demo_{i + 1}")


SOURCES = {
    "deep": ("folder", deep, "not valid JSON"),
    "wide": ("folder", wide, "sequence_id is 'None'"),
    "image bomb": ("folder", bomb, "pixels are more than"),
    "hdf5 bomb": ("hdf5", unpacks, "claims 3840000000 bytes"),
    "hollow hdf5": ("hdf5", hollow, "more than 4294967296 for one episode"),
    "hdf5 of nothing": ("hdf5", many, "episodes are broken"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_bombs_are_refused_in_bounded_time_and_memory(tmp_path, cage, name):
    kind, write, message = SOURCES[name]
    (tmp_path / "src").mkdir()
    write(tmp_path / "src")
    said = cage(kind, tmp_path / "src")
    assert said.startswith("refused")
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
