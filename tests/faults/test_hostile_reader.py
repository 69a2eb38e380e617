"""Datasets made to do harm: refused in one line, in bounded time and memory, and nothing outside of the folder is touched.

What could take more is read by a process of its own whose memory and processor time the system limits: exceeding them fails the test.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from damage import edit_info
from deftly.data.dataset import Dataset
from deftly.types import DataError
from guards import guards
from recordings import write
from recordings_v2 import write_v21

LENGTHS = (4, 6, 3, 5)
DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.head/chunk-000/file-000.mp4"
MEMORY = 200 << 20  # beyond what the imports take
SECONDS = 5  # of one core, imports left out; the aim is one, the machine may be busy
PROGRAM = """
import os, resource, sys
from pathlib import Path
import numpy as np
import pyarrow.parquet, av, PIL.PngImagePlugin
from deftly.data.dataset import Dataset
from deftly.types import DataError

def used():
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_maxrss * 1024, found.ru_utime + found.ru_stime

def read(root):
    dataset = Dataset.open(Path(root))
    _ = [dataset.column(name) for name, item in dataset.features.items() if item.is_numeric]
    _ = [dataset.extra(name) for name in dataset.extra_names]
    _ = [dataset.frames(0, camera, np.array([0])) for camera in dataset.cameras]
    return f"read {dataset.num_frames}"

memory, seconds = int(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    if (child := os.fork()) == 0:
        before = used()
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 8 * memory  # reserved is not yet used
        resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        try:
            said = read(line.rstrip())
        except DataError as error:
            said = f"refused {error}"
        except BaseException as error:
            said = f"failed {error!r}"
        print(used()[0] - before[0], said, flush=True)
        os._exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Cage:
    """A process that reads datasets in forks of its own, whose memory and time are limited."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", PROGRAM, str(MEMORY), str(SECONDS)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self, root: Path) -> str:
        """What came of reading everything of a dataset: "refused ..." or "read ...". Fails when it took too much time or memory."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{root}\n")
        self.process.stdin.flush()
        lines = []
        while not (line := self.process.stdout.readline()).startswith("ended"):
            assert line, "the cage itself has ended"
            lines.append(line)
        assert line == "ended 0\n", f"{root}: {line}"  # a signal where the time was up
        grown, said = "".join(lines).rstrip("\n").split(" ", 1)
        assert "\n" not in said
        assert int(grown) < MEMORY, f"{said}: took {int(grown) >> 20} MiB"
        return said


@pytest.fixture(scope="module")
def cage() -> Iterator[Cage]:
    made = Cage()
    yield made
    assert made.process.stdin
    assert made.process.stdout
    made.process.stdin.close()
    assert made.process.wait(60) == 0
    made.process.stdout.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dataset") / "data", LENGTHS)


@pytest.fixture
def root(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def read(root: Path, rows: bool) -> None:
    dataset = Dataset.open(root)
    _ = dataset.action if rows else dataset.frames(0, "head")


def replace_column(path: Path, name: str, values: pa.Array, **options) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path, **options)


def test_a_harmless_dataset_is_read_in_the_cage(cage, root):
    assert cage.read(root) == "read 18"


@guards("data.schema.template", "storage.inside")
@pytest.mark.parametrize(
    "template",
    ["../../{chunk_index}", "/etc/{chunk_index}", "{chunk_index.__class__}", "{chunk_index:>1000000000}", "{x}", "a\0b", "{chunk_index!r}"],
)
def test_a_path_template_cannot_leave_the_folder_or_run_anything(root, template):
    for name in ("data_path", "video_path"):
        edit_info(root, **{name: template})
        with pytest.raises(DataError, match=r"outside|cannot be read|asks for") as caught:
            read(root, rows=name == "data_path")
        assert len(str(caught.value).splitlines()) == 1
        edit_info(root, **{name: "data/x"})


@guards("storage.inside")
@pytest.mark.parametrize("name", [DATA, VIDEO, "videos/observation.images.head"])
def test_a_symbolic_link_out_of_the_folder_is_not_followed(root, tmp_path, name):
    shutil.move(root / name, tmp_path / "secret")
    (root / name).symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="outside"):
        read(root, rows=name == DATA)


@guards("storage.inside")
def test_an_episode_table_that_links_out_is_not_read(root, tmp_path):
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    shutil.move(path, tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="outside"):
        Dataset.open(root)


