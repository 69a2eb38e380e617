"""Where a training step of a recipe goes, operator by operator, and how far its arithmetic is from what this machine can do.

    .venv/bin/python benchmarks/operators.py                     the demo's step, on one thread
    .venv/bin/python benchmarks/operators.py --recipe act --threads 2 --top 15

The real update (forward, backward, clipping, guard, AdamW, average of weights) on batches of the recipe's own loader, out of generated
demonstrations. The step is timed without torch's profiler too, which costs something itself. Prints, writes nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import torch
from fixtures import demonstrations
from torch.profiler import ProfilerActivity, profile

from deftly.recipes import RECIPES
from deftly.run import Run, build_policy
from deftly.training.flops import counted, reachable
from deftly.training.precision import DTYPES
from deftly.training.tracking import TimeSplit
from deftly.training.update import Update
from deftly.types import Batch, Clock

CPU = torch.device("cpu")
KINDS = {
    "convolutions": ("convolution",),
    "products of matrices": ("::mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "scaled_dot_product"),
    "normalisation": ("norm_backward", "group_norm", "layer_norm", "batch_norm"),
    "optimizer": ("_fused_adam", "_foreach", "lerp", "Optimizer."),
    "norms of gradients": ("linalg_vector_norm",),
    "random numbers": ("bernoulli", "random_", "normal_", "uniform_"),
    "copies": ("copy_", "fill_", "zero_", "cat", "clone", "contiguous", "index"),
}
"""Kind -> what the names of its operators hold; what fits none is pointwise work, sums and bookkeeping."""


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "pointwise, sums, bookkeeping")


def prepare(run: Run, work: Path, count: int) -> tuple[Update, list[Batch]]:
    """The recipe's update and some of its batches, on a few generated demonstrations."""
    path = demonstrations(work / "demonstrations", 12, 0)
    config = run.data.replace(path=path, workers=0)
    data = config.build(seed=0, device="cpu", executed_steps=run.executed_steps, cache_dir=work / "cache")
    batches = [data.train.next() for _ in range(count)]
    objective = run.objective.build(build_policy(run, data)).train()
    data.close()
    return Update(objective, run.training.replace(count_flops=False), CPU, 0, TimeSplit(), print), batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=("act", "demo", "imitate"), default="demo")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--top", type=int, default=10, help="operators to name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = RECIPES[options.recipe](False)
    run = run.replace(training=run.training.replace(precision=options.precision).resolve(CPU))
    with tempfile.TemporaryDirectory(prefix="deftly-bench-") as work:
        update, batches = prepare(run, Path(work), 4)

    def steps(first: int, count: int) -> float:
        begun = time.process_time()
        for step in range(first, first + count):
            update(batches[step % len(batches)], Clock(step, 10_000))
        return (time.process_time() - begun) / count

    steps(0, 3)
    alone = steps(3, options.steps)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        profiled = steps(3 + options.steps, options.steps)
    flops = counted(lambda: update(batches[0], Clock(3 + 2 * options.steps, 10_000)))
    peak = reachable(CPU, DTYPES.get(run.training.precision, torch.float32))
    assert peak is not None
    where = f"{run.training.precision} on {options.threads} thread(s)"
    print(f"{options.recipe}: {alone * 1e3:.1f} ms of CPU time a step of {len(batches[0])} in {where}")
    floor = flops / peak * options.threads
    print(f"{flops / 1e9:.2f} GFLOP take {floor * 1e3:.1f} ms at {peak / 1e9:.0f} GFLOP/s; under the profiler {profiled * 1e3:.1f} ms")
    show(
        [(row.key, row.count // options.steps, row.self_cpu_time_total / 1e3 / options.steps) for row in found.key_averages()], options.top
    )


def show(rows: list[tuple[str, int, float]], top: int) -> None:
    """Operators with their calls and milliseconds of a step: by kind, and the `top` that take longest."""
    kinds: dict[str, float] = {}
    for name, _, took in rows:
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + took
    named = {f"{name} ({count})": took for name, count, took in sorted(rows, key=lambda row: -row[2])[:top]}
    for title, table in (("kind", kinds), ("operator (calls a step)", named)):
        print(f"\n{title:<55} {'ms a step':>9} {'share':>6}")
        for name, took in sorted(table.items(), key=lambda item: -item[1]):
            print(f"{name:<55} {took:9.2f} {took / sum(kinds.values()):6.0%}")


if __name__ == "__main__":
    main()
