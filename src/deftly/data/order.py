"""In which order an endless stream shows its windows: a function of (seed, epoch), never of what was remembered.

Sample number p belongs to epoch p // n at position p % n and has the key hash(seed, epoch, position). Every epoch holds every window once.

`Order` is a permutation of all windows: for frames that lie in memory. `BlockOrder` is for frames that must be decoded: episodes are cut
into pieces, the pieces are shuffled, and the windows of some hundred pieces are shuffled together, so that each frame is decoded once per
epoch, forward, and a bounded number of them waits in memory.

```
pieces of the episodes     a1 a2 a3 | b1 b2 | c1 c2 c3
shuffled, cut into blocks  b1 c3 a2 c1 | a1 a3 b2 c2          inside of a block: in the order of the dataset, which is that of the files
windows of a block         any order
```
Letters: n windows, m samples asked for, p pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from deftly.data.windows import Selection, WindowOrder
from deftly.randomness import permute, sample_keys, seed_of

CHUNK = 4096  # samples whose order is computed at once: the permutation is many small vector operations
KEPT = 4  # chunks: what is drawn ahead reads the next one, and the batch still this one
DRAWN_AT_ONCE = 512  # samples
PIECE = 32  # windows: shorter pieces mix better, longer ones seek less

Drawn = TypeVar("Drawn")


class Order:
    """Every window is as likely at every place."""

    name = "shuffled"

    def __init__(self, num_windows: int, seed: int) -> None:
        self.num_windows, self.seed = num_windows, seed
        self._chunks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def take(self, start: int, count: int) -> tuple[Int64[np.ndarray, "m"], Int64[Tensor, "m"]]:
        """(window, key) of samples start .. start + count - 1."""
        parts = []
        while count > 0:
            epoch, position = divmod(start, self.num_windows)
            chunk, offset = divmod(position, CHUNK)
            if (epoch, chunk) not in self._chunks:
                while len(self._chunks) >= KEPT:
                    del self._chunks[next(iter(self._chunks))]
                self._chunks[epoch, chunk] = self._compute(epoch, chunk)
            windows, keys = self._chunks[epoch, chunk]
            taken = slice(offset, offset + count)
            parts.append((windows[taken], keys[taken]))
            start, count = start + len(parts[-1][0]), count - len(parts[-1][0])
        return torch.cat([index for index, _ in parts]).numpy(), torch.cat([key for _, key in parts])

    def _compute(self, epoch: int, chunk: int) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
        position = torch.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, self.num_windows))
        key = sample_keys(self.seed, torch.full_like(position, epoch), position)
        return permute(position, self.num_windows, self.seed, epoch), key


class Ahead(Generic[Drawn]):
    """What is drawn for samples in a row, made for many at once: a draw is many small vector operations, whatever the number of samples."""

    def __init__(self, order: WindowOrder, draw: Callable[[Int64[Tensor, "m"]], Drawn], cut: Callable[[Drawn, slice], Drawn]) -> None:
        """`draw` makes it from keys, `cut` takes a stretch of samples out of it."""
        self.order, self.draw, self.cut = order, draw, cut
        self._drawn: tuple[int, int, Drawn] | None = None  # of samples from the first number to the second, exclusive

    def take(self, start: int, count: int) -> Drawn:
        """What `draw` gives for samples start .. start + count - 1."""
        if self._drawn is None or start < self._drawn[0] or start + count > self._drawn[1]:
            end = start + max(count, DRAWN_AT_ONCE)
            self._drawn = start, end, self.draw(self.order.take(start, end - start)[1])  # at once: an interrupt leaves no half of it
        begin, _, drawn = self._drawn
        return self.cut(drawn, slice(start - begin, start - begin + count))


class Pieces(NamedTuple):
    """The pieces of an epoch in the order in which they are decoded, and the blocks that they form."""

    first: Int64[np.ndarray, "p"]  # window of each
    begin: Int64[np.ndarray, "p1"]  # position in the epoch at which each begins; the last entry is n
    block: Int64[np.ndarray, "k1"]  # the piece with which each block begins; the last entry is p


class Part(NamedTuple):
    """Consecutive samples of one block."""

    epoch: int
    block: int
    piece: Int64[np.ndarray, "m"]  # number, in the epoch, of the piece that holds each
    window: Int64[np.ndarray, "m"]
    key: Int64[Tensor, "m"]


class BlockOrder:
    """Windows whose pieces are decoded together are shuffled together. Some 16 bytes per piece, nothing per window."""

    def __init__(self, selection: Selection, seed: int, block: int, piece: int = PIECE) -> None:
        """`block` is how many windows are shuffled together, about: blocks of an epoch differ by a piece."""
        self.selection, self.seed, self.num_windows = selection, seed, len(selection)
        piece = min(piece, block)
        self.name = f"blocks of {block} in pieces of {piece}"
        self.num_blocks = max(1, self.num_windows // block)
        length = np.diff(selection.window_end, prepend=0)
        self._piece_end = np.cumsum(-(-length // piece))  # of each episode
        self.num_pieces = int(self._piece_end[-1])
        self._layouts: dict[int, Pieces] = {}
        self._part = Part(-1, -1, np.zeros(0, np.int64), np.zeros(0, np.int64), torch.zeros(0, dtype=torch.int64))

    def take(self, start: int, count: int) -> tuple[Int64[np.ndarray, "m"], Int64[Tensor, "m"]]:
        """(window, key) of samples start .. start + count - 1."""
        parts = self.parts(start, count)
        return np.concatenate([part.window for part in parts]), torch.cat([part.key for part in parts])

    def parts(self, start: int, count: int) -> list[Part]:
        """Samples start .. start + count - 1, block by block."""
        parts = []
        while count > 0:
            epoch, position = divmod(start, self.num_windows)
            pieces = self.pieces(epoch)
            block = int(np.searchsorted(pieces.begin[pieces.block], position, side="right")) - 1
            if (epoch, block) != (self._part.epoch, self._part.block):
                self._shuffle(epoch, block)
            offset = position - int(pieces.begin[pieces.block[block]])
            whole, taken = self._part, slice(offset, offset + count)
            parts.append(Part(epoch, block, whole.piece[taken], whole.window[taken], whole.key[taken]))
            start, count = start + len(parts[-1].window), count - len(parts[-1].window)
        return parts

    def pieces(self, epoch: int) -> Pieces:
        """The layout of an epoch."""
        if epoch not in self._layouts:  # the one that ends and the one that begins are wanted in turns
            self._layouts = {at: kept for at, kept in self._layouts.items() if at == epoch - 1}
            self._layouts[epoch] = self._lay_out(epoch)
        return self._layouts[epoch]

    def _lay_out(self, epoch: int) -> Pieces:
        number = permute(torch.arange(self.num_pieces), self.num_pieces, seed_of("pieces", self.seed), epoch).numpy()
        place = np.searchsorted(self._piece_end, number, side="right")  # the selection's episode
        length = np.diff(self.selection.window_end, prepend=0)
        count = np.diff(self._piece_end, prepend=0)[place]
        nth, end = number - self._piece_end[place] + count, self.selection.window_end[place]
        first, last = (end - length[place] + (nth + i) * length[place] // count for i in (0, 1))
        size = last - first
        block = (np.cumsum(size) - size) * self.num_blocks // self.num_windows
        forward = np.lexsort((first, block))
        begin = np.concatenate([[0], np.cumsum(size[forward])])
        return Pieces(first[forward], begin, np.searchsorted(block[forward], np.arange(self.num_blocks + 1)))

    def _shuffle(self, epoch: int, block: int) -> None:
        pieces = self.pieces(epoch)
        begin, end = (int(pieces.begin[at]) for at in pieces.block[block : block + 2])
        position = torch.arange(begin, end)
        drawn = begin + permute(position - begin, end - begin, seed_of("block", self.seed, epoch), block).numpy()
        piece = np.searchsorted(pieces.begin, drawn, side="right") - 1
        window = pieces.first[piece] + drawn - pieces.begin[piece]
        self._part = Part(epoch, block, piece, window, sample_keys(self.seed, torch.full_like(position, epoch), position))
