"""An endless, resumable stream of batches. Order and augmentation are counted, so workers, restarts and batch sizes change nothing.

The stream's only memory is how many samples it has given; which window each is and what is drawn for it follows (`order.py`). An epoch's
remainder is filled up from the next epoch, so every batch is full and every window comes exactly once per epoch.

Nothing here grows with the number of frames. Workers only prepare pixels, which is what takes time: they hold paths and a few numbers per
episode, and send back one tensor per camera. Letters: b batch, t frames.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from deftly.data.augment import OFF, AugmentConfig, Colours, augment_colour, colour_maps
from deftly.data.mixup import mixup
from deftly.data.order import Ahead
from deftly.data.prefetch import Prefetch, is_core_free
from deftly.data.windows import Selection, Share, Windows
from deftly.randomness import sample_keys
from deftly.types import Batch, DataError, Stream

WATCH_EVERY_S = 10.0
WATCH_COST = 200  # looking at the files of a large dataset takes at most this share of the time: 1 / 200


class Made(NamedTuple):
    """A batch on the CPU, and what is still to be done to it on another device."""

    batch: Batch
    colours: dict[str, Colours] | None
    """None where it is as it will be given."""


class Loader(Stream):
    """Batches of windows on `device`.

    `next()` is the endless training stream: shuffled, augmented; of several processes each has a share of every batch. `batches()` is one
    finite pass in fixed order without augmentation, whose last batch may be smaller: what validation uses. The next batch is made in a
    thread while the one before is used (`prefetch.py`).
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
        share: Share | None = None,
        watch: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`selection` holds the windows to draw from, `share` which samples of each batch are given, all by default. `watch` tells what of
        the dataset has changed, if anything: `Dataset.changed`."""
        if not len(selection):
            raise DataError("there is no window to load: the episodes of this split are empty")
        self.windows, self.selection = windows, selection
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.augmentation, self.device = augmentation, torch.device(device)
        self.consumed = 0  # samples that were given
        self._watch, self._watch_next = watch, 0.0
        self.share = share or Share(batch_size, 0, batch_size)
        self.feed = windows.frames.feed(selection, seed, self.share, augmentation, workers)
        self._colours = Ahead(self.feed.order, self._draw_colours, _samples)
        self._prefetch = Prefetch(self.make, functools.partial(is_core_free, self.device))

    def __len__(self) -> int:
        """Windows per epoch."""
        return len(self.selection)

    @property
    def epoch(self) -> float:
        """How often the data has been seen."""
        return self.consumed / len(self.selection)

    def next(self) -> Batch:
        """The next full batch; raises `WorkerError` when a worker process died, `DataError` when the dataset is not what it was."""
        self.check_unchanged()
        batch = self.finish(self._prefetch.take(self.consumed, self.consumed + self.batch_size))
        self.count()
        return batch

    def make(self, start: int) -> Made:
        """This share of samples start .. start + batch_size - 1, as far as they can be made without the device; the stream stands where
        it stood."""
        start, count = start + self.share.first, self.share.count
        images = self.feed.images(start, count)
        index, key = self.feed.order.take(start, count)
        batch = self.windows.build(self.selection.rows(index), key, images, self.augmentation, reword=True)
        colours = self._colours.take(start, count)
        return Made(batch, colours) if self.device.type != "cpu" else Made(self._finished(batch, colours), None)

    def finish(self, made: Made) -> Batch:
        """The batch that was made, on the device."""
        return made.batch if made.colours is None else self._finished(self._transfer(made.batch), made.colours)

    def count(self) -> None:
        """The batch that was finished is given."""
        self.consumed += self.batch_size

    def batches(self) -> Iterator[Batch]:
        """Every window once, in the dataset's order, never augmented; does not move the stream. Of several processes each is given all."""
        return (samples.stretch(0, len(samples)) for samples in self.unmade())

    def unmade(self) -> Iterator[Unmade]:
        """`batches` that are not made yet, so that any stretch of each can be."""
        for start in range(0, len(self.selection), self.batch_size):
            yield Unmade(self, start, min(self.batch_size, len(self.selection) - start))

    def in_order(self, start: int, stop: int) -> Batch:
        """Windows start .. stop - 1 in the dataset's order, not augmented, on the device."""
        index = torch.arange(start, stop)
        key, rows = sample_keys(self.seed, torch.zeros_like(index), index), self.selection.rows(index.numpy())
        return self._transfer(self.windows.build(rows, key, self.windows.frames.read(rows, key, OFF)))

    def state(self) -> dict[str, Any]:
        return {"consumed": self.consumed, "windows": len(self.selection), "seed": self.seed, "order": self.feed.order.name}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after `consumed` samples; `DataError` when the state is of another stream (other windows or seed)."""
        for name, here in (("windows", len(self.selection)), ("seed", self.seed), ("order", self.feed.order.name)):
            if state.get(name) != here:
                raise DataError(
                    f"the saved stream has {name} {state.get(name)}, this one {here}: resume with the same data, split and seed"
                )
        consumed = state.get("consumed")
        if not isinstance(consumed, int) or consumed < 0:
            raise DataError(f"the saved stream's position is {consumed!r}, expected a whole number of samples")
        self.close()
        self.consumed = consumed

    def close(self) -> None:
        """Stop the thread and the worker processes; the stream can go on, and starts new ones."""
        self.feed.kill()  # the thread may wait for them
        self._prefetch.close()
        self.feed.close()

    def check_unchanged(self) -> None:
        """Ask `watch`, now and then: what is in the store stays the same, but a run on data that is being edited means nothing."""
        began = time.monotonic()
        if began < self._watch_next:
            return
        changed = self._watch()
        if changed is not None:  # guard: data.loader.changed
            raise DataError(f"{changed}; the dataset changed while it was trained on: put it back and resume, or begin a new run")
        self._watch_next = began + max(WATCH_EVERY_S, WATCH_COST * (time.monotonic() - began))

    def _draw_colours(self, key: Int64[Tensor, "m"]) -> dict[str, Colours]:
        names = self.windows.encoder.contract.recorded_cameras() if self.augmentation.changes_colour else ()
        return {name: colour_maps(key, name, self.augmentation) for name in names}

    def _finished(self, batch: Batch, colours: dict[str, Colours]) -> Batch:
        return mixup(augment_colour(batch, self.augmentation, colours), self.augmentation)

    def _transfer(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return batch.map(lambda tensor: tensor.pin_memory()).to(self.device)


@dataclass(frozen=True, slots=True)
class Unmade:
    """`count` windows of a pass from `start` on (`deftly.types.Samples`)."""

    loader: Loader
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def stretch(self, first: int, stop: int) -> Batch:
        return self.loader.in_order(self.start + first, self.start + stop)


def _samples(colours: dict[str, Colours], part: slice) -> dict[str, tuple[Tensor, Tensor]]:
    """A stretch of the samples that colours were drawn for."""
    return {name: (matrix[part], offset[part]) for name, (matrix, offset) in colours.items()}
