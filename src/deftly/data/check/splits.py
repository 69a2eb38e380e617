"""Are any two episodes the same, and do declared splits share any? What trains and judges at once measures nothing."""

from __future__ import annotations

import hashlib

import numpy as np

from deftly import storage
from deftly.data.check.findings import Finding
from deftly.data.check.rows import Rows, vectors
from deftly.data.dataset import Dataset
from deftly.data.schema import INFO_PATH
from deftly.data.split import SCENE


def check_twins(rows: Rows, dataset: Dataset) -> list[Finding]:
    """Episodes with the very same numbers: one finding each."""
    found = []
    for episode, first in twins(rows, dataset).items():
        message = f"holds the same numbers as episode {first}"
        remedy = "drop the copies, or they may train and judge at once"
        found.append(Finding(code="duplicate_episode", verdict="warn", episode=episode, message=message, remedy=remedy))
    return found


def twins(rows: Rows, dataset: Dataset) -> dict[int, int]:
    """Each episode that repeats an earlier one -> that one."""
    seen: dict[bytes, int] = {}
    found = {}
    columns = [np.ascontiguousarray(values) for values, _ in vectors(rows, dataset).values()]
    for place, episode in enumerate(rows.episodes.tolist()):
        part = slice(int(rows.start[place]), int(rows.start[place + 1]))
        digest = hashlib.sha256(b"".join(values[part].tobytes() for values in columns)).digest()
        first = seen.setdefault(digest, episode)
        if first != episode:
            found[episode] = first
    return found


def check_splits(rows: Rows, dataset: Dataset) -> list[Finding]:
    """The splits that info.json declares: no trajectory and no scene in two of them."""
    sides = _declared(dataset)
    if len(sides) < 2:
        return []
    side_of = {episode: name for name, episodes in sides.items() for episode in episodes}
    scenes = dataset.extra(SCENE)
    first_with: dict[str, int] = {}
    found: list[tuple[int, int, str]] = [(episode, first, "numbers") for episode, first in twins(rows, dataset).items()]
    for episode in rows.episodes.tolist():
        if scenes and scenes[episode] is not None:
            first = first_with.setdefault(str(scenes[episode]), episode)
            if first != episode:
                found.append((episode, first, "scene"))
    leaks = [leak for leak in found if {leak[0], leak[1]} <= side_of.keys() and side_of[leak[0]] != side_of[leak[1]]]
    if not leaks:
        return []
    episode, first, what = leaks[0]
    place = f"of split {side_of[episode]!r} has the same {what} as episode {first} of split {side_of[first]!r}"
    message = f"{place} ({len(leaks)} episodes leak)"
    remedy = "results on that split mean nothing: split anew, whole scenes at a time (deftly does so by itself)"
    return [
        Finding(
            code="split_leak",
            verdict="warn",
            file=INFO_PATH,
            episode=episode,
            field="splits",
            message=message,
            remedy=remedy,
            count=len(leaks),
        )
    ]


def _declared(dataset: Dataset) -> dict[str, range]:
    """Split name -> its episodes, as far as info.json says it in the usual way, `begin:end`."""
    values = storage.read_json(dataset.root / INFO_PATH)
    splits = values.get("splits") if isinstance(values, dict) else None
    found = {}
    for name, text in (splits if isinstance(splits, dict) else {}).items():
        begin, _, end = str(text).partition(":")
        if begin.strip().isdecimal() and end.strip().isdecimal():
            found[str(name)] = range(min(int(begin), dataset.num_episodes), min(int(end), dataset.num_episodes))
    return found
