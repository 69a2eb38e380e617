"""`deftly demo`: the whole path. Each step is what the command of its name does; a finished step is kept, a killed one goes on."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tyro

from deftly.data.generate import GenerateConfig, generate
from deftly.data.schema import INFO_PATH
from deftly.data.store import DISK_SHARE
from deftly.recipes.demo import demo as recipe
from deftly.run import Run, train
from deftly.sim.processes import usable_cores
from deftly.types import UsageError

EPISODES, SMALL_EPISODES = 900, 4
FRAMES_PER_EPISODE = 30  # of the demo's expert, on average; only to foresee how much disk is needed
GB = 1e9


def main(arguments: list[str]) -> None:
    tyro.cli(demo, args=arguments, prog="deftly demo")


def demo(
    out: Path | None = None,
    data: Path | None = None,
    demonstrations: int | None = None,
    episodes: int = 100,
    seed: int = 0,
    workers: int | None = None,
    device: str = "auto",
    small: bool = False,
) -> None:
    """Generate demonstrations, train a policy on them, measure it on scenes it has never seen, and write the page about it.

    Stopped at any moment, the same command goes on where it was.

    Args:
        out: the run directory; by default runs/demo, with --small runs/demo-small.
        data: where the demonstrations go; by default datasets/demo, with --small datasets/demo-small.
        demonstrations: how many; by default 900.
        episodes: scenes to judge it on.
        seed: of everything: scenes, weights, order, evaluation.
        workers: processes for generating and judging; by default one for each CPU core.
        device: auto, cpu or cuda.
        small: the same path in a minute, with a policy that has learnt nothing: to see that everything works.
    """
    if episodes < 1:
        raise UsageError(f"--episodes {episodes}: there must be one scene to judge the policy on")
    if demonstrations is not None and demonstrations < 1:
        raise UsageError(f"--demonstrations {demonstrations}: there must be one to train on")
    wanted = demonstrations or (SMALL_EPISODES if small else EPISODES)
    name = "demo-small" if small else "demo"  # apart: the one must not stand in the way of the other
    out, data = out or Path("runs", name), data or Path("datasets", name)
    count = usable_cores() if workers is None else workers
    page = recipe(small)
    run = page.replace(seed=seed, data=page.data.replace(path=data))
    judge = ["--episodes", str(episodes), "--seed", str(seed), "--workers", str(count), "--name", "final"]
    steps: dict[str, Callable[[], None]] = {
        "generate": lambda: generate_for(run, wanted, count),
        "train": lambda: train_on(run, out, device),
        "evaluate": lambda: evaluate_run(out, judge),
        "report": lambda: report_on(out),
    }
    seconds = {}
    for number, (name, step) in enumerate(steps.items(), 1):
        say(f"[{number}/{len(steps)}] {name}")
        start = time.monotonic()
        step()
        seconds[name] = time.monotonic() - start
        say(f"[{number}/{len(steps)}] {name}: {seconds[name]:.0f} s")
    say(f"done in {sum(seconds.values()):.0f} s: " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    print(out / "report.html")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def check_space(run: Run, demonstrations: int) -> None:
    """Refuse before the work what the frame store would refuse after it. `UsageError` with what is needed and what is free.

    Where the demonstrations are there already, the store itself decides: it may hold the frames, too.
    """
    assert run.world is not None
    if (run.data.path / INFO_PATH).is_file():
        return
    named = os.environ.get("DEFTLY_CACHE")
    place = Path(named or run.data.path).resolve()
    while not place.exists():
        place = place.parent
    needed, free = frame_bytes(run, demonstrations), shutil.disk_usage(place).free
    if needed > DISK_SHARE * free:
        raise UsageError(
            f"{place}: {free / GB:.1f} GB are free, {needed / DISK_SHARE / GB:.1f} GB are wanted: the decoded frames of {demonstrations} "
            f"demonstrations take {needed / GB:.1f} GB and may take {DISK_SHARE:.0%} of what is free; free some space, or set DEFTLY_CACHE "
            "to a folder on a larger disk"
        )


def frame_bytes(run: Run, demonstrations: int) -> int:
    """About what the decoded frames of so many demonstrations take."""
    assert run.world is not None
    cameras = run.data.cameras or run.world.cameras
    return demonstrations * FRAMES_PER_EPISODE * len(cameras) * run.data.image_size**2 * 3


def generate_for(run: Run, demonstrations: int, workers: int) -> None:
    """The demonstrations that `run` trains on. Rendering is tried first: a machine that cannot draw says so before anything is written."""
    from deftly.sim.opengl import probe

    assert run.world is not None
    probe()
    check_space(run, demonstrations)
    made = generate(GenerateConfig(world=run.world), run.data.path, demonstrations, workers, run.seed)
    if made["frames"]:
        say(f"{run.data.path}: {made['frames']} frames at {made['frames_per_s']:.0f} frames/s")
    else:
        say(f"{run.data.path}: kept, all {demonstrations} demonstrations are there")


def train_on(run: Run, out: Path, device: str) -> None:
    train(run, out, resume=any(out.glob("checkpoints/step-*")), device=device)


def evaluate_run(out: Path, flags: list[str]) -> None:
    from deftly.cli.evaluate import main as evaluate

    evaluate([str(out), *flags])


def report_on(out: Path) -> None:
    from deftly.evaluation.report import write_report

    write_report(out)
