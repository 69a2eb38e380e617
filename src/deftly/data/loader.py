"""An endless, resumable stream of batches. Order and augmentation are counted, so workers, restarts and batch sizes change nothing.

The stream's only memory is how many samples it has given. Sample number p belongs to epoch p // n at position p % n, stands for window
permute(position; seed, epoch), and has the key hash(seed, epoch, position). An epoch's remainder is filled up from the next epoch, so every
batch is full and every window comes exactly once per epoch.

Workers only copy frames out of the memory-mapped store, which is what takes time: they hold paths and two shared tensors, and send back one
tensor per camera. Nothing large is pickled. Letters: b batch, t frames, n windows, e episodes.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from deftly.contract import Contract
from deftly.data.augment import OFF, AugmentConfig, augment_colour, draw_shifts
from deftly.data.encoding import Gathered, ObservationEncoder
from deftly.data.store import FrameStore
from deftly.data.windows import WindowRows, episode_of, window_rows
from deftly.randomness import permute, sample_keys
from deftly.types import Batch, DataError, Stream, Tokens

BLOCK = 4096  # samples whose order is computed at once: the permutation is many small vector operations


class WorkerError(RuntimeError):
    """A data worker died. One line with the likely cause."""


class Order:
    """Which window the sample number p of the stream is, and its key."""

    def __init__(self, num_windows: int, seed: int) -> None:
        self.num_windows, self.seed = num_windows, seed
        self._block = (-1, -1)
        self._index = self._key = torch.zeros(0, dtype=torch.int64)

    def take(self, start: int, count: int) -> tuple[Int64[Tensor, "count"], Int64[Tensor, "count"]]:
        """(window index, key) of samples start .. start + count - 1."""
        parts = []
        while count > 0:
            epoch, position = divmod(start, self.num_windows)
            block, offset = divmod(position, BLOCK)
            if (epoch, block) != self._block:
                self._compute(epoch, block)
            taken = slice(offset, offset + count)
            parts.append((self._index[taken], self._key[taken]))
            start, count = start + len(parts[-1][0]), count - len(parts[-1][0])
        return torch.cat([index for index, _ in parts]), torch.cat([key for _, key in parts])

    def _compute(self, epoch: int, block: int) -> None:
        position = torch.arange(block * BLOCK, min((block + 1) * BLOCK, self.num_windows))
        self._index = permute(position, self.num_windows, self.seed, epoch)
        self._key = sample_keys(self.seed, torch.full_like(position, epoch), position)
        self._block = epoch, block


class Frames:
    """Where the images of a window come from: the store, and the geometry of the augmentation."""

    def __init__(self, store: FrameStore, contract: Contract, episode_start: Int64[Tensor, "e1"]) -> None:
        self.store, self.contract, self.episode_start = store, contract, episode_start

    def locate(self, rows: Int64[np.ndarray, "b"]) -> tuple[Int64[np.ndarray, "b"], Int64[np.ndarray, "b"], WindowRows]:
        """(episode, its first row, the rows of each window) of the windows whose current frames are `rows`."""
        start = self.episode_start.numpy()
        episode = episode_of(start, rows)
        return episode, start[episode], window_rows(rows, start[episode], start[episode + 1], self.contract.window)

    def read(self, rows: Int64[np.ndarray, "b"], key: Int64[Tensor, "b"], augmentation: AugmentConfig) -> dict[str, Tensor]:
        """Camera -> uint8 [b t h w 3], shifted as the augmentation says."""
        seen = self.locate(rows)[2].observation
        cameras, pixels = self.contract.cameras, augmentation.shift_pixels
        shifts = draw_shifts(key, len(cameras), pixels) if pixels else [None] * len(cameras)
        images = {}
        for name, shift in zip(cameras, shifts, strict=True):
            is_moved = augmentation.geometry_on_wrist or self.contract.embodiment.camera(name).role != "wrist"
            images[name] = torch.from_numpy(self.store.gather(name, seen, shift if is_moved else None))
        return images


@dataclass(kw_only=True)
class Columns:
    """A dataset's numbers as the policy sees them."""

    state: Float[np.ndarray, "n s"]  # normalised
    action: Float[np.ndarray, "n a"]  # normalised
    task: Int64[np.ndarray, "n"]
    text: Tokens  # of every task: [tasks l]


class Windows:
    """Row numbers to batches on the CPU: everything but colour."""

    def __init__(self, columns: Columns, frames: Frames, encoder: ObservationEncoder) -> None:
        self.columns, self.frames, self.encoder = columns, frames, encoder

    def build(self, rows: Int64[np.ndarray, "b"], key: Int64[Tensor, "b"], images: dict[str, Tensor]) -> Batch:
        """The windows whose current frames are `rows`, with the images that `frames.read` gave for them."""
        columns = self.columns
        episode, first, at = self.frames.locate(rows)
        task = columns.task[rows]
        gathered = Gathered(
            images={name: image.numpy() for name, image in images.items()},
            state=columns.state[at.observation],
            observation_is_pad=at.observation_is_pad,
            past_actions=columns.action[at.past_action],
            past_action_is_pad=at.past_action_is_pad,
            text=Tokens(ids=columns.text.ids[task], is_pad=columns.text.is_pad[task]),
            key=key,
            task=task,
            episode=episode,
            frame=rows - first,
            actions=columns.action[at.action],
            action_is_pad=at.action_is_pad,
        )
        return self.encoder.collate(gathered)