@guards("data.schema.feature_name")
@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", ".", "", "a\0b", "a\nb", "x" * 300])
def test_a_feature_name_cannot_be_a_path(root, name):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = {"dtype": "float32", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="cannot be part of a path") as caught:
        Dataset.open(root)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["meta/info.json", "meta/deftly.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "1" * 100_000, "1e" + "9" * 4000])
def test_deep_or_endless_json_is_refused(cage, root, name, text):
    (root / name).write_text(text)
    assert cage.read(root).startswith("refused")


def test_deep_json_in_lines_is_refused(cage, tmp_path):
    root = write_v21(tmp_path / "v21")
    (root / "meta/episodes.jsonl").write_text("[" * 100_000 + "]" * 100_000 + "\n")
    assert "not valid JSON" in cage.read(root)


@guards("data.parquet.columns")
def test_a_million_columns_are_refused(cage, root):
    schema = pa.schema([pa.field(str(i), pa.int8()) for i in range(200_000)])
    pq.ParquetWriter(root / DATA, schema).close()
    assert "its footer lists 200001 columns" in cage.read(root)


@guards("data.parquet.footer")
def test_a_giant_footer_is_refused(cage, root):
    with open(root / DATA, "wb") as file:
        file.truncate(400 << 20)  # a hole: nothing is written
        file.write(b"PAR1")
        file.seek((400 << 20) - 8)
        file.write(struct.pack("<I", 300 << 20) + b"PAR1")
    assert "its footer has" in cage.read(root)


@guards("data.parquet.values")
@pytest.mark.parametrize(("name", "most"), [("action", 72), ("observation.state", 90)])
def test_a_row_of_a_million_numbers_is_refused(cage, root, name, most):
    """Some hundred bytes of run lengths say how many; a thousand times as many would take no more."""
    lists = pa.ListArray.from_arrays(np.array([*range(18), 2_000_000], np.int32), pa.array(np.zeros(2_000_000, np.float32)))
    replace_column(root / DATA, name, lists)
    assert (root / DATA).stat().st_size < 30_000
    assert f"values in 18 rows, expected at most {most}" in cage.read(root)


@guards("data.parquet.ratio")
@pytest.mark.parametrize("codec", ["ZSTD", "GZIP", "BROTLI"])
def test_a_page_that_unpacks_to_gigabytes_is_refused(cage, root, codec):
    text = pa.array(["a" * (30 << 20)] * 18)
    replace_column(root / "meta/episodes/chunk-000/file-000.parquet", "scene", text.slice(0, 4), compression=codec, use_dictionary=False)
    size = (root / "meta/episodes/chunk-000/file-000.parquet").stat().st_size
    assert size < 200_000
    assert "it is no recording" in cage.read(root)


@guards("data.tables.max_rows")
def test_more_rows_than_frames_are_refused(cage, root):
    """Thirty million in less than a megabyte."""
    zeros = pa.array(np.zeros(30_000_000, np.int64))
    pq.write_table(pa.table(dict.fromkeys(("episode_index", "frame_index", "action", "observation.state"), zeros)), root / DATA)
    assert (root / DATA).stat().st_size < 1_000_000
    assert "30000000 rows, expected at most 18" in cage.read(root)


def bomb(height: int, width: int, comment: int = 0) -> bytes:
    """A PNG that says it has this many pixels, with a comment of this many zeros, a thousandfold packed."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = b"Comment\0\0" + zlib.compress(bytes(comment), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"zTXt", text)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


IMAGES = {
    "a png that claims 9000 x 9000": (lambda: bomb(9000, 9000), "is 9000 x 9000, expected 32 x 32"),
    "a png that claims 60000 x 60000": (lambda: bomb(60_000, 60_000), "cannot be decoded"),
    "a png with a bomb in its comment": (lambda: bomb(32, 32, 200 << 20), "cannot be decoded"),
    "a gif": (lambda: encoded("GIF"), "cannot be decoded"),
    "a bmp": (lambda: encoded("BMP"), "cannot be decoded"),
    "a tiff": (lambda: encoded("TIFF"), "cannot be decoded"),
    "a fits": (lambda: b"SIMPLE  =                    T" + b" " * 2850, "cannot be decoded"),
    "a psd": (lambda: b"8BPS\0\1" + bytes(40), "cannot be decoded"),
    "a png of sixteen bits": (lambda: encoded("PNG", "I;16"), "has pixels of kind 'I;16', more than 8 bits"),
}


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(
            name, marks=guards("data.images.mode") if "kind" in message else guards("data.images.size") if "9000" in message else ()
        )
        for name, (_, message) in IMAGES.items()
    ],
)
def test_an_image_that_is_none_or_another_kind_is_refused(cage, tmp_path, what):
    make, message = IMAGES[what]
    root = write_v21(tmp_path / "v21")
    path = root / "data/chunk-000/episode_000000.parquet"
    replace_column(path, "observation.images.wrist", pa.array([{"bytes": make(), "path": "x.png"}] * 4))
    said = cage.read(root)
    assert message in said
    assert "refused episode 0, camera 'wrist'" in said


@pytest.mark.parametrize("side", [9000])
def test_a_video_of_giant_frames_is_refused_before_it_is_decoded(cage, root, side):
    data = bytearray((root / VIDEO).read_bytes())
    at = data.index(b"avc1") + 4 + 24  # width and height of the sample entry
    data[at : at + 4] = struct.pack(">HH", side, side)
    (root / VIDEO).write_bytes(data)
    assert cage.read(root).startswith(("refused", "read 18"))


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_harmless(cage, root, seed):
    """Bytes of any file, overwritten: whatever comes of it comes in time, and in one line."""
    draw = np.random.default_rng(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[int(draw.integers(len(files)))]
    data = bytearray(path.read_bytes())
    for place in draw.integers(0, len(data), 8):
        data[place] = draw.integers(0, 256)
    path.write_bytes(data)
    assert cage.read(root).startswith(("refused", "read 18"))
