"""ACT (Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", 2023, arXiv 2304.13705), told what to do by a
sentence.

```
actions, state ─> CVAE encoder ─> latent ─┐ (0 when acting)
images ─> one ResNet for all cameras ─────┼─> transformer encoder ─> decoder with a query per action ─> [b k a]
state, past actions, sentence, robot ─────┘
```
What is not as in the paper: the sentence is a token, each camera has a learnt offset (from 0) that tells it from the others, and what is
missing is a learnt token. As in the paper's code one decoder layer acts by default. Nothing is computed that does not reach the loss: the
queries are the same in every sample until they have looked at one, and of the CVAE's last layer only its first token is read.

Letters: b batch, t observation frames, n tokens, d width, k chunk, a action dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deftly import randomness
from deftly.config import Config
from deftly.contract import Contract
from deftly.models.attention import DecoderLayer, EncoderLayer, sinusoids, sinusoids_2d
from deftly.models.heads import wanted
from deftly.models.language import TextConfig
from deftly.models.resnet import ResNetConfig
from deftly.types import Batch, Clock, Features, Policy


class ACTConfig(Config):
    kind: Literal["act"] = "act"
    vision: ResNetConfig = ResNetConfig()
    pretrained: Path | None = None
    """A safetensors file with weights of `vision` by torchvision's names, read when training starts; null: from scratch."""
    text: TextConfig | None = TextConfig()
    """null: the policy hears no instruction."""
    width: int = pydantic.Field(default=512, ge=8)
    heads: int = pydantic.Field(default=8, ge=1)
    hidden: int = pydantic.Field(default=3200, ge=8)
    """Width of the feed-forward layers."""
    encoder_layers: int = pydantic.Field(default=4, ge=1)
    decoder_layers: int = pydantic.Field(default=1, ge=1)
    vae_layers: int = pydantic.Field(default=4, ge=0)
    """Layers of the CVAE encoder; 0: no CVAE."""
    latent: int = pydantic.Field(default=32, ge=1)
    kl_weight: float = pydantic.Field(default=10.0, ge=0)
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)

    @pydantic.model_validator(mode="after")
    def check_width(self) -> ACTConfig:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of 4 and of heads {self.heads}")
        named = [name for name in ("latent", "kl_weight") if getattr(self, name) != type(self).model_fields[name].default]
        if named and not self.vae_layers:  # guard: models.act.no_vae
            raise ValueError(f"{named[0]} is of the CVAE, which vae_layers 0 leaves out")
        return self

    def build(self, contract: Contract, vocabulary: int) -> ACTPolicy:
        """Everything that data and contract know comes from them: no size is configured twice."""
        return ACTPolicy(self, contract, vocabulary)


@dataclass(kw_only=True, slots=True)
class ACTFeatures(Features):
    posterior: Float[Tensor, "b two_l"] | None = None
    """Mean and log variance of the latent, given the actions; None when acting and when judged: the latent is then 0."""


