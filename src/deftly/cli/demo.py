"""`deftly demo`: the whole path. Each step is what the command of its name does; a finished step is kept, a killed one goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import tyro

from deftly.data.generate import GenerateConfig, generate
from deftly.recipes.demo import demo as recipe
from deftly.run import Run, train
from deftly.sim.processes import usable_cores
from deftly.types import UsageError

EPISODES, SMALL_EPISODES = 900, 4


def main(arguments: list[str]) -> None:
    tyro.cli(demo, args=arguments, prog="deftly demo")


def demo(
    out: Path = Path("runs/demo"),
    data: Path = Path("datasets/demo"),
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
        out: the run directory.
        data: where the demonstrations go.
        demonstrations: how many; by default 900.
        episodes: scenes to judge it on.
        seed: of everything: scenes, weights, order, evaluation.
        workers: processes for generating and judging; by default one for each CPU core.
        device: auto, cpu or cuda.
        small: the same path in a minute, with a policy that has learnt nothing: to see that everything works.
    """
    if episodes < 1:
        raise UsageError(f"--episodes {episodes}: there must be one scene to judge the policy on")
    wanted = demonstrations or (SMALL_EPISODES if small else EPISODES)
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


def generate_for(run: Run, demonstrations: int, workers: int) -> None:
    """The demonstrations that `run` trains on. Rendering is tried first: a machine that cannot draw says so before anything is written."""
    from deftly.sim.render import probe

    assert run.world is not None
    probe()
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
