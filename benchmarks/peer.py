"""lerobot's side of the benchmark, run in the judge's environment by benchmarks/data.py. Its own classes, with its defaults."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))

from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import decode_video_frames
from memory import private_bytes
from process import serve

NAME = "benchmark/data"


class Peer:
    def __init__(self) -> None:
        self.dataset: LeRobotDataset | None = None
        self.batches: Iterator[Any] = iter(())

    def setup(self, threads: int) -> dict[str, str]:
        torch.set_num_threads(threads)
        return {name: version(name) for name in ("lerobot", "torch", "torchvision", "torchcodec", "av", "datasets", "pyarrow", "numpy")}

    def open(self, root: str) -> dict[str, float]:
        start, before = time.perf_counter(), private_bytes()
        dataset = LeRobotDataset(NAME, root=root)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "episodes": dataset.num_episodes, "private_bytes": private_bytes() - before}

    def loader(self, root: str, deltas: dict[str, list[float]], batch_size: int, backend: str, shuffle: bool) -> None:
        """Batches as its training script makes them, endless."""
        self.dataset = LeRobotDataset(NAME, root=root, delta_timestamps=deltas or None, video_backend=backend)
        loader = DataLoader(self.dataset, batch_size=batch_size, shuffle=shuffle)
        self.batches = endless(loader)

    def next(self, count: int) -> dict[str, float]:
        """The time of `count` batches."""
        start, samples = time.perf_counter(), 0
        for _ in range(count):
            samples += len(next(self.batches)["index"])
        return {"seconds": time.perf_counter() - start, "samples": samples}

    def items(self, rows: list[int], out: str) -> None:
        """The samples of some rows, to be compared."""
        assert self.dataset is not None
        items = [self.dataset[row] for row in rows]
        np.savez(out, **{name: np.stack([np.asarray(item[name]) for item in items]) for name in items[0] if name != "task"})

    def windows(self, root: str, windows: list[list[Any]], backend: str, out: str | None) -> dict[str, float]:
        """Decode [episode, camera key, frame indices] windows with its decoder alone; pixels to `out` where that is wanted."""
        if self.dataset is None or str(self.dataset.root) != root:
            self.dataset = LeRobotDataset(NAME, root=root)
        meta, found = self.dataset.meta, []
        places = [
            (Path(root) / meta.get_video_file_path(e, key), meta.episodes[e][f"videos/{key}/from_timestamp"]) for e, key, _ in windows
        ]
        times = [[begin + i / meta.fps for i in window[2]] for window, (_, begin) in zip(windows, places, strict=True)]
        start, tolerance = time.perf_counter(), self.dataset.tolerance_s
        for (path, _), wanted in zip(places, times, strict=True):
            frames = decode_video_frames(path, wanted, tolerance, backend)
            if out:
                found.append((frames * 255).round().to(torch.uint8).numpy())
        seconds = time.perf_counter() - start
        if out:
            np.savez(out, *found)
        return {"seconds": seconds, "samples": len(windows)}

    def statistics(self, root: str, out: str | None) -> dict[str, float]:
        """Per episode, then aggregated, as its recorder and its tools do; from the columns that it holds open, no image among them."""
        dataset = LeRobotDataset(NAME, root=root)
        names = [name for name, item in dataset.features.items() if item["dtype"] not in ("video", "image", "string")]
        start = time.perf_counter()
        table = dataset.hf_dataset.with_format("numpy", columns=names)
        episodes = []
        for row in dataset.meta.episodes:
            columns = table[row["dataset_from_index"] : row["dataset_to_index"]]
            episodes.append(compute_episode_stats(columns, dataset.features))
        result = aggregate_stats(episodes)
        seconds = time.perf_counter() - start
        if out:
            np.savez(out, **{f"{name}/{key}": value for name, item in result.items() for key, value in item.items()})
        return {"seconds": seconds, "samples": len(dataset)}

    def numpy_statistics(self, root: str, out: str) -> None:
        """The reference: numpy over whole columns in float64."""
        dataset = LeRobotDataset(NAME, root=root)
        names = [name for name, item in dataset.features.items() if item["dtype"] not in ("video", "image", "string")]
        found = {}
        for name, column in dataset.hf_dataset.with_format("numpy", columns=names)[:].items():
            values = column.reshape(len(column), -1).astype(np.float64)
            found |= {
                f"{name}/min": values.min(0),
                f"{name}/max": values.max(0),
                f"{name}/mean": values.mean(0),
                f"{name}/std": values.std(0),
            }
            found |= {f"{name}/q{level:02d}": np.quantile(values, level / 100, axis=0) for level in (1, 10, 50, 90, 99)}
        np.savez(out, **found)


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


if __name__ == "__main__":
    serve(Peer())
