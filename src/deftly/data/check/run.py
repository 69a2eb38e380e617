"""One check of one dataset: which parts look at what, in which order. `check(root)` is what `deftly data check` prints.

```
open meta/ ─> rows (keys, columns, sizes) ─> times ─> values ─> language ─> videos (probed) ─> pixels (decoded, when full)
```
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from deftly.data.check.findings import CheckConfig, Finding, Report
from deftly.data.check.language import check_language
from deftly.data.check.pixels import check_pixels
from deftly.data.check.rows import check_rows
from deftly.data.check.splits import check_splits, check_twins
from deftly.data.check.statistics import check_statistics
from deftly.data.check.times import check_times
from deftly.data.check.values import check_values
from deftly.data.check.videos import check_videos
from deftly.data.dataset import Dataset
from deftly.types import DataError


def check(root: Path, config: CheckConfig = CheckConfig(full=True)) -> Report:
    """Look at everything in a dataset folder; what is wrong is in the report, never an exception."""
    started, root = time.monotonic(), Path(root)
    try:
        dataset = Dataset.open(root)
    except DataError as error:
        finding = Finding(
            code="metadata", verdict="refuse", message=str(error).removeprefix(f"{root}/").removeprefix(f"{root}: "), remedy=""
        )
        return Report(root=root, full=config.full, num_episodes=0, num_frames=0, findings=(finding,), budget=config.budget)
    found = tuple(sorted(check_dataset(dataset, config, for_others=True), key=lambda finding: finding.rank))
    return Report(
        root=root,
        full=config.full,
        num_episodes=dataset.num_episodes,
        num_frames=dataset.num_frames,
        findings=found,
        budget=config.budget,
        seconds=time.monotonic() - started,
    )


def check_dataset(dataset: Dataset, config: CheckConfig, for_others: bool = False) -> list[Finding]:
    """Findings about an opened dataset, which must be the whole folder and not a selection of its episodes.

    `for_others` also looks at what our own training does not read: stored statistics and declared splits.
    """
    if not dataset.num_episodes:
        return [Finding(code="empty", verdict="refuse", message="the dataset holds no episode", remedy="record or import some")]
    rows, findings = check_rows(dataset, config)
    if len(rows.episodes):
        findings += check_times(rows, dataset)
        findings += check_values(rows, dataset, config)
        findings += check_language(rows, dataset, config)
        findings += check_twins(rows, dataset)
    if for_others and not any(finding.verdict in ("refuse", "quarantine") for finding in findings):
        findings += [*check_statistics(rows, dataset), *check_splits(rows, dataset)]
    findings += check_videos(dataset, config)
    if config.full and not any(finding.verdict == "refuse" for finding in findings):
        broken = {finding.episode for finding in findings if finding.verdict == "quarantine"}
        sound = np.array([e for e in np.flatnonzero(dataset.episode_length > 0).tolist() if e not in broken], dtype=np.int64)
        findings += check_pixels(dataset, sound)
    return findings
