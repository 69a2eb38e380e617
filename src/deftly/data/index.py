"""Where the episodes of a dataset are: a few arrays with a number or two per episode, nothing per frame and no Python object of its own.

A dataset of three cameras takes 8 bytes per episode for its rows, 4 for their file, and 12 per camera (file, start): 48. What a file says
further about an episode is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64

from deftly.data.schema import Info, fill_path
from deftly.types import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """The files of one kind (rows, or one camera), and which of them each episode is in."""

    file: Int32[np.ndarray, "e"] | None
    """Row of `numbers`; None where every episode has files of its own, which its number names."""
    numbers: Int64[np.ndarray, "f 2"]
    """(chunk, file) as the path template wants them."""
    frames: Int64[np.ndarray, "f"]
    """Frames that the folder's episodes have in each file."""
    start_s: Float64[np.ndarray, "e"] | None = None
    """Time of the first frame within a video file; None where that is always 0, and for rows."""

    @classmethod
    def of(cls, chunk: np.ndarray, file: np.ndarray, length: np.ndarray, start_s: np.ndarray | None = None) -> Places:
        """From columns [e]; files are numbered by first use."""
        code = chunk.astype(np.int64) << 32 | file
        codes, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        place = rank[inverse.reshape(-1)]
        numbers = np.stack([codes[order] >> 32, codes[order] & 0xFFFFFFFF], axis=1)
        frames = np.bincount(place, weights=length, minlength=len(numbers)).astype(np.int64)
        return cls(place, numbers, frames, start_s)

    def take(self, episodes: np.ndarray) -> Places:
        return replace(
            self,
            file=None if self.file is None else self.file[episodes],
            start_s=None if self.start_s is None else self.start_s[episodes],
        )

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.file, self.numbers, self.frames, self.start_s) if array is not None)


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeIndex:
    """The episodes of a dataset, or a selection of them, in order. Frames are numbered through: those of e are `start[e]:start[e + 1]`."""

    start: Int64[np.ndarray, "e1"]
    data: Places
    videos: dict[str, Places]
    source: Int64[np.ndarray, "e"] | None = None
    """Numbers in the folder; None where that is 0, 1, 2 ... and nothing is left out."""

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def num_frames(self) -> int:
        return int(self.start[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        source = 0 if self.source is None else self.source.nbytes
        return self.start.nbytes + source + self.data.nbytes + sum(places.nbytes for places in self.videos.values())

    def take(self, episodes: Int64[np.ndarray, "n"]) -> EpisodeIndex:
        """These episodes in this order, renumbered from 0. Raises `UsageError` for one that is not there or is named twice."""
        episodes = np.asarray(episodes, np.int64)
        if len(episodes) and not (episodes.min() >= 0 and episodes.max() < len(self)):
            raise UsageError(f"there are episodes 0..{len(self) - 1}, asked for {episodes.min()}..{episodes.max()}")
        if len(np.unique(episodes)) != len(episodes):
            raise UsageError("an episode is selected twice; name each once")
        length = np.diff(self.start)[episodes]
        start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        videos = {key: places.take(episodes) for key, places in self.videos.items()}
        return EpisodeIndex(start, self.data.take(episodes), videos, self.numbers(episodes))

    def number(self, episode: int) -> int:
        """An episode's number in the folder."""
        return int(episode if self.source is None else self.source[episode])

    def numbers(self, episodes: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Their numbers in the folder."""
        return episodes.astype(np.int64) if self.source is None else self.source[episodes]

    def data_path(self, root: Path, info: Info, episode: int) -> Path:
        """The parquet file that holds an episode's rows."""
        return self._path(root, info, self.data, info.data_path, episode, {})

    def video_path(self, root: Path, info: Info, key: str, episode: int) -> Path:
        """The mp4 that holds an episode of a video feature."""
        return self._path(root, info, self.videos[key], info.video_path or "", episode, {"video_key": key})

    def _path(self, root: Path, info: Info, places: Places, template: str, episode: int, more: dict[str, str]) -> Path:
        number = self.number(episode)
        if places.file is None:
            values = {"episode_chunk": number // info.chunks_size, "episode_index": number}
        else:
            chunk, file = places.numbers[places.file[episode]]
            values = {"chunk_index": int(chunk), "file_index": int(file)}
        return fill_path(root, template, {**values, **more}, str(root / "meta/info.json"))

    def by_file(self, places: Places) -> Iterator[Int64[np.ndarray, "m"]]:
        """The episodes of each file, ascending; files in order of first use."""
        if places.file is None:
            yield from np.arange(len(self), dtype=np.int64)[:, None]
            return
        used, first = np.unique(places.file, return_index=True)
        order = np.argsort(places.file, kind="stable")
        edges = np.concatenate([np.searchsorted(places.file[order], used), [len(order)]])
        for i in np.argsort(first):
            yield order[edges[i] : edges[i + 1]].astype(np.int64)
