"""Is every row when it should be? Timestamps against frame / fps, and recordings that were glued into one episode."""

from __future__ import annotations

import numpy as np

from deftly.data.check.findings import Finding
from deftly.data.check.rows import Rows
from deftly.data.dataset import Dataset

TOLERANCE_S = 2e-4  # readers ask for 1e-4; the rest is rounding by recorders
RATE_TOLERANCE = 0.01  # relative; a recorder that says 30 and records 29 is off by 3 %
RETIME = "`deftly data repair` writes a copy with timestamps of frame / fps"
FEW = 3  # intervals from which a rate is told


def check_times(rows: Rows, dataset: Dataset) -> list[Finding]:
    """Findings about the column `timestamp`."""
    if not len(rows.episodes):
        return []
    times = rows.columns["timestamp"][:, 0].astype(np.float64)
    lengths = np.diff(rows.start)
    frame = np.arange(len(times)) - np.repeat(rows.start[:-1], lengths)
    resets = _resets(rows, times, frame, dataset.fps)
    if resets:  # guard: data.check.collapsed
        return resets
    return _rate(rows, times, dataset.fps) or _off_grid(rows, times, frame, dataset.fps)


def _steps(rows: Rows, times: np.ndarray) -> np.ndarray:
    """Seconds since the previous row of the same episode; NaN for its first."""
    steps = np.diff(times, prepend=np.nan)
    steps[rows.start[:-1]] = np.nan
    return steps


def _resets(rows: Rows, times: np.ndarray, frame: np.ndarray, fps: float) -> list[Finding]:
    """Time that starts again at 0 inside an episode: several recordings under one number."""
    begins = (frame > 0) & (_steps(rows, times) < 0) & (np.abs(times) <= 0.5 / fps)
    begins[:-1] &= np.diff(times) > 0  # it also goes on from there; a single wrong row is jitter
    found = []
    for episode, at, _ in rows.first(begins):
        count = int(begins[_range(rows, episode)].sum()) + 1
        message = f"time starts again at 0: {count} recordings are stored as one episode"
        remedy = "number the recordings as episodes of their own (frame_index restarts at 0)"
        found.append(
            Finding(code="collapsed", verdict="refuse", episode=episode, frame=at, field="timestamp", message=message, remedy=remedy)
        )
    return found


def _range(rows: Rows, episode: int) -> slice:
    place = int(np.flatnonzero(rows.episodes == episode)[0])
    return slice(int(rows.start[place]), int(rows.start[place + 1]))


def _rate(rows: Rows, times: np.ndarray, fps: float) -> list[Finding]:
    """The rate that the timestamps show, where most episodes agree that it is not the declared one."""
    lengths = np.diff(rows.start)
    last, first = times[rows.start[1:] - 1], times[rows.start[:-1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where((lengths > FEW) & (last > first), (lengths - 1) / (last - first), np.nan)
    rates = rates[np.isfinite(rates)]
    if not len(rates):
        return []
    measured = float(np.median(rates))
    if abs(measured / fps - 1) > RATE_TOLERANCE and (np.abs(rates / fps - 1) > RATE_TOLERANCE).mean() > 0.5:  # guard: data.check.rate
        message = f"the timestamps run at {measured:.4g} frames per second, info.json says {fps:g}"
        remedy = "correct fps in meta/info.json, or record the timestamps anew"
        return [Finding(code="rate", verdict="refuse", file="meta/info.json", field="fps", message=message, remedy=remedy)]
    return []


def _off_grid(rows: Rows, times: np.ndarray, frame: np.ndarray, fps: float) -> list[Finding]:
    expected = frame / fps
    tolerance = TOLERANCE_S + 2 * np.spacing(np.abs(expected).astype(np.float32))  # the column is float32
    wrong = ~(np.abs(times - expected) <= tolerance)  # also where it is not a number
    backwards = _steps(rows, times) <= 0
    found: list[Finding] = []
    if wrong.any():  # guard: data.check.time_jitter
        found += _describe(rows, times, expected, wrong, backwards)
    return found


def _describe(rows: Rows, times: np.ndarray, expected: np.ndarray, wrong: np.ndarray, backwards: np.ndarray) -> list[Finding]:
    """One finding for each episode in which a row is `wrong`."""
    found = []
    for episode, at, row in rows.first(wrong):
        part = _range(rows, episode)
        if backwards[part].any():  # guard: data.check.time_order
            at = int(np.flatnonzero(backwards[part])[0])
            message = f"time does not move forward: {times[part][at]:.4f} s after {times[part][at - 1]:.4f} s"
            code = "time_order"
        else:
            count = int(wrong[part].sum())
            message = f"is {times[row]:.4f} s, expected {expected[row]:.4f} s ({count} frames are off by more than {TOLERANCE_S} s)"
            code = "time_jitter"
        found.append(Finding(code=code, verdict="quarantine", episode=episode, frame=at, field="timestamp", message=message, remedy=RETIME))
    return found
