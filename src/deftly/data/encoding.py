"""The ONE path from raw observations to a `Batch`: resize, relative actions, normalise, tokenise, mask, collate. Loader and agent share it.

What does not belong here: where observations come from (`loader.py`, `agent.py`) and augmentation.
Letters: b batch, t observation frames, k chunk, s state dims, a action dims, l text length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8, UInt16

from deftly.contract import Contract, fingerprint
from deftly.data.actions import features, from_relative, past_to_relative, reference, to_relative
from deftly.data.depth import in_metres, observed
from deftly.data.images import check_image, resize_with_pad
from deftly.data.normalize import Normalizer
from deftly.data.schema import ACTION, STATE
from deftly.data.tokenizer import TextTokenizer
from deftly.data.warp import shrink
from deftly.types import Batch, DataError, Observation, Tokens

Statistics = dict[str, dict[str, list[float]]]
"""Feature ("observation.state", "action") -> statistic -> one number per dimension, raw units."""


@dataclass(kw_only=True, slots=True)
class Gathered:
    """Windows before they become tensors: images at the policy's size, numbers in raw units, padding still to be zeroed."""

    images: dict[str, UInt8[np.ndarray, "b t h w 3"]]  # of the cameras that this robot has
    state: Float[np.ndarray, "b t s"]
    observation_is_pad: Bool[np.ndarray, "b t"]
    past_actions: Float[np.ndarray, "b t a"]
    past_action_is_pad: Bool[np.ndarray, "b t"]
    text: Tokens
    key: Int64[torch.Tensor, "b"]
    task: Int64[np.ndarray, "b"]
    episode: Int64[np.ndarray, "b"]
    frame: Int64[np.ndarray, "b"]
    actions: Float[np.ndarray, "b k a"] | None = None
    action_is_pad: Bool[np.ndarray, "b k"] | None = None
    weight: Float[np.ndarray, "b"] | None = None  # 1 by default
    depth: Mapping[str, UInt16[np.ndarray, "b t h w"]] = field(default_factory=dict)  # millimetres
    source: int = 0  # which dataset of a mixture


