"""A run as one page: everything that its files say, in a single HTML file without scripts and without anything from elsewhere.

A pure function of the files of a run. What is not there yet is left out; nothing is measured here. The figures are computed from
`plan.json` and `episodes.jsonl`, not copied from `summary.json`.
"""

from __future__ import annotations

import base64
import shlex
import statistics
from pathlib import Path
from typing import Any

import jinja2

from deftly import storage
from deftly.contract import Contract
from deftly.evaluation import charts
from deftly.evaluation.learning import seconds, sessions, training
from deftly.evaluation.plan import EPISODES, PLAN, Plan, read
from deftly.evaluation.statistics import Proportion
from deftly.evaluation.summary import Row, read_rows, summarise, video_path
from deftly.foreign import making_sense_of
from deftly.types import DataError, UsageError

REPORT = "report.html"
TEMPLATE = "report.html.jinja"
MAX_VIDEO_BYTES = 5 << 20  # all together; base64 adds a third

ANOTHER_NAME = "evaluate under another --name"

MEANINGS = {
    "deaf": "told another object, scored on the original one",
    "blind": "shown black images",
    "random": "moves to random places",
    "no_op": "holds still",
}
HEARD = "told another object, it picked that one"
REASONS = {
    "wrong_object": "lifted another object first",
    "missed_grasp": "tried to grasp it, but did not hold it up in time",
    "timeout": "the time was over before it tried",
    "invalid_action": "the policy's output was no possible action",
    "crashed": "the world or the policy crashed",
}


def write_report(run: Path, out: Path | None = None, evaluation: str | None = None) -> Path:
    """Write the page of a run and return its path, by default RUN/report.html.

    Args:
        evaluation: which one is the headline; by default `final`, else the last finished one by name.

    Raises:
        UsageError: `run` is not a run, or has no such evaluation.
        DataError: a file of it is broken.
    """
    path = out or run / REPORT
    storage.write_text(path, render(gather(run, evaluation)))
    return path


