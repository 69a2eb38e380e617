"""Our side of the benchmark, driven by benchmarks/data.py: of each row the path that training takes."""

from __future__ import annotations

import sys
import time
import tracemalloc
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

import fixtures
from memory import private_bytes
from process import serve

from deftly.contract import Contract, Window, fingerprint
from deftly.data.augment import OFF
from deftly.data.columns import Columns
from deftly.data.dataset import Dataset
from deftly.data.encoding import ObservationEncoder
from deftly.data.importers.lerobot_v21 import import_lerobot_v21
from deftly.data.loader import Loader
from deftly.data.measure import Part, measure
from deftly.data.schema import IMAGES
from deftly.data.source import DataConfig
from deftly.data.statistics import Accumulator
from deftly.data.store import FrameStore
from deftly.data.stored import Frames
from deftly.data.tokenizer import TextTokenizer
from deftly.data.windows import Selection, Windows


class Ours:
    loader: Loader
    dataset: Dataset | None = None

    def setup(self, threads: int) -> dict[str, str]:
        torch.set_num_threads(threads)
        return {name: version(name) for name in ("deftly", "torch", "av", "pyarrow", "numpy")}

    def fixture(self, name: str, root: str, sizes: dict[str, int]) -> None:
        getattr(fixtures, name)(Path(root), **sizes)

    def humanoid(self, source: str, root: str) -> None:
        """A real recording, its packets copied: AV1 at 480 x 640, as lerobot's own recorder encodes."""
        if not Path(root).exists():
            import_lerobot_v21(Path(source), Path(root))

    def lengths(self, root: str) -> list[int]:
        return self._opened(root).episode_length.tolist()

    def open(self, root: str) -> dict[str, float]:
        start, before = time.perf_counter(), private_bytes()
        dataset = Dataset.open(Path(root))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "episodes": dataset.num_episodes, "private_bytes": private_bytes() - before}

    def index_bytes(self, root: str) -> int:
        """What an open dataset keeps: every Python object and array, as tracemalloc counts them."""
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        dataset = Dataset.open(Path(root))
        kept = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert dataset.num_episodes
        return kept

    def prepare(self, root: str, cache: str, image_size: int, chunk: int, batch_size: int, frames: str) -> dict[str, float]:
        """The loader of a training run whose frames come from a store, or straight from the video; what preparing it took."""
        values = {"path": root, "image_size": image_size, "batch_size": batch_size, "frames": frames, "validation_fraction": 0}
        config = DataConfig.parse({**values, "window": {"frames": 1, "chunk": chunk}, "augmentation": OFF.to_dict()}, "benchmark")
        start = time.perf_counter()
        data = config.build(seed=0, device="cpu", executed_steps=1, cache_dir=Path(cache))
        seconds = time.perf_counter() - start
        assert isinstance(data.train, Loader)
        self.loader, self.dataset = data.train, data.dataset
        return {"seconds": seconds, "bytes": data.summary()["decoded_bytes"], "windows": len(data.train)}

    def numbers(self, root: str, cache: str, chunk: int, batch_size: int) -> None:
        """A loader of state and action chunks alone."""
        dataset = Dataset.open(Path(root))
        episodes = np.arange(dataset.num_episodes)
        columns = Columns.prepare(dataset, Path(cache))
        measured = measure([Part(columns, dataset.episode_start, episodes, dataset.hash)])
        tokenizer = TextTokenizer.train(dataset.tasks)
        contract = Contract(
            embodiment=dataset.embodiment,
            cameras=(),
            image_size=1,
            window=Window(frames=1, chunk=chunk),
            executed_steps=1,
            normalization="quantile",
            statistics_hash=fingerprint(measured),
            tokenizer_hash=tokenizer.hash,
            text_length=8,
            dataset_hash=dataset.hash,
        )
        encoder = ObservationEncoder(contract, measured, tokenizer)
        frames = Frames(FrameStore({}, dataset.num_frames, 1), contract, dataset.episode_start)
        windows = Windows(columns, frames, encoder, dataset.tasks)
        self.loader = Loader(windows, Selection(dataset.episode_start, episodes), seed=0, batch_size=batch_size)
        self.dataset = dataset

    def next(self, count: int) -> dict[str, float]:
        """The time of `count` batches."""
        start, samples = time.perf_counter(), 0
        for _ in range(count):
            samples += len(self.loader.next().key)
        return {"seconds": time.perf_counter() - start, "samples": samples}

    def sample(self, out: str) -> list[int]:
        """The next batch in raw units, to be compared; returns its rows."""
        assert self.dataset is not None
        batch, encoder = self.loader.next(), self.loader.windows.encoder
        assert batch.actions is not None
        assert batch.action_is_pad is not None
        arrays = {IMAGES + name: image.permute(0, 1, 3, 4, 2).numpy() for name, image in batch.images.items()}
        arrays["observation.state"] = encoder.state.unnormalize(batch.state.numpy())
        arrays["action"] = encoder.action.unnormalize(batch.actions.numpy())
        arrays["action_is_pad"] = batch.action_is_pad.numpy()
        np.savez(out, **arrays)
        return (self.dataset.episode_start[batch.episode.numpy()] + batch.frame.numpy()).tolist()

    def windows(self, root: str, windows: list[list[Any]], out: str | None) -> dict[str, float]:
        """Decode [episode, camera key, frame indices] windows from the mp4; pixels to `out` where that is wanted."""
        dataset = self._opened(root)
        jobs = [(episode, key.removeprefix(IMAGES), np.array(indices)) for episode, key, indices in windows]
        start, found = time.perf_counter(), []
        for episode, camera, indices in jobs:
            frames = dataset.frames(episode, camera, indices)
            if out:
                found.append(frames.transpose(0, 3, 1, 2))
        seconds = time.perf_counter() - start
        if out:
            np.savez(out, *found)
        return {"seconds": seconds, "samples": len(windows)}

    def statistics(self, root: str, out: str | None) -> dict[str, float]:
        """From the parquet files to mean, std, min, max and true quantiles of every numeric column."""
        dataset = Dataset.open(Path(root))
        names = [name for name, item in dataset.features.items() if item.is_numeric]
        start = time.perf_counter()
        found, waiting = {name: Accumulator(name) for name in names}, names
        while waiting:  # once, unless a column does not fit into memory
            for _, columns in dataset.chunks(waiting):
                for name in waiting:
                    found[name].add(columns[name])
            waiting = [name for name in waiting if found[name].advance()]
        result = {name: part.result() for name, part in found.items()}
        seconds = time.perf_counter() - start
        if out:
            np.savez(out, **{f"{name}/{key}": value for name, item in result.items() for key, value in item.items()})
        return {"seconds": seconds, "samples": dataset.num_frames}

    def _opened(self, root: str) -> Dataset:
        if self.dataset is None or self.dataset.root != Path(root):
            self.dataset = Dataset.open(Path(root))
        return self.dataset


if __name__ == "__main__":
    serve(Ours())
