"""Which episodes may be trained on. What remains is as if the broken ones had never been there: same numbers, same order, same bits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deftly import storage
from deftly.data.check.findings import CheckConfig, Finding, quarantined, refusal
from deftly.data.check.run import check_dataset
from deftly.data.dataset import Dataset
from deftly.types import DataError

QUARANTINE_FILE = "quarantine.jsonl"


def accept(dataset: Dataset, config: CheckConfig = CheckConfig()) -> tuple[np.ndarray, list[Finding]]:
    """(episodes that are sound, int64, ascending; every finding, worst first) of a dataset that is the whole folder.

    Raises a one-line `DataError` when the dataset must be refused, or when more than `config.budget` of its episodes are broken.
    """
    findings = sorted(check_dataset(dataset, config), key=lambda finding: finding.rank)
    reason = refusal(findings, dataset.num_episodes, config.budget)
    if reason is not None:  # guard: data.quarantine.refusal
        raise DataError(f"{dataset.root}: {reason}; `deftly data check` lists everything")
    return np.setdiff1d(np.arange(dataset.num_episodes), quarantined(findings)), findings


def write(path: Path, findings: Iterable[Finding]) -> None:
    """The findings that left episodes out, one JSON line each; the file is there even when it is empty."""
    lines = [json.dumps(finding.to_dict(), ensure_ascii=False) + "\n" for finding in findings if finding.verdict == "quarantine"]
    storage.write_text(path, "".join(lines))
