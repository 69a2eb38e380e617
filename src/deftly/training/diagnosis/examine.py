"""All verdicts on a run directory, the worst first."""

from __future__ import annotations

from pathlib import Path

from deftly.foreign import making_sense_of
from deftly.training.diagnosis.curves import curve_verdicts
from deftly.training.diagnosis.data import data_verdicts
from deftly.training.diagnosis.details import detail_verdicts
from deftly.training.diagnosis.formats import format_verdicts
from deftly.training.diagnosis.modules import module_verdicts
from deftly.training.diagnosis.noise import noise_verdicts
from deftly.training.diagnosis.record import read_record
from deftly.training.diagnosis.steps import step_verdicts
from deftly.training.diagnosis.verdicts import Verdict, ranked
from deftly.training.tracking import METRICS


def diagnose(directory: Path, *, look_at_data: bool = True) -> list[Verdict]:
    """Verdicts on the run in `directory`. Raises `UsageError` where there is none, `DataError` where its files are damaged, in one line."""
    record = read_record(directory)
    found = list(data_verdicts(record)) if look_at_data else []
    with making_sense_of(directory / METRICS):  # run.json and failure.json were looked through when they were read
        for verdicts in (step_verdicts, curve_verdicts, module_verdicts, format_verdicts, noise_verdicts, detail_verdicts):
            found.extend(verdicts(record))
    return ranked(found)
