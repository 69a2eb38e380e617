"""A report for people: one line per kind of fault, worst first."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deftly.data.check.findings import VERDICTS, Finding, Report
from deftly.data.show import printable

COLOURS = {"refuse": "bold red", "quarantine": "yellow", "warn": "magenta", "note": "dim"}
MAX_NAMED = 6  # episodes that are named in a line


def render(report: Report) -> Table:
    """What `deftly data check` prints above its last line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("verdict", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("episodes", justify="right")
    table.add_column("first of them", overflow="fold")
    for findings in grouped(report):
        first = findings[0]
        text = Text.assemble(printable(f"{first.where}: " if first.where else ""), printable(first.message))
        if first.remedy:
            text.append("; " + printable(first.remedy).plain, style="dim")
        table.add_row(Text(first.verdict, style=COLOURS[first.verdict]), first.code, _episodes(findings, report.num_episodes), text)
    return table


def grouped(report: Report) -> list[list[Finding]]:
    """Findings of one kind together: worst kind first, then the most frequent."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((finding.verdict, finding.code), []).append(finding)
    return sorted(groups.values(), key=lambda group: (VERDICTS.index(group[0].verdict), -len(group), group[0].code))


def _episodes(findings: list[Finding], total: int) -> str:
    """Which episodes, or how many."""
    counts: dict[str | None, int] = {}
    for finding in findings:
        if finding.count is not None:
            counts[finding.field] = counts.get(finding.field, 0) + finding.count
    most = max(counts.values(), default=0)  # of a camera
    if most > 1:
        return "all" if most >= total else f"{most} of {total}"
    numbers = sorted({finding.episode for finding in findings if finding.episode is not None})
    if not numbers:
        return ""
    if len(numbers) <= MAX_NAMED:
        return " ".join(map(str, numbers))
    return f"{len(numbers)}: {' '.join(map(str, numbers[:3]))} ... {numbers[-1]}"


def show(report: Report) -> None:
    """Print the table and one line that sums it up."""
    console = Console()
    if report.findings:
        console.print(render(report))
    left_out = len(report.quarantined)
    how = "every frame decoded" if report.full else "videos probed, not decoded"
    refused = "must not be trained on" if report.keeps_from_training else "refused for what others read, training does not"
    verdict = refused if report.refusal else f"{left_out} to be left out" if left_out else "sound"
    size = f"{report.num_episodes} episodes, {report.num_frames} frames"
    console.print(printable(f"{report.root}: {size}, {verdict} ({how}, {report.seconds:.1f} s)"), soft_wrap=True)
