"""What the dataset of a run says, where it is still there: numbers only, no picture is decoded.

Letters: n frames, s state dims, a action dims.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deftly import storage
from deftly.data import quarantine
from deftly.data.columns import Columns
from deftly.data.dataset import Dataset
from deftly.data.source import DataConfig
from deftly.data.split import Split, fold_episodes, split_episodes
from deftly.data.store import default_cache
from deftly.training.diagnosis.record import Record, number, share
from deftly.training.diagnosis.verdicts import Verdict
from deftly.types import UsageError

MOST_EPISODES = 200  # that the probe reads, evenly spaced
LAGS = 6  # steps that labels are moved by, either way
CLEARLY = 0.8  # of the error that is left at lag 0: lags beside the right one leave nearly as little, because motion is smooth
LEAST_FIT = 0.2  # R²: below it actions do not explain the motion, and nothing can be told
LATENCY_S = 0.3  # from a command to the motion: a slow arm on a slow bus
FAR = 10.0  # spreads beyond the quantiles
OUTLIERS_SQUASH = ("min_max", "mean_std")


class Recorded(NamedTuple):
    """The numbers of a dataset as training read them."""

    dataset: Dataset
    columns: Columns
    training: np.ndarray
    validation: np.ndarray

    def rows(self, episode: int) -> slice:
        start = self.dataset.episode_start
        return slice(int(start[episode]), int(start[episode + 1]))


def data_verdicts(record: Record) -> Iterator[Verdict]:
    recorded = _open(record)
    if recorded is not None:
        yield from _copies(record, recorded)
        yield from _shift(recorded)
        yield from _numbers(record, recorded)


def _open(record: Record) -> Recorded | None:
    """None where the run names no dataset, or it is no longer what it was trained on."""
    values: Any = record.run.get("data")
    if not isinstance(values, dict) or not isinstance(values.get("path"), str) or not Path(values["path"]).is_dir():
        return None
    try:
        config = DataConfig.parse(values, str(record.directory / "run.json"))
        dataset, _ = quarantine.open_sound(config.path, config.check)
        columns = Columns.prepare(dataset, default_cache(dataset.root))
        training, validation = _split(record, dataset, config.validation_fraction)
    except (UsageError, OSError):
        return None
    return Recorded(dataset, columns, training, validation)


def _split(record: Record, dataset: Dataset, fraction: float) -> Split:
    """As training made it. How many folds there are is in the run.json of all of them, beside a fold's own."""
    seed, fold = record.run.get("seed", 0), re.search(r" fold (\d{1,9})$", str(record.run.get("name", "")))
    if fold is None:
        return split_episodes(dataset, fraction, seed)
    whole = record.directory.resolve().parent / "run.json"
    known = storage.read_json(whole) if whole.is_file() else None
    folds = known.get("folds") if isinstance(known, dict) else None
    if not isinstance(folds, int) or int(fold[1]) >= folds:  # moved away: all is looked at, and nothing is known of the split
        return np.arange(dataset.num_episodes), np.arange(0)
    return fold_episodes(dataset, folds, seed)[int(fold[1])]


def _copies(record: Record, recorded: Recorded) -> Iterator[Verdict]:
    """Episodes with the very same numbers: on both sides of the split, or on one."""
    first: dict[bytes, int] = {}
    copy_of: dict[int, int] = {}
    for episode in (*recorded.training.tolist(), *recorded.validation.tolist()):
        rows = recorded.rows(episode)
        digest = hashlib.sha256(recorded.columns.state[rows].tobytes() + recorded.columns.action[rows].tobytes()).digest()
        if (known := first.setdefault(digest, episode)) != episode:
            copy_of[episode] = known
    held_out, trained = set(recorded.validation.tolist()), set(recorded.training.tolist())
    leaks = [(episode, known) for episode, known in copy_of.items() if episode in held_out and known in trained]
    if leaks:
        yield Verdict(
            code="leaking-split",
            severity="fault",
            what="held-out episodes were trained on: the held-out loss says nothing about new ones",
            evidence=f"{len(leaks)} of {len(held_out)} held-out episodes have a copy in training, e.g. {leaks[0][0]} and {leaks[0][1]}",
            remedy="leave the copies out (`deftly data check` lists them), or name their scene so that they stay together",
        )
    if copy_of:
        yield Verdict(
            code="duplicate-data",
            severity="warning",
            what="episodes come more than once",
            evidence=f"{len(copy_of)} of {len(held_out) + len(trained)} repeat another, e.g. {next(iter(copy_of))}",
            remedy="leave the copies out: they count double",
        )


