"""Training beside lerobot 0.4.4's ACT: the same shapes, weights and losses, the same machine, one run.

    make bench-training                                   everything, into benchmarks/results/training.json and docs/benchmarks.md
    .venv/bin/python benchmarks/training.py --quick       small shapes in two minutes; prints, writes nothing
    .venv/bin/python benchmarks/training.py --rows model_step
    .venv/bin/python benchmarks/device_steps.py --device cuda     ours alone, where there is a GPU

Of the model steps both sides are in one process of lerobot's environment, so on one torch. End to end each side is a process of its own
environment, as it is installed. All cores compute on both sides, which take turns. Exit code 1: something that should be equal is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from page import write_page
from process import Process
from rows import Measured, summary

from data import QUIET, host

HERE = Path(__file__).parent
RESULTS = HERE / "results/training.json"
SOURCE = HERE.parent / "src"
LENT = ("jaxtyping", "wadler_lindig")  # what our models import and lerobot's environment has not
EQUAL = {"loss": 1e-5, "gradient": 1e-4}
COMPILING_S = 120  # most that compiling one side may take
EQUAL_BF16 = {"loss": 0.02, "gradient": 0.1}


@dataclass(frozen=True)
class Bench:
    start: Callable[[str], Process]
    work: Path
    rounds: int
    quick: bool

    def shapes(self) -> dict[str, int]:
        small = {"batch": 2, "chunk": 20, "size": 64, "cameras": 2, "dims": 14}
        return small if self.quick else {"batch": 8, "chunk": 100, "size": 128, "cameras": 2, "dims": 14}


def interleaved(rounds: int, sides: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """What each side answered in each round; a round before them is not counted."""
    for work in sides.values():
        work()
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            found[name].append(work())
    return found


def model_step(bench: Bench, variant: str = "eager") -> Measured:
    """Forward, backward and update of one batch that is there already."""
    process, shapes = bench.start("model_steps"), bench.shapes()
    same = process.call("start", variant=variant, shapes=shapes)
    limits = EQUAL_BF16 if "bf16" in variant else EQUAL
    equal = same["loss_difference"] <= limits["loss"] and same["gradient_difference"] <= limits["gradient"]
    if variant == "layers" and any(process.call_within(COMPILING_S, "step", side=side, count=1) is None for side in ("ours", "peer")):
        process.end()
        return {**same, "equal": equal, "not_measured": f"compiling did not end within {COMPILING_S} s"}
    sides = {side: lambda side=side: process.call("step", side=side, count=1) for side in ("ours", "peer")}
    row = summary(interleaved(bench.rounds, sides), "samples/s")
    row |= {"equal": equal, "variant": variant, **same, "shapes": shapes, "step_s": shapes["batch"] / row["ours"]}
    if variant == "eager":
        counted = process.call("flops")
        row |= {"gflop": counted["step"] / 1e9, "peak_gflop_per_s": counted["peak_per_s"] / 1e9}
        row["mfu"] = counted["step"] / row["step_s"] / counted["peak_per_s"]
    process.end()
    return row


def end_to_end(bench: Bench) -> Measured:
    """From the same mp4 files to updated weights, by the trainer of each; ours out of its store, and straight from the video."""
    chunk, size, workers, steps = 20, 8, 0, 1 if bench.quick else 4
    ours, peer = bench.start("training_ours"), bench.start("training_peer")
    root, weights = str(bench.work / "demonstrations"), str(bench.work / "weights.safetensors")
    ours.call("fixture", name="demonstrations", root=root, sizes={"episodes": 6 if bench.quick else 40, "workers": 0})
    settings = {"root": root, "chunk": chunk, "batch_size": size, "workers": workers}
    found = {"ours": ours.call("start", work=str(bench.work), image_size=128, **settings)}
    found["peer"] = peer.call("start", weights=weights, statistics=found["ours"]["statistics"], **settings)
    differences = {}
    for frames in ("store", "video"):
        mine = ours.call("sample", frames=frames, weights=weights)
        theirs = peer.call("loss", rows=mine["rows"], keys=mine["keys"])
        differences[frames] = abs(mine["loss"] - theirs) / abs(theirs)
    rounds = interleaved(
        bench.rounds,
        {
            "ours": lambda: ours.call("train", frames="store", steps=steps),
            "peer": lambda: peer.call("train", steps=steps),
            "video": lambda: ours.call("train", frames="video", steps=steps),
        },
    )
    ours.call("close")
    video = summary({"ours": rounds.pop("video"), "peer": rounds["peer"]}, "samples/s")
    return {
        **summary(rounds, "samples/s"),
        "video": {**video, "equal": differences["video"] <= EQUAL["loss"]},
        "equal": differences["store"] <= EQUAL["loss"],
        "loss_difference": differences,
        "parameters": {side: answer["parameters"] for side, answer in found.items()},
        "store_s": found["ours"]["store_s"],
        "shapes": {"batch": size, "chunk": chunk, "size": 128, "cameras": 2},
        "workers": workers,
    }


ROWS: dict[str, tuple[Callable[[Bench], Measured], float | None]] = {
    "model_step": (model_step, 1.0),
    "model_step_channels_last": (lambda bench: model_step(bench, "channels_last"), None),
    "model_step_compiled": (lambda bench: model_step(bench, "layers"), None),
    "model_step_bf16": (lambda bench: model_step(bench, "bf16"), None),
    "end_to_end": (end_to_end, 1.3),
}
"""Row -> (how it is measured, the least ratio that it should reach)."""


def environments(judge: Path, work: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """The interpreter of each script, and what it has to see: our sources, and beside lerobot the two packages that these import."""
    lent = work / "lent"
    lent.mkdir(exist_ok=True)
    site = Path(sysconfig.get_paths()["purelib"])
    for path in (path for name in LENT for path in site.glob(f"{name}*")):
        (lent / path.name).symlink_to(path)
    beside = {"PYTHONPATH": f"{SOURCE}:{lent}"}
    return {
        "model_steps": (judge, beside),
        "training_peer": (judge, beside),
        "training_ours": (Path(sys.executable), {"PYTHONPATH": str(SOURCE), "MUJOCO_GL": "egl"}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, help="interleaved rounds per row; 7, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small; nothing is written")
    options = parser.parse_args()
    judge = subprocess.run([HERE.parent / "scripts/judge_environment.sh", "0.4.4"], stdout=subprocess.PIPE, text=True, check=True).stdout
    threads = len(os.sched_getaffinity(0))
    results: dict[str, Any] = {"host": host(), "threads": threads, "versions": {}}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deftly-bench-")))
        caches = {"HF_HOME": f"{work}/hub", "HF_DATASETS_CACHE": f"{work}/hub/datasets", "HF_LEROBOT_HOME": f"{work}/hub/lerobot"}
        known = environments(Path(judge.strip()), work)

        def start(script: str) -> Process:
            python, environment = known[script]
            log = work / f"{script}-{len(list(work.glob('*.log')))}.log"
            variables = {**QUIET, **caches, "OMP_NUM_THREADS": str(threads), **environment}
            process = stack.enter_context(Process(python, HERE / f"{script}.py", log, variables))
            results["versions"][script] = process.call("setup", threads=threads)
            return process

        bench = Bench(start, work, options.rounds or (1 if options.quick else 7), options.quick)
        for name in options.rows:
            began, (measure, goal) = time.perf_counter(), ROWS[name]
            results[name] = {**measure(bench), "goal": goal}
            print_row(name, results[name], time.perf_counter() - began)
    results["measured_on"] = time.strftime("%Y-%m-%d")
    if not options.quick and list(options.rows) == list(ROWS):
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        write_page()
    return 0 if all(results[name]["equal"] for name in options.rows) else 1


def print_row(name: str, row: dict[str, Any], seconds: float) -> None:
    if "not_measured" in row:
        print(f"{name:<24} {row['not_measured']}", flush=True)
        return
    goal = f"goal {row['goal']:g}; " if row.get("goal") else ""
    print(
        f"{name:<24} {row['ratio']:6.2f} x ({goal}{row['ratio_min']:.2f}..{row['ratio_max']:.2f})   {row['ours']:.3g} beside "
        f"{row['peer']:.3g} {row['unit']}   equal: {row['equal']} {row.get('loss_difference', '')}   [{seconds:.0f} s]",
        flush=True,
    )
    if "video" in row:
        print_row("  straight from video", row["video"], seconds)
    if "mfu" in row:
        print(f"  {row['gflop']:.0f} GFLOP a step at {row['peak_gflop_per_s']:.0f} GFLOP/s: MFU {row['mfu']:.0%}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
