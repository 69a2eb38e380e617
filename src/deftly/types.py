"""The types in flight: what data yields, what objectives read, what policies, streams and worlds are. Imports nothing of ours.

Letters: b batch, t observation frames, k action chunk, a action dims, s state dims, l text length, n tokens, d width, h w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypedDict

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


class UsageError(ValueError):
    """The user asked for something that cannot be done. One line: what, where, how to fix. Exit code 2."""

    exit_code: ClassVar[int] = 2


class DataError(UsageError):
    """Data, a checkpoint or a contract is broken or does not match. One line with file, episode, field and remedy. Exit code 65."""

    exit_code: ClassVar[int] = 65


class EpisodeError(DataError):
    """One episode is broken, the rest of its dataset need not be. `episode` is its number in the folder, `code` a word for the fault."""

    def __init__(self, message: str, episode: int, code: str) -> None:
        super().__init__(message)
        self.episode, self.code = episode, code

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send it home
        return EpisodeError, (str(self), self.episode, self.code)


@dataclass(kw_only=True, slots=True)
class Tokens:
    """Token ids together with their padding mask."""

    ids: Int64[Tensor, "b l"]
    is_pad: Bool[Tensor, "b l"]


@dataclass(kw_only=True, slots=True)
class Batch:
    """The only thing data yields and objectives read.

    ```
    time      past ............... now | next ......... +k
    images    [t frames, uint8]        |
    state     [t rows]                 |
    actions   past_actions [t]         | actions [k], valid where not action_is_pad
    ```
    """

    key: Int64[Tensor, "b"]  # hash of (seed, epoch, position); every random draw about a sample starts from it
    images: dict[str, Tensor]  # camera -> [b t c h w] uint8 until the model's own preprocessing
    camera_is_missing: dict[str, Tensor]  # camera -> [b] bool: absent cameras are masked, never zero-filled silently
    depth: dict[str, Tensor] = field(default_factory=dict)  # depth camera -> [b t 1 h w] metres, 0 where nothing was measured
    state: Float[Tensor, "b t s"]  # normalised proprioception
    state_dim_is_pad: Bool[Tensor, "b s"]
    past_actions: Float[Tensor, "b t a"]  # normalised; row i was commanded one step before observation frame i
    past_action_is_pad: Bool[Tensor, "b t"]
    observation_is_pad: Bool[Tensor, "b t"]
    text: Tokens
    actions: Float[Tensor, "b k a"] | None  # normalised; None when acting
    action_dim_is_pad: Bool[Tensor, "b a"]
    action_is_pad: Bool[Tensor, "b k"] | None  # padding never changes a loss or a gradient
    embodiment: Int64[Tensor, "b"]
    task: Int64[Tensor, "b"]
    episode: Int64[Tensor, "b"]
    frame: Int64[Tensor, "b"]
    domain: Int64[Tensor, "b"]
    labels: dict[str, Tensor] = field(default_factory=dict)  # per-task targets, each with `<name>_is_valid` [b] bool
    weight: Float[Tensor, "b"]  # a loss is the weighted sum over valid elements / the weighted count

    def __len__(self) -> int:
        return len(self.key)

    def map(self, function: Any) -> Self:
        """A copy with `function` applied to every tensor."""
        return replace(self, **{item.name: _map(getattr(self, item.name), function) for item in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, parts: int) -> list[Self]:
        """`parts` equal micro-batches in order; raises ValueError when the batch does not divide."""
        if len(self) % parts:
            raise ValueError(f"a batch of {len(self)} does not divide into {parts} micro-batches")
        size = len(self) // parts
        return [self.stretch(i * size, (i + 1) * size) for i in range(parts)]

    def stretch(self, first: int, stop: int) -> Self:
        """Samples `first` .. `stop - 1`."""
        return self.map(lambda tensor: tensor[first:stop])

    def valid_actions(self) -> Float[Tensor, "b k a"]:
        """Sample weight where an action element is real, 0 where its step or its dimension is padding."""
        if self.action_is_pad is None:
            raise ValueError("this batch has no actions: it was made for acting")
        valid = ~(self.action_is_pad[:, :, None] | self.action_dim_is_pad[:, None, :])
        return valid * self.weight[:, None, None]


def _map(value: Any, function: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Tokens):
        return Tokens(ids=function(value.ids), is_pad=function(value.is_pad))
    if isinstance(value, dict):
        return {name: function(tensor) for name, tensor in value.items()}
    return function(value)


class Samples(Protocol):
    """A batch, or one that is made when it is asked for: of several processes each makes its own stretch."""

    def __len__(self) -> int: ...

    def stretch(self, first: int, stop: int) -> Batch:
        """Samples `first` .. `stop - 1`."""
        ...


class Clock(NamedTuple):
    """Where training stands: optimizer steps done before this one, and in total."""

    step: int
    total: int


class Mean(NamedTuple):
    """A mean that is still (sum, count), so that it can be added over micro-batches, ranks and workers."""

    total: float
    count: float

    def __add__(self, other: object) -> Mean:
        if not isinstance(other, Mean):
            return NotImplemented
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a loss: its sum over this micro-batch divided by the WHOLE batch's count, so that adding micro-batches gives the mean.

    `weight` scales it in the loss that is minimised; 0 means that it is only reported. `elements` [b k a] is the loss of every action
    element before masking, where there is such a thing: validation tells it by dimension, step of the chunk, task and robot.
    """

    value: Tensor
    weight: float = 1.0
    elements: Tensor | None = None


