"""What runs there are and what became of them, read from their directories. Nothing is written, and a damaged run is one line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deftly import storage
from deftly.contract import differences
from deftly.evaluation.statistics import Proportion
from deftly.foreign import is_figure
from deftly.training.session import SESSIONS
from deftly.training.tracking import METRICS
from deftly.types import DataError, UsageError

MAX_DEPTH = 3  # runs below a directory: runs/NAME, runs/GROUP/NAME, and their folds
TAIL_BYTES = 1 << 18
FIGURES = ("step", "total", "loss", "validation", "best_step", "accuracy", "alignment", "offline", "samples_per_s")
Row = dict[str, Any]


def find_runs(root: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Directories that are runs, or look as if they had been, by name; below a run only its folds are looked for."""
    if root.is_file():
        raise UsageError(f"{root}: a file; give the directory that it is in: {root.parent}")
    if not root.is_dir():
        raise UsageError(f"{root}: no such directory; give the one that holds your runs, such as runs")
    if is_run(root):
        yield root
        yield from (path for path in sorted(root.glob("fold-*")) if path.is_dir() and is_run(path))
    elif depth:
        for path in sorted(root.iterdir()):
            if path.is_dir() and not path.is_symlink() and not path.name.startswith(".") and os.access(path, os.R_OK | os.X_OK):
                yield from find_runs(path, depth - 1)


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("run.json", METRICS, "checkpoints"))


