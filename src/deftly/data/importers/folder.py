"""Importing a plain folder: metadata.json, a list of frames, beside images/ID.jpg.

```
[{"image_id": "0001", "instruction": "open the drawer", "action": [0.1, 0.0], "sequence_id": 7, "timestamp": 0.2, "state": [0.5]}, ...]
```
Frames of one `sequence_id` are an episode, in order of their `timestamp` in seconds, which also says the rate. `state` is optional.
`language_tokens` are those of somebody's tokenizer and are left out; so is every key that is not named here, and the report says so. Images
stay the JPEG or PNG bytes that they are.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly import storage
from deftly.contract import Camera, Embodiment, Vector
from deftly.data.images import MAX_IMAGE_BYTES, image_size
from deftly.data.importers.report import BUDGET, MAX_RATE_HZ, ImportReport, require_folder, require_rate
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, UsageError

CAMERA = "camera"
KNOWN = ("image_id", "instruction", "action", "sequence_id", "timestamp", "state")
BROKEN = "\ufffd"  # what `storage.read_json` puts where there was no text
ENDINGS = ("", ".jpg", ".jpeg", ".png")
MAX_DIM = 100_000
MAX_NAME_BYTES = 250  # of an image; a file system's names have 255, endings included
MAX_NUMBER = 3e38  # float32 holds no more
RATE_TOLERANCE = 0.02  # how far from a whole number of frames per second the median may be
STEP_TOLERANCE = 0.5  # of a frame, between two timestamps: beyond it a frame is missing, or one too many


def import_folder(source: Path, target: Path, *, rate_hz: int | None = None, budget: float = BUDGET) -> ImportReport:
    """Write the sequences of a folder as a LeRobotDataset v3.0 at `target`.

    With `rate_hz` the timestamps give the order and nothing else. Raises `UsageError` when the timestamps give no whole rate, `DataError`
    when metadata.json is damaged or more than `budget` of the sequences are broken. Nothing is left at `target` then.
    """
    require_rate(rate_hz)
    source = require_folder(Path(source))
    sequences, left_out = read_metadata(source / "metadata.json")
    rate = rate_hz or measured_rate(sequences, str(source / "metadata.json"))
    layout = _Layout.of(source, sequences)
    having = sum(any("state" in frame for frame in frames) for frames in sequences.values())
    if having and not layout.state:
        left_out = [*left_out, f"state (in {having} of {len(sequences)} sequences)"]
    report = ImportReport(source="folder", left_out=left_out)
    with DatasetWriter(target, layout.embodiment(source.name, rate), images={CAMERA: "image"}) as writer:
        for name, frames in sequences.items():
            read = functools.partial(layout.read, name, frames, None if rate_hz else rate)
            report.take(writer, f"{source}: sequence {name!r}", read, budget, len(sequences))
        report.finish(writer)
    return report


def read_metadata(path: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """(frames of each sequence in order of time, keys that nothing reads)."""
    frames = storage.read_json(path)
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise DataError(f"{path}: expected a list of frames, each an object with {', '.join(KNOWN[:5])}")
    sequences: dict[str, list[dict[str, Any]]] = {}
    kinds: dict[str, type] = {}
    for number, frame in enumerate(frames):
        name, time = frame.get("sequence_id"), frame.get("timestamp")
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise DataError(f"{path}: entry {number}: sequence_id is {str(name)[:40]!r}, expected text or a whole number")
        if not _is_number(time):
            raise DataError(f"{path}: entry {number}: timestamp is {str(time)[:40]!r}, expected seconds")
        if kinds.setdefault(str(name), type(name)) is not type(name):  # guard: data.folder.same_name
            both = f"the number {name} and the text '{name}' are both a sequence_id"
            raise DataError(f"{path}: entry {number}: {both}, which may be one episode or two; write all of them alike")
        sequences.setdefault(str(name), []).append(frame)
    for found in sequences.values():
        found.sort(key=lambda frame: frame["timestamp"])
    return sequences, sorted({str(key)[:60] for frame in frames for key in frame if key not in KNOWN})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER  # NaN is not less than anything


def measured_rate(sequences: dict[str, list[dict[str, Any]]], where: str) -> int:
    """Frames per second by the median time between frames; a `UsageError` where that is no whole number."""
    steps = np.concatenate([np.diff([float(frame["timestamp"]) for frame in frames]) for frames in sequences.values()])
    step = float(np.median(steps)) if len(steps) else 0.0
    if not step > 0:
        raise UsageError(f"{where}: its timestamps do not say a rate; give it, as in --fps 10")
    rate = 1 / step
    if not 1 <= round(rate) <= MAX_RATE_HZ or abs(rate - round(rate)) > RATE_TOLERANCE * rate:
        raise UsageError(f"{where}: frames are {step:.4g} s apart, which is no whole number of frames per second; give it, as in --fps 10")
    return round(rate)


@dataclass(frozen=True)
class _Layout:
    """What every frame must look like: the image by the first one that can be read, the vectors as most sequences begin."""

    root: Path
    height: int
    width: int
    action: int
    state: int

    @classmethod
    def of(cls, root: Path, sequences: dict[str, list[dict[str, Any]]]) -> _Layout:
        problem: DataError | None = None
        sizes: Counter[tuple[int, int]] = Counter()
        image: tuple[int, int] | None = None
        for name, frames in sequences.items():
            frame, where = frames[0], f"{root}: sequence {name!r} frame 0"
            try:
                image = image or image_size(_image(root, frame.get("image_id"), where), where)
                state = _vector(frame, "state", None, where) if "state" in frame else []
                sizes[len(_vector(frame, "action", None, where)), len(state)] += 1
            except DataError as error:
                problem = problem or error
        if image and sizes:
            action, state = sizes.most_common(1)[0][0]
            return cls(root, *image, action, state)
        raise problem or DataError(f"{root}: holds no sequences")

    def embodiment(self, name: str, rate_hz: int) -> Embodiment:
        def vector(label: str, size: int) -> Vector:
            return Vector(names=tuple(f"{label}_{i}" for i in range(size)), units=("",) * size)

        camera = Camera(name=CAMERA, height=self.height, width=self.width)
        return Embodiment(
            name=name, rate_hz=rate_hz, cameras=(camera,), state=vector("state", self.state), action=vector("action", self.action)
        )

    def read(self, name: str, frames: list[dict[str, Any]], rate_hz: int | None) -> EpisodeData:
        """A sequence; `rate_hz` is what its timestamps must keep to, None where they only give the order."""
        where = f"{self.root}: sequence {name!r}"
        if BROKEN in name:  # guard: data.folder.sequence_id
            raise DataError(f"{where}: its sequence_id holds what is not text")
        _check_times(frames, rate_hz, where)
        rows: dict[str, list[Any]] = {"image": [], "state": [], "action": [], "task": []}
        for number, frame in enumerate(frames):
            place = f"{where} frame {number}"
            task = frame.get("instruction")
            if not isinstance(task, str) or not task.strip() or BROKEN in task or "\0" in task:  # guard: data.folder.instruction
                raise DataError(f"{place}: the instruction is {str(task)[:40]!r}")
            rows["task"].append(task)
            rows["action"].append(_vector(frame, "action", self.action, place))
            rows["state"].append(_vector(frame, "state", self.state, place) if self.state else [])
            rows["image"].append(_image(self.root, frame.get("image_id"), place))
        return EpisodeData(
            images={CAMERA: rows["image"]},
            state=np.array(rows["state"], dtype=np.float32).reshape(len(frames), self.state),
            action=np.array(rows["action"], dtype=np.float32),
            task=rows["task"],
            extra_episode={"source": name},
        )


def _check_times(frames: list[dict[str, Any]], rate_hz: int | None, where: str) -> None:
    times = [float(frame["timestamp"]) for frame in frames]
    for number, step in enumerate(np.diff(times).tolist(), 1):
        if step <= 0:  # guard: data.folder.repeated_time
            raise DataError(f"{where} frame {number}: the timestamp {times[number]} occurs twice")
        if rate_hz and abs(step * rate_hz - 1) > STEP_TOLERANCE:  # guard: data.folder.step
            expected = f"at {rate_hz} frames per second it should be {1 / rate_hz:.4g} s"
            raise DataError(f"{where} frame {number}: {step:.4g} s after the one before, {expected}; frames are missing, or give --fps")


def _vector(frame: dict[str, Any], name: str, size: int | None, where: str) -> list[float]:
    values = frame.get(name)
    if not isinstance(values, list) or not 0 < len(values) <= MAX_DIM or not all(_is_number(value) for value in values):
        raise DataError(f"{where}: {name} is {str(values)[:60]}, expected a list of finite numbers")
    if size is not None and len(values) != size:  # guard: data.folder.dimensions
        raise DataError(f"{where}: {name} has {len(values)} numbers, most sequences have {size}")
    return values


def _image(root: Path, image_id: Any, where: str) -> bytes:
    """The bytes of images/ID.jpg. An id is a name and never a path."""
    name = str(image_id)
    is_name = isinstance(image_id, str | int) and re.fullmatch(r"[\w-][\w.-]{0,199}", name)
    if not is_name or len(name.encode()) > MAX_NAME_BYTES:  # guard: data.folder.image_id
        raise DataError(f"{where}: image_id is {name[:60]!r}, which cannot be the name of a file in images/")
    for ending in ENDINGS:
        path = storage.inside(root, f"images/{name}{ending}")
        if path.is_file():
            if path.stat().st_size > MAX_IMAGE_BYTES:  # guard: data.folder.image_bytes
                raise DataError(f"{path}: {path.stat().st_size} bytes, an image has at most {MAX_IMAGE_BYTES}")
            return path.read_bytes()
    raise DataError(f"{where}: there is no images/{name}.jpg")
