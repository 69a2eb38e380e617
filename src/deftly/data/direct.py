"""Training straight from video, where there is no room for a store of decoded frames.

`VideoFrames` decodes the frames of whichever windows are asked for. `BlockFeed` gives an endless stream its images: it decodes piece after
piece (`order.BlockOrder`), each frame once per epoch and forward, and keeps the frames of the block that is being served and of as much of
the next one as has been served of this one, so that decoding is spread evenly over the steps.

Letters: b batch, t frames, m frames decoded, s side of a frame.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from deftly.contract import Contract
from deftly.data.augment import AugmentConfig
from deftly.data.dataset import Dataset
from deftly.data.order import BlockOrder
from deftly.data.store import decode_into
from deftly.data.windows import Selection, Share, episode_of, locate, moved
from deftly.data.workers import Workers


class VideoFrames:
    """The images of any windows, decoded when they are asked for."""

    num_bytes = 0  # decoded frames on disk

    def __init__(self, dataset: Dataset, contract: Contract, shuffled_together: int) -> None:
        """The windows that a feed shuffles together have their frames in memory at once."""
        self.dataset, self.contract, self.episode_start = dataset, contract, dataset.episode_start
        self.shuffled_together = shuffled_together

    def read(self, rows: Int64[np.ndarray, "b"], key: Int64[Tensor, "b"], augmentation: AugmentConfig) -> dict[str, Tensor]:
        """Camera -> uint8 [b t h w 3] at the policy's size, moved as the augmentation says. A frame that several windows share is decoded
        once."""
        seen = locate(self.episode_start, rows, self.contract.window)[1].observation
        wanted, places = np.unique(seen, return_inverse=True)
        return moved(self.decode(wanted), places.reshape(seen.shape), key, augmentation, self.contract)

    def feed(self, selection: Selection, seed: int, share: Share, augmentation: AugmentConfig, workers: int) -> BlockFeed:
        return BlockFeed(self, BlockOrder(selection, seed, self.shuffled_together), share.batch, augmentation, workers)

    def decode(self, rows: Int64[np.ndarray, "m"]) -> dict[str, UInt8[np.ndarray, "m s s 3"]]:
        """Frames at the size that is stored, for rows in rising order."""
        size = self.contract.frame_size
        episode = episode_of(self.episode_start, rows)
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(episode)) + 1)
        found = {}
        for camera in cameras_of(self.contract):
            found[camera] = np.empty((len(rows), size, size, 3), np.uint8)
            for run in runs:
                number = int(episode[run[0]])
                indices = rows[run] - self.episode_start[number]
                decode_into(self.dataset, camera, number, indices, found[camera][run[0] : run[-1] + 1])
        return found


def cameras_of(contract: Contract) -> list[str]:
    """The recorded cameras that the policy looks at."""
    return sorted(set(contract.recorded_cameras().values()))


class DecodedPieces:
    """Number of a piece, counted over all epochs -> its frames: what a worker process runs."""

    def __init__(self, frames: VideoFrames, order: BlockOrder) -> None:
        self.frames, self.order = frames, order

    def __getitem__(self, job: int) -> dict[str, Tensor]:
        epoch, piece = divmod(job, self.order.num_pieces)
        first, count = self.rows(epoch, np.asarray([piece]))
        found = self.frames.decode(np.arange(first[0], first[0] + count[0]))
        return {camera: torch.from_numpy(frames) for camera, frames in found.items()}

    def rows(self, epoch: int, piece: Int64[np.ndarray, "p"]) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"]]:
        """(first row, number of rows) that the windows of some pieces look at: the frames before the first window belong to it."""
        pieces = self.order.pieces(epoch)
        now = self.order.selection.rows(pieces.first[piece])
        start = self.frames.episode_start[episode_of(self.frames.episode_start, now)]
        first = np.maximum(start, now - self.frames.contract.window.frames + 1)
        return first, now - first + pieces.begin[piece + 1] - pieces.begin[piece]


class Block:
    """The frames of a block's pieces, one piece after the other."""

    def __init__(self, source: DecodedPieces, epoch: int, block: int) -> None:
        pieces, contract = source.order.pieces(epoch), source.frames.contract
        self.begin = int(pieces.block[block])
        self.first, count = source.rows(epoch, np.arange(self.begin, int(pieces.block[block + 1])))
        self.slot = np.concatenate([[0], np.cumsum(count)])
        shape = (int(self.slot[-1]), contract.frame_size, contract.frame_size, 3)
        self.frames = {camera: np.empty(shape, np.uint8) for camera in cameras_of(contract)}

    def fill(self, piece: int, frames: dict[str, Tensor]) -> None:
        """Keep a copy of a piece's frames; `piece` is its number in the epoch."""
        at = piece - self.begin
        for camera, decoded in frames.items():
            self.frames[camera][self.slot[at] : self.slot[at + 1]] = decoded.numpy()

    def places(self, piece: Int64[np.ndarray, "b"], rows: Int64[np.ndarray, "b t"]) -> Int64[np.ndarray, "b t"]:
        """Where in `frames` the rows of windows of some pieces are."""
        at = piece - self.begin
        return rows - self.first[at][:, None] + self.slot[at][:, None]


