"""A run that is stuck goes back to the weights of its last good checkpoint; the data and the clock go on.

So the batches that it was stuck in are left behind, no step number comes twice, and the schedule ends where it would have. Every rollback
is in the checkpoints that follow. After the last one that is allowed the run ends, with what is known of it in `failure.json`.

Which checkpoint that is must not depend on where a run was interrupted: only those count that `checkpoint_every` asks for, and of these the
newest from before the first bad step, where one is left. A run that goes on from another one's checkpoint (`start.py`), and is stuck before
the first of its own, goes back to that, if it still is what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from deftly import storage
from deftly.training import distributed
from deftly.training.checkpoint import Checkpoints, Snapshot, read
from deftly.training.guard import Guard, listed
from deftly.training.locate import samples_of_all
from deftly.training.update import Taken
from deftly.types import Batch, DataError

FAILURE_FILE = "failure.json"


class Rollbacks:
    """How often a run went back, and from where to where."""

    def __init__(self, directory: Path, checkpoints: Checkpoints, every: int | None, limit: int, say: Callable[[str], None]) -> None:
        self.directory, self.checkpoints, self.every, self.limit, self.say = directory, checkpoints, every, limit, say
        self.done: list[dict[str, int]] = []

    def target(self, step: int, taken: Taken, batch: Batch, guard: Guard, origin: dict[str, Any] | None = None) -> Snapshot:
        """The checkpoint to go back to from `step`, of a run that began as `origin` says (`start.origin`).

        Raises `TrainingError` where there is none, or where going back has not helped.
        """
        first = step - guard.in_a_row + 1
        exhausted = len(self.done) >= self.limit
        snapshot = None if exhausted else self._newest_before(first) or self._beginning(origin)
        if snapshot is None:
            after = f"after {len(self.done)} rollbacks" if self.done else self._nowhere(first) if self.limit else ""
            _, episodes = samples_of_all(batch)
            if distributed.rank() == 0:
                self._report(step, taken, episodes, guard)
            guard.require_hope(step, taken.numbers, episodes, f"{after}; {self.directory / FAILURE_FILE} has what is known".strip("; "))
            raise AssertionError("a guard that is stuck has no hope")
        self.done.append({"first_bad_step": first, "last_bad_step": step, "weights_of_step": snapshot.step})
        return snapshot

    def _due(self) -> list[int]:
        """The steps of the checkpoints that `checkpoint_every` asked for: a best one, or one of a signal, is there by chance."""
        return [saved for saved in self.checkpoints.steps() if self.every is not None and saved % self.every == 0]

    def _newest_before(self, step: int) -> Snapshot | None:
        steps = self._due()
        for saved in [*(saved for saved in reversed(steps) if saved < step), *(saved for saved in steps if saved >= step)]:
            path = self.checkpoints.path(saved)
            try:
                storage.verify(path)
                return read(path, self.checkpoints.piece)
            except DataError as error:
                self.say(f"{error}; not going back to it")
        return None

    def _beginning(self, origin: dict[str, Any] | None) -> Snapshot | None:
        """The checkpoint of another run that this one went on from."""
        if self.every is None or origin is None or origin["way"] != "continued":
            return None
        path = Path(origin["from"])
        try:
            if not path.is_dir():
                raise DataError(f"{path}: the checkpoint that this run began with is not there any more")
            if storage.sha256(path / storage.MANIFEST) != origin["sha256"]:  # guard: training.rollback.beginning
                raise DataError(f"{path}: is no longer the checkpoint that this run began with")
            return read(path, self.checkpoints.piece)
        except (DataError, OSError) as error:
            self.say(f"{error}; not going back to it")
        return None

    def _nowhere(self, first: int) -> str:
        """Why there is no checkpoint to go back to."""
        when = (
            "training.checkpoint_every is null"
            if self.every is None
            else f"the first is due at step {-(-first // self.every) * self.every}"
        )
        lost = "" if not self._due() else "none of training.checkpoint_every can be read"
        good = "; no step of this run was good, so nothing has been learnt" if first == 1 else ""
        return f"with no checkpoint to go back to: {lost or when}{good}"

    def _report(self, step: int, taken: Taken, episodes: Tensor, guard: Guard) -> None:
        storage.write_json(
            self.directory / FAILURE_FILE,
            {
                "step": step,
                "reason": guard.reason,
                "bad_steps_in_a_row": guard.in_a_row,
                "rollbacks": self.done,
                "numbers": {name: str(value) for name, value in taken.numbers.items()},
                "episodes": listed(episodes),
                "origin": taken.origin.to_dict() if taken.origin is not None else None,
                "remedy": "check the data of these episodes with `deftly data check`, lower training.optimizer.learning_rate, "
                "or train in fp32; `deftly diagnose` says more",
            },
        )

    def state(self) -> list[dict[str, Any]]:
        return [dict(one) for one in self.done]

    def load_state(self, state: Any) -> None:
        self.done = [dict(one) for one in state]