def render(page: dict[str, Any]) -> str:
    """The page as HTML; every text in `page` is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(TEMPLATE).render(page)


def gather(run: Path, evaluation: str | None = None) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    if not (run / "run.json").is_file():
        raise UsageError(f"{run}: not a run (no run.json); give a run directory, such as runs/demo")
    config = storage.read_json(run / "run.json")
    with making_sense_of(run / "run.json"):
        name_of_run, has_world, data = str(config.get("name", run.name)), config.get("world") is not None, config.get("data", {})
        data_path = str(data.get("path", ""))
    checkpoint = find_checkpoint(run)
    contract = None
    if checkpoint is not None:
        with making_sense_of(checkpoint / "policy" / "contract.json"):
            contract = Contract.load(checkpoint / "policy" / "contract.json")
    rate_hz = contract.embodiment.rate_hz if contract is not None else None
    finished, unfinished = find_evaluations(run / "evaluation")
    if evaluation is not None and evaluation not in finished:
        known = f"finished ones: {', '.join(finished)}" if finished else f"there are none; run `deftly evaluate {run}`"
        raise UsageError(f"{run}: no finished evaluation {evaluation!r}; {known}")
    name = evaluation or ("final" if "final" in finished else next(reversed(finished), None))
    return {
        "name": name_of_run,
        "robot": contract.embodiment.name if contract is not None else None,
        "evaluation": sound_judged(run / "evaluation" / name, *finished[name], rate_hz) if name is not None else None,
        "others": [sound_other(run / "evaluation" / key, *value) for key, value in finished.items()] if len(finished) > 1 else [],
        "unfinished": unfinished,
        "training": training(run),
        "judge": f"deftly evaluate {shlex.quote(str(run))}" if has_world else None,
        "offline": offline(run / "offline.json"),
        "folds": folds(run / "folds.json"),
        "facts": facts(run, data_path, contract, finished[name][0] if name is not None else None),
        "commands": commands(run, data_path, finished[name][0] if name is not None else None),
    }


# Evaluations ----------------------------------------------------------------------------------------------------------------------------


def find_evaluations(root: Path) -> tuple[dict[str, tuple[Plan, dict[tuple[str, int], Row]]], list[dict[str, Any]]]:
    """Finished evaluations by name, and what is known of the others."""
    finished, unfinished = {}, []
    for directory in sorted(path.parent for path in root.glob(f"*/{PLAN}")):
        with making_sense_of(directory / PLAN, ANOTHER_NAME):
            plan = read(directory)
        with making_sense_of(directory / EPISODES, ANOTHER_NAME):
            rows = read_rows(plan, directory)
        if len(rows) == len(plan.jobs()):
            finished[directory.name] = (plan, rows)
        else:
            unfinished.append({"name": directory.name, "done": len(rows), "total": len(plan.jobs())})
    return finished, unfinished


def sound_judged(directory: Path, plan: Plan, rows: dict[tuple[str, int], Row], rate_hz: float | None) -> dict[str, Any]:
    with making_sense_of(directory / EPISODES, ANOTHER_NAME):
        return judged(directory, plan, rows, rate_hz)


def sound_other(directory: Path, plan: Plan, rows: dict[tuple[str, int], Row]) -> dict[str, Any]:
    with making_sense_of(directory / EPISODES, ANOTHER_NAME):
        return other(directory.name, plan, rows)


def judged(directory: Path, plan: Plan, rows: dict[tuple[str, int], Row], rate_hz: float | None) -> dict[str, Any]:
    """The headline with everything that stands beside it."""
    summary = summarise(plan, rows)
    policy = [rows["policy", episode] for episode in range(plan.episodes)]
    headline = Proportion(summary["successes"], summary["episodes"])
    dots = [charts.dot("policy", headline, "told its own sentence", "policy")]
    baselines = summary["baselines"]
    dots += [charts.dot(name.replace("_", "-"), counts(baselines[name]), MEANINGS[name]) for name in MEANINGS if name in baselines]
    deaf = baselines.get("deaf")
    obeyed = [charts.dot("other sentence", Proportion(deaf["obeyed"], deaf["episodes"]), HEARD, "policy")] if deaf else []
    low, high = headline.interval
    failed = plan.episodes - headline.successes
    solved_s = [row["steps"] / rate_hz for row in policy if row["success"]] if rate_hz else []
    videos, left_out = films(directory, policy, rate_hz)
    return {
        "name": directory.name,
        "seed": plan.seed,
        "episodes": plan.episodes,
        "successes": headline.successes,
        "text": str(headline),
        "low": f"{100 * low:.0f}",
        "high": f"{100 * high:.0f}",
        "refused": bool(summary["success_at_reset"]),
        "notes": summary["notes"],
        "dots": dots,
        "obeyed": obeyed,
        "failed": failed,
        "failures": [
            {"label": name.replace("_", " "), "count": count, "width": 100 * count / failed, "meaning": REASONS.get(name, "")}
            for name, count in summary["failures"].items()
            if count
        ],
        "strata": [
            {"title": title, "dots": [charts.dot(value, counts(found)) for value, found in summary[key].items()]}
            for title, key in (("by object", "per_type"), ("by colour", "per_colour"), ("by skill", "per_skill"))
            if len(summary[key]) > 1
        ],
        "median": seconds(statistics.median(solved_s)) if solved_s else None,
        "times": solved_over_time(solved_s) if len(solved_s) > 1 else None,
        "videos": videos,
        "videos_left_out": left_out,
        "clipped": summary["clipped_actions"],
    }


def counts(found: dict[str, Any]) -> Proportion:
    return Proportion(found["successes"], found["episodes"])


def other(name: str, plan: Plan, rows: dict[tuple[str, int], Row]) -> dict[str, Any]:
    """One evaluation as a row of the table of all of them."""
    headline = Proportion.of([rows["policy", episode]["success"] for episode in range(plan.episodes)])
    return {"seed": plan.seed, "policy": plan.policy[:12], "dot": charts.dot(name, headline, kind="policy")}


def solved_over_time(times: list[float]) -> charts.Curves | None:
    """How many episodes were solved within each time."""
    times = sorted(times)
    steps = [(0.0, 0.0)] + [point for count, time in enumerate(times) for point in ((time, float(count)), (time, count + 1.0))]
    return charts.curves([charts.Series("episodes solved", [x for x, _ in steps], [y for _, y in steps])])


def films(directory: Path, policy: list[Row], rate_hz: float | None) -> tuple[list[dict[str, Any]], int]:
    """The drawn episodes, successes first, and how many did not fit on the page."""
    found, left_out, budget = [], 0, MAX_VIDEO_BYTES
    for row in sorted(policy, key=lambda row: not row["success"]):
        path = video_path(directory, row)
        if not path.is_file():
            continue
        budget -= path.stat().st_size
        if budget < 0:
            left_out += 1
            continue
        found.append(
            {
                "source": "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode(),
                "sentence": row["told"],
                "success": row["success"],
                "outcome": row["outcome"].replace("_", " "),
                "reason": REASONS.get(row["outcome"], ""),
                "seconds": seconds(row["steps"] / rate_hz) if rate_hz else None,
                "episode": row["episode"],
            }
        )
    return found, left_out


# Offline --------------------------------------------------------------------------------------------------------------------------------


def offline(path: Path) -> list[dict[str, Any]]:
    """Errors on held-out episodes, the smallest first; empty where none were measured."""
    if not path.is_file():
        return []
    errors = storage.read_json(path)
    with making_sense_of(path):
        return bars({name: found["l1_per_spread"] for name, found in errors.items()})


def bars(errors: dict[str, float]) -> list[dict[str, Any]]:
    """Errors as bars, the smallest first."""
    largest = max(errors.values(), default=0.0) or 1.0
    ordered = sorted(errors.items(), key=lambda item: item[1])
    return [{"label": name.replace("_", " "), "text": f"{value:.3f}", "width": 100 * value / largest} for name, value in ordered]


def folds(path: Path) -> dict[str, Any] | None:
    """What cross-validation found: the mean as bars, every fold as a row, the verdict; None for a run without folds."""
    if not path.is_file():
        return None
    try:
        table = storage.read_json(path)
        mean, wins, unit = table["mean"], table["policy_beats_both_baselines"], table["unit"]
        names = sorted(mean, key=lambda name: mean[name])
        rows = [{"label": f"fold {index}", "values": [f"{fold[name]:.3f}" for name in names]} for index, fold in enumerate(table["folds"])]
        policy_wins = sum(fold["policy"] == min(fold.values()) for fold in table["folds"])
        others = [f"{name.replace('_', ' ')} {mean[name]:.3f}" for name in names if name != "policy"]
        found = f"in the mean over {len(rows)} folds its error is {mean['policy']:.3f}, beside {' and '.join(others)}"
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{path}: not a table of folds ({type(error).__name__}: {error}); train again with --resume to write it") from None
    return {
        "bars": bars(mean),
        "names": [name.replace("_", " ") for name in names],
        "rows": [*rows, {"label": "mean", "values": [f"{mean[name]:.3f}" for name in names]}],
        "verdict": f"The policy {'beats' if wins else 'does not beat'} every baseline on episodes that it has not seen: {found}.",
        "wins": bool(wins),
        "count": f"It has the smallest error in {policy_wins} of {len(rows)} folds.",
        "unit": str(unit),
    }


# What it is, and how to get it again ------------------------------------------------------------------------------------------------------


def find_checkpoint(run: Path) -> Path | None:
    """The best checkpoint, else the last; None before there is one."""
    for pointer in ("best", "last"):
        path = run / "checkpoints" / pointer
        if path.is_file():
            with making_sense_of(path):
                name = path.read_text(encoding="utf-8")[:200].strip()
            if not name or not name.isprintable():  # guard: evaluation.report.pointer
                raise DataError(f"{path}: names no checkpoint; restore the file, or train again")
            return storage.inside(run / "checkpoints", name)
    return None


def facts(run: Path, data_path: str, contract: Contract | None, plan: Plan | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of names and values."""
    found = {"Policy": policy_facts(run, contract), "Contract": contract_facts(contract), "Data": data_facts(run, data_path)}
    found["Trained on"] = machine_facts(find_checkpoint(run))
    found["Judged with"] = list(plan.versions.items()) if plan is not None else []
    found["Sessions"] = sessions(run)
    return [(title, pairs) for title, pairs in found.items() if pairs]


