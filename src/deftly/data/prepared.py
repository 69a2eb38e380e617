"""What training is given: each dataset made ready, and the one stream of all. How they are made is in `source.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deftly.contract import Contract
from deftly.data.check.findings import Finding, quarantined
from deftly.data.dataset import Dataset
from deftly.data.encoding import ObservationEncoder, Statistics
from deftly.data.loader import Loader
from deftly.data.mixture import Mixture
from deftly.data.split import Split
from deftly.data.tokenizer import TextTokenizer
from deftly.types import Samples


@dataclass(frozen=True, slots=True)
class Prepared:
    """One dataset made ready to train on."""

    dataset: Dataset
    encoder: ObservationEncoder
    """Of its robot; datasets of one robot share it."""
    own_statistics: Statistics
    """Of its own training episodes as recorded, without mirror images and other datasets: what it is judged by."""
    train: Loader
    validation: Loader | None
    split: Split
    """Sorted episode ids: (training, validation)."""
    decoded_bytes: int
    """What the store of decoded frames takes on disk."""
    findings: list[Finding]
    """What the check found, worst first; episodes are numbered as in the folder."""

    @property
    def contract(self) -> Contract:
        return self.encoder.contract

    @property
    def statistics(self) -> Statistics:
        return self.encoder.statistics

    def summary(self) -> dict[str, Any]:
        """What the plan and the report say about the data; JSON-able."""
        dataset, contract, tokenizer = self.dataset, self.contract, self.encoder.tokenizer
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
            "samples_per_batch": self.train.batch_size,
            "instructions": len(dataset.tasks),
            "vocabulary": tokenizer.size,
            "words_only_held_out": sorted({word for sentence in dataset.tasks for word in tokenizer.unknown_words(sentence)}),
            "cameras": list(contract.recorded_cameras()),
            "image_size": contract.image_size,
            "state": list(contract.embodiment.state.names),
            "action": list(contract.embodiment.action.names),
            "normalization": contract.normalization,
            "actions": "as recorded" if contract.actions is None else contract.actions.kind,
            "adjusted_dimensions": self.encoder.adjusted,
            "decoded_bytes": self.decoded_bytes,
        }


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything that training needs of its datasets. What is said of one dataset is said of the first."""

    parts: tuple[Prepared, ...]
    tokenizer: TextTokenizer
    train: Loader | Mixture
    notes: list[str]
    """What of the augmentation of images and words was switched off, or holds only approximately."""

    @property
    def dataset(self) -> Dataset:
        return self.parts[0].dataset

    @property
    def encoder(self) -> ObservationEncoder:
        return self.parts[0].encoder

    @property
    def contract(self) -> Contract:
        return self.parts[0].contract

    @property
    def statistics(self) -> Statistics:
        return self.parts[0].statistics

    @property
    def validation(self) -> Loader | None:
        return self.parts[0].validation

    @property
    def split(self) -> Split:
        return self.parts[0].split

    @property
    def sample_factors(self) -> tuple[float, ...]:
        """What a sample of each dataset weighs besides its balance (`mixture.factors_of`)."""
        return self.train.factors if isinstance(self.train, Mixture) else (1.0,)

    @property
    def robots(self) -> list[ObservationEncoder]:
        """Of each robot, in the order of `Contract.robot_index`."""
        return list({part.contract.robot_index: part.encoder for part in self.parts}.values())

    @property
    def findings(self) -> list[tuple[Path, list[Finding]]]:
        """Each dataset's folder, and what the check found in it."""
        return [(part.dataset.root, part.findings) for part in self.parts]

    def held_out(self) -> Iterator[Samples]:
        """The held-out windows of every dataset, one after the other, in batches that are yet to be made; nothing where no episode was
        held out."""
        for part in self.parts:
            if part.validation is not None:
                yield from part.validation.unmade()

    def summary(self) -> dict[str, Any]:
        """What the plan and the report say about the data; JSON-able."""
        summary = {**self.parts[0].summary(), "augmentation_notes": self.notes}
        return summary if len(self.parts) == 1 else {**summary, "mixture": [part.summary() for part in self.parts[1:]]}

    def close(self) -> None:
        """Stop worker processes."""
        self.train.close()
        for part in self.parts:
            if part.validation is not None:
                part.validation.close()
