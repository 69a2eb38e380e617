"""Decoded frames at training size, memory-mapped: a video is decoded once, training reads pages.

    CACHE/frames/<key>/frames.bin      uint8 [frames size size 3], raw
    CACHE/frames/<key>/manifest.json   what it holds; written last, then the directory is renamed into place

`key` hashes dataset, camera, size and format, so a store is never stale: other data is another directory. It is filled from the DECODED
frames (what training on the video would see), never from the frames that a simulator still had in memory.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from deftly import storage
from deftly.contract import fingerprint
from deftly.data.images import check_image, resize_with_pad
from deftly.progress import Progress
from deftly.sim import processes
from deftly.types import DataError, UsageError

if TYPE_CHECKING:
    from deftly.data.dataset import Dataset

FORMAT = "frames-1"
DISK_SHARE = 0.2  # of the free disk space that a store may take
EPISODES_AT_ONCE = 8  # one process decodes neighbours, which mostly lie in one file
FRAMES = "frames.bin"
DECODED_AT_ONCE = 256  # frames in memory: an episode of an hour must not need all of it


class FrameStore:
    """uint8 [N size size 3] per camera, row for row the dataset's frames. Pickles as paths: workers map the same pages."""

    def __init__(self, paths: dict[str, Path], num_frames: int, image_size: int) -> None:
        self.paths, self.num_frames, self.image_size = paths, num_frames, image_size
        shape = (num_frames, image_size, image_size, 3)
        self.frames: dict[str, np.ndarray] = {camera: _map(path, shape) for camera, path in paths.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameStore, (self.paths, self.num_frames, self.image_size)

    @property
    def num_bytes(self) -> int:
        return sum(frames.nbytes for frames in self.frames.values())

    @classmethod
    def prepare(
        cls,
        dataset: Dataset,
        cameras: tuple[str, ...],
        image_size: int,
        cache_dir: Path,
        workers: int = 0,
        *,
        share: float = DISK_SHARE,
    ) -> FrameStore:
        """Open the store of these cameras, decoding what is not there yet. Builders at the same time are safe: one fills, the others
        wait. `workers` processes decode; 0 decodes in this one.

        Raises:
            UsageError: what is missing would take more than `share` of the free disk space.
            DataError: a frame cannot be decoded, or a camera has another number of frames than the dataset has rows.
        """
        one = dataset.num_frames * image_size * image_size * 3
        homes = {camera: cache_dir / "frames" / store_key(dataset.hash, camera, image_size) for camera in cameras}
        if not all(_is_complete(home, one) for home in homes.values()):
            with storage.lock(cache_dir / "frames" / ".lock", wait=True):
                missing = {camera: home for camera, home in homes.items() if not _is_complete(home, one)}
                if missing:
                    announce(len(missing) * one, cache_dir, list(missing), image_size, share)
                    _build(dataset, missing, image_size, workers)
        return cls({camera: home / FRAMES for camera, home in homes.items()}, dataset.num_frames, image_size)


def store_key(dataset_hash: str, camera: str, image_size: int) -> str:
    """The name of a store's directory."""
    return fingerprint([FORMAT, dataset_hash, camera, image_size])[:32]


def default_cache(root: Path) -> Path:
    """`DEFTLY_CACHE` where it is set; else beside the dataset, so that it goes when the dataset goes; else, where that cannot be written,
    the user's cache directory."""
    if named := os.environ.get("DEFTLY_CACHE"):
        return Path(named)
    if os.access(root, os.W_OK):
        return root / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deftly"


def _map(path: Path, shape: tuple[int, ...], mode: Literal["r", "r+"] = "r") -> np.ndarray:
    if not shape[0]:
        return np.zeros(shape, np.uint8)  # an empty file cannot be mapped
    return np.memmap(path, np.uint8, mode=mode, shape=shape).view(np.ndarray)  # a plain view: slicing a memmap object costs microseconds


def _is_complete(home: Path, num_bytes: int) -> bool:
    """Whether a committed store is whole; a file that something truncated is built again."""
    manifest, frames = home / storage.MANIFEST, home / FRAMES
    if not manifest.is_file() or not frames.is_file() or frames.stat().st_size != num_bytes:
        return False
    try:
        return storage.read_json(manifest)["bytes"] == num_bytes
    except (DataError, KeyError, TypeError):
        return False


def announce(needed: int, cache_dir: Path, cameras: list[str], image_size: int, share: float) -> None:
    """Say what will be decoded; a `UsageError` where it would take more than `share` of the free disk space."""
    free = shutil.disk_usage(cache_dir).free
    if needed > share * free:
        raise UsageError(
            f"{cache_dir}: decoded frames of {', '.join(cameras)} at {image_size} px need {_size(needed)}, more than {share:.0%} "
            f"of the {_size(free)} that are free; use a smaller image_size, fewer cameras, a larger disk_share, or set DEFTLY_CACHE to a "
            "larger disk"
        )
    print(
        f"decoding {', '.join(cameras)} at {image_size} px: {_size(needed)} in {cache_dir} ({_size(free)} free)",
        file=sys.stderr,
        flush=True,
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"


def _build(dataset: Dataset, homes: dict[str, Path], image_size: int, workers: int) -> None:
    """Fill a temporary directory per camera and rename each into place."""
    num_bytes = dataset.num_frames * image_size * image_size * 3
    temporary = {camera: home.with_name(f".{home.name}.{uuid.uuid4().hex[:8]}.tmp") for camera, home in homes.items()}
    for home in homes.values():
        storage.recover(home)
    try:
        for folder in temporary.values():
            folder.mkdir()
            storage.reserve(folder / FRAMES, num_bytes)
        _fill(dataset, {camera: folder / FRAMES for camera, folder in temporary.items()}, image_size, workers)
        for camera, folder in temporary.items():
            with open(folder / FRAMES, "rb") as file:
                os.fsync(file.fileno())
            about = {"format": FORMAT, "dataset_hash": dataset.hash, "camera": camera, "image_size": image_size}
            storage.write_json(folder / storage.MANIFEST, {**about, "frames": dataset.num_frames, "bytes": num_bytes})
            shutil.rmtree(homes[camera], ignore_errors=True)  # a truncated predecessor
            os.replace(folder, homes[camera])
            storage.sync_directory(homes[camera].parent)
    except BaseException:
        for folder in temporary.values():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _fill(dataset: Dataset, paths: dict[str, Path], image_size: int, workers: int) -> None:
    """Decode every episode of every camera. A dataset pickles as its folder: worker processes open it and write into the same files."""
    parts = [
        range(first, min(first + EPISODES_AT_ONCE, dataset.num_episodes)) for first in range(0, dataset.num_episodes, EPISODES_AT_ONCE)
    ]
    jobs = [Job(camera, part) for camera in paths for part in parts]
    make = functools.partial(_filler, dataset, paths, image_size)
    with Progress("decode", len(paths) * dataset.num_episodes, "episodes") as progress:
        for done in processes.run(make, jobs, workers=workers, name=lambda job: f"decoding {job.camera!r}"):
            progress.advance(done)


class Job(NamedTuple):
    """Neighbouring episodes of a camera, for one process."""

    camera: str
    episodes: range


def _filler(dataset: Dataset, paths: dict[str, Path], image_size: int) -> Callable[[Job], int]:
    """What one process does with each job; made in the process itself."""
    return functools.partial(_fill_episodes, dataset, paths, image_size)


def _fill_episodes(dataset: Dataset, paths: dict[str, Path], image_size: int, job: Job) -> int:
    """Decode episodes into their rows of the camera's file; returns how many."""
    rows = _map(paths[job.camera], (dataset.num_frames, image_size, image_size, 3), mode="r+")
    for episode in job.episodes:
        start, end = (int(row) for row in dataset.episode_start[episode : episode + 2])
        for first in range(start, end, DECODED_AT_ONCE):
            last = min(first + DECODED_AT_ONCE, end)
            decode_into(dataset, job.camera, episode, np.arange(first - start, last - start), rows[first:last])
    return len(job.episodes)


def decode_into(
    dataset: Dataset, camera: str, episode: int, indices: Int64[np.ndarray, "n"], target: UInt8[np.ndarray, "n size size 3"]
) -> None:
    """Frames of an episode, decoded and fitted into squares; a `DataError` says which episode is broken and what lists them all."""
    where = f"{dataset.root}: episode {episode}, camera {camera!r}"
    try:
        images = dataset.frames(episode, camera, indices)
        if len(images) != len(indices):
            raise DataError(f"{where}: {len(images)} frames where {len(indices)} rows need one")
        check_image(images[0], where)
    except DataError as error:
        raise DataError(f"{error}; `deftly data check {dataset.root}` lists every episode that cannot be used") from None
    for image, square in zip(images, target, strict=True):
        square[:] = resize_with_pad(image, target.shape[1])
