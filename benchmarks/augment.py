"""Microseconds per image of each part of augmentation, one thread, best of several rounds; parts take turns within a round.

python benchmarks/augment.py [--size 96] [--batch 64] [--rounds 15] [--threads 1] [--device cpu]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from deftly.data.augment import OFF, AugmentConfig, augment_pixels
from deftly.data.warp import draw_maps, warp

GEOMETRY = {
    "gather alone": OFF,
    "shift 4 px": OFF.replace(shift_pixels=4),
    "mirror .5": OFF.replace(mirror=0.5),
    "crop (.8, 1)": OFF.replace(crop_scale=(0.8, 1.0), crop_ratio=(0.75, 4 / 3)),
    "rotation 10": OFF.replace(rotation_degrees=10.0),
    "crop + rotation + mirror": OFF.replace(crop_scale=(0.8, 1.0), rotation_degrees=10.0, mirror=0.5),
}
PIXELS = {
    "colour .2/.2/.2/.02": OFF.replace(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02),
    "colour + noise .05": OFF.replace(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, noise=0.05),
    "blur 1": OFF.replace(blur=1.0),
    "erase 1": OFF.replace(erase=1.0),
}


def jobs(size: int, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name; each handles `batch` images of one camera."""
    draw, key = np.random.default_rng(0), torch.arange(batch) + 12345

    def geometry(config: AugmentConfig) -> Callable[[], object]:
        stored = config.stored_size(size)
        frames = draw.integers(0, 256, (256, stored, stored, 3), dtype=np.uint8)
        rows = draw.integers(0, len(frames), (batch, 1))
        return lambda: warp(frames, rows, draw_maps(key, ("head",), ("scene",), config, size, stored)[0], size)

    images = torch.from_numpy(draw.integers(0, 256, (batch, 1, size, size, 3), dtype=np.uint8)).permute(0, 1, 4, 2, 3).to(device)
    return {
        **{name: geometry(config) for name, config in GEOMETRY.items()},
        **{name: lambda config=config: augment_pixels(images, key, "head", config) for name, config in PIXELS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    for name, default in (("size", 96), ("batch", 64), ("rounds", 15), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = jobs(options.size, options.batch, options.device)
    best = dict.fromkeys(work, float("inf"))
    for _ in range(options.rounds + 1):
        for name, job in work.items():
            start = time.perf_counter()
            job()
            if options.device != "cpu":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"{options.size} px, batch {options.batch}, {options.threads} thread(s), pixels on {options.device}: microseconds per image")
    for name, seconds in best.items():
        print(f"  {name:<26} {seconds / options.batch * 1e6:7.1f}")


if __name__ == "__main__":
    main()
