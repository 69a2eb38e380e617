"""Are the numbers of state and action fit to learn from? Not finite, outliers, spikes, dimensions that hardly move, idle stretches.

Thresholds are relative to the data's own spread, so that they mean the same for radians and for millimetres.
"""

from __future__ import annotations

import numpy as np

from deftly.data.check.findings import CheckConfig, Finding
from deftly.data.check.rows import REPAIR, Rows, vectors
from deftly.data.dataset import Dataset
from deftly.data.schema import ACTION, STATE

OUTLIER = 1e3  # times the spread between the 5 % and 95 % quantiles, away from the median
SPIKE_STEP = 10  # times the 99 % quantile of the other steps from row to row, out and back again in one frame
SPIKE_RANGE = 0.5  # and at least this share of the spread
SWITCH = 0.05  # of the range: values that lie nearer to one of its ends than this, in the mean, are those of a switch
FEW_LEVELS = 4  # different values: a switch jumps by nature
NEAR_CONSTANT = 1e-2  # of the median spread of the feature's dimensions: normalisation raises it to that
STILL = 1e-3  # of a dimension's spread: less than this from row to row is no motion
IDLE_S = 2.0  # a pause as long as this is idle
IDLE_SHARE = 0.2  # of all frames, from which it is worth a warning
LONG = 15  # times the median length of an episode


def check_values(rows: Rows, dataset: Dataset, config: CheckConfig) -> list[Finding]:
    """Findings about state and action; statistics are those of the finite rows."""
    found: list[Finding] = []
    finite = np.ones(int(rows.start[-1]), dtype=bool)
    features = vectors(rows, dataset)
    for name, (values, labels) in features.items():
        bad = np.asarray(~np.isfinite(values).all(1))
        finite &= ~bad
        if bad.any():  # guard: data.check.not_finite
            found += _not_finite(rows, name, values, labels, bad)
    for name, (values, labels) in features.items():
        if finite.any():
            found += _spread(rows, name, values, labels, finite)
            found += _spikes(rows, name, values, labels, finite)
    return [*found, *_lengths(rows, config), *_idle(rows, dataset, features, finite)]


def _not_finite(rows: Rows, name: str, values: np.ndarray, labels: tuple[str, ...], bad: np.ndarray) -> list[Finding]:
    found = []
    for episode, frame, row in rows.first(bad):
        dim = int(np.flatnonzero(~np.isfinite(values[row]))[0])
        message = f"{labels[dim]!r} is {values[row, dim]}"
        found.append(
            Finding(code="not_finite", verdict="quarantine", episode=episode, frame=frame, field=name, message=message, remedy=REPAIR)
        )
    return found


def _spread(rows: Rows, name: str, values: np.ndarray, labels: tuple[str, ...], finite: np.ndarray) -> list[Finding]:
    """Outliers, and dimensions that do not move or hardly."""
    known = values if finite.all() else values[finite]
    low, middle, high = (np.empty(len(labels)) for _ in range(3))
    for dim in range(len(labels)):  # one at a time: a quantile works on a copy
        low[dim], middle[dim], high[dim] = np.quantile(known[:, dim].astype(np.float64), (0.05, 0.5, 0.95))
    spread, whole = high - low, known.max(0).astype(np.float64) - known.min(0)
    moving = np.where(spread > 0, spread, whole)
    typical = float(np.median(moving[moving > 0])) if (moving > 0).any() else 0.0
    found = []
    for dim, label in enumerate(labels):
        if whole[dim] == 0:
            message = f"{label!r} is always {known[0, dim]:.4g}: it is not scaled and teaches nothing"
            found.append(Finding(code="constant", verdict="note", field=name, message=message))
            continue
        reach = OUTLIER * max(spread[dim], NEAR_CONSTANT * typical)
        away = np.where(finite, np.abs(values[:, dim] - middle[dim]), 0)
        if reach > 0 and away.max() > reach:
            row = int(away.argmax())
            episode, frame = rows.place(row)
            message = f"{label!r} is {values[row, dim]:.4g}, while 90 % of the values lie within {low[dim]:.4g} .. {high[dim]:.4g}"
            remedy = "keep normalization quantile (mean_std and min_max are refused), or repair the episode"
            found.append(Finding(code="outlier", verdict="warn", episode=episode, frame=frame, field=name, message=message, remedy=remedy))
        elif whole[dim] < NEAR_CONSTANT * typical:
            message = (
                f"{label!r} hardly moves (range {whole[dim]:.3g}, the others' spread is {typical:.3g}): normalisation does not blow it up"
            )
            found.append(Finding(code="near_constant", verdict="note", field=name, message=message))
    return found


