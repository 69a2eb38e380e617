"""`deftly report RUN`: everything that is known of a run, on one page."""

from __future__ import annotations

from pathlib import Path

import tyro

from deftly.evaluation.report import write_report


def main(arguments: list[str]) -> None:
    tyro.cli(command, args=arguments, prog="deftly report")


def command(run: tyro.conf.Positional[Path], out: Path | None = None, name: str | None = None) -> None:
    """Write one self-contained HTML page about a run: figures, rollouts that move, learning curves, contract, and how to get it again.

    Args:
        run: a run directory. What it does not have yet is left out of the page.
        out: where the page goes; by default RUN/report.html.
        name: the evaluation that makes the headline; by default `final`.
    """
    print(write_report(run, out, name))
