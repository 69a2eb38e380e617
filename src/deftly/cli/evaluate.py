"""`deftly evaluate RUN`: a trained policy in closed loop, beside its baselines."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from deftly import agent, storage
from deftly.agent import find_policy
from deftly.cli.executor import using
from deftly.data.dataset import Dataset
from deftly.evaluation.baselines import BASELINES, Baseline
from deftly.evaluation.closed_loop import evaluate
from deftly.evaluation.plan import EPISODES, SUMMARY, VIDEOS, name_for
from deftly.evaluation.statistics import Proportion
from deftly.foreign import safe_markup
from deftly.own_code import classes_of
from deftly.run import RUN_FILE, Run
from deftly.types import UsageError

SEEDS_UNKNOWN = "training seeds unknown: not checked that these scenes are unseen"  # said, not stored: it may be checked another time


def main(arguments: list[str]) -> None:
    tyro.cli(command, args=arguments, prog="deftly evaluate")


def command(
    run: tyro.conf.Positional[Path],
    episodes: int = 100,
    seed: int = 0,
    workers: int | None = None,
    executor: str = "local",
    name: str | None = None,
    robot: str | None = None,
    baselines: tuple[Baseline, ...] = BASELINES,
    videos: int = 3,
    code: Path | None = None,
) -> None:
    """Measure a policy in closed loop on scenes that it has never seen, beside its baselines.

    Stopped at any moment, the same command goes on where it was.

    Args:
        run: a run directory (its best checkpoint is judged), or one of its checkpoints.
        episodes: scenes; each is played by the policy and by every baseline.
        seed: which scenes; another seed gives an independent figure.
        workers: processes; by default one for each CPU core.
        executor: where they are: local, ray (started here), ray=HOST:PORT or ray=auto (a cluster; the run must be on a shared folder).
        name: of the directory below RUN/evaluation; by default `final`, or the seed's when that is taken.
        robot: which robot the policy acts for, where it was trained on several; the first by default.
        baselines: what stands beside the policy.
        videos: how many successes, and how many failures, are drawn.
        code: the Python file of yours that defines the policy or the objective, where they are not deftly's own. It is run.
    """
    directory, config = open_run(run, code)
    if config.world is None:
        raise UsageError(
            f"{directory / RUN_FILE}: this run has no world to be judged in (world is null): its offline errors are in offline.json"
        )
    root = directory / "evaluation"
    chosen = name or name_for(root, seed, episodes, robot)
    if Path(chosen).name != chosen or chosen.startswith("."):
        raise UsageError(f"--name {chosen!r} is no plain directory name")
    if videos < 0:
        raise UsageError(f"--videos {videos}: must be 0 or more")
    known = training_seeds(config)
    with using(executor) as where:
        summary = evaluate(
            find_policy(run),
            config.world,
            root / chosen,
            episodes=episodes,
            seed=seed,
            workers=workers,
            baselines=baselines,
            videos=videos,
            training_seeds=known,
            robot=robot,
            executor=where,
            load=agent.load if code is None else functools.partial(agent.load, own=code.resolve()),
            own_versions={} if code is None else {f"--code {code.name}": storage.sha256(code)},
        )
    show(summary if known else {**summary, "notes": [*summary["notes"], SEEDS_UNKNOWN]}, root / chosen)


def open_run(path: Path, code: Path | None = None) -> tuple[Path, Run]:
    """The run directory that a run or a checkpoint belongs to, and its config; `UsageError` when there is none."""
    for directory in (path, path.parent.parent, path.parent.parent.parent):
        if (directory / RUN_FILE).is_file() and (directory / "checkpoints").is_dir():
            return directory, Run.load(directory / RUN_FILE, classes_of(code) if code is not None else ())
    if not path.exists():
        raise UsageError(f"{path}: no such directory; give a run, such as runs/demo")
    raise UsageError(f"{path}: not a run, nor a checkpoint of one (no {RUN_FILE} beside checkpoints/); give a run, such as runs/demo")


def training_seeds(run: Run) -> frozenset[int]:
    """Seeds of the demonstrated scenes, where the dataset is still there and recorded them."""
    if not (run.data.path / "meta" / "info.json").is_file():
        return frozenset()
    return frozenset(int(seed) for seed in Dataset.open(run.data.path).extra("seed") if seed is not None)


def show(summary: dict[str, Any], directory: Path) -> None:
    """The figures as a table, then the paths."""
    console = Console()
    table = Table(title="successes of episodes [95 % interval, percent]", title_justify="left")
    table.add_column("")
    table.add_column("on its own sentence", justify="right")
    table.add_column("obeyed", justify="right")
    refused = summary["success_rate"] is None
    table.add_row("policy", "refused" if refused else str(proportion(summary)), "", style="bold")
    for name, baseline in summary["baselines"].items():
        obeyed = Proportion(baseline["obeyed"], baseline["episodes"]) if "obeyed" in baseline else ""
        table.add_row(safe_markup(name.replace("_", "-")), str(proportion(baseline)), str(obeyed))
    console.print(table)
    failures = [f"{count} {name.replace('_', ' ')}" for name, count in summary["failures"].items() if count]
    console.print(f"failures: {safe_markup(', '.join(failures) or 'none')}", highlight=False)
    for note in summary["notes"]:
        console.print(f"[yellow]note:[/yellow] {safe_markup(note)}", highlight=False)
    for name in (SUMMARY, EPISODES, VIDEOS):
        console.print(safe_markup(directory / name), highlight=False, soft_wrap=True)


def proportion(counts: dict[str, Any]) -> Proportion:
    return Proportion(counts["successes"], counts["episodes"])
