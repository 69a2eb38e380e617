"""TensorBoard: event files beside the log, written anew from it in every session."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from deftly.config import Config
from deftly.training.trackers import Tracker, scalars
from deftly.types import UsageError


class TensorBoardConfig(Config):
    """Event files in RUN/tensorboard. Needs the extra `tensorboard`."""

    kind: Literal["tensorboard"] = "tensorboard"

    def build(self, directory: Path, run: dict[str, Any]) -> Tracker:
        try:
            import tensorboard.summary.writer.event_file_writer  # noqa: F401  (before there are threads)
        except ImportError:
            raise UsageError(
                "training.trackers: tensorboard is not installed; pip install 'deftly[tensorboard]', or leave this tracker out"
            ) from None
        return TensorBoard(directory / "tensorboard")


class TensorBoard(Tracker):
    name = "tensorboard"

    def __init__(self, directory: Path) -> None:
        self.directory, self.where = directory, f"tensorboard --logdir {directory}"

    def begin(self, history: Iterable[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  (generated)
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        before = sorted(self.directory.glob("events.out.tfevents.*.deftly"))
        self.writer = EventFileWriter(str(self.directory), filename_suffix=".deftly")
        # A START at step 0 makes a TensorBoard that is being looked at forget every step it has read (its `purge_step`).
        self.writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        for line in history:
            self.log(line["step"], scalars(line))
        self.writer.flush()
        for path in before:  # everything in them has been written again
            path.unlink()

    def log(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated)
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  (generated)

        numbers = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=numbers)))

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
