"""Six small episodes, each with files of its own, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deftly.data import files
from recordings import episode, write

LENGTH = 12
EPISODES = 6
META = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"


def data(episode: int) -> str:
    return f"data/chunk-000/file-{episode:03d}.parquet"


def video(episode: int, camera: str = "head") -> str:
    return f"videos/observation.images.{camera}/chunk-000/file-{episode:03d}.mp4"


def write_six(root: Path, lengths: tuple[int, ...] = (LENGTH,) * EPISODES, without: int | None = None) -> Path:
    """A dataset whose every episode has a parquet file and an mp4 per camera of its own; one of them may never have been recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "DATA_FILE_MB", 0)
        patch.setattr(files, "VIDEO_FILE_SECONDS", 0)
        return write(root, (), [episode(number, length) for number, length in enumerate(lengths) if number != without])


def edit_info(root: Path, **changes: object) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def set_column(table: pa.Table, name: str, values: list, kind: pa.DataType | None = None) -> pa.Table:
    at = table.schema.get_field_index(name)
    kind = kind or table.schema.field(name).type
    return table.set_column(at, pa.field(name, kind), pa.array(values, kind))


def change(root: Path, episode: int, name: str, function: Callable[[list], list], kind: pa.DataType | None = None) -> None:
    """Change a column of an episode's rows."""
    edit(root / data(episode), lambda table: set_column(table, name, function(table.column(name).to_pylist()), kind))


def put(place: int, value: object) -> Callable[[list], list]:
    """Replaces one value of a column."""
    return lambda values: [*values[:place], value, *values[place + 1 :]]


def cut(path: Path, share: float) -> None:
    """Keep the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def corrupt(path: Path, frames: slice, seed: int = 0) -> None:
    """Overwrite the bytes of some frames of a video with noise; size, index and everything else stay."""
    import av

    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]
    draw = np.random.default_rng(seed)
    for place, size in packets[frames]:
        content[place + 4 : place + size] = draw.integers(0, 256, size - 4, dtype=np.uint8).tobytes()
    path.write_bytes(content)
