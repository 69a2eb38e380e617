"""`deftly diagnose RUN`: what is wrong with a run, the worst first."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from deftly.training.diagnosis.examine import diagnose
from deftly.training.diagnosis.verdicts import Verdict

COLOURS = {"fault": "bold red", "warning": "yellow", "note": "dim"}


def main(arguments: list[str]) -> None:
    tyro.cli(command, args=arguments, prog="deftly diagnose")


def command(run: tyro.conf.Positional[Path], json: bool = False, strict: bool = False, data: bool = True) -> None:
    """Read what a run wrote about itself, and its dataset's numbers, and say what is wrong, why, and what to do. Trains nothing.

    Args:
        run: a run directory; the run may still go on.
        json: print the verdicts as JSON.
        strict: exit with 1 where there is a warning or a fault.
        data: look at the dataset too, where it is still there.
    """
    verdicts = diagnose(run, look_at_data=data)
    if json:
        print_json(verdicts)
    else:
        print_table(verdicts, run)
    if strict and any(verdict.severity != "note" for verdict in verdicts):
        sys.exit(1)


def print_json(verdicts: list[Verdict]) -> None:
    print(json.dumps([verdict.to_dict() for verdict in verdicts], ensure_ascii=False, indent=2))


def print_table(verdicts: list[Verdict], run: Path) -> None:
    """One row per verdict, the worst first."""
    console = Console()
    if not any(verdict.severity != "note" for verdict in verdicts):
        console.print(f"{run}: nothing above a note", highlight=False)
    if verdicts:
        table = Table(show_lines=True)
        for heading in ("", "verdict", "evidence", "what to do"):
            table.add_column(heading)
        for verdict in verdicts:
            colour = COLOURS[verdict.severity]
            table.add_row(f"[{colour}]{verdict.severity}[/]", f"[bold]{verdict.code}[/]\n{verdict.what}", verdict.evidence, verdict.remedy)
        console.print(table)