@dataclass(kw_only=True, slots=True)
class Features:
    """What an encoder knows about the observation: tokens with their mask, and one pooled vector."""

    tokens: Float[Tensor, "b n d"]
    is_pad: Bool[Tensor, "b n"]
    pooled: Float[Tensor, "b d"]
    start: Float[Tensor, "b a"] | None = None
    """The action that a chunk is predicted as a change from; None: from 0."""


class PolicyLoss(NamedTuple):
    """What a policy has to say about a batch in training, nothing reduced yet: the objective masks, weighs and divides."""

    actions: Float[Tensor, "b k a"]
    regularizers: dict[str, Float[Tensor, "b"]]


class Policy(nn.Module, ABC):
    """Observation to a distribution over action chunks. Everything is in normalised units."""

    chunk: int  # k
    action_dim: int  # a
    word_tables: tuple[str, ...] = ()  # its parameters whose rows are the words of the vocabulary
    reads_depth: bool = False  # does `encode` look at `batch.depth`? what nobody reads is not decoded, nor asked of a robot

    regularizer_weights: Mapping[str, float] = MappingProxyType({})  # name -> weight in the loss of each of `regularizers`

    def forward(self, batch: Batch, clock: Clock) -> PolicyLoss:
        features = self.encode(batch)
        return PolicyLoss(self.loss(features, batch, clock), self.regularizers(features))

    @abstractmethod
    def encode(self, batch: Batch) -> Features: ...

    @abstractmethod
    def loss(self, features: Features, batch: Batch, clock: Clock) -> Float[Tensor, "b k a"]:
        """Loss of every action element, unreduced and unmasked; its noise is drawn from `batch.key` and the clock."""

    def regularizers(self, features: Features) -> dict[str, Float[Tensor, "b"]]:
        """Terms of the policy's own (a KL divergence), one number per sample; in training those of `regularizer_weights`, else none."""
        return {}

    @abstractmethod
    def sample(self, features: Features, key: Int64[Tensor, "b"]) -> Float[Tensor, "b k a"]:
        """An action chunk; whatever is random in it is a function of `key`."""


class Objective(nn.Module, ABC):
    """The thing that is optimised, wrapped and checkpointed: the policy AND every auxiliary parameter."""

    reads: ClassVar[tuple[str, ...]]  # batch fields that must be there; checked before step 0
    decomposes: ClassVar[bool]  # is its loss a sum over samples? accumulation refuses objectives for which it is not
    mixes_actions: ClassVar[bool] = False  # does its loss mean something on averages of near actions of one task? `data/mixup.py`
    not_saved: ClassVar[tuple[str, ...]] = ()  # names of sub-modules left out of checkpoints (a frozen teacher)
    policy: Policy

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted number of valid elements of each term (scalars); summed over micro-batches and ranks before the first forward."""

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock, counts: dict[str, Tensor]) -> dict[str, Term]: ...


class Stream(ABC):
    """An endless source of batches: a loader, a mixture, a curriculum, rollouts."""

    @abstractmethod
    def next(self) -> Batch: ...

    def feedback(self, report: Mapping[str, float]) -> None:  # noqa: B027  (a stream that does not adapt ignores it)
        """Told the step's reported numbers; a curriculum adapts, a plain loader does not."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """JSON-able position; `load_state` of it continues with exactly the next batch."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None:  # noqa: B027
        """Stop worker processes."""


class Measured(TypedDict, total=False):
    """What an observation holds only for a policy whose contract lists it."""

    depth: dict[str, np.ndarray]  # depth camera -> float32 [h w] metres, 0 where nothing was measured


class Observation(Measured):
    """What a robot or a world shows: raw units, as recorded."""

    images: dict[str, np.ndarray]  # camera -> uint8 [h w 3]
    state: np.ndarray  # float32 [s]
    instruction: str


class World(gymnasium.Env, ABC):
    """A place to act in, by the gymnasium API. The initial state is a function of `seed` alone."""

    embodiment: Any  # deftly.contract.Embodiment

    @abstractmethod
    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]: ...  # type: ignore[override]

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]: ...

    @abstractmethod
    def sentence_for(self, index: int) -> str:
        """An instruction that names object `index` of this scene, without changing what success means."""

    @abstractmethod
    def idle_action(self) -> np.ndarray:
        """The action [a] that keeps the robot where it is: what the no-op baseline plays (a zero is not idle where actions are targets)."""

    @abstractmethod
    def outcome(self) -> str:
        """`running`, `success`, or why the episode failed."""
