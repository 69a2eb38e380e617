"""Everything about a training run that is not data, model or objective."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic
import torch

from deftly.config import Config
from deftly.training.groups import Group
from deftly.training.lora import LoraConfig
from deftly.training.measures import MeasuresConfig
from deftly.training.optim import AdamWConfig
from deftly.training.precision import native_bf16
from deftly.training.schedule import ScheduleConfig, WarmupCosineConfig
from deftly.training.start import StartConfig
from deftly.training.stopping import EarlyStopConfig
from deftly.training.tensorboard import TensorBoardConfig
from deftly.training.wandb import WandbConfig

MEMORY_SHARE = 0.9
TrackerConfig = Annotated[TensorBoardConfig | WandbConfig, pydantic.Field(discriminator="kind")]


class TrainingConfig(Config):
    """How long, how exact, how fast, and how often to look."""

    FREE: ClassVar[tuple[str, ...]] = ("trackers", "log_every", "checkpoint_every", "keep_last", "count_flops", "rank_timeout_s")
    """Fields that cannot change a weight: a resumed run may have others. `validate_every` is none: it decides which checkpoint is best.
    Where a run goes back to one (`rollback.py`), which ones there are does decide."""

    steps: int = pydantic.Field(default=10_000, gt=0, le=10**12)
    accumulation: Annotated[int, pydantic.Field(gt=0)] | Literal["auto"] = 1
    """Into how many micro-batches each batch of the stream is cut: less memory, the same gradient. `auto`: as few as fit the device. When
    memory runs out in the middle of a run, there are twice as many from then on."""
    memory_share: float = pydantic.Field(default=MEMORY_SHARE, gt=0, le=1)
    """How much of the device's memory `auto` may plan with."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the forward pass; `auto` is bf16 where the device computes it natively, else fp32; `resolve` settles it. fp16, for GPUs without
    bf16, scales the loss."""
    optimizer: AdamWConfig = AdamWConfig()
    schedule: ScheduleConfig = WarmupCosineConfig()
    groups: tuple[Group, ...] = ()
    """Which parameters learn, how fast and from when on; every trainable one in exactly one entry. Empty: all of them by `schedule`."""
    lora: LoraConfig | None = None
    """Low-rank adapters in the policy, whose own weights are then frozen; null: none."""
    clip_norm: float | None = pydantic.Field(default=1.0, gt=0)
    ema_decay: float | None = pydantic.Field(default=0.999, ge=0, lt=1)
    """Final decay of the moving average of the weights; null: none. It warms up as (1 + n) / (10 + n)."""
    max_bad_steps: int = pydantic.Field(default=10, gt=0)
    """How many steps in a row may be bad (loss or gradient not finite, or a spike) before training goes back to a checkpoint."""
    max_rollbacks: int = pydantic.Field(default=3, ge=0)
    """How often it may go back, with the batches that it was stuck in left behind, before it stops."""
    start: StartConfig = StartConfig()
    """Weights of another run to begin with."""
    trackers: tuple[TrackerConfig, ...] = ()
    """Where else the log is shown: it is always in RUN/metrics.jsonl."""
    spike_threshold: float | None = pydantic.Field(default=20.0, gt=0)
    """A step whose loss lies this many robust standard deviations above the median of the last ones is skipped, unless such losses come
    again; a standard deviation counts as no less than the median, so 20 is at least 21 times the median. Null: none is."""
    log_every: int = pydantic.Field(default=20, gt=0)
    count_flops: bool = True
    """Count at the first step of each session what a step computes, and say how much of the device that uses (MFU)."""
    validate_every: int | None = pydantic.Field(default=500, gt=0)
    """Also after the last step; null: only then."""
    measures: MeasuresConfig = MeasuresConfig()
    """What validation measures beside the loss."""
    early_stop: EarlyStopConfig | None = None
    """End when held-out episodes are not handled better for a while; null: train to the last step."""
    checkpoint_every: int | None = pydantic.Field(default=1000, gt=0)
    """Also after the last step and at every new best; null: only then."""
    keep_last: int = pydantic.Field(default=2, ge=2)
    """Newest checkpoints that are kept; the best is kept beside them. One alone could be the corrupt one."""
    threads: int | None = pydantic.Field(default=None, gt=0, le=1024)
    """Threads of torch on the CPU; null: as they are. Part of what bit-exact resume needs to be the same."""
    channels_last: bool = False
    activation_checkpointing: bool = False
    """Repeated blocks are computed a second time in the backward pass instead of being remembered: less memory, the same bits."""
    compile: bool = False
    """torch.compile: the first steps take minutes, later ones less. Outside of what is repeated bit for bit."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """With several processes: whether each has the whole objective (ddp, which `auto` is) or some rows of every parameter (fsdp)."""
    rank_timeout_s: float = pydantic.Field(default=600.0, gt=0, le=7 * 86_400)
    """With several processes: how long one waits for the others before all give up."""
    deterministic: bool = True
    """On CUDA: algorithms that give the same bits every time (the CPU always does); an operation that has none is refused."""

    @pydantic.model_validator(mode="after")
    def check_trackers(self) -> TrainingConfig:
        kinds = [tracker.kind for tracker in self.trackers]
        if len(set(kinds)) < len(kinds):  # guard: training.trackers.twice
            raise ValueError(f"each tracker once, not {', '.join(kinds)}")
        return self

    @pydantic.model_validator(mode="after")
    def check_parallel(self) -> TrainingConfig:
        if self.lora is not None and self.parallel == "fsdp":  # guard: training.parallel.lora
            raise ValueError("adapters cannot be merged into weights that are cut into rows: set parallel to ddp, or leave lora out")
        return self

    @pydantic.model_validator(mode="after")
    def check_early_stop(self) -> TrainingConfig:
        if self.early_stop is not None and self.validate_every is None:  # guard: training.early_stop.never_looks
            raise ValueError("early_stop counts validations: set validate_every, or leave early_stop out")
        watches = self.early_stop is not None and self.early_stop.metric == "action_accuracy"
        if watches and self.measures.action_tolerance is None:  # guard: training.early_stop.not_measured
            raise ValueError("early_stop watches action_accuracy, which is not measured: set measures.action_tolerance")
        return self

    @pydantic.model_validator(mode="after")
    def check_schedules(self) -> TrainingConfig:
        self.schedule.check(self.steps)
        for group in self.groups:
            schedule = self.schedule if group.schedule == "training" else group.schedule
            if schedule is not None:
                schedule.check(self.steps - group.start(self.steps))
        return self

    @pydantic.model_validator(mode="after")
    def check_effect(self) -> TrainingConfig:
        """A setting without effect is a mistake."""
        if self.memory_share != MEMORY_SHARE and self.accumulation != "auto":  # guard: training.memory_share.effect
            raise ValueError(f"memory_share {self.memory_share:g} is what accumulation 'auto' plans with, not {self.accumulation}")
        return self

    def resolve(self, device: torch.device | str) -> TrainingConfig:
        """This config with `precision` settled for `device`: what a run records, so that it resumes as it began."""
        if self.precision != "auto":
            return self
        return self.replace(precision="bf16" if native_bf16(torch.device(device)) else "fp32")
