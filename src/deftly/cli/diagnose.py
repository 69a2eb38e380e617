"""`deftly diagnose RUN`: what is wrong with a run, the worst first."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deftly.foreign import printable
from deftly.training.diagnosis.examine import diagnose
from deftly.training.diagnosis.verdicts import SEVERITIES, Verdict
from deftly.training.tracking import METRICS

COLOURS = {"fault": "bold red", "warning": "yellow", "note": "dim"}


def main(arguments: list[str]) -> None:
    tyro.cli(command, args=arguments, prog="deftly diagnose")


def command(run: tyro.conf.Positional[Path], json: bool = False, strict: bool = False, data: bool = True) -> None:
    """Read what a run wrote about itself, and its dataset's numbers, and say what is wrong, why, and what to do. Trains nothing.

    Args:
        run: a run directory; the run may still go on. Of a run with folds, every fold is judged.
        json: print the verdicts as JSON.
        strict: exit with 1 where there is a warning or a fault.
        data: look at the dataset too, where it is still there.
    """
    found = {part: diagnose(part, look_at_data=data) for part in parts(run)}
    if json:
        print_json(found, in_folds=run not in found)
    else:
        for part, verdicts in found.items():
            print_table(verdicts, part)
    if strict and any(verdict.severity != "note" for verdicts in found.values() for verdict in verdicts):
        sys.exit(1)


def parts(run: Path) -> list[Path]:
    """The folds of a run that has some, in order; else the run itself."""
    folds = [path for path in run.glob("fold-*") if (path / METRICS).is_file()] if not (run / METRICS).is_file() else []
    return sorted(folds, key=lambda path: (len(path.name), path.name)) or [run]


def print_json(found: dict[Path, list[Verdict]], in_folds: bool) -> None:
    """A list; of folds, a list for each name."""
    plain = {part.name: [verdict.to_dict() for verdict in verdicts] for part, verdicts in found.items()}
    print(json.dumps(plain if in_folds else next(iter(plain.values())), ensure_ascii=False, indent=2))


def print_table(verdicts: list[Verdict], run: Path) -> None:
    """One row per verdict, the worst first."""
    console = Console()
    counts = {name: sum(verdict.severity == name for verdict in verdicts) for name in SEVERITIES}
    found = ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)
    above = counts["fault"] + counts["warning"]
    console.print(f"{printable(run)}: {found if above else 'nothing above a note'}", highlight=False, markup=False)
    if verdicts:
        table = Table(show_lines=True)
        for heading in ("", "verdict", "evidence", "what to do"):
            table.add_column(heading)
        for verdict in verdicts:
            colour = COLOURS[verdict.severity]
            what, evidence, remedy = (printable(text) for text in (verdict.what, verdict.evidence, verdict.remedy))
            about = Text.assemble((verdict.code, "bold"), "\n", what)  # Text: names of a dataset hold brackets, which are no markup
            table.add_row(Text(verdict.severity, style=colour), about, Text(evidence), Text(remedy))
        console.print(table)
