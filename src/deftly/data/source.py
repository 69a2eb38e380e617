"""`DataConfig` to everything that training needs of its datasets: contracts, statistics, tokenizer, encoders and the streams.

```
open, split, check ─> what robots and cameras have in common ─> statistics of each robot ─> words of all ─> a loader of each ─> one stream
```
One dataset is the plain case; `mixture` adds others, of the same robot or of more.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pydantic
import torch

from deftly.config import Config
from deftly.contract import Contract, DepthCamera, Embodiment, RelativeActions, Window, fingerprint
from deftly.data import quarantine
from deftly.data.actions import ActionsConfig
from deftly.data.augment import AugmentConfig
from deftly.data.check.findings import CheckConfig, Finding
from deftly.data.columns import Columns
from deftly.data.dataset import Dataset
from deftly.data.depth import DepthStore, depth_cameras
from deftly.data.direct import VideoFrames
from deftly.data.encoding import ObservationEncoder
from deftly.data.language.augment import NOT_REWORDED, Augmenter, LanguageConfig
from deftly.data.language.texts import spoken
from deftly.data.loader import Loader
from deftly.data.measure import Part, blocks, cached_statistics, check_numbers, mirrored
from deftly.data.mixture import Balance, Common, Mixture, counts_of, factors_of, in_common, robots_of, sample_weights, shares_of, sizes_of
from deftly.data.prepared import Prepared, TrainingData
from deftly.data.split import Split, check_split, split_episodes
from deftly.data.store import FrameStore, default_cache
from deftly.data.stored import Frames
from deftly.data.tokenizer import TextTokenizer
from deftly.data.windows import Selection, Share, Windows, share_of
from deftly.randomness import seed_of
from deftly.sim.processes import usable_cores
from deftly.types import UsageError

FEW_PIXELS = 400_000_000  # some ten seconds of decoding: below this it is done before worker processes have started


class Source(Config):
    """A further dataset of a mixture."""

    path: Path
    weight: float = pydantic.Field(default=1.0, gt=0)
    """How often its samples come, beside those of the first dataset, relative to its size (`balance`)."""
    cameras: dict[str, str] | None = None
    """The policy's name -> this dataset's name of each camera that the policy sees; all of them, by their own names, by default."""
    actions: ActionsConfig = ActionsConfig()
    """Whether this robot's actions are counted from where it is."""
    robot: str | None = None
    """What to call its robot, where the datasets call different robots the same."""


