"""An endless, resumable stream of batches. Order and augmentation are counted, so workers, restarts and batch sizes change nothing.

The stream's only memory is how many samples it has given. Sample number p belongs to epoch p // n at position p % n, stands for window
permute(position; seed, epoch), and has the key hash(seed, epoch, position). An epoch's remainder is filled up from the next epoch, so every
batch is full and every window comes exactly once per epoch.

Nothing here grows with the number of frames. Workers only copy frames out of the memory-mapped store, which is what takes time: they hold
paths and a few numbers per episode, and send back one tensor per camera. Letters: b batch, t frames, e1 episodes + 1.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from deftly.data.augment import OFF, AugmentConfig, augment_colour
from deftly.data.windows import Frames, Selection, Windows, check_mirror
from deftly.randomness import permute, sample_keys
from deftly.types import Batch, DataError, Stream

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


class OrderedFrames(TorchDataset):
    """Stream position -> the images of that batch: what a worker process runs."""

    def __init__(self, frames: Frames, selection: Selection, seed: int, batch_size: int, augmentation: AugmentConfig) -> None:
        self.frames, self.selection, self.batch_size, self.augmentation = frames, selection, batch_size, augmentation
        self.order = Order(len(selection), seed)

    def take(self, start: int) -> tuple[Int64[np.ndarray, "b"], Int64[Tensor, "b"]]:
        """(rows, keys) of the batch at a position."""
        index, key = self.order.take(start, self.batch_size)
        return self.selection.rows(index.numpy()), key

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
        selection: Selection,
        *,
        seed: int,
        batch_size: int,
        workers: int = 0,
        augmentation: AugmentConfig = OFF,
        device: torch.device | str = "cpu",
    ) -> None:
        """`selection` holds the windows to draw from."""
        if not len(selection):
            raise DataError("there is no window to load: the episodes of this split are empty")
        check_mirror(augmentation, windows.encoder.contract)
        self.windows, self.selection = windows, selection
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.augmentation, self.device = augmentation, torch.device(device)
        self._source = OrderedFrames(windows.frames, selection, seed, batch_size, augmentation)
        self._consumed = 0
        self._workers: Iterator[dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        """Windows per epoch."""
        return len(self.selection)

    @property
    def epoch(self) -> float:
        """How often the data has been seen."""
        return self._consumed / len(self.selection)

    def next(self) -> Batch:
        """The next full batch; raises `WorkerError` when a worker process died."""
        images = self._from_worker() if self.workers else self._source[self._consumed]
        batch = self.windows.build(*self._source.take(self._consumed), images, self.augmentation, reword=True)
        self._consumed += self.batch_size
        return augment_colour(self._transfer(batch), self.augmentation)

    def batches(self) -> Iterator[Batch]:
        """Every window once, in the dataset's order, never augmented; does not move the stream."""
        for start in range(0, len(self.selection), self.batch_size):
            index = torch.arange(start, min(start + self.batch_size, len(self.selection)))
            key, rows = sample_keys(self.seed, torch.zeros_like(index), index), self.selection.rows(index.numpy())
            yield self._transfer(self.windows.build(rows, key, self.windows.frames.read(rows, key, OFF)))

    def state(self) -> dict[str, Any]:
        return {"consumed": self._consumed, "windows": len(self.selection), "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after `consumed` samples; `DataError` when the state is of another stream (other windows or seed)."""
        for name, here in (("windows", len(self.selection)), ("seed", self.seed)):
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
