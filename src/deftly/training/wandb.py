"""Weights & Biases: a run in the cloud, or on this disk until somebody sends it."""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from deftly import storage
from deftly.config import Config
from deftly.training.secrets import publishable
from deftly.training.trackers import Tracker, scalars
from deftly.types import UsageError


class WandbConfig(Config):
    """Weights & Biases. Needs the extra `wandb`. Nothing leaves the machine unless `mode` is online and an API key is there."""

    kind: Literal["wandb"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes to RUN/wandb, to be sent later with `wandb sync`."""
    project: str = "deftly"
    entity: str | None = None

    def build(self, directory: Path, run: dict[str, Any]) -> Tracker:
        try:
            import wandb  # noqa: F401  (before there are threads, and before the first step)
        except ImportError:
            raise UsageError("training.trackers: wandb is not installed; pip install 'deftly[wandb]', or leave this tracker out") from None
        return Wandb(self, directory, run)


class Wandb(Tracker):
    """Its history can only grow (a rewind is "in private preview" at W&B, and offline runs cannot be resumed), so:

    offline  every session writes one run directory with the whole history; sending the newest replaces what was sent of earlier ones
    online   the run is resumed under its id; steps that the server has are not sent again, being the same numbers. A run that went on with
             other settings is another curve, and gets another id
    """

    name = "wandb"

    def __init__(self, config: WandbConfig, directory: Path, run: dict[str, Any]) -> None:
        self.config, self.directory, self.run_json = config, directory, run
        self.online = config.mode == "online" and has_key()
        self.where = f"wandb sync {directory / 'wandb' / 'latest-run'}"
        if self.online:
            self.where = f"project {config.project!r} at Weights & Biases"
        elif config.mode == "online":
            self.where = f"offline, for there is no API key (`wandb login` sets one); to send it later: {self.where}"

    def begin(self, history: Iterable[dict[str, Any]]) -> None:
        import wandb

        quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True, disable_code=True)
        self.run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            id=self._id(),
            name=str(self.run_json.get("name", self.directory.name)),
            dir=str(self.directory),
            mode="online" if self.online else "offline",
            resume="allow" if self.online else None,
            config=publishable(self.run_json),
            settings=quiet,
        )
        self.first = self.run.step  # 0, or one more than the last step that the server has
        for line in history:
            self.log(line["step"], scalars(line))

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self.first:
            self.run.log(values, step=step)

    def flush(self) -> None:
        """Its own process writes."""

    def close(self) -> None:
        self.run.finish()

    def _id(self) -> str:
        """The run's id at W&B, kept in RUN/wandb.json; a new one where the settings are no longer those that it was made for."""
        path, of = self.directory / "wandb.json", hashlib.sha256(json.dumps(self.run_json, sort_keys=True).encode()).hexdigest()
        kept = storage.read_json(path) if path.is_file() else None
        if isinstance(kept, dict) and kept.get("of") == of and isinstance(kept.get("id"), str):
            return kept["id"]
        new = {"id": uuid.uuid4().hex[:12], "of": of}
        storage.write_json(path, new)
        return new["id"]


def has_key() -> bool:
    """Whether there is an API key, in the environment or where `wandb login` puts it. Without one W&B would ask for it, and wait."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").removeprefix("https://").removeprefix("http://").split("/")[0]
    try:
        return bool(os.environ.get("WANDB_API_KEY")) or netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
