"""Images for training out of a store of decoded frames: any window at any time, so the order is a full shuffle."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from deftly.contract import Contract
from deftly.data.augment import AugmentConfig
from deftly.data.depth import DepthStore, moved_depth
from deftly.data.order import Ahead, Order
from deftly.data.store import FrameStore
from deftly.data.windows import Selection, Share, locate, maps_of, moved
from deftly.data.workers import Workers


class Frames:
    """The images of any windows, copied out of a store, and their depth."""

    def __init__(
        self, store: FrameStore, contract: Contract, episode_start: Int64[np.ndarray, "e1"], depth: DepthStore | None = None
    ) -> None:
        """`depth` where the contract has any."""
        self.store, self.contract, self.episode_start, self.depth = store, contract, episode_start, depth

    @property
    def num_bytes(self) -> int:
        """Decoded frames on disk."""
        return self.store.num_bytes + (self.depth.num_bytes if self.depth else 0)

    def read(
        self,
        rows: Int64[np.ndarray, "b"],
        key: Int64[Tensor, "b"],
        augmentation: AugmentConfig,
        maps: Float32[np.ndarray, "cameras b 2 3"] | None = None,
    ) -> dict[str, Tensor]:
        """What `FrameSource.read` gives, moved as the augmentation says, or as `maps`, which it drew."""
        seen = locate(self.episode_start, rows, self.contract.window)[1].observation
        maps = maps_of(key, augmentation, self.contract) if maps is None else maps
        images = moved(self.store.frames, seen, key, augmentation, self.contract, maps)
        if self.depth is not None:
            images |= moved_depth(self.depth.frames, seen, key, augmentation.mirror, self.contract, maps)
        return images

    def feed(self, selection: Selection, seed: int, share: Share, augmentation: AugmentConfig, workers: int) -> StoreFeed:
        return StoreFeed(OrderedFrames(self, selection, Order(len(selection), seed), share.count, augmentation), share.batch, workers)


class OrderedFrames:
    """Stream position -> the images of the `count` samples from there: what a worker process runs."""

    def __init__(self, frames: Frames, selection: Selection, order: Order, count: int, augmentation: AugmentConfig) -> None:
        self.frames, self.selection, self.order = frames, selection, order
        self.count, self.augmentation = count, augmentation
        self.maps = Ahead(order, functools.partial(maps_of, augmentation=augmentation, contract=frames.contract), _samples)

    def __getitem__(self, job: int) -> dict[str, Tensor]:
        index, key = self.order.take(job, self.count)
        maps = self.maps.take(job, self.count)
        return self.frames.read(self.selection.rows(index), key, self.augmentation, maps)


def _samples(maps: Float32[np.ndarray, "cameras m 2 3"], part: slice) -> Float32[np.ndarray, "cameras b 2 3"]:
    return maps[:, part]


class StoreFeed:
    """Batch after batch, whose first samples are `step` apart."""

    def __init__(self, source: OrderedFrames, step: int, workers: int) -> None:
        self.source, self.order, self.step, self.workers = source, source.order, step, workers
        self._processes: Workers | None = None
        self.close()

    def images(self, start: int, count: int) -> dict[str, Tensor]:
        """Camera -> uint8 [count t h w 3] of samples start .. start + count - 1; fast where one batch follows the other."""
        if start != self._at:
            self.close()
        self._at = -1  # until it is done: an interrupt may leave the processes anywhere
        if self._processes is None:
            self._processes = Workers(self.source, start, self.step, self.workers)
        images = self._processes.next()
        self._at = start + self.step
        return images

    def kill(self) -> None:
        """End the processes, from any thread: `images` need not wait for them any longer."""
        if self._processes is not None:
            self._processes.kill()

    def close(self) -> None:
        """Stop the processes; the next batch may be anywhere."""
        self.kill()
        self._at = -1  # the sample that is asked for next
        self._processes = None
