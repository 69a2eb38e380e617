"""Are the videos whole, at the declared rate, and long enough for their episodes? Files are read through, nothing is decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deftly.data import video
from deftly.data.check.findings import CheckConfig, Finding
from deftly.data.check.rows import REPAIR
from deftly.data.check.stretches import check_stretches
from deftly.data.check.times import FEW, RATE_TOLERANCE
from deftly.data.dataset import Dataset
from deftly.sim.processes import usable_cores
from deftly.types import DataError

GRID_S = 1e-4  # from here on a frame counts as off its time


def check_videos(dataset: Dataset, config: CheckConfig) -> list[Finding]:
    """Probe every mp4 once and hold the times of its frames against the episodes that refer to it."""
    findings = check_stretches(dataset)
    keys = {camera: key for camera, key in dataset.info.cameras().items() if dataset.features[key].dtype == "video"}
    with ThreadPoolExecutor(max(1, usable_cores())) as pool:
        for camera, key in keys.items():
            files: dict[Path, list[tuple[int, float]]] = {}
            for episode in np.flatnonzero(dataset.episode_length > 0).tolist():
                path, start_s = dataset.video_place(episode, camera)
                files.setdefault(path, []).append((episode, start_s))
            found, rates = [], []
            for (path, places), times in zip(files.items(), pool.map(_times, files), strict=True):
                found += _check_file(dataset, config, path, key, places, times)
                if isinstance(times, np.ndarray) and len(times) > FEW:
                    rates.append(_rate(times))
            findings += _check_rate(np.array(rates), dataset.fps, key) or found
    return findings


def _times(path: Path) -> np.ndarray | DataError | None:
    """Frame times; what is wrong with the file; None where there is none."""
    if not path.is_file():
        return None
    try:
        return video.packet_times(path)
    except DataError as error:
        return error


def _rate(times: np.ndarray) -> float:
    """Frames per second between neighbours. The median, so that a gap between two clips in a file does not count."""
    step = float(np.median(np.diff(times)))
    return 1 / step if step > 0 else np.inf


def _check_rate(rates: np.ndarray, fps: float, key: str) -> list[Finding]:
    if len(rates) and (np.abs(rates / fps - 1) > RATE_TOLERANCE).mean() > 0.5:  # guard: data.check.video_rate
        message = f"the videos run at {float(np.median(rates)):.4g} frames per second, info.json says {fps:g}"
        remedy = "correct fps in meta/info.json, or encode the videos anew"
        return [Finding(code="video_rate", verdict="refuse", file="meta/info.json", field=key, message=message, remedy=remedy)]
    return []


def _check_file(
    dataset: Dataset, config: CheckConfig, path: Path, key: str, places: list[tuple[int, float]], times: np.ndarray | DataError | None
) -> list[Finding]:
    file = path.relative_to(dataset.root).as_posix()
    episodes = [episode for episode, _ in places]
    if times is None and not config.allow_missing_files:  # guard: data.check.missing_video
        remedy = "copy it again, or leave its episodes out with allow_missing_files (`data check --allow-missing-files`)"
        message = f"the video of episode {episodes[0]}" + (f" and {len(episodes) - 1} more" if len(episodes) > 1 else "") + " is missing"
        return [Finding(code="missing_file", verdict="refuse", file=file, field=key, message=message, remedy=remedy)]
    if not isinstance(times, np.ndarray):
        reason = "the file is missing" if times is None else str(times).removeprefix(f"{path}: ")
        code = "missing_file" if times is None else "broken_video"
        return [
            Finding(code=code, verdict="quarantine", file=file, episode=episode, field=key, message=reason, remedy=REPAIR)
            for episode in episodes
        ]
    found, drifted = [], []
    for episode, start_s in places:
        problem, late = _check_episode(times, start_s, int(dataset.episode_length[episode]), dataset.fps)
        if problem:
            code, frame, message = problem
            found.append(
                Finding(code=code, verdict="quarantine", file=file, episode=episode, frame=frame, field=key, message=message, remedy=REPAIR)
            )
        elif late > GRID_S:
            drifted.append((late, episode))
    if drifted:
        late, episode = max(drifted)
        message = f"frames of {len(drifted)} episodes lie up to {late * 1e3:.1f} ms beside frame / fps; the nearest one is taken"
        found.append(Finding(code="video_grid", verdict="note", file=file, episode=episode, field=key, message=message, count=len(drifted)))
    return found


def _check_episode(times: np.ndarray, start_s: float, length: int, fps: float) -> tuple[tuple[str, int, str] | None, float]:
    """What is wrong with an episode's stretch of a video (code, frame, message), and how far its frames are from their times in seconds."""
    wanted = start_s + np.arange(length) / fps
    right = np.clip(np.searchsorted(times, wanted), 1, max(1, len(times) - 1))
    near = np.clip(np.stack([right - 1, right]), 0, len(times) - 1)
    chosen = np.take_along_axis(near, np.abs(times[near] - wanted).argmin(0)[None], axis=0)[0]
    away = np.abs(times[chosen] - wanted)
    if away[-1] > 0.5 / fps and times[-1] < wanted[-1]:  # guard: data.check.video_short
        have = int((wanted <= times[-1] + 0.5 / fps).sum())
        return ("video_short", have, f"the video ends {length - have} frames before the table (has {have} of {length})"), 0.0
    if away.max() > 0.5 / fps + 1e-6:  # guard: data.check.video_gap
        frame = int(away.argmax())
        message = f"the nearest frame of the video is {away[frame] * 1e3:.1f} ms away, more than half a frame"
        return ("video_gap", frame, message), 0.0
    return None, float(away.max())
