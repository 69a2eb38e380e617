"""What work computes, and what a device reaches: floating-point operations, a multiplication and an addition being two."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

PEAK_S = 0.25
LARGEST = 8192

# What torch's counter does not know: on CUDA it counts fused attention, on the CPU it would take it for nothing.
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, query, key, value, *_, **__: (
        sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


def counted(work: Callable[[], object]) -> int:
    """FLOPs of the products in `work`, which is carried out; what is computed by element is not counted."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        work()
    return counter.get_total_flops()


@functools.cache
def reachable(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOPs per second that this device reaches in products of ever larger matrices, as far as `PEAK_S` goes; None without memory."""
    best, size, took, begun = None, 256, 0.0, time.perf_counter()
    # On a busy machine the same size again and again: one alone may have met another process.
    while best is None or time.perf_counter() - begun + took < PEAK_S:
        start = time.perf_counter()
        try:
            best = max(best or 0.0, peak_flops(device, dtype, size, 2))
        except torch.OutOfMemoryError:
            break
        took = time.perf_counter() - start
        if size < LARGEST and time.perf_counter() - begun + 8 * took < PEAK_S:
            size, took = 2 * size, 8 * took
    return best


def peak_flops(device: torch.device, dtype: torch.dtype, size: int = 2048, count: int = 8) -> float:
    """What this machine reaches in the product of two square matrices, per second: the best of three."""
    draw = torch.Generator(device).manual_seed(0)  # the draws of the run are left alone
    one, other = (torch.randn(size, size, device=device, dtype=dtype, generator=draw) for _ in range(2))
    torch.mm(one, other)
    return max(2 * size**3 * count / seconds_of(lambda: torch.mm(one, other), count, device) for _ in range(3))


def seconds_of(work: Callable[[], object], count: int, device: torch.device) -> float:
    """The time of `count` calls, the device's work included."""
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return time.perf_counter() - start
