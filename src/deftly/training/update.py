"""One update of the weights: a batch in; gradients, their norm, the guard's verdict; then optimizer and average.

cut the batch into micro-batches -> sum their counts over micro-batches and ranks
each micro-batch: reseed the global generators, forward, backward; in the last one gradients are summed over ranks (`parallel.py`)
clip -> is everything finite? if not: skip and count, before the update and never after -> optimizer -> average
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deftly.randomness import seed_global
from deftly.training import distributed, memory
from deftly.training.blocks import cannot_compile, recompute
from deftly.training.checkpoint import Rows
from deftly.training.config import TrainingConfig
from deftly.training.ema import Ema
from deftly.training.groups import Groups
from deftly.training.guard import NON_FINITE, Guard, TrainingError
from deftly.training.locate import Origin, locate
from deftly.training.lora import add_adapters, merged
from deftly.training.noise import GradientNoise, Noise
from deftly.training.norms import ModuleNorms, Norms
from deftly.training.optim import Part, flatten_optimizer, load_optimizer, optimizer_names, set_learning_rates
from deftly.training.parallel import check_comes_apart, place
from deftly.training.precision import LossScaler, autocast
from deftly.training.state import check_fit, check_not_saved, copies, load_strictly, policy_state, saved_tensors
from deftly.training.step import clip, total_counts
from deftly.training.tracking import TimeSplit
from deftly.training.utilization import Utilization
from deftly.types import Batch, Clock, DataError, Objective, UsageError


class Taken(NamedTuple):
    """What a step came to."""

    numbers: dict[str, float]
    """Every term, `loss` and `gradient_norm`, over the whole batch of all ranks."""
    accepted: bool
    """Whether the weights were updated."""
    loss_scale: float | None = None
    """From here on, where the gradient overflowed float16: a skipped step that is not a bad one."""
    modules: dict[str, ModuleNorms] | None = None
    """Norms by module; at logged steps that were accepted."""
    noise: Noise | None = None
    """How much of the gradient is chance, where these steps show it."""
    origin: Origin | None = None
    """Where a step that is not finite stopped being so."""


class Tensors(NamedTuple):
    """Copies on the CPU of all tensors that a checkpoint holds (`checkpoint.Snapshot`)."""

    objective: dict[str, Tensor]
    raw: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]


class Update:
    """An objective and everything that changes its weights; called with a batch it takes one step.

    `config` is resolved for `device`. Raises `UsageError` where the objective cannot be trained as configured.
    """

    def __init__(
        self, objective: Objective, config: TrainingConfig, device: torch.device, seed: int, time: TimeSplit, say: Callable[[str], None]
    ) -> None:
        if config.accumulation not in (1, "auto") and not objective.decomposes:
            raise UsageError(
                f"{type(objective).__name__} does not decompose into a sum over samples, so accumulation {config.accumulation} would "
                "train something else; set training.accumulation to 1"
            )
        self.say, self.accumulation = say, config.accumulation if config.accumulation != "auto" else None
        check_not_saved(objective)
        self.config, self.device, self.seed, self.time = config, device, seed, time
        self.adapted = add_adapters(objective, config.lora, seed) if config.lora is not None else []
        self.objective = objective
        if config.activation_checkpointing:
            recompute(objective)
        self.parallel = place(objective, device, config.parallel, config.channels_last)
        if self.parallel.is_sharded and self.accumulation is None:  # guard: training.update.auto_sharded
            raise UsageError(
                "training.accumulation auto tries until memory runs out, after which FSDP cannot go on: set a number, such as the one "
                "that training.parallel ddp finds"
            )
        if config.compile:
            self._compile()
        self.groups = Groups(objective, config.groups, config.schedule, config.steps)
        # In the end everything learns that ever does: what several ranks cannot have is refused now, and not at an unfreezing.
        self.groups.enter(Clock(config.steps - 1, config.steps))
        if distributed.active():
            check_comes_apart(objective)
        self.parallel.renew()
        self.optimizer = config.optimizer.build([self._held(part) for part in self.groups.parts])
        self.optimizer_names = optimizer_names(self.groups.parts)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.ema = Ema(objective, config.ema_decay, objective.not_saved) if config.ema_decay is not None else None
        self.scaler = LossScaler() if config.precision == "fp16" else None
        self.guard = Guard(objective, config.max_bad_steps, objective.not_saved, config.spike_threshold)
        self.norms = Norms(objective, objective.not_saved)
        self.noise = GradientNoise(self.parallel)
        self.utilization = Utilization(time, device, config.precision)

    def __call__(self, batch: Batch, clock: Clock) -> Taken:
        """Forward, backward and, where everything is finite, the update of step `clock.step`."""
        if self.accumulation is None:
            self._find_accumulation(batch, clock)
        if self.groups.enter(clock):
            self.parallel.renew()
        if self.utilization.step is None:
            self._count_flops(batch, clock, self.accumulation or 1)
        self.guard.remember()
        is_logged = clock.step == 0 or (clock.step + 1) % self.config.log_every == 0 or clock.step + 1 == clock.total
        self.noise.begin(is_logged)
        used = self.scaler.scale if self.scaler is not None else None
        self.utilization.begin()
        values, loss = self._fitting_gradients(batch, clock)
        learning = self.parallel.collect(self.groups.parameters())
        if self.scaler is not None:
            self.scaler.unscale(learning)
        if is_logged:
            self.norms.remember(used)
        norm = clip(learning, self.config.clip_norm, self.parallel.combine)
        self.utilization.end()
        numbers = _read(values, loss, norm)
        self.time.lap("forward_backward")
        scale = self._scale_after_overflow(numbers)
        accepted = scale is None and self.guard.accepts(numbers["loss"], numbers["gradient_norm"])
        self.utilization.begin()
        if accepted:
            set_learning_rates(self.optimizer, self.learning_rates(clock))
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
        self.utilization.end()
        modules = self.norms.measure() if is_logged else None
        noise = self.noise.measure(numbers["gradient_norm"], len(batch) * distributed.world_size(), used or 1.0)
        is_bad = scale is None and not accepted
        origin = self._locate(batch, clock) if is_bad and self.guard.reason == NON_FINITE else None
        self.time.lap("optimizer")
        return Taken(numbers, accepted, scale, modules if accepted else None, noise if accepted else None, origin)

    def _scale_after_overflow(self, numbers: dict[str, float]) -> float | None:
        """The new loss scale, where the old one was too large for this step's gradient."""
        if self.scaler is None or not self.scaler.overflowed(numbers["loss"], numbers["gradient_norm"]):
            return None
        self.guard.restore()
        return self.scaler.scale

    def _locate(self, batch: Batch, clock: Clock) -> Origin:
        """Replay a step that was not finite, and leave no trace of that either."""
        assert self.accumulation is not None
        self._clear_gradients()
        origin = locate(self.objective, batch, self.accumulation, lambda: self._gradients(batch, clock, self.accumulation or 1))
        self._forget()
        return origin

    def _find_accumulation(self, batch: Batch, clock: Clock) -> None:
        """Try this batch in ever more parts until one of them fits; leaves no trace. Raises `TrainingError` where none does."""
        moments = 0 if self.optimizer.state else 2 * sum(parameter.nbytes for parameter in self.parameters)
        self.groups.enter(Clock(clock.total - 1, clock.total))  # what is unfrozen later takes memory too
        parts = 1
        while True:
            self.guard.remember()
            trial = functools.partial(self._gradients, batch, clock, parts, only_first=True)
            fits, fit = memory.attempt(trial, self.device, moments, self.config.memory_share)
            self._forget()
            if not distributed.any_rank(not fits):
                break
            parts = self._require_parts(len(batch), parts, parts + 1, clock)
        self.accumulation = parts
        self.say(memory.describe(len(batch), parts, fit, distributed.world_size()))

    def _count_flops(self, batch: Batch, clock: Clock, parts: int) -> None:
        """What a step of this session computes, by its first micro-batch; leaves no trace. Compiled or cut into rows it cannot be seen."""
        replay = functools.partial(self._gradients, batch, clock, parts, only_first=True)
        is_seen = self.config.count_flops and not self.config.compile and not self.parallel.is_sharded
        self.guard.remember()
        if reason := self.utilization.measure(clock.step, replay if is_seen else None, parts):
            self.say(f"MFU is not known: FLOPs could not be counted ({reason})")
        self._forget()

    def _fitting_gradients(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], Tensor]:
        """The step's gradients, in more parts than before where memory runs out."""
        assert self.accumulation is not None
        while True:
            self._clear_gradients()
            try:
                return self._gradients(batch, clock, self.accumulation)
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
            # Here the error is gone, and with it the frames that hold on to tensors.
            self._forget()
            more = self._require_parts(len(batch), self.accumulation, 2 * self.accumulation, clock)
            self.say(
                f"WARNING: step {clock.step + 1} ran out of memory; from here on {len(batch) // more} samples at a time, {more} times: "
                "the same batch, but not the same bits as without it"
            )
            self.accumulation = more

    def _require_parts(self, batch_size: int, parts: int, least: int, clock: Clock) -> int:
        """The next number of parts, `least` or more, after `parts` did not fit; raises `TrainingError` where a batch cannot be cut so."""
        more = memory.parts_of(batch_size, least)
        remedy = "lower data.batch_size, or choose a smaller policy"
        if not self.objective.decomposes:
            more, remedy = [], f"{type(self.objective).__name__} does not decompose, so the batch cannot be cut: {remedy}"
        elif distributed.active() and self.accumulation is not None and more:
            more, remedy = [], f"the other ranks wait for this one: go on with --resume --training.accumulation {more[0]}"
        if not more:
            raise TrainingError(f"step {clock.step + 1}: out of memory with {batch_size // parts} samples at a time; {remedy}")
        return more[0]

    def _compile(self) -> None:
        """On all ranks or on none: they must do the same."""
        reason = cannot_compile(self.device)
        if distributed.any_rank(reason is not None):
            self.say(f"WARNING: training.compile: torch.compile does not work here ({reason or 'on another rank'}); not compiled")
            return
        self.say("compiling: the first steps take a while; a run that is resumed goes on from the same weights, but not in the same bits")
        self.parallel.compile()

    def _held(self, part: Part) -> Part:
        """What this rank updates of it."""
        return replace(part, parameters=dict(zip(part.parameters, self.parallel.held(list(part.parameters.values())), strict=True)))

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.zero_grad(set_to_none=True)

    def _forget(self) -> None:
        """Undo what a forward pass that came to nothing did."""
        self.guard.restore()
        self._clear_gradients()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gradients(self, batch: Batch, clock: Clock, count: int, only_first: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Backward through every one of `count` micro-batches; this rank's share of each term and of the loss."""
        parts = batch.split(count) if count > 1 else [batch]
        counts = total_counts([self.objective.counts(part) for part in parts])
        values: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        for number, part in enumerate(parts[:1] if only_first else parts):
            seed_global("training", self.seed, clock.step, number, distributed.rank())
            with self.parallel.exchanging(number == len(parts) - 1 and not only_first):
                with autocast(self.device, self.config.precision):
                    part_loss, terms = self.parallel.loss(part, clock, counts)
                (part_loss if self.scaler is None else self.scaler.scaled(part_loss)).backward()
            if number == 0:
                self.noise.see(self.parameters, len(parts))
            loss = loss + part_loss.detach()
            for name, term in terms.items():
                values[name] = values[name] + term.value if name in values else term.value
        return values, loss

    def learning_rate(self, clock: Clock) -> float:
        """Of the step that comes next: the highest of its parts."""
        return max(self.learning_rates(clock))

    def learning_rates(self, clock: Clock) -> list[float]:
        """Of the step that comes next, for each parameter group of the optimizer; 0 where it does not learn."""
        return [self.config.optimizer.learning_rate * factor for factor in self.groups.rate_factors(clock)]

    # -- state -----------------------------------------------------------------------------------------------------------------------

    def tensors(self, step: int) -> Tensors:
        """Copies of everything that training goes on with. Raises `TrainingError` when a weight is not finite after `step` steps."""
        weights = copies(saved_tensors(self.objective, self.objective.not_saved))
        averages = copies(self.ema.average) if self.ema is not None else None
        for name, _ in self.objective.named_parameters():
            if name in weights and not bool(torch.isfinite(weights[name]).all()):  # guard: training.update.finite
                raise TrainingError(f"step {step}: the weight {name} is no longer finite; lower training.optimizer.learning_rate")
        return Tensors(
            objective=weights if averages is None else averages,
            raw=None if averages is None else weights,
            optimizer=copies(flatten_optimizer(self.optimizer, self.optimizer_names)),
        )

    def policy_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a `policy/` holds of the objective's `tensors`: the policy's own, adapters merged into the weights that they adapt."""
        state = policy_state(self.objective, tensors)
        return merged(self.objective.policy, state) if self.adapted else state

    def part(self) -> Rows:
        """What of the whole `tensors` are."""
        if not self.parallel.is_sharded:
            return Rows()
        return Rows(distributed.rank(), distributed.world_size(), lambda name: self.parallel.piece(name) is None)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the tensors, as plain data."""
        return {
            "guard": self.guard.state(),
            "ema_updates": self.ema.updates if self.ema is not None else None,
            "scaler": self.scaler.state() if self.scaler is not None else None,
            "accumulation": {"configured": self.config.accumulation, "used": self.accumulation},
        }

    def load(self, tensors: Tensors, state: dict[str, Any], where: str) -> None:
        """The inverse of `tensors` and `state`; `DataError` names what does not fit, and `where` it comes from."""
        had_average = state["ema_updates"] is not None
        if had_average != (tensors.raw is not None):  # guard: training.update.average
            raise DataError(f"{where}: {'lacks' if had_average else 'has'} weights beside averaged ones; use an earlier checkpoint")
        load_strictly(self.objective, self.objective.not_saved, tensors.raw if tensors.raw is not None else tensors.objective, where)
        if self.ema is not None and had_average:
            self.ema.load(tensors.objective, state["ema_updates"], where)
        elif self.ema is not None:  # `ema_decay` was null when this was saved
            self.restart_average()
        frozen = {name for name, _ in self.objective.named_parameters()} - set(self.optimizer_names)
        load_optimizer(self.optimizer, self.optimizer_names, tensors.optimizer, frozen)
        self.guard.load_state(state["guard"])
        if self.scaler is not None and state["scaler"] is not None:  # another precision may be asked for by name when a run goes on
            self.scaler.load_state(state["scaler"])
        # What fitted, or did not, was the share of as many ranks.
        is_same_share = state.get("environment", {}).get("ranks", distributed.world_size()) == distributed.world_size()
        if is_same_share and state["accumulation"]["configured"] == self.config.accumulation:
            self.accumulation = state["accumulation"]["used"]

    def go_back(self, tensors: Tensors, state: dict[str, Any]) -> None:
        """Weights, moments, averages and the guard's window of an earlier checkpoint of this run; what counts goes on counting."""
        guard = {**self.guard.state(), "window": state["guard"]["window"], "in_a_row": 0}
        self.load(tensors, {**self.state(), "guard": guard, "ema_updates": state["ema_updates"]}, "the checkpoint to go back to")

    def misfit(self, weights: Mapping[str, Tensor]) -> str | None:
        """Why these are no weights of this objective; None where they are, by name, shape and type."""
        try:
            check_fit(saved_tensors(self.objective, self.objective.not_saved), weights, "its weights")
        except DataError as error:
            return str(error).removesuffix("; the weights are of another model")
        return None

    def restart_average(self) -> None:
        """The weights were given from elsewhere, or had no average: it begins with them."""
        if self.ema is not None:
            self.ema = Ema(self.objective, self.ema.decay, self.objective.not_saved)

    def plan(self) -> dict[str, Any]:
        """Sizes and groups, known before the first step."""
        learning = sum(parameter.numel() for part in self.groups.parts for parameter in part.parameters.values())
        saved = sum(tensor.nbytes for tensor in saved_tensors(self.objective, self.objective.not_saved).values())
        moments = 2 * sum(parameter.nbytes for parameter in self.parameters)
        ranks = distributed.world_size() if self.parallel.is_sharded else 1
        return {
            "parameters": learning,
            "parameters_frozen": sum(parameter.numel() for parameter in self.objective.parameters()) - learning,
            "parameters_with_weight_decay": sum(p.numel() for part in self.groups.parts if part.decayed for p in part.parameters.values()),
            "groups": self.groups.plan(self.config.steps),
            "adapted": len(self.adapted),
            # Twice the weights (policy/ and objective), their average, and two moments of every trainable one.
            "checkpoint_bytes": ranks * ((3 if self.ema is not None else 2) * saved + moments),
        }


def _read(values: dict[str, Tensor], loss: Tensor, norm: Tensor) -> dict[str, float]:
    """All numbers of the step in one transfer: the only time in a step that the host waits for the device."""
    sums = distributed.sum_over_ranks(torch.stack([*(value.to(torch.float64) for value in values.values()), loss.to(torch.float64)]))
    numbers = torch.cat([sums, norm.to(torch.float64)[None]]).tolist()
    return dict(zip([*values, "loss", "gradient_norm"], numbers, strict=True))
