"""What a dataset holds as one hash, episode by episode, and whether its files changed. No pixel is decoded.

An episode's digest covers its numbers, its instructions, the encoded bytes of its embedded images, and the size of each of its video
packets with the bytes of the first; it does not depend on where in which file the episode lies, so a selection has the hash of a folder
that was written with the same packets. What damages an mp4 in its middle and keeps every packet's size is seen by `changed` (time of
change) and by decoding.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int64

from deftly.data import video
from deftly.data.index import EpisodeIndex
from deftly.data.parquet import leaf_paths, open_parquet
from deftly.data.rows import read_rows, read_texts, row_files
from deftly.data.schema import DEFAULT_FEATURES, Info
from deftly.data.tables import group_bounds

_END_BYTES = 64 << 10  # the end of an mp4 or a parquet file holds its index, with the size of every part
_READ_BYTES = 1 << 20
_KEPT_FILES = 1 << 15  # whose images are not read again in this process: a selection asks for what its folder asked for
MAX_WATCHED = 4096  # files whose time and size are kept; of more, evenly spaced ones


def episode_digests(root: Path, info: Info, index: EpisodeIndex, tasks: Sequence[str], task_of_frame: Int64[np.ndarray, "n"]) -> np.ndarray:
    """uint8 [E 32] in the order of the index: equal where the content is equal, whatever the numbers of episodes, tasks and files."""
    names = [name for name, item in sorted(info.features.items()) if item.is_numeric and name not in DEFAULT_FEATURES]
    texts = [hashlib.sha256(text.encode()).digest() for text in tasks]
    parts = [hashlib.sha256() for _ in range(len(index))]
    for path, episodes in row_files(root, info, index):
        columns = read_rows(path, info, index, episodes, names)
        at = 0
        for episode in episodes.tolist():
            begin, end = index.start[episode : episode + 2].tolist()
            for name in names:
                parts[episode].update(columns[name][at : at + end - begin].data)
            ids = task_of_frame[begin:end]
            cuts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
            parts[episode].update(cuts.tobytes() + b"".join(texts[i] for i in ids[cuts]))
            at += end - begin
    for key, item in sorted(info.features.items()):
        if item.dtype == "string":
            lines = read_texts(root, info, index, key)
            for episode, part in enumerate(parts):
                part.update(json.dumps(lines[index.start[episode] : index.start[episode + 1]]).encode())
        elif item.dtype == "video":
            _add_packets(root, info, index, key, parts)
        elif item.dtype == "image":
            _add_images(root, info, index, key, parts)
    return np.frombuffer(b"".join(part.digest() for part in parts), np.uint8).reshape(-1, 32)


def _add_packets(root: Path, info: Info, index: EpisodeIndex, key: str, parts: list) -> None:
    places = index.videos[key]
    for episodes in index.by_file(places):
        path = index.video_path(root, info, key, int(episodes[0]))
        if places.start_s is None:  # an episode of its own per file: opening each to list its packets would take minutes
            parts[int(episodes[0])].update(_size_and_end(path))
            continue
        first = np.round(places.start_s[episodes] * info.fps).astype(np.int64)
        found = video.packet_digests(path, first, np.diff(index.start)[episodes])
        for episode, digest in zip(episodes.tolist(), found, strict=True):
            parts[episode].update(digest)


def _add_images(root: Path, info: Info, index: EpisodeIndex, key: str, parts: list) -> None:
    """By the row groups that an episode is in, as encoded; and its place among them where it shares them."""
    for path, episodes in row_files(root, info, index):
        found = path.stat() if path.is_file() else None
        # The time of the last change of the inode cannot be set back, as that of the contents can.
        state = found and (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        low, high, digests = _group_digests(path, key, state)
        for episode, number in zip(episodes.tolist(), index.numbers(episodes).tolist(), strict=True):
            for group in np.flatnonzero((low <= number) & (number <= high)):
                parts[episode].update(digests[group].tobytes() + (number - int(low[group])).to_bytes(8, "little"))


@functools.lru_cache(maxsize=_KEPT_FILES)
def _group_digests(path: Path, key: str, state: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first episode [g], last episode [g], uint8 [g 32]) of the row groups of a file that is as `state` says."""
    with open_parquet(path) as file, open(path, "rb") as raw:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        bounds = np.array([group_bounds(group) for group in groups], np.int64).reshape(-1, 2)
        leaves = [i for i, parts in enumerate(leaf_paths(file)) if parts[0] == key]
        digests = b"".join(_group_digest(group, leaves, raw) for group in groups)
    return bounds[:, 0], bounds[:, 1], np.frombuffer(digests, np.uint8).reshape(-1, 32)


def _group_digest(group: pq.RowGroupMetaData, leaves: Sequence[int], raw: BinaryIO) -> bytes:
    digest = hashlib.sha256(group.num_rows.to_bytes(8, "little"))
    for column in map(group.column, leaves):
        left = column.total_compressed_size
        digest.update(left.to_bytes(8, "little", signed=True))
        raw.seek(max(0, column.dictionary_page_offset or column.data_page_offset))
        while left > 0 and (data := raw.read(min(_READ_BYTES, left))):  # no more than there is, whatever the footer says
            digest.update(data)
            left -= len(data)
    return digest.digest()


def _size_and_end(path: Path) -> bytes:
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _END_BYTES))
        return size.to_bytes(8, "little") + hashlib.sha256(file.read()).digest()


class Watch:
    """Time of change and size of files as they were."""

    def __init__(self, paths: Iterable[Path]) -> None:
        found = list(paths)
        chosen = found if len(found) <= MAX_WATCHED else [found[i] for i in np.linspace(0, len(found) - 1, MAX_WATCHED).astype(int)]
        self._seen = {str(path): _state(path) for path in chosen}

    def changed(self) -> str | None:
        """The first file that is not as it was, and how; None where all are."""
        for name, before in self._seen.items():
            now = _state(Path(name))
            if now != before:
                return f"{name} {'is gone' if now is None else 'was not there' if before is None else 'was written to'}"
        return None


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
