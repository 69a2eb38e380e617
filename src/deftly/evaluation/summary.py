"""From the rows of an evaluation to its summary: a pure function of `plan.json` and `episodes.jsonl`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deftly import storage
from deftly.evaluation.plan import EPISODES, SUMMARY, VIDEOS, Plan, read
from deftly.evaluation.statistics import Proportion, mcnemar
from deftly.foreign import printable
from deftly.types import DataError

FAILURES = ("wrong_object", "missed_grasp", "timeout", "invalid_action", "crashed")
Row = dict[str, Any]


def read_rows(plan: Plan, directory: Path) -> dict[tuple[str, int], Row]:
    """The rows so far by (arm, episode); `DataError` for a row that the plan does not know, or that is there twice."""
    path = directory / EPISODES
    jobs = set(plan.jobs())
    rows: dict[tuple[str, int], Row] = {}
    for number, row in enumerate(storage.read_lines(path), 1):
        where = f"{path}:{number}"
        try:
            job, seed, policy = (row["arm"], row["episode"]), row["seed"], row["policy"]
        except (TypeError, KeyError):
            raise DataError(f"{where}: not a row of an evaluation; evaluate under another --name") from None
        who = f"{printable(job[0])} episode {printable(job[1])}"
        if job not in jobs or seed != plan.episode_seed(job[1]) or policy != plan.policy:
            raise DataError(f"{where}: {who} does not belong to this plan; evaluate under another --name")
        if job in rows:
            raise DataError(f"{where}: {who} is there twice; remove one of the lines")
        rows[job] = row
    return rows


def check_paired(rows: Iterable[Row]) -> None:
    """Every arm must have seen the same initial states, or they cannot be compared."""
    states: dict[int, tuple[str, str]] = {}
    for row in rows:
        if not row["state_hash"]:
            continue  # it crashed before there was a state
        arm, state = states.setdefault(row["episode"], (row["arm"], row["state_hash"]))
        if state != row["state_hash"]:
            where = f"episode {row['episode']} started differently for {arm} and {row['arm']}"
            raise DataError(f"{where}: the world is not a function of its seed; mend the world")


def summarise(plan: Plan, rows: dict[tuple[str, int], Row]) -> dict[str, Any]:
    """Counts, rates with intervals, failures, strata and baselines. Raises `DataError` while episodes are missing."""
    missing = len(plan.jobs()) - len(rows)
    if missing:
        raise DataError(f"{missing} of {len(plan.jobs())} episodes are missing: the evaluation was stopped; run it again to finish it")
    check_paired(rows.values())
    arms = {arm: [rows[arm, episode] for episode in range(plan.episodes)] for arm in ("policy", *plan.baselines)}
    policy = arms["policy"]
    headline = Proportion.of([row["success"] for row in policy])
    failures = Counter(row["outcome"] for row in policy if not row["success"])
    at_reset = sorted({row["episode"] for arm in arms.values() for row in arm if row["success_at_reset"]})
    summary = {
        **headline.to_dict(),
        "per_skill": strata(policy, "skill"),
        "failures": {name: failures.get(name, 0) for name in (*FAILURES, *sorted(set(failures) - set(FAILURES)))},
        "baselines": {arm: _baseline(arm, arms[arm], policy) for arm in plan.baselines},
        "per_type": strata(policy, "type"),
        "per_colour": strata(policy, "colour"),
        "success_at_reset": at_reset,
        "clipped_actions": sum(row["clipped"] for row in policy),
        "notes": [],
    }
    if at_reset:
        # Such a figure measures the world, not the policy: the counts stay, to find the fault with; the headline goes.
        summary |= {"success_rate": None, "wilson_low": None, "wilson_high": None}
        summary["notes"].append(f"no headline: {len(at_reset)} episodes were successes before the first action (the first: {at_reset[0]})")
    summary["notes"] += _notes(headline, summary["baselines"])
    return summary


def strata(rows: list[Row], label: str) -> dict[str, Any]:
    """One proportion for each value of a label, in alphabetical order; empty when the world gives no such label."""
    values = sorted({row["labels"][label] for row in rows if label in row["labels"]})
    return {value: Proportion.of([row["success"] for row in rows if row["labels"].get(label) == value]).to_dict() for value in values}


def _baseline(arm: str, rows: list[Row], policy: list[Row]) -> dict[str, Any]:
    paired = mcnemar([row["success"] for row in policy], [row["success"] for row in rows])
    found = Proportion.of([row["success"] for row in rows]).to_dict()
    if arm == "deaf":
        obeyed = Proportion.of([bool(row["obeyed"]) for row in rows])
        found |= {"obeyed": obeyed.successes, "obeyed_low": obeyed.interval.low, "obeyed_high": obeyed.interval.high}
    crashed = sum(row["outcome"] == "crashed" for row in rows)
    return {**found, "crashed": crashed, "only_policy": paired.only_first, "only_baseline": paired.only_second, "p_value": paired.p_value}


def _notes(headline: Proportion, baselines: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the headline."""
    reasons = {"blind": "it hardly uses its cameras", "deaf": "it hardly listens to the sentence"}
    notes = []
    for name, reason in reasons.items():
        if name not in baselines or not headline.successes:
            continue
        score = Proportion(baselines[name]["successes"], baselines[name]["episodes"])
        if 2 * score.successes >= headline.successes:
            notes.append(f"{name} reaches {score}, at least half of the policy's {headline}: {reason}")
    return notes


def write_summary(directory: Path) -> dict[str, Any]:
    """Summarise a finished evaluation: reads plan and rows, puts the rows in canonical order, writes `summary.json`, returns it."""
    plan = read(directory)
    rows = read_rows(plan, directory)
    summary = summarise(plan, rows)
    storage.write_text(directory / EPISODES, "".join(json.dumps(rows[job], ensure_ascii=False) + "\n" for job in plan.jobs()))
    storage.write_json(directory / SUMMARY, summary)
    return summary


def video_path(directory: Path, row: Row) -> Path:
    """Where the video of a row of the policy is; its name says what it shows."""
    return directory / VIDEOS / f"episode-{row['episode']:04d}-{row['outcome']}.mp4"
