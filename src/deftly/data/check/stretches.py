"""Where meta/episodes puts each episode in a shared mp4: no two on the same frames, each as long as its rows. No video is opened.

A writer that merges or resumes datasets and gets an offset wrong leaves files that decode without a fault, and episodes that show the
pictures of another. Half a frame is allowed: others add up the durations of their containers, which are not exactly length / fps.
"""

from __future__ import annotations

import numpy as np

from deftly.data.check.findings import Finding
from deftly.data.check.rows import REPAIR
from deftly.data.dataset import Dataset

HALF = 0.52  # frames: a half, and rounding by writers that keep seconds as float32


def check_stretches(dataset: Dataset) -> list[Finding]:
    """Findings about from_timestamp and to_timestamp of every camera; none where each episode has a file of its own."""
    findings: list[Finding] = []
    for key, places in dataset.index.videos.items():
        if places.start_s is None or places.file is None:
            continue
        start_s, length_s = places.start_s, dataset.episode_length / dataset.fps
        given_s = _given_ends(dataset, key) - start_s
        misfit = np.abs(given_s - length_s) * dataset.fps > HALF  # not where it is not given
        if misfit.any():  # guard: data.check.stretch_length
            for episode in np.flatnonzero(misfit).tolist():
                message = f"meta/episodes gives it {given_s[episode]:.4g} s of the video, its {dataset.episode_length[episode]} rows take "
                findings.append(_finding(dataset, key, episode, "stretch_length", f"{message}{length_s[episode]:.4g} s"))
        shared = _shared(places.file, start_s, length_s, HALF / dataset.fps, ~misfit & (dataset.episode_length > 0))
        if shared:  # guard: data.check.stretch_overlap
            for episode, other in sorted(shared.items()):
                message = f"from {start_s[episode]:.4g} s it shares frames of the video with episode {other}: one of them shows the other"
                findings.append(_finding(dataset, key, episode, "stretch_overlap", message))
    return findings


def _given_ends(dataset: Dataset, key: str) -> np.ndarray:
    """Each episode's to_timestamp, float64 [E]; NaN where there is none."""
    values = dataset.extra(f"videos/{key}/to_timestamp")
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], np.float64)


def _shared(file: np.ndarray, start_s: np.ndarray, length_s: np.ndarray, slack_s: float, valid: np.ndarray) -> dict[int, int]:
    """Each episode that lies on frames of another -> one such other."""
    found: dict[int, int] = {}
    last = -1  # of those in this file before the current one, the episode that ends last
    for episode in np.lexsort((start_s, file)).tolist():
        if not valid[episode]:
            continue
        if last >= 0 and file[last] == file[episode]:
            if start_s[episode] < start_s[last] + length_s[last] - slack_s:
                found.setdefault(last, episode)
                found[episode] = last
            if start_s[episode] + length_s[episode] <= start_s[last] + length_s[last]:
                continue
        last = episode
    return found


def _finding(dataset: Dataset, key: str, episode: int, code: str, message: str) -> Finding:
    file = dataset.index.video_path(dataset.root, dataset.info, key, episode).relative_to(dataset.root).as_posix()
    return Finding(code=code, verdict="quarantine", file=file, episode=episode, field=key, message=message, remedy=REPAIR)