class BlockFeed:
    """The images of a `BlockOrder`'s batches, whose first samples are `step` apart. Whoever asks for a share of each decodes all of them:
    what is shuffled together must be in memory together."""

    def __init__(self, frames: VideoFrames, order: BlockOrder, step: int, augmentation: AugmentConfig, workers: int) -> None:
        self.frames, self.order, self.step, self.augmentation, self.workers = frames, order, step, augmentation, workers
        self.source = DecodedPieces(frames, order)
        self._processes: Workers | None = None
        self.close()

    def images(self, start: int, count: int) -> dict[str, Tensor]:
        """Camera -> uint8 [count t h w 3] of samples start .. start + count - 1; fast where one batch follows the other."""
        if start != self._at:
            self.close()
        self._at = -1  # until it is done: an interrupt may leave the processes anywhere
        contract, found = self.frames.contract, []
        for part in self.order.parts(start, count):
            block = self._need(part.epoch, part.block)
            rows = self.order.selection.rows(part.window)
            seen = locate(self.frames.episode_start, rows, contract.window)[1].observation
            found.append(moved(block.frames, block.places(part.piece, seen), part.key, self.augmentation, contract))
        self._prepare_next(start + self.step)
        self._at = start + self.step
        return {camera: torch.cat([images[camera] for images in found]) for camera in found[0]}

    def kill(self) -> None:
        """End the processes, from any thread: `images` need not wait for them any longer."""
        if self._processes is not None:
            self._processes.kill()

    def close(self) -> None:
        """Stop the processes and forget what is decoded; `images` goes on from anywhere."""
        self.kill()
        self._at = -1  # the sample that is asked for next
        self._processes = None
        self._decoded = 0  # pieces, counted over all epochs
        self._blocks: dict[tuple[int, int], Block] = {}

    def _need(self, epoch: int, block: int) -> Block:
        """A block with all its frames; earlier ones are let go."""
        begin, end = (epoch * self.order.num_pieces + int(piece) for piece in self.order.pieces(epoch).block[block : block + 2])
        if self._processes is None:
            self._processes = Workers(self.source, begin, 1, self.workers)
            self._decoded = begin
        self._blocks = {at: kept for at, kept in self._blocks.items() if at >= (epoch, block)}
        while self._decoded < end:
            self._decode_one()
        return self._blocks[epoch, block]

    def _prepare_next(self, sample: int) -> None:
        """Decode as much of the block after the one that holds `sample` as lies before `sample` in its own."""
        epoch, position = divmod(sample, self.order.num_windows)
        pieces = self.order.pieces(epoch)
        begins = pieces.begin[pieces.block]
        block = int(np.searchsorted(begins, position, side="right")) - 1
        share = (position - begins[block]) / (begins[block + 1] - begins[block])
        end, following = epoch * self.order.num_pieces + int(pieces.block[block + 1]), block + 1
        if following == self.order.num_blocks:
            pieces, following = self.order.pieces(epoch + 1), 0
        wanted = end + math.floor(share * (pieces.block[following + 1] - pieces.block[following]))
        while self._decoded < wanted:
            self._decode_one()

    def _decode_one(self) -> None:
        assert self._processes is not None
        epoch, piece = divmod(self._decoded, self.order.num_pieces)
        block = int(np.searchsorted(self.order.pieces(epoch).block, piece, side="right")) - 1
        if (epoch, block) not in self._blocks:
            self._blocks[epoch, block] = Block(self.source, epoch, block)
        self._blocks[epoch, block].fill(piece, self._processes.next())
        self._decoded += 1
