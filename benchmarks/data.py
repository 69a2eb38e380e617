"""The data engine beside lerobot 0.4.4: the same files, the same machine, one run.

    make bench-data                                       everything, into benchmarks/results/data.json and docs/benchmarks.md
    .venv/bin/python benchmarks/data.py --quick           the same path in two minutes; prints, writes nothing
    .venv/bin/python benchmarks/data.py --rows store open

lerobot runs in the environment of scripts/judge_environment.sh, outside of this tree, with its defaults: its PyAV decoder, and torchcodec
with the system's ffmpeg as a second figure. Each side is a process of its own with one thread for arithmetic; decoders choose their own.
Exit code 1: something that should be equal is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from page import write_page
from process import Process
from rows import GOALS, Bench

HERE = Path(__file__).parent
RESULTS = HERE / "results/data.json"
QUIET = {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def host() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    load = os.getloadavg()[0]
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_gib": memory, "system": platform.platform(), "load_before": load}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--rounds", type=int, help="interleaved rounds per row; 5, or 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="small; nothing is written")
    parser.add_argument("--work", type=Path, help="keep datasets here; a temporary folder by default")
    options = parser.parse_args()
    judge = subprocess.run([HERE.parent / "scripts/judge_environment.sh", "0.4.4"], stdout=subprocess.PIPE, text=True, check=True).stdout
    results: dict[str, Any] = {"host": host(), "versions": {}}
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deftly-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        caches = {"HF_HOME": f"{work}/hub", "HF_DATASETS_CACHE": f"{work}/hub/datasets", "HF_LEROBOT_HOME": f"{work}/hub/lerobot"}

        sides = {"ours": (Path(sys.executable), HERE / "ours.py"), "peer": (Path(judge.strip()), HERE / "peer.py")}

        def start(side: str) -> Process:
            log = work / f"{side}-{len(list(work.glob('*.log')))}.log"
            process = stack.enter_context(Process(*sides[side], log, {**QUIET, **caches}))
            results["versions"][side] = process.call("setup", threads=1)
            return process

        peers = {backend: start("peer") for backend in ("pyav", "torchcodec")}
        real = Path(named) if (named := os.environ.get("DEFTLY_REAL_DATA")) else None
        bench = Bench(start("ours"), peers, start, work, real, options.rounds or (3 if options.quick else 5), options.quick)
        for name in options.rows:
            began, (measure, goal) = time.perf_counter(), GOALS[name]
            results[name] = {**measure(bench), "goal": goal}
            print_row(name, results[name], time.perf_counter() - began)
    results["measured_on"] = time.strftime("%Y-%m-%d")
    if not options.quick and list(options.rows) == list(GOALS):
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        write_page()
    return 0 if all(results[name]["equal"] for name in options.rows) else 1


def print_row(name: str, row: dict[str, Any], seconds: float) -> None:
    if "real" in row:
        print_row(f"{name} (real)", {**row["real"], "goal": row["goal"]}, seconds)
    second = f", torchcodec {row['ratio_torchcodec']:.1f} x" if "ratio_torchcodec" in row else ""
    print(
        f"{name:<13} {row['ratio']:8.1f} x (goal {row['goal']:g}; {row['ratio_min']:.1f}..{row['ratio_max']:.1f}{second})   "
        f"{row['ours']:.5g} beside {row['peer']:.5g} {row['unit']}   equal: {row['equal']}   [{seconds:.0f} s]",
        flush=True,
    )
    for key in ("largest_difference", "build_s", "store_bytes", "bytes_per_episode", "private_mib_ours", "private_mib_peer"):
        if key in row:
            print(f"{'':<13} {key}: {row[key]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