class ACTPolicy(Policy):
    cells: Tensor  # [n d] position of the cells of one map
    vae_position: Tensor  # [n d]

    def __init__(self, config: ACTConfig, contract: Contract, vocabulary: int) -> None:
        super().__init__()
        window, width = contract.window, config.width
        self.cameras, self.chunk, self.action_dim, self.frames = contract.cameras, window.chunk, contract.action_dim, window.frames
        self.latent_dim, sizes = config.latent, (width, config.heads, config.hidden, config.dropout)
        self.vision = config.vision.build(image_size=contract.image_size)
        self.from_maps = nn.Linear(self.vision.width, width)
        self.from_state = nn.Linear(contract.state_dim, width) if contract.state_dim else None
        self.from_past = nn.Linear(self.action_dim, width) if window.past_actions else None
        self.text = None if config.text is None else config.text.build(vocabulary=vocabulary, text_length=contract.text_length)
        self.from_text = None if self.text is None else nn.Linear(self.text.dim, width)
        self.word_tables = () if self.text is None else ("text.embedding.weight",)
        self.robots = nn.Embedding(contract.num_robots, width) if contract.num_robots > 1 else None
        self.from_latent = nn.Linear(config.latent, width)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(config.decoder_layers))
        self.decoder_norm, self.to_actions = nn.LayerNorm(width), nn.Linear(width, self.action_dim)

        vectors = self.frames * (bool(contract.state_dim) + window.past_actions) + (self.text is not None) + (self.robots is not None)
        self.token_embedding = nn.Parameter(torch.randn(1 + vectors, width))  # the first is the latent's
        self.query_embedding = nn.Parameter(torch.randn(self.chunk, width))
        self.camera_embedding = nn.Parameter(torch.zeros(len(self.cameras), self.frames, 1, width))
        self.missing_embedding = nn.Parameter(torch.randn(len(self.cameras), 1, 1, width))
        self.register_buffer("cells", sinusoids_2d(self.vision.side, width), persistent=False)

        self.vae = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.vae_layers))
        self.regularizer_weights = {"kl": config.kl_weight} if config.vae_layers else {}
        if config.vae_layers:
            self.vae_embedding = nn.Parameter(torch.randn(1, width))
            self.vae_from_state = nn.Linear(contract.state_dim, width) if contract.state_dim else None
            self.vae_from_actions = nn.Linear(self.action_dim, width)
            self.to_posterior = nn.Linear(width, 2 * config.latent)
            tokens = 1 + bool(contract.state_dim) + self.chunk
            self.register_buffer("vae_position", sinusoids(torch.arange(float(tokens)), width), persistent=False)
        for part in (self.encoder, self.decoder, self.vae):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def encode(self, batch: Batch) -> ACTFeatures:
        tokens = torch.cat([*self.vectors(batch), *self.look(batch)], dim=1)
        is_pad = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        judges = self.training and len(self.vae) and batch.actions is not None
        return ACTFeatures(tokens=tokens, is_pad=is_pad, pooled=tokens.mean(1), posterior=self.infer(batch) if judges else None)

    def vectors(self, batch: Batch) -> list[Float[Tensor, "b m d"]]:
        """A token for each state, past action, sentence and robot."""
        # what stands before the first frame is a copy of it: it adds nothing
        is_pad = batch.observation_is_pad[:, :, None]
        parts = []
        if self.from_state is not None:
            parts.append(self.from_state(batch.state.masked_fill(batch.state_dim_is_pad[:, None] | is_pad, 0)))
        if self.from_past is not None:
            unknown = batch.past_action_is_pad[:, :, None] | batch.action_dim_is_pad[:, None] | is_pad
            parts.append(self.from_past(batch.past_actions.masked_fill(unknown, 0)))
        if self.text is not None and self.from_text is not None:
            parts.append(self.from_text(self.text(batch.text))[:, None])
        if self.robots is not None:
            parts.append(self.robots(batch.embodiment)[:, None])
        return parts

    def look(self, batch: Batch) -> list[Float[Tensor, "b m d"]]:
        """Of each camera a token for every cell of its maps; all cameras and frames go through the ResNet together."""
        if not self.cameras:
            return []
        maps = self.vision(torch.cat([batch.images[name] for name in self.cameras]).flatten(0, 1))
        seen = self.from_maps(maps.flatten(2).transpose(1, 2)).unflatten(0, (len(self.cameras), -1, self.frames))
        found = []
        for tokens, name, unseen in zip(seen, self.cameras, self.missing_embedding, strict=True):
            is_missing = batch.camera_is_missing[name][:, None] | batch.observation_is_pad
            found.append(torch.where(is_missing[:, :, None, None], unseen.to(tokens.dtype), tokens).flatten(1, 2))
        return found

    def position(self) -> Float[Tensor, "n d"]:
        """Of the latent, of the vectors, and of the cells of each camera."""
        return torch.cat([self.token_embedding, (self.camera_embedding + self.cells).flatten(0, 2)])

    def infer(self, batch: Batch) -> Float[Tensor, "b two_l"]:
        """The posterior of the latent, from the actions that are to be predicted."""
        assert batch.action_is_pad is not None, "actions come with their padding mask"
        tokens = [self.vae_from_actions(wanted(batch))]
        if self.vae_from_state is not None:
            tokens.insert(0, self.vae_from_state(batch.state[:, -1:].masked_fill(batch.state_dim_is_pad[:, None], 0)))
        tokens = torch.cat([self.vae_embedding.expand(len(batch), 1, -1), *tokens], dim=1)
        is_pad = nn.functional.pad(batch.action_is_pad, (tokens.shape[1] - self.chunk, 0), value=False)
        for number, layer in enumerate(self.vae, 1):
            tokens = layer(tokens, self.vae_position, is_pad, first=1 if number == len(self.vae) else None)
        return self.to_posterior(tokens[:, 0])

    def loss(self, features: Features, batch: Batch, clock: Clock) -> Float[Tensor, "b k a"]:
        assert isinstance(features, ACTFeatures)
        latent = features.tokens.new_zeros(len(batch), self.latent_dim)
        if features.posterior is not None:
            mean, log_variance = features.posterior.chunk(2, dim=1)
            latent = mean + (log_variance / 2).exp() * randomness.normal(batch.key, "act.latent", (self.latent_dim,), clock.step)
        return (self.decode(features.tokens, latent) - wanted(batch)).abs()

    def regularizers(self, features: Features) -> dict[str, Float[Tensor, "b"]]:
        """KL divergence of the posterior from the standard normal, summed over the latent's dimensions (Kingma & Welling, 2014, app. B)."""
        assert isinstance(features, ACTFeatures)
        if features.posterior is None:
            return {}
        mean, log_variance = features.posterior.float().chunk(2, dim=1)
        return {"kl": -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)}

    def sample(self, features: Features, key: Int64[Tensor, "b"]) -> Float[Tensor, "b k a"]:
        return self.decode(features.tokens, features.tokens.new_zeros(len(key), self.latent_dim))

    def decode(self, tokens: Float[Tensor, "b n d"], latent: Float[Tensor, "b l"]) -> Float[Tensor, "b k a"]:
        """The transformer: the tokens of an observation and a latent to a chunk of actions."""
        position = self.position()
        memory = torch.cat([self.from_latent(latent)[:, None], tokens], dim=1)
        for layer in self.encoder:
            memory = layer(memory, position)
        placed = memory + position
        queries = torch.zeros_like(self.query_embedding)[None]
        for layer in self.decoder:
            queries = layer(queries, self.query_embedding, memory, placed)
        return self.to_actions(self.decoder_norm(queries))
