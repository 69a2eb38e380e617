"""How many samples a device can take at a time: the largest micro-batch that fits is found before the first step, and halved when it no
longer does. The batch that a step trains on stays what the user asked for; only into how many parts it is cut changes.

The parts of a batch sum to the same gradient up to rounding, but not to the same bits, so their number is in checkpoints. It never
falls again: what failed once would fail again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

GIB = 2**30


class Fit(NamedTuple):
    """What a micro-batch takes on a device that tells."""

    peak: int
    """Bytes at the fullest moment of forward and backward, with what the optimizer will add."""
    available: int
    """Bytes that this process could have."""


class Tried(NamedTuple):
    """What came of one trial."""

    fits: bool
    fit: Fit | None


REFUSALS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
NO_ENGINE = "unable to find an engine"  # what is left of the error where cuDNN had no memory for any of its algorithms (Conv_v8.cpp)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device refused memory. Only torch's own allocator on CUDA has an error of its own for that; the CPU's, the driver and
    cuBLAS say so in a plain RuntimeError, and cuDNN does not say so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(words in text for words in REFUSALS) or (NO_ENGINE in text and _has_refused())


def _has_refused() -> bool:
    """Whether CUDA's allocator ever did: without that, cuDNN found no engine for another reason."""
    return torch.cuda.is_available() and torch.cuda.memory_stats().get("num_ooms", 0) > 0


def parts_of(batch_size: int, least: int) -> list[int]:
    """Into how many equal parts of at least one sample a batch can be cut, `least` of them or more; ascending."""
    return [count for count in range(least, batch_size + 1) if batch_size % count == 0]


def attempt(work: Callable[[], object], device: torch.device, still_to_come: int, share: float) -> Tried:
    """Do `work` and see whether it fits: `still_to_come` bytes more must, within `share` of what this process could have.

    A device that does not tell (the CPU) fits unless its allocator refuses.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Tried(False, None)
    if not cuda:
        return Tried(True, None)
    torch.cuda.synchronize(device)
    free, _ = torch.cuda.mem_get_info(device)
    # Reserved, not allocated: blocks that the allocator cannot join are lost to everybody.
    fit = Fit(torch.cuda.max_memory_reserved(device) + still_to_come, free + torch.cuda.memory_reserved(device))
    return Tried(fit.peak <= share * fit.available, fit)


def describe(share: int, parts: int, fit: Fit | None, ranks: int = 1) -> str:
    """The plan, for the reader; each of the ranks has `share` samples of a batch."""
    on_each = f" on each of {ranks} processes" if ranks > 1 else ""
    text = f"memory: {share // parts} samples at a time{on_each}, {parts} times, make the batch of {share * ranks}"
    return text if fit is None else f"{text}; a step takes {fit.peak / GIB:.1f} of {fit.available / GIB:.1f} GiB"
