"""What ranks tell each other. Everything here is the identity when one process trains alone.

Ranks are processes that a launcher such as torchrun has started with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in their
environment. How an objective is spread over them is in `parallel.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deftly.training import joining
from deftly.training.guard import TrainingError
from deftly.types import UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=1)  # for one rank that decodes a dataset while the others wait; one that died is noticed at once all the same
LOST = ("gloo", "nccl", "connection", "timed out", "socket")  # what the words of a failed collective hold, whichever library failed

_patient: tuple[object, Any] | None = None  # (the group that it is a copy of, one that waits for PATIENCE)
_aside: tuple[object, Any] | None = None  # the same, for threads beside the one that trains


def active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on each of them."""
    if active():
        dist.all_reduce(values)
    return values


def any_rank(is_so: bool) -> bool:
    """Whether it is so on any rank."""
    return most_over_ranks(int(is_so)) > 0


def most_over_ranks(value: int) -> int:
    """The largest of a number that each rank has, on each of them. Goes over the CPU and does not wait for the device."""
    if not active():
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def highest_over_ranks(values: Tensor) -> Tensor:
    """The largest of each number of a tensor over all ranks, on each of them."""
    if active():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def told_by_all(value: Any) -> list[Any]:
    """Plain data (JSON) of every rank, in the order of the ranks, on each of them: what is made of it is the same everywhere."""
    if not active():
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    padded = torch.full((most_over_ranks(len(own)),), ord(" "), dtype=torch.uint8)
    padded[: len(own)] = own
    texts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(texts, padded)
    return [json.loads(text.numpy().tobytes()) for text in texts]


# -- joining and leaving -------------------------------------------------------------------------------------------------------------


def launched() -> int:
    """How many processes the launcher has started; 1 without one. `UsageError` when its variables are incomplete."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    count = _number(size) or 0
    highest = {"RANK": count - 1, "LOCAL_RANK": count - 1, "MASTER_PORT": 65535} if count > 1 else {"WORLD_SIZE": 0}
    wrong = [name for name in VARIABLES if not os.environ.get(name, "").strip()]
    wrong += [name for name, most in highest.items() if (number := _number(os.environ.get(name, ""))) is None or number > most]
    if wrong or count < 2:  # guard: training.distributed.variables
        name = wrong[0] if wrong else "WORLD_SIZE"
        is_so = f"WORLD_SIZE is {size[:20]!r}, but {name} is not what a launcher sets ({os.environ.get(name, '')[:20]!r})"
        raise UsageError(f"{is_so}: start with torchrun, or unset WORLD_SIZE")
    return count


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else None


def is_spokesman() -> bool:
    """Whether this process is the one of those launched together that prints."""
    return os.environ.get("RANK", "0") == "0" or launched() == 1


@contextmanager
def said_once() -> Iterator[None]:
    """For a mistake that every process finds by itself, before they know of each other: one of them says it, the others end."""
    try:
        yield
    except UsageError as error:
        if is_spokesman():
            raise
        raise SystemExit(error.exit_code) from None


def device_of_rank(name: str) -> str:
    """The device that `name` (auto, cpu, cuda) means on this rank: with several on a machine, each has a GPU of its own."""
    if launched() == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):  # guard: training.distributed.one_device
        raise UsageError(f"--device {name} for all of {launched()} processes: leave it out, and each has a GPU of its own")
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if processes > there:  # guard: training.distributed.devices
        raise UsageError(f"{processes} processes on a machine with {there} GPUs: start --nproc-per-node {there}, or pass --device cpu")
    return f"cuda:{local}"


@contextmanager
def process_group(device: torch.device, timeout_s: float) -> Iterator[None]:
    """Join the ranks that were launched with this one, and leave them at the end, errors included. Alone there is nobody to join.

    What asks CUDA for "the current device" (events, what the device can) is told of `device` from here on.

    Whoever waits longer than `timeout_s` for the others gives up: no rank outlives another one for longer. Raises `UsageError` and
    `TrainingError` where they do not meet (`joining.py`).
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if launched() == 1 or (dist.is_available() and dist.is_initialized()):
        yield
        return
    if not dist.is_available():  # guard: training.distributed.available
        raise UsageError("this build of torch cannot train with several processes: install another one, or start a single process")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with stopping_with_the_others(True):
        store = joining.meeting_place(timeout_s)
        at = {} if store is None else {"store": store, "rank": int(os.environ["RANK"]), "world_size": launched()}
        patience = timedelta(seconds=timeout_s)
        dist.init_process_group(backend, timeout=patience, device_id=device if device.type == "cuda" else None, **at)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def stopping_with_the_others(is_launched: bool | None = None) -> Iterator[None]:
    """A collective that fails because a rank is gone becomes one line, said by rank 0; the rank that is gone has said why.

    While they join (`is_launched`) it may be rank 0 that does not come: the first rank of each machine says so.
    """
    try:
        yield
    except RuntimeError as error:
        if not (active() if is_launched is None else is_launched) or isinstance(error, TrainingError) or not _is_lost(error):
            raise
        if not (is_spokesman() or (is_launched and os.environ["LOCAL_RANK"] == "0")):
            raise SystemExit(TrainingError.exit_code) from None
        words = " ".join(str(error).split())[:120]
        raise TrainingError(
            f"another process of this training ended or no longer answers ({words}); its own message says why: start all of them again "
            "with --resume"
        ) from None


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in LOST)


