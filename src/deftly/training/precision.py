"""Which number format the forward pass computes in. Parameters, gradients, moments and averages are always float32 (or wider)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def native_bf16(device: torch.device) -> bool:
    """Whether this device has arithmetic units for bfloat16: CUDA from Ampere on, CPUs with AMX. Elsewhere it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # no public name for it up to torch 2.13
        return bool(probe and probe())
    return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which forward passes run; `precision` is "fp32" or "bf16"."""
    if precision == "fp32":
        return nullcontext()
    assert precision == "bf16", precision
    return torch.autocast(device.type, dtype=torch.bfloat16)


def make_deterministic() -> None:
    """Ask CUDA libraries for the same bits every time; operations that cannot give them warn."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
