"""TensorBoard: event files beside the log, written anew from it in every session."""

from __future__ import annotations

import os
import platform
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
            import tensorboard.summary.writer.record_writer  # noqa: F401  (before there are threads)
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
        from tensorboard.summary.writer.record_writer import RecordWriter  # its EventFileWriter has a thread, whose errors nobody gets

        before = sorted(self.directory.glob("events.out.tfevents.*.deftly"))
        self.directory.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9:010d}.{platform.node()}.{os.getpid()}.{now % 10**9:09d}.deftly"
        self.writer = RecordWriter(open(self.directory / name, "xb"))  # noqa: SIM115  (closed with the writer)
        self.write(Event(step=0, file_version="brain.Event:2"))
        # A START at step 0 makes a TensorBoard that is being looked at forget every step it has read (its `purge_step`).
        self.write(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        for line in history:
            self.log(line["step"], scalars(line))
        self.writer.flush()
        for path in before:  # everything in them has been written again
            path.unlink()

    def log(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated)
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  (generated)

        numbers = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.write(Event(step=step, wall_time=time.time(), summary=Summary(value=numbers)))

    def write(self, event: Any) -> None:
        """An event of TensorBoard's, at the end of the file."""
        self.writer.write(event.SerializeToString())

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
