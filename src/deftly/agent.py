"""A trained policy that acts: observation in, action out. Everything it needs is in its `policy/` directory.

    policy/contract.json      the robot as training saw it           stats.json       statistics of the training split
           policy.json        the model's own config                 tokenizer.json   its words
           model.safetensors  the weights                            manifest.json    format, sizes, sha256; written last
           robots.json        contract and statistics of the further robots, for a policy of several

Nothing here is ever unpickled; every file is checked against the manifest before it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deftly import config, storage
from deftly.contract import FORMAT_VERSION, Contract, Embodiment, differences
from deftly.data.encoding import ObservationEncoder, Seen, Statistics
from deftly.data.tokenizer import TextTokenizer
from deftly.models.policies import AnyPolicyConfig, parse_policy
from deftly.own_code import Own, classes_of
from deftly.randomness import seed_of
from deftly.types import Batch, DataError, Observation, Policy, UsageError

CONTRACT, POLICY, STATISTICS, TOKENIZER, WEIGHTS = "contract.json", "policy.json", "stats.json", "tokenizer.json", "model.safetensors"
FILES = (CONTRACT, POLICY, STATISTICS, TOKENIZER, WEIGHTS)
ROBOTS = "robots.json"


def save_policy(
    directory: Path,
    contract: Contract,
    statistics: Statistics,
    tokenizer: TextTokenizer,
    policy_config: AnyPolicyConfig,
    state_dict: dict[str, Tensor],
    about: dict[str, Any],
    robots: Sequence[tuple[Contract, Statistics]] = (),
) -> None:
    """Write a complete `policy/` into an existing, still uncommitted directory; `about` (versions, step) goes into its manifest.

    `robots` are the further ones that the policy acts for, beside that of `contract`.
    """
    storage.write_text(directory / CONTRACT, contract.to_json())
    storage.write_text(directory / POLICY, policy_config.to_json())
    storage.write_json(directory / STATISTICS, statistics)
    if robots:
        others = [{"contract": other.to_dict(), "statistics": values} for other, values in robots]
        storage.write_json(directory / ROBOTS, {"robots": others})
    tokenizer.save(directory / TOKENIZER)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state_dict.items())}, directory / WEIGHTS)
    storage.write_manifest(directory, {**about, "format_version": FORMAT_VERSION})


def find_policy(path: Path) -> Path:
    """The policy directory that `path` means: itself, a checkpoint's, or that of a run's best (else last) checkpoint."""
    if (path / CONTRACT).is_file():
        return path
    if (path / "policy" / CONTRACT).is_file():
        return path / "policy"
    checkpoints = path / "checkpoints"
    for pointer in ("best", "last"):
        if (checkpoints / pointer).is_file():
            name = (checkpoints / pointer).read_text(encoding="utf-8", errors="replace")[:200].strip()
            found = storage.inside(checkpoints, name) / "policy"
            if not (found / CONTRACT).is_file():
                raise DataError(f"{checkpoints / pointer}: points to {name!r}, which holds no policy; choose another checkpoint")
            return found
    if not path.exists():
        raise UsageError(f"{path}: no such directory; give a run, a checkpoint or a policy directory")
    raise UsageError(f"{path}: holds no policy; give a run with a finished checkpoint, a checkpoint or a policy directory")


def load(path: Path, device: torch.device | str = "cpu", robot: str | None = None, own: Own = ()) -> Agent:
    """The agent of a policy, checkpoint or run directory; of the `robot` of that name where the policy acts for several, else of the first.

    `own`: the Python file that defines the policy, or its config's class, where it is none of ours; nothing in the directory can name it.

    Raises `DataError` naming the file that is missing, altered or does not fit, `UsageError` for a robot that the policy does not know.
    """
    directory = find_policy(Path(path))
    manifest = storage.verify(directory)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:  # guard: agent.format
        raise DataError(f"{directory}: policy format {version}, this deftly reads {FORMAT_VERSION}; load it with the version that wrote it")
    storage.require_listed(directory, manifest, FILES)
    try:
        contract = Contract.load(directory / CONTRACT)
        others = _read_robots(directory / ROBOTS) if ROBOTS in manifest["files"] else {}
        policy_config = parse_policy(config.read_object(directory / POLICY), str(directory / POLICY), classes_of(own))
    except DataError:
        raise
    except UsageError as error:  # a mistake of the file, not of the command
        first, *more = str(error).splitlines()
        raise DataError(first + (f" (+{len(more)} more)" if more else "")) from None
    for one in (contract, *(other for other, _ in others.values())):
        if one.format_version != FORMAT_VERSION:
            raise DataError(f"{directory / CONTRACT}: contract format {one.format_version}, this deftly reads {FORMAT_VERSION}")
    tokenizer = TextTokenizer.load(directory / TOKENIZER)
    statistics = _read_statistics(storage.read_json(directory / STATISTICS, storage.MAX_MANIFEST_BYTES), directory / STATISTICS)
    if robot is not None and robot != contract.embodiment.name:
        if robot not in others:
            known = ", ".join([contract.embodiment.name, *others])
            raise UsageError(f"{directory}: this policy does not act for a robot {robot!r}; it knows {known}")
        contract, statistics = others[robot]
    encoder = ObservationEncoder(contract, statistics, tokenizer)
    try:
        policy = policy_config.build(contract, tokenizer.size)
    except ValueError as error:
        raise DataError(f"{directory / POLICY}: cannot be built ({error})") from None
    load_weights(policy, directory / WEIGHTS)
    return Agent(contract, encoder, policy, device)


def _read_statistics(values: Any, path: Path) -> Statistics:
    try:
        return pydantic.TypeAdapter(Statistics).validate_python(values)
    except pydantic.ValidationError as error:
        raise DataError(f"{path}: not statistics ({error.errors()[0]['msg']}); copy the file that was saved with the policy") from None


def _read_robots(path: Path) -> dict[str, tuple[Contract, Statistics]]:
    """The further robots of a policy, by name."""
    found = {}
    entries = config.read_object(path).get("robots")
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("contract"), dict):
            raise DataError(f"{path}: not a list of robots with contract and statistics; copy the file that was saved with the policy")
        contract = Contract.parse(entry["contract"], str(path))
        found[contract.embodiment.name] = contract, _read_statistics(entry.get("statistics"), path)
    return found


def load_weights(policy: torch.nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file: exactly its tensors, of its shapes and types, all finite. `DataError` names what differs."""
    wanted = policy.state_dict()
    storage.check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for found, what in ((wanted.keys() - names, "is missing"), (names - wanted.keys(), "is unknown to this policy")):
                if found:  # guard: agent.names
                    raise DataError(
                        f"{path}: tensor {min(found)[:200]!r} {what} ({len(found)} such); weights and policy.json must be saved together"
                    )
            for name, tensor in wanted.items():
                value = file.get_tensor(name)
                if value.shape != tensor.shape or value.dtype != tensor.dtype:  # guard: agent.shape
                    sizes = f"{value.dtype} {list(value.shape)}, expected {tensor.dtype} {list(tensor.shape)}"
                    raise DataError(f"{path}: tensor {name!r} is {sizes}; weights and policy.json must be saved together")
                if value.is_floating_point() and not value.isfinite().all():  # guard: agent.finite
                    raise DataError(
                        f"{path}: tensor {name!r} is not finite; training went wrong before this was saved, use an earlier checkpoint"
                    )
                tensor.copy_(value)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a safetensors file ({error}); use an earlier checkpoint") from None