class OrderedFrames(TorchDataset):
    """Stream position -> the images of that batch: what a worker process runs."""

    def __init__(self, frames: Frames, rows: Int64[Tensor, "n"], seed: int, batch_size: int, augmentation: AugmentConfig) -> None:
        self.frames, self.rows, self.batch_size, self.augmentation = frames, rows, batch_size, augmentation
        self.order = Order(len(rows), seed)

    def take(self, start: int) -> tuple[Int64[np.ndarray, "b"], Int64[Tensor, "b"]]:
        """(rows, keys) of the batch at a position."""
        index, key = self.order.take(start, self.batch_size)
        return self.rows.numpy()[index.numpy()], key

    def __getitem__(self, start: int) -> dict[str, Tensor]:
        return self.frames.read(*self.take(start), self.augmentation)


class Loader(Stream):
    """Batches of windows on `device`.

    `next()` is the endless training stream: shuffled, augmented. `batches()` is one finite pass in fixed order without augmentation, whose
    last batch may be smaller: what validation uses.
    """

    def __init__(
        self,
        windows: Windows,
        rows: Int64[np.ndarray, "n"],
        *,
        seed: int,
        batch_size: int,
        workers: int = 0,
        augmentation: AugmentConfig = OFF,
        device: torch.device | str = "cpu",
    ) -> None:
        """`rows` are the current frames of the windows to draw from."""
        if not len(rows):
            raise DataError("there is no window to load: the episodes of this split are empty")
        self.windows, self.rows = windows, torch.from_numpy(rows.astype(np.int64))
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.augmentation, self.device = augmentation, torch.device(device)
        self._source = OrderedFrames(windows.frames, self.rows, seed, batch_size, augmentation)
        self._consumed = 0
        self._workers: Iterator[dict[str, Tensor]] | None = None
        if workers:  # shared tensors travel by reference
            windows.frames.episode_start.share_memory_()
            self.rows.share_memory_()

    def __len__(self) -> int:
        """Windows per epoch."""
        return len(self.rows)

    @property
    def epoch(self) -> float:
        """How often the data has been seen."""
        return self._consumed / len(self.rows)

    def next(self) -> Batch:
        """The next full batch; raises `WorkerError` when a worker process died."""
        images = self._from_worker() if self.workers else self._source[self._consumed]
        batch = self.windows.build(*self._source.take(self._consumed), images)
        self._consumed += self.batch_size
        return augment_colour(self._transfer(batch), self.augmentation)

    def batches(self) -> Iterator[Batch]:
        """Every window once, in the dataset's order, never augmented; does not move the stream."""
        key = sample_keys(self.seed, torch.zeros_like(self.rows), torch.arange(len(self.rows)))
        for start in range(0, len(self.rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            rows = self.rows[part].numpy()
            yield self._transfer(self.windows.build(rows, key[part], self.windows.frames.read(rows, key[part], OFF)))

    def state(self) -> dict[str, Any]:
        return {"consumed": self._consumed, "windows": len(self.rows), "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after `consumed` samples; `DataError` when the state is of another stream (other windows or seed)."""
        for name, here in (("windows", len(self.rows)), ("seed", self.seed)):
            if state.get(name) != here:
                raise DataError(
                    f"the saved stream has {name} {state.get(name)}, this one {here}: resume with the same data, split and seed"
                )
        consumed = state.get("consumed")
        if not isinstance(consumed, int) or consumed < 0:
            raise DataError(f"the saved stream's position is {consumed!r}, expected a whole number of samples")
        self._consumed = consumed
        self._workers = None

    def close(self) -> None:
        """Stop the worker processes; the stream can go on, and starts new ones."""
        self._workers = None

    def _transfer(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return batch.map(lambda tensor: tensor.pin_memory()).to(self.device)

    def _from_worker(self) -> dict[str, Tensor]:
        if self._workers is None:
            self._workers = self._start()
        try:
            return next(self._workers)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while it was handing a batch over
            if str(error).startswith("Caught "):  # raised in the worker, which is well
                raise
            self._workers = None
            what = f"a data worker process died ({' '.join(str(error).split()) or type(error).__name__})"
            raise WorkerError(f"{what}; most often memory ran out: lower `workers` or `batch_size`, then resume") from None

    def _start(self) -> Iterator[dict[str, Tensor]]:
        """Worker processes from the current position on. The generator keeps torch from drawing their seeds from the global one."""
        loader = DataLoader(
            self._source,
            batch_size=None,
            sampler=Positions(self._consumed, self.batch_size),
            num_workers=self.workers,
            collate_fn=_same,
            generator=torch.Generator(),
        )
        with _own_child_handler():
            return iter(loader)


class Positions:
    """Where batches start: start, start + step, ... for ever."""

    def __init__(self, start: int, step: int) -> None:
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start, self.step)


def _same(batch: Any) -> Any:
    return batch


class _own_child_handler:
    """Keeps the process's own SIGCHLD handler: torch installs one that raises wherever the main thread happens to be, in the middle of an
    optimizer step say. Without it a dead worker still shows, within 5 s, where its batch is waited for."""

    def __enter__(self) -> None:
        self.before = signal.getsignal(signal.SIGCHLD)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread() and self.before is not None:
            signal.signal(signal.SIGCHLD, self.before)
