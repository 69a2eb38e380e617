"""Everything that must survive a crash is written through `deftly.storage`; whoever else writes is listed here, with why that is right."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deftly
from test_bans import dotted, names_of

ROOT = Path(deftly.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "storage.py"]

CALLS = {
    *("os.replace", "os.rename", "os.link", "os.symlink", "os.open", "os.truncate", "os.ftruncate", "os.write", "os.pwrite"),
    *("shutil.move", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "json.dump", "csv.writer"),
    *("numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.savetxt", "numpy.memmap", "torch.save"),
    *("safetensors.torch.save_file", "safetensors.torch.save_model", "safetensors.numpy.save_file"),
    *("pyarrow.parquet.write_table", "pyarrow.parquet.ParquetWriter", "pyarrow.OSFile", "h5py.File", "zipfile.ZipFile", "tarfile.open"),
}
METHODS = {"write_text", "write_bytes", "touch", "tofile", "symlink_to", "hardlink_to", "rename", "savefig", "save", "to_csv"}
OPENERS = {"open": 1, "io.open": 1, "os.fdopen": 1, "av.open": 1, "gzip.open": 1}  # place of the mode

COMMITTED = "inside a folder that `storage.commit` or `storage.write_manifest` syncs and commits"
SYNCED = "inside a folder that `data.metadata.sync_tree` makes durable before info.json, the mark of a whole dataset, is written"
RENAMED = "a whole, synced folder gets its name, and the names around it are synced"
MEMORY = "into memory"
PICTURE = "a picture for the eye: the same command draws it again"
SCRATCH = "in a working folder that is removed at the end, and after a crash"

ALLOWED = {
    ("training/tensorboard.py", "open"): "written anew from the log in every session",
    ("agent.py", "safetensors.torch.save_file"): COMMITTED,
    ("agent.py", ".save"): "the tokenizer's own, which goes through storage",
    ("cli/data.py", ".save"): PICTURE,
    ("cli/main.py", "os.open"): "/dev/null, in the place of a reader that left",
    ("data/columns.py", ".tofile"): COMMITTED,
    ("data/columns.py", ".touch"): COMMITTED,
    ("data/columns.py", "numpy.memmap"): COMMITTED,
    ("data/cut.py", "av.open"): SYNCED,
    ("data/depth.py", "numpy.memmap"): "read only",
    ("data/depth.py", "open"): COMMITTED,
    ("data/export.py", "os.replace"): RENAMED,
    ("data/export.py", "pyarrow.parquet.write_table"): SYNCED,
    ("data/files.py", "pyarrow.parquet.ParquetWriter"): SYNCED,
    ("data/images.py", ".save"): MEMORY,
    ("data/generate.py", ".touch"): "asks a shared folder to look again, and is removed",
    ("data/importers/hdf5.py", "h5py.File"): "read only",
    ("data/merge.py", "os.link"): SYNCED,
    ("data/merge.py", "shutil.copyfile"): SYNCED,
    ("data/metadata.py", "pyarrow.parquet.write_table"): SYNCED,
    ("data/pull.py", "os.replace"): RENAMED,
    ("data/recorder.py", "os.replace"): COMMITTED,
    ("data/recorder.py", "pyarrow.parquet.write_table"): COMMITTED,
    ("data/recording.py", "os.replace"): RENAMED,
    ("data/renumber.py", "os.link"): SCRATCH,
    ("data/renumber.py", "os.replace"): SCRATCH,
    ("data/renumber.py", "pyarrow.parquet.write_table"): SCRATCH,
    ("data/renumber.py", "shutil.copyfile"): SCRATCH,
    ("data/renumber.py", "shutil.copytree"): SCRATCH,
    ("data/repair.py", "os.replace"): RENAMED,
    ("data/salvage.py", "pyarrow.parquet.write_table"): MEMORY,
    ("data/show.py", ".save"): PICTURE,
    ("data/store.py", "numpy.memmap"): "the frames of a store, synced before the manifest that says that they are whole",
    ("data/store.py", "os.replace"): RENAMED,
    ("data/video.py", "av.open"): SYNCED,
    ("data/writer.py", "os.replace"): RENAMED,
    ("evaluation/videos.py", ".save"): MEMORY,
    ("evaluation/videos.py", "av.open"): MEMORY,
    ("sim/cluster.py", ".write_text"): "a probe that other machines look for, and is removed",
    ("training/checkpoint.py", "os.replace"): RENAMED,
    ("training/shards.py", "safetensors.torch.save_file"): COMMITTED,
    ("training/saver.py", ".save"): "of `Checkpoints`, which commits",
}


def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of every call in a file that could write one."""
    names = names_of(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in CALLS:
            yield node.lineno, name
        elif name in OPENERS:
            if _may_write(node, OPENERS[name]):
                yield node.lineno, name
        elif method == "open" and _may_write(node, 0, known=True):
            yield node.lineno, ".open"
        elif method in METHODS and not name.startswith("deftly.storage."):
            yield node.lineno, f".{method}"


def _may_write(call: ast.Call, place: int, known: bool = False) -> bool:
    """Whether the mode of an `open` is one that writes, or (not `known`) cannot be read from the source."""
    modes = [item.value for item in call.keywords if item.arg == "mode"] + call.args[place : place + 1]
    if not modes:
        return False
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else None
    if not isinstance(mode, str):
        return not known
    return len(mode) <= 4 and bool(set(mode) & set("wax+"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_written_goes_through_storage(path: Path):
    file = path.relative_to(ROOT).as_posix()
    stray = [(line, what) for line, what in writes(ast.parse(path.read_text())) if (file, what) not in ALLOWED]
    assert stray == [], "write it through deftly.storage, or say in ALLOWED why a crash may take it"


def test_every_exception_is_still_needed():
    used = {(path.relative_to(ROOT).as_posix(), what) for path in FILES for _, what in writes(ast.parse(path.read_text()))}
    assert sorted(set(ALLOWED) - used) == []


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, mode)",
        "path.open('wb')",
        "path.open(mode='r+')",
        "path.write_text('x')",
        "import os\nos.replace(a, b)",
        "from shutil import copyfile as c\nc(a, b)",
        "import json\njson.dump(value, file)",
        "import numpy as np\nnp.save(path, array)",
        "from safetensors.torch import save_file\nsave_file(tensors, path)",
        "figure.savefig(path)",
    ],
)
def test_the_ban_sees(source: str):
    assert list(writes(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "Dataset.open(folder)",
        "from deftly import storage\nstorage.write_text(path, 'x')",
        "text.replace('a', 'b')",
        "import json\njson.dumps(value)",
    ],
)
def test_the_ban_lets_pass(source: str):
    assert list(writes(ast.parse(source))) == []