class DataConfig(Config):
    """Which data, how much of it a sample sees, and how it is prepared."""

    FREE: ClassVar[tuple[str, ...]] = ("workers", "disk_share")
    """Fields that cannot change a batch: a resumed run may have others."""

    path: Path
    """A LeRobotDataset folder: v3.0, v2.1 or v2.0, read where it is."""
    cameras: tuple[str, ...] | None = None
    """The cameras that the policy sees; all of them by default."""
    depth: tuple[str, ...] = ()
    """The depth cameras that a batch holds beside the images; none by default."""
    image_size: int = pydantic.Field(default=96, ge=8, le=2048)
    """Side in pixels of the square that every image is fitted into."""
    check: CheckConfig = CheckConfig()
    """What is looked at before training, and how many broken episodes may be left out."""
    window: Window = Window()
    normalization: Literal["identity", "mean_std", "min_max", "quantile"] = "quantile"
    actions: ActionsConfig = ActionsConfig()
    """Whether actions are counted from where the robot is."""
    mixture: tuple[Source, ...] = ()
    """Further datasets, of this robot or of others, in every batch."""
    balance: Balance = "frame"
    """What counts the same: every frame, every episode, or every instruction; between datasets and within each."""
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
        share: tuple[int, int] = (0, 1),
    ) -> TrainingData:
        """Open, check, split, measure, decode. `episodes` = (training ids, validation ids) replaces the split of a single dataset.
        `share` = (rank, ranks): each of several processes is given its stretch of every batch.

        Raises `UsageError` for settings that do not fit the data, `DataError` for data that is broken; each in one line.
        """
        if executed_steps > self.window.chunk:
            raise UsageError(
                f"executed_steps {executed_steps} is more than the chunk of {self.window.chunk} actions; lower it or raise window.chunk"
            )
        if episodes is not None and self.mixture:
            raise UsageError("a split by hand, or folds, are of a single dataset: leave data.mixture out")
        if self.depth and (self.mixture or self.frames == "video"):
            raise UsageError("depth is read from a store, of a single dataset: set frames = store and leave data.mixture out")
        whole = share_of(self.batch_size, *share)
        if self.augmentation.mixup and share[1] > 1:  # guard: data.share.mixup
            raise UsageError("augmentation.mixup looks for partners in the whole batch, which no single process has: set it to 0")
        opened = self._open(seed, cache_dir, episodes)
        common = in_common([one.robot for one in opened], [one.cameras for one in opened]) if self.mixture else None
        sentences = [sentence for one in opened for sentence in sentences_of(one.dataset.tasks, one.training)]
        sentences = list(dict.fromkeys(sentences))
        mirrors = any(one.augmentation.mirror > 0 for one in opened)
        heard = spoken(sentences, self.language, mirrors=mirrors, max_words=self.text_length)
        tokenizer = TextTokenizer.train([*sentences, *heard.words])
        tokenizer.check_fits(sentences, self.text_length, ", ".join(str(one.dataset.root) for one in opened))
        encoders = self._encoders(opened, common, tokenizer, executed_steps)
        sizes = sizes_of(self.balance, [one.training for one in opened])
        weights = [1.0, *(source.weight for source in self.mixture)]
        shares = [size * weight for size, weight in zip(sizes, weights, strict=True)]
        counts = counts_of(shares, self.batch_size)
        given = shares_of(counts, whole)
        parts = tuple(
            self._load(one, encoders[number], number, given[number], heard.augmenter, seed, device) for number, one in enumerate(opened)
        )
        train = Mixture([part.train for part in parts], factors_of(shares, counts)) if self.mixture else parts[0].train
        return TrainingData(parts, tokenizer, train, [*dict.fromkeys(note for one in opened for note in one.notes), *heard.notes])

    def _open(self, seed: int, cache_dir: Path | None, episodes: tuple[np.ndarray, np.ndarray] | None) -> list[Opened]:
        """Every dataset with its split and its numbers, checked."""
        opened = []
        for source in (None, *self.mixture):
            dataset, findings = quarantine.open_sound(self.path if source is None else source.path, self.check, cache_dir)
            if source is None:
                robot, cameras, actions = dataset.embodiment, {name: name for name in self._cameras(dataset)}, self.actions
            else:
                robot = dataset.embodiment if source.robot is None else dataset.embodiment.replace(name=source.robot)
                cameras, actions = _named_cameras(dataset, source), source.actions
            split = check_split(dataset, *(episodes or split_episodes(dataset, self.validation_fraction, seed)))
            cache = cache_dir or default_cache(dataset.root)
            columns = Columns.prepare(dataset, cache)
            training, held_out = (Part(columns, dataset.episode_start, side, dataset.hash) for side in split)
            for part in (training, held_out):
                check_numbers(dataset.root, robot, part)
            relative = actions.build(robot)
            augmentation, notes = self.augmentation.fitted(robot, tuple(cameras.values()))
            opened.append(Opened(dataset, findings, robot, cameras, relative, augmentation, notes, split, columns, cache, training))
        return opened

    def _encoders(
        self, opened: Sequence[Opened], common: Common | None, tokenizer: TextTokenizer, executed_steps: int
    ) -> list[ObservationEncoder]:
        """The contract and statistics of each dataset's robot; datasets of one robot are measured together and share them."""
        numbers = robots_of([one.robot for one in opened])
        hashes = [one.dataset.hash for one in opened]
        encoders: dict[int, ObservationEncoder] = {}
        for number, one in zip(numbers, opened, strict=True):
            group = [other for other, its in zip(opened, numbers, strict=True) if its == number]
            if any((other.cameras, other.relative) != (one.cameras, one.relative) for other in group):
                raise UsageError(f"datasets of the robot {one.robot.name!r} must have the same `cameras` and `actions` in a mixture")
            if number in encoders:
                continue
            parts = [other.training for other in group]
            if one.augmentation.mirror and one.robot.mirror is not None:
                parts += [mirrored(part, one.robot.mirror) for part in parts]
            measured = cached_statistics(parts, group[0].cache, one.relative, self.window)
            contract = Contract(
                embodiment=one.robot,
                depth=self._depth(one),
                cameras=tuple(one.cameras if common is None else common.cameras),
                mixed_cameras=None if common is None else common.on(one.cameras),
                image_size=self.image_size,
                stored_size=self._stored_size(one),
                window=self.window,
                executed_steps=executed_steps,
                normalization=self.normalization,
                statistics_hash=fingerprint(measured),
                tokenizer_hash=tokenizer.hash,
                text_length=self.text_length,
                dataset_hash=hashes[0] if common is None else fingerprint(hashes),
                actions=one.relative,
                widths=None if common is None else common.widths,
                robot_index=number,
                num_robots=len(set(numbers)),
            )
            encoders[number] = ObservationEncoder(contract, measured, tokenizer)
        return [encoders[number] for number in numbers]

    def _load(
        self,
        one: Opened,
        encoder: ObservationEncoder,
        number: int,
        share: Share,
        augmenter: Augmenter | None,
        seed: int,
        device: torch.device | str,
    ) -> Prepared:
        """The loaders of dataset `number`. The first draws what it would draw alone."""
        seed = seed if not number else seed_of("source", seed, number)
        dataset, contract = one.dataset, encoder.contract
        frames = self._frames(one, contract)
        weights = sample_weights(self.balance, one.training)
        windows = Windows(one.columns, frames, encoder, dataset.tasks, augmenter, weights=weights, source=number)
        workers = -(-self.workers * share.batch // self.batch_size)  # of a mixture's workers, this dataset's share
        training = Selection(dataset.episode_start, one.split[0])
        train = Loader(
            windows,
            training,
            seed=seed,
            batch_size=share.batch,
            share=share,
            workers=workers,
            augmentation=one.augmentation,
            device=device,
            watch=dataset.changed,
        )
        validation = None
        if len(one.split[1]):
            chosen = Selection(dataset.episode_start, one.split[1], at_most=self.validation_samples)
            validation = Loader(windows, chosen, seed=seed_of("validation", seed), batch_size=self.batch_size, device=device)
        own = cached_statistics([one.training], one.cache, one.relative, self.window)
        return Prepared(dataset, encoder, own, train, validation, one.split, frames.num_bytes, one.findings)

    def _frames(self, one: Opened, contract: Contract) -> Frames | VideoFrames:
        """Where the policy's images come from; a store is filled here."""
        dataset, cameras = one.dataset, tuple(contract.recorded_cameras().values())
        if self.frames == "video":
            return VideoFrames(dataset, contract, self.shuffled_together)
        pixels = dataset.num_frames * sum(camera.height * camera.width for camera in map(one.robot.camera, cameras))
        decoders = usable_cores() if pixels > FEW_PIXELS else 0
        store = FrameStore.prepare(dataset, cameras, contract.frame_size, one.cache, decoders, share=self.disk_share)
        names = [one_depth.name for one_depth in contract.depth]
        depth = DepthStore.prepare(dataset, names, contract.frame_size, one.cache, share=self.disk_share) if names else None
        return Frames(store, contract, dataset.episode_start, depth)

    def _depth(self, one: Opened) -> tuple[DepthCamera, ...]:
        return depth_cameras(one.dataset, self.depth, tuple(one.cameras), one.robot.mirror if one.augmentation.mirror else None)

    def _cameras(self, dataset: Dataset) -> tuple[str, ...]:
        cameras = dataset.cameras if self.cameras is None else self.cameras
        for name in cameras:
            if name not in dataset.cameras:
                raise UsageError(_no_camera(dataset, name))
        if not cameras or len(set(cameras)) != len(cameras):
            raise UsageError(
                f"{dataset.root}: cameras must name at least one camera, each once; it has {', '.join(dataset.cameras) or 'none'}"
            )
        return cameras

    def _stored_size(self, one: Opened) -> int | None:
        """Side of the stored frames where crops need a margin; never more than was recorded, which would only repeat pixels."""
        recorded = max(max(camera.height, camera.width) for camera in map(one.robot.camera, one.cameras.values()))
        size = min(self.augmentation.stored_size(self.image_size), max(recorded, self.image_size))
        return size if size != self.image_size else None


class Opened(NamedTuple):
    """A dataset before anything of it is decoded."""

    dataset: Dataset
    findings: list[Finding]
    robot: Embodiment
    cameras: dict[str, str]
    """The policy's name -> the dataset's name of each camera."""
    relative: RelativeActions | None
    augmentation: AugmentConfig
    """What of it fits this robot."""
    notes: list[str]
    """What of it was switched off, or holds only approximately."""
    split: Split
    columns: Columns
    cache: Path
    training: Part


def _no_camera(dataset: Dataset, name: str) -> str:
    near = difflib.get_close_matches(name, dataset.cameras, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(dataset.cameras) or 'none'}"
    return f"{dataset.root}: no camera {name!r}; {hint}"


def _named_cameras(dataset: Dataset, source: Source) -> dict[str, str]:
    """The cameras of a further dataset by the policy's names; `UsageError` for one that it does not have, or that is named twice."""
    cameras = {name: name for name in dataset.cameras} if source.cameras is None else dict(source.cameras)
    for name in cameras.values():
        if name not in dataset.cameras:
            raise UsageError(_no_camera(dataset, name))
    if not cameras or len(set(cameras.values())) != len(cameras):
        raise UsageError(f"{dataset.root}: cameras must name at least one camera, each once; it has {', '.join(dataset.cameras) or 'none'}")
    return cameras


def sentences_of(tasks: tuple[str, ...], part: Part) -> list[str]:
    """The instructions that the selected episodes hold, in the dataset's order."""
    seen = np.zeros(len(tasks), bool)
    for rows in blocks(part):
        seen[part.numbers.task[rows]] = True
    return [tasks[i] for i in np.flatnonzero(seen)]
