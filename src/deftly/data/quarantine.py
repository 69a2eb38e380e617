"""Which episodes may be trained on. What remains is as if the broken ones had never been there: same numbers, same order, same bits.

Verdicts are kept beside the decoded frames, under the state of every file (name, size, time of change): training does not decode again
what `deftly data check` has seen, and a file that anybody touched is looked at anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deftly import storage
from deftly.contract import fingerprint
from deftly.data.check.findings import FOR_OTHERS, CheckConfig, Finding, quarantined, refusal
from deftly.data.check.run import check_dataset
from deftly.data.dataset import Dataset
from deftly.data.store import default_cache
from deftly.types import DataError

FORMAT = "check-3"  # of what is found: another version looks again
QUARANTINE_FILE = "quarantine.jsonl"
FOLDERS = ("meta", "data", "videos")


def open_sound(path: Path, config: CheckConfig = CheckConfig(), cache_dir: Path | None = None) -> tuple[Dataset, list[Finding]]:
    """A dataset without its broken episodes, and what was found; see `accept`."""
    dataset = Dataset.open(path)
    accepted, findings = accept(dataset, config, cache_dir)
    return dataset.select(accepted), findings


def accept(dataset: Dataset, config: CheckConfig = CheckConfig(), cache_dir: Path | None = None) -> tuple[np.ndarray, list[Finding]]:
    """(episodes that are sound, int64, ascending; every finding, worst first) of a dataset that is the whole folder.

    Raises a one-line `DataError` when the dataset must be refused, or when more than `config.budget` of its episodes are broken.
    """
    place = _place(dataset.root, config, cache_dir)
    findings = _kept(place, config.full)
    if findings is None:
        findings = check_dataset(dataset, config)
        keep(dataset.root, findings, config, cache_dir)
    findings = sorted(findings, key=lambda finding: finding.rank)
    reason = refusal(findings, dataset.num_episodes, config.budget)
    if reason is not None:  # guard: data.quarantine.refusal
        raise DataError(f"{dataset.root}: {reason}; `deftly data check` lists everything")
    return np.setdiff1d(np.arange(dataset.num_episodes), quarantined(findings)), findings


def keep(root: Path, findings: Iterable[Finding], config: CheckConfig, cache_dir: Path | None = None) -> None:
    """Remember a verdict on what training reads; a cache that cannot be written is done without."""
    kept = [finding.to_dict() for finding in findings if finding.code not in FOR_OTHERS]
    values = {"full": config.full, "findings": kept}
    try:
        storage.write_json(_place(root, config, cache_dir), values)
    except OSError:
        return


def _place(root: Path, config: CheckConfig, cache_dir: Path | None) -> Path:
    """The file of the verdict on the files as they are now, under what of the config can change a finding."""
    asked = config.to_dict() | {"full": None, "budget": None}
    return (cache_dir or default_cache(root)) / "check" / f"{fingerprint([FORMAT, asked, _state(root)])[:32]}.json"


def _state(root: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, time of change) of every file; that of the inode, since the time of the contents can be set back, and copies do so."""
    found = []
    for name in FOLDERS:
        for folder, _, files in os.walk(root / name):
            for file in files:
                status = os.stat(os.path.join(folder, file), follow_symlinks=False)
                found.append((os.path.relpath(os.path.join(folder, file), root), status.st_size, status.st_ctime_ns))
    return sorted(found)


def _kept(place: Path, full: bool) -> list[Finding] | None:
    """A verdict that is at least as thorough as the one that is asked for."""
    if not place.is_file():
        return None
    try:
        values = storage.read_json(place)
        return [Finding(**finding) for finding in values["findings"]] if values["full"] or not full else None
    except (DataError, KeyError, TypeError):
        return None  # torn or foreign: looked at again


def write(path: Path, found: Iterable[tuple[Path, Iterable[Finding]]]) -> None:
    """The findings that left episodes out of each dataset, one JSON line each; the file is there even when it is empty."""
    lines = [
        json.dumps({"dataset": str(root), **finding.to_dict()}, ensure_ascii=False) + "\n"
        for root, findings in found
        for finding in findings
        if finding.verdict == "quarantine"
    ]
    storage.write_text(path, "".join(lines))
