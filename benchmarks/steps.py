"""One training step of our ACT on random data: what benchmarks/training.py times, beside lerobot's or alone. Needs nothing but torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deftly.contract import Camera, Contract, Embodiment, Vector, Window
from deftly.models.act import ACTConfig, ACTPolicy
from deftly.models.attention import DecoderLayer, EncoderLayer
from deftly.objectives.imitation import Imitation, ImitationConfig
from deftly.training.flops import counted
from deftly.training.optim import AdamWConfig, Part, parameter_groups
from deftly.types import Batch, Clock, Term, Tokens

OPTIMIZER = AdamWConfig(learning_rate=1e-5, weight_decay=1e-4, betas=(0.9, 0.999))  # lerobot's for ACT
PEER_ACT = ACTConfig(text=None)  # the shapes of lerobot's defaults: 52 M parameters
WIDE_ACT = ACTConfig(width=768, heads=12, hidden=3072, encoder_layers=8, decoder_layers=2, vae_layers=2, dropout=0.0)  # 101 M
VARIANTS = ("eager", "channels_last", "bf16", "layers", "compiled", "graphs")
"""Joined by `+`. `layers` compiles the transformer layers, `compiled` everything, `graphs` replays that as CUDA graphs."""


@dataclass(frozen=True)
class Shapes:
    batch: int = 8
    chunk: int = 100
    size: int = 128
    cameras: int = 2
    dims: int = 14
    """Of state and of action."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"camera_{i}" for i in range(self.cameras))

    def contract(self) -> Contract:
        vector = Vector(names=tuple(f"joint_{i}" for i in range(self.dims)), units=("rad",) * self.dims)
        cameras = tuple(Camera(name=name, height=self.size, width=self.size) for name in self.names)
        return Contract(
            embodiment=Embodiment(name="arm", rate_hz=50, cameras=cameras, state=vector, action=vector),
            cameras=self.names,
            image_size=self.size,
            window=Window(frames=1, chunk=self.chunk),
            executed_steps=1,
            normalization="mean_std",
            statistics_hash="",
            tokenizer_hash="",
            text_length=8,
            dataset_hash="",
        )

    def random_batch(self, seed: int = 0) -> Batch:
        """Chunks end at different steps, as at the ends of episodes."""
        draw, size = torch.Generator().manual_seed(seed), self.batch
        pixels = (size, 1, 3, self.size, self.size)
        length = torch.randint(self.chunk // 2, self.chunk + 1, (size, 1), generator=draw)
        false = torch.zeros(size, self.dims, dtype=torch.bool)
        numbers = torch.zeros(size, dtype=torch.int64)
        return Batch(
            key=torch.randint(0, 2**62, (size,), generator=draw),
            images={name: torch.randint(0, 256, pixels, generator=draw, dtype=torch.uint8) for name in self.names},
            camera_is_missing=dict.fromkeys(self.names, false[:, 0]),
            state=torch.randn(size, 1, self.dims, generator=draw),
            state_dim_is_pad=false,
            past_actions=torch.zeros(size, 1, self.dims),
            past_action_is_pad=~false[:, :1],
            observation_is_pad=false[:, :1],
            text=Tokens(ids=torch.zeros(size, 8, dtype=torch.int64), is_pad=torch.zeros(size, 8, dtype=torch.bool)),
            actions=torch.randn(size, self.chunk, self.dims, generator=draw),
            action_dim_is_pad=false,
            action_is_pad=torch.arange(self.chunk)[None] >= length,
            embodiment=numbers,
            task=numbers,
            episode=numbers,
            frame=numbers,
            domain=numbers,
            weight=torch.ones(size),
        )


def build(config: ACTConfig, shapes: Shapes) -> ACTPolicy:
    torch.manual_seed(0)
    return config.build(shapes.contract(), 32)


def precision(variant: str, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if "bf16" in variant.split("+") else nullcontext()


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Training mode, and yet the same numbers every time."""
    parts = [(part, name) for part in module.modules() for name in ("p", "dropout") if isinstance(getattr(part, name, None), float)]
    rates = [getattr(part, name) for part, name in parts]
    for part, name in parts:
        setattr(part, name, 0.0)
    yield
    for (part, name), rate in zip(parts, rates, strict=True):
        setattr(part, name, rate)


class Step:
    """Forward, backward and update, as the trainer does them but for what it says and checks."""

    def __init__(self, policy: ACTPolicy, batch: Batch, variant: str, device: torch.device) -> None:
        self.batch, self.variant, self.device = batch.to(device), variant, device
        self.objective: Imitation = ImitationConfig().build(policy.train()).to(device)
        if "channels_last" in variant.split("+"):
            self.objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        decayed, plain = parameter_groups(self.objective)
        self.optimizer = OPTIMIZER.build([Part(decayed, True), Part(plain, False)])
        self.forward: Callable[..., dict[str, Term]] = self.objective
        self.clock = Clock(0, 1)

    def compile(self) -> None:
        """From now on as the variant says; the first step then takes a minute, on a CPU several where the whole is compiled."""
        if "layers" in self.variant.split("+"):
            compile_layers(self.objective, (EncoderLayer, DecoderLayer))
        if "compiled" in self.variant.split("+"):
            self.forward = torch.compile(self.objective)
        elif "graphs" in self.variant.split("+"):
            self.forward = torch.compile(self.objective, mode="reduce-overhead")

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self) -> Tensor:
        with precision(self.variant, self.device):
            terms = self.forward(self.batch, self.clock, self.objective.counts(self.batch))
        return torch.stack([term.value * term.weight for term in terms.values()]).sum()

    def flops(self) -> int:
        """Floating-point operations of the products of one step, a multiplication and an addition each; counted, not estimated."""
        found = counted(lambda: self.loss().backward())
        self.optimizer.zero_grad(set_to_none=True)
        return found


def compile_layers(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Every part of some kinds through torch.compile, which compiles layers of one shape once."""
    for part in module.modules():
        if isinstance(part, kinds):
            part.compile()
