"""`DataConfig` to everything that training needs of a dataset: contract, statistics, tokenizer, encoder and the two loaders."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch

from deftly.config import Config
from deftly.contract import Contract, Window, fingerprint
from deftly.data import quarantine
from deftly.data.actions import ActionsConfig
from deftly.data.augment import AugmentConfig
from deftly.data.check.findings import CheckConfig, Finding, quarantined
from deftly.data.columns import Columns
from deftly.data.dataset import Dataset
from deftly.data.direct import VideoFrames
from deftly.data.encoding import ObservationEncoder, Statistics
from deftly.data.language.augment import NOT_REWORDED, LanguageConfig
from deftly.data.language.texts import Spoken, spoken
from deftly.data.loader import Loader
from deftly.data.measure import Part, blocks, cached_statistics, check_numbers
from deftly.data.split import Split, check_split, split_episodes
from deftly.data.store import FrameStore, default_cache
from deftly.data.stored import Frames
from deftly.data.tokenizer import TextTokenizer
from deftly.data.windows import Selection, Windows
from deftly.randomness import seed_of
from deftly.sim.processes import usable_cores
from deftly.types import UsageError

FEW_PIXELS = 400_000_000  # some ten seconds of decoding: below this it is done before worker processes have started


class DataConfig(Config):
    """Which data, how much of it a sample sees, and how it is prepared."""

    path: Path
    """A LeRobotDataset v3.0 folder."""
    cameras: tuple[str, ...] | None = None
    """The cameras that the policy sees; all of them by default."""
    image_size: int = pydantic.Field(default=96, ge=8, le=2048)
    """Side in pixels of the square that every image is fitted into."""
    check: CheckConfig = CheckConfig()
    """What is looked at before training, and how many broken episodes may be left out."""
    window: Window = Window()
    normalization: Literal["identity", "mean_std", "min_max", "quantile"] = "quantile"
    actions: ActionsConfig | None = None
    """Count actions from where the robot is; null: train on them as they were recorded."""
    validation_fraction: float = pydantic.Field(default=0.05, ge=0, lt=1)
    """Share of the episodes that is held out, whole scenes at a time."""
    validation_samples: int = pydantic.Field(default=2048, ge=1)
    """At most this many held-out windows, evenly spaced, judge each time."""
    batch_size: int = pydantic.Field(default=64, ge=1)
    frames: Literal["store", "video"] = "store"
    """Where pixels come from: decoded once into a store on disk and shuffled freely, or decoded in every epoch and shuffled in blocks."""
    shuffled_together: int = pydantic.Field(default=2048, ge=1)
    """With frames = video: windows whose frames are in memory at once, and once more while the next ones are decoded."""
    workers: int = pydantic.Field(default=0, ge=0, le=256)
    """Processes that prepare batches; 0 prepares them where training runs. The batches are the same."""
    augmentation: AugmentConfig = AugmentConfig()
    language: LanguageConfig = NOT_REWORDED
    """How often training hears an instruction in other words."""
    disk_share: float = pydantic.Field(default=0.2, gt=0, le=1)
    """Most of the free disk space that decoded frames may take; more is refused, with the figures."""
    text_length: int = pydantic.Field(default=16, ge=1, le=4096)
    """Words per instruction; a training instruction that is longer is an error."""

    def build(
        self,
        *,
        seed: int,
        device: torch.device | str,
        executed_steps: int,
        cache_dir: Path | None = None,
        episodes: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> TrainingData:
        """Open, check, split, measure, decode. `episodes` = (training ids, validation ids) replaces the split.

        Raises `UsageError` for settings that do not fit the data, `DataError` for data that is broken; each in one line.
        """
        if executed_steps > self.window.chunk:
            raise UsageError(
                f"executed_steps {executed_steps} is more than the chunk of {self.window.chunk} actions; lower it or raise window.chunk"
            )
        dataset, found = quarantine.open_sound(self.path, self.check, cache_dir)
        cameras = self._cameras(dataset)
        split = check_split(dataset, *(episodes or split_episodes(dataset, self.validation_fraction, seed)))
        training, held_out = (Selection(dataset.episode_start, side) for side in split)
        cache = cache_dir or default_cache(dataset.root)
        columns = Columns.prepare(dataset, cache)
        for side in split:
            check_numbers(dataset.root, dataset.embodiment, Part(columns, dataset.episode_start, side, dataset.hash))
        part = Part(columns, dataset.episode_start, split[0], dataset.hash)
        relative = None if self.actions is None else self.actions.build(dataset.embodiment)
        measured = cached_statistics([part], cache, relative, self.window)
        augmentation, notes = self.augmentation.fitted(dataset.embodiment, cameras)
        heard, tokenizer = self._language(dataset, part, augmentation)
        contract = Contract(
            embodiment=dataset.embodiment,
            cameras=cameras,
            image_size=self.image_size,
            stored_size=self._stored_size(dataset, cameras),
            window=self.window,
            executed_steps=executed_steps,
            normalization=self.normalization,
            statistics_hash=fingerprint(measured),
            tokenizer_hash=tokenizer.hash,
            text_length=self.text_length,
            dataset_hash=dataset.hash,
            actions=relative,
        )
        encoder = ObservationEncoder(contract, measured, tokenizer)
        frames = self._frames(dataset, contract, cache)
        windows = Windows(columns, frames, encoder, dataset.tasks, heard.augmenter)
        train = Loader(
            windows, training, seed=seed, batch_size=self.batch_size, workers=self.workers, augmentation=augmentation, device=device
        )
        validation = None
        if len(held_out):
            chosen = Selection(dataset.episode_start, split[1], at_most=self.validation_samples)
            validation = Loader(windows, chosen, seed=seed_of("validation", seed), batch_size=self.batch_size, device=device)
        said = [*notes, *heard.notes]
        return TrainingData(dataset, contract, measured, tokenizer, encoder, train, validation, split, frames.num_bytes, said, found)

    def _cameras(self, dataset: Dataset) -> tuple[str, ...]:
        cameras = dataset.cameras if self.cameras is None else self.cameras
        for name in cameras:
            if name not in dataset.cameras:
                near = difflib.get_close_matches(name, dataset.cameras, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(dataset.cameras) or 'none'}"
                raise UsageError(f"{dataset.root}: no camera {name!r}; {hint}")
        if not cameras or len(set(cameras)) != len(cameras):
            raise UsageError(
                f"{dataset.root}: cameras must name at least one camera, each once; it has {', '.join(dataset.cameras) or 'none'}"
            )
        return cameras

    def _stored_size(self, dataset: Dataset, cameras: tuple[str, ...]) -> int | None:
        """Side of the stored frames where crops need a margin; never more than was recorded, which would only repeat pixels."""
        recorded = max(max(camera.height, camera.width) for camera in map(dataset.embodiment.camera, cameras))
        size = min(self.augmentation.stored_size(self.image_size), max(recorded, self.image_size))
        return size if size != self.image_size else None

    def _frames(self, dataset: Dataset, contract: Contract, cache: Path) -> Frames | VideoFrames:
        """Where the policy's images come from; a store is filled here."""
        if self.frames == "video":
            return VideoFrames(dataset, contract, self.shuffled_together)
        pixels = dataset.num_frames * sum(camera.height * camera.width for camera in map(dataset.embodiment.camera, contract.cameras))
        decoders = usable_cores() if pixels > FEW_PIXELS else 0
        store = FrameStore.prepare(dataset, contract.cameras, contract.frame_size, cache, decoders, share=self.disk_share)
        return Frames(store, contract, dataset.episode_start)

    def _language(self, dataset: Dataset, part: Part, augmentation: AugmentConfig) -> tuple[Spoken, TextTokenizer]:
        """What training will hear, and a tokenizer of it: from the instructions of the training episodes alone."""
        sentences = sentences_of(dataset.tasks, part)
        heard = spoken(sentences, self.language, mirrors=augmentation.mirror > 0, max_words=self.text_length)
        tokenizer = TextTokenizer.train([*sentences, *heard.words])
        tokenizer.check_fits(sentences, self.text_length, str(dataset.root))
        return heard, tokenizer


