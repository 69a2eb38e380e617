"""A dataset's numbers in raw units, memory-mapped: every worker and every process on the machine reads the same pages.

    CACHE/columns/<key>/{state,action,task}.bin    raw float32, float32, int32, row for row the dataset's frames
    CACHE/columns/<key>/manifest.json              what they hold; written last

`key` hashes dataset and format, so columns are never stale. They are raw: what is normalised, and how, is decided when a batch is gathered.
Letters: n frames, s state dims, a action dims.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from deftly import storage
from deftly.contract import fingerprint
from deftly.data.schema import ACTION, STATE
from deftly.types import DataError

if TYPE_CHECKING:
    from deftly.data.dataset import Dataset

FORMAT = "columns-1"


class Columns:
    """The numbers of every frame. Pickles as a path: workers map the same pages."""

    def __init__(self, home: Path, num_frames: int, state_dim: int, action_dim: int) -> None:
        self.home, self.num_frames, self.state_dim, self.action_dim = home, num_frames, state_dim, action_dim
        self.state: Float[np.ndarray, "n s"] = _map(home / "state.bin", np.float32, (num_frames, state_dim))
        self.action: Float[np.ndarray, "n a"] = _map(home / "action.bin", np.float32, (num_frames, action_dim))
        self.task: Int[np.ndarray, "n"] = _map(home / "task.bin", np.int32, (num_frames,))

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, (self.home, self.num_frames, self.state_dim, self.action_dim)

    @classmethod
    def prepare(cls, dataset: Dataset, cache_dir: Path) -> Columns:
        """Open the columns of a dataset, writing them where they are not there yet. Processes at the same time are safe: one writes, the
        others wait."""
        home = cache_dir / "columns" / fingerprint([FORMAT, dataset.hash])[:32]
        dims = len(dataset.embodiment.state), len(dataset.embodiment.action)
        sizes = {"state.bin": dataset.num_frames * dims[0] * 4, "action.bin": dataset.num_frames * dims[1] * 4}
        sizes["task.bin"] = dataset.num_frames * 4
        if not is_complete(home, sizes):
            with storage.lock(home.parent / ".lock", wait=True):
                if not is_complete(home, sizes):
                    about = {"format": FORMAT, "dataset_hash": dataset.hash, "frames": dataset.num_frames}
                    storage.recover(home)
                    storage.commit(home, lambda folder: _write(dataset, folder), about)
        return cls(home, dataset.num_frames, *dims)


def _write(dataset: Dataset, folder: Path) -> None:
    """Copy the columns file by file: the dataset's numbers need not fit into memory."""
    robot = dataset.embodiment
    dims = {feature: len(vector) for feature, vector in ((STATE, robot.state), (ACTION, robot.action)) if len(vector)}
    files = {STATE: folder / "state.bin", ACTION: folder / "action.bin"}
    for path in files.values():
        path.touch()  # of a robot without state, or a dataset without frames
    targets = {}
    if dataset.num_frames:
        for name, dim in dims.items():
            storage.reserve(files[name], dataset.num_frames * dim * 4)
        targets = {name: np.memmap(files[name], np.float32, "r+", shape=(dataset.num_frames, dim)) for name, dim in dims.items()}
    for episodes, values in dataset.chunks(list(dims)):
        ends = np.cumsum(np.diff(dataset.episode_start)[episodes])
        for episode, end in zip(episodes.tolist(), ends.tolist(), strict=True):
            start, stop = (int(row) for row in dataset.episode_start[episode : episode + 2])
            for name, target in targets.items():
                target[start:stop] = values[name][end - (stop - start) : end]
    for target in targets.values():
        target.flush()
    dataset.task_of_frame.astype(np.int32).tofile(folder / "task.bin")


def is_complete(home: Path, sizes: dict[str, int]) -> bool:
    """Whether committed columns are whole; what something truncated is written again."""
    try:
        files = storage.read_json(home / storage.MANIFEST)["files"]
        return all(files[name]["bytes"] == size == (home / name).stat().st_size for name, size in sizes.items())
    except (DataError, KeyError, TypeError, OSError):
        return False


def _map(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, mode="r", shape=shape).view(np.ndarray)  # a plain view: slicing a memmap object costs microseconds