def _shift(recorded: Recorded) -> Iterator[Verdict]:
    episodes = recorded.training[:: max(1, len(recorded.training) // MOST_EPISODES)]
    fits = lag_fits([(recorded.columns.state[rows], recorded.columns.action[rows]) for rows in map(recorded.rows, episodes.tolist())])
    if fits is None:
        return
    best = max(fits, key=fits.__getitem__)
    rate = recorded.dataset.embodiment.rate_hz
    late, early = best > 0, best <= -max(3, round(LATENCY_S * rate))
    if fits[best] < LEAST_FIT or 1 - fits[best] > CLEARLY * (1 - fits[0]) or not (late or early):
        return
    evidence = f"the motion from one frame to the next fits the action {abs(best)} frames {'later' if late else 'earlier'} best: R² "
    yield Verdict(
        code="label-shift",
        severity="fault" if abs(best) > 1 else "warning",
        what=f"actions stand {abs(best)} frame{'s' * (abs(best) > 1)} too {'late' if late else 'early'} beside their observations",
        evidence=f"{evidence}{fits[best]:.2f}, and {fits[0]:.2f} as recorded ({len(episodes)} episodes)",
        remedy="shift the actions when recording or importing: an action is what was commanded after its frame was seen",
    )


def lag_fits(episodes: list[tuple[np.ndarray, np.ndarray]], most: int = LAGS) -> dict[int, float] | None:
    """Lag -> R² of predicting the next change of state [n s] from state and the action [n a] that far ahead, linearly, on every other
    episode.

    All lags are judged on the same frames. None where episodes are too few or too short.
    """
    lags = range(-most, most + 1)
    usable = [(state, action) for state, action in episodes if len(state) > 3 * most]
    if len(usable) < 4:
        return None
    state_scale, action_scale = (np.concatenate([one[i] for one in usable]).std(0) + 1e-12 for i in (0, 1))
    moves = np.concatenate([one[0] for one in usable]).std(0) > 1e-9
    usable = [((state / state_scale)[:, moves], action / action_scale) for state, action in usable]
    fits = {}
    for lag in lags:
        inputs, targets = [], []
        for state, action in usable:
            frames = np.arange(most, len(state) - most - 1)
            inputs.append(np.concatenate([state[frames], action[frames + lag], np.ones((len(frames), 1))], axis=1))
            targets.append(state[frames + 1] - state[frames])
        fits[lag] = fit(inputs, targets)
    return fits


def fit(inputs: list[np.ndarray], targets: list[np.ndarray]) -> float:
    """R² on odd episodes of a ridge regression on even ones, mean over the dimensions that change."""
    x, y = (np.concatenate(part[::2]).astype(np.float64) for part in (inputs, targets))
    x_test, y_test = (np.concatenate(part[1::2]).astype(np.float64) for part in (inputs, targets))
    weights = np.linalg.solve(x.T @ x + 1e-6 * len(x) * np.eye(x.shape[1]), x.T @ y)
    spread = ((y_test - y.mean(0)) ** 2).mean(0)
    changes = spread > 1e-12
    error = ((y_test - x_test @ weights) ** 2).mean(0)
    return float((1 - error[changes] / spread[changes]).mean()) if changes.any() else 0.0


def _numbers(record: Record, recorded: Recorded) -> Iterator[Verdict]:
    """Dimensions that are constant, and values so far out that normalisation squashes the rest."""
    robot = recorded.dataset.embodiment
    normalization = str(record.run.get("data", {}).get("normalization"))
    for names, values, what in (
        (robot.state.names, recorded.columns.state, "state"),
        (robot.action.names, recorded.columns.action, "action"),
    ):
        low, high = np.quantile(values, [0.01, 0.99], axis=0)
        smallest, largest = values.min(0), values.max(0)
        constant = [name for name, a, b in zip(names, smallest, largest, strict=True) if a == b]
        if constant:
            yield Verdict(
                code="constant-dimension",
                severity="note",
                what=f"{what} dimensions never change",
                evidence=", ".join(constant),
                remedy="nothing, if the robot is like that; they are not normalised",
            )
        width = high - low
        far = [
            (name, max(b - top, bottom - a) / span)
            for name, a, b, bottom, top, span in zip(names, smallest, largest, low, high, width, strict=True)
            if span > 0 and max(b - top, bottom - a) > FAR * span
        ]
        if far:
            name, times = max(far, key=lambda item: item[1])
            yield Verdict(
                code="outliers",
                severity="warning" if normalization in OUTLIERS_SQUASH else "note",
                what=f"single values of {what} lie far from all others",
                evidence=f"{name}: {number(times)} times the range that holds {share(0.98)} of its values ({len(far)} dimensions)",
                remedy="run `deftly data check`; data.normalization quantile is not moved by them",
            )
