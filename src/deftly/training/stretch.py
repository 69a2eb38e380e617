"""Which stretch of a held-out batch this rank measures, and what it must know of the rest of the batch.

Each rank has a stretch of every batch, not every so many-th batch: all are done at the same time, take the memory of a training step, and
run the same passes one after the other, which sharded blocks (FSDP2) wait for. Where a batch has fewer samples than there are ranks, some
measure a sample of another one, which then counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deftly.training import distributed
from deftly.types import Batch, Samples


@dataclass(frozen=True)
class Stretch:
    """Samples `first` .. `first + count - 1` of `size`."""

    size: int
    first: int
    count: int

    @staticmethod
    def of(samples: Samples) -> Stretch:
        """This rank's: as long as any other rank's, or shorter by one."""
        size, rank, ranks = len(samples), distributed.rank(), distributed.world_size()
        first, stop = (size * at // ranks for at in (rank, rank + 1))
        return Stretch(size, first, stop - first)

    def take(self, samples: Samples) -> Batch:
        """The samples of this stretch; one without weight where it is empty."""
        batch = samples.stretch(self.first, self.first + max(self.count, 1))
        return batch if self.count else replace(batch, weight=torch.zeros_like(batch.weight))

    def whole(self, rows: Tensor) -> Tensor:
        """The rows [size ...] of all ranks, in the order of the batch, from those of each."""
        if not distributed.active():
            return rows
        every = torch.zeros((self.size, *rows.shape[1:]), dtype=torch.uint8 if rows.dtype == torch.bool else rows.dtype, device=rows.device)
        every[self.first : self.first + self.count] = rows[: self.count]
        return distributed.sum_over_ranks(every).to(rows.dtype)

    def own(self, rows: Tensor) -> Tensor:
        """Of the rows of the whole batch, those of the samples that `take` gives."""
        return rows[self.first : self.first + max(self.count, 1)]