def _spikes(rows: Rows, name: str, values: np.ndarray, labels: tuple[str, ...], finite: np.ndarray) -> list[Finding]:
    """A single frame that jumps out and back: a dropped packet, not a motion."""
    inner = np.zeros(len(values), dtype=bool)  # has a neighbour on both sides, in its own episode
    inner[1:-1] = finite[1:-1] & finite[:-2] & finite[2:]
    inner[rows.start[:-1]] = inner[rows.start[1:] - 1] = False
    if not inner.any():
        return []
    columns = [values[:, dim].astype(np.float64) for dim in range(len(labels))]
    spreads = np.array([_reach(column[finite]) for column in columns])
    floor = NEAR_CONSTANT * float(np.median(spreads[spreads > 0])) if (spreads > 0).any() else 0.0
    found = []
    for column, label, spread in zip(columns, labels, spreads.tolist(), strict=True):
        if len(np.unique(column[finite])) <= FEW_LEVELS:
            continue
        jump, spikes = _jumps(np.where(finite, column, 0), inner, finite, spread, floor)
        if spikes.any():
            episode, frame, row = next(rows.first(spikes))
            message = f"{label!r} jumps by {jump[row]:.3g} for one frame ({int(spikes.sum())} such frames)"
            remedy = "look at it: a lost packet is not a motion"
            found.append(Finding(code="spike", verdict="warn", episode=episode, frame=frame, field=name, message=message, remedy=remedy))
    return found


def _jumps(column: np.ndarray, inner: np.ndarray, finite: np.ndarray, spread: float, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """(how far each row lies off both its neighbours, on one side of them; whether that is a spike).

    What is usual is measured on the rows that are left when everything that may be a spike is taken away, so that many spikes do not
    hide each other.
    """
    steps = np.diff(column)
    before, after = np.append(0, steps), np.append(-steps, 0)
    jump = np.where((np.sign(before) == np.sign(after)) & inner, np.minimum(np.abs(before), np.abs(after)), 0)
    odd = jump > SPIKE_RANGE * spread
    calm = inner & ~odd
    calm[1:] &= ~odd[:-1]  # a step away from a spike is a step of the spike
    if not calm.any():
        return jump, np.zeros_like(odd)
    low, high = np.quantile(column[finite & ~odd], (0.01, 0.99))
    usual = high - low
    limit = max(SPIKE_STEP * float(np.quantile(np.abs(before[calm]), 0.99)), SPIKE_RANGE * usual, floor)
    spikes = jump > limit
    rest = column[calm]
    if np.minimum(np.abs(rest - low), np.abs(rest - high)).mean() <= SWITCH * usual:  # a switch may be thrown for one frame
        spikes &= (column < low - SPIKE_RANGE * usual) | (column > high + SPIKE_RANGE * usual)
    if np.abs(column).max() <= np.pi + 0.01:  # so may an angle that is near half a turn
        spikes &= jump < 1.8 * np.pi
    return jump, spikes


def _reach(column: np.ndarray) -> float:
    """From the 1 % to the 99 % quantile."""
    low, high = np.quantile(column, (0.01, 0.99))
    return float(high - low)


def _lengths(rows: Rows, config: CheckConfig) -> list[Finding]:
    """Recordings that were glued into one episode, where not even time tells: it is as long as many others."""
    lengths = np.diff(rows.start)
    middle = float(np.median(lengths))
    long = np.flatnonzero(lengths > LONG * middle)
    if len(long) and not config.allow_long_episodes:  # guard: data.check.long_episode
        verdict, remedy = "refuse", "number its recordings as episodes of their own, or accept it with allow_long_episodes"
    else:
        verdict, remedy = "warn", ""
    return [
        Finding(
            code="long_episode",
            verdict=verdict,
            episode=int(rows.episodes[place]),
            message=f"has {lengths[place]} frames, the median episode {middle:.0f}: several recordings in one?",
            remedy=remedy,
        )
        for place in long
    ]


def _idle(rows: Rows, dataset: Dataset, features: dict[str, tuple[np.ndarray, tuple[str, ...]]], finite: np.ndarray) -> list[Finding]:
    """Stretches in which nothing moves: they teach a policy to wait."""
    if not features or len(finite) < 2:
        return []
    values = features[STATE][0] if STATE in features else features[ACTION][0]
    spread = np.subtract(*np.quantile(values[finite], (0.99, 0.01), axis=0)) if finite.any() else np.zeros(values.shape[1])
    with np.errstate(invalid="ignore"):
        still = np.zeros(len(values), dtype=bool)
        still[1:] = (np.abs(np.diff(values, axis=0)) <= STILL * spread).all(1)
    still[rows.start[:-1]] = False
    edges = np.diff(np.concatenate([[0], still.astype(np.int8), [0]]))
    begin, end = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    long = end - begin >= IDLE_S * dataset.fps
    if not long.any():
        return []
    begin, end = begin[long], end[long]
    share = float((end - begin).sum()) / len(values)
    worst = int((end - begin).argmax())
    episode, frame = rows.place(int(begin[worst]))
    longest = (end - begin)[worst] / dataset.fps
    message = f"nothing moves in {share:.0%} of the frames ({len(begin)} stretches of {IDLE_S:g} s or more, the longest {longest:.1f} s)"
    verdict = "warn" if share > IDLE_SHARE else "note"
    remedy = "cut the stretches out if the policy waits too often" if verdict == "warn" else ""
    return [Finding(code="idle", verdict=verdict, episode=episode, frame=frame, message=message, remedy=remedy)]
