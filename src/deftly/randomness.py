"""Counter-based draws: every random number is a function of (key of the sample, name of the stream, step), so nothing is remembered.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), vectorised in int64
tensors: the same bits on every device.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # the multipliers and Weyl constants of Philox4x32
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


@functools.cache
def stream_id(name: str) -> int:
    """A stable 63-bit number for a stream's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def seed_of(name: str, *parts: int) -> int:
    """A 63-bit seed from a name and integers: different inputs give unrelated seeds."""
    text = "/".join([name, *(str(int(part)) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(name: str, *parts: int) -> np.random.Generator:
    """A numpy generator for sequential draws that belong to one thing (an episode, say)."""
    return np.random.Generator(np.random.Philox(key=seed_of(name, *parts)))


def seed_global(name: str, *parts: int) -> None:
    """Reseed the global generators, for third-party code (dropout) that draws from them.

    Not by `torch.manual_seed`: while CUDA is not in use that records a stack trace at every call, 0.15 ms of each training step.
    """
    seed = seed_of(name, *parts)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed & _LOW)
    random.seed(seed)


def _philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox on broadcastable int64 tensors (not scalars) of 32-bit words. On the CPU in numpy, whose small operations cost less."""
    if counter[0].device.type != "cpu":
        return _rounds(*counter, *key)
    words = _rounds(*(tensor.numpy() for tensor in (*counter, *key)))
    return tuple(torch.from_numpy(word) for word in words)


def _rounds(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Ten rounds; products wrap modulo 2^64 and masking recovers both halves."""
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def bits(key: Int64[Tensor, "b"], stream: str, count: int, step: int = 0) -> Int64[Tensor, "b count"]:
    """`count` 32-bit words for each sample key."""
    name = stream_id(stream)
    blocks = torch.arange(-(-count // 4), device=key.device, dtype=torch.int64)[None, :]
    zero = torch.zeros_like(blocks)
    counter = (blocks, zero + (step & _LOW), zero + (name & _LOW), zero + (name >> 32))
    words = _philox(counter, ((key & _LOW)[:, None], ((key >> 32) & _LOW)[:, None]))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :count]


def uniform(key: Int64[Tensor, "b"], stream: str, shape: tuple[int, ...] = (), step: int = 0) -> Float[Tensor, "b ..."]:
    """float32 in [0, 1), 24 bits each."""
    words = bits(key, stream, math.prod(shape), step)
    return ((words >> 8).to(torch.float32) * 2.0**-24).reshape(len(key), *shape)


def normal(key: Int64[Tensor, "b"], stream: str, shape: tuple[int, ...] = (), step: int = 0) -> Float[Tensor, "b ..."]:
    """Standard normal float32 by Box-Muller."""
    count = math.prod(shape)
    half = -(-count // 2)
    words = bits(key, stream, 2 * half, step)
    radius = torch.sqrt(-2.0 * torch.log(((words[:, :half] >> 8).to(torch.float32) + 0.5) * 2.0**-24))
    angle = (2.0 * math.pi * 2.0**-24) * (words[:, half:] >> 8).to(torch.float32)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count].reshape(len(key), *shape)


def integers(
    key: Int64[Tensor, "b"], stream: str, low: int, high: int, shape: tuple[int, ...] = (), step: int = 0
) -> Int64[Tensor, "b ..."]:
    """Integers in [low, high); the range must be below 2^31 (bias < range / 2^32)."""
    words = bits(key, stream, math.prod(shape), step)
    return (low + ((words * (high - low)) >> 32)).reshape(len(key), *shape)


def sample_keys(seed: int, epoch: Int64[Tensor, "b"], position: Int64[Tensor, "b"]) -> Int64[Tensor, "b"]:
    """The key of a sample: a hash of (seed, epoch, position in the epoch)."""
    name = seed_of("sample", seed)
    root = (torch.full_like(epoch, name & _LOW), torch.full_like(epoch, name >> 32))
    counter = (position & _LOW, (position >> 32) & _LOW, epoch & _LOW, (epoch >> 32) & _LOW)
    high, low, _, _ = _philox(counter, root)
    return ((high << 32) | low) & ((1 << 63) - 1)


def permute(index: Int64[Tensor, "n"], size: int, seed: int, epoch: int) -> Int64[Tensor, "n"]:
    """Where each index of range(size) lands in the shuffle of (seed, epoch), in O(1) memory.

    A four-round Feistel network over the next power of two, walked along its cycle until it falls
    inside (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    bits = max(1, (size - 1).bit_length())
    low, high = bits - bits // 2, bits // 2
    name = seed_of("order", seed, epoch)
    result = index.cpu().numpy().copy()
    outside = np.arange(len(result))
    while len(outside):
        left, right = result[outside] >> low, result[outside] & ((1 << low) - 1)
        zero = np.zeros_like(left)
        for round_number in range(4):
            word = _rounds(right, zero + round_number, zero, zero, name & _LOW, name >> 32)[0]
            left, right = right, left ^ (word & ((1 << (low if round_number % 2 else high)) - 1))
        result[outside] = (left << low) | right
        outside = outside[result[outside] >= size]
    return torch.from_numpy(result).to(index.device)
