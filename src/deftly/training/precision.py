"""Which number format the forward pass computes in. Parameters, gradients, moments and averages are always float32 (or wider)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deftly.types import UsageError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def native_bf16(device: torch.device) -> bool:
    """Whether this device is so much faster in bfloat16 that `auto` takes it: CUDA from Ampere on, CPUs with AMX.

    A CPU with AVX512_BF16 alone gains less, and whether the demo's policy is as good was not shown (docs/log.md): there it has to be
    asked for.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # no public name for it up to torch 2.13
        return bool(probe and probe())
    return False


def has_avx512_bf16(device: torch.device) -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name for it either
    return device.type == "cpu" and bool(probe and probe())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which forward passes run; `precision` is "fp32", "bf16" or "fp16"."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def compute_exactly(precision: str) -> None:
    """`fp32` is float32 on CUDA too: convolutions would multiply with the 10 bits of TF32 there, which products of matrices do not."""
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


def warning(device: torch.device, precision: str) -> str | None:
    """What is to be said of this format on this device, if anything."""
    is_native = {"fp32": True, "bf16": native_bf16(device) or has_avx512_bf16(device), "fp16": device.type == "cuda"}[precision]
    return None if is_native else f"this device has no arithmetic units for {precision}: fp32 would be faster"


class LossScaler:
    """Keeps small numbers of a float16 backward pass from vanishing: the loss is multiplied before it, the gradient divided after it.

    Where the gradient overflows, the step is skipped and the scale halved; after `INTERVAL` steps without that it is doubled (Micikevicius
    et al., "Mixed Precision Training", 2018). The numbers are those of `torch.amp.GradScaler`, which looks at every gradient for its
    decision; here the norm is enough, which the guard reads anyway and which all ranks share. Scales are powers of two: dividing by one is
    exact.
    """

    FIRST, INTERVAL, LEAST = 2.0**16, 2000, 1.0

    def __init__(self) -> None:
        self.scale = self.FIRST
        self.steps = 0  # since the scale last changed
        self.overflows = 0

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale, in place."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)  # pyright: ignore[reportPrivateImportUsage]

    def overflowed(self, loss: float, gradient_norm: float) -> bool:
        """Whether the scale was too large for this step's gradient; moves the scale.

        A loss that is not finite is not for the scale to mend, and neither is a gradient that was hardly scaled.
        """
        if math.isfinite(gradient_norm):
            self.steps += 1
            if self.steps == self.INTERVAL:
                self.scale, self.steps = 2 * self.scale, 0
            return False
        if not math.isfinite(loss) or self.scale <= self.LEAST:
            return False
        self.scale, self.steps = self.scale / 2, 0
        self.overflows += 1
        return True

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "steps": self.steps, "overflows": self.overflows}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scale, self.steps, self.overflows = state["scale"], state["steps"], state["overflows"]


def make_deterministic() -> None:
    """Ask CUDA libraries for the same bits every time, in this process from now on; an operation that cannot give them raises.

    Were it only to warn, fused attention would keep to its faster backward pass, whose sums have no order (torch's attention_backward.cu).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.backends.cudnn.benchmark = False
    # Nothing here reads such memory, and it would be written twice. (The module is made in a way that pyright does not see.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(True)


@contextmanager
def determinism_explained() -> Iterator[None]:
    """An operation that `make_deterministic` forbids becomes one line with the remedy."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "use_deterministic_algorithms" not in text:
            raise
        what = text.partition(" does not have a deterministic")[0][:120]
        raise UsageError(f"{what}: cannot give the same bits every time on this device; set training.deterministic to false") from error