@dataclass(frozen=True, slots=True)
class TrainingData:
    """A dataset made ready to train on."""

    dataset: Dataset
    contract: Contract
    statistics: Statistics
    tokenizer: TextTokenizer
    encoder: ObservationEncoder
    train: Loader
    validation: Loader | None
    split: Split
    """Sorted episode ids: (training, validation)."""
    decoded_bytes: int
    """What the store of decoded frames takes on disk."""
    notes: list[str]
    """What of the augmentation was switched off, or holds only approximately."""
    findings: list[Finding]
    """What the check found, worst first; episodes are numbered as in the folder."""

    def summary(self) -> dict[str, Any]:
        """What the plan and the report say about the data; JSON-able."""
        dataset, contract = self.dataset, self.contract
        return {
            "path": str(dataset.root),
            "hash": dataset.hash,
            "robot": contract.embodiment.name,
            "rate_hz": contract.embodiment.rate_hz,
            "episodes": dataset.num_episodes,
            "frames": dataset.num_frames,
            "hours": dataset.num_frames / contract.embodiment.rate_hz / 3600,
            "left_out": quarantined(self.findings).tolist(),
            "training_episodes": len(self.split[0]),
            "validation_episodes": len(self.split[1]),
            "training_windows": len(self.train),
            "validation_windows": 0 if self.validation is None else len(self.validation),
            "instructions": len(dataset.tasks),
            "vocabulary": self.tokenizer.size,
            "words_only_held_out": sorted({word for sentence in dataset.tasks for word in self.tokenizer.unknown_words(sentence)}),
            "cameras": list(contract.cameras),
            "image_size": contract.image_size,
            "state": list(contract.embodiment.state.names),
            "action": list(contract.embodiment.action.names),
            "normalization": contract.normalization,
            "actions": "as recorded" if contract.actions is None else contract.actions.kind,
            "adjusted_dimensions": self.encoder.adjusted,
            "decoded_bytes": self.decoded_bytes,
            "augmentation_notes": self.notes,
        }

    def close(self) -> None:
        """Stop worker processes."""
        self.train.close()
        if self.validation is not None:
            self.validation.close()


def sentences_of(tasks: tuple[str, ...], part: Part) -> list[str]:
    """The instructions that the selected episodes hold, in the dataset's order."""
    seen = np.zeros(len(tasks), bool)
    for rows in blocks(part):
        seen[part.numbers.task[rows]] = True
    return [tasks[i] for i in np.flatnonzero(seen)]
