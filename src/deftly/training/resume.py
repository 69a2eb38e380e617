"""Is this still the same run? What resume compares before it touches anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deftly.contract import Contract, differences
from deftly.training import distributed
from deftly.training.checkpoint import Snapshot
from deftly.training.config import TrainingConfig
from deftly.types import DataError, UsageError


@dataclass(frozen=True)
class Identity:
    """What makes a run the run that it is."""

    run: dict[str, Any]
    """The resolved config: kept in `run.json`."""
    dataset_hash: str
    contract: Contract | None
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The part that `trainer.json` holds."""
        contract = self.contract.to_dict() if self.contract is not None else None
        return {"dataset_hash": self.dataset_hash, "contract": contract, "environment": self.environment}


def environment(config: TrainingConfig, device: torch.device) -> dict[str, Any]:
    """What, besides the config, decides over bits."""
    return {
        "precision": config.precision,
        "ranks": distributed.world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def require_same_run(ours: Identity, snapshot: Snapshot, where: Path) -> list[str]:
    """Raise one line that names the differing fields, or return notes on what keeps the resumed run from being bit-identical."""
    state = snapshot.trainer
    changed = differences(snapshot.run, ours.run)
    if changed:
        raise UsageError(f"{where}: the run's config has changed: {shortened(changed)}; change it back, or start a new run directory")
    mine = ours.to_dict()
    changed = differences({"dataset_hash": state["dataset_hash"]}, {"dataset_hash": mine["dataset_hash"]})
    changed += differences({"contract": state["contract"]}, {"contract": mine["contract"]})
    if changed:
        raise DataError(
            f"{where}: the data is not what the run began with: {shortened(changed)}; resume with that data, or start a new run directory"
        )
    fixed = ("precision", "ranks")
    then, now = state["environment"], mine["environment"]
    changed = differences({name: then[name] for name in fixed}, {name: now[name] for name in fixed})
    if changed:
        raise UsageError(f"{where}: {shortened(changed)}; resume as the run began, or start a new run directory")
    changed = differences(then, now)
    return [f"WARNING: {shortened(changed)}: the run goes on, but not bit for bit as it would have"] if changed else []


def require_average(wanted: bool, snapshot: Snapshot, where: str) -> None:
    """The checkpoint must have averaged weights exactly when the run keeps an average."""
    if wanted != (snapshot.raw is not None):
        raise DataError(
            f"{where}: {'has no averaged weights' if wanted else 'has averaged weights'}, unlike this run; check training.ema_decay"
        )


def shortened(lines: list[str], most: int = 3) -> str:
    return "; ".join(lines[:most]) + (f" (+{len(lines) - most} more)" if len(lines) > most else "")