class Agent:
    """Plays a policy: keeps its history, infers a chunk, plays `executed_steps` of it, infers again.

    `clipped` counts the actions that had to be brought into the robot's limits since it was made.
    """

    def __init__(self, contract: Contract, encoder: ObservationEncoder, policy: Policy, device: torch.device | str = "cpu") -> None:
        self.contract, self.embodiment, self.encoder = contract, contract.embodiment, encoder
        self.device = torch.device(device)
        self.policy = policy.to(self.device).eval()
        action = contract.embodiment.action
        self._low = np.asarray(action.low if action.low is not None else [-np.inf] * len(action), np.float32)
        self._high = np.asarray(action.high if action.high is not None else [np.inf] * len(action), np.float32)
        self.clipped = 0
        self.reset(0)

    def reset(self, key: int) -> None:
        """Forget the episode. `key` seeds whatever the policy draws: the same key and observations give the same actions."""
        self._key, self._inferences = key, 0
        self._seen = Seen(images=[], state=[], past_actions=[], depth=[])
        self._last_action: np.ndarray | None = None
        self._waiting: deque[np.ndarray] = deque()

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        """The next action in raw units, within the robot's limits.

        An observation that no inference will use is not looked at: where images are drawn on demand, three of four cost nothing.

        Raises:
            DataError: the observation does not match the contract, or the policy's output is not finite.
        """
        if len(self._waiting) < self.contract.window.frames:  # still in the window when the next chunk is inferred
            self._seen = self._with(observation)
        if not self._waiting:
            self._waiting.extend(self._infer(self._seen, observation["instruction"])[: self.contract.executed_steps])
            self._inferences += 1
        raw = self._waiting.popleft()
        action = np.clip(raw, self._low, self._high)
        self.clipped += bool((action != raw).any())
        self._last_action = action
        return action.copy()

    def plan(self, observation: Observation) -> Float[np.ndarray, "k a"]:
        """The chunk that `act` would start on now, in raw units and within limits; changes nothing."""
        return np.clip(self._infer(self._with(observation), observation["instruction"]), self._low, self._high)

    def encode(self, observations: list[Observation], past_actions: list[np.ndarray | None] | None = None) -> Batch:
        """What the policy is given for one episode's observations up to now, oldest first; only the window's frames are looked at.

        `past_actions` are the raw actions [a] commanded before each observation, None where there was none (everywhere by default).
        """
        past = [None] * len(observations) if past_actions is None else past_actions
        if not observations or len(past) != len(observations):
            raise ValueError(f"{len(observations)} observations and {len(past)} past actions: give at least one, and one action for each")
        return self.encoder.encode(observations, past, self._draw_key())

    def check(self, embodiment: Embodiment) -> None:
        """Raise a one-line `DataError` naming what differs between the robot that the policy was trained on and this one."""
        cameras = tuple(self.contract.recorded_cameras().values())
        lines = differences(_matters(self.embodiment, cameras), _matters(embodiment, cameras))
        if lines:
            more = f" (+{len(lines) - 3} more)" if len(lines) > 3 else ""
            raise DataError(
                f"robot {embodiment.name!r} does not match the policy's contract: {'; '.join(lines[:3])}{more}; "
                "use the robot or world that the training data was recorded with, or train on data of this one"
            )

    def _with(self, observation: Observation) -> Seen:
        """The history with this observation at its end."""
        keep = self.contract.window.frames - 1
        old = self._seen
        images, state = self.encoder.images(observation), self.encoder.raw_state(observation)
        # copies: a world may fill the same arrays again at its next step
        given, recorded = observation["images"], self.contract.recorded_cameras()
        images = {name: image.copy() if image is given[recorded[name]] else image for name, image in images.items()}
        return Seen(
            images=[*_last(old.images, keep), images],
            state=[*_last(old.state, keep), state.copy()],
            past_actions=[*_last(old.past_actions, keep), self._last_action],
            depth=[*_last(old.depth, keep), self.encoder.depth(observation)],
        )

    def _draw_key(self) -> int:
        return seed_of("act", self._key, self._inferences)

    @torch.inference_mode()
    def _infer(self, seen: Seen, instruction: str) -> Float[np.ndarray, "k a"]:
        count, most = len(self.encoder.tokenizer.split(instruction)), self.contract.text_length
        if count > most:  # cut silently, the word that names the object could be the one that is lost
            raise DataError(f"the instruction {instruction[:60]!r} has {count} words, this policy reads {most}; say it in fewer")
        batch = self.encoder.encode_seen(seen, instruction, self._draw_key()).to(self.device)
        chunk = self.policy.sample(self.policy.encode(batch), batch.key)[0].float().cpu().numpy()
        if not np.isfinite(chunk).all():
            raise DataError("the policy's output is not finite; its weights are broken or the input is far from its training data")
        return self.encoder.decode(chunk, seen.state[-1])


def _last(items: list[Any], count: int) -> list[Any]:
    return items[max(0, len(items) - count) :]


def _matters(embodiment: Embodiment, cameras: tuple[str, ...]) -> dict[str, Any]:
    """What of an embodiment a policy depends on: other cameras and the name do not matter, hard limits are applied, not learnt."""
    there = {camera.name: {"height": camera.height, "width": camera.width} for camera in embodiment.cameras}
    vectors = {
        name: {"names": list(part.names), "units": list(part.units)}
        for name, part in (("state", embodiment.state), ("action", embodiment.action))
    }
    return {
        "cameras": {name: there.get(name) for name in cameras},
        **vectors,
        "action_kind": embodiment.action_kind,
        "rate_hz": embodiment.rate_hz,
    }
