"""How a run learnt, in four pictures: loss, step sizes, what held-out episodes say, where the time went. A pure function of its log."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from deftly import storage
from deftly.evaluation import charts
from deftly.evaluation.charts import Series
from deftly.foreign import making_sense_of

Line = dict[str, Any]
OVER_ALL = ("elapsed", "utilization")
"""What a line's `time` has beside the parts."""


def training(run: Path) -> dict[str, Any] | None:
    """The pictures, and the last figures; None without a log. Raises `DataError` where the log or the summary is damaged."""
    stopped = stopped_early(run)
    with making_sense_of(run / "metrics.jsonl"):
        return learnt(run, stopped)


def learnt(run: Path, stopped: str | None) -> dict[str, Any] | None:
    lines = [line for line in storage.read_lines(run / "metrics.jsonl") if isinstance(line, dict) and "step" in line]
    train = [line for line in lines if line.get("kind") == "train"]
    held_out = [line for line in lines if line.get("kind") == "validation"]
    if not train:
        return None
    # The first lines are of a policy that knows nothing: on one axis with the rest they would flatten everything that follows.
    settled = train[min(2, len(train) // 20) :]
    loss = [series("training", settled, "loss", "soft"), series("held-out episodes", held_out, "loss", "main", marked=True)]
    measured = [{"step": line["step"], **(line.get("terms") or {})} for line in held_out]
    split = [{name: value for name, value in line.get("time", {}).items() if name not in OVER_ALL} for line in train]
    names = list(dict.fromkeys(name for parts in split for name in parts))
    totals = {name: float(sum(parts.get(name, 0.0) for parts in split)) for name in names}
    whole = sum(totals.values())
    return {
        "loss": charts.curves(loss, until=train[-1]["step"]),
        "rate": charts.twin(
            series("learning rate", train, "learning_rate", "main"),
            series("gradient norm", train, "gradient_norm", "second"),
            train[-1]["step"],
        ),
        "measures": charts.twin(
            series("action accuracy", measured, "action_accuracy", "main", marked=True),
            series("language alignment", measured, "language_alignment", "second", marked=True),
            train[-1]["step"],
        ),
        "areas": charts.areas([line["step"] for line in train], [[parts.get(name, 0.0) for name in names] for parts in split]),
        "x_ticks": charts.along(train[-1]["step"] or 1.0),
        "time": [
            {"part": names.index(share.label), "label": share.label.replace("_", " + "), "text": seconds(share.value)}
            for share in charts.shares(totals)
        ],
        "total": seconds(whole),
        "steps": train[-1]["step"],
        "speed": charts.number(train[-1].get("samples", 0) / whole) if whole else None,
        "skipped": train[-1].get("skipped", 0),
        "stopped": stopped,
    }


def series(label: str, lines: list[Line], name: str, kind: str, marked: bool = False) -> Series:
    return Series(label, [line["step"] for line in lines], [line.get(name) for line in lines], kind, marked)


def stopped_early(run: Path) -> str | None:
    """Why the run ended before its last step, if it did."""
    summary = storage.read_json(run / "summary.json") if (run / "summary.json").is_file() else {}
    with making_sense_of(run / "summary.json"):
        return summary.get("stopped_early")


def sessions(run: Path) -> list[tuple[str, str]]:
    """When the run was worked on and how each time ended; what the last session ran on."""
    with making_sense_of(run / "sessions.jsonl"):
        return history(run)


def history(run: Path) -> list[tuple[str, str]]:
    lines = [line for line in storage.read_lines(run / "sessions.jsonl") if isinstance(line, dict)]
    pairs = []
    for line, after in itertools.zip_longest(lines, lines[1:]):
        if line.get("kind") == "start":
            end = after if after is not None and after.get("kind") == "end" else None
            steps = (
                f"steps {line.get('step')} to {end.get('step')}, {end.get('how')}"
                if end
                else f"from step {line.get('step')}, no end on record"
            )
            pairs.append((str(line.get("time")), steps))
    starts = [line for line in lines if line.get("kind") == "start"]
    if starts:
        machine, versions, git = (starts[-1].get(name) or {} for name in ("machine", "versions", "git"))
        gpus = ", ".join(str(gpu.get("name")) for gpu in machine.get("gpus", []))
        memory = f"{machine.get('memory_bytes', 0) / 2**30:.0f} GiB"
        pairs.append(("machine", ", ".join(filter(None, [str(machine.get("cpu")), f"{machine.get('cores')} cores", memory, gpus]))))
        pairs.append(
            ("versions", ", ".join(f"{name} {versions[name]}" for name in ("deftly", "python", "numpy", "cuda") if versions.get(name)))
        )
        for name, label in (("deftly", "commit of deftly"), ("here", "commit of the project")):
            found = git.get(name)
            if found:
                pairs.append((label, found["commit"][:12] + (", with changes" if found.get("dirty") else "")))
    return pairs


def seconds(value: float) -> str:
    """A duration as it is spoken of."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