class ObservationEncoder:
    """What a contract says about inputs, as functions. Raises `DataError` for statistics or a tokenizer that are not the contract's."""

    def __init__(self, contract: Contract, statistics: Statistics, tokenizer: TextTokenizer) -> None:
        for found, wanted, what in (
            (fingerprint(statistics), contract.statistics_hash, "set of statistics"),
            (tokenizer.hash, contract.tokenizer_hash, "tokenizer"),
        ):
            if found != wanted:
                raise DataError(
                    f"the {what} is not the contract's (hash {found[:12]}, expected {wanted[:12]}); use the files saved together"
                )
        self.contract, self.statistics, self.tokenizer = contract, statistics, tokenizer
        robot = contract.embodiment
        mode, (actions, past) = contract.normalization, features(contract.actions, contract.window)
        known = {STATE, ACTION, actions, past}
        if not {actions, past} <= statistics.keys() or not statistics.keys() <= known:  # guard: data.encoding.action_statistics
            raise DataError(
                f"the statistics are of {', '.join(map(repr, statistics)) or 'nothing'}, this contract's actions need those of "
                f"{' and '.join(sorted({actions, past}))!r}: they were measured for another kind of actions; compute them again"
            )
        self.state = Normalizer(mode, statistics.get(STATE, {}), robot.state.names, STATE)
        self.action = Normalizer(mode, statistics[actions], robot.action.names, actions)
        self.past = self.action if past == actions else Normalizer(mode, statistics[past], robot.action.names, past)

    @property
    def adjusted(self) -> list[str]:
        """Dimensions whose spread was too small to divide by, and what was done: for the plan and the report."""
        parts = (self.state, self.action) if self.past is self.action else (self.state, self.action, self.past)
        return [f"{part.feature} {line}" for part in parts for line in part.adjusted]

    def images(self, observation: Observation) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The policy's cameras at the policy's size, in order; `DataError` for a camera that is missing or of another size."""
        images = observation["images"]
        robot = self.contract.embodiment
        found = {}
        for name, recorded in self.contract.recorded_cameras().items():
            if recorded not in images:
                raise DataError(f"observation: camera {recorded!r} is missing; it has {', '.join(images) or 'none'}")
            camera, image = robot.camera(recorded), images[recorded]
            check_image(image, f"observation: camera {recorded!r}")
            if image.shape[:2] != (camera.height, camera.width):
                size, wanted = (" x ".join(map(str, pair)) for pair in (image.shape[:2], (camera.height, camera.width)))
                raise DataError(
                    f"observation: camera {recorded!r} is {size} pixels (h x w), the policy was trained on {wanted}; set the camera to that"
                )
            found[name] = resize_with_pad(image, self.contract.frame_size)
            if self.contract.frame_size != self.contract.image_size:  # as the loader's frames, with the map of the whole frame
                found[name] = shrink(np.stack([found[name]]), self.contract.image_size)[0]
        return found

    def depth(self, observation: Observation) -> dict[str, UInt16[np.ndarray, "h w"]]:
        """The policy's depth cameras at the policy's size, in millimetres."""
        return observed(self.contract, observation.get("depth", {}))

    def raw_state(self, observation: Observation) -> Float[np.ndarray, "s"]:
        """The state as float32, checked: shape and finite."""
        names = self.contract.embodiment.state.names
        state = np.asarray(observation["state"], np.float32)
        if state.shape != (len(names),):
            raise DataError(
                f"observation: state has shape {list(state.shape)}, the policy was trained on [{len(names)}] ({', '.join(names)})"
            )
        if not np.isfinite(state).all():
            raise DataError(f"observation: state {names[int((~np.isfinite(state)).argmax())]!r} is not finite; check the sensor")
        return state

    def tokens(self, sentences: Sequence[str]) -> Tokens:
        """ids and is_pad [b l]."""
        return self.tokenizer.encode(sentences, self.contract.text_length)

    def encode(self, history: Sequence[Observation], past_actions: Sequence[np.ndarray | None], key: int) -> Batch:
        """A batch of one, to act on: the observations of one episode up to now, oldest first, and the raw action [a] commanded before each
        of them (None before the first). Only the contract's last `frames` are looked at; the sentence is the newest one."""
        frames = self.contract.window.frames
        recent = list(history)[-frames:]
        seen = Seen(
            images=[self.images(observation) for observation in recent],
            state=[self.raw_state(observation) for observation in recent],
            past_actions=list(past_actions)[-frames:],
            depth=[self.depth(observation) for observation in recent],
        )
        return self.encode_seen(seen, recent[-1]["instruction"], key)

    def encode_seen(self, seen: Seen, instruction: str, key: int) -> Batch:
        """`encode` for observations whose images are at the policy's size already."""
        window, dim = self.contract.window, self.action.dim
        missing = window.frames - len(seen.state)
        order = [0] * missing + list(range(len(seen.state)))  # before the first frame: copies of it, masked
        past = [None] * missing + seen.past_actions
        raw_past = np.stack([np.zeros(dim, np.float32) if action is None else np.asarray(action, np.float32) for action in past])
        gathered = Gathered(
            images={name: np.stack([seen.images[i][name] for i in order])[None] for name in seen.images[-1]},
            state=np.stack([seen.state[i] for i in order])[None],
            observation_is_pad=(np.arange(window.frames) < missing)[None],
            past_actions=raw_past[None],
            past_action_is_pad=np.asarray([action is None for action in past])[None],
            text=self.tokens([instruction]),
            key=torch.tensor([key]),
            task=np.zeros(1, np.int64),
            episode=np.zeros(1, np.int64),
            frame=np.zeros(1, np.int64),
            depth={one.name: np.stack([seen.depth[i][one.name] for i in order])[None] for one in self.contract.depth},
        )
        return self.collate(gathered)

    def decode(self, chunk: Float[np.ndarray, "*b k w"], state: Float[np.ndarray, "*b s"]) -> Float[np.ndarray, "*b k a"]:
        """The policy's actions as the robot takes them, raw float32; `state` is the raw one that they were predicted from."""
        raw = self.action.unnormalize(chunk[..., : self.action.dim])
        return raw if self.contract.actions is None else from_relative(raw, state, self.contract.actions).astype(np.float32)

    def raw_actions(self, chunk: Float[torch.Tensor, "b k w"], batch: Batch) -> Float[torch.Tensor, "b k a"]:
        """`decode` for a batch of this robot, on the CPU."""
        return torch.from_numpy(self.decode(chunk.float().cpu().numpy(), self._raw_state_now(batch)))

    def raw_last_action(self, batch: Batch) -> Float[torch.Tensor, "b a"]:
        """The action that was commanded last, as the robot took it; meaningless where `past_action_is_pad`."""
        last = self.past.unnormalize(batch.past_actions[:, -1, : self.action.dim].cpu().numpy())
        if self.contract.actions is not None:
            last = (last + reference(self._raw_state_now(batch), self.contract.actions)).astype(np.float32)
        return torch.from_numpy(last)

    def _raw_state_now(self, batch: Batch) -> Float[np.ndarray, "b s"]:
        return self.state.unnormalize(batch.state[:, -1, : self.state.dim].cpu().numpy())

    def collate(self, gathered: Gathered) -> Batch:
        """Tensors on the CPU. Images are [b t 3 h w] views of [b t h w 3] memory: channels last, without a copy."""
        size, contract, relative = len(gathered.key), self.contract, self.contract.actions
        past, actions = gathered.past_actions, gathered.actions
        if relative is not None:
            past = past_to_relative(past, gathered.state[:, -1], relative)
            actions = None if actions is None else to_relative(actions, gathered.state[:, -1], relative)
        past = np.where(gathered.past_action_is_pad[:, :, None], np.float32(0), self.past.normalize(past))
        state_dim, action_dim = contract.state_dim, contract.action_dim
        images = {name: self._image(gathered, name) for name in contract.cameras}
        return Batch(
            key=gathered.key,
            images=images,
            camera_is_missing={name: torch.full((size,), contract.recorded_camera(name) is None) for name in images},
            depth={name: torch.from_numpy(in_metres(depth))[:, :, None] for name, depth in gathered.depth.items()},
            state=_widened(self.state.normalize(gathered.state), state_dim),
            state_dim_is_pad=_is_pad(size, self.state.dim, state_dim),
            past_actions=_widened(past, action_dim),
            past_action_is_pad=torch.from_numpy(gathered.past_action_is_pad),
            observation_is_pad=torch.from_numpy(gathered.observation_is_pad),
            text=gathered.text,
            actions=None if actions is None else _widened(self.action.normalize(actions), action_dim),
            action_dim_is_pad=_is_pad(size, self.action.dim, action_dim),
            action_is_pad=None if gathered.action_is_pad is None else torch.from_numpy(gathered.action_is_pad),
            embodiment=torch.full((size,), contract.robot_index),
            task=torch.from_numpy(gathered.task),
            episode=torch.from_numpy(gathered.episode),
            frame=torch.from_numpy(gathered.frame),
            domain=torch.full((size,), gathered.source),
            weight=torch.ones(size) if gathered.weight is None else torch.from_numpy(gathered.weight),
        )

    def _image(self, gathered: Gathered, name: str) -> torch.Tensor:
        """[b t 3 h w]; black, and masked by `camera_is_missing`, where this robot has no such camera."""
        if self.contract.recorded_camera(name) is not None:
            return torch.from_numpy(gathered.images[name]).permute(0, 1, 4, 2, 3)
        side = self.contract.image_size
        return torch.zeros(*gathered.state.shape[:2], side, side, 3, dtype=torch.uint8).permute(0, 1, 4, 2, 3)


