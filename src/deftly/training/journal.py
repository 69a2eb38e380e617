"""What a run tells: to the reader's screen, to `metrics.jsonl`, and to trackers. Rank 0 alone speaks; nothing here changes a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deftly.training import distributed
from deftly.training.detail import Detail
from deftly.training.display import Display
from deftly.training.guard import listed
from deftly.training.locate import MOST_SAMPLES, samples_of_all
from deftly.training.noise import Noise
from deftly.training.norms import ModuleNorms
from deftly.training.trackers import Tracker, Trackers
from deftly.training.tracking import METRICS, Metrics, Running, TimeSplit
from deftly.training.update import Taken
from deftly.training.utilization import Utilization
from deftly.types import Batch


class Journal:
    """Means, times and lines of one run. Its state is in checkpoints, so that a resumed log has the same lines."""

    def __init__(self, directory: Path, title: str, steps: int, trackers: Sequence[Tracker] = ()) -> None:
        self.is_main = distributed.rank() == 0
        self.display = Display(title, steps, visible=self.is_main)
        self.metrics = Metrics(directory / METRICS, self.display.say)
        self.trackers = Trackers(trackers if self.is_main else (), self.display.say)
        self.running, self.time = Running(), TimeSplit()
        self.last: dict[str, float | None] = {"loss": None, "validation_loss": None}

    def say(self, text: str) -> None:
        """One line for the reader."""
        self.display.say(text)

    def begin(self, step: int, samples: int) -> None:
        """Training goes on after `step` steps: later lines are taken back."""
        if self.is_main:
            self.trackers.begin(self.metrics.path, self.metrics.truncate(step))
        self.display.begin(step, samples)

    def skipped(self, step: int, taken: Taken, reason: str, batch: Batch) -> None:
        """A step whose update was not applied."""
        keys, of_all = samples_of_all(batch)
        terms, episodes = dict(taken.numbers), listed(of_all)
        loss, norm = terms.pop("loss"), terms.pop("gradient_norm")
        origin = f"; {taken.origin}" if taken.origin is not None else ""
        self.say(f"WARNING: step {step} skipped ({reason}): loss {loss}, gradient norm {norm}, episodes {episodes}{origin}")
        line = {"step": step, "kind": "skipped", "reason": reason, "loss": loss, "terms": terms, "gradient_norm": norm}
        where = {"origin": taken.origin.to_dict()} if taken.origin is not None else {}
        self.write({**line, "episodes": episodes, "keys": keys[:MOST_SAMPLES], **where})

    def recurring(self, step: int, taken: Taken, batch: Batch) -> None:
        """A step whose loss is far above the usual was applied, since others like it came before."""
        keys, of_all = samples_of_all(batch)
        loss, episodes = taken.numbers["loss"], listed(of_all)
        self.say(
            f"WARNING: step {step}: losses as high as {loss} come again and again, so they are learnt from and not skipped from here on "
            f"(episodes {episodes}); said once"
        )
        self.write({"step": step, "kind": "recurring", "loss": loss, "episodes": episodes, "keys": keys[:MOST_SAMPLES]})

    def rolled_back(self, step: int, done: list[dict[str, int]]) -> None:
        """The weights are those of an earlier checkpoint again."""
        self.say(
            f"WARNING: step {step}: steps {done[-1]['first_bad_step']} to {step} were bad, so the weights are those of step "
            f"{done[-1]['weights_of_step']} again and training goes on with the batches that come next (rollback {len(done)})"
        )
        self.write({"step": step, "kind": "rollback", "rollbacks": len(done), **done[-1]})

    def modules(self, step: int, norms: dict[str, ModuleNorms] | None, noise: Noise | None = None) -> None:
        """How large gradients, weights and updates were at one step, and how much of the gradient was chance."""
        if norms is not None:
            self.write({"step": step, "kind": "modules", "modules": norms, **({"noise": noise} if noise is not None else {})})

    def overflowed(self, step: int, loss_scale: float) -> None:
        """A step that was skipped because its gradient, times the loss scale, was too large for float16."""
        self.say(f"step {step} skipped: its gradient overflowed float16; the loss scale is {loss_scale:g} from here on")
        self.write({"step": step, "kind": "overflow", "loss_scale": loss_scale})

    def train(self, step: int, samples: int, learning_rate: float, skipped: int, utilization: Utilization) -> None:
        """Means over the steps since the last such line."""
        means = self.running.means()
        loss, norm = means.pop("loss", float("nan")), means.pop("gradient_norm", float("nan"))
        self.last["loss"] = loss
        self.time.lap("other")
        split = self.time.since_line()
        shares = utilization.line(split, step)
        self.display.logged(loss, learning_rate, split, utilization.describe(shares))
        line = {"step": step, "kind": "train", "loss": loss, "terms": means, "gradient_norm": norm, "learning_rate": learning_rate}
        self.write({**line, "samples": samples, "skipped": skipped}, {**split, "utilization": shares})

    def validated(self, step: int, loss: float, terms: dict[str, float], detail: Detail, best: dict[str, Any] | None) -> None:
        """The held-out loss and where it comes from; `best` is the best so far, this one included."""
        self.last["validation_loss"] = loss
        self.time.lap("validation")
        if best is not None:
            self.display.validated(loss, best["loss"], best["step"])
        is_best = best is not None and best["step"] == step
        self.write({"step": step, "kind": "validation", "loss": loss, "terms": terms, "is_best": is_best})
        self.write({"step": step, "kind": "detail", **detail.to_dict()})

    def write(self, line: dict[str, Any], split: dict[str, Any] | None = None) -> None:
        """A line of the log, with the time at its end."""
        if self.is_main:
            line = {**line, "time": {**(split or {}), "elapsed": self.time.elapsed()}}
            self.metrics.write(line)
            self.trackers.log(line)

    def close(self) -> None:
        """Let the trackers end."""
        self.trackers.close()

    # -- state -----------------------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        last = {name: value if value is None or math.isfinite(value) else None for name, value in self.last.items()}
        return {"last": last, "running": self.running.state(), "seconds": self.time.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.last = dict(state["last"])
        self.running.load_state(state["running"])
        self.time.load_state(state["seconds"])
