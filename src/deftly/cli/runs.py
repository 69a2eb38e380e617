"""`deftly runs`: what runs there are; `deftly runs compare A B`: what is different, in settings and in figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from deftly.foreign import safe_markup
from deftly.training.runs import Row, compare, find_runs, look, text_of_success
from deftly.types import UsageError

COLOURS = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red", "damaged": "red", "prepared": "dim"}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["compare"]:
        tyro.cli(compare_runs, args=arguments[1:], prog="deftly runs compare")
    else:
        tyro.cli(list_runs, args=arguments, prog="deftly runs")


def list_runs(directory: tyro.conf.Positional[Path] = Path("runs"), json: bool = False) -> None:
    """List the runs below a directory. `deftly runs compare A B` puts some of them side by side.

    Args:
        directory: where to look, three levels deep.
        json: plain data instead of a table.
    """
    rows = [look(path) for path in find_runs(directory)]
    if json:
        print_json(rows)
        return
    if not rows:
        print(f"no runs below {directory}")
        return
    table = Table(box=None, pad_edge=False)
    for heading, justify in HEADINGS:
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*cells(row, directory))
    console = Console()
    console.print(table)
    for row in rows:
        if row["why"]:
            console.print(f"{safe_markup(row['path'])}: {safe_markup(row['why'])}", highlight=False, soft_wrap=True)


HEADINGS = [
    ("run", "left"),
    ("state", "left"),
    ("step", "right"),
    ("best validation", "right"),
    ("offline", "right"),
    ("success", "right"),
    ("samples/s", "right"),
    ("age", "right"),
]


def cells(row: Row, root: Path) -> list[str]:
    path = Path(row["path"])
    step = f"{row['step']}/{row['total']}" if row["total"] is not None and row["step"] is not None else ""
    return [
        safe_markup(path.relative_to(root) if path != root else path.name),
        f"[{COLOURS[row['state']]}]{row['state']}[/]",
        step,
        number(row["validation"]),
        number(row["offline"]),
        text_of_success(row["success"]),
        number(row["samples_per_s"], 3),
        ago(row["age_s"]),
    ]


def compare_runs(runs: tyro.conf.Positional[tuple[Path, ...]], json: bool = False) -> None:
    """Put runs side by side: the settings in which they differ, and their figures.

    Args:
        runs: two run directories or more; what differs is said relative to the first.
        json: plain data instead of tables.
    """
    if len(runs) < 2:
        raise UsageError("deftly runs compare: give two runs or more")
    found = compare(runs)
    if json:
        print_json(found)
        return
    rows = found["runs"]
    console, names = Console(), [safe_markup(row["path"]) for row in rows]
    figures = {
        "state": [row["state"] for row in rows],
        "step": [f"{row['step']}/{row['total']}" for row in rows],
        "training loss": [number(row["loss"]) for row in rows],
        "best validation loss": [number(row["validation"]) for row in rows],
        "... at step": [str(row["best_step"] or "") for row in rows],
        "action accuracy": [number(row["accuracy"]) for row in rows],
        "language alignment": [number(row["alignment"]) for row in rows],
        "offline error": [number(row["offline"]) for row in rows],
        "success": [text_of_success(row["success"]) for row in rows],
        "samples/s": [number(row["samples_per_s"], 3) for row in rows],
    }
    console.print(side_by_side(names, {name: values for name, values in figures.items() if any(values)}))
    if found["config"]:
        console.print(side_by_side(names, {name: [text(value) for value in values] for name, values in found["config"].items()}))
    else:
        console.print("the same settings")


def side_by_side(names: list[str], rows: dict[str, list[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for label, values in rows.items():
        table.add_row(safe_markup(label), *(safe_markup(value) for value in values))
    return table


def number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def text(value: Any) -> str:
    return "-" if value is None else str(value)


def ago(value: float | None) -> str:
    """How long ago, in one unit."""
    if value is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s"


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