def look(path: Path) -> Row:
    """Everything that a table says of a run, as plain data; what is not known is None. `state` is one of

    running, finished, stopped (by a signal, or killed), failed, prepared (before its first step), damaged: `why` is then one line.
    """
    empty = dict.fromkeys(("name", "step", "total", "loss", "validation", "best_step", "accuracy", "alignment", "offline", "success"))
    row: Row = {"path": str(path), **empty, "samples_per_s": None, "age_s": None, "state": "damaged", "why": None}
    try:
        config = storage.read_json(path / "run.json")
        row |= {"name": str(config["name"]), "age_s": age(path)}
        if config.get("folds") is not None:
            return checked(row | folded(path, int(config["folds"])))
        row["total"] = int(config["training"]["steps"])
        return checked(row | measured(path) | ended(path, row["total"]))
    except (UsageError, OSError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        text = " ".join(str(error).split())
        return row | {"why": text if isinstance(error, UsageError | OSError) else f"{path}: not a run ({type(error).__name__}: {text})"}


def checked(row: Row) -> Row:
    """The row, once its figures are figures; raises `DataError`: one damaged run must not keep the others from being listed."""
    for name in FIGURES:
        if row[name] is not None and not is_figure(row[name]):  # guard: training.runs.figures
            raise DataError(f"{row['path']}: {name} is no finite number but {shown(row[name])}")
    counts = row["success"] or {}
    if not all(map(is_figure, counts.values())):  # guard: training.runs.counts
        raise DataError(f"{row['path']}: successes and episodes are no finite numbers but {', '.join(map(shown, counts.values()))}")
    if row["why"] is not None and not isinstance(row["why"], str):  # guard: training.runs.why
        raise DataError(f"{row['path']}: the reason of its end is no text but {shown(row['why'])}")
    return row


def shown(value: Any) -> str:
    """The beginning of a value that should have been another. An integer of thousands of digits is not turned into text."""
    return "a huge number" if isinstance(value, int) and not is_figure(value) else repr(str(value)[:80])


def age(path: Path) -> float:
    """Seconds since something was written last."""
    return max(0.0, time.time() - max(item.stat().st_mtime for item in (path / "run.json", path / METRICS) if item.exists()))


def measured(path: Path) -> Row:
    """The newest figures of each kind."""
    last: dict[str, Row] = {}
    for line in tail(path / METRICS):
        last[str(line.get("kind"))] = line
    train, held_out = last.get("train", {}), last.get("validation", {})
    terms, elapsed = held_out.get("terms", {}), train.get("time", {}).get("elapsed")
    best = best_of(path)
    return {
        "step": max((int(line["step"]) for line in last.values()), default=0),
        "loss": train.get("loss"),
        "validation": best.get("loss"),
        "best_step": best.get("step"),
        "accuracy": terms.get("action_accuracy"),
        "alignment": terms.get("language_alignment"),
        "offline": storage.read_json(path / "offline.json")["policy"]["l1_per_spread"] if (path / "offline.json").is_file() else None,
        "success": success_of(path / "evaluation"),
        "samples_per_s": train["samples"] / elapsed if elapsed else None,
    }


def tail(path: Path) -> list[Row]:
    """The last lines of a log, which may be long; the first and the last of the piece that is read may be torn, and do not count."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    try:
        found = [json.loads(line) for line in (lines if size <= TAIL_BYTES else lines[1:])[:-1]]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON near its end ({error})") from None
    if not all(isinstance(line, dict) for line in found):
        raise DataError(f"{path}: a line is no object; it is not the log of a run")
    return found


def best_of(path: Path) -> Row:
    """Step and loss of the best checkpoint, as the newest checkpoint knows it."""
    pointer = path / "checkpoints" / "last"
    if not pointer.is_file():
        return {}
    newest = storage.inside(path / "checkpoints", pointer.read_text(encoding="utf-8")[:200].strip())
    return storage.read_json(newest / "trainer.json").get("best") or {}


def success_of(root: Path) -> Row | None:
    """The headline of the final evaluation, else of the last one by name."""
    found = {item.parent.name: item for item in sorted(root.glob("*/summary.json"))}
    if not found:
        return None
    summary = storage.read_json(found.get("final", next(reversed(found.values()))))
    found = Proportion(int(summary["successes"]), int(summary["episodes"]))  # refuses what cannot be
    return {"successes": found.successes, "episodes": found.episodes}


def ended(path: Path, total: int) -> Row:
    """Whether it runs, and if not, why not."""
    if storage.is_locked(path / ".lock"):
        return {"state": "running", "why": None}
    sessions = tail(path / SESSIONS)
    last = sessions[-1] if sessions else {}
    summary = storage.read_json(path / "summary.json") if (path / "summary.json").is_file() else {}
    if summary.get("stopped_early") or summary.get("steps", 0) >= total:
        return {"state": "finished", "why": summary.get("stopped_early")}
    if last.get("how") in ("failed", "stopped"):
        return {"state": last["how"], "why": last.get("why")}
    if last.get("kind") == "start":
        return {"state": "stopped", "why": "killed"}
    return {"state": "stopped" if sessions or (path / METRICS).is_file() else "prepared", "why": None}


def folded(path: Path, folds: int) -> Row:
    """A run of several folds: a step is a fold."""
    parts = list(path.glob("fold-*"))
    done = sum((part / "offline.json").is_file() for part in parts)
    running = any(storage.is_locked(part / ".lock") for part in parts)
    table = storage.read_json(path / "folds.json") if (path / "folds.json").is_file() else None
    state = "running" if running else "finished" if table is not None else "stopped"
    return {"step": done, "total": folds, "state": state, "offline": table["mean"]["policy"] if table is not None else None}


# Side by side --------------------------------------------------------------------------------------------------------------------------


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """The figures of runs, and the fields of their configs in which any of them differs from the first.

    Raises `UsageError` or `DataError` for a run that cannot be read: a comparison with a hole would mislead.
    """
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path}: no directory of a run; give some that `deftly runs` lists")
    rows = [look(path) for path in paths]
    for row in rows:
        if row["state"] == "damaged":
            raise UsageError(row["why"])
    configs = [storage.read_json(path / "run.json") for path in paths]
    lines = [line for other in configs[1:] for line in differences(configs[0], other)]
    fields = sorted({line.partition(":")[0].partition("[")[0] for line in lines})
    return {"runs": rows, "config": {field: [value_of(config, field) for config in configs] for field in fields}}


def value_of(config: Any, field: str) -> Any:
    """What stands at a dotted path: a plain value, an object or a list as text, None where there is nothing."""
    for part in field.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return json.dumps(config, ensure_ascii=False) if isinstance(config, dict | list) else config


def text_of_success(success: Row | None) -> str:
    return "" if success is None else str(Proportion(success["successes"], success["episodes"]))