def _widened(values: Float[np.ndarray, "b n d"], width: int) -> Float[torch.Tensor, "b n w"]:
    """The policy's dimensions: those that a robot does not have are 0, and masked."""
    if values.shape[2] == width:
        return torch.from_numpy(values)
    wide = np.zeros((*values.shape[:2], width), np.float32)
    wide[:, :, : values.shape[2]] = values
    return torch.from_numpy(wide)


def _is_pad(size: int, dim: int, width: int) -> Bool[torch.Tensor, "b w"]:
    return (torch.arange(width) >= dim).repeat(size, 1)


@dataclass(kw_only=True, slots=True)
class Seen:
    """The recent past of one episode, oldest first, at most `frames` entries each."""

    images: list[dict[str, UInt8[np.ndarray, "h w 3"]]]
    state: list[Float[np.ndarray, "s"]]
    past_actions: list[Float[np.ndarray, "a"] | None]
    depth: list[dict[str, UInt16[np.ndarray, "h w"]]]  # millimetres


def plain_statistics(values: Mapping[str, Mapping[str, Any]]) -> Statistics:
    """Statistics as JSON-able lists, the form that is hashed and saved."""
    return {
        feature: {name: np.asarray(value, np.float64).reshape(-1).tolist() for name, value in parts.items()}
        for feature, parts in values.items()
    }
