"""The one loop. Every method trains through it; what a method needs goes into its objective.

A step, always in this order:

    take a batch -> update (`update.py`) -> hooks: stream feedback, log, validate, checkpoint

The checkpoint comes last because it must hold everything that the step changed, a curriculum's stream included. No hook changes a
weight or a draw, so how often they run does not either.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from deftly import storage
from deftly.contract import Contract
from deftly.training import distributed, resume, session
from deftly.training.checkpoint import Checkpoints, Snapshot, WritePolicy
from deftly.training.config import TrainingConfig
from deftly.training.journal import Journal
from deftly.training.lifetime import Interrupt, interruptible
from deftly.training.precision import compute_exactly, determinism_explained, make_deterministic, warning
from deftly.training.resume import shortened
from deftly.training.rollback import Rollbacks
from deftly.training.saved_state import reading
from deftly.training.saver import Saver
from deftly.training.start import check_there, origin, read_source, read_whole, take_weights
from deftly.training.step import check_batch
from deftly.training.stopping import EarlyStop
from deftly.training.update import Taken, Tensors, Update
from deftly.training.validation import HeldOut
from deftly.types import Batch, Clock, DataError, Objective, Samples, Stream, UsageError

RUN_FILE, CHECKPOINTS, LOCK = "run.json", "checkpoints", ".lock"


class Trainer:
    """Trains an objective on a stream, in a run directory of its own, and survives being killed at any moment.

    `validation` gives a fresh pass over the held-out batches each time: all of them on every rank, which measures its stretch of each.
    `write_policy(directory, state)` writes a `policy/` from the policy's state dict. `began()` is called once it is known that the run may
    begin or go on here, and before anything is written for that. `words` is the policy's vocabulary in the order of its
    ids. `run_json`, `dataset_hash` and `contract` are what the run is: resume refuses others, naming what differs. `code` are hashes of
    files that deftly does not bring along (`own_code.hashes`): resume warns of others. The stream is the caller's, who closes it.
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
        validation: Callable[[], Iterator[Samples]] | None = None,
        words: Sequence[str] | None = None,
        code: dict[str, str] | None = None,
        began: Callable[[], None] = lambda: None,
        title: str = "train",
    ) -> None:
        self.device = torch.device(device)
        self.config = config.resolve(self.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.device.type == "cuda":
            compute_exactly(self.config.precision)
            if config.deterministic:
                make_deterministic()
        if config.early_stop is not None and validation is None:  # guard: training.early_stop.blind
            raise UsageError("training.early_stop needs held-out episodes: set data.validation_fraction, or leave it out")
        self.stream, self.seed = stream, seed
        self.early_stop = EarlyStop(config.early_stop)
        self.directory, self.began = directory, began
        self.identity = resume.Identity(
            run=json.loads(json.dumps(run_json)),
            dataset_hash=dataset_hash,
            contract=contract,
            environment=resume.environment(self.config, self.device, code or {}),
        )
        self.journal = Journal(
            directory, title, config.steps, [tracker.build(directory, self.identity.fixed()) for tracker in config.trackers]
        )
        self.time = self.journal.time
        self.update = Update(objective, self.config, self.device, seed, self.time, self.journal.say)
        self.objective = self.update.objective
        self.validation = validation and HeldOut(self.objective, validation, self.config, self.device, seed, self.journal.say)
        self.checkpoints = Checkpoints(directory / CHECKPOINTS, config.keep_last, config.checkpoint_every, self.update.parallel.piece)
        if not self.checkpoints.steps():
            check_there(config.start)
        every, limit = config.checkpoint_every, config.max_rollbacks
        self.rollbacks = Rollbacks(directory, self.checkpoints, every, limit, self.journal.say)
        self.saver = Saver(self.checkpoints, self.journal.metrics, write_policy, self.journal.say)
        self.step = self.samples = 0
        self.best: dict[str, Any] | None = None
        self.origin: dict[str, Any] | None = None
        self.words = words
        self.is_main = distributed.rank() == 0
        self.checked_batch = False

    # -- the run ---------------------------------------------------------------------------------------------------------------------

    def fit(self, resume: bool = False, allow_change: Sequence[str] = ()) -> dict[str, Any]:
        """Train to the last step and return the summary.

        With `resume` it goes on from the newest good checkpoint, or from the beginning where there is none yet; fields of the config that
        have changed since are refused, unless `allow_change` names them. Raises `UsageError` or
        `DataError` before the first step, `TrainingError` when training cannot go on, and `SystemExit(143)` after SIGTERM.
        """
        others = distributed.stopping_with_the_others()
        with (
            ExitStack() as held,
            interruptible(distributed.active()) as interrupt,
            self.journal.display,
            closing(self.journal),
            closing(self.saver),
            others,
        ):
            with distributed.first_alone():
                if self.is_main:
                    held.enter_context(storage.lock(self.directory / LOCK, wait=False, who="trainer", remedy="stop it first"))
                self._begin(resume, allow_change)
            recorded = session.recorded(self.directory, self.identity, lambda: self.step, self.journal.say)
            with recorded if self.is_main else nullcontext(), determinism_explained():
                self.time.start()
                while not self._is_over():
                    batch = self._take(interrupt)
                    clock = Clock(self.step, self.config.steps)
                    self._hooks(batch, self.update(batch, clock), self.update.learning_rate(clock))
                    if interrupt.agree(distributed.most_over_ranks):
                        self._leave(interrupt)
            if self.early_stop.why is not None:
                self.journal.say(self.early_stop.why)
            self.update.utilization.tell(self.journal.say)
            return self.summary()

    def _is_over(self) -> bool:
        return self.step >= self.config.steps or self.early_stop.why is not None

    def _begin(self, wants_resume: bool, allow_change: Sequence[str]) -> None:
        """Put the run where it starts. The four ways, in the order in which they are tried:

        1. resume: this directory has a checkpoint; everything goes on from the newest good one
        2. continue elsewhere: `training.start` names a run; everything goes on from its newest checkpoint, in this directory
        3. fine-tune: `training.start` names weights of it; those are taken, everything else is fresh
        4. scratch
        """
        start = self.config.start
        self._prepare_directory(wants_resume)
        own = self.checkpoints.newest(self.journal.say)
        if own is not None:
            self._go_on(own, self.checkpoints.path(own.step), allow_change)
            self.saver.saved_step, self.saver.saved_best = self.step, self.best
            if self.step > self.config.steps:  # guard: training.begin.past
                raise UsageError(f"{self.directory}: is at step {self.step}, past {self.config.steps}; give training.steps at least that")
            self.journal.say(f"resuming at step {self.step} of {self.config.steps}")
        elif start.path is not None and not start.weights:
            snapshot, where = read_whole(start.path, self.checkpoints.piece)
            self._go_on(snapshot, where, allow_change, elsewhere=True)
            if self._is_over():  # guard: training.start.over
                raise UsageError(f"{where}: is at step {self.step} of {self.config.steps}, nothing is left; raise training.steps")
            self.origin, self.best = origin("continued", where, storage.sha256(where / storage.MANIFEST)), None  # a best of this directory
            self.journal.say(f"continuing {where} at step {self.step} of {self.config.steps}")
        elif start.path is not None:
            source = read_source(start.path)
            names = take_weights(self.objective, start.weights, source, self.words)
            self.update.restart_average()
            self.origin = origin("fine-tuned", source.where, source.sha256, len(names))
            self.journal.say(f"beginning with {len(names)} tensors of {source.where}: {shortened(names)}")
        if self.is_main:
            self.began()
            storage.write_json(self.directory / RUN_FILE, self.identity.run)
            self.checkpoints.settle(self.best["step"] if self.best else None)
        self.journal.begin(self.step, self.samples)

    def _prepare_directory(self, wants_resume: bool) -> None:
        """Clear what a crash left, and refuse what cannot be begun here."""
        if self.is_main:
            storage.remove_temporaries(self.directory)
            self.checkpoints.sweep(self.journal.say)
            self.checkpoints.require_space(self.plan()["checkpoint_bytes"])
        if text := warning(self.device, self.config.precision):
            self.journal.say(f"WARNING: {text}")
        if not wants_resume and self.checkpoints.steps():  # guard: training.begun
            raise UsageError(
                f"{self.directory}: holds a run at step {self.checkpoints.steps()[-1]}; pass --resume to go on, or choose another directory"
            )

    def _go_on(self, snapshot: Snapshot, where: Path, allow_change: Sequence[str], elsewhere: bool = False) -> None:
        """Everything as it stood in a checkpoint, once it is known to be of this run."""
        misfit = self.update.misfit(snapshot.objective if snapshot.raw is None else snapshot.raw)
        with reading(where):
            changes = resume.require_same_run(self.identity, snapshot, where, allow_change, misfit=misfit, elsewhere=elsewhere)
            for note in changes.notes:
                self.journal.say(note)
            self._restore(snapshot, where, changes)

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
            check_batch(self.objective, batch, self.update.accumulation or 1)
            self.checked_batch = True
        if batch.key.device.type != self.device.type:
            batch = batch.to(self.device)
        self.time.lap("data")
        return batch

    # -- hooks: feedback, log, validate, checkpoint ----------------------------------------------------------------------------------

    def _hooks(self, batch: Batch, taken: Taken, rate: float) -> None:
        self.step += 1
        self.samples += len(batch) * distributed.world_size()
        if taken.accepted:
            self.stream.feedback(taken.numbers)
            self.journal.running.add(taken.numbers)
            if self.update.guard.spikes.is_news:
                self.journal.recurring(self.step, taken, batch)
        elif taken.loss_scale is not None:
            self.journal.overflowed(self.step, taken.loss_scale)
        else:
            self.journal.skipped(self.step, taken, self.update.guard.reason, batch)
            if self.update.guard.is_stuck:
                self._roll_back(taken, batch)
        self.journal.display.update(self.step, self.samples, taken.numbers["loss"])
        is_logged = self._due(self.config.log_every)
        if is_logged:
            self._log(rate)
        self.journal.modules(self.step, taken.modules, taken.noise)
        is_best = self._due(self.config.validate_every) and self._validate()
        if self._is_over() and not is_logged:  # the held-out loss has just said so
            self._log(rate)
        if self._due(self.config.checkpoint_every) or is_best:
            self._save(final=self._is_over())

    def _log(self, rate: float) -> None:
        self.journal.train(self.step, self.samples, rate, self.update.guard.skipped, self.update.utilization)

    def _roll_back(self, taken: Taken, batch: Batch) -> None:
        """Take the weights, moments and averages of the last good checkpoint, and go on with the batches that come next."""
        self.best = self.saver.settle(self.best)
        distributed.any_rank(False)  # no rank reads before the first one has written
        snapshot = self.rollbacks.target(self.step, taken, batch, self.update.guard, self.origin)
        self.update.go_back(Tensors(snapshot.objective, snapshot.raw, snapshot.optimizer), snapshot.trainer)
        self.journal.rolled_back(self.step, self.rollbacks.done)

    def _due(self, every: int | None) -> bool:
        return self._is_over() or (every is not None and self.step % every == 0)

    def _validate(self) -> bool:
        """Measure the held-out loss, with averaged weights where there are any; whether it is the best so far."""
        if self.validation is None:
            return False
        self.time.lap("other")
        self.best = self.saver.settle(self.best)  # what this is compared with is on the disk
        self.time.lap("checkpoint")
        with self.update.ema.applied() if self.update.ema is not None else nullcontext(), self.update.parallel.whole():
            loss, terms, detail = self.validation()
        is_best = math.isfinite(loss) and (self.best is None or loss < self.best["loss"])
        if is_best:
            self.best = {"step": self.step, "loss": loss}
        self.journal.validated(self.step, loss, terms, detail, self.best)
        self.early_stop.see(self.step, {"loss": loss, **terms})
        return is_best

    def _save(self, final: bool) -> None:
        """Begin a checkpoint of this step, once the one before is whole; a final one is waited for."""
        self.time.lap("other")
        if self.is_main or self.update.parallel.is_sharded:
            self.best = self.saver.settle(self.best)
            if self.saver.saved_step != self.step:
                snapshot = self.snapshot()
                self.saver.begin(snapshot, self.update.policy_state(snapshot.objective))
            if final:
                with distributed.together() if self.update.parallel.is_sharded else nullcontext():
                    self.best = self.saver.settle(self.best, final=True)
        self.time.lap("checkpoint")

    def _leave(self, interrupt: Interrupt) -> None:
        """Save this step boundary and end with the exit code of the signal, or with `TrainingError` when it cannot be saved."""
        self._save(final=True)
        distributed.wait_for_all()  # a launcher ends the others when one is gone
        self.journal.say(f"stopped by a signal after step {self.step} of {self.config.steps}; pass --resume to go on")
        raise SystemExit(interrupt.exit_code)

    # -- state -----------------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything that this run needs to go on from here, copied to the CPU. Raises `TrainingError` when a weight is not finite."""
        tensors = self.update.tensors(self.step)
        state = {
            "step": self.step,
            "samples": self.samples,
            "stream": self.stream.state(),
            "best": self.best,
            "origin": self.origin,
            "early_stop": self.early_stop.state(),
            "rollbacks": self.rollbacks.state(),
            **self.update.state(),
            **self.journal.state(),
            **self.identity.to_dict(),
        }
        return Snapshot(**tensors._asdict(), trainer=copy.deepcopy(state), run=self.identity.run, part=self.update.part())

    def _restore(self, snapshot: Snapshot, where: Path, changes: resume.Changes) -> None:
        """The inverse of `snapshot`; other data may be of another length, then it begins at its first sample."""
        state = snapshot.trainer
        self.update.load(Tensors(snapshot.objective, snapshot.raw, snapshot.optimizer), state, str(where))
        try:
            self.stream.load_state(state["stream"])
        except DataError as error:
            if not changes.other_samples:
                raise
            self.journal.say(f"{error}; it begins at its first sample")
        self.journal.load_state(state)
        self.step, self.samples = state["step"], state["samples"]
        self.origin = state["origin"]
        if not changes.other_judge:
            self.best = state["best"]
            self.early_stop.load_state(state["early_stop"])
        elif state["best"] is not None:
            self.journal.say("what was best so far was judged otherwise: the search for the best begins anew")
        self.rollbacks.load_state(state["rollbacks"])

    def plan(self) -> dict[str, Any]:
        """What is about to happen, as plain data: to be printed before the first step."""
        return {
            "steps": self.config.steps,
            "accumulation": self.config.accumulation,
            "precision": self.config.precision,
            "device": self.identity.environment["device"],
            "threads": self.identity.environment["threads"],
            **self.update.plan(),
        }

    def summary(self) -> dict[str, Any]:
        """What became of the run, as plain data."""
        seconds = self.time.state()
        whole = sum(seconds.values())
        return {
            "steps": self.step,
            "samples": self.samples,
            "skipped": self.update.guard.skipped,
            "rollbacks": len(self.rollbacks.done),
            "overflows": self.update.scaler.overflows if self.update.scaler is not None else 0,
            "failed_saves": self.saver.failed,
            **self.journal.last,
            "best": self.best,
            "stopped_early": self.early_stop.why,
            "precision": self.config.precision,
            "parameters": self.update.plan()["parameters"],
            "seconds": {**{name: round(value, 3) for name, value in seconds.items()}, "total": round(whole, 3)},
            "utilization": self.update.utilization.to_dict(),
            "samples_per_s": self.samples / whole if whole else None,
        }