def policy_facts(run: Path, contract: Contract | None) -> list[tuple[str, str]]:
    pairs = []
    if (run / "summary.json").is_file():
        summary = storage.read_json(run / "summary.json")
        with making_sense_of(run / "summary.json"):
            pairs = [("parameters", f"{summary['parameters']:,}".replace(",", " ")), ("trained in", str(summary["precision"]))]
            if summary.get("best"):
                pairs.append(("best checkpoint", f"step {summary['best']['step']} of {summary['steps']}"))
    if contract is not None:
        window = contract.window
        pairs.append(
            ("sees", f"{window.frames} frame{'s' * (window.frames > 1)} of {', '.join(contract.cameras)} at {contract.image_size} px")
        )
        pairs.append(("plans", f"{window.chunk} actions, plays {contract.executed_steps}"))
    return pairs


def contract_facts(contract: Contract | None) -> list[tuple[str, str]]:
    if contract is None:
        return []
    robot = contract.embodiment
    return [
        ("robot", robot.name),
        ("rate", f"{robot.rate_hz:g} Hz"),
        ("cameras", ", ".join(f"{camera.name} {camera.width} × {camera.height}" for camera in robot.cameras)),
        ("state", listed(robot.state.names, robot.state.units)),
        ("action", f"{listed(robot.action.names, robot.action.units)}; {robot.action_kind.replace('_', ' ')}"),
        ("normalisation", contract.normalization.replace("_", " ")),
    ]