# -- agreeing --------------------------------------------------------------------------------------------------------------------------


@contextmanager
def together() -> Iterator[None]:
    """What is inside is done by all ranks at once. When it fails on some, it ends all: the first of those with its error, the others with
    the same exit code and without a word."""
    if not active():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as failed:
        error = failed
    _go_on(error)


@contextmanager
def first_alone(*, per_machine: bool = False) -> Iterator[None]:
    """What is inside is done by rank 0 (`per_machine`: by the first rank of each machine), and then by all others at once: who comes first
    makes what the others find. A failure ends all, as in `together`."""
    if not active():
        yield
        return
    is_first = (int(os.environ.get("LOCAL_RANK", rank())) if per_machine else rank()) == 0
    if not is_first:
        _go_on(None)
    with together():
        yield
    if is_first:
        _go_on(None)


def wait_for_all() -> None:
    """Come back when every rank has called this."""
    if active():
        _go_on(None)


def _go_on(error: Exception | None) -> None:
    """Wait for all ranks. When some have failed, the first of them raises its error, and the others end."""
    global _patient
    codes = torch.zeros(world_size(), dtype=torch.int64)
    codes[rank()] = 0 if error is None else getattr(error, "exit_code", TrainingError.exit_code)
    with stopping_with_the_others():
        if _patient is None or _patient[0] is not dist.group.WORLD:
            _patient = dist.group.WORLD, dist.new_group(backend="gloo", timeout=PATIENCE)
        dist.all_reduce(codes, group=_patient[1])
    failed = codes.nonzero()[:, 0].tolist()
    if failed and failed[0] == rank():
        assert error is not None
        raise error
    if failed:
        raise SystemExit(int(codes[failed[0]]))


def open_aside() -> None:
    """Make what `Meeting` talks through: called by all ranks at once."""
    global _aside
    if _aside is None or _aside[0] is not dist.group.WORLD:
        _aside = dist.group.WORLD, dist.new_group(backend="gloo", timeout=PATIENCE)


class Meeting:
    """Ranks that write something together, in threads beside the ones that train. They `agree` after every stage, and once more at the end
    of the `with`; when one has failed, all do, at the same stage."""

    def __init__(self) -> None:
        self.is_over = False

    def agree(self, value: int = 0, failed: bool = False) -> int:
        """Wait for all; the largest of their values. Raises OSError when one has failed."""
        assert _aside is not None, "open_aside() first"
        told = torch.tensor([int(failed), value])
        dist.all_reduce(told, dist.ReduceOp.MAX, group=_aside[1])
        if told[0]:
            self.is_over = True
            raise OSError("another process could not write its part")
        return int(told[1])

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.agree()
        elif not self.is_over and not (isinstance(error, RuntimeError) and _is_lost(error)):
            with suppress(OSError):
                self.agree(failed=True)
