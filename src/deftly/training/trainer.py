"""The one loop. Every method trains through it; what a method needs goes into its objective.

A step, always in this order:

    take a batch -> cut it into micro-batches -> sum their counts over micro-batches and ranks
    each micro-batch: reseed the global generators, forward, backward
    clip -> is everything finite? if not: skip, count, and past a limit end -> optimizer -> average
    hooks: stream feedback, log, validate, checkpoint

The checkpoint comes last because it must hold everything that the step changed, a curriculum's stream included. No hook changes a
weight or a draw, so how often they run does not either.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deftly import storage
from deftly.contract import Contract
from deftly.randomness import seed_global
from deftly.training import distributed, resume
from deftly.training.checkpoint import Checkpoints, Snapshot, WritePolicy
from deftly.training.config import TrainingConfig
from deftly.training.display import Display
from deftly.training.ema import Ema
from deftly.training.guard import Guard, TrainingError, listed
from deftly.training.lifetime import Interrupt, interruptible
from deftly.training.optim import flatten_optimizer, load_optimizer, optimizer_names, set_learning_rate
from deftly.training.precision import autocast, make_deterministic, native_bf16
from deftly.training.saver import Saver
from deftly.training.state import check_not_saved, copies, load_strictly, policy_state, saved_tensors
from deftly.training.step import check_batch, clip, total_counts
from deftly.training.tracking import METRICS, Metrics, Running, TimeSplit
from deftly.training.validation import validate
from deftly.types import Batch, Clock, DataError, Objective, Stream, UsageError

RUN_FILE, CHECKPOINTS, LOCK = "run.json", "checkpoints", ".lock"


class Trainer:
    """Trains an objective on a stream, in a run directory of its own, and survives being killed at any moment.

    `validation` gives a fresh pass over the held-out batches each time. `write_policy(directory, state)` writes a `policy/` from the
    policy's state dict. `run_json`, `dataset_hash` and `contract` are what the run is: resume refuses others, naming what differs.
    The stream belongs to the caller, who closes it.
    """

    def __init__(
        self,
        objective: Objective,
        stream: Stream,
        config: TrainingConfig,
        *,
        directory: Path,
        seed: int,
        device: torch.device | str,
        write_policy: WritePolicy,
        run_json: dict[str, Any],
        dataset_hash: str,
        contract: Contract | None = None,
        validation: Callable[[], Iterator[Batch]] | None = None,
        title: str = "train",
    ) -> None:
        self.device = torch.device(device)
        self.config = config.resolve(self.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.deterministic and self.device.type == "cuda":
            make_deterministic()
        if config.accumulation > 1 and not objective.decomposes:
            raise UsageError(
                f"{type(objective).__name__} does not decompose into a sum over samples, so accumulation {config.accumulation} would "
                "train something else; set training.accumulation to 1"
            )
        check_not_saved(objective)
        self.objective = objective.to(self.device)
        if config.channels_last:
            self.objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks this overload)
        self.stream, self.validation, self.seed = stream, validation, seed
        self.directory, self.title = directory, title
        self.identity = resume.Identity(
            run=json.loads(json.dumps(run_json)),
            dataset_hash=dataset_hash,
            contract=contract,
            environment=resume.environment(self.config, self.device),
        )
        self.optimizer = self.config.optimizer.build(objective)
        self.optimizer_names = optimizer_names(objective)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.ema = Ema(objective, config.ema_decay, objective.not_saved) if config.ema_decay is not None else None
        self.guard = Guard(objective, config.max_bad_steps, objective.not_saved)
        self.checkpoints = Checkpoints(directory / CHECKPOINTS, config.keep_last)
        self.display = Display(title, config.steps, visible=distributed.rank() == 0)
        self.metrics = Metrics(directory / METRICS, self.display.say)
        self.saver = Saver(self.checkpoints, self.metrics, write_policy, self.display.say)
        self.running, self.time = Running(), TimeSplit()
        self.step = self.samples = 0
        self.best: dict[str, Any] | None = None
        self.last: dict[str, float | None] = {"loss": None, "validation_loss": None}
        self.is_main = distributed.rank() == 0
        self.checked_batch = False

    # -- the run ---------------------------------------------------------------------------------------------------------------------

    def fit(self, resume: bool = False, allow_change: Sequence[str] = ()) -> dict[str, Any]:
        """Train to the last step and return the summary.

        With `resume` it goes on from the newest good checkpoint, or from the beginning where there is none yet; fields of the config that
        have changed since are refused, unless `allow_change` names them. Raises `UsageError` or
        `DataError` before the first step, `TrainingError` when training cannot go on, and `SystemExit(143)` after SIGTERM.
        """
        alone = storage.lock(self.directory / LOCK, wait=False, who="trainer", remedy="stop it first") if self.is_main else nullcontext()
        with alone, interruptible() as interrupt, self.display, closing(self.saver):
            self._begin(resume, allow_change)
            self.time.start()
            while self.step < self.config.steps:
                batch = self._take(interrupt)
                report, accepted = self._train_step(batch)
                self._hooks(batch, report, accepted)
                if interrupt.signal is not None:
                    self._leave(interrupt)
            return self.summary()

    def _begin(self, wants_resume: bool, allow_change: Sequence[str]) -> None:
        """Start at the beginning, or where the newest checkpoint stands."""
        if self.is_main:
            self.checkpoints.sweep(self.display.say)
            self.checkpoints.require_space(self.plan()["checkpoint_bytes"])
        if self.config.precision == "bf16" and not native_bf16(self.device):
            self.display.say("WARNING: this device has no arithmetic units for bf16: fp32 would be faster")
        if not wants_resume and self.checkpoints.steps():
            raise UsageError(
                f"{self.directory}: holds a run at step {self.checkpoints.steps()[-1]}; pass --resume to go on, or choose another directory"
            )
        snapshot = self.checkpoints.newest(self.display.say)
        if snapshot is not None:
            resume.check_allowed(allow_change, self.identity.run)
            for note in resume.require_same_run(self.identity, snapshot, self.checkpoints.path(snapshot.step), allow_change):
                self.display.say(note)
            self._restore(snapshot, new_data=resume.DATASET in allow_change)
            self.display.say(f"resuming at step {self.step} of {self.config.steps}")
        if self.is_main:
            storage.write_json(self.directory / RUN_FILE, self.identity.run)
            self.checkpoints.settle(self.best["step"] if self.best else None)
            self.metrics.truncate(self.step)
        self.display.begin(self.step, self.samples)

    def _take(self, interrupt: Interrupt) -> Batch:
        """The next batch, on the device."""
        self.time.lap("other")
        try:
            batch = self.stream.next()
        except Exception:
            if interrupt.signal is not None:  # the signal went to the whole process group, and the data workers died of it
                self._leave(interrupt)
            raise
        if not self.checked_batch:
            check_batch(self.objective, batch, self.config.accumulation)
            self.checked_batch = True
        if batch.key.device.type != self.device.type:
            batch = batch.to(self.device)
        self.time.lap("data")
        return batch

    # -- one step --------------------------------------------------------------------------------------------------------------------

    def _train_step(self, batch: Batch) -> tuple[dict[str, float], bool]:
        """Forward, backward and, where everything is finite, the update. Returns the step's numbers and whether it was applied."""
        config, clock = self.config, Clock(self.step, self.config.steps)
        parts = batch.split(config.accumulation) if config.accumulation > 1 else [batch]
        counts = total_counts([self.objective.counts(part) for part in parts])
        self.guard.remember()
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        for number, part in enumerate(parts):
            seed_global("training", self.seed, self.step, number, distributed.rank())
            with autocast(self.device, config.precision):
                terms = self.objective(part, clock, counts)
            part_loss = torch.stack([term.value * term.weight for term in terms.values() if term.weight]).sum()
            part_loss.backward()
            loss = loss + part_loss.detach()
            for name, term in terms.items():
                values[name] = values[name] + term.value.detach() if name in values else term.value.detach()
        distributed.sum_gradients(self.parameters)
        norm = clip(self.parameters, config.clip_norm)
        report = self._read(values, loss, norm)
        self.time.lap("forward_backward")
        accepted = self.guard.accepts(report["loss"], report["gradient_norm"])
        if accepted:
            set_learning_rate(self.optimizer, self.learning_rate())
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
        self.time.lap("optimizer")
        return report, accepted

    def _read(self, values: dict[str, Tensor], loss: Tensor, norm: Tensor) -> dict[str, float]:
        """All numbers of the step in one transfer: the only time in a step that the host waits for the device."""
        sums = distributed.sum_over_ranks(torch.stack([*(value.to(torch.float64) for value in values.values()), loss.to(torch.float64)]))
        numbers = torch.cat([sums, norm.to(torch.float64)[None]]).tolist()
        return dict(zip([*values, "loss", "gradient_norm"], numbers, strict=True))

    def learning_rate(self) -> float:
        """Of the step that comes next."""
        peak = self.config.optimizer.learning_rate
        return peak * self.config.schedule.factor(self.step, self.config.steps)

    # -- hooks: feedback, log, validate, checkpoint ----------------------------------------------------------------------------------

    def _hooks(self, batch: Batch, report: dict[str, float], accepted: bool) -> None:
        rate = self.learning_rate()
        self.step += 1
        self.samples += len(batch) * distributed.world_size()
        if accepted:
            self.stream.feedback(report)
            self.running.add(report)
        else:
            self._skipped(batch, report)
        self.display.update(self.step, self.samples, report["loss"])
        if self._due(self.config.log_every):
            self._log(rate)
        is_best = self._due(self.config.validate_every) and self._validate()
        if self._due(self.config.checkpoint_every) or is_best:
            self._save(final=self.step == self.config.steps)

    def _skipped(self, batch: Batch, report: dict[str, float]) -> None:
        """Say that a step was not applied; raises `TrainingError` when it was one too many."""
        numbers, episodes = dict(report), listed(batch.episode)
        loss, norm = numbers.pop("loss"), numbers.pop("gradient_norm")
        self.display.say(f"WARNING: step {self.step} skipped: loss {loss}, gradient norm {norm}, episodes {episodes}")
        line = {"step": self.step, "kind": "skipped", "loss": loss, "terms": numbers, "gradient_norm": norm, "episodes": episodes}
        self._write({**line, "time": {"elapsed": self.time.elapsed()}})
        self.guard.require_hope(self.step, report, batch.episode)

    def _due(self, every: int | None) -> bool:
        return self.step == self.config.steps or (every is not None and self.step % every == 0)

    def _log(self, rate: float) -> None:
        means = self.running.means()
        loss, norm = means.pop("loss", float("nan")), means.pop("gradient_norm", float("nan"))
        self.last["loss"] = loss
        self.time.lap("other")
        split = self.time.since_line()
        self.display.logged(loss, rate, split)
        line = {"step": self.step, "kind": "train", "loss": loss, "terms": means, "gradient_norm": norm, "learning_rate": rate}
        line |= {"samples": self.samples, "skipped": self.guard.skipped, "time": {**split, "elapsed": self.time.elapsed()}}
        self._write(line)

    def _validate(self) -> bool:
        """Measure the held-out loss, with averaged weights where there are any; whether it is the best so far."""
        if self.validation is None:
            return False
        self.time.lap("other")
        self.best = self.saver.settle(self.best)  # what this is compared with is on the disk
        self.time.lap("checkpoint")
        seed_global("validation", self.seed)
        with self.ema.applied() if self.ema is not None else nullcontext():
            precision = autocast(self.device, self.config.precision)
            loss, terms = validate(self.objective, self.validation(), self.config.steps, precision, self.device)
        is_best = math.isfinite(loss) and (self.best is None or loss < self.best["loss"])
        if is_best:
            self.best = {"step": self.step, "loss": loss}
        self.last["validation_loss"] = loss
        self.time.lap("validation")
        if self.best is not None:
            self.display.validated(loss, self.best["loss"], self.best["step"])
        self._write(
            {
                "step": self.step,
                "kind": "validation",
                "loss": loss,
                "terms": terms,
                "is_best": is_best,
                "time": {"elapsed": self.time.elapsed()},
            }
        )
        return is_best

    def _write(self, line: dict[str, Any]) -> None:
        if self.is_main:
            self.metrics.write(line)

    def _save(self, final: bool) -> None:
        """Begin a checkpoint of this step, once the one before is whole; a final one is waited for."""
        self.time.lap("other")
        if self.is_main:
            self.best = self.saver.settle(self.best)
            if self.saver.saved_step != self.step:
                snapshot = self.snapshot()
                self.saver.begin(snapshot, policy_state(self.objective, snapshot.objective))
            if final:
                self.best = self.saver.settle(self.best, final=True)
        self.time.lap("checkpoint")

    def _leave(self, interrupt: Interrupt) -> None:
        """Save this step boundary and end with the exit code of the signal, or with `TrainingError` when it cannot be saved."""
        self._save(final=True)
        self.display.say(f"stopped by a signal after step {self.step} of {self.config.steps}; pass --resume to go on")
        raise SystemExit(interrupt.exit_code)

    # -- state -----------------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything that this run needs to go on from here, copied to the CPU. Raises `TrainingError` when a weight is not finite."""
        weights = copies(saved_tensors(self.objective, self.objective.not_saved))
        averages = copies(self.ema.average) if self.ema is not None else None
        for name, _ in self.objective.named_parameters():
            if name in weights and not bool(torch.isfinite(weights[name]).all()):
                raise TrainingError(f"step {self.step}: the weight {name} is no longer finite; lower training.optimizer.learning_rate")
        state = {
            "step": self.step,
            "samples": self.samples,
            "stream": self.stream.state(),
            "guard": self.guard.state(),
            "ema_updates": self.ema.updates if self.ema is not None else None,
            "best": self.best,
            "last": {name: value if value is None or math.isfinite(value) else None for name, value in self.last.items()},
            "running": self.running.state(),
            "seconds": self.time.state(),
            **self.identity.to_dict(),
        }
        return Snapshot(
            objective=weights if averages is None else averages,
            raw=None if averages is None else weights,
            optimizer=copies(flatten_optimizer(self.optimizer, self.optimizer_names)),
            trainer=copy.deepcopy(state),
            run=self.identity.run,
        )

    def _restore(self, snapshot: Snapshot, new_data: bool = False) -> None:
        """The inverse of `snapshot`; `new_data` may be of another length, then it begins at its first sample."""
        state, where = snapshot.trainer, str(self.checkpoints.path(snapshot.step))
        resume.require_average(self.ema is not None, snapshot, where)
        load_strictly(self.objective, self.objective.not_saved, snapshot.raw if snapshot.raw is not None else snapshot.objective, where)
        if self.ema is not None:
            self.ema.load(snapshot.objective, state["ema_updates"], where)
        load_optimizer(self.optimizer, self.optimizer_names, snapshot.optimizer)
        try:
            self.stream.load_state(state["stream"])
        except DataError as error:
            if not new_data:
                raise
            self.display.say(f"{error}; it begins at its first sample")
        self.guard.load_state(state["guard"])
        self.running.load_state(state["running"])
        self.time.load_state(state["seconds"])
        self.step = self.saver.saved_step = state["step"]
        self.samples, self.last = state["samples"], dict(state["last"])
        self.best = self.saver.saved_best = state["best"]

    def plan(self) -> dict[str, Any]:
        """What is about to happen, as plain data: to be printed before the first step."""
        decayed, plain = (sum(parameter.numel() for parameter in group["params"]) for group in self.optimizer.param_groups)
        saved = sum(tensor.nbytes for tensor in saved_tensors(self.objective, self.objective.not_saved).values())
        return {
            "steps": self.config.steps,
            "accumulation": self.config.accumulation,
            "precision": self.config.precision,
            "device": self.identity.environment["device"],
            "threads": self.identity.environment["threads"],
            "parameters": decayed + plain,
            "parameters_with_weight_decay": decayed,
            # Twice the weights (policy/ and objective), their average, and two moments of every trainable one.
            "checkpoint_bytes": (3 if self.ema is not None else 2) * saved + 2 * sum(parameter.nbytes for parameter in self.parameters),
        }

    def summary(self) -> dict[str, Any]:
        """What became of the run, as plain data."""
        seconds = self.time.state()
        whole = sum(seconds.values())
        return {
            "steps": self.step,
            "samples": self.samples,
            "skipped": self.guard.skipped,
            "failed_saves": self.saver.failed,
            **self.last,
            "best": self.best,
            "precision": self.config.precision,
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "seconds": {**{name: round(value, 3) for name, value in seconds.items()}, "total": round(whole, 3)},
            "samples_per_s": self.samples / whole if whole else None,
        }