def listed(names: tuple[str, ...], units: tuple[str, ...]) -> str:
    """Names with their units, a unit once for the names that share it."""
    groups: dict[str, list[str]] = {}
    for name, unit in zip(names, units, strict=True):
        groups.setdefault(unit, []).append(name.replace("_", " "))
    return "; ".join(f"{', '.join(group)} ({unit})" for unit, group in groups.items())


def machine_facts(checkpoint: Path | None) -> list[tuple[str, str]]:
    """Device, threads, precision and versions, as the checkpoint recorded them."""
    if checkpoint is None or not (checkpoint / "trainer.json").is_file():
        return []
    state = storage.read_json(checkpoint / "trainer.json")
    with making_sense_of(checkpoint / "trainer.json"):
        return [(str(name), str(value)) for name, value in state.get("environment", {}).items()]


def data_facts(run: Path, path: str) -> list[tuple[str, str]]:
    """What the policy was trained on: what the run wrote down, else what the dataset says if it is still there."""
    pairs = [("path", path)] if path else []
    if (run / "data.json").is_file():
        data = storage.read_json(run / "data.json")
        with making_sense_of(run / "data.json"):
            pairs += [
                ("demonstrations", f"{data['training_episodes']} for training, {data['validation_episodes']} held out"),
                ("frames", f"{data['frames']:,} ({data['hours']:.2f} h)".replace(",", " ")),
                ("instructions", f"{data['instructions']} sentences, {data['vocabulary']} words"),
                ("sha256", str(data["hash"])[:16]),
            ]
    elif path and (Path(path) / "meta" / "info.json").is_file():
        info = storage.read_json(Path(path) / "meta" / "info.json")
        with making_sense_of(Path(path) / "meta" / "info.json", "use a copy of the dataset"):
            pairs += [("demonstrations", str(info.get("total_episodes"))), ("frames", f"{info.get('total_frames', 0):,}".replace(",", " "))]
    return pairs


def commands(run: Path, data_path: str, plan: Plan | None) -> list[str]:
    """What to type to get these figures again."""
    again = shlex.quote(f"{run}-again")
    found = []
    about = Path(data_path) / "meta" / "deftly.json"
    made = storage.read_json(about) if about.is_file() else {}
    with making_sense_of(about, "use a copy of the dataset"):
        if generation := made.get("generation"):
            again_made = f"--episodes {int(generation['episodes'])} --seed {int(generation['seed'])} --out {shlex.quote(data_path)}"
            found.append(f"deftly data generate {again_made}")
    found.append(f"deftly train {shlex.quote(str(run / 'run.json'))} --out {again}")
    if plan is not None:
        found.append(f"deftly evaluate {again} --episodes {plan.episodes} --seed {plan.seed}")
    return [*found, f"deftly report {again}"]
