"""Training steps of our ACT on one device: compiled and replayed beside eager at a small batch, and MFU of a 100 M-parameter policy.

    .venv/bin/python benchmarks/device_steps.py --device cuda     into benchmarks/results/device.json; goals: 2 x eager, MFU 40 %
    .venv/bin/python benchmarks/device_steps.py --quick           the same path on the CPU in small; prints, writes nothing

FLOPs are counted (torch.utils.flop_counter), not estimated; the peak is what the device reaches in a product of square bf16 matrices.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from steps import PEER_ACT, WIDE_ACT, Shapes, Step, build

from deftly.models.act import ACTConfig
from deftly.training.flops import peak_flops, seconds_of

RESULTS = Path(__file__).parent / "results/device.json"
SPEEDS = ("bf16", "bf16+compiled", "bf16+graphs")


def small_batch(config: ACTConfig, shapes: Shapes, device: torch.device, rounds: int, variants: tuple[str, ...]) -> dict[str, Any]:
    """Seconds per step of each variant at a batch where launching kernels costs as much as running them; rounds interleaved."""
    steps = {variant: Step(build(config, shapes), shapes.random_batch(), variant, device) for variant in variants}
    for step in steps.values():
        step.compile()
        seconds_of(step, 3, device)
    found: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(rounds):
        for variant, step in steps.items():
            found[variant].append(seconds_of(step, 5, device) / 5)
    seconds = {variant: statistics.median(times) for variant, times in found.items()}
    fastest = min(seconds, key=lambda variant: seconds[variant])
    return {"seconds": seconds, "ratio": seconds[variants[0]] / seconds[fastest], "fastest": fastest, "batch": shapes.batch, "goal": 2.0}


def utilisation(config: ACTConfig, shapes: Shapes, variant: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Model FLOPs utilisation: counted FLOPs of a step / (seconds of it x what the device reaches)."""
    step = Step(build(config, shapes), shapes.random_batch(), variant, device)
    flops = step.flops()
    step.compile()
    seconds_of(step, 3, device)
    seconds = statistics.median(seconds_of(step, 3, device) / 3 for _ in range(rounds))
    on_gpu = device.type == "cuda"
    peak = peak_flops(device, torch.bfloat16 if "bf16" in variant else torch.float32, 8192 if on_gpu else 512)
    parameters = sum(parameter.numel() for parameter in step.objective.parameters())
    return {
        "mfu": flops / seconds / peak,
        "tflop": flops / 1e12,
        "seconds": seconds,
        "peak_tflop_per_s": peak / 1e12,
        "parameters": parameters,
        "variant": variant,
        "batch": shapes.batch,
        "goal": 0.4,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=64, help="of the MFU row")
    parser.add_argument("--quick", action="store_true", help="small, eager, nothing is written")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if options.quick:
        tiny, shapes = PEER_ACT.replace(width=32, heads=2, hidden=64), Shapes(batch=2, chunk=5, size=32)
        results = {
            "small_batch": small_batch(tiny, shapes, device, 1, ("eager", "bf16")),
            "mfu": utilisation(tiny, shapes, "eager", device, 1),
        }
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        large = Shapes(batch=options.batch, size=224)
        results = {
            "small_batch": small_batch(PEER_ACT.replace(dropout=0.0), Shapes(size=224), device, 5, SPEEDS),
            "mfu": utilisation(WIDE_ACT, large, "bf16+channels_last+compiled", device, 5),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
            "measured_on": time.strftime("%Y-%m-%d"),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
