"""`deftly train NAME`: run a recipe, repeat a run from its run.json, or run a recipe of the user's own."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import io
import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import tyro
from rich.console import Console
from rich.table import Table

from deftly.evaluation.report import write_report
from deftly.own_code import blamed, classes_in, classes_of, classes_of_module, narrowed, run_file
from deftly.run import Run, train
from deftly.training import distributed
from deftly.training.tensorboard import TensorBoardConfig
from deftly.training.wandb import WandbConfig
from deftly.types import UsageError

USAGE = """deftly train NAME [--out DIR] [--resume] [--device auto|cpu|cuda] [--small] [--code my.py] [--FIELD VALUE ...]
                  [--resume --allow-change FIELD ...] [--track tensorboard|wandb|wandb:online ...]
  NAME is a recipe ({recipes}), a run directory or its run.json, or my.py:recipe, which is your own code
  --code my.py is for a run directory or run.json whose policy, head or objective is of your own code: the file is run
  --FIELD changes one leaf of the run, e.g. --data.path DIR --training.steps 2000 --policy.vision.keypoints 16; what is chosen among
    variants (the kind of training.schedule, policy.head), null in the recipe (training.early_stop, training.lora) or a list
    (training.groups) is set in a recipe of your own; docs/training/optimisation.md has one of three lines
  --resume goes on with the run in DIR, and begins one where there is none: the same command starts and restarts
  --allow-change FIELD lets a resumed run go on with another value: training.steps, a whole part such as training, or dataset
  --track shows the log, which is always in metrics.jsonl, elsewhere too; a resumed run may change that
  `deftly train NAME --fields` lists every field that can be changed so, with its value
  torchrun --nproc-per-node 2 -m deftly train NAME ...: several processes, each with its share of every batch"""

TRACKERS = {"tensorboard": TensorBoardConfig(), "wandb": WandbConfig(), "wandb:online": WandbConfig(mode="online")}


class Parser(argparse.ArgumentParser):
    """Its mistakes are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `deftly train --help` says what may stand there")


