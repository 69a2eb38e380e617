"""Recording demonstrations on a robot: frame by frame, and what `save_episode` returned from survives kill -9, a full disk, a power cut.

Frames are encoded while they arrive, so an episode may be longer than memory. An episode is committed whole or not at all; a dataset that
was never finished is put together by whoever opens it (`recording.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq

from deftly import storage
from deftly.contract import Camera, Embodiment, differences
from deftly.data import video
from deftly.data.files import PARQUET, arrow_schema, arrow_table
from deftly.data.images import encode_png
from deftly.data.provenance import Kinds, join, shown
from deftly.data.recording import RECORDING, ROWS, Plan, assemble, claimed, clip_name, episode_name, saved_episodes, told
from deftly.data.schema import ACTION, IMAGES, STATE, Storage, parse_feature
from deftly.data.video import VideoWriter
from deftly.types import DataError, UsageError

FINISHED = "the recording is finished; record more into another folder"
CLOSED = "the recorder is closed; a new one with resume=True goes on with the recording"


class RecordingError(UsageError):
    """The machine refused to store what was recorded. What was saved before is whole; the episode under way is lost."""


class Recorder:
    """Records episodes into the folder `root`, which is a LeRobotDataset v3.0 once it is finished.

    ```python
    with Recorder(Path("data/mugs"), embodiment) as recorder:
        while recording:
            recorder.add_frame({"head": pixels}, state, action)
        recorder.save_episode("put the mug on the shelf")  # or recorder.discard_episode()
        recorder.finish()
    ```
    `images` says per camera whether frames become an mp4 ("video", the default) or stay exact PNG images ("image"); `extra` names the
    elements of further float32 vectors per frame; `about` is kept in meta/deftly.json. `resume` goes on with a recording that was not
    finished. Leaving the block without `finish` keeps what was saved.

    Raises `UsageError` when `root` holds something else, is being recorded by another process, or cannot hold this embodiment.
    """

    def __init__(
        self,
        root: Path,
        embodiment: Embodiment,
        *,
        images: Mapping[str, Storage] | None = None,
        extra: Mapping[str, tuple[str, ...]] | None = None,
        about: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.root, self.embodiment, self.fps = Path(root), embodiment, round(embodiment.rate_hz)
        self._plan = Plan.of(embodiment, images, extra, about, str(self.root))
        for name, feature in self._plan.features.items():
            parse_feature(
                name, feature.to_dict(), f"{self.root}: feature {name!r}"
            )  # what no reader would take is refused now, not after the work
        unfinished = (self.root / RECORDING).exists()
        if not unfinished and self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UsageError(f"{self.root}: exists already; record into another folder")
        if unfinished and not resume:
            raise UsageError(f"{self.root}: holds an unfinished recording; go on with resume=True, or open it as a dataset to finish it")
        self.num_episodes = 0
        self._kinds: Kinds = {}
        self._over = ""  # why nothing can be recorded any more
        self._owner = os.getpid()
        self._stack = contextlib.ExitStack()
        with self._guarded("start recording"), self._stack:
            if not unfinished:
                with self._plan.writer(self.root):
                    pass  # what cannot become a dataset is refused before anything is recorded, and leaves nothing
            self._folder = self._stack.enter_context(claimed(self.root))
            self._begin()
            self._stack = self._stack.pop_all()
        self._rows: dict[str, list[Any]] = {}
        self._videos: dict[str, VideoWriter] = {}
        self._length = 0

    def _begin(self) -> None:
        """Check the plan against the one on disk, or write it."""
        path = self._folder / "plan.json"
        if path.exists():
            wrong = differences(Plan.read(path).to_dict(), self._plan.to_dict())
            if wrong:
                raise UsageError(
                    f"{self.root}: records something else: {wrong[0]}; choose another folder, or resume with the same settings"
                )
        else:
            storage.write_json(path, self._plan.to_dict())
        for leftover in [self._folder / "current", *self._folder.glob(".*.tmp")]:
            shutil.rmtree(leftover, ignore_errors=True)
        for saved in saved_episodes(self._folder):
            self._kinds = join(self._kinds, told(saved), str(saved))
            self.num_episodes += 1

    @property
    def num_frames(self) -> int:
        """Frames of the episode under way."""
        return self._length

    def add_frame(
        self,
        images: Mapping[str, np.ndarray],
        state: Sequence[float] | np.ndarray,
        action: Sequence[float] | np.ndarray,
        extra: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    ) -> None:
        """Add one time step: what every camera sees, uint8 [h w 3], the state [s], the action [a] that answers it, and what was announced.

        Raises `DataError` naming the field that is wrong, and `RecordingError` when the machine cannot store it: then the whole
        episode under way is lost. A wrong frame leaves no trace.
        """
        self._require_open()
        where = f"{self.root}: episode {self.num_episodes} frame {self._length}"
        if not isinstance(images, Mapping):
            raise DataError(f"{where}: images is {type(images).__name__}, expected a name and pixels for each camera")
        unknown = sorted(str(name) for name in set(images) - {camera.name for camera in self.embodiment.cameras})
        if unknown:  # guard: data.recorder.camera
            raise DataError(f"{where}: {unknown[0]!r} is no camera of the embodiment; the frame was not recorded")
        if not isinstance(extra, Mapping | None):
            raise DataError(f"{where}: extra is {type(extra).__name__}, expected a name and values for each further vector")
        if twice := [name for name in (STATE, ACTION) if name in (extra or {})]:
            raise DataError(f"{where}: extra holds {twice[0]!r}, which is given already; the frame was not recorded")
        row = self._vectors({STATE: state, ACTION: action, **(extra or {})}, where)
        pixels = {camera.name: _pixels(images, camera, where) for camera in self.embodiment.cameras}
        with _undisturbed(), self._guarded("record"):
            if not self._length:
                (self._folder / "current").mkdir(exist_ok=True)
            for place, (name, frame) in enumerate(pixels.items()):
                if self._plan.features[IMAGES + name].dtype == "image":
                    row[IMAGES + name] = encode_png(frame)
                else:
                    self._video(place, name).add_frames([frame])
            for name, value in row.items():
                self._rows.setdefault(name, []).append(value)
            self._length += 1

    def _vectors(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, feature in self._plan.columns().items():
            if feature.is_camera:
                continue
            if name not in given:
                raise DataError(f"{where}: {name} is missing")
            values = _float32(given[name], f"{where}: {name}")
            if values.shape != feature.shape:
                raise DataError(f"{where}: {name} has shape {list(values.shape)}, expected {list(feature.shape)}")
            if not np.isfinite(values).all():  # guard: data.recorder.finite
                dim = int(np.argmax(~np.isfinite(values)))
                raise DataError(f"{where}: {name}[{dim}] is {values[dim]}; the frame was not recorded")
            row[name] = values
        unknown = sorted(map(str, set(given) - set(row) - {STATE}))
        if unknown or (STATE not in row and _float32(given[STATE], f"{where}: {STATE}").size):
            raise DataError(f"{where}: {unknown[0] if unknown else STATE!r} was not announced to the recorder")
        return row

    def _video(self, place: int, camera: str) -> VideoWriter:
        if camera not in self._videos:
            size = self.embodiment.camera(camera)
            self._videos[camera] = VideoWriter(self._folder / "current" / clip_name(place), self.fps, size.height, size.width)
        return self._videos[camera]

    def save_episode(self, task: str | Sequence[str], extra: Mapping[str, int | float | str | bool] | None = None) -> int:
        """Commit the frames since the last call as one episode; returns its number. When it returns, the episode survives any crash.

        `task` is the instruction, of the episode or of every frame; `extra` is its provenance: any names, kept in meta/episodes.
        Raises `UsageError` when there is nothing to save or a value cannot be kept (nothing is lost then), `RecordingError` when the
        machine cannot store it (the episode is lost, the ones before are not).
        """
        self._require_open()
        number, length = self.num_episodes, self._length
        where = f"{self.root}: episode {number}"
        if not length:
            raise UsageError(f"{where}: holds no frames; add_frame comes first")
        tasks = list(task) if isinstance(task, Sequence) and not isinstance(task, str) else [task]
        if len(tasks) not in (1, length):
            raise UsageError(f"{where}: {len(tasks)} instructions for {length} frames")
        for text in tasks:
            _check_text(text, where)
        if not isinstance(extra, Mapping | None):
            raise UsageError(f"{where}: extra is {type(extra).__name__}, expected a name and a value for each column")
        more = {name: value.item() if isinstance(value, np.generic) else value for name, value in (extra or {}).items()}
        kinds = join(self._kinds, more, where)
        for name, value in more.items():
            if not isinstance(value, int | float | str) or (isinstance(value, float) and not np.isfinite(value)):
                raise UsageError(f"{where}: the extra column {name!r} is {value!r}; it may be text, a finite number or a yes or no")
        with _undisturbed(), self._guarded("save"):
            storage.commit(self._folder / episode_name(number), self._write, {"frames": length, "tasks": tasks, "extra": more})
            self._forget()
            self._kinds = kinds
            self.num_episodes += 1
        return number

    def _write(self, directory: Path) -> None:
        """Fill the folder of the episode that is being committed."""
        for name, writer in self._videos.items():
            writer.close()
            there = video.probe(writer.path, self.fps).num_frames
            if there != self._length:  # a full disk is not always said by who writes
                raise DataError(f"{writer.path}: holds {there} of {self._length} frames of camera {name!r}")
            os.replace(writer.path, directory / writer.path.name)
        schema = arrow_schema(self._plan.columns())
        vectors = {name: np.stack(values) for name, values in self._rows.items() if not isinstance(values[0], bytes)}
        encoded = {name: values for name, values in self._rows.items() if isinstance(values[0], bytes)}
        pq.write_table(arrow_table(schema, vectors, encoded), directory / ROWS, **PARQUET)

    def discard_episode(self) -> None:
        """Forget the frames since the last save. A recorder that is closed, or that a forked process inherited, has none: what is there
        now is another's, and stays."""
        if self._over or os.getpid() != self._owner:  # guard: data.recorder.discard_in_child
            return
        for writer in self._videos.values():
            writer.abort()
        self._forget()

    def _forget(self) -> None:
        self._rows, self._videos, self._length = {}, {}, 0
        shutil.rmtree(self._folder / "current", ignore_errors=True)

    def finish(self) -> Path:
        """Make the folder a LeRobotDataset v3.0; returns it. Interrupted, opening the folder or calling this again does the same; done,
        calling it again does nothing.

        Raises `UsageError` when frames are neither saved nor discarded, or nothing was saved; `RecordingError` when the disk is full.
        """
        if self._over == FINISHED:
            return self.root
        self._require_open()
        if self._length:
            raise UsageError(f"{self.root}: {self._length} frames are not saved; call save_episode or discard_episode first")
        if not self.num_episodes:
            raise UsageError(f"{self.root}: no episode was saved, so there is no dataset to finish")
        with self._guarded("finish"):
            assemble(self.root)
        self._over = FINISHED
        self.close()
        return self.root

    def close(self) -> None:
        """Let go of the folder; frames that were not saved are lost, saved episodes stay. A forked process costs its parent nothing."""
        if self._rows or self._videos:
            self.discard_episode()
        self._over = self._over or CLOSED
        self._stack.close()

    def _require_open(self) -> None:
        if os.getpid() != self._owner:  # guard: data.recorder.child
            raise UsageError(f"{self.root}: process {self._owner} is recording it; a process that was forked from it cannot")
        if self._over:  # guard: data.recorder.over
            raise UsageError(f"{self.root}: {self._over}")

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """What the machine refuses becomes one typed line, and leaves the recording at its last saved episode."""
        under_way = what in ("record", "save")
        try:
            yield
        except BaseException as error:
            if under_way:
                self.discard_episode()  # of its cameras some have the frame and some have not
            if not isinstance(error, (OSError, DataError) if under_way else OSError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            there = (
                f"; the {self.num_episodes} saved episodes are whole: make room or mend the disk, then go on" if self.num_episodes else ""
            )
            raise RecordingError(f"{self.root}: cannot {what} ({reason}){there}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the block is done: people end demonstrations with it, and half a frame would cost the episode."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield  # other threads are not interrupted, and a handler from outside of Python cannot be put back
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def _pixels(images: Mapping[str, np.ndarray], camera: Camera, where: str) -> np.ndarray:
    pixels = images.get(camera.name)
    if pixels is None:
        raise DataError(f"{where}: no image of camera {camera.name!r}")
    shape = (camera.height, camera.width, 3)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        found = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{where}, camera {camera.name!r}: expected uint8 {list(shape)}, got {found}")
    return pixels


def _float32(given: Any, where: str) -> np.ndarray:
    """Numbers as float32; what is not real numbers already is refused, because numpy makes some of dates, of text and of complex ones."""
    try:
        found = np.asarray(given)
        if found.dtype.kind not in "biuf":  # guard: data.recorder.numbers
            raise TypeError(f"numpy reads {found.dtype.type.__name__}")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, which is refused
            return found.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # vectors of different lengths, a tensor on a GPU or with a gradient
        reason = str(error).partition("\n")[0][:120]
    try:
        shown = str(given)[:60]
    except ValueError:  # a number of more than 4300 digits
        shown = type(given).__name__
    raise DataError(f"{where} is {shown!r}, expected numbers ({reason}); the frame was not recorded")


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UsageError(f"{where}: the instruction is {shown(text, 40)}; say what the episode shows")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: the instruction {text[:40]!r} is not valid text") from None
