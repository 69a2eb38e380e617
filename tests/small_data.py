"""A dataset in memory with what the data pipeline reads of `deftly.data.dataset.Dataset`, and a small real one on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deftly.contract import Camera, Contract, Embodiment, Vector, Window, fingerprint
from deftly.data.columns import Columns
from deftly.data.encoding import ObservationEncoder
from deftly.data.measure import Part, measure
from deftly.data.prepared import TrainingData
from deftly.data.store import FrameStore
from deftly.data.stored import Frames
from deftly.data.tokenizer import TextTokenizer
from deftly.data.windows import Windows
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import Observation

TASKS = ("pick up the red cup", "Lift the blue ball!", "grab the green box")


def robot(height: int = 32, width: int = 32, state: int = 5, action: int = 4) -> Embodiment:
    return Embodiment(
        name="toy",
        rate_hz=10,
        cameras=(Camera(name="head", height=height, width=width), Camera(name="wrist", height=height, width=width, role="wrist")),
        state=Vector(names=tuple(f"joint_{i}" for i in range(state)), units=("rad",) * state),
        action=Vector(names=tuple(f"target_{i}" for i in range(action)), units=("m",) * action, low=(-3.0,) * action, high=(3.0,) * action),
        action_kind="end_effector_target",
    )


@dataclass
class FakeDataset:
    """Frame images encode their own row number, so that a test sees which row it got."""

    lengths: tuple[int, ...] = (7, 5, 9)
    embodiment: Embodiment = field(default_factory=robot)
    scenes: list[Any] = field(default_factory=list)
    root: Path = Path("fake")
    hash: str = "fake"
    tasks: tuple[str, ...] = TASKS
    cameras: tuple[str, ...] = ("head", "wrist")
    decoded: int = 0

    def __post_init__(self) -> None:
        self.num_episodes, self.num_frames = len(self.lengths), sum(self.lengths)
        self.episode_start = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        draw = np.random.default_rng(0)
        self.state = draw.normal(size=(self.num_frames, len(self.embodiment.state))).astype(np.float32)
        self.action = draw.normal(size=(self.num_frames, len(self.embodiment.action))).astype(np.float32)
        self.task_of_frame = np.repeat(np.arange(self.num_episodes) % len(self.tasks), self.lengths).astype(np.int64)

    @property
    def task(self) -> np.ndarray:
        return self.task_of_frame

    def extra(self, name: str) -> list[Any]:
        return list(self.scenes) if name == "scene" and self.scenes else [None] * self.num_episodes

    def chunks(self, names: Sequence[str]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Two episodes at a time, the last ones first."""
        columns = {"observation.state": self.state, "action": self.action}
        for first in reversed(range(0, self.num_episodes, 2)):
            episodes = np.arange(first, min(first + 2, self.num_episodes))
            rows = slice(int(self.episode_start[episodes[0]]), int(self.episode_start[episodes[-1] + 1]))
            yield episodes, {name: columns[name][rows] for name in names}

    def frames(self, episode: int, camera: str, indices: np.ndarray | None = None) -> np.ndarray:
        indices = np.arange(self.lengths[episode]) if indices is None else indices
        self.decoded += len(indices)
        height, width = self.embodiment.camera(camera).height, self.embodiment.camera(camera).width
        return np.stack([picture(int(self.episode_start[episode] + i), camera, height, width) for i in indices])


def picture(row: int, camera: str, height: int, width: int) -> np.ndarray:
    """A smooth picture whose colour says which row it is: video coding keeps it recognisable."""
    y, x = np.mgrid[:height, :width]
    base = (row * 37 + (100 if camera == "wrist" else 0)) % 200
    return np.stack([base + 0 * x, (base + 2 * x) % 256, (base + 2 * y) % 256], axis=-1).clip(0, 255).astype(np.uint8)


def write_dataset(
    root: Path,
    lengths: tuple[int, ...] = (7, 5, 9, 6),
    embodiment: Embodiment | None = None,
    scenes: list[Any] | None = None,
    tasks: tuple[str, ...] = TASKS,
) -> Path:
    """A real LeRobotDataset with the fake one's contents."""
    shown = embodiment or robot()
    fake = FakeDataset(lengths=lengths, embodiment=shown, cameras=tuple(camera.name for camera in shown.cameras))
    with DatasetWriter(root, fake.embodiment) as writer:
        for episode in range(fake.num_episodes):
            rows = slice(int(fake.episode_start[episode]), int(fake.episode_start[episode + 1]))
            writer.add(
                EpisodeData(
                    images={camera: fake.frames(episode, camera) for camera in fake.cameras},
                    state=fake.state[rows],
                    action=fake.action[rows],
                    task=tasks[int(fake.task_of_frame[rows][0])],
                    extra_episode={} if scenes is None else {"scene": scenes[episode]},
                )
            )
        writer.finish()
    return root


def recorded(data: TrainingData, episode: int) -> tuple[list[Observation], list[np.ndarray]]:
    """An episode of the dataset as a robot would have shown it, and the actions that were commanded."""
    dataset = data.dataset
    rows = slice(*(int(at) for at in dataset.episode_start[episode : episode + 2]))
    frames = {camera: dataset.frames(episode, camera) for camera in dataset.cameras}
    sentence = dataset.tasks[int(dataset.task_of_frame[rows][0])]
    observations = [
        Observation(images={camera: frames[camera][i] for camera in frames}, state=state, instruction=sentence)
        for i, state in enumerate(dataset.state[rows])
    ]
    return observations, list(dataset.action[rows])


def random_images(size: int, frames: int, side: int, seed: int = 0) -> torch.Tensor:
    """uint8 [b t 3 h w] in the memory layout of the loader."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size, frames, side, side, 3), generator=draw, dtype=torch.uint8).permute(0, 1, 4, 2, 3)


def everything(dataset: FakeDataset) -> Part:
    return Part(dataset, dataset.episode_start, np.arange(dataset.num_episodes), dataset.hash)


def build_windows(
    dataset: FakeDataset, cache: Path, window: Window = Window(frames=2, chunk=4), size: int = 16, stored: int | None = None
) -> Windows:
    """The loader's parts over a fake dataset, without `DataConfig`."""
    measured = measure([everything(dataset)])
    tokenizer = TextTokenizer.train(dataset.tasks)
    contract = Contract(
        embodiment=dataset.embodiment,
        cameras=dataset.cameras,
        image_size=size,
        stored_size=stored,
        window=window,
        executed_steps=2,
        normalization="quantile",
        statistics_hash=fingerprint(measured),
        tokenizer_hash=tokenizer.hash,
        text_length=8,
        dataset_hash=dataset.hash,
    )
    encoder = ObservationEncoder(contract, measured, tokenizer)
    store = FrameStore.prepare(dataset, dataset.cameras, stored or size, cache)  # type: ignore[arg-type]
    frames = Frames(store, contract, dataset.episode_start)
    return Windows(Columns.prepare(dataset, cache), frames, encoder, dataset.tasks)  # type: ignore[arg-type]