def main(arguments: list[str]) -> None:
    """Parse, train, print what came out."""
    from deftly.recipes import RECIPES

    usage = USAGE.format(recipes=", ".join(RECIPES))
    parser = Parser(prog="deftly train", usage=usage, add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--allow-change", action="append", default=[], metavar="FIELD")
    parser.add_argument("--track", action="append", default=[], choices=TRACKERS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--code", type=Path)
    parser.add_argument("--fields", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    own, fields = parser.parse_known_args(arguments)
    if own.help or own.name is None:
        print("usage:", usage)
        return
    with distributed.said_once():
        run = override(find_run(own.name, own.small, own.code), ["--help"] if own.fields else fields)
        if own.track:
            run = run.replace(training=run.training.replace(trackers=tuple(TRACKERS[name] for name in own.track)))
        directory = own.out if own.out is not None else default_directory(own.name, run, own.resume)
        check_change(own.allow_change, own.resume, run, directory)
    if own.resume and not directory.exists() and distributed.is_spokesman():  # the first of several tries
        print(f"--resume: there is no run in {directory} yet, so it begins at its first step", file=sys.stderr)
    summary = train(run, directory, resume=own.resume, device=own.device, allow_change=own.allow_change)
    if distributed.is_spokesman():
        print_summary(summary, directory)
        report(directory)


def check_change(allow_change: list[str], resume: bool, run: Run, directory: Path) -> None:
    """Raise `UsageError` where `--allow-change` speaks of a run that is not there."""
    if not allow_change or (run.training.start.path is not None and not run.training.start.weights):
        return
    if not resume:
        raise UsageError("--allow-change is for a run that goes on: add --resume, or name the run that goes on in --training.start.path")
    if not directory.exists():
        raise UsageError(f"--allow-change: there is no run in {directory} that could change; give the run's directory as --out")


def report(directory: Path) -> None:
    """Write the run's page. The run is done: a page that cannot be written is said, and no more."""
    try:
        print(f"report: {write_report(directory)}")
    except (UsageError, OSError) as error:
        print(f"WARNING: no report: {error}", file=sys.stderr)


def default_directory(name: str, run: Run, resume: bool) -> Path:
    """Where a run goes without --out: `runs/NAME`; one that is resumed by naming its directory goes on there."""
    path = Path(name)
    if resume and (path / "run.json").is_file():
        return path
    if resume and path.name == "run.json" and path.is_file():
        return path.parent
    return Path("runs") / run.name


def find_run(name: str, small: bool, code: Path | None = None) -> Run:
    """The run that a word on the command line means; `UsageError` suggests the nearest recipe."""
    from deftly.recipes import RECIPES

    path, is_own = Path(name), ":" in name and not Path(name).exists()
    if code is not None and (name in RECIPES or is_own):  # guard: cli.train.code
        raise UsageError(f"--code names the file that a run directory or run.json was made with; {name} needs none: leave it out")
    if name in RECIPES:
        return RECIPES[name](small)
    if is_own:
        return own_recipe(*name.rsplit(":", 1), small=small)
    if path.is_dir() and (path / "run.json").is_file():
        path = path / "run.json"
    if path.is_file():
        if small:
            raise UsageError(f"--small shrinks a recipe; {path} is a whole run: change its fields instead, e.g. --training.steps 10")
        return Run.load(path, classes_of(code) if code is not None else ())
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"recipes: {', '.join(RECIPES)}"
    raise UsageError(f"no recipe, run directory or run.json {name!r}; {hint}")


def own_recipe(file: str, function: str, *, small: bool) -> Run:
    """Call `function` of the user's Python file: it is code, and trusted. It takes `small: bool` or nothing, and returns a Run."""
    module = run_file(Path(file))
    classes_of_module(module)  # told apart now, and not when the run is read again
    recipe: Any = getattr(module, function, None)
    if not callable(recipe):
        raise UsageError(f"{file} has no function {function!r}")
    takes_small = bool(inspect.signature(recipe).parameters)
    if small and not takes_small:
        raise UsageError(f"{file}:{function} takes no argument, so --small changes nothing; write it as {function}(small: bool)")
    with blamed(Path(file)):
        run = recipe(small) if takes_small else recipe()
    if not isinstance(run, Run):
        raise UsageError(f"{file}:{function} returned {type(run).__name__}; a recipe returns a deftly.run.Run")
    return run


def override(run: Run, fields: list[str]) -> Run:
    """`run` with leaves changed from the command line; unions keep the variant that the recipe chose."""
    if not fields:
        return run
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            shown = narrowed(run)
            changed = tyro.cli(type(shown), args=fields, default=shown, prog="deftly train NAME", config=(tyro.conf.AvoidSubcommands,))
    except SystemExit as ended:
        if ended.code in (0, None):
            raise
        raise UsageError(f"command line: {remedied(plain_words(printed.getvalue()))}") from None
    return Run.parse(changed.to_dict(), "command line", classes_in(run))


def remedied(words: str) -> str:
    """What is wrong, and what to do. tyro knows one variant of each union, the recipe's: its "invalid choice" would deny all others."""
    kind = re.search(r"'(\S+)' for argument '(--\S+\.kind)'.*\('(\w+)',\)", words)
    if kind:
        remedy = "is chosen in a recipe of your own (`deftly train my.py:recipe`): see `deftly train --help`"
        return f"{kind[2]} is {kind[3]!r} by the recipe; another ({kind[1]!r}) {remedy}"
    return f"{words}; `deftly train NAME --fields` lists what can be set here, `deftly train --help` says how the rest is"


def plain_words(box: str) -> str:
    """One line out of the framed error that tyro prints: its first sentences, without frame, colours and web addresses."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+|-{3,}|https?://\S+|For further information visit|For full helptext.*", " ", box)
    words = re.sub(r" \[type=.*?, input_type=\w+\]", "", " ".join(text.split())).removeprefix("Parsing error ").strip()
    words = re.sub(r"^(Unrecognized options):? (?=\1)|^Value error (?=Error parsing)", "", words)  # the frame's title
    words = re.sub(r"Error parsing (\S+): \d+ validation errors? for \w+ (?:Value error, |(\S+) )", _field, words)
    return words if len(words) <= 300 else words[:297] + "..."


def _field(found: re.Match[str]) -> str:
    """Where pydantic's words begin, as a field of the run."""
    return f"{found[1]}.{found[2]}: " if found[2] else f"{found[1]}: "


def print_summary(summary: dict[str, Any], directory: Path) -> None:
    """A table of the offline errors, and where everything lies."""
    console = Console()
    rows = summary.get("folds") or ([{k: v["l1_per_spread"] for k, v in summary["offline"].items()}] if "offline" in summary else [])
    if rows:
        table = Table(title="L1 on held-out episodes, in units of each action dimension's spread")
        for heading in ("", *rows[0]):
            table.add_column(heading.replace("_", " "), justify="right")
        for index, row in enumerate(rows):
            table.add_row(f"fold {index}" if len(rows) > 1 else "", *(f"{value:.4f}" for value in row.values()))
        if "mean" in summary:
            table.add_row("mean", *(f"{value:.4f}" for value in summary["mean"].values()), style="bold")
        console.print(table)
    else:
        console.print("no episode was held out (data.validation_fraction is 0): nothing says how well this policy does")
    if "policy_beats_both_baselines" in summary:
        verdict = "beats" if summary["policy_beats_both_baselines"] else "does NOT beat"
        console.print(f"the policy {verdict} both baselines in the mean over folds")
    else:
        plain = {key: value for key, value in summary.items() if isinstance(value, int | float | str)}
        print(json.dumps(plain, ensure_ascii=False), file=sys.stderr)
    print(f"run: {directory}")
