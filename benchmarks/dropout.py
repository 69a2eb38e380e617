"""Dropout on a CPU, forward and backward: ours beside torch's, on a map of ACT's feed-forward layers. Prints, writes nothing.

.venv/bin/python benchmarks/dropout.py
"""

from __future__ import annotations

import time

import torch
from torch import nn

from deftly.models.dropout import Dropout

SHAPE, SHARE, ROUNDS = (8, 35, 3200), 0.1, 30


def main() -> None:
    maps, gradient = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    sides = {"deftly": Dropout(SHARE), "torch": nn.Dropout(SHARE)}
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(ROUNDS):
        for name, layer in sides.items():
            maps.grad = None
            begun = time.perf_counter()
            out = layer(maps)
            out.backward(gradient)
            best[name] = min(best[name], time.perf_counter() - begun)
            dropped = float((out == 0).float().mean())
            assert abs(dropped - SHARE) < 0.005, f"{name} drops {dropped:.4f}"
    for name, seconds in best.items():
        print(f"{name:<7} {seconds / maps.numel() * 1e9:5.2f} ns an element")
    print(f"{best['torch'] / best['deftly']:.2f} x, {torch.get_num_threads()} threads, both drop {SHARE:.0%}")


if __name__ == "__main__":
    main()
